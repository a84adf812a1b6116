# SPDX-License-Identifier: Apache-2.0
"""Probability tables of integer symbols in the form that the coders read, built once and then reused.

A table is a row of CompressAI's integer cumulative counts: cdf[0] = 0 < cdf[1] < ... = 2^precision
with `length` entries for length - 1 symbols, whose last one is the escape. Value v of the row stands
for the symbol v + offset; symbols outside 0 <= v < length - 2 are escaped (`escapes.py`).

`Tables` takes the rows of a CompressAI entropy model as they are, so it codes the same distribution as stock,
with the same symbols and lengths. `GaussianTables` holds a table for every scale with 6 significant bits
(32 an octave), each made when it is first used. Coding a Gaussian with a scale that is wrong by a factor
1 + e costs e^2 nats a symbol. Rounding to 6 bits has |e| <= 1/64 and costs 4e-5 nats on average;
CompressAI's 64 scales, rounded up by up to 13 %, cost 5e-3. This is the gain of `constriction-exact`, which
still has integer tables on both sides.

In:  arrays of int32 as `EntropyModel.update` leaves them; or scales > 0, float32.
Out: `row(index)`: a `constriction` model; `offsets`, `escapes`: its first symbol, its escape value.
Fails with ``ValueError`` on tables that are not distributions, and on indexes without a table.
"""

from __future__ import annotations

import functools

import constriction
import numpy as np
from scipy.special import ndtr

__all__ = ["GaussianTables", "ScaleTable", "Tables", "gaussian_tables"]

_Categorical = constriction.stream.model.Categorical


class Tables:
    """Rows of cumulative counts, each with the model that `constriction` makes of it.

    Args:
        cdf: (rows, width) int32, cumulative counts, padded with anything.
        lengths: (rows,) int32, entries in use; 3 or more: one symbol and the escape, at least.
        offsets: (rows,) int32, the symbol that value 0 stands for.

    Raises:
        ValueError: the arrays do not fit together or a row is not increasing from 0.
    """

    def __init__(self, cdf: np.ndarray, lengths: np.ndarray, offsets: np.ndarray) -> None:
        cdf, lengths, offsets = (np.array(a, dtype=np.int32) for a in (cdf, lengths, offsets))
        if cdf.ndim != 2 or lengths.shape != cdf.shape[:1] or offsets.shape != cdf.shape[:1]:
            raise ValueError(
                f"cdf {cdf.shape}, lengths {lengths.shape}, offsets {offsets.shape}: expected (rows, "
                "width), (rows,), (rows,) as after EntropyModel.update()"
            )
        if len(lengths) == 0 or lengths.min() < 3 or lengths.max() > cdf.shape[1]:
            raise ValueError(
                f"lengths of tables from {lengths.min(initial=0)} to {lengths.max(initial=0)}: "
                f"expected 3 to {cdf.shape[1]}, the width of cdf; run update(force=True)"
            )
        steps = np.diff(cdf, axis=1)
        inside = np.arange(steps.shape[1]) < lengths[:, None] - 1
        if cdf[:, 0].any() or (steps[inside] <= 0).any():
            raise ValueError(
                "a table's cumulative counts do not rise from 0; the buffers are damaged: run "
                "update(force=True)"
            )
        self.offsets, self.escapes = offsets, lengths - 2
        self.rows = [
            _Categorical(counts[: n - 1].astype(np.float64), perfect=False)
            for counts, n in zip(steps, lengths.tolist())
        ]

    def __len__(self) -> int:
        return len(self.rows)

    def row(self, index: int) -> object:
        """The model of one row, over the values 0 ... escape."""
        return self.rows[index]

    def order(self, indexes: np.ndarray) -> np.ndarray:
        """The row of every symbol, checked, in a type that sorts fast.

        Raises:
            ValueError: an index without a row.
        """
        if len(indexes) and not (0 <= indexes.min() and indexes.max() < len(self)):
            raise ValueError(
                f"indexes from {indexes.min()} to {indexes.max()}: the tables have rows 0 to "
                f"{len(self) - 1}; build them with the model that the tables come from"
            )
        # numpy sorts 16 bit integers by radix.
        return indexes.astype(np.uint16) if len(self) <= 1 << 16 else indexes


# --- Continuous scales -------------------------------------------------------------------------

_DROPPED_BITS = 18  # of the 23 of a float32's mantissa; 5 stay, 6 with the implied one
SMALLEST, LARGEST = 2.0**-7, 2.0**10  # scales beyond are coded with these
_FIRST = int(np.float32(SMALLEST).view(np.int32)) >> _DROPPED_BITS
_COUNT = (int(np.float32(LARGEST).view(np.int32)) >> _DROPPED_BITS) - _FIRST + 1
WIDTH = 5.2  # half-width of a table in standard deviations
FLOOR = 2.0**-10  # shared by a table's values and its escape: latents have heavier tails than Gaussians


class GaussianTables:
    """Zero-mean Gaussians, integrated over [v - 1/2, v + 1/2], for every scale of 6 significant bits.

    `indexes` of these tables are the scales themselves: float32, > 0, any size; they are clamped to
    [2^-7, 2^10] and rounded to the nearest of the grid, half up.
    """

    def __init__(self) -> None:
        bits = np.arange(_FIRST, _FIRST + _COUNT, dtype=np.int32) << _DROPPED_BITS
        self.scales = bits.view(np.float32).astype(np.float64)
        half = np.ceil(WIDTH * self.scales).astype(np.int32)
        self.offsets, self.escapes = -half, 2 * half + 1
        self._rows: dict[int, object] = {}

    def __len__(self) -> int:
        return _COUNT

    def row(self, index: int) -> object:
        """The model of one scale, made when it is first asked for."""
        row = self._rows.get(index)
        if row is None:
            row = self._rows[index] = _Categorical(self.probabilities(index), perfect=False)
        return row

    def probabilities(self, index: int) -> np.ndarray:
        """P(v) = Phi((v + 1/2) / s) - Phi((v - 1/2) / s) and the escape's, floored, in 2^-26.

        They are whole numbers in float64, whose sums are exact, so every machine makes the same model of
        them. A libm that differs in the last bit changes one in 10^5 to 10^6 such sets of tables.
        """
        half = int(-self.offsets[index])
        upper = ndtr((0.5 - np.arange(half + 1.0)) / self.scales[index])  # P(X > v - 1/2)
        side = upper - np.append(upper[1:], ndtr((-half - 0.5) / self.scales[index]))
        tails = 2 * ndtr((-half - 0.5) / self.scales[index])
        table = np.concatenate([side[:0:-1], side, [tails]])
        return np.rint(np.maximum(table, FLOOR / len(table)) * 2.0**26)

    def order(self, indexes: np.ndarray) -> np.ndarray:
        """The row of every scale.

        Raises:
            ValueError: not float32, which a scale must be for both sides to round it alike.
        """
        if indexes.dtype != np.float32:
            raise ValueError(f"scales of type {indexes.dtype}: expected float32; convert both sides")
        # NaN ends at the bottom of the grid, on both sides alike.
        bits = np.fmin(np.fmax(indexes, np.float32(SMALLEST)), np.float32(LARGEST)).view(np.int32)
        rounded = (bits + (1 << (_DROPPED_BITS - 1))) >> _DROPPED_BITS
        return (rounded - _FIRST).astype(np.uint16)


@functools.cache
def gaussian_tables() -> GaussianTables:
    """The one set of Gaussian tables, the same for all models."""
    return GaussianTables()


# --- CompressAI's table of scales --------------------------------------------------------------


class ScaleTable:
    """Finds the first entry of a table of scales that is at least a given scale: stock's `build_indexes`.

    Stock compares with every entry in turn. Here the upper 16 bits of the float32 leave a few entries at
    most; where they leave one, a look-up and one comparison are enough.

    Args:
        scales: (n,) float32, increasing, > 0.
    """

    def __init__(self, scales: np.ndarray) -> None:
        self.bounds = np.append(scales[:-1].astype(np.float32), np.float32(np.inf))
        cells = np.arange(1 << 15, dtype=np.uint32) << 16  # positive floats by their upper 16 bits
        first = np.searchsorted(self.bounds[:-1], cells.view(np.float32))
        last = np.searchsorted(self.bounds[:-1], (cells | 0xFFFF).view(np.float32))
        self.first = first.astype(np.int32)
        self.unique = bool((last - first <= 1).all()) and bool((np.diff(self.bounds) > 0).all())

    def indexes(self, scales: np.ndarray) -> np.ndarray:
        """For every s, float32 and positive, how many entries (the last left out) are below s; int32."""
        if not self.unique:
            return np.searchsorted(self.bounds[:-1], scales).astype(np.int32)
        first = self.first.take(scales.view(np.uint32) >> 16, mode="clip")
        return first + (scales > self.bounds.take(first))
