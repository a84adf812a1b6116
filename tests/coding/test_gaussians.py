# SPDX-License-Identifier: Apache-2.0
"""Claims of coding/gaussians.py: integers around real means come back, at their ideal length."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import ndtr

from compressai_sga.coding import checksum
from compressai_sga.coding.gaussians import decode_gaussians, encode_gaussians
from compressai_sga.errors import BitstreamError

GOLDEN = "7faa7f9bfef24404"


def draw(n: int, low: float, high: float, seed: int = 0) -> tuple[np.ndarray, ...]:
    """Symbols, means in +-1/2 and scales whose logarithm is uniform."""
    generator = np.random.default_rng(seed)
    scales = np.exp(generator.uniform(np.log(low), np.log(high), n))
    means = generator.uniform(-0.5, 0.5, n)
    symbols = np.round(generator.normal(means, scales)).astype(np.int32)
    return symbols, means, scales


def ideal_bits(symbols, means, scales) -> float:
    v = np.abs(symbols - means)
    return float(-np.log2(ndtr((0.5 - v) / scales) - ndtr((-0.5 - v) / scales)).sum())


@pytest.mark.parametrize("low, high, slack", [(0.11, 0.5, 2e-3), (0.5, 8, 1e-3), (8, 200, 1e-3)])
def test_length_is_the_ideal_one(low, high, slack):
    symbols, means, scales = draw(50_000, low, high)
    data = encode_gaussians(symbols, means, scales)
    assert np.array_equal(decode_gaussians(data, means, scales), symbols)
    assert 8 * len(data) == pytest.approx(ideal_bits(symbols, means, scales), rel=slack)


@pytest.mark.parametrize("n", [0, 1, 2, 3, 1000])
def test_round_trip(n):
    symbols, means, scales = draw(n, 0.11, 100)
    data = encode_gaussians(symbols, means, scales)
    decoded = decode_gaussians(data, means, scales)
    assert decoded.dtype == np.int32 and np.array_equal(decoded, symbols)


def test_extreme_symbols_means_and_scales():
    symbols, means, scales = draw(400, 0.01, 5000)
    symbols[::7] = np.random.default_rng(1).integers(-(2**31) + 1, 2**31 - 1, len(symbols[::7]))
    means[::5] *= 1e4
    symbols[::11] = 2**15
    scales[:4] = 0, np.nan, np.inf, -1
    means[4] = np.nan
    data = encode_gaussians(symbols, means, scales)
    assert np.array_equal(decode_gaussians(data, means, scales), symbols)


def test_the_checksum_sees_the_same_symbols_on_both_sides():
    symbols, means, scales = draw(300, 0.11, 30)
    with checksum.record() as encoded:
        data = encode_gaussians(symbols, means, scales)
    with checksum.record() as decoded:
        decode_gaussians(data, means, scales)
    assert encoded.crc32 == decoded.crc32 and encoded.symbols == decoded.symbols >= 300


def test_golden_bytes():
    """What files depend on: these bytes may never change."""
    symbols = np.array([0, 1, -1, 3, 40, -2000, 0, 0], np.int32)
    means = np.array([0.1, 0.5, -0.5, 2.2, 38.0, 0.0, 0.0, -0.25])
    scales = np.array([0.11, 0.2, 0.5, 1.0, 9.0, 3.0, 0.11, 0.11])
    assert encode_gaussians(symbols, means, scales).hex() == GOLDEN


def test_damage_is_found():
    symbols, means, scales = draw(300, 0.11, 30)
    data = encode_gaussians(symbols, means, scales)
    wrong = [data[:n] for n in range(len(data))] + [data + b"\1", data + b"\0"]
    for bit in range(0, 8 * len(data), 5):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        wrong.append(bytes(flipped))
    for string in wrong:
        with pytest.raises(BitstreamError):
            decode_gaussians(string, means, scales)
    with pytest.raises(BitstreamError):
        decode_gaussians(data, means, 1.1 * scales)


def test_wrong_arguments_are_named():
    symbols, means, scales = draw(3, 1, 2)
    with pytest.raises(ValueError, match=r"\(2,\)"):
        encode_gaussians(symbols, means[:2], scales)
    with pytest.raises(ValueError, match=r"\(2,\)"):
        decode_gaussians(encode_gaussians(symbols, means, scales), means[:2], scales)
    with pytest.raises(ValueError, match="int64"):
        encode_gaussians(symbols.astype(np.int64), means, scales)
