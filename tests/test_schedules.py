# SPDX-License-Identifier: Apache-2.0
"""Schedules: the papers' values at their steps, and ours at both ends of any budget."""

from __future__ import annotations

import math

import pytest

from compressai_sga.refine import PRESETS, RefineConfig
from compressai_sga.schedules import Constant, Cosine, Exponential, Geometric, Linear, StepDecay


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


def test_schedules_of_deterministic_annealing():
    """T = min(0.2, exp(-4e-3 t)), which begins to fall after 402 steps."""
    schedule = PRESETS["annealing-paper"].temperature
    assert schedule(0, 2000) == schedule(402, 2000) == 0.2
    assert schedule(1000, 2000) == pytest.approx(math.exp(-4))


def test_schedules_of_yang_and_mandt_2023():
    """3000 steps, T = min(0.5, 0.5 exp(-5e-4 (t - 200))), a tenth of the learning rate after 90 %."""
    preset = PRESETS["sga-2023-paper"]
    assert preset.method == "atanh" and preset.steps == 3000
    assert preset.temperature(200, 3000) == 0.5
    assert preset.temperature(2999, 3000) == pytest.approx(0.5 * math.exp(-1.3995))
    rates = [preset.lr(step, 3000) for step in (0, 2699, 2700, 2999)]
    assert rates == pytest.approx([5e-3, 5e-3, 5e-4, 5e-4])
    assert [StepDecay(1.0, 0.5, 0.25)(step, 4) for step in range(4)] == [1.0, 0.5, 0.5, 0.5]


def test_paper_presets_follow_the_papers():
    papers = {name: preset for name, preset in PRESETS.items() if name.endswith("-paper")}
    assert len(papers) == 11
    for name, preset in papers.items():
        assert preset.betas == (0.9, 0.999), name
        assert (preset.precision, preset.hard_evaluations, preset.polish) == ("float32", 1, 0), name
        if name != "sga-2023-paper":
            assert preset.steps == 2000, name
            assert preset.lr == Constant(1e-4 if name == "ste-paper" else 5e-3), name
    assert PRESETS["ssl-paper"].a == 2.3
    shapes = {"linear3": (1.0, 0.98, 1.5), "cosine3": (1.0, 0.98, 2.0), "ssl3": (1.4, 0.98, 1.4)}
    for method, shape in shapes.items():
        preset = PRESETS[f"{method}-paper"]
        assert (preset.a, preset.r, preset.n) == shape
        assert preset.method == method and preset.temperature == PRESETS["ssl-paper"].temperature


def test_a_rate_scales_every_schedule():
    """`lr` replaces the largest rate of constant, falling and stepped schedules."""
    for preset in ("ssl", "ssl-paper", "sga-2023-paper"):
        changed = RefineConfig.make(preset=preset, lr=1.0)
        assert max(changed.lr(step, 100) for step in range(100)) == pytest.approx(1.0, rel=0.01)


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
