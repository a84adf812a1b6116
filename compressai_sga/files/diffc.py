# SPDX-License-Identifier: Apache-2.0
"""DiffC in `.csga` files: one string, of which any prefix decodes, on the kind of machine that wrote it.

The container's fields:
    model      diffc-a-small or diffc-f-small: how a decoder makes the image; the string is the same
    quality    1 to 8, or 0 where a rate was given;  metric mse;  weights those of the zoo's file
    coder      constriction-range;  stride 0 and shape 00: nothing is padded, and the shape is (height, width)
    symbols    0: the string has a check for each step
    checksum   what the container makes of no symbols; not looked at where the file is cut off
    strings    one, that of `models.diffc`

In:  a `Picture` of 64 pixels or more on each side; a `Container`. Out: a `Container`; a `Picture`.
Fails with ``ValueError`` on wrong options, ``ShapeError`` on small images, and ``BitstreamError`` on damaged
strings and on machines where the network computes other numbers than it did for the encoder.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from ..coding.container import Container, checksum_of
from ..errors import BitstreamError, ShapeError
from .images import Picture, pixels_of, tensor_of
from .kinds import Coded, Range, Request, decoding_here
from .models import borrowed, choose, fingerprint, required

__all__ = ["PROGRESSIVE", "TAKES", "compress", "decompress", "ranges"]

TAKES = frozenset({"bpp", "seed"})
PROGRESSIVE = True
_CODER = "constriction-range"


def compress(picture: Picture, request: Request) -> Coded:
    """Code an image.

    Args:
        picture: any, 64 pixels or more on each side.
        request: quality, or bpp (bits a pixel) instead; seed of the shared noise.

    Raises:
        SgaError: the coded image does not decode on this machine.
        ValueError: the zoo has no such model, or both quality and bpp are given.
    """
    if request.quality is not None and request.bpp is not None:
        raise ValueError(
            f"quality {request.quality} and bpp {request.bpp} both set the rate of {request.model}; give one"
        )
    record = choose(request.model, request.quality, request.metric)
    bpp, seed = request.bpp, request.seed
    x = tensor_of(picture)
    with borrowed(record, None, {"bpp": bpp, "seed": seed}) as net:
        out = net.compress(x)
        with decoding_here(record.name):
            net.check(out["strings"], out["shape"])
    container = Container(
        model=record.name,
        quality=record.quality if bpp is None else 0,
        metric="mse",
        weights=fingerprint(record),
        coder=_CODER,
        width=picture.pixels.shape[1],
        height=picture.pixels.shape[0],
        mode=picture.mode,
        stride=0,
        shape=0,
        symbols=0,
        checksum=0,
        strings=(out["strings"][0][0],),
        profile=picture.profile,
    )
    return Coded(replace(container, checksum=checksum_of(container, 0)), None, None)


def ranges(request: Request) -> list[Range]:
    """Where a size or PSNR is searched for: bits a pixel."""
    if request.quality is not None or request.bpp is not None:
        raise ValueError(
            f"quality, bpp and a target all set the rate of {request.model}; give the target alone"
        )
    advice = "DiffC sends whole steps"
    return [Range("bpp", 0.3, 1e-3, 24.0, 1.0, nearest=True, advice=advice)]


def decompress(container: Container, options: Mapping[str, Any], *, cut: bool = False) -> Picture:
    """The image of a container.

    Args:
        container: of a whole file, or of the first bytes of one.
        options: of the model's reconstruction: steps.
        cut: whether the string may end before its last step.

    Raises:
        BitstreamError: no encoder wrote this, or one did on another kind of machine.
        ValueError: an option that decoding does not have.
    """
    c, record = container, required(container)
    wrong = [name for name in options if name != "steps"]
    if wrong:
        raise ValueError(f"{c.model} decodes with the option steps, not {', '.join(wrong)}; leave it out")
    made = (c.metric, c.coder, c.stride, c.shape, c.symbols, len(c.strings))
    if made != ("mse", _CODER, 0, 0, 0, 1):
        raise BitstreamError(
            "{} with {}, {}, stride {}, shape {!r}, {} symbols and {} strings: its files have mse, {}, "
            "stride 0, shape 0, no symbols and one string".format(c.model, *made, _CODER)
        )
    checksum = checksum_of(c, 0)
    if c.checksum != checksum and not cut:
        raise BitstreamError(
            f"size, colours and profile have the checksum {checksum:08x}, the file says {c.checksum:08x}: "
            "the file is damaged"
        )
    with borrowed(record, None, options) as net, torch.no_grad():
        limit = max(1, len(c.strings[0])) if cut else None
        try:
            out = net.decompress([[c.strings[0]]], (c.height, c.width), max_bytes=limit)
        except ShapeError as error:
            raise BitstreamError(
                f"{c.width} x {c.height} px, smaller than what {c.model} codes: the file is damaged"
            ) from error
    return Picture(pixels_of(out["x_hat"][0], c.mode), c.profile)
