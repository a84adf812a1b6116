# SPDX-License-Identifier: Apache-2.0
"""Models that CompressAI does not have, with the interface of CompressAI's models."""

from typing import TYPE_CHECKING

from .. import lazy

if TYPE_CHECKING:
    from . import c3, universal

__all__ = ["c3", "universal"]

__getattr__ = lazy.attributes(__name__, {"c3": "", "universal": ""})
