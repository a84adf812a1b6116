# SPDX-License-Identifier: Apache-2.0
"""The images of the experiments, and their JPEG and JPEG 2000 files, in memory.

    x = centre_crop(KODAK / "kodim13.png", 256)     # (1, 3, 256, 256) in [0, 1]
    file = coarsest_jpeg(levels(x), 4000)           # of at least 4000 bytes

JPEG: Pillow's 4:2:0 with optimised tables. JPEG 2000: with the options of
`compressai_sga.comparison.classical`.

In:  paths of images; pixels (H, W, 3) in 8 bits. Out: tensors; files, their pixels and times.
Fails with ``OSError`` if an image cannot be read, or if Pillow cannot write JPEG 2000.
"""

from __future__ import annotations

import io
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from compressai.utils.eval_model.__main__ import read_image
from PIL import Image
from torch import Tensor

from compressai_sga.comparison import classical

__all__ = [
    "KODAK",
    "SHARED",
    "File",
    "centre_crop",
    "coarsest_jpeg",
    "from_levels",
    "jpeg",
    "jpeg2000",
    "levels",
    "psnr_db",
]

SHARED = Path(os.environ.get("COMPRESSAI_SGA_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
KODAK = SHARED / "kodak"


def centre_crop(path: Path, side: int | None = None) -> Tensor:
    """The central square (1, 3, side, side), smaller if the image is; without a side, the whole image."""
    x = read_image(path)[None]
    height, width = (min(side or length, length) for length in x.shape[2:])
    top, left = (x.shape[2] - height) // 2, (x.shape[3] - width) // 2
    return x[:, :, top : top + height, left : left + width].contiguous()


def levels(image: Tensor) -> np.ndarray:
    """(1, 3, H, W) in [0, 1] as (H, W, 3) in 8 bits."""
    return (image[0] * 255).round().clamp(0, 255).byte().permute(1, 2, 0).cpu().numpy()


def from_levels(pixels: np.ndarray) -> Tensor:
    """The inverse of `levels`: (H, W, 3) in 8 bits as (1, 3, H, W) in [0, 1]."""
    return torch.from_numpy(np.array(pixels)).permute(2, 0, 1)[None].float() / 255


def psnr_db(a: np.ndarray, b: np.ndarray) -> float:
    """PSNR of pixels in 8 bits; 120 if they are equal."""
    mse = np.square((a.astype(np.float64) - b) / 255).mean()
    return float(-10 * np.log10(max(mse, 1e-12)))


@dataclass(frozen=True)
class File:
    """A compressed image and its decoded pixels.

    Args:
        data: the file.
        pixels: (H, W, 3) in 8 bits.
        encode_seconds, decode_seconds: wall time.
    """

    data: bytes
    pixels: np.ndarray
    encode_seconds: float
    decode_seconds: float


def _by_pillow(pixels: np.ndarray, **options: Any) -> File:
    image, file = Image.fromarray(pixels), io.BytesIO()
    start = time.perf_counter()
    image.save(file, **options)
    between = time.perf_counter()
    decoded = np.asarray(Image.open(io.BytesIO(file.getvalue())).convert("RGB"))
    return File(file.getvalue(), decoded, between - start, time.perf_counter() - between)


def jpeg(pixels: np.ndarray, quality: int) -> File:
    return _by_pillow(pixels, format="JPEG", quality=quality, subsampling="4:2:0", optimize=True)


def coarsest_jpeg(pixels: np.ndarray, least_bytes: int) -> tuple[File, int]:
    """The file of the lowest quality with at least so many bytes, and that quality; 100 if none has."""
    for quality in range(1, 101):
        file = jpeg(pixels, quality)
        if len(file.data) >= least_bytes:
            break
    return file, quality


def jpeg2000(pixels: np.ndarray, ratio: float) -> File:
    """JPEG 2000; `ratio` is 24 bits a pixel divided by the target in bits a pixel."""
    options = classical.make("jpeg2000", {}).options(str(ratio))
    return _by_pillow(pixels, format="JPEG2000", **options)
