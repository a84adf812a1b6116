# SPDX-License-Identifier: Apache-2.0
"""From an image to a `.csga` file and back.

    compress_file("in.png", "out.csga", quality=3, refine="ssl", steps=200)
    compress_file("in.png", "out.csga", model="c3-fast", lmbda=1e-3)      # fitted to the image: see `fitted`
    decompress_file("out.csga", "back.png")          # needs the file and the zoo, nothing else
    describe_file("out.csga").bpp

In:  pictures of any size from 1x1; a model of the zoo. The codec sees them padded to multiples of 64
     pixels, with what is at the border: that takes 5 to 20 % fewer bytes and gives a better image than
     the zeros of stock evaluation, and the decoder only cuts. Grey ones become three equal channels.
Out: bytes as `coding.container` specifies; 8-bit pixels, the model's x_hat clamped and rounded.

Decoding has two phases. First all symbols: their number and CRC-32 must be those of the file, else it
ends with ``BitstreamError``. Only then the image is computed, so that there is never a wrong one, and
nonsense costs little. The encoder decodes what it is about to write in the same way.
Fails with ``BitstreamError`` (what is read), ``SgaError`` (what cannot be written or compressed),
``ValueError`` (options: unknown model, quality, coder, refinement).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import zoo
from ..coding import checksum
from ..coding.container import (
    CODERS,
    MAGIC,
    MAX_BYTES,
    MAX_PROFILE_BYTES,
    Container,
    pack,
    part_bytes,
    unpack,
)
from ..coding.sizes import expand_shape, padded_size, padding, reduce_shape
from ..errors import BitstreamError, SgaError
from ..models.c3.weights import Nets
from ..refine import PRESETS, RefineConfig, RefineResult
from ..refine import refine as refine_latents
from ..typing import StepCallback
from .fitted import (
    FITTED,
    FitResult,
    checkpoint_of,
    compress_fitted,
    decompress_fitted,
    nets_of,
    remove_checkpoint,
)
from .images import (
    Picture,
    output_format,
    pixels_of,
    read_picture,
    replacing,
    require_writable,
    tensor_of,
    write_picture,
)
from .models import STRIDE, borrowed, choose, fingerprint, layout_of, record_of, refusal_of

__all__ = [
    "DEFAULT_CODER",
    "Description",
    "compress_file",
    "compress_picture",
    "decompress_file",
    "decompress_picture",
    "describe",
    "describe_file",
]

DEFAULT_CODER = "constriction-exact"
_HEAD_BYTES = 64


@dataclass(frozen=True)
class Description:
    """What `info` tells about a file.

    Args:
        container: its fields.
        part_bytes: bytes by part, in the order of the file: y, z, ... (C3: nets, latents), profile, header.
        weights_known: whether the zoo has the very weights that it was made with, or it needs none.
        nets: of a C3 image, None of others.
    """

    container: Container
    part_bytes: dict[str, int]
    weights_known: bool
    nets: Nets | None = None

    @property
    def file_bytes(self) -> int:
        """Size of the whole file."""
        return sum(self.part_bytes.values())

    @property
    def bpp(self) -> float:
        """Bits of the whole file by pixel of the image."""
        return 8 * self.file_bytes / (self.container.width * self.container.height)


def compress_file(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    **options: Any,
) -> tuple[Description, RefineResult | FitResult | None]:
    """Compress an image file to a `.csga` file; the options are those of `compress_picture`.

    The fit of a C3 model is kept in a file beside the target, its name with ".fit" added, until that is
    written: after an interrupt the same call goes on from there.

    Returns:
        What the file holds, and the refinement's or the fit's result where there was one.

    Raises:
        SgaError: the image cannot be read or kept, or the file cannot be written.
        ValueError: a wrong option.
    """
    if Path(target).suffix.lower() != ".csga":
        raise SgaError(f"{target} does not end in .csga; name the compressed file so")
    fitted = options.get("model") in FITTED and options.get("checkpoint") is None
    if fitted:
        require_writable(target)  # known before the fit, not after it
        options["checkpoint"] = checkpoint_of(target)
    data, result = compress_picture(read_picture(source), **options)
    with replacing(target) as file:
        file.write(data)
    if fitted:
        remove_checkpoint(target)
    return describe(data), result


def decompress_file(source: str | os.PathLike[str], target: str | os.PathLike[str]) -> Description:
    """Write the image of a `.csga` file as PNG or TIFF, by the name's ending.

    Raises:
        BitstreamError: the file is damaged, no `.csga` file, or made with other weights.
        SgaError: the image cannot be written.
    """
    output_format(target)
    data = _read(source)
    try:
        picture = decompress_picture(data)
    except BitstreamError as error:
        raise BitstreamError(f"{source}: {error}") from error
    write_picture(target, picture)
    return describe(data)


def describe_file(source: str | os.PathLike[str]) -> Description:
    """What a `.csga` file holds, without decoding its symbols.

    Raises:
        BitstreamError: the file is damaged or no `.csga` file.
        SgaError: it cannot be opened.
    """
    data = _read(source)
    try:
        return describe(data)
    except BitstreamError as error:
        raise BitstreamError(f"{source}: {error}") from error


def _read(source: str | os.PathLike[str]) -> bytes:
    try:
        with open(source, "rb") as file:
            head = file.read(_HEAD_BYTES)
            if not head.startswith(MAGIC):
                return head  # whatever it is, the rest of it is not needed to refuse it
            size = os.fstat(file.fileno()).st_size
            if size > MAX_BYTES:
                raise BitstreamError(f"{source} has {size} bytes, a .csga file has at most {MAX_BYTES}")
            return head + file.read()
    except OSError as error:
        raise SgaError(f"{source} cannot be read: {error.strerror or error}") from error


def describe(data: bytes) -> Description:
    """What the bytes of a `.csga` file hold; raises ``BitstreamError``."""
    container = unpack(data)
    fitted = container.model in FITTED
    nets = nets_of(container) if fitted else None
    sizes = part_bytes(data)
    parts, short = {}, ("nets", "latents") if fitted else ("y", "z")
    for i in range(len(container.strings)):
        name = f"string {i}"
        parts[short[i] if len(container.strings) <= 2 else name] = sizes.pop(name)
    parts.update(sizes)
    return Description(container, parts, fitted or record_of(container) is not None, nets)


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
) -> tuple[bytes, RefineResult | FitResult | None]:
    """The bytes of a `.csga` file for a picture.

    Args:
        model, quality, metric: what `zoo.load` takes; quality None: 3, or what the model has. Or a C3
            model, one of `fitted.FITTED`, quality 1 to 8, 4 by default.
        coder: one of `coding.container.CODERS`, DEFAULT_CODER by default; C3 has its own.
        refine: method or preset of `refine.refine`; None codes the encoder's own latents. Not for C3.
        steps, lmbda, seed: of the refinement, or of C3's fit; the preset's and the model's by default.
        on_step: of the refinement.
        max_seconds: of C3's fit; no limit by default.
        checkpoint: of C3's fit: a file from which a killed one goes on, and which stays.

    Returns:
        The bytes, and the refinement's or the fit's result where there was one.

    Raises:
        SgaError: the profile is too large, or what was coded does not decode on this very machine.
        ValueError: an unknown model, quality, coder or refinement, an option that the model does not take,
            a checkpoint of another fit.
    """
    if model in FITTED:
        _require_unset(model, coder=coder, refine=refine, metric=None if metric == "mse" else metric)
        _require_short(picture.profile)
        options = {"lmbda": lmbda, "steps": steps, "seed": seed, "max_seconds": max_seconds}
        container, fit = compress_fitted(picture, model, quality, **options, checkpoint=checkpoint)
        return pack(container), fit
    _require_unset(model, max_seconds=max_seconds, checkpoint=checkpoint)
    coder = DEFAULT_CODER if coder is None else coder
    if coder not in CODERS.values():
        raise ValueError(f"no coder of files is called {coder!r}; choose from {', '.join(CODERS.values())}")
    _require_short(picture.profile)
    config = _refinement(refine, steps, lmbda, seed)
    record = choose(model, quality, metric)
    height, width = picture.pixels.shape[:2]
    pad = padding(width, height, STRIDE)
    x = F.pad(tensor_of(picture), pad, mode="replicate")
    with borrowed(record, coder) as net:
        result = None
        if config is not None:
            result = refine_latents(net, x, pad=pad, config=config, on_step=on_step)
            strings, shape = result.strings, result.shape
        else:
            with torch.no_grad(), checksum.record() as coded:
                out = net.compress(x)
            strings, shape = out["strings"], out["shape"]
        try:
            symbols, crc32 = _check_symbols(net, [part[0] for part in strings], shape)
            if result is None and (symbols, crc32) != (coded.symbols, coded.crc32):
                raise BitstreamError("the decoded symbols are others than the coded ones")
        except BitstreamError as error:
            raise SgaError(
                f"what {record.name} coded here cannot be decoded here ({error}); please report the image"
            ) from error
    data = pack(
        Container(
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
            checksum=crc32,
            strings=tuple(part[0] for part in strings),
            profile=picture.profile,
        )
    )
    return data, result


def decompress_picture(data: bytes) -> Picture:
    """The picture of a `.csga` file.

    Raises:
        BitstreamError: the bytes are damaged, beyond a limit, or made with weights that the zoo lacks.
    """
    container = unpack(data)
    if container.model in FITTED:
        return Picture(pixels_of(decompress_fitted(container), container.mode), container.profile)
    record = record_of(container)
    if record is None:
        raise BitstreamError(refusal_of(container))
    padded = padded_size(container.width, container.height, container.stride)
    with borrowed(record, container.coder) as net:
        made = len(container.strings), container.shape
        if made != layout_of(net) or container.stride != STRIDE:
            raise BitstreamError(
                "{} strings, shape {!r} and stride {} are not what {} makes: {} strings, shape {!r}, stride "
                "{}".format(*made, container.stride, record.name, *layout_of(net), STRIDE)
            )
        x_hat = _decode(net, container, expand_shape(container.shape, padded))
    left, _, top, _ = padding(container.width, container.height, container.stride)
    x_hat = x_hat[0, :, top : top + container.height, left : left + container.width]
    return Picture(pixels_of(x_hat, container.mode), container.profile)


def _decode(net: nn.Module, container: Container, shape: Any) -> Tensor:
    """x_hat (1, 3, H, W); symbols are checked before g_s runs."""
    checked = False

    def check(*_: Any) -> None:
        nonlocal checked
        if (symbols.symbols, symbols.crc32) != (container.symbols, container.checksum):
            raise BitstreamError(
                f"the {symbols.symbols} decoded symbols have the CRC-32 {symbols.crc32:08x}, the file says "
                f"{container.symbols} with {container.checksum:08x}: it holds nonsense, or this machine "
                "computes other coding tables than the one that made it"
            )
        checked = True

    handle = net.g_s.register_forward_pre_hook(check)
    try:
        with torch.no_grad(), checksum.record() as symbols:
            x_hat = net.decompress([[string] for string in container.strings], shape)["x_hat"]
    except (SgaError, MemoryError):
        raise
    except Exception as error:  # of the model's own code, which trusts its input
        if checked:
            raise
        raise BitstreamError(f"the symbols cannot be decoded: {error or type(error).__name__}") from error
    finally:
        handle.remove()
    if x_hat.isnan().any():
        raise BitstreamError("the decoded image is not a number in places: the latents are nonsense")
    return x_hat


class _Decoded(Exception):
    """All symbols are decoded; no image is wanted."""


def _check_symbols(net: nn.Module, strings: Sequence[bytes], shape: Any) -> tuple[int, int]:
    """Number and CRC-32 of the symbols in strings, by the decoder."""

    def stop(*_: Any) -> None:
        raise _Decoded

    handle = net.g_s.register_forward_pre_hook(stop)
    try:
        with torch.no_grad(), checksum.record() as symbols:
            net.decompress([[string] for string in strings], shape)
    except _Decoded:
        pass
    finally:
        handle.remove()
    return symbols.symbols, symbols.crc32


def _require_unset(model: str, **options: Any) -> None:
    for name, value in options.items():
        if value is not None:
            whose = f"models that are not fitted to the image, {model} is"
            if model not in FITTED:
                whose = f"models that are fitted to the image ({', '.join(FITTED)}), {model} is not"
            raise ValueError(f"{name} {value} is for {whose}; leave it out, or choose another model")


def _require_short(profile: bytes | None) -> None:
    if profile is not None and len(profile) > MAX_PROFILE_BYTES:
        raise SgaError(
            f"the colour profile has {len(profile)} bytes, at most {MAX_PROFILE_BYTES} can be stored; "
            "convert the image to sRGB first"
        )


def _refinement(refine: str | None, steps: int | None, lmbda: float | None, seed: int) -> RefineConfig | None:
    if refine is None:
        for name, value in (("steps", steps), ("lmbda", lmbda)):
            if value is not None:
                raise ValueError(f"{name} {value} is for refinement; name a method for it (refine)")
        return None
    name = {"preset": refine} if refine in PRESETS else {"method": refine}
    return RefineConfig.make(**name, steps=steps, lmbda=lmbda, seed=seed)
