# SPDX-License-Identifier: Apache-2.0
"""The bytes of a `.csga` file: one coded image, with everything that its decoder must know.

In:  a `Container` (names, sizes, strings). Out: `pack` makes the bytes, `unpack` the container again.
No model and no array is touched here. Fails with ``BitstreamError`` naming the field and its byte.

Version 2. `v` is an unsigned LEB128 number in its shortest form; other integers are little-endian.

    size  field      content and limit
    4     magic      CA 53 47 41
    1     version    2
    v     rest       number of bytes after this field, at most 2^30
    v+n   model      name in the zoo, or C3 (`files.c3`), or the architecture of a checkpoint that is not the
                     zoo's; 1..64 characters of a-z A-Z 0-9 . _ -
    v     quality    0..255; 0 where a rate was given instead, and for a checkpoint that is not the zoo's
    1     metric     0 mse, 1 ms-ssim
    8     weights    the first bytes of H, the sha256 of the model's weight file. Where one file has all
                     rates: of the sha256 of H followed by the quality's lmbda, a little-endian float64.
                     Zeros where there is no weight file
    1     coder      1 constriction-ans, 2 constriction-range, 3 constriction-exact
    v v   width, height   of the image in pixels, 1..2^20 each
    1     mode       1 L (grey), 3 RGB; 8 bits a channel
    1     stride     0..8: the codec sees the image padded, as evenly as it goes, the odd pixel to the
                     right and below, to multiples of S = 2^stride; (W, H) is that padded size
    n     shape      the `shape` argument of decompress, a tree of at most 3 levels below its root:
                     00+k: (H >> k, W >> k) · 10+k, v: (c, H >> k, W >> k), c = 1..4096; k <= stride
                     20+n: list of n = 1..31 trees · 40+n: dict of n = 1..15 times (v+n name of 1..32
                     characters as above, tree)
    v     symbols    number of coded integers, at most 2^40
    4     checksum   CRC-32 of all of them as int32, in coding order; then of the fields from model to
                     symbols, byte for byte; then, if there is a profile, of a byte 01 and the profile,
                     unpacked. In version 1, of the coded integers alone
    v     strings    number of strings, at most 65535, and for each
      v     length     in bytes
    v     extras     number of extras, at most 16, and for each, ids ascending
      1     id         0 filling, zeros · 1 ICC profile, a zlib stream of at most 2^20 bytes unpacked ·
                       2 lmbda of a model for all rates, between its qualities: a float64 ·
                       3..127 unknown: refused · 128 how a C3 image was fitted, which decoding does not need:
                       v steps, and where lmbda was given its float64 · 129..255 unknown: skipped
      v     length     in bytes
    n     the strings, then the extras
    4     CRC-32     of every byte before

Version 1 differs in nothing else, and is read, but not written. There, a file with another width, height,
mode or profile and a new CRC-32 at its end passes as another crop of the image.

W * H <= 512 * (size of the file): this bounds a decoder's work by the size of the file. All models of the
zoo stay below 300 pixels a byte, even for a constant image; `pack` adds filling where a model does not.
`unpack` checks in this order: magic, version, rest, CRC, then every field as it comes. `unpack_cut` reads a
file whose end is missing, for models whose strings decode from any prefix (DiffC). It cannot check the CRC,
and `rest` may announce anything. So it also allows at most 8192 pixels for each byte that is there: the first
step of DiffC takes a byte for 6800 pixels of an average image.
"""

from __future__ import annotations

import math
import re
import struct
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ..errors import BitstreamError
from .sizes import padded_size

__all__ = [
    "CODERS",
    "Container",
    "MAGIC",
    "MAX_BYTES",
    "MAX_PROFILE_BYTES",
    "MAX_SIDE_PX",
    "MODES",
    "PIXELS_PER_BYTE",
    "VERSION",
    "WEIGHTS_BYTES",
    "checksum_of",
    "pack",
    "part_bytes",
    "unpack",
    "unpack_cut",
]

MAGIC = b"\xcaSGA"
VERSION = 2
_VERSIONS = (1, VERSION)
METRICS = {0: "mse", 1: "ms-ssim"}
CODERS = {1: "constriction-ans", 2: "constriction-range", 3: "constriction-exact"}
MODES = {1: "L", 3: "RGB"}
WEIGHTS_BYTES = 8
MAX_SIDE_PX = 2**20
MAX_BYTES = 2**30  # of everything after the field `rest`
MAX_PROFILE_BYTES = 2**20
PIXELS_PER_BYTE = 2**9
_MAX_STRIDE, _MAX_DEPTH, _MAX_CHANNELS = 8, 3, 4096
_MAX_STRINGS, _MAX_EXTRAS, _MAX_SYMBOLS = 2**16 - 1, 16, 2**40
_CUT_PIXELS_PER_BYTE = 2**13
_FILLING, _PROFILE, _LMBDA, _FIRST_OPTIONAL, _FIT = 0, 1, 2, 128, 128
_MAX_STEPS = 2**40
_NAME = re.compile(r"[A-Za-z0-9._-]+")


@dataclass(frozen=True)
class Container:
    """What a `.csga` file says; the limits are those of the module's docstring.

    Args:
        model, quality, metric: what `zoo.load` takes.
        weights: first 8 bytes of the sha256 of the weights, or of the weights and the rate; see the module.
        coder: CompressAI's name of the entropy coder.
        width, height: of the image, in pixels.
        mode: PIL's name of the colour mode.
        stride: log2 of what the padded sides are multiples of.
        shape: as made by `sizes.reduce_shape`.
        symbols, checksum: number of the coded integers, and what `checksum_of` makes of their CRC-32.
        strings: one for each string list of the model, whose batch is this one image.
        profile: ICC profile, or None.
        lmbda: of a model for all rates, or of C3's fit, where it was given instead of a quality; positive.
        steps: of C3's fit; None for other models.
        version: of the format.
    """

    model: str
    quality: int
    metric: str
    weights: bytes
    coder: str
    width: int
    height: int
    mode: Literal["L", "RGB"]
    stride: int
    shape: Any
    symbols: int
    checksum: int
    strings: tuple[bytes, ...]
    profile: bytes | None = None
    lmbda: float | None = None
    steps: int | None = None
    version: int = VERSION


def checksum_of(container: Container, symbols_crc32: int) -> int:
    """What the field `checksum` must be; the container's own is not looked at.

    Args:
        container: all other fields.
        symbols_crc32: CRC-32 of the coded integers, 0 where there are none.

    Raises:
        ValueError: a field is beyond its limit.
    """
    if container.version == 1:
        return symbols_crc32
    profile = b"" if container.profile is None else b"\x01" + container.profile
    return zlib.crc32(profile, zlib.crc32(_picture_fields(container), symbols_crc32))


def pack(container: Container) -> bytes:
    """The bytes of a file.

    Raises:
        ValueError: a field is beyond its limit.
    """
    c = container
    padded = padded_size(c.width, c.height, c.stride)
    extras = []
    if c.profile is not None:
        _limit("ICC profile", len(c.profile), 0, MAX_PROFILE_BYTES, _refuse)
        extras.append((_PROFILE, zlib.compress(c.profile, 9)))
    lmbda = b"" if c.lmbda is None else struct.pack("<d", c.lmbda)
    if c.steps is not None:
        extras.append((_FIT, _varint(c.steps) + lmbda))
    elif lmbda:
        extras.append((_LMBDA, lmbda))
    data = _pack(c, extras)
    missing = -(-padded[0] * padded[1] // PIXELS_PER_BYTE) - len(data)
    if missing > 0:
        data = _pack(c, [(_FILLING, bytes(missing)), *extras])
    if unpack(data) != c:  # whatever is written can be read
        raise ValueError(f"{c!r} cannot be stored as it is")
    return data


def _refuse(text: str, *_: Any) -> None:
    raise ValueError(text)


def _picture_fields(c: Container) -> bytes:
    """The fields from model to symbols."""
    head = bytearray()
    head += _name(c.model) + _varint(c.quality)
    head.append(_key(METRICS, c.metric, "metric"))
    head += c.weights
    head.append(_key(CODERS, c.coder, "coder"))
    head += _varint(c.width) + _varint(c.height)
    head.append(_key(MODES, c.mode, "mode"))
    head.append(c.stride)
    return bytes(head + _tree(c.shape) + _varint(c.symbols))


def _pack(c: Container, extras: Sequence[tuple[int, bytes]]) -> bytes:
    head = bytearray(_picture_fields(c)) + struct.pack("<I", c.checksum)
    head += _varint(len(c.strings)) + b"".join(_varint(len(s)) for s in c.strings)
    head += _varint(len(extras))
    for number, content in extras:
        head += bytes([number]) + _varint(len(content))
    body = bytes(head) + b"".join(c.strings) + b"".join(content for _, content in extras)
    data = MAGIC + bytes([c.version]) + _varint(len(body) + 4) + body
    return data + struct.pack("<I", zlib.crc32(data))


def _varint(value: int) -> bytes:
    if value < 0:
        raise ValueError(f"{value} cannot be stored in a .csga file; numbers must be at least 0")
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _name(text: str) -> bytes:
    return _varint(len(text)) + text.encode("ascii")


def _key(table: Mapping[int, str], value: str, field: str) -> int:
    for key, known in table.items():
        if known == value:
            return key
    known = ", ".join(table.values())
    raise ValueError(f"{field} {value!r} has no number in .csga files; choose from {known}")


def _tree(shape: Any) -> bytes:
    if isinstance(shape, int):
        return bytes([shape])
    if isinstance(shape, tuple):
        return bytes([0x10 + shape[1]]) + _varint(shape[0])
    if isinstance(shape, Mapping):
        parts = b"".join(_name(name) + _tree(part) for name, part in shape.items())
        return bytes([0x40 + len(shape)]) + parts
    return bytes([0x20 + len(shape)]) + b"".join(_tree(part) for part in shape)


def unpack(data: bytes) -> Container:
    """The container that the bytes of a file hold.

    Raises:
        BitstreamError: they are not a .csga file, are damaged, or break a limit.
    """
    return _Reader(data).container()


def unpack_cut(data: bytes) -> Container:
    """The container of a file's first bytes: the strings may be cut short, and the profile may be missing.

    Raises:
        BitstreamError: the fields before the strings are not all there, or as `unpack`.
    """
    return _Reader(data, cut=True).container()


def part_bytes(data: bytes) -> dict[str, int]:
    """Bytes of the file by part: "string 0", ..., "profile", "filling", "other" extras, "header".

    lmbda and the steps of a fit count as header.

    Raises:
        BitstreamError: as `unpack`.
    """
    reader = _Reader(data)
    reader.container()
    return {**reader.sizes, "header": len(data) - sum(reader.sizes.values())}


def _limit(field: str, value: int, low: int, high: int, refuse: Callable[..., None], *where: Any) -> int:
    if not low <= value <= high:
        refuse(f"{field} is {value}, beyond its limits {low} to {high}", *where)
    return value


class _Reader:
    """Position in a file's bytes; each method takes one field."""

    def __init__(self, data: bytes, cut: bool = False) -> None:
        self.data, self.cut = data, cut
        self.at = 0
        self.end = len(data)
        self.sizes: dict[str, int] = {}

    def refuse(self, text: str, at: int | None = None) -> None:
        raise BitstreamError(f"{text} (byte {self.at if at is None else at} of the .csga file)")

    def take(self, count: int, field: str) -> bytes:
        if count > self.end - self.at:
            self.refuse(f"{field} needs {count} bytes where {self.end - self.at} are left")
        self.at += count
        return self.data[self.at - count : self.at]

    def byte(self, field: str, low: int = 0, high: int = 255) -> int:
        at = self.at
        return _limit(field, self.take(1, field)[0], low, high, self.refuse, at)

    def number(self, field: str, low: int, high: int) -> int:
        at, value, shift = self.at, 0, 0
        while True:
            byte = self.byte(field)
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                break
            shift += 7
            if shift > 42:
                self.refuse(f"{field} is a number of more than 7 bytes", at)
        if shift and not byte:
            self.refuse(f"{field} is a number that is not in its shortest form", at)
        return _limit(field, value, low, high, self.refuse, at)

    def word(self, field: str) -> int:
        return struct.unpack("<I", self.take(4, field))[0]

    def name(self, field: str, longest: int) -> str:
        at = self.at
        raw = self.take(self.number(f"length of {field}", 1, longest), field)
        text = raw.decode("latin-1")
        if not _NAME.fullmatch(text):
            self.refuse(f"{field} is {text!r}, of other characters than a-z A-Z 0-9 . _ -", at)
        return text

    def choice(self, field: str, table: Mapping[int, str]) -> str:
        at = self.at
        number = self.byte(field)
        if number not in table:
            known = ", ".join(f"{key} {name}" for key, name in table.items())
            self.refuse(f"{field} is {number}, which this version does not know; it knows {known}", at)
        return table[number]

    def envelope(self) -> None:
        """Magic, version, length and CRC."""
        start = bytes(self.data[: len(MAGIC)])
        if start != MAGIC:
            self.refuse(f"not a .csga file: it starts with {start.hex() or 'nothing'}, not {MAGIC.hex()}", 0)
        self.at = len(MAGIC)
        self.version = self.byte("version")
        if self.version not in _VERSIONS:
            self.refuse(
                f"version {self.version} of the format is not one of {', '.join(map(str, _VERSIONS))}, which "
                "this program reads; a newer compressai-sga may read it",
                4,
            )
        rest = self.number("rest", 4, MAX_BYTES)
        there = self.end - self.at
        self.announced = self.at + rest
        if there < rest:
            if self.cut:
                return
            self.refuse(f"the file is cut off: {rest} bytes should follow, {there} do")
        self.cut = False
        if there > rest:
            self.refuse(f"{there - rest} bytes too many follow the end of the file")
        self.end -= 4
        crc, stored = (
            zlib.crc32(memoryview(self.data)[: self.end]),
            struct.unpack("<I", self.data[self.end :])[0],
        )
        if crc != stored:
            self.refuse(f"the file is damaged: its CRC-32 is {crc:08x}, it should be {stored:08x}", self.end)

    def container(self) -> Container:
        self.envelope()
        model = self.name("model", 64)
        quality = self.number("quality", 0, 255)
        metric = self.choice("metric", METRICS)
        weights = self.take(WEIGHTS_BYTES, "weights")
        coder = self.choice("coder", CODERS)
        size_at = self.at
        width = self.number("width", 1, MAX_SIDE_PX)
        height = self.number("height", 1, MAX_SIDE_PX)
        mode = self.choice("mode", MODES)
        stride = self.byte("stride", 0, _MAX_STRIDE)
        rows, columns = padded_size(width, height, stride)
        if rows * columns > PIXELS_PER_BYTE * self.announced:
            self.refuse(
                f"an image of {width}x{height} pixels, padded to {columns}x{rows}, does not fit a file of "
                f"{self.announced} bytes: at most {PIXELS_PER_BYTE} pixels a byte are allowed",
                size_at,
            )
        if self.cut and rows * columns > _CUT_PIXELS_PER_BYTE * self.end:
            self.refuse(
                f"an image of {width}x{height} pixels, of whose file {self.end} bytes are there: at most "
                f"{_CUT_PIXELS_PER_BYTE} pixels a byte are allowed; give more of its bytes",
                size_at,
            )
        shape = self.tree(stride, 0)
        symbols = self.number("symbols", 0, _MAX_SYMBOLS)
        checksum = self.word("checksum")
        lengths = [
            self.number(f"length of string {i}", 0, MAX_BYTES)
            for i in range(self.count("strings", 0, _MAX_STRINGS))
        ]
        extras: list[tuple[int, int]] = []
        for _ in range(self.count("extras", 0, _MAX_EXTRAS)):
            number = self.byte("extra", extras[-1][0] + 1 if extras else 0)
            if number > _LMBDA and number < _FIRST_OPTIONAL:
                self.refuse(f"extra {number} is not one that this version can decode", self.at - 1)
            extras.append((number, self.number(f"length of extra {number}", 0, MAX_BYTES)))
        total = sum(lengths) + sum(length for _, length in extras)
        if total != self.announced - 4 - self.at:
            self.refuse(
                f"strings and extras of {total} bytes are announced where there are "
                f"{self.announced - 4 - self.at}"
            )
        # Only a file that is cut off, which `cut` says is wanted, holds less than was announced.
        strings = tuple(self.take(min(length, self.end - self.at), "strings") for length in lengths)
        self.sizes = {f"string {i}": len(string) for i, string in enumerate(strings)}
        optional = {} if self.cut else self.extras(extras)
        return Container(
            model, quality, metric, weights, coder, width, height, mode, stride,
            shape, symbols, checksum, strings, **optional, version=self.version,
        )  # fmt: skip

    def extras(self, extras: Sequence[tuple[int, int]]) -> dict[str, Any]:
        """What follows the strings, as fields of the container."""
        fields: dict[str, Any] = {}
        for number, length in extras:
            content, at = self.take(length, "extras"), self.at
            if number in (_LMBDA, _FIT):
                self.at, end = at - length, self.end
                self.end = at
                if number == _FIT:
                    fields["steps"] = self.number("steps", 1, _MAX_STEPS)
                if number == _LMBDA or self.at < at:
                    fields["lmbda"] = self.lmbda()
                if self.at < at:
                    self.refuse(f"extra {number} has {at - self.at} bytes too many")
                self.end = end
                continue
            part = {_FILLING: "filling", _PROFILE: "profile"}.get(number, "other")
            self.sizes[part] = self.sizes.get(part, 0) + length
            if number == _FILLING and content.count(0) != length:
                self.refuse("the filling is not zero", at - length)
            if number == _PROFILE:
                fields["profile"] = self.profile(content, at - length)
        return fields

    def lmbda(self) -> float:
        at = self.at
        value = struct.unpack("<d", self.take(8, "lmbda"))[0]
        if not 0 < value < math.inf:
            self.refuse(f"lmbda is {value}, it must be positive and finite", at)
        return value

    def count(self, field: str, low: int, high: int) -> int:
        """A number of entries, each of which takes at least a byte."""
        at = self.at
        count = self.number(field, low, high)
        if count > self.end - self.at:
            self.refuse(f"{field}: {count} are announced where {self.end - self.at} bytes are left", at)
        return count

    def tree(self, stride: int, depth: int) -> Any:
        at = self.at
        tag = self.byte("shape")
        if tag < 0x20:
            k = _limit("shape's halvings", tag & 0x0F, 0, stride, self.refuse, at)
            return (self.number("shape's channels", 1, _MAX_CHANNELS), k) if tag & 0x10 else k
        if depth == _MAX_DEPTH:
            self.refuse(f"shape is nested more than {_MAX_DEPTH} times", at)
        if 0x20 < tag < 0x40:
            return [self.tree(stride, depth + 1) for _ in range(tag - 0x20)]
        if 0x40 < tag < 0x50:
            tree = {}
            for _ in range(tag - 0x40):
                name = self.name("name in shape", 32)
                tree[name] = self.tree(stride, depth + 1)
            if len(tree) != tag - 0x40:
                self.refuse("shape has a name twice", at)
            return tree
        self.refuse(f"shape starts with {tag:#04x}, which means nothing", at)

    def profile(self, content: bytes, at: int) -> bytes:
        unpacker = zlib.decompressobj()
        try:
            profile = unpacker.decompress(content, MAX_PROFILE_BYTES + 1)
        except zlib.error as error:
            self.refuse(f"the ICC profile is no zlib stream ({error})", at)
        if len(profile) > MAX_PROFILE_BYTES:
            self.refuse(f"the ICC profile has more than its limit of {MAX_PROFILE_BYTES} bytes", at)
        if not unpacker.eof or unpacker.unused_data:
            self.refuse("the ICC profile does not end where its zlib stream does", at)
        return profile
