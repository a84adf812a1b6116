# SPDX-License-Identifier: Apache-2.0
"""Code one image with one entry of a comparison at one point: real bytes, decoded picture, time and memory.

Models run through CompressAI's own `inference`, as in its `eval_model`: the image is padded with zeros to
multiples of 64, compressed to strings, decompressed, clamped and rounded to 8 bits. Entries with refinement
do this inside `compressai_sga.refined`. Classical codecs write whole files. All are measured by the same
functions:

    bpp              8 x bytes of the strings or the file / pixels
    psnr-rgb         dB, of the picture in 8 bits; ms-ssim-rgb likewise, for sides of more than 160 pixels
    encoding_time, decoding_time    seconds by the clock, as CompressAI counts them
    cpu_sec, peak_memory_mb         of both together (`resources`); not for codecs that are external programs

`count_macs` counts the multiplications of convolutions and matrix products that PyTorch dispatches, per pixel
of an image whose sides are multiples of 64. C3's decoder does not run in PyTorch and counts its own.
Classical codecs have no count.

In:  entries (`entries`), points, paths of images. Out: JSON.
Fails with ``SgaError`` if a model cannot be loaded, and with the errors of the codecs.
"""

from __future__ import annotations

import copy
import functools
import hashlib
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from compressai.utils.eval_model import __main__ as stock
from compressai.zoo.image import model_urls
from PIL import Image
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision.transforms.functional import pil_to_tensor, to_pil_image

from .. import coding, metrics, zoo
from ..errors import SgaError
from ..evaluation import checks
from ..evaluation.gpu import waiting
from ..models.families import family_of
from ..precision import full_float32
from ..refine import LMBDA_BY_QUALITY, refined, set_trained_lmbda, trained_lmbda
from ..tasks.process import device
from . import classical, entries
from .entries import Entry
from .resources import measured

__all__ = ["check_image", "code", "count_macs", "identity", "is_large_enough", "load", "sha256", "whole_set"]

MS_SSIM_LEAST_PX = 161
MACS_PX = 64


def identity(entry: Entry, point: str) -> dict[str, Any]:
    """Everything that a result depends on: label, point, weights, versions of packages, device."""
    of: dict[str, Any] = {"entry": entry.label, "point": point}
    if entry.is_classical:
        return {**of, "versions": classical.versions(entry.name)}
    names = ("compressai", "compressai-sga", "torch", "constriction")
    versions = {name: metadata.version(name) for name in names}
    return {**of, "weights": _weights(entry, point), "versions": versions, "device": device().type}


def _weights(entry: Entry, point: str) -> list[str]:
    """Hashes of the weight files of a model at a point; for CompressAI's own weights their address."""
    if entry.option("checkpoint"):
        return [sha256(Path(entry.option("checkpoint") if _is_vbr(entry) else point))]
    records = zoo.list_models()
    own = [r for r in records if (r.name, str(r.quality)) == (entry.name, point)]
    own = own or [r for r in records if r.name == entry.name][:1]  # a rate instead of a quality: one file
    if own:
        below = [r for r in records if (r.name, r.quality) == (own[0].first_stage, own[0].quality)]
        return [record.sha256 for record in (own[0], *below)]
    urls = model_urls.get(entry.name, {}).get(entry.option("metric", "mse"), {})
    if point.isdigit() and int(point) in urls:
        return [str(urls[int(point)])]
    return [sha256(path) for path in family_of(entry.name).data()]


def sha256(path: Path) -> str:
    """sha256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def load(label: str, point: str) -> nn.Module:
    """The model of an entry at a point, on the device of this process; the last model is cached."""
    files = entries.parse(label).option("checkpoint").split(",")
    stamps = tuple(Path(file).stat().st_mtime_ns for file in files if file)
    return _loaded(label, point, stamps)


@functools.lru_cache(maxsize=1)
def _loaded(label: str, point: str, stamps: tuple[int, ...]) -> nn.Module:
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
        picture: path for the decoded picture, a PNG; if empty, the picture is not kept.

    Returns:
        The values listed at the head of the file, further metrics by name, the sha256 of the picture.
    """
    entry = entries.parse(label)
    check_image(Path(image))
    with full_float32():
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
        values["picture"] = sha256(temporary)
        temporary.replace(path)
    return values


def check_image(path: Path) -> None:
    """Refuse images that do not have 8 bits a channel.

    Raises:
        SgaError: such an image; all codecs here take 8-bit RGB, and Pillow would clip other values.
    """
    with Image.open(path) as image:
        if image.mode not in ("1", "L", "LA", "P", "PA", "RGB", "RGBA"):
            raise SgaError(f"{path} has pixels of mode {image.mode}; convert it to 8 bits of RGB first")


def _classical(entry: Entry, point: str, image: str) -> tuple[dict[str, Any], Tensor, Tensor]:
    codec = classical.make(entry.name, dict(entry.options))
    try:
        info, decoded = codec.run(image, point, ["psnr-rgb"], return_rec=True)
    except SystemExit as error:  # what the bench makes of a program that fails
        raise SgaError(f"the program of {entry.name} failed") from error
    with Image.open(image) as original:
        x = _scaled(original)
    x_hat = _scaled(decoded)
    del info["psnr-rgb"]
    return {**info, **_quality(x, x_hat)}, x, x_hat


def _scaled(image: Image.Image) -> Tensor:
    return pil_to_tensor(image.convert("RGB"))[None].float() / 255


def _model(entry: Entry, point: str, image: str) -> tuple[dict[str, Any], Tensor, Tensor]:
    net = load(entry.label, point)
    x = stock.read_image(Path(image)).to(device())
    seen: dict[str, Tensor] = {}

    def take(org: Tensor, rec: Tensor, max_val: int = 255) -> dict[str, None]:
        """Replaces stock's metrics, which must not count as time of coding."""
        seen["x_hat"] = rec
        return {"psnr-rgb": None, "ms-ssim-rgb": None}

    stock_metrics, stock.compute_metrics = stock.compute_metrics, take
    try:
        with measured() as used:
            coded = _inference(entry, net, point, x)
    finally:
        stock.compute_metrics = stock_metrics
    x_hat = (seen["x_hat"] * 255).clamp(0, 255).round() / 255
    times = {key: coded[key] for key in ("bpp", "encoding_time", "decoding_time")}
    return {**times, **_quality(x[None], x_hat), **used}, x[None], x_hat


def _inference(entry: Entry, net: nn.Module, point: str, x: Tensor) -> dict[str, Any]:
    vbr: tuple[Any, ...] = ()
    if _is_vbr(entry):
        scale = torch.tensor(1 / float(point), device=x.device)
        if entry.name != "mbt2018-vbr":
            net.update(force=True, scale=scale)
        vbr = (2, scale)
    refine, codec = entry.request.refine, coding.coded_on_cpu(net)
    if refine is None:
        return stock.inference(waiting(net, codec, codec), x, *vbr)
    pad, _ = stock.compute_padding(x.size(1), x.size(2), min_div=2**6)
    with refined(net, **refine, metric=entry.option("metric", "mse"), pad=pad):
        return stock.inference(waiting(net, decoder=codec), x, *vbr)


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
    """Thousands of multiplications a pixel of encoder and decoder, counted on a crop of the image."""
    entry = entries.parse(label)
    if entry.is_classical:
        return {}
    net = copy.deepcopy(load(label, point)).cpu()
    if hasattr(net, "macs"):  # C3: its encoder is the fit
        return {"decoder_kmacs_px": net.macs.total / 1000}
    px = MACS_PX if entry.option("metric", "mse") == "mse" else 3 * MACS_PX
    x = stock.read_image(Path(image))[:, :px, :px]
    if x.shape[1:] != (px, px):
        raise SgaError(f"{image} is {x.shape[2]}x{x.shape[1]} px; counting needs {px}x{px} px or more")
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


def is_large_enough(image: Path) -> bool:
    """Whether multiplications can be counted on a crop of this image."""
    try:
        with Image.open(image) as picture:
            return min(picture.size) >= 3 * MACS_PX
    except OSError:
        return False


def whole_set(pairs: Sequence[tuple[str, str]], names: Sequence[str]) -> dict[str, Any]:
    """Metrics of a whole set, from the paths of its pairs (original, decoded picture)."""
    found = {name: metrics.SET_METRICS[name]() for name in names}
    for original, decoded in pairs:
        with Image.open(original) as x, Image.open(decoded) as x_hat:
            for metric in found.values():
                metric.update(_scaled(x), _scaled(x_hat))
    return {name: float(metric.compute()) for name, metric in found.items()}
