# SPDX-License-Identifier: Apache-2.0
"""Claims of diffusion/samplers.py, on Gaussian sources with their exact denoisers: the law at the end, the
probability flow's map, first and second order. Statistical tests are two-sided with a fixed seed."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import stats

from compressai_sga.diffusion.gaussian import DiagonalGaussian, FullGaussian
from compressai_sga.diffusion.samplers import ancestral_step, ddim_step, sample, torch_noise
from compressai_sga.diffusion.schedules import (
    Cosine,
    LinearLogSnr,
    RectifiedFlow,
    alpha_sigma,
    flow_time,
    grid,
)

ALARM = 1e-4
DETERMINISTIC = {"ddim": 1, "dpm2m": 2, "heun": 2}  # and their orders
MEAN = torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64)
COVARIANCE = torch.tensor([[1.0, 0.6, 0.1], [0.6, 0.8, -0.1], [0.1, -0.1, 0.1]], dtype=torch.float64)


def generator(seed: int = 7) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 7) -> torch.Tensor:
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


def as_tensor(level: float | list[float]) -> torch.Tensor:
    return torch.tensor(level, dtype=torch.float64)


# --- Single steps ------------------------------------------------------------------------------


@pytest.mark.parametrize("low, high", [(-4.0, -3.9), (-2.0, 3.0), (0.0, 15.0)])
def test_ancestral_step_is_the_posterior_of_two_noise_levels(low, high):
    """b z + c x with sigma_t|s^2 = sigma_t^2 - (a_t/a_s)^2 sigma_s^2, b = a_t sigma_s^2 / (a_s sigma_t^2),
    c = sigma_t|s^2 a_s / sigma_t^2, std sigma_t|s sigma_s / sigma_t."""
    (a_t, a_s), (s_t, s_s) = (part.tolist() for part in alpha_sigma(as_tensor([low, high])))
    between = s_t**2 - (a_t / a_s) ** 2 * s_s**2
    step = ancestral_step(low, high)
    assert step.keep == pytest.approx(a_t * s_s**2 / (a_s * s_t**2), rel=1e-9)
    assert step.pull == pytest.approx(between * a_s / s_t**2, rel=1e-9)
    assert step.std == pytest.approx(math.sqrt(between) * s_s / s_t, rel=1e-9)
    # Together they keep the marginal: keep alpha_t + pull = alpha_s, and the variances add up.
    assert step.keep * a_t + step.pull == pytest.approx(a_s, rel=1e-12)
    assert (step.keep * s_t) ** 2 + step.std**2 == pytest.approx(s_s**2, rel=1e-12)


def test_ddim_step_keeps_the_noise_and_is_an_euler_step_of_the_rectified_flow():
    low, high = -1.0, 1.5
    (a_t, a_s), (s_t, s_s) = (part.tolist() for part in alpha_sigma(as_tensor([low, high])))
    step = ddim_step(low, high)
    assert step.keep * a_t + step.pull == pytest.approx(a_s, rel=1e-12)
    assert step.keep * s_t == pytest.approx(s_s, rel=1e-12) and step.std == 0
    z, x = 0.3, -0.8
    time, later = float(flow_time(low)), float(flow_time(high))
    z_rf = z / (a_t + s_t)
    moved = z_rf + (later - time) * (z_rf - x) / time  # dz/ds = u = (z - x) / s
    assert (step.keep * z + step.pull * x) / (a_s + s_s) == pytest.approx(moved, rel=1e-12)


@pytest.mark.parametrize("make", [ancestral_step, ddim_step])
def test_steps_at_the_ends(make):
    assert make(-3.0, math.inf) == (0.0, 1.0, 0.0)
    nearly, infinite = make(-100.0, 1.0), make(-math.inf, 1.0)
    assert infinite == pytest.approx(nearly, abs=1e-12)
    for low, high in [(1.0, 1.0), (1.0, 0.0), (math.inf, math.inf), (math.nan, 0.0)]:
        with pytest.raises(ValueError, match="must rise"):
            make(low, high)


# --- The law at the end ------------------------------------------------------------------------


def law_at_the_end(source, mean, covariance, levels):
    """Mean and covariance to which the steps lead exactly: each is affine in z, with noise of its own."""
    n = len(mean)
    for low, high in zip(levels[:-1].tolist(), levels[1:].tolist()):
        step, level = ancestral_step(low, high), as_tensor(low)
        offset = source(torch.zeros(1, n, dtype=torch.float64), level)[0]
        linear = (source(torch.eye(n, dtype=torch.float64), level) - offset).mT
        move = step.keep * torch.eye(n, dtype=torch.float64) + step.pull * linear
        mean = move @ mean + step.pull * offset
        covariance = move @ covariance @ move.mT + step.std**2 * torch.eye(n, dtype=torch.float64)
    return mean, covariance


def check_law(got, mean, covariance):
    """z-tests of every mean and covariance of the rows, two-sided, false alarm ALARM each."""
    n, bound = len(got), stats.norm.isf(ALARM / 2)
    deviation = (got.mean(0) - mean) / (covariance.diagonal() / n).sqrt()
    assert float(deviation.abs().max()) < bound
    spread = (covariance**2 + torch.outer(covariance.diagonal(), covariance.diagonal())) / n
    deviation = (got.mT.cov().reshape(covariance.shape) - covariance) / spread.sqrt()
    assert float(deviation.abs().max()) < bound


def test_ancestral_sampling_draws_the_source():
    """40 000 draws in 100 steps against what these lead to exactly: 9 numbers, false alarm 1e-4 each."""
    source, n, levels = FullGaussian(MEAN, COVARIANCE), 40_000, grid(Cosine(), 100)
    got = sample(source, normal(n, 3), levels, noise=torch_noise(generator(8)))
    noise = torch.zeros(3, dtype=torch.float64), torch.eye(3, dtype=torch.float64)
    check_law(got, *law_at_the_end(source, *noise, levels))


def test_ancestral_law_tends_to_the_source_as_one_over_the_steps():
    """Exact, no draws: the steps take the posterior at x_hat, too small a variance by a share of 1/n."""
    source = FullGaussian(MEAN, COVARIANCE)
    noise = torch.zeros(3, dtype=torch.float64), torch.eye(3, dtype=torch.float64)
    laws = [law_at_the_end(source, *noise, grid(Cosine(), steps)) for steps in (100, 200, 400)]
    errors = [float((covariance - COVARIANCE).abs().max()) for _, covariance in laws]
    assert errors[0] < 0.05 and all(bool((mean - MEAN).abs().max() < 1e-6) for mean, _ in laws)
    for coarse, fine in zip(errors, errors[1:]):
        assert math.log2(coarse / fine) == pytest.approx(1, abs=0.1)


def test_ancestral_sampling_is_gaussian():
    """Kolmogorov-Smirnov, 20 000 draws in 50 steps against the law to which they lead; false alarm 1e-4."""
    source, levels = DiagonalGaussian(0.3, 0.04), grid(Cosine(), 50)
    got = sample(source, normal(20_000, 1), levels, noise=torch_noise(generator(9)))
    noise = torch.zeros(1, dtype=torch.float64), torch.eye(1, dtype=torch.float64)
    mean, covariance = law_at_the_end(source, *noise, levels)
    law = stats.norm(float(mean), math.sqrt(float(covariance)))
    assert stats.kstest(got.flatten().numpy(), law.cdf).pvalue > ALARM


def test_ancestral_from_a_known_z_is_the_posterior():
    """From one z, E[x | z] and Var[x | z], what DiffC-A reconstructs: 20 000 draws against the steps'
    exact law, false alarm 1e-4 each, and that against the posterior."""
    source, n, level = DiagonalGaussian(0.0, 1.0), 20_000, -0.5
    z = torch.full((n, 1), 0.9, dtype=torch.float64)
    levels = torch.cat([torch.linspace(level, 12, 400, dtype=torch.float64), as_tensor([math.inf])])
    mean, covariance = law_at_the_end(source, z[0], torch.zeros(1, 1, dtype=torch.float64), levels)
    assert float(mean) == pytest.approx(float(source(z[:1], level)), abs=1e-6)
    assert float(covariance) == pytest.approx(float(source.posterior_variance(z[:1], level)), rel=0.03)
    check_law(sample(source, z, levels, noise=torch_noise(generator(10))), mean, covariance)


# --- The probability flow ----------------------------------------------------------------------


@pytest.mark.parametrize("method", DETERMINISTIC)
@pytest.mark.parametrize("schedule", [Cosine(), LinearLogSnr(-12, 12), RectifiedFlow()], ids=repr)
def test_probability_flow_ends_where_the_closed_form_says(method, schedule):
    """x_i = m_i + sqrt(lam_i / v_i) (z_i - alpha m_i), from the middle of the schedule."""
    lam = torch.tensor([2.0, 1.0, 0.1, 0.01], dtype=torch.float64)
    source = DiagonalGaussian(torch.tensor([0.0, 1.0, -0.5, 0.2], dtype=torch.float64), lam)
    levels, z = grid(schedule, 200, start=0.5), normal(6, 4)
    got = sample(source, z, levels, method=method)
    tolerance = 0.03 if method == "ddim" else 2e-3
    assert torch.allclose(got, source.flow(z, levels[0]), atol=tolerance)


@pytest.mark.parametrize("method, order", DETERMINISTIC.items())
@pytest.mark.parametrize("variance", [0.05, 4.0])
def test_order_of_convergence(method, order, variance):
    """Twice the steps, half or a quarter of the error, between two finite log-SNRs."""
    source, z = DiagonalGaussian(0.4, variance), normal(16, 1)
    exact = source.flow(z, -4.0, to=5.0)
    errors = []
    for steps in (80, 160, 320):
        levels = torch.linspace(-4, 5, steps + 1, dtype=torch.float64)
        errors.append(float((sample(source, z, levels, method=method) - exact).norm()))
    for coarse, fine in zip(errors, errors[1:]):
        assert math.log2(coarse / fine) == pytest.approx(order, abs=0.2)


def test_second_order_on_an_uneven_grid():
    """dpm2m weighs by the ratio of its steps; with the wrong one it falls back to first order."""
    source, z = DiagonalGaussian(0.4, 0.3), normal(16, 1)
    errors = []
    for steps in (40, 80):
        levels = -4 + 9 * torch.linspace(0, 1, steps + 1, dtype=torch.float64) ** 2
        errors.append(
            float((sample(source, z, levels, method="dpm2m") - source.flow(z, -4.0, to=5.0)).norm())
        )
    assert math.log2(errors[0] / errors[1]) == pytest.approx(2, abs=0.3)


def test_second_order_needs_fewer_calls():
    source, z = DiagonalGaussian(0.0, 0.1), normal(32, 1)
    levels = grid(Cosine(), 20, start=0.9)
    exact = source.flow(z, levels[0])
    first, second = ((sample(source, z, levels, method=m) - exact).norm() for m in ("ddim", "dpm2m"))
    assert second < first / 3


# --- The contract ------------------------------------------------------------------------------


class Counting:
    """Tells how often it was called, and at which levels."""

    def __init__(self) -> None:
        self.levels: list[float] = []

    def __call__(self, z: torch.Tensor, log_snr: torch.Tensor) -> torch.Tensor:
        assert log_snr.dtype == torch.float64 and log_snr.shape == () and not torch.is_grad_enabled()
        self.levels.append(float(log_snr))
        return 0.5 * z


@pytest.mark.parametrize("method, calls", [("ancestral", 5), ("ddim", 5), ("dpm2m", 5), ("heun", 9)])
def test_budget_progress_and_the_last_estimate(method, calls):
    counting, seen, levels = Counting(), [], grid(Cosine(), 5)
    z = normal(2, 3, 4, 4).float()
    kept = z.clone()
    got = sample(
        counting,
        z,
        levels,
        method=method,
        noise=torch_noise(generator()),
        progress=lambda step, steps, x_hat: seen.append((step, steps, x_hat)),
    )
    assert len(counting.levels) == calls and set(counting.levels) == set(levels[:-1].tolist())
    assert [entry[:2] for entry in seen] == [(i, 5) for i in range(5)]
    assert got.shape == z.shape and got.dtype == torch.float32
    assert torch.equal(got, seen[-1][2]) and torch.equal(z, kept)


def test_noise_is_the_callers_and_asked_for_once_a_noisy_step():
    asked = []

    def noise(step, z):
        asked.append(step)
        return torch.full_like(z, float(step))

    first = sample(Counting(), normal(1, 2), grid(Cosine(), 4), noise=noise)
    assert asked == [0, 1, 2]
    torch.manual_seed(99)  # the global generator has no part in it
    assert torch.equal(first, sample(Counting(), normal(1, 2), grid(Cosine(), 4), noise=noise))


def test_same_generator_same_sample_and_batches_are_independent_without_noise():
    source, levels = DiagonalGaussian(0.2, 0.5), grid(Cosine(), 8)
    z = normal(4, 3)
    one, two = (sample(source, z, levels, noise=torch_noise(generator(1))) for _ in "ab")
    assert torch.equal(one, two)
    together = sample(source, z, levels, method="dpm2m")
    alone = torch.cat([sample(source, row[None], levels, method="dpm2m") for row in z])
    assert torch.allclose(together, alone, atol=1e-14)


def test_refusals():
    z, levels = normal(1, 2), grid(Cosine(), 3)
    with pytest.raises(ValueError, match="'euler'.*ancestral, ddim, dpm2m, heun"):
        sample(Counting(), z, levels, method="euler")
    with pytest.raises(ValueError, match="noise is missing.*torch_noise"):
        sample(Counting(), z, levels)
    with pytest.raises(ValueError, match="must rise"):
        sample(Counting(), z, levels.flip(0), method="ddim")
    with pytest.raises(ValueError, match="1 entries"):
        sample(Counting(), z, levels[:1], method="ddim")
