# SPDX-License-Identifier: Apache-2.0
"""Models that CompressAI does not have, under the interface that its own models have."""

from . import c3, universal

__all__ = ["c3", "universal"]
