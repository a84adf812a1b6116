# SPDX-License-Identifier: Apache-2.0
"""Entropy coders of integer symbols on `constriction`, for whole arrays at a time.

    coder = ConstrictionANS()
    data = coder.encode(symbols, indexes, tables)      # bytes
    coder.decode(data, indexes, tables)                # the same symbols, int32

Symbols of one table are coded with one call: they are sorted by (index, position), and escaped values
(`escapes.py`) follow. An array may be coded in several chunks, each sorted on its own, so that a decoder
can compute the next chunk's indexes from the symbols before it (`encode_chunks`, `decoder`).

Bytes. The string also holds a guard of 16 bits, 1 + CRC-32(symbols, little-endian int32, in the order given)
mod 65535. Damage, or a decoder with other indexes than the encoder's, passes unnoticed with a probability
of 2^-16 only. Every message has exactly one string:
    constriction-ans     the coder's words, little endian, without the zero bytes at their end; the guard
                         is the state that the encoder starts from. At most 2 bytes + 1 above the content.
    constriction-range   the fewest bytes, big endian, of a point of the final interval, zero bytes at
                         their end left out; the guard is a last symbol. Compared with its re-encoding.
    constriction-exact   0xE5, then as constriction-ans; with one zero byte more where the length would
                         be a multiple of four, as all of stock's are. Neither decoder takes the other's.
Stock's `ans` spends 31 bits at its start and 33 to 64 at its end and detects nothing.

In:  symbols, indexes: (n,) int32 (scales, float32, for `GaussianTables`), n >= 0; any int32 symbol.
Fails with ``BitstreamError`` on bytes that no encoder wrote for these indexes (2^-16 of them pass), after
work and memory in proportion to n and len(data); with ``ValueError`` on wrong arguments.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any, Protocol

import constriction
import numpy as np

from ..errors import BitstreamError
from . import checksum
from .escapes import Part, read_escapes, to_int32, write_escapes
from .tables import GaussianTables, Tables

__all__ = [
    "CODERS",
    "AnyTables",
    "Coder",
    "ConstrictionANS",
    "ConstrictionExact",
    "ConstrictionRange",
    "Decoder",
    "guard_of",
    "parts_of",
]

AnyTables = Tables | GaussianTables
Chunk = tuple[np.ndarray, np.ndarray]  # symbols, indexes

MARK = 0xE5  # first byte of constriction-exact

_AnsCoder = constriction.stream.stack.AnsCoder
_RangeEncoder = constriction.stream.queue.RangeEncoder
_RangeDecoder = constriction.stream.queue.RangeDecoder
_guard_model = constriction.stream.model.Uniform(1 << 16)


class _Backend(Protocol):
    """What `constriction`'s decoders have in common."""

    def decode(self, model: object, *parameters: Any) -> np.ndarray: ...


class Decoder:
    """Decodes one string chunk by chunk; `finish` checks that the string ends with the last symbol.

    Args:
        name: of the coder, for messages.
        backend: a decoder of `constriction` at the start of the message.
        check_end: called with the backend, the guard and all parts; raises BitstreamError.
        keep: whether `check_end` needs the parts.
    """

    def __init__(self, name: str, backend: _Backend, check_end: Any, keep: bool) -> None:
        self._name, self._backend, self._check_end = name, backend, check_end
        self._parts: list[Part] | None = [] if keep else None
        self._symbols: list[np.ndarray] = []
        self._position: Any = None
        self.idle = 0
        """How many symbols of whole chunks went by without any content; stays 0 with range coding."""

    def decode(self, indexes: np.ndarray, tables: AnyTables) -> np.ndarray:
        """The next symbols, int32, one an index.

        Raises:
            BitstreamError: no encoder wrote this.
        """
        rows = tables.order(indexes)
        order, counts = _sort(rows)
        symbols = self._read(counts, tables)
        if order is not None:
            unsorted = np.empty_like(symbols)
            unsorted[order] = symbols
            symbols = unsorted
        self._symbols.append(symbols)
        if isinstance(self._backend, _AnsCoder):
            if self._backend.is_empty():  # the guard is not zero
                raise _damaged(self._name)
            position = self._backend.pos()
            self.idle = self.idle + len(symbols) if position == self._position else 0
            self._position = position
        return symbols

    def _read(self, counts: list[tuple[int, int]], tables: AnyTables) -> np.ndarray:
        decode = self._decode
        read = [decode(tables.row(row), count) for row, count in counts]
        if self._parts is not None:
            self._parts += [(part, tables.row(row), ()) for part, (row, _) in zip(read, counts)]
        values = np.concatenate(read) if read else np.zeros(0, np.int32)
        escaped, offsets, limits = _find_escapes(values, counts, tables)
        symbols = values + offsets
        if len(escaped):
            far, parts = read_escapes(decode, limits[escaped].astype(np.int64))
            if self._parts is not None:
                self._parts += parts
            symbols[escaped] = to_int32(far + offsets[escaped])
        return symbols

    def _decode(self, model: object, *parameters: Any) -> np.ndarray:
        try:
            return self._backend.decode(model, *parameters)
        except AssertionError:  # the range decoder, where no symbol has the state that it is in
            raise _damaged(self._name) from None

    def decode_each(self, family: object, *parameters: np.ndarray) -> np.ndarray:
        """The next values, each with its own parameters of one family of models; no escapes."""
        values = self._decode(family, *parameters)
        if self._parts is not None:
            self._parts.append((values, family, parameters))
        self._symbols.append(values)
        return values

    def finish(self) -> None:
        """Check that nothing is left.

        Raises:
            BitstreamError: the string goes on, ended too early, or was changed.
        """
        self._check_end(self._backend, guard_of(self._symbols), self._parts)
        for symbols in self._symbols:
            checksum.note_decoded(symbols)
        self._symbols = []


class Coder:
    """What the coders have in common; see the file's head.

    `encode_with_indexes` and `decode_with_indexes` take lists, as CompressAI's own coders do.
    """

    name: str
    continuous = False  # whether Gaussians are coded with their scales and not with CompressAI's table

    def encode(self, symbols: np.ndarray, indexes: np.ndarray, tables: AnyTables) -> bytes:
        """The string of (n,) int32 symbols, each with the table of its index.

        Raises:
            ValueError: arrays of different length or another type, or an index without a table.
        """
        return self.encode_chunks([(symbols, indexes)], tables)

    def encode_chunks(self, chunks: Sequence[Chunk], tables: AnyTables) -> bytes:
        """One string for several arrays; `decoder` decodes them one after another."""
        parts: list[Part] = []
        for symbols, indexes in chunks:
            parts += parts_of(symbols, indexes, tables)
        data = self.write_parts(parts, guard_of([symbols for symbols, _ in chunks]))
        for symbols, _ in chunks:
            checksum.note_encoded(symbols)
        return data

    def encode_each(self, values: np.ndarray, family: object, *parameters: np.ndarray) -> bytes:
        """The string of values, each with its own parameters of one family of models; no escapes."""
        data = self.write_parts([(values, family, parameters)], guard_of([values]))
        checksum.note_encoded(values)
        return data

    def decode(self, data: bytes, indexes: np.ndarray, tables: AnyTables) -> np.ndarray:
        """The (n,) int32 symbols of a string.

        Raises:
            BitstreamError: not a string that `encode` makes for these indexes and tables.
        """
        decoder = self.decoder(data)
        symbols = decoder.decode(indexes, tables)
        decoder.finish()
        return symbols

    def decoder(self, data: bytes) -> Decoder:
        """A decoder of the string's chunks."""
        raise NotImplementedError

    def write_parts(self, parts: list[Part], guard: int) -> bytes:
        raise NotImplementedError

    def encode_with_indexes(
        self, symbols: list, indexes: list, cdf: list, cdf_lengths: list, offsets: list
    ) -> bytes:
        """CompressAI's interface, which builds the tables anew in each call."""
        tables = Tables(np.asarray(cdf), np.asarray(cdf_lengths), np.asarray(offsets))
        return self.encode(np.asarray(symbols, np.int32), np.asarray(indexes, np.int32), tables)

    def decode_with_indexes(
        self, data: bytes, indexes: list, cdf: list, cdf_lengths: list, offsets: list
    ) -> list[int]:
        """CompressAI's interface, which builds the tables anew in each call."""
        tables = Tables(np.asarray(cdf), np.asarray(cdf_lengths), np.asarray(offsets))
        return self.decode(data, np.asarray(indexes, np.int32), tables).tolist()


class ConstrictionANS(Coder):
    """Asymmetric numeral systems, a stack: parts are pushed in reverse."""

    name = "constriction-ans"

    def decoder(self, data: bytes) -> Decoder:
        _require_bytes(data, self.name)
        if not data or data[-1] == 0:
            raise BitstreamError(
                f"a string of {len(data)} bytes is empty or ends in a zero byte, which {self.name} never "
                "writes: it is truncated or of another coder; get it again"
            )
        words = np.frombuffer(data + bytes(-len(data) % 4), "<u4").astype(np.uint32)
        return Decoder(self.name, _AnsCoder(words), self._check_end, keep=False)

    def _check_end(self, backend: Any, guard: int, parts: None) -> None:
        if backend.num_words() != 1 or backend.get_compressed()[0] != guard:
            raise _damaged(self.name)

    def write_parts(self, parts: list[Part], guard: int) -> bytes:
        stack = _AnsCoder(np.array([guard], np.uint32))
        for symbols, model, parameters in reversed(parts):
            stack.encode_reverse(symbols, model, *parameters)
        return stack.get_compressed().astype("<u4").tobytes().rstrip(b"\0")


class ConstrictionExact(ConstrictionANS):
    """`ConstrictionANS` after a marker byte; entropy models give it continuous scales."""

    name = "constriction-exact"
    continuous = True

    def decoder(self, data: bytes) -> Decoder:
        _require_bytes(data, self.name)
        if len(data) < 2 or data[0] != MARK or len(data) % 4 == 0:
            found = f"begins with 0x{data[0]:02x}" if data else "is empty"
            raise BitstreamError(
                f"a string of {len(data)} bytes that {found} is none of {self.name}, whose strings "
                f"begin with 0x{MARK:02x} and have no multiple of 4 bytes; decode it with the coder "
                "that made it"
            )
        padded = data[-1] == 0
        if padded and len(data) % 4 != 1:
            raise _damaged(self.name)
        return super().decoder(data[1 : len(data) - padded])

    def write_parts(self, parts: list[Part], guard: int) -> bytes:
        data = bytes([MARK]) + super().write_parts(parts, guard)
        return data + bytes(len(data) % 4 == 0)


class ConstrictionRange(Coder):
    """Range coding, a queue: parts are written in order."""

    name = "constriction-range"

    def decoder(self, data: bytes) -> Decoder:
        _require_bytes(data, self.name)
        words = np.frombuffer(data + bytes(-len(data) % 4), ">u4").astype(np.uint32)

        def check_end(backend: Any, guard: int, parts: list[Part]) -> None:
            try:
                found = int(backend.decode(_guard_model))
            except AssertionError:
                found = None
            if found != guard or self.write_parts(parts, guard) != data:
                raise _damaged(self.name)

        return Decoder(self.name, _RangeDecoder(words), check_end, keep=True)

    def write_parts(self, parts: list[Part], guard: int) -> bytes:
        queue = _RangeEncoder()
        for symbols, model, parameters in parts:
            queue.encode(symbols, model, *parameters)
        queue.encode(guard, _guard_model)
        words = queue.get_compressed().astype(">u4").tobytes()
        position, (lower, size) = queue.pos()
        if lower + size <= 1 << 64:  # no carry into the words before: choose the point of the interval
            for count in range(9):
                unit = 1 << (64 - 8 * count)
                point = -(-lower // unit) * unit
                if point < lower + size:
                    break
            words = words[: 4 * position] + (point >> (64 - 8 * count)).to_bytes(count, "big")
        return words.rstrip(b"\0")


CODERS: dict[str, Coder] = {
    coder.name: coder for coder in (ConstrictionANS(), ConstrictionRange(), ConstrictionExact())
}


# --- Parts ---------------------------------------------------------------------------------------


def parts_of(symbols: np.ndarray, indexes: np.ndarray, tables: AnyTables) -> list[Part]:
    """The parts of one chunk in decoding order."""
    if symbols.dtype != np.int32 or symbols.ndim != 1 or symbols.shape != indexes.shape:
        raise ValueError(
            f"symbols {symbols.dtype} {symbols.shape}, indexes {indexes.shape}: expected int32 (n,) and (n,)"
        )
    order, counts = _sort(tables.order(indexes))
    if order is not None:
        symbols = symbols.take(order)
    offsets, limits = _of_rows(counts, tables)
    values = symbols - offsets
    # Differences wrap around modulo 2^32, and as unsigned numbers only the right ones are small.
    escaped = np.flatnonzero(values.view(np.uint32) >= limits.view(np.uint32))
    tail: list[Part] = []
    if len(escaped):
        far = symbols[escaped].astype(np.int64) - offsets[escaped]
        tail = write_escapes(far, limits[escaped].astype(np.int64))
        values[escaped] = limits[escaped]
    parts: list[Part] = []
    start = 0
    for row, count in counts:
        parts.append((values[start : start + count], tables.row(row), ()))
        start += count
    return parts + tail


def _sort(rows: np.ndarray) -> tuple[np.ndarray | None, list[tuple[int, int]]]:
    """The stable order of the rows, None where they are in order, and (row, how often) of each."""
    counted = np.bincount(rows)
    present = np.flatnonzero(counted)
    counts = list(zip(present.tolist(), counted[present].tolist()))
    if len(present) <= 1 or (rows[1:] >= rows[:-1]).all():
        return None, counts
    return np.argsort(rows, kind="stable"), counts


def _of_rows(counts: list[tuple[int, int]], tables: AnyTables) -> tuple[np.ndarray, np.ndarray]:
    """Offset and escape value for every symbol in sorted order."""
    if not counts:
        return np.zeros(0, np.int32), np.zeros(0, np.int32)
    rows, repeats = (list(part) for part in zip(*counts))
    return np.repeat(tables.offsets[rows], repeats), np.repeat(tables.escapes[rows], repeats)


def _find_escapes(
    values: np.ndarray, counts: list[tuple[int, int]], tables: AnyTables
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Which decoded values are escapes; offset and escape value for every symbol."""
    offsets, limits = _of_rows(counts, tables)
    return np.flatnonzero(values == limits), offsets, limits


def guard_of(arrays: Sequence[np.ndarray]) -> int:
    """16 bits, not zero, that depend on all symbols and their order."""
    crc = 0
    for symbols in arrays:
        crc = zlib.crc32(np.ascontiguousarray(symbols, dtype="<i4"), crc)
    return 1 + crc % 65535


def _require_bytes(data: bytes, name: str) -> None:
    if not isinstance(data, bytes):
        raise ValueError(f"{name} decodes bytes, not {type(data).__name__}")


def _damaged(name: str) -> BitstreamError:
    return BitstreamError(
        f"the string does not end where its symbols do: it is damaged, truncated, not of {name}, or "
        "made with other tables or another network; get it again, or decode it with the model that made it"
    )
