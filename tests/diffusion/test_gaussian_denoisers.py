# SPDX-License-Identifier: Apache-2.0
"""Claims of diffusion/gaussian.py: the denoisers are the conditional means of the joint Gaussian law, and the
flow keeps the law while it moves every point as the score says."""

from __future__ import annotations

import math

import pytest
import torch

from compressai_sga.diffusion.gaussian import DiagonalGaussian, FullGaussian
from compressai_sga.diffusion.schedules import alpha_sigma

MEAN = torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64)
COVARIANCE = torch.tensor([[1.0, 0.6, 0.1], [0.6, 0.8, -0.2], [0.1, -0.2, 0.5]], dtype=torch.float64)
LEVELS = (-8.0, -1.0, 0.0, 3.0, 9.0)


def normal(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


@pytest.mark.parametrize("level", LEVELS)
def test_denoiser_is_the_conditional_mean(level):
    """Against the textbook's formula with an explicit inverse: m + a C (a^2 C + s^2 I)^-1 (z - a m)."""
    alpha, sigma = (float(part) for part in alpha_sigma(level))
    z = normal(5, 3)
    marginal = alpha**2 * COVARIANCE + sigma**2 * torch.eye(3, dtype=torch.float64)
    gain = alpha * COVARIANCE @ torch.linalg.inv(marginal)
    source = FullGaussian(MEAN, COVARIANCE)
    assert torch.allclose(source(z, level), MEAN + (z - alpha * MEAN) @ gain.mT)
    assert torch.allclose(source.posterior_covariance(level), COVARIANCE - alpha * gain @ COVARIANCE)


@pytest.mark.parametrize("level", LEVELS)
def test_diagonal_full_and_scalar_agree(level):
    lam = torch.tensor([2.0, 0.3, 0.01], dtype=torch.float64)
    diagonal, full = DiagonalGaussian(MEAN, lam), FullGaussian(MEAN, lam.diag())
    z = normal(4, 3)
    assert torch.allclose(diagonal(z, level), full(z, level))
    assert torch.allclose(diagonal.flow(z, level), full.flow(z, level))
    assert torch.allclose(diagonal.draw(z).mean(0) - MEAN, lam.sqrt() * z.mean(0))
    assert torch.allclose(
        diagonal.posterior_variance(z, level)[0], full.posterior_covariance(level).diagonal()
    )
    scalar = DiagonalGaussian(0.5, 2.0)
    assert torch.allclose(scalar(z[:, :1], level), diagonal(z, level)[:, :1])


@pytest.mark.parametrize("level", LEVELS)
def test_flow_turns_the_marginal_into_the_source(level):
    """As a linear map A: A (a^2 C + s^2 I) A' = C, and a m goes to m."""
    alpha, sigma = (float(part) for part in alpha_sigma(level))
    source = FullGaussian(MEAN, COVARIANCE)
    offset = source.flow(alpha * MEAN[None], level)[0]
    assert torch.allclose(offset, MEAN)
    linear = (source.flow(torch.eye(3, dtype=torch.float64) + alpha * MEAN, level) - MEAN).mT
    marginal = alpha**2 * COVARIANCE + sigma**2 * torch.eye(3, dtype=torch.float64)
    assert torch.allclose(linear @ marginal @ linear.mT, COVARIANCE)


def test_flow_follows_the_denoiser():
    """Its derivative by the log-SNR is that of a DDIM step with x_hat, (a z - x_hat)-form by finite
    differences."""
    source, z, level, step = DiagonalGaussian(0.3, 0.4), normal(6, 1), 0.7, 1e-5
    moved = (source.flow(z, level, level + step) - source.flow(z, level, level - step)) / (2 * step)
    alpha, sigma = (float(part) for part in alpha_sigma(level))
    # keep = sigma_s / sigma_t and pull = alpha_s (1 - e^(-d/2)): derivatives -alpha^2 / 2 and alpha / 2.
    assert torch.allclose(moved, -(alpha**2) / 2 * z + alpha / 2 * source(z, level), atol=1e-8)


def test_flow_in_two_parts_and_back():
    source, z = FullGaussian(MEAN, COVARIANCE), normal(4, 3)
    assert torch.allclose(source.flow(source.flow(z, -2.0, 1.0), 1.0), source.flow(z, -2.0))
    assert torch.allclose(source.flow(source.flow(z, -2.0, 1.0), 1.0, -2.0), z)


def test_limits():
    source, z = DiagonalGaussian(0.3, 0.4), normal(4, 2)
    assert torch.allclose(source(z, math.inf), z) and torch.allclose(source.flow(z, math.inf), z)
    assert torch.allclose(source(z, -math.inf), torch.full_like(z, 0.3))
    assert float(source.posterior_variance(z, -math.inf)[0, 0]) == pytest.approx(0.4)
    assert torch.allclose(source.flow(z, -math.inf), source.draw(z))
    constant = DiagonalGaussian(0.3, 0.0)
    for level in (-math.inf, 0.0, math.inf):
        assert torch.allclose(constant(torch.full((2, 1), 0.3), level), torch.tensor(0.3))


def test_a_batch_with_its_own_levels_and_single_precision():
    source, z = DiagonalGaussian(0.3, 0.4), normal(3, 1, 2, 2).float()
    levels = torch.tensor([-1.0, 0.0, 4.0], dtype=torch.float64)
    got = source(z, levels)
    assert got.dtype == torch.float32 and got.shape == z.shape
    for row, level in enumerate(levels):
        assert torch.allclose(got[row], source(z[row : row + 1], level)[0])


def test_refusals():
    with pytest.raises(ValueError, match="variance is -1"):
        DiagonalGaussian(0.0, torch.tensor([1.0, -1.0]))
    with pytest.raises(ValueError, match="symmetric"):
        FullGaussian(MEAN, torch.triu(torch.ones(3, 3, dtype=torch.float64)))
    with pytest.raises(ValueError, match="symmetric"):
        FullGaussian(MEAN, torch.eye(2, dtype=torch.float64))
    with pytest.raises(ValueError, match="eigenvalue"):
        FullGaussian(MEAN, torch.diag(torch.tensor([1.0, 1.0, -0.5], dtype=torch.float64)))
