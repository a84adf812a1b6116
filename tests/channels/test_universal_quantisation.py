# SPDX-License-Identifier: Apache-2.0
"""Claims of channels/universal.py (Agustsson & Theis 2020): universal quantisation is additive uniform
noise at the rate h(y + U); soft rounding leads from there to hard rounding. Statistical tests are
two-sided with a fixed seed and a false-alarm rate of 1e-4 each."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import integrate, stats

from compressai_sga.channels import prng
from compressai_sga.channels.universal_quantisation import (
    conditional_mean,
    dequantise,
    dither,
    noisy,
    quantise,
    soft_round_inverse,
)
from compressai_sga.relaxations import soft_round

ALARM = 1e-4
TEMPERATURES = (math.inf, 10.0, 1.0, 0.3, 0.1)
SOURCES = {"gaussian": stats.norm(0.3, 0.7), "laplace": stats.laplace(-0.2, 0.5)}


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(5)


def uniforms(n: int) -> torch.Tensor:
    return prng.uniform(11, lanes=n)


# --- The channel -------------------------------------------------------------------------------


@pytest.mark.parametrize("step", [0.25, 1.0, 3.0])
def test_reconstruction_is_distributed_as_y_plus_uniform_noise(step):
    """Given y: y_hat - y is uniform on [-D/2, D/2), whatever y is; Kolmogorov-Smirnov."""
    n = 200_000
    u = dither(1, (n,), block=3)
    for y in (0.0, 0.5, 0.37, -7.1):
        y = torch.full((n,), y, dtype=torch.float64)
        error = (dequantise(quantise(y, u, step), u, step) - y) / step
        assert stats.kstest(error.numpy(), "uniform", (-0.5, 1)).pvalue > ALARM


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("source", SOURCES)
def test_codec_and_training_noise_have_one_law(source, temperature):
    """The point of the paper: y_hat of the codec and r_T(s_T(y) + u) of training; two-sample KS."""
    n = 100_000
    y = torch.from_numpy(SOURCES[source].ppf(uniforms(n).numpy()))
    u = dither(1, (n,))
    coded = dequantise(quantise(y, u, 0.8, temperature), u, 0.8, temperature)
    fresh = torch.rand(n, generator=generator(), dtype=torch.float64) - 0.5
    trained = noisy(y.flip(0), fresh, 0.8, temperature)
    assert stats.ks_2samp(coded.numpy(), trained.numpy()).pvalue > ALARM


@pytest.mark.parametrize("step", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("source", SOURCES)
def test_rate_is_the_differential_entropy_of_the_noisy_source(source, step):
    """H[K | u] = h(y + D U) - log2 D to 1 %: the entropy model given the dither, on real integers."""
    law, n = SOURCES[source], 200_000
    y = torch.from_numpy(law.ppf(uniforms(n).numpy()))
    u = dither(1, (n,))
    k = quantise(y, u, step).numpy()
    p = law.cdf((k + u.numpy() + 0.5) * step) - law.cdf((k + u.numpy() - 0.5) * step)

    def density(v):
        return (law.cdf(v + step / 2) - law.cdf(v - step / 2)) / step

    h_nats, _ = integrate.quad(lambda v: stats_entropy(density(v)), -25, 25, limit=500, points=[0])
    assert -np.log2(p).mean() == pytest.approx(h_nats / math.log(2) - math.log2(step), rel=0.01)


def stats_entropy(p: float) -> float:
    return -p * math.log(p) if p > 0 else 0.0


def test_steps_for_each_channel():
    y = torch.randn(2, 3, 4, 5, generator=generator(), dtype=torch.float64)
    step = torch.tensor([0.1, 1.0, 4.0], dtype=torch.float64).reshape(3, 1, 1)
    u = dither(1, (3, 4, 5))
    y_hat = dequantise(quantise(y, u, step), u, step)
    assert ((y_hat - y).abs() <= step / 2 + 1e-12).all()
    for c in range(3):
        alone = dequantise(quantise(y[:, c], u[c], float(step[c])), u[c], float(step[c]))
        assert torch.equal(alone, y_hat[:, c])


def test_integer_tensors_are_numbers_like_others():
    k, u = torch.tensor([1, 2, -3]), torch.tensor([0.1, 0.2, 0.3])
    torch.testing.assert_close(dequantise(k, u, 1.5), torch.tensor([1.65, 3.3, -4.05]))
    y = torch.tensor([10, -7, 3])
    assert torch.equal(quantise(y, u, 2.5), quantise(y.float(), u, 2.5))


@pytest.mark.parametrize("temperature", [0.0, 1e-9])
def test_hard_rounding_is_the_limit(temperature):
    y = 5 * torch.randn(10_000, generator=generator())
    u = dither(1, y.shape).float()
    assert torch.equal(dequantise(quantise(y, u, 1.0, temperature), u, 1.0, temperature), y.round())
    assert torch.equal(noisy(y, u, 1.0, temperature), y.round())


def test_universal_quantisation_is_the_other_limit():
    y = 5 * torch.randn(10_000, generator=generator(), dtype=torch.float64)
    u = dither(1, y.shape)
    without = dequantise(quantise(y, u), u)
    nearly = dequantise(quantise(y, u, 1.0, 900.0), u, 1.0, 900.0)
    torch.testing.assert_close(nearly, without, rtol=0, atol=1e-5)


def test_dither_is_that_of_the_seed_and_the_address():
    assert torch.equal(dither(1, (2, 3)), dither(1, (2, 3)))
    assert torch.equal(dither(1, (6,)), dither(1, (2, 3)).flatten())
    others = [dither(2, (6,)), dither(1, (6,), block=1), dither(1, (6,), step=1)]
    assert not any(torch.equal(other, dither(1, (6,))) for other in others)
    assert dither(1, (0,)).shape == (0,)


# --- Soft rounding and its inverse ---------------------------------------------------------------


@pytest.mark.parametrize("temperature", [1e4, 10.0, 1.0, 0.3, 0.1, 0.05])
def test_inverse_of_soft_rounding(temperature):
    y = torch.linspace(-2.4, 2.4, 5001, dtype=torch.float64)
    soft = soft_round(y, temperature)
    torch.testing.assert_close(soft_round_inverse(soft, temperature), y, rtol=0, atol=1e-8)


@pytest.mark.parametrize("alpha", [0.5, 3.0, 8.0, 15.0])
def test_conditional_mean_of_a_locally_uniform_variable(alpha):
    """r(v) against the average of those y whose s(y) + U comes near v; 6 standard errors."""
    n = 400_000
    draws = torch.rand(2, n, generator=generator(), dtype=torch.float64)
    y, u = 4 * draws[0] - 2, draws[1] - 0.5
    v = soft_round(y, 1 / alpha) + u
    for centre in (0.1, 0.45, 0.8):
        near = (v - centre).abs() < 0.01
        expected = conditional_mean(v[near], 1 / alpha).mean()
        error = y[near].std() / math.sqrt(int(near.sum()))
        assert abs(float(y[near].mean() - expected)) < 6 * float(error)


@pytest.mark.parametrize("alpha", [15.0, 20.0, 30.0, 80.0])
def test_inverse_stays_exact_where_atanh_loses_its_digits(alpha):
    """float32, next to the pole: m + atanh(2 tanh(alpha / 2)(v - m)) / alpha by exact fractions."""
    mpmath = pytest.importorskip("mpmath")
    mpmath.mp.dps = 60
    for gap in (2.0**-24, 2.0**-20, 2.0**-12):
        v = torch.tensor(1 - gap, dtype=torch.float32)
        t = mpmath.tanh(mpmath.mpf(alpha) / 2)
        exact = 0.5 + mpmath.atanh(2 * t * (mpmath.mpf(float(v)) - 0.5)) / mpmath.mpf(alpha)
        assert float(soft_round_inverse(v, 1 / alpha)) == pytest.approx(float(exact), abs=3e-7)


@pytest.mark.parametrize("temperature", [1e4, 1.0, 0.1, 0.01, 1e-3, 1e-9, 0.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_values_and_gradients_are_finite_at_integers_and_half_integers(temperature, dtype):
    v = (torch.arange(-8, 9, dtype=dtype) / 2).requires_grad_()
    for function in (soft_round_inverse, conditional_mean):
        out = function(v, temperature)
        (gradient,) = torch.autograd.grad(out.sum(), v)
        assert torch.isfinite(out).all() and torch.isfinite(gradient).all()
        assert ((out - v).abs() <= 0.5 + 1e-6).all()


@pytest.mark.parametrize("temperature", [1.0, 0.3, 0.1])
def test_gradient_of_training_is_that_of_the_mean_reconstruction(temperature):
    """d/dy E_u[r(s(y) + u)] = s'(y): by quadrature over u, and without the variance of r'."""
    y = torch.linspace(-0.9, 0.9, 19, dtype=torch.float64).requires_grad_()
    u = (torch.arange(4000, dtype=torch.float64) + 0.5) / 4000 - 0.5
    (ours,) = torch.autograd.grad(noisy(y[:, None], u, 1.0, temperature).mean(1).sum(), y)

    def mean(shift: float) -> torch.Tensor:
        v = soft_round(y.detach() + shift, temperature)[:, None] + u
        return conditional_mean(v, temperature).mean(1)

    numeric = (mean(1e-2) - mean(-1e-2)) / 2e-2
    torch.testing.assert_close(ours, numeric, rtol=0.03, atol=0.03)
    (single,) = torch.autograd.grad(noisy(y, u[:19], 1.0, temperature).sum(), y)
    torch.testing.assert_close(single, ours)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda y: quantise(y, y, step=0.0), "positive"),
        (lambda y: dequantise(y, y, step=torch.tensor([1.0, -1.0])), "-1.0"),
        (lambda y: quantise(y, y, step=float("nan")), "positive"),
        (lambda y: noisy(y, y, temperature=-0.1), "-0.1"),
        (lambda y: conditional_mean(y, float("nan")), "nan"),
    ],
)
def test_wrong_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call(torch.zeros(2))
