# SPDX-License-Identifier: Apache-2.0
"""C3 in `.csga` files. The codec is fitted to the image and its nets are in the file.

A decoder needs no weights, or only the zoo's default nets: then the file holds the differences from those.

The container's fields; `nets_of` checks each of them:
    model      c3, c3-fast or c3-paper: the encoder's preset; nothing in decoding depends on it
    quality    1 to 8, or 0 where lmbda was given instead;  metric mse;  weights 8 zero bytes
    coder      constriction-ans;  stride 0 and shape 00: nothing is padded, and the shape is (height, width)
    strings    two, those of `models.c3`: nets (with the same height and width inside) and latents
    lmbda, steps   of the fit, for people; lmbda only where quality is 0
    symbols, checksum   number of all integers, and what the container makes of their CRC-32: first the nets,
               array by array (of each array its shift, then its integers); then the grids, the finest first,
               row by row
    work       multiplications of a decoder (`models.c3.macs`) <= 2^21 * max(bytes of the strings, pixels
               / 512), so that a pixel of a large image takes at most 4096; presets take less than 3000
Beside the strings, the file takes 41 bytes and the model's name for an image of 1x1 pixels, and 49 bytes
and the name for 512x768, with 2 000 steps and a quality; lmbda takes 8 more. A colour profile comes on top.
Files of blank images are longer, because the container pads every file to one byte for every 512 pixels.

In:  a `Picture`, options of the fit; a `Container`. Out: a `Container`; x_hat (3, H, W) in [0, 1].
Fails with ``ValueError`` on wrong options and ``BitstreamError`` on files that no encoder wrote. A fit that
is killed leaves its checkpoint, see `models.c3.fit.checkpoint`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..coding import checksum
from ..coding.container import PIXELS_PER_BYTE, WEIGHTS_BYTES, Container, checksum_of
from ..errors import BitstreamError
from ..models.c3.config import PRESETS, QUALITIES
from ..models.c3.macs import macs_per_pixel
from ..models.c3.weights import Nets, decode_nets
from ..models.families import architecture
from .images import Picture, pixels_of, psnr_db_of, tensor_of
from .kinds import DEFAULT_C3_QUALITY, Coded, Range, Request, decoding_here

if TYPE_CHECKING:
    from ..models.c3.image_codec import Decoded

__all__ = [
    "PROGRESSIVE",
    "TAKES",
    "FitResult",
    "checkpoint_of",
    "compress",
    "decompress",
    "nets_of",
    "ranges",
    "remove_checkpoint",
]

TAKES = frozenset({"steps", "lmbda", "seed", "max_seconds", "checkpoint", "device"})
PROGRESSIVE = False
_CODER = "constriction-ans"
_NO_WEIGHTS = bytes(WEIGHTS_BYTES)
_MAX_QUALITY = 8
_MACS_PER_BYTE = 2**21
_SCOUT_STEPS = 300


@dataclass(frozen=True)
class FitResult:
    """Result of the fit to an image.

    Args:
        lmbda: of mse + lmbda * bpp.
        steps: that the fit took.
        psnr_db: of the decoded image, in 8 bits.
    """

    lmbda: float
    steps: int
    psnr_db: float


def checkpoint_of(target: str | os.PathLike[str]) -> Path:
    """File that keeps an unfinished fit until the output is written."""
    return Path(f"{os.fspath(target)}.fit")


def remove_checkpoint(path: str | os.PathLike[str]) -> None:
    """Delete the file of a fit."""
    from ..models.c3.fit.checkpoint import Checkpoint  # late: nets_of needs no PyTorch

    Checkpoint.remove(path)


def compress(picture: Picture, request: Request) -> Coded:
    """Fit and code an image.

    Args:
        picture: any.
        request: quality 1 to 8, DEFAULT_C3_QUALITY by default, or lmbda; lmbda, steps, seed and max_seconds
            are those of `models.c3.C3`; checkpoint: a file from which a killed fit goes on, not removed.

    Raises:
        ValueError: an argument out of range, or a checkpoint of another fit.
        SgaError: the coded image does not decode on this machine.
    """
    model, lmbda = request.model, request.lmbda
    if request.metric != "mse":
        raise ValueError(f"metric {request.metric}: {model} is fitted for mse; leave it out")
    if request.quality is not None and lmbda is not None:
        raise ValueError(
            f"quality {request.quality} and lmbda {lmbda} both set the rate of {model}; give one of them"
        )
    quality = DEFAULT_C3_QUALITY if request.quality is None else request.quality
    net = architecture(model)(
        quality,
        lmbda=lmbda,
        steps=request.steps,
        seed=request.seed,
        max_seconds=request.max_seconds,
        checkpoint=request.checkpoint,
        keep_checkpoint=True,
    )
    fitted = net.fit(tensor_of(picture).to(request.device))[0]
    symbols, crc32 = _checksum(fitted.nets, fitted.grids)
    container = Container(
        model=model,
        quality=quality if lmbda is None else 0,
        metric="mse",
        weights=_NO_WEIGHTS,
        coder=_CODER,
        width=picture.pixels.shape[1],
        height=picture.pixels.shape[0],
        mode=picture.mode,
        stride=0,
        shape=0,
        symbols=symbols,
        checksum=0,
        strings=fitted.strings,
        profile=picture.profile,
        lmbda=lmbda,
        steps=fitted.steps,
    )
    container = replace(container, checksum=checksum_of(container, crc32))
    with decoding_here(model):
        _decoded(container)
    pixels = pixels_of(fitted.x_hat, picture.mode)
    return Coded(container, FitResult(net.lmbda, fitted.steps, psnr_db_of(pixels, picture.pixels)), pixels)


def ranges(request: Request) -> list[Range]:
    """Where a size or PSNR is searched for: lmbda, first with short fits."""
    if request.quality is not None or request.lmbda is not None:
        raise ValueError(
            f"quality, lmbda and a target all set the rate of {request.model}; give the target alone"
        )
    steps = PRESETS[request.model].steps if request.steps is None else request.steps
    scout = {"steps": _SCOUT_STEPS, "max_seconds": None} if steps > 2 * _SCOUT_STEPS else {}
    return [Range("lmbda", QUALITIES[DEFAULT_C3_QUALITY], 1e-6, 1.0, -0.6, scout=scout, keep=True)]


def decompress(container: Container, options: Mapping[str, Any], *, cut: bool = False) -> Picture:
    """The image of a container.

    Raises:
        BitstreamError: no encoder wrote this.
        ValueError: any option was given; C3 decodes without options.
    """
    if options:
        raise ValueError(f"{container.model} decodes without options; leave out {', '.join(options)}")
    from ..models.c3.image_codec import reconstruct  # late, as above

    return Picture(pixels_of(reconstruct(*_decoded(container)), container.mode), container.profile)


def nets_of(container: Container) -> Nets:
    """The nets, which also tell the architecture; the latents are not read.

    Raises:
        BitstreamError: the container is not one of a C3 image, or the nets are damaged.
    """
    c = container
    made = (c.metric, c.weights, c.coder, c.stride, c.shape, len(c.strings))
    if made != ("mse", _NO_WEIGHTS, _CODER, 0, 0, 2) or c.quality > _MAX_QUALITY:
        raise BitstreamError(
            f"{c.model} with quality {c.quality}, {c.metric}, weights {c.weights.hex()}, {c.coder}, stride "
            f"{c.stride}, shape {c.shape!r} and {len(c.strings)} strings: its files have quality 0 to "
            f"{_MAX_QUALITY}, mse, weights {_NO_WEIGHTS.hex()}, {_CODER}, stride 0, shape 0 and 2 strings"
        )
    nets = decode_nets(c.strings[0])
    if nets.size != (c.height, c.width):
        raise BitstreamError(
            f"the nets are of {nets.size[1]}x{nets.size[0]} pixels, the file is of {c.width}x{c.height}"
        )
    pixels, coded = c.width * c.height, sum(len(string) for string in c.strings)
    work = macs_per_pixel(nets.architecture, nets.size).total * pixels
    limit = _MACS_PER_BYTE * max(coded, pixels / PIXELS_PER_BYTE)
    if work > limit:
        raise BitstreamError(
            f"decoding takes {work:.0f} multiplications, for {pixels} pixels in {coded} bytes {limit:.0f} "
            "are allowed: no encoder makes such an architecture"
        )
    return nets


def _decoded(container: Container) -> Decoded:
    """Nets and latents, checked against the container."""
    from ..models.c3.image_codec import decode_strings  # late, as above

    nets_of(container)
    decoded = decode_strings(container.strings, (container.height, container.width))
    symbols, crc32 = _checksum(*decoded)
    found = symbols, checksum_of(container, crc32)
    if found != (container.symbols, container.checksum):
        raise BitstreamError(
            f"the {found[0]} decoded symbols have the checksum {found[1]:08x}, the file says "
            f"{container.symbols} with {container.checksum:08x}: the file is damaged"
        )
    return decoded


def _checksum(nets: Nets, grids: Sequence[np.ndarray]) -> tuple[int, int]:
    """Number and CRC-32 of all integers, as the head of this file says."""
    symbols = checksum.Record()
    for shift, integers in zip(nets.shifts, nets.integers):
        symbols.add("decoded", np.array([shift]))
        symbols.add("decoded", integers)
    for grid in grids:
        symbols.add("decoded", grid)
    return symbols.symbols, symbols.crc32
