# SPDX-License-Identifier: Apache-2.0
"""One image at one size: JPEG, JPEG 2000 and the autoencoders side by side, with the table of the lecture.

Part of `rda.py`. In: a record of results, an image, names of zoo models (quality 1). Out: a cell, and a
figure when the pictures are made, for the record keeps numbers only; a Markdown table of such cells.

Sizes are those of whole files: `.csga` of the autoencoders, once as encoded and once refined (the preset
"fast", same model, same decoder); JPEG by Pillow with optimised Huffman tables; JPEG 2000 as a bare
codestream with the irreversible wavelet. The last two get at least as many bytes as the largest of ours,
and as little more as their settings allow. PSNR is of 8-bit pixels, of RGB and of BT.601's luma.
Fails with ``OSError`` where Pillow was built without JPEG 2000.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from PIL import Image
from pytorch_msssim import ms_ssim

from compressai_sga import zoo
from compressai_sga.files import compress_picture, decompress_picture, read_picture
from compressai_sga.tasks.records import Record

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

__all__ = ["make", "table"]

QUALITY = 1
REFINE = "fast"
LUMA = np.array([0.299, 0.587, 0.114])
Coded = tuple[bytes, np.ndarray]


def ours(path: Path, name: str, refine: str | None = None) -> Coded:
    """A `.csga` file and its pixels."""
    data, _ = compress_picture(read_picture(path), model=name, quality=QUALITY, refine=refine)
    return data, decompress_picture(data).pixels


def pillow(image: Image.Image, **options: Any) -> Coded:
    """A file of Pillow's and its pixels."""
    file = io.BytesIO()
    image.save(file, **options)
    return file.getvalue(), np.asarray(Image.open(io.BytesIO(file.getvalue())).convert("RGB"))


def jpeg(image: Image.Image, least_bytes: int) -> Coded:
    """The coarsest JPEG of at least this size."""
    for quality in range(1, 101):
        coded = pillow(image, format="JPEG", quality=quality, optimize=True)
        if len(coded[0]) >= least_bytes:
            break
    return coded


def jpeg2000(image: Image.Image, least_bytes: int) -> Coded:
    """The JPEG 2000 codestream that is just above this size, by bisection of the compression ratio."""
    fine, coarse = 8.0, 6 * image.width * image.height / least_bytes  # ratios on either side of the wanted
    best = None
    for _ in range(14):
        ratio = math.sqrt(fine * coarse)
        coded = pillow(
            image,
            format="JPEG2000",
            irreversible=True,
            mct=1,  # Pillow's default leaves the colours as they are, which costs 2 to 3 dB of RGB
            no_jp2=True,
            quality_mode="rates",
            quality_layers=[ratio],
        )
        if len(coded[0]) < least_bytes:
            coarse = ratio
            continue
        fine = ratio
        if best is None or len(coded[0]) < len(best[0]):
            best = coded
    return coded if best is None else best


def measure(path: Path, names: Sequence[str], figure: Path) -> dict[str, dict[str, float]]:
    """Size and quality of each file, by label; draws the pictures."""
    image = Image.open(path).convert("RGB")
    coded = {name: ours(path, name) for name in names}
    least = max(len(data) for data, _ in coded.values())
    refined = {f"{name}, refined": ours(path, name, REFINE) for name in names}
    coded = {"JPEG": jpeg(image, least), "JPEG 2000": jpeg2000(image, least), **coded, **refined}
    original = np.asarray(image)
    draw(coded, original, figure)
    return {label: scores(original, *files) for label, files in coded.items()}


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


def draw(coded: dict[str, Coded], original: np.ndarray, path: Path) -> None:
    """The original and the first coded pictures, two rows of three, without scaling their pixels much."""
    shown = [("original", original, "")]
    for label, (data, pixels) in coded.items():
        values = scores(original, data, pixels)
        shown.append((label, pixels, f": {len(data):,} bytes, {values['psnr_rgb_db']:.2f} dB"))
    shown = shown[:6]
    height, width = original.shape[:2]
    fig, panels = plt.subplots(2, 3, figsize=(15, 15 * 2 / 3 * height / width + 0.8), layout="constrained")
    for axes in panels.flat:
        axes.axis("off")
    for axes, (label, pixels, text) in zip(panels.flat, shown):
        axes.imshow(pixels)
        axes.set_title(label + text)
    fig.savefig(path, dpi=100)
    plt.close(fig)


def make(record: Record, path: Path, names: Sequence[str], figure: Path) -> None:
    """Measure the pictures, and draw them, when the record lacks them."""
    weights = {r.name: r.sha256 for r in zoo.list_models() if r.name in names and r.quality == QUALITY}
    settings = {"sha256": weights, "quality": QUALITY, "refine": REFINE}
    record.cell(f"pictures {path.stem}", settings, lambda: measure(path, names, figure))


def table(cells: Mapping[str, Any]) -> str:
    """Markdown of a results file: a row a file of each picture."""
    lines: list[str] = []
    for name, cell in cells.items():
        if not name.startswith("pictures "):
            continue
        image = name.removeprefix("pictures ")
        lines += ["", f"| {image} | bytes | bpp | PSNR of RGB, dB | PSNR of luma, dB | MS-SSIM |"]
        lines += ["|---|---|---|---|---|---|"]
        for label, row in cell["values"].items():
            psnr = f"{row['psnr_rgb_db']:.2f} | {row['psnr_luma_db']:.2f}"
            lines.append(f"| {label} | {row['bytes']} | {row['bpp']:.3f} | {psnr} | {row['ms_ssim']:.4f} |")
    return "\n".join(lines[1:])
