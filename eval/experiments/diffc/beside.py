# SPDX-License-Identifier: Apache-2.0
"""The images of eval/experiments/diffc/measure.py, and the codecs that DiffC is compared with.

Images are crops of Kodak photographs, chosen by a seed, or the first test images of an .npz file. The other
codecs are JPEG, JPEG 2000 (both in `images`) and a model of the zoo, each with its real bytes. A small JPEG
file consists mostly of tables, so the length of the tables is returned too.

In:  images (1, 3, H, W) in [0, 1] with 8 bits. Out: `Coded`, with a decoded image of the same kind.
Fails with ``FileNotFoundError`` or ``ValueError`` if there are no such images.
"""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path

import numpy as np
import torch
from compressai.utils.eval_model.__main__ import read_image
from torch import Tensor, nn

import images
from images import from_levels, levels

__all__ = ["Coded", "jpeg", "jpeg2000", "kodak_crops", "npz_images", "psnr_db", "stock"]


@dataclasses.dataclass(frozen=True)
class Coded:
    """An image as a codec gives it back.

    Args:
        x_hat: (1, 3, H, W), in 8 bits.
        bytes: all that the decoder needs.
        header_bytes: what of them says nothing about the image: JPEG's tables and markers.
        encode_seconds, decode_seconds: wall time.
    """

    x_hat: Tensor
    bytes: int
    header_bytes: int
    encode_seconds: float
    decode_seconds: float


def kodak_crops(folder: Path, count: int, size: int, seed: int) -> dict[str, Tensor]:
    """{kodimNN: crop (1, 3, size, size)}: random places in `count` random images."""
    files = sorted(folder.glob("*.png"))
    if len(files) < count:
        raise FileNotFoundError(
            f"{folder} has {len(files)} PNG images for {count} crops; name the Kodak folder with --kodak"
        )
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(files), generator=generator)[:count].tolist()
    crops = {}
    for path in [files[i] for i in order]:
        x = read_image(path)[None]
        if min(x.shape[2:]) < size:
            raise ValueError(f"{path} has {x.shape[3]}x{x.shape[2]} px, less than --size {size}")
        top, left = (int(torch.randint(side - size + 1, (), generator=generator)) for side in x.shape[2:])
        crops[path.stem] = x[:, :, top : top + size, left : left + size].contiguous()
    return dict(sorted(crops.items()))


def npz_images(path: Path, count: int) -> dict[str, Tensor]:
    """{testNNN: image (1, 3, H, W)}: the first of the array `test` (n, H, W, 3), uint8."""
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}; name an .npz with an array `test` of images with --tiny")
    return {f"test{i:03}": from_levels(pixels) for i, pixels in enumerate(np.load(path)["test"][:count])}


def psnr_db(x: Tensor, x_hat: Tensor) -> float:
    """Of what can be shown: both in 8 bits."""
    return images.psnr_db(levels(x), levels(x_hat))


def jpeg(x: Tensor, quality: int) -> Coded:
    file = images.jpeg(levels(x), quality)
    return _coded(file, _jpeg_header(file.data))


def jpeg2000(x: Tensor, ratio: float) -> Coded:
    """`ratio`: of 24 bits a pixel to the bits that are aimed at."""
    return _coded(images.jpeg2000(levels(x), ratio), 0)


def _coded(file: images.File, header_bytes: int) -> Coded:
    x_hat = from_levels(file.pixels)
    return Coded(x_hat, len(file.data), header_bytes, file.encode_seconds, file.decode_seconds)


def _jpeg_header(data: bytes) -> int:
    """Bytes up to the entropy-coded ones: markers and their segments, the start of scan included."""
    position = 2
    while True:
        marker, length = data[position + 1], int.from_bytes(data[position + 2 : position + 4], "big")
        position += 2 + length
        if marker == 0xDA:
            return position


@torch.no_grad()
def stock(net: nn.Module, x: Tensor) -> Coded:
    """By a CompressAI model; H and W must fit it."""
    start = time.perf_counter()
    out = net.compress(x)
    between = time.perf_counter()
    x_hat = net.decompress(out["strings"], out["shape"])["x_hat"].clamp(0, 1)
    end = time.perf_counter()
    size = sum(len(string) for strings in out["strings"] for string in strings)
    return Coded(from_levels(levels(x_hat)), size, 0, between - start, end - between)
