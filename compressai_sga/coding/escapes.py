# SPDX-License-Identifier: Apache-2.0
"""The code of symbols that lie outside their table: a class and its bits, by `constriction`.

A value v below 0 or from `limit` upwards folds to  raw = -2 v - 1  or  2 (v - limit)  (as stock does).
With raw + 1 = 2^k + m, 0 <= m < 2^k, the class k has the fixed probability ~ 1 / ((k + 1)(k + 2)) and m
is uniform: about 2 log2 k + k + 1 bits. Class 33 is the last. It is enough for every int32 symbol of every
table, and it bounds every length in a damaged stream.

In:  values and limits, integers, shape (n,). Out: `parts`, a list of (symbols, model, parameters) in
decoding order. Fails with ``BitstreamError`` where a decoded symbol exceeds int32.
"""

from __future__ import annotations

from collections.abc import Callable

import constriction
import numpy as np

from ..errors import BitstreamError

__all__ = ["Part", "read_escapes", "to_int32", "write_escapes"]

Part = tuple[np.ndarray, object, tuple[np.ndarray, ...]]  # symbols, model or family, its parameters

_CLASSES = 34
_LOW_BITS = 16
_k = np.arange(_CLASSES)
_class_model = constriction.stream.model.Categorical(1.0 / ((_k + 1) * (_k + 2)), perfect=False)
_uniform = constriction.stream.model.Uniform()


def write_escapes(values: np.ndarray, limits: np.ndarray) -> list[Part]:
    """The parts that code `values`, all of them outside 0 <= v < limit.

    Args:
        values: (n,) int64, symbol minus the table's offset.
        limits: (n,) int64, the table's number of values.
    """
    raw = np.where(values < 0, -2 * values - 1, 2 * (values - limits)) + 1
    classes = np.frexp(raw.astype(np.float64))[1].astype(np.int64) - 1  # exact: raw < 2^53
    rest = raw - (1 << classes)
    parts: list[Part] = [(classes.astype(np.int32), _class_model, ())]
    for shift, chosen, sizes in _digits(classes):
        digits = (rest[chosen] >> shift) & (sizes.astype(np.int64) - 1)
        parts.append((digits.astype(np.int32), _uniform, (sizes,)))
    return parts


def read_escapes(decode: Callable[..., np.ndarray], limits: np.ndarray) -> tuple[np.ndarray, list[Part]]:
    """The values that `write_escapes` wrote, int64, and their parts.

    Args:
        decode: of a `constriction` coder.
        limits: (n,) int64.
    """
    classes = decode(_class_model, len(limits))
    parts: list[Part] = [(classes, _class_model, ())]
    classes = classes.astype(np.int64)
    raw = np.left_shift(1, classes)
    for shift, chosen, sizes in _digits(classes):
        digits = decode(_uniform, sizes)
        parts.append((digits, _uniform, (sizes,)))
        raw[chosen] += digits.astype(np.int64) << shift
    raw -= 1
    return np.where(raw & 1, -((raw + 1) >> 1), (raw >> 1) + limits), parts


def _digits(classes: np.ndarray) -> list[tuple[int, np.ndarray, np.ndarray]]:
    """(shift, which escapes have bits there, 2^bits) of the lower 16 bits and of those above."""
    digits = []
    for shift, bits in ((0, np.minimum(classes, _LOW_BITS)), (_LOW_BITS, classes - _LOW_BITS)):
        chosen = np.flatnonzero(bits > 0)
        if len(chosen):
            digits.append((shift, chosen, (1 << bits[chosen]).astype(np.int32)))
    return digits


def to_int32(symbols: np.ndarray) -> np.ndarray:
    """The symbols as int32.

    Raises:
        BitstreamError: one is larger, which no encoder writes.
    """
    if len(symbols) and not (-(2**31) <= symbols.min() and symbols.max() < 2**31):
        raise BitstreamError(
            f"escaped symbols reach from {symbols.min()} to {symbols.max()}, beyond 32 bits: the string is "
            "damaged or was made with other tables; get it again"
        )
    return symbols.astype(np.int32)
