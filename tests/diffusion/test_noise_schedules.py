# SPDX-License-Identifier: Apache-2.0
"""Claims of diffusion/schedules.py: HFD's shifted cosine and its closed form, variance preservation, and that
a rectified flow is the same process in other units."""

from __future__ import annotations

import math

import pytest
import torch

from compressai_sga.diffusion.schedules import (
    Cosine,
    LinearLogSnr,
    RectifiedFlow,
    alpha_sigma,
    flow_log_snr,
    flow_time,
    grid,
)

SCHEDULES = (Cosine(), Cosine(0.25), Cosine(4.0), LinearLogSnr(), RectifiedFlow())
TIMES = torch.linspace(0, 1, 101, dtype=torch.float64)


@pytest.mark.parametrize("shift, share", [(1, 0.5), (0.5, 0.8), (0.25, 0.9412), (0.125, 0.9846)])
def test_shift_of_hfd_in_the_middle(shift, share):
    """alpha^2(1/2) = 1 / (1 + shift^2), and the numbers of the table."""
    alpha, _ = alpha_sigma(Cosine(shift)(0.5))
    assert float(alpha**2) == pytest.approx(1 / (1 + shift**2), abs=1e-14)
    assert float(alpha**2) == pytest.approx(share, abs=5e-5)


def test_shift_moves_the_log_snr_by_a_constant():
    inner = TIMES[5:-5]
    moved = Cosine(0.5)(inner) - Cosine()(inner)
    assert torch.allclose(moved, torch.full_like(inner, 2 * math.log(2)), atol=1e-12)


def test_cosine_is_a_cosine():
    alpha, sigma = alpha_sigma(Cosine()(TIMES[1:-1]))
    assert torch.allclose(alpha, torch.cos(math.pi * TIMES[1:-1] / 2), atol=1e-12)
    assert torch.allclose(sigma, torch.sin(math.pi * TIMES[1:-1] / 2), atol=1e-12)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_falls_from_clean_to_noise_within_its_clamp(schedule):
    log_snr = schedule(TIMES)
    assert log_snr.dtype == torch.float64 and log_snr.isfinite().all()
    assert (log_snr.diff() <= 0).all() and (log_snr[1:-1].diff() < 0).all()
    highest, lowest = (6, -12) if isinstance(schedule, LinearLogSnr) else (15, -15)
    assert float(log_snr[0]) == highest and float(log_snr[-1]) == lowest
    assert schedule(0.3).shape == () and schedule(TIMES[:, None]).shape == (101, 1)


def test_alpha_and_sigma_preserve_the_variance_and_hold_at_infinity():
    log_snr = torch.tensor([-math.inf, -40, -15, -1, 0, 2, 15, 40, math.inf], dtype=torch.float64)
    alpha, sigma = alpha_sigma(log_snr)
    assert torch.allclose(alpha**2 + sigma**2, torch.ones(9, dtype=torch.float64), atol=1e-15)
    assert alpha[0] == 0 and sigma[0] == 1 and alpha[-1] == 1 and sigma[-1] == 0
    finite = log_snr[1:-1]
    assert torch.allclose(2 * (alpha.log() - sigma.log())[1:-1], finite, rtol=1e-12)


def test_alpha_and_sigma_broadcast_to_a_batch():
    like = torch.zeros(2, 3, 4, 5)
    alpha, sigma = alpha_sigma(torch.tensor([0.0, 1.0]), like)
    assert alpha.shape == (2, 1, 1, 1) and alpha.dtype == torch.float32
    assert alpha_sigma(0.0, like)[1].shape == ()


def test_rectified_flow_is_variance_preserving_divided_by_alpha_plus_sigma():
    """(1 - s) x + s eps = (alpha x + sigma eps) / (alpha + sigma), and s = 1 / (1 + alpha / sigma)."""
    s = TIMES[1:-1]
    alpha, sigma = alpha_sigma(RectifiedFlow()(s))
    assert torch.allclose(alpha / (alpha + sigma), 1 - s, atol=1e-14)
    assert torch.allclose(sigma / (alpha + sigma), s, atol=1e-14)
    assert torch.allclose(1 / (1 + alpha / sigma), s, atol=1e-14)


def test_flow_time_and_log_snr_are_inverse():
    assert torch.allclose(flow_time(flow_log_snr(TIMES)), TIMES, atol=1e-15)
    levels = torch.linspace(-30, 30, 61, dtype=torch.float64)
    assert torch.allclose(flow_log_snr(flow_time(levels)), levels, atol=1e-7)
    assert float(flow_log_snr(0.0)) == math.inf and float(flow_log_snr(1.0)) == -math.inf
    assert float(flow_time(math.inf)) == 0 and float(flow_time(-math.inf)) == 1


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
@pytest.mark.parametrize("steps", [1, 2, 50])
def test_grid_rises_to_the_image(schedule, steps):
    levels = grid(schedule, steps)
    assert levels.shape == (steps + 1,) and levels[-1] == math.inf and (levels.diff() > 0).all()
    assert levels[0] == schedule(1.0)
    stopped = grid(schedule, steps, start=0.5, clean=False)
    assert stopped[0] == schedule(0.5) and stopped[-1] == schedule(0.0)


def test_refusals_say_value_and_cure():
    with pytest.raises(ValueError, match=r"1\.5.*\[0, 1\]"):
        Cosine()(1.5)
    with pytest.raises(ValueError, match="shift is 0"):
        Cosine(0)
    with pytest.raises(ValueError, match="limit is -1"):
        RectifiedFlow(-1)
    with pytest.raises(ValueError, match="lowest must be less"):
        LinearLogSnr(1, 1)
    with pytest.raises(ValueError, match="steps is 0"):
        grid(Cosine(), 0)
    with pytest.raises(ValueError, match="start"):
        grid(Cosine(), 5, start=0.0)
    with pytest.raises(ValueError, match="flat.*wider clamp"):
        grid(Cosine(limit=1.0), 50)
