# SPDX-License-Identifier: Apache-2.0
"""Claims of models/c3/tables.py: the rows are Laplace distributions in whole numbers, constriction codes with
exactly these numbers, and rounding location and scale to rows costs what the file says."""

from __future__ import annotations

import zlib

import constriction
import numpy as np
import pytest

from compressai_sga.models.c3 import tables
from compressai_sga.models.c3.tables import rows


def test_rows_rise_from_0_to_2_to_the_24():
    table = rows()
    assert table.base[-1] + (1 << table.fraction_bits[-1]) == table.escape_row
    for start, count in zip(table.start, table.counts):
        row = table.cdf[start : start + count + 1].astype(np.int64)
        assert row[0] == 0 and row[-1] == 2**24 and (np.diff(row) > 0).all()
    assert len(table.cdf) == table.start[-1] + table.counts[-1] + 1 < 100_000
    classes = table.bits[table.start[table.escape_row] :][:17]
    assert np.array_equal(classes, np.arange(1.0, 18.0))


def test_bytes_of_the_table_do_not_change():
    assert zlib.crc32(rows().cdf.astype("<u4").tobytes()) == 0x07130199


def test_another_arithmetic_is_found_out(monkeypatch):
    monkeypatch.setattr(tables, "_ROOTS", (1.0, *tables._ROOTS[1:7], tables._ROOTS[7] * (1 + 1e-6)))
    with pytest.raises(RuntimeError, match="IEEE 754"):
        rows.__wrapped__()


def test_constriction_codes_with_these_counts():
    """One step of the coder from a known state, for values of many rows: the state that the counts give."""
    table = rows()
    rng = np.random.default_rng(0)
    for r in [*rng.integers(0, len(table.counts), 200).tolist(), table.escape_row, table.coin_row]:
        value = int(rng.integers(table.counts[r]))
        left, right = table.cdf[table.start[r] + value : table.start[r] + value + 2].tolist()
        coder = constriction.stream.stack.AnsCoder(np.array([12345], np.uint32))
        coder.encode_reverse(value, table.models[r])
        state = sum(int(word) << 32 * i for i, word in enumerate(coder.get_compressed()))
        assert state == (12345 // (right - left) << 24) + left + 12345 % (right - left)
        assert coder.decode(table.models[r]) == value


def test_locate_gives_the_nearest_row():
    table = rows()
    rng = np.random.default_rng(1)
    location = rng.integers(-(2**21), 2**21, 10_000)
    scale = rng.integers(0, tables.SCALES, 10_000)
    row, first = table.locate(location, scale)
    bits = table.fraction_bits[scale]
    fraction = (row - table.base[scale]) / (1 << bits)
    assert ((row >= table.base[scale]) & (fraction < 1)).all()
    assert (np.abs(first - table.first[row] + fraction - location / 64) <= 0.5 / (1 << bits)).all()


def cost(location: float, scale: float) -> tuple[float, float]:
    """Entropy of the exact distribution, and the excess of its row's code length, in bits."""
    table = rows()
    k = np.arange(-int(25 * scale) - 3, int(25 * scale) + 5)

    def below(x: np.ndarray) -> np.ndarray:
        side = 0.5 * np.exp(-np.abs(x) / scale)
        return np.where(x < 0, side, 1 - side)

    p = below(k + 0.5 - location) - below(k - 0.5 - location)
    index = round(tables.SCALES_PER_OCTAVE * np.log2(scale)) + tables.SCALE_ZERO
    row, first = table.locate(np.array([round(64 * location)]), np.array([index]))
    value, escape = k - first[0], table.counts[row[0]] - 1
    inside = (value >= 0) & (value < escape)
    bits = table.bits[table.start[row[0]] + np.where(inside, value, escape)] + np.where(inside, 0, 20)
    entropy = -np.sum(p[p > 0] * np.log2(p[p > 0]))
    return entropy, float(p @ bits - entropy)


@pytest.mark.parametrize("scale", [0.05, 0.1, 0.25, 0.5, 1.0, 3.0, 15.9, 16.1, 100.0])
def test_rounding_costs_less_than_a_thousandth(scale):
    """Mean over 300 places; 0.0009 bits or 0.4 % of the entropy, whichever is less demanding."""
    rng = np.random.default_rng(2)
    found = [cost(rng.uniform(-0.5, 0.5), scale * 2 ** rng.uniform(-1 / 16, 1 / 16)) for _ in range(300)]
    entropy, excess = np.mean(found, axis=0)
    assert -1e-9 < excess < max(0.0009, 0.004 * entropy if scale < 0.1 else 0.0009)


def test_a_surprise_is_no_catastrophe():
    table = rows()
    finite = table.bits[np.isfinite(table.bits)]
    assert finite.max() == 24
    sharp = slice(table.start[0], table.start[0] + table.counts[0])
    assert table.bits[sharp].max() < 18
    assert table.bits[sharp].min() < 1e-4  # of a latent that is as good as known
