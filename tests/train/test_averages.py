# SPDX-License-Identifier: Apache-2.0
"""Claims of averages.py: exponential means of known sequences; swapping changes nothing for good."""

from __future__ import annotations

import pytest
import torch
from torch import nn


def walk(averages, parameter, steps: int) -> None:
    for step in range(steps):
        parameter.data.fill_(step)
        averages.update()


def test_the_average_of_a_ramp_lags_by_its_memory():
    """An exponential mean of a ramp that was long enough lags by decay / (1 - decay) steps."""
    from averages import EVERY, Averages

    model = nn.Linear(1, 1)
    averages = Averages(model, decays=(0.9, 0.99))
    walk(averages, model.weight, 4001)
    for decay in (0.9, 0.99):
        with averages.swapped(decay):
            lag = 4000 - 1 - model.weight.item()
        step = decay**EVERY
        assert lag == pytest.approx(EVERY * step / (1 - step), abs=0.1 + EVERY / 2)


def test_the_beginning_is_forgotten():
    from averages import Averages

    model = nn.Linear(1, 1)
    model.weight.data.fill_(1e6)
    averages = Averages(model, decays=(0.9999,))
    walk(averages, model.weight, 400)
    with averages.swapped(0.9999):
        assert 200 < model.weight.item() < 400


def test_swapping_gives_the_weights_back_also_after_an_error():
    from averages import Averages

    model = nn.Linear(2, 2)
    averages = Averages(model)
    walk(averages, model.weight, 50)
    before = [p.clone() for p in model.parameters()]
    with pytest.raises(RuntimeError), averages.swapped(0.99):
        assert not torch.equal(model.weight, before[0])
        raise RuntimeError
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), before, strict=True))
    with averages.swapped(0):
        assert torch.equal(model.weight, before[0])


def test_a_saved_state_goes_on():
    from averages import Averages

    model = nn.Linear(1, 1)
    averages = Averages(model)
    walk(averages, model.weight, 30)
    again = Averages(model)
    again.load_state_dict(averages.state_dict())
    for mean in (averages, again):
        walk(mean, model.weight, 30)
    assert torch.equal(averages.means[0.998][0], again.means[0.998][0])
