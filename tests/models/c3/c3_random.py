# SPDX-License-Identifier: Apache-2.0
"""Random nets and latents for the tests of C3's nets."""

from __future__ import annotations

import math

import numpy as np
import torch

from compressai_sga.models.c3.config import Architecture, layout
from compressai_sga.models.c3.contexts import grid_sizes
from compressai_sga.models.c3.weights import Nets

__all__ = ["LEARNED", "SMALL", "random_grids", "random_nets", "tensors"]

SMALL = Architecture(
    grids=4,
    context=1,
    entropy_hidden=(12, 12, 5),
    entropy_residual=True,
    synthesis_hidden=(9,),
    refinements=1,
)

LEARNED = Architecture(
    grids=3,
    first=2,
    context=1,
    upsampling="learned",
    synthesis_hidden=(),
    synthesis_skip=True,
    synthesis_activation="relu",
)
"""Grids none of which has the image's size."""


def random_nets(architecture: Architecture, size: tuple[int, int], seed: int = 0) -> Nets:
    """Nets with fine steps, so that only the hidden values' rounding is left."""
    rng = np.random.default_rng(seed)
    integers, shifts = [], []
    for spec in layout(architecture):
        shift = 10
        spread = 0.05 if spec.is_bias or spec.part == "refinement" else 0.5 / math.sqrt(spec.fan_in)
        values = rng.normal(size=spec.shape) * spread
        if spec.name == f"entropy.{len(architecture.entropy_hidden)}.bias":
            values[1] = 2.5  # wide laws: no latent is so surprising that the tables' floor matters
        if spec.name in (f"entropy.{len(architecture.entropy_hidden)}.weight", "entropy.skip"):
            values *= 0.1
        if spec.part == "upsampling":
            values = 0.2 * values + (0, 0.25, 0.75, 0)  # or coarse grids fade
        integers.append(np.rint(values * 2**shift).astype(np.int64))
        shifts.append(shift)
    return Nets(architecture, size, 30, tuple(integers), tuple(shifts))


def tensors(nets: Nets) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(array)[None] for name, array in nets.arrays().items()}


def random_grids(architecture: Architecture, size: tuple[int, int]) -> list[np.ndarray]:
    rng = np.random.default_rng(1)
    sizes = grid_sizes(*size, architecture.grids, architecture.first)
    return [np.rint(rng.laplace(size=s) * 2).clip(-30, 30).astype(np.int32) for s in sizes]
