# SPDX-License-Identifier: Apache-2.0
"""Models that CompressAI does not have, with the interface of CompressAI's models."""

from . import c3, universal

__all__ = ["c3", "universal"]
