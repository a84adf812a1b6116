# SPDX-License-Identifier: Apache-2.0
"""Schedules: the papers' values at their steps, and ours at both ends of any budget."""

from __future__ import annotations

import math

import pytest

from compressai_sga.refine import PRESETS
from compressai_sga.schedules import Constant, Cosine, Exponential, Geometric, Linear


def test_schedule_of_yang_et_al():
    """T = min(0.5, 0.5 exp(-1e-3 (t - 700))): constant for 700 steps, then halved every 693."""
    schedule = PRESETS["sga-paper"].temperature
    assert schedule(0, 2000) == schedule(700, 2000) == 0.5
    assert schedule(1000, 2000) == pytest.approx(0.5 * math.exp(-0.3))
    assert schedule(1000, 500) == schedule(1000, 2000)  # the budget does not matter


def test_schedule_of_sga_plus():
    """T = min(1, exp(-1e-3 t))."""
    schedule = PRESETS["ssl-paper"].temperature
    assert schedule(0, 2000) == 1.0
    assert schedule(500, 2000) == pytest.approx(0.6065, abs=1e-4)
    assert schedule(1999, 2000) == pytest.approx(0.1355, abs=1e-4)


def test_paper_presets_follow_the_papers():
    for name in ("sga-paper", "linear-paper", "cosine-paper", "ssl-paper", "ssl3-paper"):
        assert PRESETS[name].steps == 2000
        assert PRESETS[name].lr == Constant(5e-3)
        assert PRESETS[name].betas == (0.9, 0.999)
    assert PRESETS["ste-paper"].lr == Constant(1e-4)
    assert PRESETS["ssl-paper"].a == 2.3
    ssl3 = PRESETS["ssl3-paper"]
    assert (ssl3.a, ssl3.r, ssl3.n) == (1.4, 0.98, 1.4)


@pytest.mark.parametrize("steps", [1, 2, 100, 2000])
@pytest.mark.parametrize("schedule", [Geometric(0.6, 0.1), Linear(0.35, 0.08), Cosine(0.02, 0.001)])
def test_scaled_schedules_start_and_end_where_they_say(schedule, steps):
    assert schedule(0, steps) == pytest.approx(schedule.start)
    if steps > 1:
        assert schedule(steps - 1, steps) == pytest.approx(schedule.end)
    values = [schedule(t, steps) for t in range(steps)]
    assert values == sorted(values, reverse=True)


def test_warm_up_rises_to_the_cosine():
    schedule = Cosine(1.0, warmup=4)
    values = [schedule(t, 1000) for t in range(6)]
    assert values[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0], abs=1e-3)


def test_exponential_keeps_its_bounds():
    schedule = Exponential(rate=1.0, upper=0.2, lower=1e-3)
    assert schedule(0, 10) == 0.2
    assert schedule(100, 10) == 1e-3
