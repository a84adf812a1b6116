# SPDX-License-Identifier: Apache-2.0
"""Laws, their density ratios and the addresses of their draws, against SciPy and brute force."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import integrate, stats

from compressai_sga.channels import candidates as draws
from compressai_sga.channels import density_ratio as ratios
from compressai_sga.channels import prng
from compressai_sga.channels import selection as arrivals
from compressai_sga.channels.distributions import (
    Density,
    DiagonalGaussian,
    Finite,
    TruncatedGaussian,
    Uniform,
)

ALARM = 1e-4


def f64(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def gaussian(mean: float, std: float) -> DiagonalGaussian:
    return DiagonalGaussian(f64(mean), f64(std))


def truncated(mean: float, std: float, low: float, high: float) -> TruncatedGaussian:
    return TruncatedGaussian(f64(mean), f64(std), f64(low), f64(high))


PAIRS = [  # target, proposal, an interval that holds the target
    (gaussian(0.3, 0.5), gaussian(-0.2, 1.0), (-5, 5)),
    (gaussian(4.0, 0.9), gaussian(0.0, 1.0), (-20, 40)),
    (gaussian(1e-3, 1.0 - 1e-3), gaussian(0.0, 1.0), (-12, 12)),
    (gaussian(0.5, 0.02), Uniform(f64(0.0), f64(1.0)), (0, 1)),
    (truncated(0.8, 0.3, 0.0, 1.0), Uniform(f64(-0.5), f64(1.5)), (0, 1)),
    (truncated(3.0, 0.3, 0.0, 1.0), Uniform(f64(0.0), f64(1.0)), (0, 1)),
    (truncated(0.5, 0.7, -1.0, 2.0), gaussian(0.0, 1.0), (-1, 2)),
    (truncated(0.5, 3.0, -1.0, 2.0), gaussian(0.0, 1.0), (-1, 2)),
    (truncated(0.5, 1.0, -1.0, 2.0), gaussian(0.0, 1.0), (-1, 2)),
    (truncated(0.0, 1.0, 6.0, 7.0), gaussian(0.0, 1.0), (6, 7)),
    (truncated(0.5, 0.5, -math.inf, 1.0), gaussian(0.0, 1.0), (-6, 1)),
    (Uniform(f64(0.5), f64(3.0)), gaussian(0.0, 1.0), (0.5, 3)),
    (Uniform(f64(0.2), f64(0.7)), Uniform(f64(0.0), f64(1.0)), (0.2, 0.7)),
]


@pytest.mark.parametrize("target, proposal, interval", PAIRS)
def test_bound_and_divergence(target, proposal, interval):
    def log_ratio(x: torch.Tensor) -> torch.Tensor:
        return target.log_density(x[..., None]) - proposal.log_density(x[..., None])

    grid = torch.linspace(*interval, 2_000_001, dtype=torch.float64)
    bound = float(ratios.log_ratio_bound(target, proposal))
    highest = float(log_ratio(grid).max())
    assert highest <= bound + 1e-12 and bound == pytest.approx(highest, abs=2e-5)

    def integrand(x: float) -> float:
        here = f64(x)
        log_q = float(target.log_density(here))
        return 0.0 if log_q == -math.inf else math.exp(log_q) * float(log_ratio(here[0]))

    peak = float(grid[target.log_density(grid[:, None]).argmax()])
    nats, _ = integrate.quad(integrand, *interval, points=[peak], limit=400)
    assert float(ratios.divergence_bits(target, proposal)) == pytest.approx(nats / math.log(2), abs=1e-7)


@pytest.mark.parametrize("target, proposal, interval", PAIRS)
def test_densities_integrate_to_one(target, proposal, interval):
    grid = torch.linspace(*interval, 2_000_001, dtype=torch.float64)
    mass = torch.trapezoid(torch.exp(target.log_density(grid[:, None])), grid)
    assert float(mass) == pytest.approx(1, abs=3e-5)


@pytest.mark.parametrize(
    "target",
    [
        gaussian(0.0, 1.5),
        gaussian(1.0, 1.0),
        truncated(0.5, 1.0, 0.0, math.inf),
        truncated(0.0, 2.0, -math.inf, 3.0),
    ],
)
def test_unbounded_ratios(target):
    assert float(ratios.log_ratio_bound(target, gaussian(0.0, 1.0))) == math.inf


def test_equal_laws():
    for law in (gaussian(0.3, 0.7), Uniform(f64(0.0), f64(2.0)), Finite.uniform(7)):
        assert float(ratios.log_ratio_bound(law, law)) == pytest.approx(0, abs=1e-12)
        assert float(ratios.divergence_bits(law, law)) == pytest.approx(0, abs=1e-12)


def test_dimensions_add_up_and_batches_broadcast():
    target = DiagonalGaussian(torch.rand(4, 1, 3).double(), torch.full((4, 1, 3), 0.5).double())
    proposal = DiagonalGaussian(torch.zeros(5, 3).double(), torch.ones(5, 3).double())
    for function in (ratios.log_ratio_bound, ratios.divergence_bits):
        together = function(target, proposal)
        assert together.shape == (4, 5)
        by_dim = [
            function(
                DiagonalGaussian(target.mean[2, 0, d : d + 1], target.std[2, 0, d : d + 1]),
                gaussian(0.0, 1.0),
            )
            for d in range(3)
        ]
        assert float(together[2, 3]) == pytest.approx(float(sum(by_dim)), rel=1e-12)


def test_finite_divergence():
    target, proposal = f64(0.5, 0.5, 0.0), Finite.from_weights(torch.tensor([1, 2, 1]))
    target = Finite.from_probs(target)
    assert float(ratios.divergence_bits(target, proposal)) == pytest.approx(0.5 * 1 + 0.5 * 0)
    assert float(ratios.log_ratio_bound(target, proposal)) == pytest.approx(math.log(2))


@pytest.mark.parametrize("mass", [1e-4, 0.3])
@pytest.mark.parametrize("dims", [1, 2, 5])
def test_truncation_cuts_this_mass(dims, mass):
    law = DiagonalGaussian(torch.arange(dims).double(), torch.arange(1, dims + 1).double()).truncated(mass)
    kept = torch.exp(law.log_mass().sum())
    assert float(1 - kept) == pytest.approx(mass, rel=1e-9)
    with pytest.raises(ValueError, match="between 0 and 1"):
        gaussian(0.0, 1.0).truncated(0.0)


def test_finite_proposals_have_their_probabilities():
    weights = torch.tensor([3, 0, 1, 4])
    words = prng.words(1, lanes=1, candidate=torch.arange(40_000))
    symbols = Finite.from_weights(weights).transform(words)
    counts = torch.bincount(symbols, minlength=4)
    assert counts[1] == 0
    assert stats.chisquare(counts[[0, 2, 3]].numpy(), [15_000, 5_000, 20_000]).pvalue > ALARM
    ends = torch.tensor([[0], [2**32 - 1]])
    assert Finite.from_weights(weights).transform(ends).tolist() == [0, 3]
    assert Finite.uniform(8192).transform(ends).tolist() == [0, 8191]


@pytest.mark.parametrize("kind", ["normal", "uniform", "words"])
@pytest.mark.parametrize("lanes", [1, 2, 3, 4, 6, 7, 8])
def test_a_candidate_is_the_same_in_any_range(kind, lanes):
    proposal = Density(None, lanes=lanes, kind=kind)
    block = torch.tensor([4, 9, 2**32 - 1])
    address = dict(step=3, block=block)
    everything = draws.candidate_draws(proposal, 5, first=0, count=32, **address)
    assert everything.shape == (3, 32, lanes) and len(everything.unique()) == everything.numel()
    part = draws.candidate_draws(proposal, 5, first=12, count=8, **address)
    assert torch.equal(part, everything[:, 12:20])
    for index in (0, 13, 31):
        one = draws.chosen_draws(proposal, 5, index=torch.tensor([index, 0, 31]), **address)
        assert torch.equal(one, everything[[0, 1, 2], [index, 0, 31]])
    last = draws.chosen_draws(proposal, 5, step=0, block=block, index=torch.full((3,), 2**32 - 1))
    assert last.shape == (3, lanes)
    with pytest.raises(ValueError, match="'normal', 'uniform' or 'words'"):
        draws.chosen_draws(Density(None, lanes=1, kind="laplace"), 5, step=0, block=block, index=block)


def test_arrival_times():
    exponentials = torch.rand(200, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert torch.equal(arrivals.arrival_times(exponentials, "mrc"), exponentials)
    torch.testing.assert_close(arrivals.arrival_times(exponentials, "pfr"), exponentials.cumsum(0))
    number = torch.arange(200).double()
    torch.testing.assert_close(
        arrivals.arrival_times(exponentials, "orc"), (exponentials * 200 / (200 - number)).cumsum(0)
    )
    # In two chunks the same.
    for order in ("pfr", "orc"):
        head = arrivals.arrival_times(exponentials[:120], order, candidates=200)
        tail = arrivals.arrival_times(exponentials[120:], order, candidates=200, first=120, start=head[-1])
        both = torch.cat([head, tail])
        torch.testing.assert_close(both, arrivals.arrival_times(exponentials, order))
    with pytest.raises(ValueError, match="mrc, pfr, orc"):
        arrivals.arrival_times(exponentials, "fifo")


def test_ordered_times_are_sorted_exponentials():
    """Renyi's representation: N times as they come for orc have the law of N sorted Exp(1), times N."""
    block = torch.arange(4000)
    exponentials = arrivals.exponentials(7, step=0, block=block, first=0, count=8)
    assert stats.kstest(exponentials.flatten().numpy(), "expon").pvalue > ALARM
    times = arrivals.arrival_times(exponentials, "orc")
    for k in (1, 4, 8):  # the k-th smallest of 8: exp(-T / 8) is the k-th largest of 8 uniforms
        order_statistic = torch.exp(-times[:, k - 1] / 8).numpy()
        assert stats.kstest(order_statistic, stats.beta(9 - k, k).cdf).pvalue > ALARM
