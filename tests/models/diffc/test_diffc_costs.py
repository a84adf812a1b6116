# SPDX-License-Identifier: Apache-2.0
"""Cost table and path: against closed forms and against all paths."""

import itertools
import math

import pytest
import torch

from compressai_sga.diffusion.gaussian import DiagonalGaussian
from compressai_sga.models.diffc.costs import ERROR_UNIT, Ladder, StepCost, measure_errors, shortest_path


def ladder(levels: int, lowest: float = -6.0, highest: float = 4.0) -> Ladder:
    """Of a standard normal source: mse = sigma^2."""
    at = [lowest + (highest - lowest) * i / (levels - 1) for i in range(levels)]
    return Ladder(lowest, highest, tuple(round(2**32 / (1 + math.exp(level))) for level in at))


def length(of: Ladder, path: tuple[int, ...], dims: int, cost: StepCost) -> float:
    """Bits, in floating point."""
    bits = 0.0
    for i, j in zip(path, path[1:]):
        snr = math.exp(of.log_snr(j)) - math.exp(of.log_snr(i))
        kl = dims * snr * of.errors[i] * ERROR_UNIT / (2 * math.log(2))
        bits += cost.fixed_millibits / 1000 + kl * (1 + cost.share_permille / 1000)
    return bits


@pytest.mark.parametrize("limit", [None, 1, 2, 4])
def test_no_path_is_shorter(limit):
    of, cost = ladder(10), StepCost(6000, 60)
    best = min(
        length(of, (0, *between, 9), 300, cost)
        for count in range(limit or 9)
        for between in itertools.combinations(range(1, 9), count)
    )
    path = shortest_path(of, 300, cost, limit)
    assert path[0] == 0 and path[-1] == 9 and list(path) == sorted(set(path))
    assert limit is None or len(path) - 1 <= limit
    assert length(of, path, 300, cost) == pytest.approx(best, abs=0.02)


def test_the_divergence_is_the_closed_form():
    of = ladder(50)
    for i, j in ((0, 1), (0, 49), (20, 31)):
        nats = (
            1000 * 0.5 * (math.exp(of.log_snr(j)) - math.exp(of.log_snr(i))) / (1 + math.exp(of.log_snr(i)))
        )
        assert of.kl_millibits(i, j, 1000) == pytest.approx(1000 * nats / math.log(2), rel=1e-6, abs=1)


def test_more_dimensions_more_steps_and_all_of_them_where_steps_are_free():
    cost = StepCost(6000, 60)
    counts = [len(shortest_path(ladder(65), dims, cost)) for dims in (30, 300, 3000, 30_000)]
    assert counts == sorted(set(counts))
    assert shortest_path(ladder(20), 1000, StepCost(0, 0)) == tuple(range(20))


def test_ties_go_to_the_longer_last_step():
    # Divergences below a thousandth of a bit: all paths of one step are equally long, as are all of none.
    of = Ladder(-30.0, -29.0, (1,) * 5)
    assert shortest_path(of, 1, StepCost(0, 0)) == (0, 4)


def test_errors_of_a_gaussian_are_its_posterior_variance():
    source, g = DiagonalGaussian(0.0, 3.0), torch.Generator().manual_seed(0)
    x = source.draw(torch.randn(100, 3, 10, 10, generator=g, dtype=torch.float64))
    levels = [-4.0, 0.0, 3.0]
    errors = measure_errors(source, x, levels, g) * ERROR_UNIT
    for level, error in zip(levels, errors.tolist()):
        expected = 3 / (1 + 3 * math.exp(level))
        # Mean of 30 000 squares: four standard errors.
        assert error == pytest.approx(expected, rel=4 * math.sqrt(2 / 30_000))


@pytest.mark.parametrize(
    "call",
    [
        lambda: Ladder(1.0, 1.0, (1, 1)),
        lambda: Ladder(0.0, 1.0, (1,)),
        lambda: Ladder(0.0, 1.0, (1, 0)),
        lambda: shortest_path(ladder(4), 0, StepCost(0, 0)),
        lambda: shortest_path(ladder(4), 1, StepCost(0, 0), 0),
        lambda: measure_errors(lambda z, t: z / 0, torch.ones(1, 1), [0.0], torch.Generator()),
    ],
)
def test_errors(call):
    with pytest.raises(ValueError):
        call()
