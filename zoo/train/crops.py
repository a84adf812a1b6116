# SPDX-License-Identifier: Apache-2.0
"""Random training crops from a folder of photographs.

In:  a folder of images (PNG, JPEG, WebP, TIFF), read once into memory as uint8.
Out: batches of crops, float32, shape (batch, 3, size, size), values in [0, 1].

Every image is kept at a few sizes (1, 3/4, 1/2): a codec sees edges of all sharpnesses, and a
photograph that was once a JPEG loses its block pattern at the smaller ones. A crop is drawn by
area, flipped and transposed at random. Fails with ``ValueError`` when the folder holds no image
that is large enough.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

__all__ = ["CropSampler", "list_images"]

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp", ".ppm"}
SCALES = (1.0, 0.75, 0.5)


def list_images(folder: Path) -> list[Path]:
    """All images below `folder`, sorted by path."""
    return sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES)


class CropSampler:
    """Draws batches of random crops; all randomness comes from its generator.

    Args:
        folder: searched recursively for images.
        min_size: images with a side below this many pixels (after scaling) are left out.
        seed: of the crop positions.
    """

    def __init__(self, folder: Path, min_size: int = 256, seed: int = 0):
        self.images: list[Tensor] = []
        for path in tqdm(list_images(folder), desc="reading images", leave=False):
            with Image.open(path) as handle:
                image = handle.convert("RGB")
            for scale in SCALES:
                size = (round(image.width * scale), round(image.height * scale))
                if min(size) < min_size:
                    continue
                scaled = image if scale == 1 else image.resize(size, Image.Resampling.LANCZOS)
                self.images.append(torch.from_numpy(np.array(scaled)).permute(2, 0, 1))
        if not self.images:
            raise ValueError(
                f"{folder} holds no image with both sides of at least {min_size} pixels; "
                "name a folder of larger photographs with --data"
            )
        area = torch.tensor([float(i.shape[1] * i.shape[2]) for i in self.images])
        self.weights = area.sqrt()
        self.generator = torch.Generator().manual_seed(seed)

    def _below(self, n: int) -> int:
        return int(torch.randint(n, (), generator=self.generator))

    def batch(self, count: int, size: int) -> Tensor:
        """`count` crops of `size` x `size` pixels, shape (count, 3, size, size) in [0, 1]."""
        picks = torch.multinomial(self.weights, count, replacement=True, generator=self.generator)
        crops = []
        for index in picks.tolist():
            image = self.images[index]
            top = self._below(image.shape[1] - size + 1)
            left = self._below(image.shape[2] - size + 1)
            crop = image[:, top : top + size, left : left + size]
            turn = self._below(8)
            if turn & 1:
                crop = crop.flip(2)
            if turn & 2:
                crop = crop.flip(1)
            if turn & 4:
                crop = crop.transpose(1, 2)
            crops.append(crop)
        return torch.stack(crops).float().div_(255)
