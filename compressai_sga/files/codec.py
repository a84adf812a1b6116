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
from dataclasses import fields
from pathlib import Path
from typing import Any

from .. import zoo
from ..coding.container import MAX_PROFILE_BYTES, Container, pack, unpack, unpack_cut
from ..errors import BitstreamError, SgaError
from ..models.families import Filing
from ..refine import RefineResult
from ..typing import StepCallback
from . import c3, diffc, transform
from .c3 import FitResult, checkpoint_of, remove_checkpoint
from .description import Description, describe, describe_file, filing_of, read_file
from .images import Picture, output_format, read_picture, replacing, require_writable, write_picture
from .kinds import DEFAULT_CODER, Kind, Request, compressible

__all__ = [
    "DEFAULT_CODER",
    "Description",
    "compress_file",
    "compress_picture",
    "decompress_file",
    "decompress_picture",
    "describe",
    "describe_file",
    "kind_of",
]

KINDS: dict[Filing, Kind] = {"transform": transform, "c3": c3, "diffc": diffc}


def compress_file(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    **options: Any,
) -> tuple[Description, RefineResult | FitResult | None]:
    """Compress an image file to a `.csga` file; the options are those of `compress_picture`.

    An unfinished fit of a C3 model is kept beside the target, in a file of the same name with ".fit" added.
    After an interrupt the same call goes on from there. The file is removed when the target is written.

    Returns:
        What the file holds, and the refinement's or the fit's result where there was one.

    Raises:
        SgaError: the image cannot be read or kept, or the file cannot be written.
        ValueError: a wrong option.
    """
    if Path(target).suffix.lower() != ".csga":
        raise SgaError(f"{target} does not end in .csga; name the compressed file so")
    kept = "checkpoint" in kind_of(options.get("model", zoo.DEFAULT_MODEL)).TAKES
    if kept := kept and options.get("checkpoint") is None:
        require_writable(target)  # known before the fit, not after it
        options["checkpoint"] = checkpoint_of(target)
    data, result = compress_picture(read_picture(source), **options)
    with replacing(target) as file:
        file.write(data)
    if kept:
        remove_checkpoint(target)
    return describe(data), result


def decompress_file(
    source: str | os.PathLike[str], target: str | os.PathLike[str], **options: Any
) -> Container:
    """Write the image of a `.csga` file as PNG or TIFF, by the name's ending; options: `decompress_picture`.

    Returns:
        What the file holds.

    Raises:
        BitstreamError: the file is damaged, no `.csga` file, or made with other weights.
        SgaError: the image cannot be written.
        ValueError: a wrong option.
    """
    output_format(target)
    data = read_file(source)
    try:
        picture = decompress_picture(data, **options)
        container = _unpack(data, options.get("max_bytes"))
    except BitstreamError as error:
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
) -> tuple[bytes, RefineResult | FitResult | None]:
    """The bytes of a `.csga` file for a picture.

    Args:
        model, quality, metric: what `zoo.load` takes; quality None stands for 3, or for the model's own where
            it has no 3. Or a C3 model with quality 1 to 8, 4 by default.
        coder: one of `coding.container.CODERS`, DEFAULT_CODER by default; C3 and DiffC have their own.
        refine: method or preset of `refine.refine`; None codes the encoder's own latents. Not for C3, DiffC.
        steps, lmbda, seed: of the refinement, or of C3's fit; the preset's and the model's by default. seed
            is also that of DiffC's noise.
        on_step: of the refinement.
        max_seconds: of C3's fit; no limit by default.
        checkpoint: of C3's fit: a file from which a killed fit goes on; it is not removed.
        bpp: of DiffC: bits a pixel, instead of a quality.

    Returns:
        The bytes, and the refinement's or the fit's result where there was one.

    Raises:
        SgaError: the profile is too large, or the coded image does not decode on this machine.
        ValueError: an unknown model, quality, coder or refinement, an option that the model does not take,
            a checkpoint of another fit.
    """
    request = Request(
        model, quality, metric, coder, refine, steps, lmbda, seed, on_step, max_seconds, checkpoint, bpp
    )
    kind = kind_of(model)
    if kind is transform and model not in {record.name for record in zoo.list_models()}:
        raise ValueError(f"no model called {model!r} makes files; there are {', '.join(compressible())}")
    _refuse_others(request, kind)
    if picture.profile is not None and len(picture.profile) > MAX_PROFILE_BYTES:
        raise SgaError(
            f"the colour profile has {len(picture.profile)} bytes, at most {MAX_PROFILE_BYTES} can be "
            "stored; convert the image to sRGB first"
        )
    container, result = kind.compress(picture, request)
    return pack(container), result


def _refuse_others(request: Request, kind: Kind) -> None:
    """Refuse options that this kind does not have, and a metric that fitted models do not have."""
    for field in fields(Request):
        value, own = getattr(request, field.name), ("model", "quality", "metric", "on_step", *kind.TAKES)
        if field.name not in own and value != field.default:
            raise ValueError(
                f"{field.name} {value}: {request.model} has no such option for coding; leave it out, or "
                "choose another model"
            )


def decompress_picture(data: bytes, *, max_bytes: int | None = None, **options: Any) -> Picture:
    """The picture of a `.csga` file.

    Args:
        data: the file's bytes.
        max_bytes: for DiffC: decode the first bytes only, at most this many.
        options: of the model, those that its class lists in `OPTIONS` (HFD: steps, seed, realism).

    Raises:
        BitstreamError: the bytes are damaged, beyond a limit, or made with weights that the zoo lacks.
        ValueError: an option that the model does not have, or a value out of its range.
    """
    container = _unpack(data, max_bytes)
    return kind_of(container.model).decompress(container, options, cut=max_bytes is not None)


def _unpack(data: bytes, max_bytes: int | None) -> Container:
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
        raise ValueError(
            f"max_bytes is for files of DiffC, this one is of {container.model}: it decodes as a whole or "
            "not at all"
        )
    return container
