# SPDX-License-Identifier: Apache-2.0
"""One image at one size: JPEG, JPEG 2000 and the autoencoders side by side, with the table of the lecture.

Sizes are those of whole files. The autoencoders write `.csga` files, once as encoded and once refined (preset
"fast", same model, same decoder). JPEG and JPEG 2000 (both in `images`) get the smallest number of bytes that
their settings allow, but not fewer than the largest of these files. PSNR is given for RGB and for BT.601's
luma, of 8-bit pixels.

Part of `rda.py`. In: a record of results, an image, names of zoo models (quality 1). Out: a cell, and a
Markdown table of such cells; also a figure in the run that makes the pictures, because the record keeps only
numbers.
Fails with ``OSError`` if Pillow was built without JPEG 2000.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from pytorch_msssim import ms_ssim

from compressai_sga import zoo
from compressai_sga.files import compress_picture, decompress_picture, read_picture
from compressai_sga.tasks.provenance import save_figure
from compressai_sga.tasks.records import Record
from images import File, coarsest_jpeg, jpeg2000
from reporting import Cells, Figure, cells_of, image_grid, markdown

__all__ = ["last", "make", "table"]

QUALITY = 1
REFINE = "fast"
LUMA = np.array([0.299, 0.587, 0.114])
Coded = tuple[bytes, np.ndarray]


def ours(path: Path, name: str, refine: str | None = None) -> Coded:
    """A `.csga` file and its pixels."""
    data, _ = compress_picture(read_picture(path), model=name, quality=QUALITY, refine=refine)
    return data, decompress_picture(data).pixels


def jpeg2000_above(pixels: np.ndarray, least_bytes: int) -> File:
    """The JPEG 2000 codestream that is just above this size, by bisection of the compression ratio."""
    fine, coarse = 8.0, 2 * pixels.size / least_bytes  # ratios on either side of the wanted
    best = None
    for _ in range(14):
        ratio = math.sqrt(fine * coarse)
        file = jpeg2000(pixels, ratio)
        if len(file.data) < least_bytes:
            coarse = ratio
            continue
        fine = ratio
        if best is None or len(file.data) < len(best.data):
            best = file
    return file if best is None else best


def measure(path: Path, names: Sequence[str], figure: Path) -> dict[str, dict[str, float]]:
    """Size and quality of each file, by label; draws the pictures."""
    original = np.asarray(Image.open(path).convert("RGB"))
    coded = {name: ours(path, name) for name in names}
    least = max(len(data) for data, _ in coded.values())
    classical = {"JPEG": coarsest_jpeg(original, least)[0], "JPEG 2000": jpeg2000_above(original, least)}
    refined = {f"{name}, refined": ours(path, name, REFINE) for name in names}
    coded = {label: (file.data, file.pixels) for label, file in classical.items()} | coded | refined
    found = {label: scores(original, *file) for label, file in coded.items()}
    save_figure(pictures(original, coded, found), figure, [])  # its results are not on disk yet
    return found


def scores(original: np.ndarray, data: bytes, pixels: np.ndarray) -> dict[str, float]:
    """Bytes, bits a pixel, PSNR of RGB and of luma in dB, MS-SSIM of RGB."""
    error = pixels.astype(np.float64) - original
    x, x_hat = (torch.from_numpy(p.copy()).permute(2, 0, 1)[None].float() for p in (original, pixels))
    return {
        "bytes": len(data),
        "bpp": 8 * len(data) / (original.shape[0] * original.shape[1]),
        "psnr_rgb_db": 10 * math.log10(255**2 / np.mean(error**2)),
        "psnr_luma_db": 10 * math.log10(255**2 / np.mean((error @ LUMA) ** 2)),
        "ms_ssim": float(ms_ssim(x_hat, x, data_range=255)),
    }


def pictures(original: np.ndarray, coded: dict[str, Coded], found: dict[str, dict[str, float]]) -> Figure:
    """The original and the first coded pictures, two rows of three, without scaling their pixels much."""
    shown = [("original", original)]
    for label, (_, pixels) in coded.items():
        values = found[label]
        shown.append((f"{label}: {values['bytes']:,} bytes, {values['psnr_rgb_db']:.2f} dB", pixels))
    height, width = original.shape[:2]
    return image_grid([shown[:3], shown[3:6]], size=(5, 5 * height / width + 0.4), fontsize=12)


def make(record: Record, path: Path, names: Sequence[str]) -> None:
    """Measure the pictures, and draw them, when the record lacks them."""
    figure = record.path.parent.parent / "figures" / "rda-pictures.png"
    weights = {r.name: r.sha256 for r in zoo.list_models() if r.name in names and r.quality == QUALITY}
    settings = {"sha256": weights, "quality": QUALITY, "refine": REFINE}
    record.cell(f"pictures {path.stem}", settings, lambda: measure(path, names, figure))


def last(cells: Cells) -> dict[str, dict[str, float]]:
    """Size and quality by label, of the last picture."""
    *_, cell = cells_of(cells, "pictures").values()
    return cell["values"]


def table(cells: Cells) -> str:
    """Markdown of a results file: a row a file of each picture."""
    made = []
    for image, cell in cells_of(cells, "pictures").items():
        rows = [
            [
                label,
                str(row["bytes"]),
                f"{row['bpp']:.3f}",
                f"{row['psnr_rgb_db']:.2f}",
                f"{row['psnr_luma_db']:.2f}",
                f"{row['ms_ssim']:.4f}",
            ]
            for label, row in cell["values"].items()
        ]
        head = f"{image} | bytes | bpp | PSNR of RGB, dB | PSNR of luma, dB | MS-SSIM"
        made.append(markdown(head, rows))
    return "\n\n".join(made)
