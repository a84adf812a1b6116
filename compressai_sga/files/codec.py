# SPDX-License-Identifier: Apache-2.0
"""From an image to a `.csga` file and back.

    compress_file("in.png", "out.csga", quality=3, refine="ssl", steps=200)
    compress_file("in.png", "out.csga", model="c3-fast", lmbda=1e-3)      # fitted to the image: see `c3`
    decompress_file("out.csga", "back.png")          # needs the file and the zoo, nothing else
    describe_file("out.csga").bpp

In:  pictures of any size from 1x1 (DiffC: 64x64); a model of the zoo. Grey ones become three equal channels.
Out: bytes as `coding.container` specifies; 8-bit pixels, the model's x_hat clamped and rounded.

Three kinds of models have three files: `transform` (CompressAI's, and HFD on them), `c3` and `diffc`
(DiffC). All check what they decode, so that there is never a wrong image, and nonsense costs little; the
encoder decodes what it is about to write.
Fails with ``BitstreamError`` (what is read), ``SgaError`` (what cannot be written or compressed),
``ValueError`` (options: unknown model, quality, coder, refinement).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import zoo
from ..coding.container import (
    CODERS,
    MAGIC,
    MAX_BYTES,
    MAX_PROFILE_BYTES,
    Container,
    pack,
    part_bytes,
    unpack,
    unpack_cut,
)
from ..errors import BitstreamError, SgaError
from ..models.c3.weights import Nets
from ..refine import PRESETS, RefineConfig, RefineResult
from ..typing import StepCallback
from .c3 import (
    FITTED,
    FitResult,
    checkpoint_of,
    compress_fitted,
    decompress_fitted,
    nets_of,
    remove_checkpoint,
)
from .diffc import SAMPLED, compress_sampled, decompress_sampled
from .images import (
    Picture,
    output_format,
    pixels_of,
    read_picture,
    replacing,
    require_writable,
    write_picture,
)
from .models import choose, record_of, refusal_of
from .transform import compress_rounded, decompress_rounded

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
    data = _read(source)
    try:
        picture = decompress_picture(data, **options)
        container = _unpack(data, options.get("max_bytes"))
    except BitstreamError as error:
        raise BitstreamError(f"{source}: {error}") from error
    write_picture(target, picture)
    return container


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
    bpp: float | None = None,
) -> tuple[bytes, RefineResult | FitResult | None]:
    """The bytes of a `.csga` file for a picture.

    Args:
        model, quality, metric: what `zoo.load` takes; quality None: 3, or what the model has. Or a C3
            model, one of `fitted.FITTED`, quality 1 to 8, 4 by default.
        coder: one of `coding.container.CODERS`, DEFAULT_CODER by default; C3 and DiffC have their own.
        refine: method or preset of `refine.refine`; None codes the encoder's own latents. Not for C3, DiffC.
        steps, lmbda, seed: of the refinement, or of C3's fit; the preset's and the model's by default. seed
            also of DiffC's noise.
        on_step: of the refinement.
        max_seconds: of C3's fit; no limit by default.
        checkpoint: of C3's fit: a file from which a killed one goes on, and which stays.
        bpp: of DiffC: bits a pixel, instead of a quality.

    Returns:
        The bytes, and the refinement's or the fit's result where there was one.

    Raises:
        SgaError: the profile is too large, or what was coded does not decode on this very machine.
        ValueError: an unknown model, quality, coder or refinement, an option that the model does not take,
            a checkpoint of another fit.
    """
    if model in FITTED:
        _require_unset(model, coder=coder, refine=refine, metric=None if metric == "mse" else metric, bpp=bpp)
        _require_short(picture.profile)
        options = {"lmbda": lmbda, "steps": steps, "seed": seed, "max_seconds": max_seconds}
        container, fit = compress_fitted(picture, model, quality, **options, checkpoint=checkpoint)
        return pack(container), fit
    _require_unset(model, max_seconds=max_seconds, checkpoint=checkpoint)
    record = choose(model, quality, metric)
    if record.architecture in SAMPLED:
        _require_short(picture.profile)
        unused = {"coder": coder, "refine": refine, "steps": steps, "lmbda": lmbda}
        for name, value in unused.items():
            if value is not None:
                raise ValueError(f"{name} {value}: {model} has no such option for coding; leave it out")
        return pack(compress_sampled(picture, record, bpp=bpp, seed=seed)), None
    if bpp is not None:
        raise ValueError(f"bpp {bpp}: {model} has no such option; give a quality")
    coder = DEFAULT_CODER if coder is None else coder
    if coder not in CODERS.values():
        raise ValueError(f"no coder of files is called {coder!r}; choose from {', '.join(CODERS.values())}")
    _require_short(picture.profile)
    if refine is None and lmbda is not None and record.lmbda_range is not None:
        raise ValueError(
            f"lmbda {lmbda}: a file keeps a quality of {model}, not a lmbda; give the nearest quality, and a "
            "method of refinement (refine) for the rest of the way"
        )
    config = _refinement(refine, steps, lmbda, seed)
    container, result = compress_rounded(picture, record, coder, config, on_step)
    return pack(container), result


def decompress_picture(data: bytes, *, max_bytes: int | None = None, **options: Any) -> Picture:
    """The picture of a `.csga` file.

    Args:
        data: the file's bytes.
        max_bytes: use no more than the first so many of them, which need not be all: for DiffC.
        options: of the model, those that its class lists in `OPTIONS` (HFD: steps, seed, realism).

    Raises:
        BitstreamError: the bytes are damaged, beyond a limit, or made with weights that the zoo lacks.
        ValueError: an option that the model does not have, or a value out of its range.
    """
    container = _unpack(data, max_bytes)
    if container.model in FITTED:
        _require_no_options(container, options)
        return Picture(pixels_of(decompress_fitted(container), container.mode), container.profile)
    record = record_of(container)
    if record is None:
        raise BitstreamError(refusal_of(container))
    if record.architecture in SAMPLED:
        return decompress_sampled(container, record, options, cut=max_bytes is not None)
    return decompress_rounded(container, record, options)


def _unpack(data: bytes, max_bytes: int | None) -> Container:
    """The container; of a file's first bytes where `max_bytes` says so, which DiffC's alone allow."""
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
    record = record_of(container)
    if record is None or record.architecture not in SAMPLED:
        raise ValueError(
            f"max_bytes is for files of DiffC, this one is of {container.model}: it decodes as a whole or "
            "not at all"
        )
    return container


def _require_no_options(container: Container, options: Mapping[str, Any]) -> None:
    if options:
        raise ValueError(f"{container.model} decodes without options; leave out {', '.join(options)}")


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
