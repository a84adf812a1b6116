# SPDX-License-Identifier: Apache-2.0
"""The entropy code of integers with a Gaussian distribution around real means, as in universal quantisation.

P(k) = Phi((k + 1/2 - m) / s) - Phi((k - 1/2 - m) / s) for every symbol's own mean m and scale s.

Below s = 8 each symbol gets its own table, within 5.2 s of its mean; the tables of all symbols of an octave
of scales are computed at once. A symbol outside its table is coded after the others, by
`tables.GaussianTables` at their largest scale. From s = 8 on, the mean is rounded, and `GaussianTables` code
the difference. A symbol then takes more than 5 bits, and the rounding costs less than 1e-3 of them.

Scales are rounded as in `tables`, probabilities to 20 bits. Another machine's libm may differ in its last
digit. That changes one probability in some 10^9, and the decoder's check detects it.

In:  symbols int32, means and scales float64, shape (n,), n >= 0. Scales are clamped to [2^-7, 2^10] and
     NaN counts as 0, so that damaged parameters can at worst give wrong symbols.
Out: bytes, by `ConstrictionANS`, whose guard detects damage.
Fails with ``ValueError`` for arrays that do not fit together, ``BitstreamError`` as `coders` does.
"""

from __future__ import annotations

from collections.abc import Iterator

import constriction
import numpy as np
from scipy.special import ndtr

from ..errors import BitstreamError
from . import checksum
from .coders import ConstrictionANS, guard_of, parts_of
from .tables import LARGEST, WIDTH, gaussian_tables

__all__ = ["decode_gaussians", "encode_gaussians"]

_family = constriction.stream.model.Categorical(perfect=False)
_coder = ConstrictionANS()
_BITS = 20
_WIDE = 8.0  # scales from here on take the tables without means
_CELLS = 1 << 18  # of the tables that exist at the same time in decoding


def encode_gaussians(symbols: np.ndarray, means: np.ndarray, scales: np.ndarray) -> bytes:
    """The string of Gaussian integers.

    Args:
        symbols: (n,) int32.
        means: (n,) float64, within +-2^30.
        scales: (n,) float64, standard deviations.

    Raises:
        ValueError: the arrays differ in length, or the symbols are not int32.
    """
    if symbols.dtype != np.int32 or not symbols.shape == means.shape == scales.shape:
        raise ValueError(
            f"symbols {symbols.dtype} {symbols.shape}, means {means.shape}, scales {scales.shape}: "
            "expected int32 (n,), (n,), (n,)"
        )
    means, scales = _clean(means, scales)
    parts, values = [], []
    far = [np.flatnonzero(scales >= _WIDE)]
    for chosen, first, half in _narrow(means, scales):
        value = symbols[chosen].astype(np.int64) - first
        outside = (value < 0) | (value > 2 * half)
        value = np.where(outside, 2 * half + 1, value).astype(np.int32)
        parts.append((value, _family, (_table(means[chosen], scales[chosen], first, half),)))
        values.append(value)
        far.append(chosen[outside])
    rest, indexes, centres = _rest(far, means, scales)
    difference = symbols[rest].astype(np.int64) - centres
    if len(rest) and np.abs(difference).max() >= 2**31:
        raise ValueError(
            "a symbol and its mean differ by 2^31 or more; give the mean that belongs to the symbol"
        )
    difference = difference.astype(np.int32)
    parts += parts_of(difference, indexes, gaussian_tables())
    data = _coder.write_parts(parts, guard_of([*values, difference]))
    for array in (*values, difference):
        checksum.note_encoded(array)
    return data


def decode_gaussians(data: bytes, means: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """The (n,) int32 symbols of a string; arguments as `encode_gaussians`.

    Raises:
        BitstreamError: not a string that `encode_gaussians` makes for these means and scales.
    """
    if means.ndim != 1 or means.shape != scales.shape:
        raise ValueError(f"means {means.shape}, scales {scales.shape}: expected (n,) and (n,)")
    means, scales = _clean(means, scales)
    symbols = np.zeros(len(means), np.int64)
    far = [np.flatnonzero(scales >= _WIDE)]
    decoder = _coder.decoder(data)
    for chosen, first, half in _narrow(means, scales):
        value = decoder.decode_each(_family, _table(means[chosen], scales[chosen], first, half))
        symbols[chosen] = value + first
        far.append(chosen[value == 2 * half + 1])
    rest, indexes, centres = _rest(far, means, scales)
    symbols[rest] = decoder.decode(indexes, gaussian_tables()) + centres
    decoder.finish()
    if len(symbols) and np.abs(symbols).max() >= 2**31:
        raise BitstreamError("a symbol exceeds 32 bits: the string is damaged; get it again")
    return symbols.astype(np.int32)


def _clean(means: np.ndarray, scales: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Finite means; scales on the grid of `GaussianTables`, so that few differences of a bit matter."""
    means = np.clip(np.nan_to_num(means.astype(np.float64)), -(2.0**30), 2.0**30)
    tables = gaussian_tables()
    return means, tables.scales[tables.order(np.nan_to_num(scales.astype(np.float32)))]


def _narrow(means: np.ndarray, scales: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray, int]]:
    """Symbols with tables of one width: (where, the first symbol of each table, half the width)."""
    octaves = np.frexp(scales)[1]
    for octave in np.unique(octaves[scales < _WIDE]):
        chosen = np.flatnonzero(octaves == octave)
        half = int(np.ceil(WIDTH * 2.0**octave)) + 1
        rows = max(1, _CELLS // (2 * half + 2))
        for start in range(0, len(chosen), rows):
            part = chosen[start : start + rows]
            yield part, np.floor(means[part] + 0.5).astype(np.int64) - half, half


def _table(means: np.ndarray, scales: np.ndarray, first: np.ndarray, half: int) -> np.ndarray:
    """Probabilities of 2 half + 1 symbols and the escape, in units of 2^-20, at least one unit."""
    edges = (first - means)[:, None] + np.arange(2 * half + 2) - 0.5
    p = np.diff(ndtr(edges / scales[:, None]), axis=1, append=0.0)
    p[:, -1] = 0.0  # of the escape: the least that there is
    return np.maximum(np.round(p * 2.0**_BITS), 1.0)


def _rest(
    far: list[np.ndarray], means: np.ndarray, scales: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Where the wide and the escaped symbols are; their scales and rounded means."""
    rest = np.concatenate(far)
    indexes = scales[rest].astype(np.float32)
    indexes[len(far[0]) :] = LARGEST
    return rest, indexes, np.floor(means[rest] + 0.5).astype(np.int64)
