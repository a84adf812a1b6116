# SPDX-License-Identifier: Apache-2.0
"""Classical codecs for comparisons: those of CompressAI's bench, and three more through Pillow.

* jpeg and webp are the bench's own, with Pillow's default settings.
* avif and jxl are coded in the same way, with quality 0 to 100. jxl needs the package pillow-jxl-plugin.
* jpeg2000 replaces the bench's, which needs ffmpeg. It is OpenJPEG through Pillow with the irreversible
  wavelet and colour transform, as a bare codestream. Its points are compression ratios relative to 24 bits a
  pixel.
* bpg, vtm, hm, av1 and tfci are the bench's. They need external programs; their options say where these are.

In:  the path of an image, a point. Out: bits a pixel of the whole file, seconds, the decoded picture.
Fails with ``SgaError`` if Pillow cannot write a format or an option is missing.
"""

from __future__ import annotations

import argparse
import importlib
import io
import time
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from typing import Any, NoReturn

import PIL
from compressai.utils.bench import codecs as bench
from PIL import Image

from ..errors import SgaError
from .resources import measured

__all__ = ["CODECS", "Classical", "available", "check", "make", "versions"]


class Pillow(bench.PillowCodec):
    """A codec of the bench that codes through Pillow; it also reports CPU time and memory."""

    def options(self, quality: str) -> dict[str, Any]:
        """The options of `Image.save`, as the bench passes them."""
        return {"quality": int(quality)}

    def _run_impl(self, in_filepath: str, quality: str) -> tuple[dict[str, float], Image.Image]:
        image = self._load_img(in_filepath)
        with measured() as used:
            start = time.time()
            file = io.BytesIO()
            image.save(file, format=self.fmt, **self.options(quality))
            encoded = time.time()
            decoded = Image.open(io.BytesIO(file.getvalue()))
            decoded.load()
            end = time.time()
        info = {
            "bpp": 8 * file.tell() / (image.width * image.height),
            "encoding_time": encoded - start,
            "decoding_time": end - encoded,
            **used,
        }
        return info, decoded


class Jpeg(Pillow, bench.JPEG):
    """The bench's JPEG."""


class WebP(Pillow, bench.WebP):
    """The bench's WebP."""


class Avif(Pillow):
    """AVIF by Pillow (libavif), with its default 4:2:0."""

    fmt = "avif"
    _description = f"AVIF. Pillow version {PIL.__version__}"
    name = "AVIF"


class JpegXL(Pillow):
    """JPEG XL by Pillow's plug-in (libjxl)."""

    fmt = "jxl"
    _description = f"JPEG XL. pillow-jxl-plugin, Pillow version {PIL.__version__}"
    name = "JPEG XL"


class Jpeg2000(Pillow):
    """JPEG 2000 by Pillow (OpenJPEG)."""

    fmt = "jpeg2000"
    _description = f"JPEG 2000. OpenJPEG, Pillow version {PIL.__version__}"
    name = "JPEG 2000"

    def options(self, quality: str) -> dict[str, Any]:
        """With mct, the colour transform: without it, as is Pillow's default, some dB are lost."""
        how = {"irreversible": True, "mct": 1, "no_jp2": True}
        return {**how, "quality_mode": "rates", "quality_layers": [float(quality)]}


@dataclass(frozen=True)
class Classical:
    """A codec class with the bench's interface, and the points of its curve if none are named."""

    codec: type[bench.Codec]
    points: tuple[str, ...]


_PERCENT = ("5", "10", "20", "30", "50", "70", "85", "95")
_QP = ("22", "27", "32", "37", "42", "47")
CODECS: dict[str, Classical] = {
    "jpeg": Classical(Jpeg, _PERCENT),
    "webp": Classical(WebP, ("0", "10", "25", "40", "60", "80", "90", "95")),
    "avif": Classical(Avif, ("15", "25", "35", "45", "55", "65", "75", "85")),
    "jxl": Classical(JpegXL, ("0", "10", "25", "40", "55", "70", "80", "90")),
    "jpeg2000": Classical(Jpeg2000, ("200", "130", "90", "60", "40", "24", "16", "12")),
    "bpg": Classical(bench.BPG, _QP),
    "vtm": Classical(bench.VTM, _QP),
    "hm": Classical(bench.HM, _QP),
    "av1": Classical(bench.AV1, ("20", "30", "40", "50", "60")),
    "tfci": Classical(bench.TFCI, ("1", "2", "3", "4", "5", "6", "7", "8")),
}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise SgaError(message)


def available(name: str) -> bool:
    """Whether Pillow can write the format of this codec; False for those that need programs."""
    fmt = getattr(CODECS[name].codec, "fmt", None)
    if not issubclass(CODECS[name].codec, bench.PillowCodec):
        return False
    if fmt == "jxl":
        try:
            importlib.import_module("pillow_jxl")
        except ImportError:
            return False
    Image.init()
    return fmt.upper() in Image.SAVE


def versions(name: str) -> dict[str, str]:
    """Versions of the packages that code; external programs are not asked for theirs."""
    packages = ["Pillow", *(["pillow-jxl-plugin"] if name == "jxl" else [])]
    return {package: metadata.version(package) for package in packages}


def check(name: str, options: Mapping[str, str], entry: str) -> None:
    """Refuse a codec that cannot run here.

    Raises:
        SgaError: Pillow cannot write the format, or the options are not the codec's.
    """
    if issubclass(CODECS[name].codec, bench.PillowCodec) and not available(name):
        cure = "pip install pillow-jxl-plugin" if name == "jxl" else "install a Pillow that can"
        raise SgaError(f"entry {entry!r}: this Pillow cannot write {name}; {cure}, or leave the entry out")
    try:
        make(name, options)
    except SgaError as error:
        raise SgaError(f"entry {entry!r}: {error}") from error


def make(name: str, options: Mapping[str, str]) -> bench.Codec:
    """The codec with its options, parsed as on the bench's command line."""
    codec = CODECS[name].codec
    parser = _Parser(add_help=False, allow_abbrev=False)
    codec.setup_args(parser)
    words = [(("-" if len(key) == 1 else "--") + key, value) for key, value in options.items()]
    args: Any = parser.parse_args([word for pair in words for word in pair])
    return codec(args)
