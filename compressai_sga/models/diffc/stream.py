# SPDX-License-Identifier: Apache-2.0
"""The bytes of a DiffC stream: one range-coded fraction, decodable from any prefix of its bytes.

Everything in the stream is a number with an `IndexModel`. One range coder codes all numbers, and its words
are read as one large big-endian fraction. A prefix of the bytes leaves an interval of fractions, from its
continuation by zeros to that by ones. Range decoding is monotone, so the prefix determines a number if and
only if both ends decode to it. There is no table of lengths and no padding, and the whole stream ends with
the shortest bytes that determine its last number.

    header   version, tags of machine and model, code and its size, defaults or not, number of steps
    step     rate: announced divergence, relative to that of the step before
             the channel's numbers
             check: some bits of the CRC-32 of z after the step

In:  numbers and models. Out: bytes, and the numbers back. Fails with ``BitstreamError`` for bytes that no
     writer wrote; where bytes are missing a reader's `take` returns None.
"""

from __future__ import annotations

from collections.abc import Sequence

import constriction
import numpy as np
import torch
from torch import Tensor

from ...channels.index_code import IndexModel, put_numbers, take_numbers

__all__ = ["Part", "Reader", "bits_of", "to_bytes"]

queue = constriction.stream.queue

Part = tuple[Tensor, IndexModel]

_FLUSH_BYTES = 12  # what constriction may write beyond the bytes that are needed


def bits_of(parts: Sequence[Part]) -> float:
    """Sum of the numbers' code lengths, in bits."""
    return sum(float(model.bits(numbers).sum()) for numbers, model in parts)


def to_bytes(parts: Sequence[Part]) -> bytes:
    """The shortest bytes that determine all numbers, whatever follows them."""
    encoder = queue.RangeEncoder()
    put_numbers(encoder, parts)
    full = encoder.get_compressed().astype(">u4").tobytes()
    for length in range(max(0, len(full) - _FLUSH_BYTES), len(full)):
        cut = int.from_bytes(full[:length], "big")
        for value in (cut, cut + 1):
            if value < 256**length or value == 0:
                data = value.to_bytes(length, "big")
                if _determines(data, parts):
                    return data
    while not _determines(full, parts):
        full += b"\0"
    return full


def _determines(data: bytes, parts: Sequence[Part]) -> bool:
    reader = Reader(data)
    for numbers, model in parts:
        taken = reader.take(numbers.numel(), model)
        if taken is None or not torch.equal(taken, numbers.reshape(-1)):
            return False
    return True


class Reader:
    """Reads numbers for as long as the bytes determine them.

    Args:
        data: a stream or a prefix of one.
    """

    def __init__(self, data: bytes) -> None:
        self._ends = [queue.RangeDecoder(_words(data, fill)) for fill in (b"\0", b"\xff")]
        self._most_bits = 8.1 * len(data) + 64  # with room for the rounding of the coder's intervals

    def take(self, count: int, model: IndexModel) -> Tensor | None:
        """The next numbers, int64 (count,); None if the bytes do not determine all of them."""
        if count * model.bin_bits.min() > self._most_bits:  # however many the data announces
            return None
        try:
            low, high = (take_numbers(end, count, model) for end in self._ends)
        except (AssertionError, ValueError):  # an end that lies in no number's interval determines none
            return None
        return low if torch.equal(low, high) else None


def _words(data: bytes, fill: bytes) -> np.ndarray:
    """32-bit words, two more than the data fills; in these the two ends are certain to differ."""
    padded = data + fill * (-len(data) % 4 + 8)
    return np.frombuffer(padded, dtype=">u4").astype(np.uint32)
