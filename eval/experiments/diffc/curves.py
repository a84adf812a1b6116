# SPDX-License-Identifier: Apache-2.0
"""Rate-distortion and rate-realism of DiffC-A and DiffC-F beside other codecs, image by image.

An image is compressed once for each rate, and both classes decode the same bytes. Prefixes of the stream of
the highest rate are decoded too. Decoded images are kept as PNG files, because realism is a distance between
all originals and all reconstructions of a codec at a rate: the sliced Wasserstein distance of
`metrics.sliced_wasserstein`.

In:  a `DiffC` model with its cost table; images (1, 3, H, W) in [0, 1] by name; a folder for the PNG files.
Out: for one image, dictionaries {label: {psnr_db, ...}} with bytes and seconds.
Fails as the codecs do.
"""

from __future__ import annotations

import base64
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from compressai_sga.metrics.sliced_wasserstein import SlicedWasserstein
from compressai_sga.models.diffc import DiffC, DiffCAncestral, DiffCFlow
from experiments.diffc.beside import Coded, psnr_db
from images import from_levels, levels

__all__ = ["CLASSES", "Pictures", "beside", "coded", "prefix", "realism"]

CLASSES: dict[str, type[DiffC]] = {"F": DiffCFlow, "A": DiffCAncestral}


class Pictures:
    """Decoded images as PNG files, by codec, setting and name of the image."""

    def __init__(self, folder: Path):
        self.folder = folder

    def path(self, codec: str, setting: str, image: str) -> Path:
        return self.folder / f"{codec} {setting}" / f"{image}.png"

    def keep(self, x_hat: Tensor, *name: str) -> None:
        path = self.path(*name)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".tmp")
        Image.fromarray(levels(x_hat)).save(temporary, "PNG")
        temporary.replace(path)

    def get(self, *name: str) -> Tensor:
        with Image.open(self.path(*name)) as image:
            return from_levels(np.asarray(image.convert("RGB")))


def both(model: DiffC) -> dict[str, DiffC]:
    """DiffC-F and DiffC-A with this model's weights, costs and channel."""
    knobs = {"costs": model.costs, "channel": model.channel, "size": model.size, "progress": False}
    return {label: kind(model.denoiser, **knobs) for label, kind in CLASSES.items()}


@torch.no_grad()
def coded(model: DiffC, x: Tensor, bpp: float, name: str, pictures: Pictures) -> dict[str, Any]:
    """One image at a rate: real bytes, and both reconstructions of them."""
    models = both(model)
    models["F"].bpp = bpp
    start = time.perf_counter()
    out = models["F"].compress(x)
    values: dict[str, Any] = {"encode_seconds": time.perf_counter() - start}
    values["bytes"] = sum(len(string) for strings in out["strings"] for string in strings)
    values["string"] = base64.b64encode(out["strings"][0][0]).decode()
    for label, one in models.items():
        start = time.perf_counter()
        x_hat = one.decompress(out["strings"], out["shape"])["x_hat"]
        values[label] = {"decode_seconds": time.perf_counter() - start, "psnr_db": psnr_db(x, x_hat)}
        pictures.keep(x_hat, label, f"{bpp:g}", name)
    return values


@torch.no_grad()
def prefix(model: DiffC, x: Tensor, string: str, max_bytes: int) -> dict[str, Any]:
    """DiffC-F from the first bytes of a stream."""
    out = both(model)["F"].decompress([[base64.b64decode(string)]], x.shape[2:], max_bytes=max_bytes)
    return {"bytes": max_bytes, "psnr_db": psnr_db(x, out["x_hat"])}


def beside(made: Coded, x: Tensor, pictures: Pictures, *name: str) -> dict[str, Any]:
    """The numbers of another codec's image, which is kept."""
    pictures.keep(made.x_hat, *name)
    return {
        "bytes": made.bytes,
        "header_bytes": made.header_bytes,
        "encode_seconds": made.encode_seconds,
        "decode_seconds": made.decode_seconds,
        "psnr_db": psnr_db(x, made.x_hat),
    }


def realism(images: Mapping[str, Tensor], pictures: Pictures, codec: str, setting: str) -> dict[str, Any]:
    """Sliced Wasserstein distance of all images, the mean and by level of the pyramid, finest first."""
    metric = SlicedWasserstein()
    for name, x in images.items():
        metric.update(x, pictures.get(codec, setting, name))
    found = metric.levels()
    return {"swd": sum(found) / len(found), "levels": found}
