# SPDX-License-Identifier: Apache-2.0
"""A checksum of the coded symbols: did the decoder get the symbols that the encoder coded?

    with checksum.record() as symbols:
        out = model.compress(x)
    symbols.crc32, symbols.symbols          # the same inside `with` around model.decompress(...)

Where an entropy model depends on floats, and the decoder's floats differ from the encoder's, it decodes
another image without an error. The CRC-32 of the symbols, as little-endian int32 in coding order, detects
that.

In:  calls of our coders inside the `with` block, in this thread or task. Out: `Record`.
A model's `compress` also decodes its own z. So the record counts encoded symbols where there are any, and
decoded ones otherwise.
"""

from __future__ import annotations

import contextlib
import contextvars
import zlib
from collections.abc import Iterator

import numpy as np

__all__ = ["Record", "note_decoded", "note_encoded", "record"]


class Record:
    """Running checksums; `crc32` and `symbols` (how many) may be read at any time."""

    def __init__(self) -> None:
        self._crc = {"encoded": 0, "decoded": 0}
        self._count = {"encoded": 0, "decoded": 0}

    @property
    def crc32(self) -> int:
        """CRC-32 of the symbols, 0 when there were none."""
        return self._crc["encoded" if self._count["encoded"] else "decoded"]

    @property
    def symbols(self) -> int:
        """How many symbols there were."""
        return self._count["encoded"] or self._count["decoded"]

    def add(self, side: str, symbols: np.ndarray) -> None:
        self._crc[side] = zlib.crc32(np.ascontiguousarray(symbols, dtype="<i4"), self._crc[side])
        self._count[side] += symbols.size


_records: contextvars.ContextVar[tuple[Record, ...]] = contextvars.ContextVar("records", default=())


@contextlib.contextmanager
def record() -> Iterator[Record]:
    """Record every symbol that our coders code; records may be nested."""
    made = Record()
    token = _records.set((*_records.get(), made))
    try:
        yield made
    finally:
        _records.reset(token)


def note_encoded(symbols: np.ndarray) -> None:
    """Tell the records of this context about encoded symbols, int32."""
    for made in _records.get():
        made.add("encoded", symbols)


def note_decoded(symbols: np.ndarray) -> None:
    """Tell the records of this context about decoded symbols, int32."""
    for made in _records.get():
        made.add("decoded", symbols)
