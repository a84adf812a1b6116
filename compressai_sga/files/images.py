# SPDX-License-Identifier: Apache-2.0
"""Image files in and out: 8-bit RGB or grey pixels with their colour profile.

In:  PNG, JPEG, WebP or TIFF, read as a viewer shows them: EXIF orientation is applied, palettes become RGB,
     black-and-white becomes grey. An alpha channel that is opaque everywhere is dropped.
Out: PNG or TIFF, by the ending of the name, without loss and with the ICC profile. Other metadata (EXIF,
     gamma, comments) are not kept.

Fails with ``SgaError`` on images that the codecs cannot keep (transparency, more than 8 bits a channel, CMYK
and other colour spaces, several frames), on lossy output formats, and on damaged or missing files.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from ..coding.container import MAGIC, MAX_SIDE_PX
from ..errors import SgaError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "OUTPUT_FORMATS",
    "Picture",
    "pixels_of",
    "read_picture",
    "replacing",
    "require_writable",
    "tensor_of",
    "write_picture",
]

INPUT_FORMATS = ("PNG", "JPEG", "WEBP", "TIFF")
OUTPUT_FORMATS = {
    ".png": ("PNG", {}),
    ".tif": ("TIFF", {"compression": "tiff_adobe_deflate"}),
    ".tiff": ("TIFF", {"compression": "tiff_adobe_deflate"}),
}
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


def read_picture(path: str | os.PathLike[str]) -> Picture:
    """The picture in an image file.

    Raises:
        SgaError: the file is missing, damaged, of another format, or cannot be kept as it is.
    """
    try:
        with Image.open(path, formats=INPUT_FORMATS) as image:
            _check(image, path)
            image.load()
            return _picture(ImageOps.exif_transpose(image), path)
    except UnidentifiedImageError as error:
        raise SgaError(f"{path} {_what_else(path)}; PNG, JPEG, WebP and TIFF can be read") from error
    except Image.DecompressionBombError as error:
        raise SgaError(f"{path} is too large for Pillow ({error}); cut it into parts") from error
    except (SgaError, MemoryError):
        raise
    except Exception as error:  # on damaged files Pillow raises almost anything, TypeError included
        raise SgaError(f"{path} cannot be read: {error}") from error


def _what_else(path: str | os.PathLike[str]) -> str:
    with open(path, "rb") as file:
        if file.read(len(MAGIC)) == MAGIC:
            return "is a .csga file already, which `decompress` takes"
    return "is not an image that can be read here, or damaged"


def _check(image: Image.Image, path: str | os.PathLike[str]) -> None:
    frames = getattr(image, "n_frames", 1)
    if frames > 1 and image.format != "MPO":  # JPEG of phones: what it shows, and an accessory
        raise SgaError(f"{path} has {frames} frames, a .csga file holds one; save the one that you want")
    # Pillow reads some images of 16 bits as if they had 8: only the raw mode tells.
    deep = any(";16" in str(tile[3]) for tile in image.tile)
    if deep or image.mode.startswith(("I", "F")):
        raise SgaError(
            f"{path} has more than 8 bits a channel ({image.mode}{', 16 bits' if deep else ''}), which the "
            "codecs do not keep; convert it to 8 bits first"
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


def write_picture(path: str | os.PathLike[str], picture: Picture) -> None:
    """Write a picture as PNG or TIFF, whole or not at all.

    Raises:
        SgaError: the name's ending is not one of OUTPUT_FORMATS, or the file cannot be written.
    """
    name, options = output_format(path)
    with replacing(path) as file:
        Image.fromarray(picture.pixels).save(file, format=name, icc_profile=picture.profile, **options)


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
