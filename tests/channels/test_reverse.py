# SPDX-License-Identifier: Apache-2.0
"""Reverse channel coding: the law of what arrives, what it costs, and that both sides agree.

Statistical tests: fixed seeds, two-sided, false-alarm rate 1e-4 each unless said otherwise. Means are
held within 4 standard errors of the measured sample.
"""

from __future__ import annotations

import math
import time

import numpy as np
import pytest
import torch
from scipy import stats

from compressai_sga.channels import density_ratio as ratios
from compressai_sga.channels import index_code, reverse
from compressai_sga.channels import selection as arrivals
from compressai_sga.channels.distributions import (
    Density,
    DiagonalGaussian,
    Finite,
    TruncatedGaussian,
    Uniform,
)
from compressai_sga.errors import BitstreamError, SgaError, ShapeError
from tests.channels.reverse_coding_reference import LOG2_CANDIDATES, REFERENCE

ALARM = 1e-4
KL_SLACK = math.log2(math.e) / math.e + 1  # of E[log2 K] over KL, Li & El Gamal
METHODS = ("mrc", "pfr", "orc")


def f64(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def gaussian(mean: float, std: float) -> DiagonalGaussian:
    return DiagonalGaussian(f64(mean), f64(std))


STANDARD = gaussian(0.0, 1.0)


def ks(sample: torch.Tensor, law) -> float:
    return stats.kstest(sample.flatten().numpy(), law.cdf).pvalue


# --- The law of the sample ---------------------------------------------------------------------


@pytest.mark.parametrize("mean, std", [(0.0, 0.99), (1.2, 0.5), (-2.5, 0.2), (0.3, 0.01)])
def test_exact_pfr_follows_a_gaussian(mean, std):
    code = reverse.encode(gaussian(mean, std), STANDARD, seed=1, block=torch.arange(5000))
    assert code.exact.all()
    assert ks(code.sample, stats.norm(mean, std)) > ALARM


def test_exact_pfr_follows_a_diagonal_gaussian_of_a_batch():
    # Every batch entry has its own target; standardised, all coordinates must be independent N(0, 1).
    generator = torch.Generator().manual_seed(0)
    mean = torch.randn(3000, 3, generator=generator, dtype=torch.float64) * 0.5
    std = 0.4 + 0.5 * torch.rand(3000, 3, generator=generator, dtype=torch.float64)
    proposal = DiagonalGaussian(f64(0.1, 0, -0.1), f64(1, 1.1, 1.2))
    code = reverse.encode(DiagonalGaussian(mean, std), proposal, seed=2)
    z = (code.sample - mean) / std
    assert min(ks(column, stats.norm()) for column in z.T) > ALARM
    correlation = np.corrcoef(z.T.numpy())[np.triu_indices(3, 1)]
    assert np.abs(correlation).max() < stats.norm.isf(ALARM / 6) / math.sqrt(3000)


def test_exact_pfr_follows_a_truncated_gaussian_against_a_uniform_proposal():
    target = TruncatedGaussian(f64(0.8), f64(0.3), f64(0.0), f64(1.0))
    proposal = Uniform(f64(-0.5), f64(1.5))
    code = reverse.encode(target, proposal, seed=3, block=torch.arange(5000))
    assert ks(code.sample, stats.truncnorm(-0.8 / 0.3, 0.2 / 0.3, 0.8, 0.3)) > ALARM


def test_a_narrow_gaussian_against_a_uniform_proposal():
    code = reverse.encode(gaussian(0.4, 0.02), Uniform(f64(0.0), f64(1.0)), seed=3, block=torch.arange(3000))
    assert ks(code.sample, stats.norm(0.4, 0.02)) > ALARM


def test_exact_pfr_follows_a_uniform_against_a_gaussian_proposal():
    code = reverse.encode(Uniform(f64(0.5), f64(1.0)), STANDARD, seed=4, block=torch.arange(5000))
    assert ks(code.sample, stats.uniform(0.5, 0.5)) > ALARM


def test_exact_pfr_follows_any_pair_of_densities():
    # q = 1 + cos(2 pi x), p = 2 x on [0, 1): drawn as sqrt(u), ratio at most 2 in the limit x -> 0+ is
    # unbounded, so q is cut at 1/8; log_bound is the supremum of the unnormalised ratio.
    def log_q(points):
        x = points[..., 0]
        return torch.where(x > 0.125, torch.log1p(torch.cos(2 * math.pi * x)), -math.inf)

    target = Density(log_q, lanes=1)
    proposal = Density(lambda points: torch.log(2 * points[..., 0]), lanes=1, transform=torch.sqrt)
    bound = math.log((1 + math.cos(math.pi / 4)) / 0.25)
    code = reverse.encode(target, proposal, seed=5, block=torch.arange(5000), log_bound=bound)

    class Law:
        @staticmethod
        def cdf(x):
            def primitive(x):
                return x + np.sin(2 * np.pi * x) / (2 * np.pi)

            return (primitive(x) - primitive(0.125)) / (primitive(1) - primitive(0.125))

    assert code.exact.all() and ks(code.sample, Law) > ALARM
    assert torch.equal(reverse.decode(code.index, proposal, seed=5, block=torch.arange(5000)), code.sample)


def test_exact_pfr_follows_a_finite_law():
    weights = torch.tensor([5, 1, 0, 4, 10, 3])
    probs = f64(0.1, 0.3, 0.0, 0.25, 0.35, 0.0)
    code = reverse.encode(
        Finite.from_probs(probs), Finite.from_weights(weights), seed=6, block=torch.arange(20_000)
    )
    counts = torch.bincount(code.sample, minlength=6)
    assert not counts[probs == 0].any()
    seen = counts[probs > 0].numpy()
    assert stats.chisquare(seen, probs[probs > 0].numpy() * 20_000).pvalue > ALARM


def test_finite_targets_of_a_batch():
    probs = torch.softmax(torch.arange(24, dtype=torch.float64).reshape(2, 1, 12) % 5, -1)
    blocks = torch.arange(2 * 8000).reshape(2, 8000)
    code = reverse.encode(Finite.from_probs(probs), Finite.uniform(12), seed=7, block=blocks)
    assert code.sample.shape == (2, 8000)
    for sample, law in zip(code.sample, probs):
        expected = law[0].numpy() * 8000
        assert stats.chisquare(torch.bincount(sample, minlength=12).numpy(), expected).pvalue > ALARM


def test_perfect_realism():
    # X' given x is N(rho x, 1 - rho^2): X' must be N(0, 1) and correlated by rho with x.
    rho, n = 0.8, 10_000
    x = torch.randn(n, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    target = DiagonalGaussian(rho * x, torch.full_like(x, math.sqrt(1 - rho**2)))
    code = reverse.encode(target, STANDARD, seed=8)
    assert ks(code.sample, stats.norm()) > ALARM
    assert ks((code.sample - rho * x) / math.sqrt(1 - rho**2), stats.norm()) > ALARM


def test_the_stop_rule_loses_nothing():
    # The same candidates and times, all of a large number looked at: the same choice.
    target = gaussian(1.0, 0.6)
    blocks = torch.arange(300)
    exact = reverse.encode(target, STANDARD, seed=9, block=blocks)
    number = torch.arange(4096)
    for block in blocks[:300:10]:
        points = reverse.decode(number, STANDARD, seed=9, block=block.expand(4096))
        log_ratio = target.log_density(points) - STANDARD.log_density(points)
        draws = arrivals.exponentials(9, step=0, block=block[None], first=0, count=4096)[0]
        assert arrivals.select(log_ratio, draws, "pfr") == exact.index[block]


def test_an_exact_search_takes_the_inverse_of_w_min():
    target = gaussian(1.5, 0.5)
    code = reverse.encode(target, STANDARD, seed=10, block=torch.arange(20_000))
    examined = code.examined.double()
    expected = 1 + math.exp(float(ratios.log_ratio_bound(target, STANDARD)))  # the last one stops it
    assert abs(float(examined.mean()) - expected) < 4 * float(examined.std()) / math.sqrt(20_000)


# --- Truncation --------------------------------------------------------------------------------


def check_reference(kl: int, draws: int, loose: float) -> None:
    """Every method at KL bits against other simulations; `loose` is how far those may be off."""
    log2_candidates = LOG2_CANDIDATES[kl]
    mean = math.sqrt(2 * kl * math.log(2))
    measured = {}
    for method in METHODS:
        code = reverse.encode(
            gaussian(mean, 1.0), STANDARD, method=method, seed=11, block=torch.arange(draws),
            candidates=2**log2_candidates, kl_bits=float(kl), dtype=torch.float32,
        )  # fmt: skip
        log2_k = torch.log2(code.index + 1.0).double()
        zipf = index_code.zipf_bits(code.index, float(kl), 2**log2_candidates)
        error = code.sample[:, 0] - mean
        for value, reference in zip((log2_k, zipf, error), REFERENCE[kl, method]):
            slack = loose + 4 * float(value.std()) / math.sqrt(draws)
            assert abs(float(value.mean()) - reference) < slack, (method, float(value.mean()), reference)
        assert 0.6 < float(error.std()) < 0.92  # 0.80 to 0.81 at KL = 8, 0.71 to 0.74 at KL = 14
        assert not code.exact.any() and float(code.log_mass.mean()) < -0.05
        measured[method] = float(zipf.mean()), float(code.bits.mean())
        if method != "mrc":  # whose numbers are coded with equal probabilities
            assert abs(measured[method][0] - measured[method][1]) < 0.02
        else:
            assert torch.equal(code.bits, torch.full_like(code.bits, log2_candidates))
    assert measured["orc"][0] < measured["pfr"][0] < measured["mrc"][0]
    assert measured["orc"][1] < measured["pfr"][1]
    assert measured["pfr"][1] < kl + math.log2(kl + 1) + 4
    # Sorted times lower the cost in every pair of draws alike, so their difference is certain.
    assert measured["pfr"][1] - measured["orc"][1] > 0.15


def test_truncation_at_4_bits():
    check_reference(4, 8000, 0.03)


def test_truncation_at_8_bits():
    check_reference(8, 1000, 0.05)


@pytest.mark.slow
def test_truncation_at_14_bits():
    check_reference(14, 2000, 0.08)


def test_mrc_and_orc_sample_the_same_law():
    samples = [
        reverse.encode(
            gaussian(2.0, 1.0), STANDARD, method=method, seed=seed, block=torch.arange(5000), candidates=32
        ).sample
        for seed, method in enumerate(("mrc", "orc"))
    ]
    assert stats.ks_2samp(*(s.flatten().numpy() for s in samples)).pvalue > ALARM


def test_more_candidates_less_bias_and_it_is_reported():
    mean, blocks = math.sqrt(2 * 4 * math.log(2)), torch.arange(1500)
    errors, masses, sizes = [], [], []
    for candidates in (16, 256, 4096):
        code = reverse.encode(
            gaussian(mean, 1.0), STANDARD, method="orc", seed=12, block=blocks, candidates=candidates
        )
        errors.append(float(code.sample.mean()) - mean)
        masses.append(float(code.log_mass.mean()))
        sizes.append(float(code.effective_size.mean()))
    assert errors == sorted(errors) and masses == sorted(masses) and sizes == sorted(sizes)
    assert errors[0] < -0.5 and abs(errors[-1]) < 0.15


def test_the_report_on_the_weights_is_that_of_all_candidates():
    target, candidates = gaussian(1.0, 0.7), 200
    code = reverse.encode(target, STANDARD, method="mrc", seed=13, block=4, candidates=candidates)
    points = reverse.decode(torch.arange(candidates), STANDARD, seed=13, block=torch.full((candidates,), 4))
    weights = torch.exp(target.log_density(points) - STANDARD.log_density(points))
    assert float(code.log_mass) == pytest.approx(float(torch.log(weights.mean())), rel=1e-9)
    size = weights.sum() ** 2 / (weights**2).sum()
    assert float(code.effective_size) == pytest.approx(float(size), rel=1e-9)
    assert int(code.examined) == candidates


def test_a_truncated_pfr_that_could_stop_is_exact():
    target, blocks = gaussian(0.5, 0.8), torch.arange(500)
    exact = reverse.encode(target, STANDARD, seed=14, block=blocks)
    cut = reverse.encode(target, STANDARD, seed=14, block=blocks, candidates=8)
    assert 0 < int(cut.exact.sum()) < 500
    assert torch.equal(cut.exact, exact.examined <= 8)
    assert torch.equal(cut.index[cut.exact], exact.index[cut.exact])


def test_candidates_by_entry():
    target = DiagonalGaussian(torch.full((40, 1), 2.0), torch.ones(40, 1))
    counts = torch.tensor([1, 3, 64, 1000]).repeat(10)
    code = reverse.encode(target, STANDARD, method="orc", seed=15, candidates=counts)
    assert bool((code.index < counts).all()) and torch.equal(code.examined, counts)
    assert code.support == 1000
    for entry in range(4):
        alone = reverse.encode(
            gaussian(2.0, 1.0), STANDARD, method="orc", seed=15, block=entry, candidates=int(counts[entry])
        )
        assert alone.index == code.index[entry]


# --- Lengths -------------------------------------------------------------------------------------


@pytest.mark.parametrize("rho", [0.3, 0.8, 0.97, 0.999])
def test_lengths_of_exact_pfr(rho):
    n = 4000 if rho < 0.99 else 1000
    x = torch.randn(n, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    target = DiagonalGaussian(rho * x, torch.full_like(x, math.sqrt(1 - rho**2)))
    kl = float(ratios.divergence_bits(target, STANDARD).mean())
    code = reverse.encode(target, STANDARD, seed=16, kl_bits=kl)
    log2_k = torch.log2(code.index + 1.0)
    assert float(log2_k.mean()) < kl + KL_SLACK
    assert kl < float(code.bits.mean()) < kl + math.log2(kl + 1) + 4
    unknown = reverse.encode(target, STANDARD, seed=16)  # Elias-delta
    assert torch.equal(unknown.index, code.index)
    assert float(unknown.bits.mean()) < kl + 2 * math.log2(1 + kl) + 5.2099


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kl_bits", [None, 4.0, "each"])
def test_bytes_and_back(method, kl_bits):
    n = 3000
    mean = torch.linspace(0.5, 2.5, n, dtype=torch.float64)[:, None]
    target = DiagonalGaussian(mean, torch.ones_like(mean))
    if kl_bits == "each":
        kl_bits = ratios.divergence_bits(target, STANDARD)
    code = reverse.encode(target, STANDARD, method=method, seed=17, candidates=256, kl_bits=kl_bits)
    data = reverse.pack(code, kl_bits=kl_bits)
    assert abs(8 * len(data) - float(code.bits.sum())) < 0.001 * 8 * len(data) + 40
    index, cell = reverse.unpack(data, n, method=method, kl_bits=kl_bits, support=code.support)
    assert cell is None and torch.equal(index, code.index)
    assert torch.equal(reverse.decode(index, STANDARD, method=method, seed=17), code.sample)


# --- Both sides agree ----------------------------------------------------------------------------


def test_golden_sample():
    # These numbers are part of every stream that was ever written.
    proposal = DiagonalGaussian(f64(0.0, 1.0, 2.0), f64(1.0, 0.5, 3.0))
    index = torch.tensor([0, 1, 5, 123_456_789, 2**32 - 1])
    sample = reverse.decode(index, proposal, seed=2024, step=3, block=17)
    assert [value.hex() for value in sample[:, 0].tolist()] == GOLDEN_GAUSSIAN
    box = Uniform(f64(-1.0), f64(2.0))
    sample = reverse.decode(index, box, seed=2024, step=3, block=17)
    assert [value.hex() for value in sample[:, 0].tolist()] == GOLDEN_UNIFORM
    symbols = reverse.decode(index, Finite.from_weights(torch.tensor([100, 20, 300])), seed=2024)
    assert symbols.tolist() == GOLDEN_SYMBOLS


GOLDEN_GAUSSIAN = [
    "-0x1.04188c2000000p+1",
    "0x1.436d7c0000000p-1",
    "0x1.196d380000000p+0",
    "-0x1.1306500000000p-4",
    "0x1.8e6f108000000p-1",
]
GOLDEN_UNIFORM = [
    "-0x1.bf4075bb00000p-1",
    "0x1.63a0a96080000p+0",
    "0x1.0d6cd69d00000p-1",
    "0x1.fa64376a00000p-2",
    "0x1.a203a61100000p-1",
]
GOLDEN_SYMBOLS = [2, 2, 2, 0, 2]


@pytest.mark.parametrize("lanes", [1, 2, 3, 4, 5, 6, 8, 11])
def test_batch_order_chunks_and_lanes_do_not_matter(lanes):
    target = DiagonalGaussian(torch.full((60, lanes), 0.4), torch.full((60, lanes), 0.8))
    proposal = DiagonalGaussian(torch.zeros(lanes), torch.ones(lanes))
    code = reverse.encode(target, proposal, seed=18, block=5)
    assert torch.equal(reverse.decode(code.index, proposal, seed=18, block=5), code.sample)
    some = torch.tensor([59, 3, 20])
    part = DiagonalGaussian(target.mean[some], target.std[some])
    again = reverse.encode(part, proposal, seed=18, block=5 + some)
    assert torch.equal(again.index, code.index[some]) and torch.equal(again.sample, code.sample[some])
    other = reverse.encode(target, proposal, seed=19, block=5)
    assert not torch.equal(other.index, code.index)


def test_float32_search_finds_nearly_always_the_same():
    blocks = torch.arange(500)
    codes = [
        reverse.encode(
            gaussian(2.0, 1.0), STANDARD, method="orc", seed=20, block=blocks, candidates=512, dtype=dtype
        )
        for dtype in (torch.float32, torch.float64)
    ]
    same = codes[0].index == codes[1].index
    assert float(same.double().mean()) > 0.99
    assert torch.equal(codes[0].sample[same], codes[1].sample[same])


def test_gradients_are_not_recorded():
    mean = torch.zeros(3, 1, requires_grad=True)
    code = reverse.encode(DiagonalGaussian(mean, torch.full((3, 1), 0.5)), STANDARD, seed=21)
    assert not code.sample.requires_grad


@pytest.mark.parametrize("method", METHODS)
def test_an_empty_batch(method):
    target = DiagonalGaussian(torch.zeros(0, 2), torch.ones(0, 2))
    proposal = DiagonalGaussian(torch.zeros(2), torch.ones(2))
    code = reverse.encode(target, proposal, method=method, seed=0, candidates=16, kl_bits=1.0)
    assert code.index.shape == (0,) and code.sample.shape == (0, 2) and reverse.pack(code, kl_bits=1.0) == b""
    assert reverse.decode(code.index, proposal, method=method, seed=0).shape == (0, 2)
    none = torch.zeros(0, dtype=torch.int64)
    assert reverse.encode(gaussian(0.0, 0.5), STANDARD, seed=0, block=none).index.shape == (0,)


def test_speed():
    # 5e5 candidates of 8 dimensions a second on one core, the drawing included; the best of five runs by
    # CPU time, which other processes disturb less than the wall clock.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        mean = torch.full((16, 8), 1.2)
        target = DiagonalGaussian(mean, torch.ones_like(mean))
        proposal = DiagonalGaussian(torch.zeros(8), torch.ones(8))
        best = math.inf
        for seed in range(5):
            start = time.process_time()
            reverse.encode(target, proposal, method="orc", seed=seed, candidates=2**13, dtype=torch.float32)
            best = min(best, time.process_time() - start)
    finally:
        torch.set_num_threads(threads)
    assert 16 * 2**13 / best > 5e5


# --- Bad arguments -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error, words, call",
    [
        (ShapeError, "shapes", lambda: DiagonalGaussian(torch.zeros(2), torch.ones(3))),
        (ShapeError, "shapes", lambda: DiagonalGaussian(torch.zeros(()), torch.ones(()))),
        (ValueError, "positive", lambda: gaussian(0.0, 0.0)),
        (ValueError, "positive", lambda: gaussian(0.0, -1.0)),
        (ValueError, "NaN", lambda: gaussian(math.nan, 1.0)),
        (ValueError, "NaN", lambda: gaussian(0.0, math.inf)),
        (ValueError, "floating", lambda: DiagonalGaussian(torch.zeros(1, dtype=torch.int64), torch.ones(1))),
        (ValueError, "empty", lambda: Uniform(f64(1.0), f64(1.0))),
        (ValueError, "no mass", lambda: TruncatedGaussian(f64(0.0), f64(1.0), f64(1e200), f64(2e200))),
        (ValueError, "log_softmax", lambda: Finite(f64(0.0, 0.0))),
        (ValueError, "log_softmax", lambda: Finite(f64(math.nan, 0.0))),
        (ValueError, "integers", lambda: Finite.from_weights(f64(0.5, 0.5))),
        (ValueError, "integers", lambda: Finite.from_weights(torch.tensor([1, -1]))),
        (ValueError, "2\\^31", lambda: Finite.from_weights(torch.tensor([2**31, 1]))),
        (ShapeError, "dimensions", lambda: encode(
            gaussian(0.0, 0.5), DiagonalGaussian(torch.zeros(2), torch.ones(2)))),
        (ShapeError, "broadcast", lambda: encode(
            DiagonalGaussian(torch.zeros(2, 1), torch.full((2, 1), 0.5)),
            DiagonalGaussian(torch.zeros(3, 1), torch.ones(3, 1)))),
        (ShapeError, "broadcast", lambda: encode(
            DiagonalGaussian(torch.zeros(2, 1), torch.full((2, 1), 0.5)), STANDARD, block=torch.arange(3))),
        (ValueError, "unbounded", lambda: encode(gaussian(1.0, 1.0), STANDARD)),
        (ValueError, "unbounded", lambda: encode(gaussian(0.0, 1.5), STANDARD)),
        (ValueError, "absolutely continuous", lambda: encode(
            gaussian(0.0, 0.5), Uniform(f64(-1.0), f64(1.0)))),
        (ValueError, "absolutely continuous", lambda: encode(
            Uniform(f64(0.0), f64(2.0)), Uniform(f64(0.0), f64(1.0)))),
        (ValueError, "absolutely continuous", lambda: encode(
            Finite.from_probs(f64(0.5, 0.5)), Finite.from_weights(torch.tensor([1, 0])))),
        (ShapeError, "symbols", lambda: encode(Finite.from_probs(f64(0.5, 0.5)), Finite.uniform(3))),
        (ShapeError, "both must be Finite", lambda: encode(gaussian(0.0, 0.5), Finite.uniform(3))),
        (ValueError, "integer weights", lambda: encode(Finite.uniform(2), Finite.from_probs(f64(0.5, 0.5)))),
        (ValueError, "cannot be drawn", lambda: encode(
            gaussian(0.0, 0.5), TruncatedGaussian(f64(0.0), f64(1.0), f64(-9.0), f64(9.0)))),
        (ValueError, "log_bound", lambda: encode(Density(lambda z: z[..., 0], lanes=1), STANDARD)),
        (ValueError, "kl_bits", lambda: encode(
            Density(lambda z: z[..., 0], lanes=1), STANDARD, method="orc")),
        (ValueError, "exceeds log_bound", lambda: encode(gaussian(1.0, 0.5), STANDARD, log_bound=0.1)),
        (ValueError, "NaN", lambda: encode(
            Density(lambda z: z[..., 0] * math.nan, lanes=1), STANDARD, method="orc", candidates=4)),
        (ShapeError, "last dimension", lambda: encode(
            Density(lambda z: -z, lanes=1), STANDARD, method="orc", candidates=4)),
        (ValueError, "choose one of", lambda: encode(gaussian(0.0, 0.5), STANDARD, method="best")),
        (ValueError, "candidates", lambda: encode(gaussian(0.0, 0.5), STANDARD, candidates=0)),
        (ValueError, "2\\^24", lambda: encode(gaussian(9.0, 1.0), STANDARD, method="orc")),
        (ValueError, "number of a block", lambda: encode(
            gaussian(0.0, 0.5), STANDARD, block=torch.tensor([0.5]))),
        (ValueError, "number of a block", lambda: encode(gaussian(0.0, 0.5), STANDARD, block=0.5)),
        (ValueError, "block", lambda: encode(gaussian(0.0, 0.5), STANDARD, block=2**32)),
        (ValueError, "seed", lambda: encode(gaussian(0.0, 0.5), STANDARD, seed=-1)),
        (ValueError, "divergence", lambda: encode(gaussian(0.0, 0.5), STANDARD, kl_bits=-1.0)),
        (ValueError, "divergence", lambda: encode(gaussian(0.0, 0.5), STANDARD, kl_bits=math.nan)),
        (SgaError, "max_candidates", lambda: encode(gaussian(5.0, 0.5), STANDARD, max_candidates=64)),
        (SgaError, "none of 8", lambda: encode(
            Uniform(f64(4.0), f64(4.1)), STANDARD, method="orc", candidates=8)),
        (ValueError, "cells", lambda: encode(gaussian(0.0, 0.5), STANDARD, method="hybrid")),
        (ValueError, "number", lambda: reverse.decode(torch.tensor([-1]), STANDARD, seed=0)),
        (ValueError, "number", lambda: reverse.decode(torch.tensor([2**32]), STANDARD, seed=0)),
        (ValueError, "number", lambda: reverse.decode(torch.tensor([1.0]), STANDARD, seed=0)),
        (ShapeError, "log_bound", lambda: encode(gaussian(0.0, 0.5), STANDARD, log_bound=torch.ones(3))),
        (ShapeError, "candidates", lambda: encode(
            gaussian(0.0, 0.5), STANDARD, candidates=torch.tensor([2, 3]))),
        (ShapeError, "kl_bits", lambda: encode(gaussian(0.0, 0.5), STANDARD, kl_bits=torch.ones(3))),
        (ShapeError, "block", lambda: reverse.decode(
            torch.tensor([1]), STANDARD, seed=0, block=torch.arange(3))),
        (ShapeError, "broadcast", lambda: reverse.decode(
            torch.tensor([1]), DiagonalGaussian(torch.zeros(2, 1), torch.ones(2, 1)), seed=0)),
        (BitstreamError, "words", lambda: reverse.unpack(b"abc", 1, method="pfr")),
        (ShapeError, "kl_bits", lambda: reverse.unpack(b"", 3, method="pfr", kl_bits=f64(1.0, 2.0))),
    ],
)  # fmt: skip
def test_bad_arguments(error, words, call):
    with pytest.raises(error, match=words):
        call()


def encode(target, proposal, **options):
    return reverse.encode(target, proposal, **{"seed": 0, **options})
