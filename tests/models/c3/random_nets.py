# SPDX-License-Identifier: Apache-2.0
"""Random entropy nets, contexts and latents for the tests of C3's latent code."""

from __future__ import annotations

import numpy as np

from compressai_sga.models.c3.contexts import C3, C3_FINER, Context, nearest_taps, square_taps
from compressai_sga.models.c3.integer import IntegerNet

CONTEXTS = {
    "c3": C3,
    "c3-finer": C3_FINER,
    "small": Context(own=square_taps(2)),
    "coarser": Context(
        own=nearest_taps(13), other=((0, 0), (0, 1), (1, 0), (1, 1), (0, -1), (-1, 0)), source="coarser"
    ),
    "odd": Context(own=((0, -1), (-1, 0), (-2, 7), (-7, -7), (-1, -5)), other=((0, 0),), source="finer"),
    "left only": Context(own=((0, -1), (0, -3))),
    "other only": Context(own=(), other=((-7, 7), (7, -7), (0, 0)), source="coarser"),
}


def random_net(
    seed: int,
    width: int,
    *,
    hidden: tuple[int, ...] = (18, 18),
    activation: str = "gelu",
    residual: bool = False,
    skip: bool = False,
    clamp: int = 127,
    scale: float = 0.7,
    spread: float = 1.0,
    first: float = 0.4,
    shift: int = 11,
) -> IntegerNet:
    """A net of that shape; its scales are around `scale`."""
    rng = np.random.default_rng(seed)
    sizes = [width, *hidden, 2]
    weights = [rng.normal(size=(b, a)) / np.sqrt(a) for a, b in zip(sizes, sizes[1:])]
    biases = [rng.normal(size=b) / 8 for b in sizes[1:]]
    weights[0] *= first
    weights[-1] *= spread
    biases[-1][1] += np.log2(scale)
    return IntegerNet.from_float(
        weights,
        biases,
        weight_shifts=[shift] * len(weights),
        bias_shifts=[12] * len(weights),
        activation=activation,
        residual=[residual and w.shape[0] == w.shape[1] for w in weights],
        skip=rng.normal(size=(2, width)) / 20 if skip else None,
        skip_shift=9,
        clamp=clamp,
    )


NETS = {
    "gelu": {},
    "relu residual skip": {"activation": "relu", "residual": True, "skip": True, "hidden": (14, 14)},
    "odd widths": {"hidden": (7, 5, 5), "skip": True, "residual": True, "clamp": 31},
    "linear": {"hidden": ()},
    "wild": {"spread": 9.0, "clamp": 9},
    "saturating": {"first": 12.0, "shift": 7},
}


def laplace(seed: int, sizes: tuple[tuple[int, int], ...], scale: float = 0.7) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [np.rint(rng.laplace(size=size) * scale).astype(np.int32) for size in sizes]
