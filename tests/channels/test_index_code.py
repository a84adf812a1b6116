# SPDX-License-Identifier: Apache-2.0
"""The code of candidates' numbers: Zipf's law and Elias-delta as in the papers, bytes, hostile bytes."""

from __future__ import annotations

import math
import random
import time
import zlib

import numpy as np
import pytest
import torch

from compressai_sga.channels import index_code as ic
from compressai_sga.errors import BitstreamError

SUPPORTS = (1, 2, 3, 31, 32, 33, 100, 1000, 65_536, 100_003, 2**24 + 3, 2**32)


def models(support: int) -> list[ic.IndexModel]:
    return [
        ic.zipf_model(0.0, support),
        ic.zipf_model(7.3, support),
        ic.elias_delta_model(support),
        ic.uniform_model(support),
    ]


def numbers(support: int, count: int, seed: int = 0) -> torch.Tensor:
    """Spread over the octaves, both ends included."""
    generator = np.random.default_rng(seed)
    drawn = np.floor(support ** generator.random(count)).astype(np.int64) - 1
    drawn[:2] = 0, support - 1
    return torch.from_numpy(drawn.clip(0, support - 1))


# --- Lengths -------------------------------------------------------------------------------------


def test_exponent():
    # Li & El Gamal: e^-1 log2 e + 1 = 1.5307
    assert ic.zipf_exponent(0.0) == pytest.approx(1 + 1 / 1.5307, abs=1e-4)
    assert ic.zipf_exponent(8.0) == pytest.approx(1 + 1 / 9.5307, abs=1e-5)


@pytest.mark.parametrize("kl_bits", [0.0, 1.0, 8.0, 14.0])
@pytest.mark.parametrize("support", [1, 2, 10, 63, 64, 65, 5000])
def test_ideal_lengths_are_those_of_a_law(kl_bits, support):
    lengths = ic.zipf_bits(torch.arange(support), kl_bits, support)
    assert float((2**-lengths).sum()) == pytest.approx(1, abs=1e-9)
    slope = (lengths[-1] - lengths[0]) / max(math.log2(support), 1e-9)
    if support > 1:
        assert float(slope) == pytest.approx(ic.zipf_exponent(kl_bits), rel=1e-9)


def test_infinite_support_is_the_zeta_function():
    from scipy.special import zeta

    for kl_bits in (0.0, 3.0, 20.0):
        lengths = ic.zipf_bits(torch.tensor([0, 9]), kl_bits)
        exponent = ic.zipf_exponent(kl_bits)
        expected = [math.log2(zeta(exponent)), math.log2(zeta(exponent)) + exponent * math.log2(10)]
        np.testing.assert_allclose(lengths.numpy(), expected, rtol=1e-9)


def test_kl_by_number():
    kl_bits = torch.tensor([2.0, 6.0])
    both = ic.zipf_bits(torch.tensor([7, 7]), kl_bits, 100)
    assert both.tolist() == [float(ic.zipf_bits(torch.tensor(7), float(kl), 100)) for kl in kl_bits]


def test_elias_delta():
    # Elias 1975: 1 -> 1 bit, 2 and 3 -> 4 bits, 4 to 7 -> 5, 8 to 15 -> 8, 16 to 31 -> 9, 32 to 63 -> 10
    known = {
        1: 1,
        2: 4,
        3: 4,
        4: 5,
        7: 5,
        8: 8,
        15: 8,
        16: 9,
        31: 9,
        32: 10,
        2**31: 31 + 2 * 5 + 1,
        2**32: 43,
    }
    index = torch.tensor(list(known)) - 1
    assert ic.elias_delta_bits(index).tolist() == list(known.values())
    # The model is the same law renormalised to its support: never longer.
    difference = ic.elias_delta_bits(index[:-1]) - ic.elias_delta_model().bits(index[:-1])
    assert float(difference.min()) > 0 and float(difference.max()) < 0.05


@pytest.mark.parametrize("support", [1, 2, 40, 5000, 100_003])
def test_every_model_is_a_law(support):
    for model in models(support):
        assert model.support == support
        assert float((2 ** -model.bits(torch.arange(support))).sum()) == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize("kl_bits, support", [(2.0, 2**12), (8.0, 2**12), (14.0, 2**16)])
def test_bins_cost_next_to_nothing(kl_bits, support):
    """Expected length under Zipf's law, table against formula."""
    index = torch.arange(support)
    ideal = ic.zipf_bits(index, kl_bits, support)
    extra = (2**-ideal * (ic.zipf_model(kl_bits, support).bits(index) - ideal)).sum()
    assert 0 <= float(extra) < 5e-4


def test_large_supports_need_no_large_table():
    start = time.process_time()
    model = ic.zipf_model(13.0, 2**32)
    assert len(model.masses) < 500 and time.process_time() - start < 1


# --- Bytes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("support", SUPPORTS)
def test_round_trip(support):
    for model in models(support):
        index = numbers(support, 1000)
        data = ic.encode_numbers([(index, model)])
        (back,) = ic.decode_numbers(data, [(1000, model)])
        assert torch.equal(back, index)
        # constriction adds 2^-24 to every mass (rare numbers, many here, gain by it); at most 40 bits to end
        bits = float(model.bits(index).sum())
        assert bits * 0.998 - 8 < 8 * len(data) < bits * 1.0005 + 40


@pytest.mark.parametrize("count", [0, 1, 2, 3])
def test_few_numbers(count):
    for model in models(1000):
        index = numbers(1000, 5)[:count]
        (back,) = ic.decode_numbers(ic.encode_numbers([(index, model)]), [(count, model)])
        assert torch.equal(back, index)


def test_many_groups_in_one_stream():
    parts = [(numbers(s, 17 + s % 5, seed=s), m) for s in SUPPORTS for m in models(s)]
    data = ic.encode_numbers(parts)
    back = ic.decode_numbers(data, [(len(index), model) for index, model in parts])
    assert all(torch.equal(a, b) for a, (b, _) in zip(back, parts))
    assert 8 * len(data) < sum(float(m.bits(i).sum()) for i, m in parts) * 1.0005 + 40


def test_golden_bytes_and_tables():
    # These are part of the format: other values mean that old streams no longer decode.
    index = torch.tensor([0, 1, 5, 30, 31, 32, 1000, 123_456, 2**24, 2**32 - 2])
    assert ic.encode_numbers([(index, ic.zipf_model(8.0))]).hex() == GOLDEN_ZIPF
    assert ic.encode_numbers([(index, ic.elias_delta_model())]).hex() == GOLDEN_ELIAS
    assert ic.encode_numbers([(index[:7], ic.uniform_model(1001))]).hex() == GOLDEN_UNIFORM
    tables = [ic.zipf_model(kl / 8, 2**32).masses for kl in range(0, 160, 8)]
    assert zlib.crc32(np.asarray(tables, dtype="<u4").tobytes()) == GOLDEN_TABLES


GOLDEN_ZIPF = "48175f0378fa1edcc502a519c9a215486da08e4b"
GOLDEN_ELIAS = "d52cda506c6edb5dd55ac78ebf15c005d57f6bea"
GOLDEN_UNIFORM = "d31000003a89c7b10093f456"
GOLDEN_TABLES = 0xD1D4809E


def test_the_divergence_is_rounded_to_eighths():
    assert [ic.kl_eighths(kl) for kl in (0.0, -1e-17, 0.06, 0.07, 8.0, 1e9, math.inf)] == [
        0,
        0,
        0,
        1,
        64,
        8192,
        8192,
    ]
    assert ic.zipf_model(8.0, 100) is ic.zipf_model(8.05, 100)
    for bad in (-0.1, math.nan):
        with pytest.raises(ValueError, match="divergence"):
            ic.kl_eighths(bad)


@pytest.mark.parametrize("bad", [-1, 100, 2**40])
def test_numbers_outside_the_support(bad):
    for call in (lambda m, i: ic.encode_numbers([(i, m)]), lambda m, i: m.bits(i)):
        with pytest.raises(ValueError, match="raise its support"):
            call(ic.zipf_model(3.0, 100), torch.tensor([0, bad]))
    with pytest.raises(ValueError, match="integers"):
        ic.encode_numbers([(torch.tensor([0.5]), ic.uniform_model(3))])
    for support in (0, 2**32 + 1):
        with pytest.raises(ValueError, match="2\\^32"):
            ic.uniform_model(support)


# --- Hostile bytes -----------------------------------------------------------------------------------


def attempt(data: bytes, parts: list) -> bool:
    """Whether the bytes are refused; if not, they must be what an encoder writes."""
    try:
        back = ic.decode_numbers(data, parts)
    except BitstreamError:
        return True
    assert all(bool((i >= 0).all() and (i < m.support).all()) for i, (_, m) in zip(back, parts))
    assert ic.encode_numbers([(i, m) for i, (_, m) in zip(back, parts)]) == data
    return False


def test_damaged_bytes_never_crash():
    models_here = [ic.zipf_model(6.0, 100_003), ic.elias_delta_model(), ic.uniform_model(77)]
    parts = [(numbers(m.support, 20, seed=9), m) for m in models_here]
    counts = [(20, m) for m in models_here]
    data = ic.encode_numbers(parts)
    for end in range(len(data)):
        assert attempt(data[:end], counts)
    for extra in (b"\0", b"\0" * 4, b"\xff" * 4, data):
        assert attempt(data + extra, counts)
    for bit in range(8 * len(data)):  # a flip may give another valid stream: no checksum here
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        attempt(bytes(flipped), counts)
    assert attempt(data, counts[:2]) and attempt(data, [(21, m) for m in models_here])


def test_random_bytes_never_crash():
    source = random.Random(0)
    refused = 0
    for _ in range(400):
        data = source.randbytes(4 * source.randrange(8))
        parts = [(source.randrange(9), source.choice(models(source.choice(SUPPORTS)))) for _ in range(3)]
        refused += attempt(data, parts)
    assert refused > 300


def test_absurd_counts_are_refused_before_memory_is_taken():
    start = time.process_time()
    with pytest.raises(BitstreamError, match="at least"):
        ic.decode_numbers(b"\0" * 64, [(10**12, ic.zipf_model(0.0))])
    assert time.process_time() - start < 0.5
