# SPDX-License-Identifier: Apache-2.0
"""Candidates that are turns of a vector: what is chosen is what independent candidates would give."""

import math

import pytest
import torch

from compressai_sga.channels import circulant, prng
from compressai_sga.channels.circulant import Split
from compressai_sga.errors import ShapeError

SEED = 5


def test_scores_are_those_of_the_delivered_samples():
    split = Split(dims=100, blocks=3, log2_candidates=7)
    shift = torch.randn(100, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    table = torch.cat([score for _, score in circulant.scores(shift, split, seed=SEED, step=2)])
    for number in (0, 5, 33, 34, 127):
        index = torch.full((3,), number)
        sample = circulant.deliver(index, split, seed=SEED, step=2)
        # Blocks are disjoint, so that the sum over them is the whole product.
        assert float(sample @ shift) == pytest.approx(float(table[:, number].sum()), rel=1e-4, abs=1e-4)


def test_a_delivered_sample_is_standard_normal():
    split = Split(dims=20_000, blocks=7, log2_candidates=10)
    index = torch.tensor([0, 1, 2, 500, 1000, 1023, 77])
    sample = circulant.deliver(index, split, seed=SEED)
    # Mean and variance of 20 000 numbers, each within four standard errors: false alarm 1e-4.
    assert abs(float(sample.mean())) < 4 / math.sqrt(20_000)
    assert abs(float(sample.var()) - 1) < 4 * math.sqrt(2 / 20_000)


@pytest.mark.parametrize("constant", [False, True], ids=["any shift", "the same shift everywhere"])
def test_bias_and_spread_are_those_of_independent_candidates(constant):
    kl, blocks, lanes, log2_candidates = 6.0, 400, 150, 8
    size = math.sqrt(2 * kl * math.log(2))
    generator = torch.Generator().manual_seed(1)
    shift = torch.ones(blocks * lanes) if constant else torch.randn(blocks * lanes, generator=generator)
    shift = shift * size / (shift.norm() / math.sqrt(blocks))
    split = Split(blocks * lanes, blocks, log2_candidates)
    index = circulant.choose(shift, split, order="orc", seed=SEED)
    sample = circulant.deliver(index, split, seed=SEED)
    # Along the shift, and what blocks of independent candidates give.
    along = float(sample @ shift.double()) / (blocks * size)
    free = torch.randn(4000, 2**log2_candidates, generator=generator, dtype=torch.float64)
    from compressai_sga.channels.selection import select

    draws = torch.empty_like(free).exponential_(generator=generator)
    best = select(size * free, draws, "orc")
    expected = free.gather(1, best[:, None]).mean()
    # Standard deviation of one block is about 0.75: 4 standard errors of both.
    assert along == pytest.approx(float(expected), abs=4 * 0.75 * math.sqrt(1 / blocks + 1 / 4000))
    assert float(expected) < size  # it falls short, as 2^(KL + 2) candidates do


def test_the_permutation_deals_every_coordinate_once_and_signs_are_fair():
    split = Split(1001, 10, 3)
    order, sign = circulant._deal(split, SEED, 0, torch.device("cpu"))
    assert torch.equal(order.sort().values, torch.arange(1001))
    assert set(sign.tolist()) == {-1, 1} and abs(int(sign.sum())) < 4 * math.sqrt(1001)


def test_a_single_candidate_is_the_first_of_shared_randomness():
    split = Split(6, 1, 0)
    index = circulant.choose(torch.ones(6), split, seed=SEED)
    order, sign = circulant._deal(split, SEED, 0, torch.device("cpu"))
    expected = torch.empty(6, dtype=torch.float64)
    expected[order] = prng.normal(SEED, lanes=6) * sign
    assert torch.equal(circulant.deliver(index, split, seed=SEED), expected)


GOLDEN = [71090897, -26141164, -91148949, -71165893, 64860744]


def test_golden_sample():
    split = Split(5, 2, 4)
    sample = circulant.deliver(torch.tensor([3, 14]), split, seed=1, step=2)
    assert (sample * 2**26).tolist() == GOLDEN


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda: Split(3, 4, 1), ValueError),
        (lambda: Split(3, 1, 25), ValueError),
        (lambda: circulant.choose(torch.ones(4), Split(3, 1, 2), seed=0), ShapeError),
        (lambda: circulant.choose(torch.full((3,), torch.nan), Split(3, 1, 2), seed=0), ValueError),
        (lambda: circulant.deliver(torch.tensor([0, 0]), Split(3, 1, 2), seed=0), ShapeError),
        (lambda: circulant.deliver(torch.tensor([4]), Split(3, 1, 2), seed=0), ValueError),
        (lambda: circulant.deliver(torch.tensor([-1]), Split(3, 1, 2), seed=0), ValueError),
    ],
)
def test_errors(call, error):
    with pytest.raises(error):
        call()
