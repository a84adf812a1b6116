# SPDX-License-Identifier: Apache-2.0
"""Models that CompressAI does not have, under the interface that its own models have."""

from . import universal

__all__ = ["universal"]
