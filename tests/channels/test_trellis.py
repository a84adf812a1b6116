# SPDX-License-Identifier: Apache-2.0
"""The trellis code: a round trip, its efficiency, and the search against all messages."""

import itertools
import math

import pytest
import torch

from compressai_sga.channels import trellis
from compressai_sga.channels.trellis import Message, decode_message, encode_message
from compressai_sga.errors import ShapeError


def unit(dims: int, seed: int = 0) -> torch.Tensor:
    v = torch.randn(dims, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return v / v.norm()


def effective_bits(dims: int, bits: int, state_bits: int, repeats: int) -> float:
    """What an ideal channel needs for the same score."""
    message, direction, scores = Message(dims, bits, state_bits), unit(dims), []
    for seed in range(repeats):
        symbols = encode_message(direction, message, seed=seed)
        scores.append(float(decode_message(symbols, message, seed=seed) @ direction))
    return torch.tensor(scores).square().mean().item() / (2 * math.log(2))


def test_ten_per_cent_above_the_rate_distortion_function():
    # 200 bits of 12 bits of state: 10 %, found with 100 repeats; three have a standard error of 1 %.
    assert 200 / 1.14 < effective_bits(4000, 200, 12, 3) < 200 / 1.05


def test_more_states_are_better_and_all_beat_short_blocks():
    small, large = effective_bits(4000, 150, 4, 3), effective_bits(4000, 150, 9, 3)
    assert small < large < 150
    # The best of 2^14 normal numbers is worth 11.2 bits; 15 blocks of 10 bits are worth 109 of 150.
    assert large > 115


def test_the_search_finds_the_best_message_of_a_short_circle():
    table = torch.randn(9, 2**3, generator=torch.Generator().manual_seed(3))
    best, found = -math.inf, None
    for bits in itertools.product((0, 1), repeat=9):
        numbers = [bits[t - 2] * 4 + bits[t - 1] * 2 + bits[t] for t in range(9)]
        score = float(sum(table[t, number] for t, number in enumerate(numbers)))
        if score > best:
            best, found = score, bits
    assert tuple(trellis._tail_biting(table, 1).tolist()) == found


def test_numbers_of_a_circle_are_windows_of_its_bits():
    message = Message(dims=500, bits=40, state_bits=5)
    symbols = encode_message(unit(500), message, seed=1)
    # Any single bit matters to k + 1 segments, of all dimensions to those only.
    flipped = symbols.clone()
    flipped[20] ^= 1
    changed = decode_message(symbols, message, seed=1) != decode_message(flipped, message, seed=1)
    assert int(changed.sum()) == pytest.approx(6 / 40 * 500, abs=6)


@pytest.mark.parametrize(
    ("dims", "bits", "state_bits"),
    [(1, 1, 1), (1, 12, 3), (3, 13, 4), (50, 7, 12), (10, 95, 4), (3000, 13, 12), (2000, 1100, 2)],
)
def test_every_layout_goes_round(dims, bits, state_bits):
    message = Message(dims, bits, state_bits)
    symbols = encode_message(unit(dims), message, seed=2, step=3)
    assert symbols.shape == (message.segments,) and 0.5 * bits < message.sent_bits <= bits
    assert int(symbols.min()) >= 0 and int(symbols.max()) < 2**message.symbol_bits
    sample = decode_message(symbols, message, seed=2, step=3)
    assert sample.shape == (dims,)
    assert bits == 1 or float(sample @ unit(dims)) > 0


def test_noise_across_the_shift_is_white():
    message, direction = Message(20_000, 150, 6), unit(20_000)
    sample = decode_message(encode_message(direction, message, seed=4), message, seed=4)
    rest = sample - (sample @ direction) * direction
    # Variance of 20 000 numbers: four standard errors.
    assert float(rest.square().mean()) == pytest.approx(1, abs=4 * math.sqrt(2 / 20_000))


GOLDEN = "011000100010100001101111"


def test_golden_symbols():
    message = Message(64, 24, 4)
    shift = torch.arange(64, dtype=torch.float64) / 32 - 1
    assert "".join(map(str, encode_message(shift, message, seed=7).tolist())) == GOLDEN


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda: Message(0, 1), ValueError),
        (lambda: Message(1, 0), ValueError),
        (lambda: Message(10, 20, 24), ValueError),
        (lambda: encode_message(torch.ones(3), Message(4, 2), seed=0), ShapeError),
        (lambda: decode_message(torch.zeros(3, dtype=torch.int64), Message(40, 20), seed=0), ShapeError),
        (lambda: decode_message(torch.full((20,), 2), Message(40, 20), seed=0), ValueError),
    ],
)
def test_errors(call, error):
    with pytest.raises(error):
        call()
