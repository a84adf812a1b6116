# SPDX-License-Identifier: Apache-2.0
"""Random training crops from a folder of photographs, with a preference for detail.

In a photograph of three megapixels most crops of 128 pixels are flat or soft, and a codec that is trained on
them learns no detail. So photographs above a megapixel are kept at 1/2, 3/8 and 1/4 of their size, smaller
ones at 1 and 3/4. This also removes the block pattern of images that were once JPEG files.

In addition, some crops are chosen by detail: each is the one of four with the largest energy of gradients. In
a training for all rates, the share of such crops rises from none at the lowest rate, which cannot keep
detail, to all at the highest rate. In other trainings half of the crops are chosen in this way.
compare_crops.py measures the effect of both steps by photograph and rate: zoo/README.md, "Crops".

In:  a folder of images (PNG, JPEG, WebP, TIFF), read once into memory as uint8; `held_out.txt` beside this
     file, names of photographs that no recipe trains on.
Out: batches of crops, float32, shape (batch, 3, size, size), values in [0, 1], turned and mirrored at random.
Memory: 4.9 bytes a pixel for photographs up to a megapixel, 1.4 for larger ones. Eight crops of 128 pixels
take a millisecond.
Fails with ``ValueError`` if the folder has no image that is large enough, or an image that cannot be read.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

__all__ = [
    "MEGAPIXEL",
    "NO_PHOTOGRAPHS",
    "CropSampler",
    "held_out",
    "list_images",
    "photographs",
    "read_rgb",
    "resized",
    "scales_of",
]

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp", ".ppm"}
MEGAPIXEL = 1e6
LARGE_SCALES = (0.5, 0.375, 0.25)
SMALL_SCALES = (1.0, 0.75)
DEFAULT_LEVEL = 0.5
CANDIDATES = 4
CELL_PX = 8  # of the map of detail
NO_PHOTOGRAPHS = tuple(f"{name}-lossless.png" for name in ("mc1", "mc2", "mc3", "mies", "house"))  # of gb82
HELD_OUT = Path(__file__).with_name("held_out.txt")


def list_images(folder: Path) -> list[Path]:
    """All images below `folder`, sorted by path."""
    return sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES)


def held_out() -> frozenset[str]:
    """FOLDER/NAME of the held-out photographs, which choose among models and are never trained on."""
    lines = HELD_OUT.read_text(encoding="utf-8").splitlines()
    return frozenset(line for line in lines if line and not line.startswith("#"))


def photographs(folder: Path, leave_out: Collection[str] = (), held: bool = False) -> list[Path]:
    """Paths below `folder` of the photographs to train on, or with `held` of the held-out ones.

    Args:
        folder: searched recursively.
        leave_out: file names of images that are not photographs.
        held: return the images of `held_out` instead of all others.
    """
    aside = held_out()
    paths = [p for p in list_images(folder) if (f"{p.parent.name}/{p.name}" in aside) == held]
    return [p for p in paths if p.name not in leave_out]


def read_rgb(path: Path) -> Image.Image:
    """An image in RGB; ValueError with its path if it cannot be read."""
    try:
        with Image.open(path) as handle:
            if handle.mode.startswith(("I", "F")):  # Pillow would cut off what is above 255
                raise ValueError(f"mode {handle.mode} has more than 8 bits a value")
            return handle.convert("RGB")
    except Exception as error:  # whatever Pillow's readers make of a damaged file
        raise ValueError(f"{path} cannot be read as an image ({error}); repair or remove it") from error


def scales_of(pixels: int) -> tuple[float, ...]:
    """The scales at which a photograph of so many pixels is used for training."""
    return LARGE_SCALES if pixels > MEGAPIXEL else SMALL_SCALES


def resized(
    image: Image.Image, min_size: int, scales: Callable[[int], Sequence[float]] = scales_of
) -> list[Image.Image]:
    """The image at those of its scales where both sides have `min_size` pixels.

    If that holds at none of its scales, the smallest size with `min_size` pixels is used; [] if the image
    itself is too small.
    """
    width, height = image.size
    shorter = min(image.size)
    if shorter < min_size:
        return []
    fitting = [scale for scale in scales(width * height) if round(shorter * scale) >= min_size]
    sizes = [(round(width * s), round(height * s)) for s in fitting or [min_size / shorter]]
    return [image if size == image.size else image.resize(size, Image.Resampling.LANCZOS) for size in sizes]


def _detail(image: Tensor) -> Tensor:
    """Integral over whole cells of 8 x 8 pixels of the grey image's squared gradient: (h + 1, w + 1)."""
    grey = image.float().mean(0)
    energy = torch.zeros_like(grey)
    energy[:-1] += (grey[1:] - grey[:-1]).square()
    energy[:, :-1] += (grey[:, 1:] - grey[:, :-1]).square()
    height, width = (side // CELL_PX for side in grey.shape)
    energy = energy[: height * CELL_PX, : width * CELL_PX]
    cells = energy.reshape(height, CELL_PX, width, CELL_PX).sum((1, 3), dtype=torch.float64)
    return torch.nn.functional.pad(cells.cumsum(0).cumsum(1), (1, 0, 1, 0))


class CropSampler:
    """Draws batches of random crops; all randomness comes from its generator.

    Args:
        folder: searched recursively for images; those of `held_out` are left out.
        min_size: images with a side below this many pixels are left out, and so are scales that make one.
        seed: of the crops.
        detailed_share: share of the crops that are the most detailed of four, in [0, 1]; None: by `level`.
        scales: gives the scales at which a photograph of so many pixels is kept.
        leave_out: file names of images that are not photographs.
        held: draw only from the images of `held_out`.
    """

    def __init__(
        self,
        folder: Path,
        min_size: int = 256,
        seed: int = 0,
        *,
        detailed_share: float | None = None,
        scales: Callable[[int], Sequence[float]] = scales_of,
        leave_out: Collection[str] = (),
        held: bool = False,
    ):
        if detailed_share is not None and not 0 <= detailed_share <= 1:
            raise ValueError(f"detailed_share is {detailed_share}; it is a share of the crops, give 0 to 1")
        self.detailed_share = detailed_share
        self.images: list[Tensor] = []
        self.photographs = 0
        for path in tqdm(photographs(folder, leave_out, held), desc="reading images", leave=False):
            sizes = resized(read_rgb(path), min_size, scales)
            self.images += [torch.from_numpy(np.array(image)).permute(2, 0, 1) for image in sizes]
            self.photographs += bool(sizes)
        if not self.images:
            raise ValueError(
                f"{folder} holds no image with both sides of at least {min_size} pixels"
                f"{' in held_out.txt' if held else ''}; name a folder of larger ones with --data"
            )
        self.sides = torch.tensor([image.shape[1:] for image in self.images])
        self.weights = self.sides.prod(1).double().sqrt()
        self.generator = torch.Generator().manual_seed(seed)
        details = [_detail(image) for image in self.images]
        self._integral = torch.cat([detail.flatten() for detail in details])
        self._row = torch.tensor([detail.shape[1] for detail in details])
        self._start = torch.tensor([0, *(detail.numel() for detail in details)]).cumsum(0)[:-1]

    def _places(self, count: int, size: int) -> tuple[Tensor, Tensor, Tensor]:
        """(image, top, left) of crops, each (count,)."""
        fits = self.weights * (self.sides >= size).all(1)
        if not fits.any():
            raise ValueError(
                f"no image has room for a crop of {size} pixels; the largest possible crop has "
                f"{self.sides.amin(1).max()}; take smaller crops, or name larger photographs with --data"
            )
        image = torch.multinomial(fits, count, replacement=True, generator=self.generator)
        where = torch.rand(count, 2, dtype=torch.float64, generator=self.generator)
        top, left = (where * (self.sides[image] - size + 1)).long().unbind(1)
        return image, top, left

    def _energy(self, image: Tensor, top: Tensor, left: Tensor, size: int) -> Tensor:
        """Energy of the gradients in each crop, over its complete cells."""
        cells = size // CELL_PX
        first = self._start[image] + top // CELL_PX * self._row[image] + left // CELL_PX
        last = first + cells * self._row[image]
        whole = self._integral
        return whole[last + cells] - whole[last] - whole[first + cells] + whole[first]

    def batch(self, count: int, size: int, level: Tensor | None = None) -> Tensor:
        """`count` crops of `size` x `size` pixels, shape (count, 3, size, size) in [0, 1].

        Args:
            count, size: see above.
            level: how much detail the rate of each crop can keep, (count,) in [0, 1]; 0.5 by default.

        Raises:
            ValueError: no image is large enough.
        """
        places = self._places(count * CANDIDATES, size)
        energy = self._energy(*places, size).view(count, CANDIDATES)
        level = torch.full((count,), DEFAULT_LEVEL) if level is None else level
        share = level if self.detailed_share is None else self.detailed_share
        choose = torch.rand(count, generator=self.generator) < share
        chosen = torch.where(choose, energy.argmax(1), 0) + torch.arange(count) * CANDIDATES
        turns = torch.randint(8, (count,), generator=self.generator)
        crops = []
        for index, top, left, turn in torch.stack([*(p[chosen] for p in places), turns], 1).tolist():
            crop = self.images[index][:, top : top + size, left : left + size]
            if turn & 1:
                crop = crop.flip(2)
            if turn & 2:
                crop = crop.flip(1)
            if turn & 4:
                crop = crop.transpose(1, 2)
            crops.append(crop)
        return torch.stack(crops).float().div_(255)
