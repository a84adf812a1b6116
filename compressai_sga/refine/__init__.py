# SPDX-License-Identifier: Apache-2.0
"""Latent refinement of frozen models: `refine`, `refined`, `refine_folder`; of video: `refine_frames`."""

from typing import TYPE_CHECKING

from .. import lazy

if TYPE_CHECKING:
    from ..lmbda import LMBDA_BY_QUALITY, set_trained_lmbda, trained_lmbda
    from .folder import Stored, refine_folder, stored
    from .latents import LatentAdapter
    from .loop import ADAPTERS, RefineResult, refine, refined
    from .objective import RateDistortion
    from .presets import METHODS, PRESETS, RefineConfig
    from .video import decode_frames, refine_frames, refined_frames

__all__ = [
    "ADAPTERS",
    "LMBDA_BY_QUALITY",
    "METHODS",
    "PRESETS",
    "LatentAdapter",
    "RateDistortion",
    "RefineConfig",
    "RefineResult",
    "Stored",
    "decode_frames",
    "refine",
    "refine_folder",
    "refine_frames",
    "refined",
    "refined_frames",
    "set_trained_lmbda",
    "stored",
    "trained_lmbda",
]

__getattr__ = lazy.attributes(
    __name__,
    {
        **dict.fromkeys(("LMBDA_BY_QUALITY", "set_trained_lmbda", "trained_lmbda"), ".lmbda"),
        **dict.fromkeys(("ADAPTERS", "RefineResult", "refine", "refined"), "loop"),
        "LatentAdapter": "latents",
        **dict.fromkeys(("Stored", "refine_folder", "stored"), "folder"),
        "RateDistortion": "objective",
        **dict.fromkeys(("METHODS", "PRESETS", "RefineConfig"), "presets"),
        **dict.fromkeys(("decode_frames", "refine_frames", "refined_frames"), "video"),
    },
)
