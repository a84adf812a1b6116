# SPDX-License-Identifier: Apache-2.0
"""Claims of diffusion/parametrisations.py: x, eps, v and flow say the same, at every noise level at which
they say anything, and their losses differ by the stated weights."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from compressai_sga.diffusion.parametrisations import (
    NetworkDenoiser,
    convert,
    diffuse,
    loss_weight,
    target,
)
from compressai_sga.diffusion.schedules import alpha_sigma, flow_time

KINDS = ("x", "eps", "v", "flow")
LEVELS = torch.tensor([-12.0, -3.0, 0.0, 2.5, 12.0], dtype=torch.float64)


def drawn() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return tuple(torch.randn(5, 2, 3, generator=generator, dtype=torch.float64) for _ in "xe")


@pytest.mark.parametrize("source, to", itertools.product(KINDS, KINDS))
def test_every_prediction_turns_into_every_other(source, to):
    x, eps = drawn()
    z = diffuse(x, eps, LEVELS)
    got = convert(target(x, eps, LEVELS, source), z, LEVELS, source=source, to=to)
    assert torch.allclose(got, target(x, eps, LEVELS, to), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("source, to", itertools.product(KINDS, KINDS))
def test_round_trip_of_an_arbitrary_prediction(source, to):
    """Not only of true ones: a network's answer need not be consistent with any x and eps."""
    said, z = drawn()
    there = convert(said, z, LEVELS, source=source, to=to)
    back = convert(there, z, LEVELS, source=to, to=source)
    assert torch.allclose(back, said, rtol=1e-9, atol=1e-8)


def test_formulas_of_v():
    """x = alpha z - sigma v, eps = sigma z + alpha v; u = eps - x moves z_RF: dz_RF/ds = u."""
    x, eps = drawn()
    alpha, sigma = alpha_sigma(LEVELS, x)
    z, v = diffuse(x, eps, LEVELS), target(x, eps, LEVELS, "v")
    assert torch.allclose(alpha * z - sigma * v, x) and torch.allclose(sigma * z + alpha * v, eps)
    s = flow_time(LEVELS).reshape(-1, 1, 1)
    z_rf = z / (alpha + sigma)
    assert torch.allclose(z_rf - s * target(x, eps, LEVELS, "flow"), x)


@pytest.mark.parametrize("level", [math.inf, -math.inf])
@pytest.mark.parametrize("to", KINDS)
def test_limits_of_no_noise_and_no_signal(level, to):
    """v and flow hold at both ends; x where there is noise, eps where there is signal."""
    x, eps = drawn()
    z = diffuse(x, eps, level)
    assert torch.equal(z, x if level > 0 else eps)
    for source in ("v", "flow", "eps" if level > 0 else "x"):
        got = convert(target(x, eps, level, source), z, level, source=source, to=to)
        assert torch.allclose(got, target(x, eps, level, to), atol=1e-12)
    lost, other = ("x", "eps") if level > 0 else ("eps", "x")
    with pytest.raises(ValueError, match="is 0 at a log-SNR of .*inf.*predicts 'v'"):
        convert(x, z, level, source=lost, to=other)
    assert convert(x, z, level, source=lost, to=lost) is x


@pytest.mark.parametrize("kind", KINDS)
def test_loss_weight_turns_the_error_of_x_into_that_of_the_prediction(kind):
    x_hat, z = drawn()
    other = x_hat + 0.1 * torch.arange(6).reshape(2, 3)
    said, said_too = (convert(e, z, LEVELS, source="x", to=kind) for e in (x_hat, other))
    error = (said - said_too).square().sum((1, 2))
    expected = loss_weight(LEVELS, kind) * (x_hat - other).square().sum((1, 2))
    assert torch.allclose(error, expected, rtol=1e-8)


@pytest.mark.parametrize("kind", KINDS)
def test_network_denoiser_returns_x_whatever_the_network_says(kind):
    x, eps = (part.float() for part in drawn())
    level = torch.tensor(0.7, dtype=torch.float64)
    denoiser = NetworkDenoiser(lambda z, log_snr: target(x, eps, log_snr, kind), kind)
    got = denoiser(diffuse(x, eps, level), level)
    assert got.dtype == torch.float32 and torch.allclose(got, x, atol=1e-5)
    clamped = NetworkDenoiser(denoiser.network, kind, limit=0.5)(diffuse(x, eps, level), level)
    assert torch.allclose(clamped, x.clamp(-0.5, 0.5), atol=1e-5)


def test_unknown_predictions_are_refused():
    x, eps = drawn()
    for call in (
        lambda: target(x, eps, 0.0, "noise"),
        lambda: loss_weight(0.0, "noise"),
        lambda: convert(x, eps, 0.0, source="noise", to="x"),
        lambda: convert(x, eps, 0.0, source="noise", to="noise"),
    ):
        with pytest.raises(ValueError, match="'noise'.*x, eps, v, flow"):
            call()
