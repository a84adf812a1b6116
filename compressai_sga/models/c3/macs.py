# SPDX-License-Identifier: Apache-2.0
"""Multiplications of a C3 decoder for each pixel, counted from the configuration.

The count follows the paper (Kim et al. 2024, appendix): every weight of a net once for every position, the
entropy net at every latent, 8 for bilinear upsampling of a grid to a pixel, 4 for every value of a learned
upsampling (the row pass makes half as many values as the column pass), and 8 for a latent of the CLIC
variant, where the finer grid is reduced. Activations, biases and the entropy coder are not counted.

In:  an `Architecture`; a size, or none for the limit of large images.
Out: `Macs`, multiplications a pixel.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from .config import Architecture, layout
from .contexts import grid_sizes

__all__ = ["Macs", "macs_per_pixel"]

_BILINEAR = 8
_TAPS = 4


@dataclass(frozen=True)
class Macs:
    """Multiplications a pixel."""

    entropy: float
    upsampling: float
    synthesis: float

    @property
    def total(self) -> float:
        return self.entropy + self.upsampling + self.synthesis


def macs_per_pixel(architecture: Architecture, size: tuple[int, int] | None = None) -> Macs:
    """The count for an image of this size, or in the limit of large images, where no side is rounded up.

    Args:
        architecture: of the codec.
        size: (height, width) in pixels.
    """
    exponents = range(architecture.first, architecture.first + architecture.grids)
    if size is None:
        latents = sum(4.0**-i for i in exponents)
    else:
        sizes = grid_sizes(*size, architecture.grids, architecture.first)
        latents = sum(h * w for h, w in sizes) / (size[0] * size[1])
    weights = {"entropy": 0, "upsampling": 0, "synthesis": 0, "refinement": 0}
    for spec in layout(architecture):
        weights[spec.part] += 0 if spec.is_bias else math.prod(spec.shape)
    reduction = _BILINEAR if architecture.taps.source == "finer" else 0
    return Macs(
        entropy=(weights["entropy"] + reduction) * latents,
        upsampling=_upsampling(architecture, size),
        synthesis=float(weights["synthesis"] + weights["refinement"]),
    )


def _upsampling(architecture: Architecture, size: tuple[int, int] | None) -> float:
    exponents = range(architecture.first, architecture.first + architecture.grids)
    if architecture.upsampling == "bilinear":
        return float(_BILINEAR * sum(i > 0 for i in exponents))
    total = 0.0
    for made in range(architecture.doublings):
        planes = sum(i > made for i in exponents)
        if size is None:
            rows, values = 2.0 * 4.0 ** -(made + 1), 4.0**-made
        else:
            px = size[0] * size[1]
            (height, width), (_, half) = (tuple(-(-side >> e) for side in size) for e in (made, made + 1))
            rows, values = height * half / px, height * width / px
        total += planes * _TAPS * (rows + values)
    return total
