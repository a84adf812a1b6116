# SPDX-License-Identifier: Apache-2.0
"""From an image to a `.csga` file and back.

    compress_file("in.png", "out.csga", quality=3, refine="ssl", steps=200)
    compress_file("in.png", "out.csga", model="c3-fast", lmbda=1e-3)      # fitted to the image: see `c3`
    decompress_file("out.csga", "back.png")          # needs the file and the zoo, nothing else
    describe_file("out.csga").bpp

In:  pictures of any size from 1x1 (DiffC: 64x64); a model of the zoo. Grey ones become three equal channels.
Out: bytes as `coding.container` specifies; 8-bit pixels, the model's x_hat clamped and rounded.

There are three kinds of files (`kinds`): `transform` for CompressAI's models and for HFD on top of them,
`c3`, and `diffc`. `models.families` says which kind a model has. Every decoder checks the symbols before it
computes an image: damaged input is refused early and never gives a wrong image. The encoder decodes every
file before it is written.
Fails with ``BitstreamError`` on damaged input, ``SgaError`` on images or files that cannot be read,
compressed or written, ``ValueError`` on options (unknown model, quality, coder, refinement).
"""

from __future__ import annotations

import os
import warnings
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch

from .. import zoo
from ..coding.container import MAX_PROFILE_BYTES, Container, pack, unpack, unpack_cut
from ..errors import BitstreamError, SgaError
from ..models.families import Filing
from ..precision import full_float32, full_precision
from ..refine import RefineResult
from ..typing import StepCallback
from . import c3, diffc, transform
from .c3 import FitResult, checkpoint_of, remove_checkpoint
from .description import Description, describe, describe_file, filing_of, read_file
from .images import (
    Picture,
    output_format,
    psnr_db_of,
    read_picture,
    replacing,
    require_writable,
    write_picture,
)
from .kinds import DEFAULT_CODER, Kind, Request, compressible
from .models import required
from .target import Attempt, Found, Wish, reach

__all__ = [
    "DEFAULT_CODER",
    "Description",
    "compress_described",
    "compress_file",
    "compress_picture",
    "decompress_file",
    "decompress_picture",
    "describe",
    "describe_file",
    "kind_of",
    "read_file",
]

KINDS: dict[Filing, Kind] = {"transform": transform, "c3": c3, "diffc": diffc}


def compress_file(
    source: str | os.PathLike[str] | bytes,
    target: str | os.PathLike[str],
    **options: Any,
) -> tuple[Description, RefineResult | FitResult | None]:
    """Compress an image file, or the bytes of one, to a `.csga` file; options as of `compress_picture`.

    An unfinished fit of a C3 model is kept beside the target, in a file of the same name with ".fit" added
    (and lmbda, while a size or PSNR is searched for). After an interrupt the same call goes on from there.
    The file is removed when the target is written.

    Returns:
        What the file holds, with its PSNR and the outcome of a search; and the refinement's or the fit's
        result where there was one.

    Raises:
        SgaError: the image cannot be read or kept, or the file cannot be written.
        ValueError: a wrong option.
    """
    if Path(target).suffix.lower() != ".csga":
        raise SgaError(f"{target} does not end in .csga; name the compressed file so")
    require_writable(target)  # known before the work, not after it
    kept = "checkpoint" in kind_of(options.get("model", zoo.DEFAULT_MODEL)).TAKES
    if kept := kept and options.get("checkpoint") is None:
        options["checkpoint"] = checkpoint_of(target)
    data, description, result = compress_described(read_picture(source), **options)
    with replacing(target) as file:
        file.write(data)
    if kept:
        for request in description.found.requests if description.found else ():
            if request.checkpoint is not None:
                remove_checkpoint(request.checkpoint)
        remove_checkpoint(checkpoint_of(target))
    return description, result


def compress_described(
    picture: Picture, **options: Any
) -> tuple[bytes, Description, RefineResult | FitResult | None]:
    """As `compress_picture`, with what `compress_file` tells about the file, and without a warning."""
    wished = [options.pop(f"target_{name}", None) for name in ("bpp", "bytes", "psnr_db")]
    attempt, found = _coded(picture, Request(**{"model": zoo.DEFAULT_MODEL, **options}), *wished)
    description = replace(describe(attempt.data), psnr_db=attempt.psnr_db, found=found)
    return attempt.data, description, attempt.coded.result


def decompress_file(
    source: str | os.PathLike[str] | bytes, target: str | os.PathLike[str], **options: Any
) -> Container:
    """Write the image of a `.csga` file as PNG or TIFF, by the name's ending; options: `decompress_picture`.

    Args:
        source: the file, or its bytes.
        target: the image.

    Returns:
        What the file holds.

    Raises:
        BitstreamError: the file is damaged, no `.csga` file, or made with other weights.
        SgaError: the image cannot be written.
        ValueError: a wrong option.
    """
    output_format(target)
    data = source if isinstance(source, bytes) else read_file(source)
    try:
        container = _unpack(data, options.get("max_bytes"))
        require_writable(target)  # known before the work, not after it
        picture = decompress_picture(data, **options)
    except BitstreamError as error:
        if isinstance(source, bytes):
            raise
        raise BitstreamError(f"{source}: {error}") from error
    write_picture(target, picture)
    return container


def kind_of(model: str) -> Kind:
    """How images of a model of the zoo are filed, or of an architecture; any other name is `transform`'s."""
    return KINDS[filing_of(model, zoo.list_models)]


def compress_picture(
    picture: Picture,
    *,
    model: str = zoo.DEFAULT_MODEL,
    quality: int | None = None,
    metric: str = "mse",
    coder: str | None = None,
    refine: str | None = None,
    steps: int | None = None,
    lmbda: float | None = None,
    seed: int = 0,
    on_step: StepCallback | None = None,
    max_seconds: float | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    bpp: float | None = None,
    weights: str | os.PathLike[str] | None = None,
    device: str = "cpu",
    target_bpp: float | None = None,
    target_bytes: float | None = None,
    target_psnr_db: float | None = None,
) -> tuple[bytes, RefineResult | FitResult | None]:
    """The bytes of a `.csga` file for a picture.

    Args:
        model, quality, metric: what `zoo.load` takes; quality None stands for 3, or for the model's own where
            it has no 3. Or a C3 model with quality 1 to 8, 4 by default. With `weights`, an architecture.
        coder: one of `coding.container.CODERS`, DEFAULT_CODER by default; C3 and DiffC have their own.
        refine: method or preset of `refine.refine`; None codes the encoder's own latents. Not for C3, DiffC.
        steps, lmbda, seed: of the refinement, or of C3's fit; the preset's and the model's by default. lmbda
            is also that of a model for all rates, instead of a quality; seed that of DiffC's noise.
        on_step: of the refinement.
        max_seconds: of C3's fit; no limit by default.
        checkpoint: of C3's fit: a file from which a killed fit goes on; it is not removed.
        bpp: of DiffC: bits a pixel, instead of a quality.
        weights: a checkpoint of the architecture, as torch.save or safetensors wrote it. A decoder needs the
            same file; the `.csga` file has the first bytes of its hash.
        device: of the encoder, as PyTorch names it; not for DiffC, which decodes on the same kind only.
        target_bpp, target_bytes, target_psnr_db: one of them is to be met, by a search over lmbda, DiffC's
            bpp or the quality (`target`), with a warning where it is missed by more than 2 %.

    Returns:
        The bytes, and the refinement's or the fit's result where there was one.

    Raises:
        SgaError: the profile is too large, the coded image does not decode on this machine, or the checkpoint
            does not load.
        ValueError: an unknown model, quality, coder or refinement, an option that the model does not take,
            a checkpoint of another fit.
    """
    request = Request(
        model, quality, metric, coder, refine, steps, lmbda, seed, on_step, max_seconds, checkpoint, bpp,
        weights, device,
    )  # fmt: skip
    attempt, found = _coded(picture, request, target_bpp, target_bytes, target_psnr_db)
    if found is not None and not found.reached:
        warnings.warn(found.text, stacklevel=2)
    return attempt.data, attempt.coded.result


@full_precision()
@full_float32()
def _coded(
    picture: Picture, request: Request, bpp: float | None, size: float | None, psnr_db: float | None
) -> tuple[Attempt, Found | None]:
    """A picture's file, and how it came about where it was searched for."""
    model, kind = request.model, kind_of(request.model)
    if kind is transform and request.weights is None:
        if model not in {record.name for record in zoo.list_models()}:
            raise ValueError(f"no model called {model!r} makes files; there are {', '.join(compressible())}")
    _refuse_others(request, kind)
    _require_device(request.device)
    if picture.profile is not None and len(picture.profile) > MAX_PROFILE_BYTES:
        raise SgaError(
            f"the colour profile has {len(picture.profile)} bytes, at most {MAX_PROFILE_BYTES} can be "
            "stored; convert the image to sRGB first"
        )

    def attempt(request: Request) -> Attempt:
        coded = kind.compress(picture, request)
        data, pixels = pack(coded.container), coded.pixels
        if pixels is None and psnr_db is not None:
            weights = {} if request.weights is None else {"weights": request.weights}
            pixels = decompress_picture(data, **weights).pixels
        return Attempt(data, coded, None if pixels is None else psnr_db_of(pixels, picture.pixels))

    if bpp is None and size is None and psnr_db is None:
        return attempt(request), None
    wish = Wish(bpp, size, psnr_db)
    height, width = picture.pixels.shape[:2]
    found = reach(wish, request, kind.ranges, attempt, width * height)
    return found.attempt, found


def _require_device(device: str) -> None:
    """Refuse a device that is not there."""
    try:
        torch.empty(0, device=device).cpu()
    except (RuntimeError, AssertionError) as error:
        said = (str(error).splitlines() or [""])[0]
        raise ValueError(f"device {device}: {said}; leave it out for the CPU") from error


def _refuse_others(request: Request, kind: Kind) -> None:
    """Refuse options that this kind does not have, and a metric that fitted models do not have."""
    for field in fields(Request):
        value, own = getattr(request, field.name), ("model", "quality", "metric", "on_step", *kind.TAKES)
        if field.name not in own and value != field.default:
            raise ValueError(
                f"{field.name} {value}: {request.model} has no such option for coding; leave it out, or "
                "choose another model"
            )


@full_precision()
@full_float32()
def decompress_picture(data: bytes, *, max_bytes: int | None = None, **options: Any) -> Picture:
    """The picture of a `.csga` file.

    Args:
        data: the file's bytes.
        max_bytes: for DiffC: decode the first bytes only, at most this many.
        options: of the model, those that its class lists in `OPTIONS` (HFD: steps, seed, realism); weights,
            the checkpoint that made the file; device, as PyTorch names it, not for C3 and DiffC.

    Raises:
        BitstreamError: the bytes are damaged, beyond a limit, or made with weights that the zoo lacks.
        ValueError: an option that the model does not have, or a value out of its range.
    """
    container = _unpack(data, max_bytes, options.get("weights"))
    _require_device(options.get("device", "cpu"))
    return kind_of(container.model).decompress(container, options, cut=max_bytes is not None)


def _unpack(data: bytes, max_bytes: int | None, weights: str | os.PathLike[str] | None = None) -> Container:
    """The container; with `max_bytes`, that of the file's first bytes, which only DiffC allows."""
    if max_bytes is None:
        try:
            return unpack(data)
        except BitstreamError as error:
            if "cut off" in str(error):
                raise BitstreamError(f"{error}; of DiffC's files, max_bytes decodes what is there") from None
            raise
    if max_bytes < 1:
        raise ValueError(f"max_bytes is {max_bytes}; it must be at least 1")
    container = unpack_cut(data[:max_bytes])
    if not kind_of(container.model).PROGRESSIVE:
        required(container, weights)  # a damaged name is none of the zoo's
        raise ValueError(
            f"max_bytes is for files of DiffC, this one is of {container.model}: it decodes as a whole or "
            "not at all"
        )
    return container
