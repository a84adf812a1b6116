# SPDX-License-Identifier: Apache-2.0
"""Small images for the tests of C3's fit."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image

from compressai_sga import zoo

__all__ = ["constant", "natural", "noise"]


def natural(height: int = 64, width: int = 64, *, batch: int = 1) -> torch.Tensor:
    """Crops of a sample image, (batch, 3, height, width)."""
    path = zoo.sample_images()[0]
    pixels = np.asarray(Image.open(path).convert("RGB"), np.float32) / 255
    x = torch.from_numpy(pixels).permute(2, 0, 1)
    _, rows, columns = x.shape
    starts = [(min(64 + 48 * i, rows - height), min(96 + 32 * i, columns - width)) for i in range(batch)]
    return torch.stack([x[:, t : t + height, left : left + width] for t, left in starts]).contiguous()


def constant(value: float, height: int = 24, width: int = 40) -> torch.Tensor:
    return torch.full((1, 3, height, width), value)


def noise(height: int = 24, width: int = 40, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(1, 3, height, width, generator=generator)
