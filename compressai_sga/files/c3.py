# SPDX-License-Identifier: Apache-2.0
"""C3 in `.csga` files. The codec is fitted to the image and its nets are in the file.

A decoder needs no weights, or only the zoo's default nets: then the file holds the differences from those.

The container's fields; `nets_of` checks each of them:
    model      c3, c3-fast or c3-paper: the encoder's preset; nothing in decoding depends on it
    quality    1 to 8, or 0 where lmbda was given instead;  metric mse;  weights 8 zero bytes
    coder      constriction-ans;  stride 0 and shape 00: nothing is padded, and the shape is (height, width)
    strings    two, those of `models.c3`: nets (with the same height and width inside) and latents
    symbols, checksum   number and CRC-32 of all integers: first the nets, array by array (of each array its
               shift, then its integers); then the grids, the finest first, row by row
    work       multiplications of a decoder (`models.c3.macs`) <= 2^21 * max(bytes of the strings, pixels
               / 512), so that a pixel of a large image takes at most 4096; presets take less than 3000
Beside the strings, the file takes 37 bytes and the model's name for an image of 1x1 pixels, and 45 bytes
and the name for 512x768. A colour profile comes on top. Files of blank images are longer, because the
container pads every file to one byte for every 512 pixels.

In:  a `Picture`, options of the fit; a `Container`. Out: a `Container`; x_hat (3, H, W) in [0, 1].
Fails with ``ValueError`` on wrong options and ``BitstreamError`` on files that no encoder wrote. A fit that
is killed leaves its checkpoint, see `models.c3.fit.checkpoint`.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..coding import checksum
from ..coding.container import PIXELS_PER_BYTE, WEIGHTS_BYTES, Container
from ..errors import BitstreamError, SgaError
from ..models.c3.macs import macs_per_pixel
from ..models.c3.weights import Nets, decode_nets
from ..models.families import architecture
from .images import Picture, pixels_of, tensor_of
from .kinds import DEFAULT_C3_QUALITY, Request

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
    "remove_checkpoint",
]

TAKES = frozenset({"steps", "lmbda", "seed", "max_seconds", "checkpoint"})
PROGRESSIVE = False
_CODER = "constriction-ans"
_NO_WEIGHTS = bytes(WEIGHTS_BYTES)
_MAX_QUALITY = 8
_MACS_PER_BYTE = 2**21


@dataclass(frozen=True)
class FitResult:
    """Result of the fit to an image.

    Args:
        lmbda: of mse + lmbda * bpp.
        steps: of the whole schedule.
        psnr_db: of the decoded image, in 8 bits.
    """

    lmbda: float
    steps: int
    psnr_db: float


def checkpoint_of(target: str | os.PathLike[str]) -> Path:
    """File that keeps an unfinished fit until the output is written."""
    return Path(f"{os.fspath(target)}.fit")


def remove_checkpoint(target: str | os.PathLike[str]) -> None:
    """Delete what `checkpoint_of` names."""
    from ..models.c3.fit.checkpoint import Checkpoint  # late: nets_of needs no PyTorch

    Checkpoint.remove(checkpoint_of(target))


def compress(picture: Picture, request: Request) -> tuple[Container, FitResult]:
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
    fitted = net.fit(tensor_of(picture))[0]
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
        checksum=crc32,
        strings=fitted.strings,
        profile=picture.profile,
    )
    try:
        _decoded(container)
    except BitstreamError as error:
        raise SgaError(
            f"the image that {model} coded here cannot be decoded here ({error}); please report the image"
        ) from error
    error = pixels_of(fitted.x_hat, picture.mode).astype(np.float64) - picture.pixels
    psnr_db = -10 * math.log10(max(np.square(error / 255).mean(), 1e-99))
    return container, FitResult(net.lmbda, net.settings["steps"], psnr_db)


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
    found = _checksum(*decoded)
    if found != (container.symbols, container.checksum):
        raise BitstreamError(
            f"the {found[0]} decoded symbols have the CRC-32 {found[1]:08x}, the file says "
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
