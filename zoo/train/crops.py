# SPDX-License-Identifier: Apache-2.0
"""Random training crops from a folder of photographs, by what a crop is worth.

At 128 pixels most of a photograph of three megapixels is flat or soft: a codec that is trained there learns
no detail, and its PSNR stops at 28 dB whatever the rate (`python zoo/train/compare_crops.py` measures it). So
photographs above a megapixel are kept at 1/2, 3/8 and 1/4 of their size, smaller ones at 1 and 3/4, which also
takes away the block pattern of what was once a JPEG; and half of the crops are the most detailed of four, by
the energy of their gradients.

In:  a folder of images (PNG, JPEG, WebP, TIFF), read once into memory as uint8; `held_out.txt` beside this file,
     names of photographs that no recipe trains on.
Out: batches of crops, float32, shape (batch, 3, size, size), values in [0, 1], turned and mirrored at random.
Fails with ``ValueError`` when the folder holds no image that is large enough, or one that cannot be read.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

__all__ = ["CropSampler", "held_out", "list_images", "read_rgb"]

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp", ".ppm"}
MEGAPIXEL = 1e6
LARGE_SCALES = (0.5, 0.375, 0.25)
SMALL_SCALES = (1.0, 0.75)
DETAILED_SHARE = 0.5
CANDIDATES = 4
CELL_PX = 8  # of the map of detail
HELD_OUT = Path(__file__).with_name("held_out.txt")


def list_images(folder: Path) -> list[Path]:
    """All images below `folder`, sorted by path."""
    return sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES)


def held_out() -> frozenset[str]:
    """FOLDER/NAME of the photographs that are kept for choosing among models."""
    lines = HELD_OUT.read_text(encoding="utf-8").splitlines()
    return frozenset(line for line in lines if line and not line.startswith("#"))


def read_rgb(path: Path) -> Image.Image:
    """An image in RGB; ValueError, with its path, where it cannot be read."""
    try:
        with Image.open(path) as handle:
            return handle.convert("RGB")
    except OSError as error:
        raise ValueError(f"{path} cannot be read as an image ({error}); repair it or take it away") from error


def _scales(image: Image.Image) -> Sequence[float]:
    return LARGE_SCALES if image.width * image.height > MEGAPIXEL else SMALL_SCALES


def _detail(image: Tensor) -> Tensor:
    """Integral over cells of 8 x 8 pixels of the squared gradient of the mean of R, G, B: (h + 1, w + 1)."""
    grey = image.float().mean(0)
    energy = torch.zeros_like(grey)
    energy[:-1] += (grey[1:] - grey[:-1]).square()
    energy[:, :-1] += (grey[:, 1:] - grey[:, :-1]).square()
    cells = torch.nn.functional.avg_pool2d(energy[None], CELL_PX)[0].double()
    return torch.nn.functional.pad(cells.cumsum(0).cumsum(1), (1, 0, 1, 0))


class CropSampler:
    """Draws batches of random crops; all randomness comes from its generator.

    Args:
        folder: searched recursively for images; those of `held_out` are left out.
        min_size: images with a side below this many pixels (after scaling) are left out.
        seed: of the crop positions.
    """

    def __init__(self, folder: Path, min_size: int = 256, seed: int = 0):
        self.images: list[Tensor] = []
        aside = held_out()
        paths = [p for p in list_images(folder) if f"{p.parent.name}/{p.name}" not in aside]
        for path in tqdm(paths, desc="reading images", leave=False):
            image = read_rgb(path)
            for scale in _scales(image):
                size = (round(image.width * scale), round(image.height * scale))
                if min(size) < min_size:
                    continue
                scaled = image if scale == 1 else image.resize(size, Image.Resampling.LANCZOS)
                self.images.append(torch.from_numpy(np.array(scaled)).permute(2, 0, 1))
        if not self.images:
            raise ValueError(
                f"{folder} holds no image with both sides of at least {min_size} pixels; photographs above a "
                "megapixel are halved first; name a folder of larger ones with --data"
            )
        self.details = [_detail(image) for image in self.images]
        self.weights = torch.tensor([float(i.shape[1] * i.shape[2]) for i in self.images]).sqrt()
        self.generator = torch.Generator().manual_seed(seed)

    def _below(self, n: int) -> int:
        return int(torch.randint(n, (), generator=self.generator))

    def _place(self, size: int) -> tuple[int, int, int]:
        """(image, top, left) of one crop."""
        index = int(torch.multinomial(self.weights, 1, generator=self.generator))
        _, height, width = self.images[index].shape
        return index, self._below(height - size + 1), self._below(width - size + 1)

    def _energy(self, place: tuple[int, int, int], size: int) -> float:
        """Of the gradients in a crop, over whole cells."""
        index, top, left = place
        detail = self.details[index]
        y, x, side = top // CELL_PX, left // CELL_PX, max(1, size // CELL_PX)
        bottom, right = min(y + side, detail.shape[0] - 1), min(x + side, detail.shape[1] - 1)
        return float(detail[bottom, right] - detail[y, right] - detail[bottom, x] + detail[y, x])

    def batch(self, count: int, size: int) -> Tensor:
        """`count` crops of `size` x `size` pixels, shape (count, 3, size, size) in [0, 1]."""
        crops = []
        for _ in range(count):
            detailed = float(torch.rand((), generator=self.generator)) < DETAILED_SHARE
            places = [self._place(size) for _ in range(CANDIDATES if detailed else 1)]
            index, top, left = max(places, key=lambda place: self._energy(place, size))
            crop = self.images[index][:, top : top + size, left : left + size]
            turn = self._below(8)
            if turn & 1:
                crop = crop.flip(2)
            if turn & 2:
                crop = crop.flip(1)
            if turn & 4:
                crop = crop.transpose(1, 2)
            crops.append(crop)
        return torch.stack(crops).float().div_(255)
