# SPDX-License-Identifier: Apache-2.0
"""Image files in and out: 8-bit RGB or grey pixels with their colour profile.

In:  PNG, JPEG, WebP, TIFF, BMP, PPM, GIF; AVIF, HEIF and JPEG XL where Pillow or a plug-in that is installed
     reads them. They are read as a viewer shows them: EXIF orientation is applied, palettes become RGB,
     black-and-white becomes grey. An alpha channel that is opaque everywhere is dropped.
Out: PNG or TIFF, by the ending of the name, without loss and with the ICC profile. Other metadata (EXIF,
     gamma, comments) are not kept.

Fails with ``SgaError`` on images that the codecs cannot keep (transparency, more than 8 bits a channel, CMYK
and other colour spaces, several frames), on lossy output formats, and on damaged or missing files.
"""

from __future__ import annotations

import functools
import importlib
import io
import math
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError, features

from ..coding.container import MAGIC, MAX_SIDE_PX
from ..errors import InputError, SgaError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "INPUT_SUFFIXES",
    "OUTPUT_FORMATS",
    "Picture",
    "pixels_of",
    "png_of",
    "psnr_db_of",
    "read_picture",
    "replacing",
    "require_folder",
    "require_writable",
    "tensor_of",
    "write_picture",
]

INPUT_FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "DIB", "PPM", "GIF")


@dataclass(frozen=True)
class _PlugIn:
    """A format that Pillow reads only with the help of a package.

    Args:
        title: of the format, for people.
        formats: Pillow's names of it.
        brands: what a file of it begins with, after the first four bytes; or with them.
        module: registers itself with Pillow when it is imported, or by its `register`.
        package: to be installed.
    """

    title: str
    formats: tuple[str, ...]
    brands: tuple[bytes, ...]
    module: str
    package: str
    register: str = ""


PLUG_INS = (
    _PlugIn("AVIF", ("AVIF",), (b"ftypavif", b"ftypavis"), "pillow_avif", "pillow-avif-plugin"),
    _PlugIn(
        "HEIF",
        ("HEIF",),
        tuple(b"ftyp" + brand for brand in (b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1")),
        "pillow_heif",
        "pillow-heif",
        "register_heif_opener",
    ),
    _PlugIn("JPEG XL", ("JXL",), (b"\xff\x0a", b"JXL \r\n\x87\n"), "pillow_jxl", "pillow-jxl-plugin"),
)
INPUT_SUFFIXES = frozenset(
    ".png .jpg .jpeg .jpe .jfif .webp .tif .tiff .bmp .dib .ppm .pgm .pbm .pnm .gif .avif .heic .heif .hif "
    ".jxl".split()
)
"""Endings of the images that are looked for in a folder; a single file is known by its content."""
OUTPUT_FORMATS = {
    ".png": ("PNG", {}),
    ".tif": ("TIFF", {"compression": "tiff_adobe_deflate"}),
    ".tiff": ("TIFF", {"compression": "tiff_adobe_deflate"}),
}
_HEAD_BYTES = 2**16
GREY_MODES = ("1", "L", "LA")
COLOUR_MODES = ("RGB", "RGBA", "P", "PA", "YCbCr")


@dataclass(frozen=True)
class Picture:
    """Pixels of an image and its colour profile.

    Args:
        pixels: uint8, (H, W) for grey, (H, W, 3) for RGB.
        profile: ICC profile, or None.
    """

    pixels: np.ndarray
    profile: bytes | None = None

    @property
    def mode(self) -> str:
        """PIL's name of the colour mode, "L" or "RGB"."""
        return "L" if self.pixels.ndim == 2 else "RGB"


def read_picture(source: str | os.PathLike[str] | bytes) -> Picture:
    """The picture in an image file, or in the bytes of one.

    Raises:
        SgaError: the file is missing, damaged, of another format, or cannot be kept as it is.
    """
    path = "the image" if isinstance(source, bytes) else source  # as messages call it
    try:
        head = _head(source)
        with Image.open(
            io.BytesIO(source) if isinstance(source, bytes) else source, formats=_formats()
        ) as image:
            _check(image, path, head)
            image.load()
            return _picture(ImageOps.exif_transpose(image), path)
    except UnidentifiedImageError as error:
        raise SgaError(f"{path} {_what_else(head)}") from error
    except Image.DecompressionBombError as error:
        raise SgaError(f"{path} is too large for Pillow ({error}); cut it into parts") from error
    except (SgaError, MemoryError):
        raise
    except Exception as error:  # on damaged files Pillow raises almost anything, TypeError included
        raise SgaError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from error


def _head(source: str | os.PathLike[str] | bytes) -> bytes:
    """The first bytes, where containers of other formats say what they hold."""
    if isinstance(source, bytes):
        return source[:_HEAD_BYTES]
    with open(source, "rb") as file:
        return file.read(_HEAD_BYTES)


@functools.cache
def _formats() -> tuple[str, ...]:
    """Pillow's names of the formats that can be read here, after plug-ins have registered themselves."""
    for plug_in in PLUG_INS:
        if _is_built_in(plug_in):
            continue
        try:
            module = importlib.import_module(plug_in.module)
            if plug_in.register:
                getattr(module, plug_in.register)()
        except Exception:  # not installed, or broken: other formats are read without it
            continue
    Image.init()
    return (*INPUT_FORMATS, *(name for plug_in in PLUG_INS for name in plug_in.formats if name in Image.OPEN))


def _is_built_in(plug_in: _PlugIn) -> bool:
    return plug_in.title == "AVIF" and "avif" in features.modules and features.check("avif")


def _what_else(head: bytes) -> str:
    if head.startswith(MAGIC):
        return "is a .csga file already, which `decompress` takes"
    for plug_in in PLUG_INS:
        if any(head[at:].startswith(brand) for brand in plug_in.brands for at in (0, 4)):
            if plug_in.formats[0] in _formats():
                return f"is an image of {plug_in.title}, but damaged, or of a kind that cannot be read here"
            return (
                f"is an image of {plug_in.title}, which Pillow reads with the package {plug_in.package}; "
                f"pip install {plug_in.package}"
            )
    return (
        "is not an image that can be read here, or damaged; PNG, JPEG, WebP, TIFF, BMP, PPM and GIF can be "
        "read, AVIF, HEIF and JPEG XL with Pillow's plug-ins"
    )


def _bits_of(image: Image.Image, head: bytes) -> int:
    """Bits a channel of the file, as far as it can be told; Pillow reads some of 16 bits as if they had 8."""
    raw = [str(tile[3]) for tile in image.tile]
    if image.mode.startswith(("I", "F")):
        return 16
    if image.format == "PPM":
        values = [tile[3][1] for tile in image.tile if isinstance(tile[3], tuple)]
        return 16 if max(values, default=0) > 255 else 8
    if any(";16" in mode for mode in raw) and image.format not in ("BMP", "DIB"):  # there: 16 bits a pixel
        return 16
    at, bits = (
        head.find(b"pixi"),
        [8],
    )  # of AVIF and HEIF: version and flags, the number of channels, the bits
    if image.format in ("AVIF", "HEIF") and at >= 0:
        bits += head[at + 9 : at + 9 + min(4, head[at + 8])] if at + 8 < len(head) else b""
    return max(bits)


def _check(image: Image.Image, path: str | os.PathLike[str], head: bytes) -> None:
    frames = getattr(image, "n_frames", 1)
    if frames > 1 and image.format != "MPO":  # JPEG of phones: what it shows, and an accessory
        raise SgaError(f"{path} has {frames} frames, a .csga file holds one; save the one that you want")
    bits = _bits_of(image, head)
    if bits > 8:
        raise SgaError(
            f"{path} has more than 8 bits a channel ({image.mode}, {bits} bits), which the codecs do not "
            "keep; convert it to 8 bits first"
        )
    if image.mode not in GREY_MODES + COLOUR_MODES:
        raise SgaError(
            f"{path} has colours of mode {image.mode}, files hold RGB or grey; convert it to RGB first, "
            "with its colour profile"
        )
    if max(image.size) > MAX_SIDE_PX:
        raise SgaError(
            f"{path} is {image.size[0]}x{image.size[1]} pixels, at most {MAX_SIDE_PX} a side can be stored; "
            "cut it into parts"
        )


def _picture(image: Image.Image, path: str | os.PathLike[str]) -> Picture:
    if image.has_transparency_data:
        alpha = np.asarray(image.convert("RGBA"))[..., 3]
        if alpha.min() < 255:
            raise SgaError(
                f"{path} has transparent pixels ({np.mean(alpha < 255):.1%} of them), which the codecs do "
                "not keep; put it on a background first"
            )
        image = image.convert("RGBA" if image.mode in COLOUR_MODES else "LA")
    grey = image.mode in GREY_MODES
    pixels = np.array(image.convert("L" if grey else "RGB"))
    return Picture(pixels, image.info.get("icc_profile") or None)


def tensor_of(picture: Picture) -> Tensor:
    """The input of a model: (1, 3, H, W) in [0, 1]; grey becomes three equal channels."""
    import torch  # late: reading and writing files needs no PyTorch

    pixels = torch.from_numpy(np.ascontiguousarray(picture.pixels))
    grey_or_rgb = pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] == 3)
    if pixels.dtype != torch.uint8 or not grey_or_rgb or not pixels.numel():
        raise InputError(
            f"a picture's pixels are {picture.pixels.dtype} {picture.pixels.shape}; give uint8, (H, W) for "
            "grey or (H, W, 3) for RGB: floats in [0, 1] become that by "
            "(255 * pixels).round().astype('uint8')"
        )
    if picture.mode == "L":
        pixels = pixels[..., None].expand(-1, -1, 3)
    return pixels.permute(2, 0, 1)[None].to(torch.float32) / 255


def pixels_of(x_hat: Tensor, mode: str) -> np.ndarray:
    """(3, H, W) as uint8: (H, W, 3) for RGB, or (H, W), the mean of the channels, for grey."""
    import torch  # late, as above

    x_hat = x_hat.clamp(0, 1)
    if mode == "L":
        x_hat = x_hat.mean(0, keepdim=True)
    pixels = (x_hat * 255).round().to(torch.uint8).permute(1, 2, 0).contiguous().numpy()
    return pixels[..., 0] if mode == "L" else pixels


def psnr_db_of(pixels: np.ndarray, expected: np.ndarray) -> float:
    """-10 log10 of the mean squared difference of two images in 8 bits; infinite where they are equal."""
    if pixels.shape != expected.shape:
        raise ValueError(f"images of {pixels.shape} and {expected.shape} pixels have no PSNR")
    rows = zip(np.array_split(pixels, len(pixels) // 64 + 1), np.array_split(expected, len(pixels) // 64 + 1))
    total = sum(float(np.square(a.astype(np.int32) - b).sum(dtype=np.int64)) for a, b in rows)
    return math.inf if total == 0 else -10 * math.log10(total / (255**2 * pixels.size))


def write_picture(path: str | os.PathLike[str], picture: Picture) -> None:
    """Write a picture as PNG or TIFF, whole or not at all.

    Raises:
        SgaError: the name's ending is not one of OUTPUT_FORMATS, or the file cannot be written.
    """
    name, options = output_format(path)
    with replacing(path) as file:
        Image.fromarray(picture.pixels).save(file, format=name, icc_profile=picture.profile, **options)


def png_of(picture: Picture) -> bytes:
    """The bytes of a PNG file."""
    file = io.BytesIO()
    Image.fromarray(picture.pixels).save(file, format="PNG", icc_profile=picture.profile)
    return file.getvalue()


def output_format(path: str | os.PathLike[str]) -> tuple[str, dict[str, str]]:
    """Pillow's name of the format that the file name asks for, and its options.

    Raises:
        SgaError: the ending is none of OUTPUT_FORMATS.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in OUTPUT_FORMATS:
        raise SgaError(
            f"{path} ends in {suffix or 'nothing'!r}; decoded images are written without loss, as "
            f"{', '.join(OUTPUT_FORMATS)}"
        )
    return OUTPUT_FORMATS[suffix]


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """A temporary file to write into, which replaces `path` at the end of the block.

    It has a hidden name in the same folder. When the block fails, it is removed and `path` stays as it was.
    A killed process may leave the temporary file, but never half of `path`.

    Raises:
        SgaError: the folder cannot be written to, the disk is full, or `path` is no ordinary file.
    """
    try:
        target, part = _target_and_part(path)
        try:
            with open(part, "xb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            if target.exists():
                os.chmod(part, target.stat().st_mode & 0o777)
            os.replace(part, target)
        except BaseException:
            part.unlink(missing_ok=True)
            raise
        _sync_folder(target.parent)
    except OSError as error:
        raise SgaError(f"{path} cannot be written: {error.strerror or error}") from error


def require_folder(path: str | os.PathLike[str], option: str) -> None:
    """Make a folder for outputs, where there is none.

    Args:
        path: of the folder.
        option: that names it, for the message.

    Raises:
        SgaError: it is a file, or cannot be made.
    """
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SgaError(
            f"{option} {path} is no folder and cannot become one ({error.strerror}); choose another"
        ) from error


def require_writable(path: str | os.PathLike[str]) -> None:
    """Check now that `replacing` can write a file there later; leaves nothing behind.

    Raises:
        SgaError: it cannot.
    """
    try:
        _, part = _target_and_part(path)
        part.touch(exist_ok=False)
        part.unlink()
    except OSError as error:
        raise SgaError(f"{path} cannot be written: {error.strerror or error}") from error


def _target_and_part(path: str | os.PathLike[str]) -> tuple[Path, Path]:
    target = Path(os.path.realpath(path))  # a link stays, what it points to is replaced
    if target.exists() and not target.is_file():
        raise SgaError(f"{path} is no ordinary file; choose another output")
    return target, target.with_name(f".{target.name[:100]}.{secrets.token_hex(6)}.part")


def _sync_folder(folder: Path) -> None:
    """The new name survives a power cut too, where the system allows it."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    except OSError:
        pass
    finally:
        os.close(handle)
