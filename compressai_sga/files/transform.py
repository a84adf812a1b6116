# SPDX-License-Identifier: Apache-2.0
"""`.csga` files of models that round latents: CompressAI's, and HFD, whose file is that of its first stage.

The codec sees the image padded to multiples of 64 pixels by repeating the border. Compared with the zeros of
stock evaluation this takes 5 to 20 % fewer bytes and gives a better image. The decoder cuts the padding off.

Decoding has two phases. First all symbols are decoded; their number and checksum must be those of the file,
or decoding ends with ``BitstreamError``. Only then is the image computed: damaged input is refused early and
never gives a wrong image. The encoder checks every file in the same way before it is written.

In:  a `Picture`, the zoo's record of a model; a `Container`. Out: a `Container`; a `Picture`.
Fails with ``BitstreamError`` on files that no encoder wrote, ``SgaError`` when the coded image does not
decode.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from compressai.latent_codecs import LatentCodec
from torch import Tensor, nn

from ..coding import checksum
from ..coding.container import CODERS, Container, checksum_of
from ..coding.sizes import expand_shape, padded_size, padding, reduce_shape
from ..endings import is_lack_of_memory
from ..errors import BitstreamError, SgaError
from ..refine import RefineConfig
from ..refine import refine as refine_latents
from .gauge import PROBE_PX, is_large, shown
from .images import Picture, pixels_of, tensor_of
from .kinds import DEFAULT_CODER, Coded, Range, Request, decoding_here
from .models import (
    STRIDE,
    Weights,
    borrowed,
    chosen,
    fingerprint,
    layout_of,
    qualities_of,
    required,
)

__all__ = ["PROGRESSIVE", "TAKES", "compress", "decompress", "ranges"]

TAKES = frozenset({"coder", "refine", "steps", "lmbda", "seed", "weights", "device"})
PROGRESSIVE = False


def compress(picture: Picture, request: Request) -> Coded:
    """Code an image; the latents are refined if the request asks for it.

    Args:
        picture: any.
        request: quality and metric of a model of the zoo, or lmbda of one that serves all rates, or weights;
            one of `coding.container.CODERS`; a method or preset of `refine.refine` with its steps, lmbda,
            seed and on_step; the device of the encoder: what it makes is decoded on the CPU in any case.

    Raises:
        SgaError: the coded image does not decode on this machine, or the checkpoint does not load.
        ValueError: the zoo has no such model, or there is no such coder or refinement.
    """
    record = chosen(request)
    coder = DEFAULT_CODER if request.coder is None else request.coder
    if coder not in CODERS.values():
        raise ValueError(f"no coder of files is called {coder!r}; choose from {', '.join(CODERS.values())}")
    config, on_step = _refinement(request, record), request.on_step
    height, width = picture.pixels.shape[:2]
    pad = padding(width, height, STRIDE)
    x = F.pad(tensor_of(picture), pad, mode="replicate").to(request.device)
    with borrowed(record, coder, device=request.device) as net:
        result = coded = None
        if config is not None:
            result = refine_latents(net, x, pad=pad, config=config, on_step=on_step)
            strings, shape = result.strings, result.shape
        else:
            with (
                shown(net, f"coding {width}x{height} pixels", x.shape[2:], lambda: _small(net)),
                torch.no_grad(),
                checksum.record() as coded,
            ):
                out = net.compress(x)
            strings, shape = out["strings"], out["shape"]
    found: list[tuple[int, int]] = []

    def check(symbols: int, crc32: int) -> None:
        found.append((symbols, crc32))
        if coded is not None and found[-1] != (coded.symbols, coded.crc32):
            raise BitstreamError("the decoded symbols differ from the coded ones")
        if restored:
            raise _Decoded

    x_hat = None
    with borrowed(record, coder) as net:
        restored = hasattr(net, "first_stage")  # its image is drawn, which takes longer than all the rest
        size = (0, 0) if restored else x.shape[2:]
        with decoding_here(record.name), suppress(_Decoded):
            x_hat = _decode(net, [part[0] for part in strings], shape, size, check)
    symbols, crc32 = found[-1]
    container = Container(
        model=record.name,
        quality=record.quality,
        metric=record.metric,
        weights=fingerprint(record),
        coder=coder,
        width=width,
        height=height,
        mode=picture.mode,
        stride=STRIDE,
        shape=reduce_shape(shape, padded_size(width, height, STRIDE), STRIDE),
        symbols=symbols,
        checksum=0,
        strings=tuple(part[0] for part in strings),
        profile=picture.profile,
        lmbda=record.lmbda if record.quality == 0 else None,
    )
    container = replace(container, checksum=checksum_of(container, crc32))
    return Coded(container, result, None if x_hat is None else _pixels(x_hat, container))


def ranges(request: Request) -> list[Range]:
    """Where a size or PSNR is searched for.

    A model for all rates has lmbda. Any other has qualities, of which the nearest is taken by its unrefined
    file; the rest is left to lmbda of the refinement.
    """
    if request.lmbda is not None:
        raise ValueError(f"lmbda {request.lmbda} and a target both set the rate; give the target alone")
    record = chosen(request)
    fixed = request.quality is not None or request.weights is not None
    if record.lmbda_range is not None and not fixed:
        low, high = record.lmbda_range
        return [
            Range(
                "lmbda", math.sqrt(low * high), low, high, 0.55, beyond="beyond that, another model is better"
            )
        ]
    found = []
    if not fixed:
        values = tuple(each.quality for each in qualities_of(record.name, record.metric))
        plain = {"refine": None, "steps": None} if request.refine is not None else {}
        # A quality more is nearly twice the lmbda.
        found.append(
            Range(
                "quality", record.quality, values[0], values[-1], 1.2, values, plain, only_scout=bool(plain),
                advice="with refinement (refine) the rates between are reached",
                beyond="beyond that, another model is better",
            )
        )  # fmt: skip
    if request.refine is not None:
        middle = 0.0067 if record.lmbda is None else record.lmbda
        found.append(Range("lmbda", middle, middle / 16, middle * 16, 0.3))
    if not found:
        raise ValueError(
            f"a target, but {record.name} has nothing that moves its rate; name a method of refinement "
            "(refine), whose lmbda does"
        )
    return found


def decompress(container: Container, options: Mapping[str, Any], *, cut: bool = False) -> Picture:
    """The image of a container; the options steps, seed and realism are for HFD.

    Raises:
        BitstreamError: no encoder wrote this, or another checkpoint than `weights` did.
        SgaError: the checkpoint does not load.
        ValueError: an option that the model does not have, or a value out of its range.
    """
    options = dict(options)
    record, device = required(container, options.pop("weights", None)), options.pop("device", "cpu")
    padded = padded_size(container.width, container.height, container.stride)
    with borrowed(record, container.coder, options, device) as net:
        made = len(container.strings), container.shape
        if made != layout_of(net) or container.stride != STRIDE:
            raise BitstreamError(
                "{} strings, shape {!r} and stride {} are not what {} makes: {} strings, shape {!r}, stride "
                "{}".format(*made, container.stride, record.name, *layout_of(net), STRIDE)
            )

        def check(symbols: int, crc32: int) -> None:
            found = checksum_of(container, crc32)
            if (symbols, found) != (container.symbols, container.checksum):
                raise BitstreamError(
                    f"the {symbols} decoded symbols have the checksum {found:08x}, the file says "
                    f"{container.symbols} with {container.checksum:08x}: the file is damaged, or this "
                    "machine computes other coding tables than the machine that made it"
                )

        shape = expand_shape(container.shape, padded)
        x_hat = _decode(net, container.strings, shape, padded, check)
    return Picture(_pixels(x_hat, container), container.profile)


def _pixels(x_hat: Tensor, container: Container) -> np.ndarray:
    left, _, top, _ = padding(container.width, container.height, container.stride)
    x_hat = x_hat[0, :, top : top + container.height, left : left + container.width]
    return pixels_of(x_hat.cpu(), container.mode)


def _refinement(request: Request, record: Weights) -> RefineConfig | None:
    refine, steps, lmbda = request.refine, request.steps, request.lmbda
    at_rate = record.lmbda_range is not None and request.quality is None
    if refine is None:
        if record.lmbda_range is not None and lmbda is not None and not at_rate:
            raise ValueError(
                f"quality {request.quality} and lmbda {lmbda} both set the rate of {record.name}; give one "
                "of them"
            )
        for name, value in (("steps", steps), ("lmbda", None if at_rate else lmbda)):
            if value is not None:
                raise ValueError(f"{name} {value} is for refinement; name a method for it (refine)")
        return None
    return RefineConfig.make(refine, steps=steps, lmbda=lmbda, seed=request.seed)


def _small(net: nn.Module) -> dict[str, Any]:
    """A blank image of PROBE_PX x PROBE_PX pixels, coded."""
    with torch.no_grad():
        return net.compress(torch.zeros(1, 3, PROBE_PX, PROBE_PX, device=next(net.parameters()).device))


class _Decoded(Exception):
    """Stops decoding when all symbols are decoded and no image is wanted."""


def _decode(
    net: nn.Module,
    strings: Sequence[bytes],
    shape: Any,
    size: tuple[int, int],
    check: Callable[[int, int], None],
) -> Tensor:
    """x_hat (1, 3, H, W).

    Args:
        size: padded sides, which only tell whether progress is shown.
        check: told number and CRC-32 of the symbols before g_s runs; what it raises ends the decoding.
    """
    checked = False

    def stop() -> None:
        nonlocal checked
        if not checked:
            checked = True
            check(symbols.symbols, symbols.crc32)

    sent = _small(net) if is_large(size) else {}
    with shown(net, f"decoding {size[1]}x{size[0]} pixels", size, lambda: net.decompress(**sent)):
        try:
            with _told_of_symbols(net, stop), torch.no_grad(), checksum.record() as symbols:
                x_hat = net.decompress([[string] for string in strings], shape)["x_hat"]
        except (SgaError, _Decoded):
            raise
        except Exception as error:  # of the model's own code, which trusts its input
            if checked or is_lack_of_memory(error):
                raise
            raise BitstreamError(f"the symbols cannot be decoded: {error or type(error).__name__}") from error
    if x_hat.isnan().any():
        raise BitstreamError("the decoded image is not a number in places: the file is damaged")
    return x_hat


@contextmanager
def _told_of_symbols(net: nn.Module, told: Callable[[], None]) -> Iterator[None]:
    """A context in which `told` is called when all symbols are decoded, before the transforms run.

    In a model with a latent codec that is when it has decoded, in any other when g_s begins; in HFD, all this
    within its first stage.
    """
    net = getattr(net, "first_stage", net)
    if not isinstance(getattr(net, "latent_codec", None), LatentCodec):
        handle = net.g_s.register_forward_pre_hook(lambda *_: told())
        try:
            yield
        finally:
            handle.remove()
        return
    latent_codec = net.latent_codec
    decode = latent_codec.decompress

    def decompress(*args: Any, **kwargs: Any) -> Any:
        out = decode(*args, **kwargs)
        told()
        return out

    latent_codec.decompress = decompress
    try:
        yield
    finally:
        del latent_codec.decompress
