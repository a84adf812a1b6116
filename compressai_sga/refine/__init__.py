# SPDX-License-Identifier: Apache-2.0
"""Latent refinement of frozen CompressAI models; start with `refine` or `refined`."""

from ..lmbda import LMBDA_BY_QUALITY, set_trained_lmbda, trained_lmbda
from .loop import RefineResult, refine, refined
from .objective import RateDistortion
from .presets import METHODS, PRESETS, RefineConfig

__all__ = [
    "LMBDA_BY_QUALITY",
    "METHODS",
    "PRESETS",
    "RateDistortion",
    "RefineConfig",
    "RefineResult",
    "refine",
    "refined",
    "set_trained_lmbda",
    "trained_lmbda",
]
