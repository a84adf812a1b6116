# SPDX-License-Identifier: Apache-2.0
"""The trade-off lmbda of a model: CompressAI's training values, and the value noted on a model itself.

Here lmbda weighs the distortion: bpp + lmbda * 255^2 * MSE (metric "mse"), bpp + lmbda * (1 - MS-SSIM)
("ms-ssim"). A state dict does not hold it, so the code that loads weights notes it on the model, and
refinement reads it there.
"""

from __future__ import annotations

import math

from torch import nn

from .typing import Distortion
from .wrappers import unwrapped

__all__ = ["LMBDA_BY_QUALITY", "nearest_published", "set_trained_lmbda", "trained_lmbda"]

# CompressAI's published training values, qualities 1 to 8.
LMBDA_BY_QUALITY: dict[Distortion, tuple[float, ...]] = {
    "mse": (0.0018, 0.0035, 0.0067, 0.0130, 0.0250, 0.0483, 0.0932, 0.1800),
    "ms-ssim": (2.40, 4.58, 8.73, 16.64, 31.73, 60.50, 115.37, 220.00),
}
_ATTRIBUTE = "_compressai_sga_lmbda"


def set_trained_lmbda(model: nn.Module, lmbda: float, metric: Distortion = "mse") -> None:
    """Notes on the model which trade-off it was trained for; copies of the model keep the note."""
    model = unwrapped(model)
    setattr(model, _ATTRIBUTE, {**getattr(model, _ATTRIBUTE, {}), metric: float(lmbda)})


def trained_lmbda(model: nn.Module, metric: Distortion = "mse") -> float | None:
    """The trade-off that the model is known to be trained for, or None."""
    return getattr(unwrapped(model), _ATTRIBUTE, {}).get(metric)


def nearest_published(lmbda: float, metric: Distortion) -> float:
    """The published value nearest to `lmbda`, or `lmbda` itself when it lies beyond them all.

    The published values are factors of 1.9 apart, so a value between two of them changes by a factor of at
    most 1.4. The estimate for a model that was trained with one of them becomes exact.
    """
    nearest = min(LMBDA_BY_QUALITY[metric], key=lambda known: abs(math.log(known / lmbda)))
    return nearest if abs(math.log(nearest / lmbda)) < math.log(1.4) else lmbda
