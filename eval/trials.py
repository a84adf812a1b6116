# SPDX-License-Identifier: Apache-2.0
"""One image through one entry of a comparison at one point: real bytes, the decoded picture, what it took.

Models are coded by CompressAI's own `inference`, as its `eval_model` does: padded with zeros to multiples of
64, compressed to strings, decompressed, clamped and rounded to 8 bits; with refinement inside
`compressai_sga.refined`. Classical codecs write whole files. So all are measured by the same functions:

    bpp              8 x bytes of the strings or the file / pixels
    psnr-rgb         dB, of the picture in 8 bits; ms-ssim-rgb likewise, for sides of more than 160 pixels
    encoding_time, decoding_time    seconds by the clock, as CompressAI counts them
    cpu_sec, peak_memory_mb         of both together (`resources`)

`count_macs` counts multiplications of convolutions and matrix products, as PyTorch dispatches them, a pixel
of an image whose sides are multiples of 64; C3, whose decoder is no PyTorch, counts its own. Classical: none.

In:  entries (`entries`), points, paths of images. Out: JSON.
Fails with ``SgaError`` where a model cannot be loaded, and with whatever a codec fails with.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import classical
import compressai
import entries
import PIL
import torch
from compressai.utils.eval_model import __main__ as stock
from compressai.zoo.image import model_urls
from entries import Entry
from PIL import Image
from resources import measured
from tasks import device
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision.transforms.functional import pil_to_tensor, to_pil_image

import compressai_sga
from compressai_sga import coding, metrics, zoo
from compressai_sga.errors import SgaError
from compressai_sga.hooks import checks
from compressai_sga.refine import LMBDA_BY_QUALITY, refined, set_trained_lmbda, trained_lmbda

__all__ = ["code", "count_macs", "identity", "load", "sha256", "whole_set"]

MS_SSIM_LEAST_PX = 161
MACS_PX = 64


def identity(entry: Entry, point: str) -> dict[str, Any]:
    """What a result of the entry belongs to: its label, its weights, the versions of the packages."""
    weights: str | None = None
    if entry.option("checkpoint"):
        weights = sha256(Path(point if not _is_vbr(entry) else entry.option("checkpoint")))
    elif not entry.is_classical:
        records = [r for r in zoo.list_models() if (r.name, str(r.quality)) == (entry.name, point)]
        urls = model_urls.get(entry.name, {}).get(entry.option("metric", "mse"), {})
        weights = records[0].sha256 if records else urls.get(int(point)) if point.isdigit() else None
    packages = (PIL,) if entry.is_classical else (compressai_sga, compressai, torch)
    versions = {package.__name__: package.__version__ for package in packages}
    return {"entry": entry.label, "point": point, "weights": weights, "versions": versions}


def sha256(path: Path) -> str:
    """Of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@functools.lru_cache(maxsize=1)
def load(label: str, point: str) -> nn.Module:
    """The model of an entry at a point, on the device of this process; the last one is kept."""
    entry = entries.parse(label)
    metric, files = entry.option("metric", "mse"), entry.option("checkpoint")
    if files:
        path = files if _is_vbr(entry) else point
        net = checks.load_checkpoint(
            stock.load_checkpoint, stock.architectures, entry.name, False, path, coding=True
        )
        for option, value in entry.request.model.items():
            setattr(net, option, value)
    else:
        quality = int(point) if point.isdigit() and not _is_vbr(entry) else 0

        def make(name: str, metric: str, quality: int) -> nn.Module:
            return stock.pretrained_models[name](
                quality=quality, metric=metric, pretrained=True, progress=False, **entry.request.model
            ).eval()

        net = checks.load_pretrained(make, entry.name, metric, quality)
        if entry.name in model_urls and trained_lmbda(net, metric) is None:
            set_trained_lmbda(net, LMBDA_BY_QUALITY[metric][quality - 1], metric)
    if entry.option("coder"):
        coding.set_coder(net, entry.option("coder"))
    if _is_vbr(entry):
        net.no_quantoffset = False
        net.scl2ctx = True
    return net.to(device())


def code(
    label: str, point: str, image: str, further: Sequence[str] = (), picture: str = ""
) -> dict[str, Any]:
    """Code one image.

    Args:
        label: of the entry.
        point: one of its points.
        image: path.
        further: names of `metrics.METRICS`.
        picture: path for the decoded picture, a PNG; empty: it is not kept.

    Returns:
        The values that the head of the file names, and the further metrics by name.
    """
    entry = entries.parse(label)
    if entry.is_classical:
        values, x, x_hat = _classical(entry, point, image)
    else:
        values, x, x_hat = _model(entry, point, image)
    for name in further:
        values[name] = float(metrics.METRICS[name](x, x_hat))
    if picture:
        path = Path(picture)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".part")
        to_pil_image((x_hat[0] * 255).round().to(torch.uint8).cpu()).save(temporary, format="png")
        temporary.replace(path)
    return values


def _classical(entry: Entry, point: str, image: str) -> tuple[dict[str, Any], Tensor, Tensor]:
    codec = classical.make(entry.name, dict(entry.options))
    try:
        with measured() as used:
            info, decoded = codec.run(image, point, ["psnr-rgb"], return_rec=True)
    except SystemExit as error:  # what the bench makes of a program that fails
        raise SgaError(f"the program of {entry.name} failed") from error
    with Image.open(image) as original:
        x = _scaled(original)
    x_hat = _scaled(decoded)
    times = {key: info[key] for key in ("encoding_time", "decoding_time")}
    return {"bpp": info["bpp"], **_quality(x, x_hat), **times, **used}, x, x_hat


def _scaled(image: Image.Image) -> Tensor:
    return pil_to_tensor(image.convert("RGB"))[None].float() / 255


def _model(entry: Entry, point: str, image: str) -> tuple[dict[str, Any], Tensor, Tensor]:
    net = load(entry.label, point)
    x = stock.read_image(Path(image)).to(device())
    seen: dict[str, Tensor] = {}
    stock_metrics = stock.compute_metrics

    def compute_metrics(org: Tensor, rec: Tensor, max_val: int = 255) -> dict[str, float]:
        seen["x_hat"] = (rec * max_val).clamp(0, max_val).round() / max_val
        return _quality(org, seen["x_hat"])

    stock.compute_metrics = _tolerant(compute_metrics)
    try:
        with measured() as used:
            values = _inference(entry, net, point, x)
    finally:
        stock.compute_metrics = stock_metrics
    return {**{k: v for k, v in values.items() if v is not None}, **used}, x[None], seen["x_hat"]


def _tolerant(function: Any) -> Any:
    """Stock's `inference` looks up both metrics; None stands for one that an image is too small for."""
    return lambda *args: {"ms-ssim-rgb": None, **function(*args)}


def _inference(entry: Entry, net: nn.Module, point: str, x: Tensor) -> dict[str, Any]:
    vbr: tuple[Any, ...] = ()
    if _is_vbr(entry):
        scale = torch.tensor(1 / float(point), device=x.device)
        if entry.name != "mbt2018-vbr":
            net.update(force=True, scale=scale)
        vbr = (2, scale)
    refine = entry.request.refine
    if refine is None:
        return stock.inference(net, x, *vbr)
    pad, _ = stock.compute_padding(x.size(1), x.size(2), min_div=2**6)
    with refined(net, **refine, metric=entry.option("metric", "mse"), pad=pad):
        return stock.inference(net, x, *vbr)


def _quality(x: Tensor, x_hat: Tensor) -> dict[str, float]:
    """PSNR and MS-SSIM of pictures in 8 bits, by CompressAI's functions."""
    a, b = ((image * 255).clamp(0, 255).round() for image in (x, x_hat))
    values = {"psnr-rgb": float(stock.psnr(a, b))}
    if min(x.shape[-2:]) >= MS_SSIM_LEAST_PX:
        values["ms-ssim-rgb"] = float(stock.ms_ssim(a, b, data_range=255))
    return values


def _is_vbr(entry: Entry) -> bool:
    return entry.name.endswith("-vbr")


def count_macs(label: str, point: str, image: str) -> dict[str, Any]:
    """Thousands of multiplications a pixel, of encoder and decoder: of a crop of the image."""
    entry = entries.parse(label)
    if entry.is_classical:
        return {}
    net = load(label, point)
    if hasattr(net, "macs"):  # C3: its encoder is the fit
        return {"decoder_kmacs_px": net.macs.total / 1000}
    px = MACS_PX if entry.option("metric", "mse") == "mse" else 3 * MACS_PX
    x = stock.read_image(Path(image))[:, :px, :px].to(device())
    if x.shape[1:] != (px, px):
        raise SgaError(f"{image} is {x.shape[2]}x{x.shape[1]} px; counting needs at least {px}x{px}")
    decoders: list[int] = []
    decompress = net.decompress

    def counted(*args: Any, **keywords: Any) -> Any:
        before = counter.get_total_flops()
        result = decompress(*args, **keywords)
        decoders.append(counter.get_total_flops() - before)
        return result

    stock_metrics = stock.compute_metrics
    stock.compute_metrics = lambda *_: {"psnr-rgb": None, "ms-ssim-rgb": None}
    net.decompress = counted
    try:
        with FlopCounterMode(display=False) as counter:
            _inference(entry, net, point, x)
    finally:
        stock.compute_metrics = stock_metrics
        del net.decompress
    kmacs = {"encoder": counter.get_total_flops() - decoders[-1], "decoder": decoders[-1]}
    return {f"{part}_kmacs_px": flops / 2 / px**2 / 1000 for part, flops in kmacs.items()}


def whole_set(pairs: Sequence[tuple[str, str]], names: Sequence[str]) -> dict[str, Any]:
    """Metrics of whole sets of images, of (original, decoded picture) by their paths."""
    found = {name: metrics.SET_METRICS[name]() for name in names}
    for original, decoded in pairs:
        with Image.open(original) as x, Image.open(decoded) as x_hat:
            for metric in found.values():
                metric.update(_scaled(x), _scaled(x_hat))
    return {name: float(metric.compute()) for name, metric in found.items()}
