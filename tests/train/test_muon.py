# SPDX-License-Identifier: Apache-2.0
"""Claims of muon.py: every weight that has a gradient is trained, masked convolutions included."""

from __future__ import annotations

import pytest
import torch
from compressai.models import JointAutoregressiveHierarchicalPriors


def loss(model) -> torch.Tensor:
    torch.manual_seed(1)
    out = model(torch.rand(1, 3, 64, 64))
    bits = sum(-p.log2().mean() for p in out["likelihoods"].values())
    return bits + 100 * (out["x_hat"] - 0.5).pow(2).mean()


def test_a_step_moves_every_parameter_of_the_model_and_lowers_the_loss():
    from muon import MuonAdam

    torch.manual_seed(0)
    model = JointAutoregressiveHierarchicalPriors(16, 24).to(memory_format=torch.channels_last)
    optimizer = MuonAdam(model, muon_lr=1e-3, adam_lr=1e-3)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    losses = []
    for _ in range(3):
        model.zero_grad()
        losses.append(loss(model))
        losses[-1].backward()
        optimizer.step()
    with torch.no_grad():
        assert loss(model) < losses[0]
    mask = model.context_prediction.mask
    for name, parameter in model.named_parameters():
        moved = (parameter.detach() - before[name]).abs()
        if name.endswith("quantiles"):
            assert not moved.any()
        elif name == "context_prediction.weight":
            assert (moved[mask == 1] > 0).float().mean() > 0.99
        else:
            assert moved.any(), name


def test_factor_scales_both_learning_rates():
    from muon import MuonAdam

    model = JointAutoregressiveHierarchicalPriors(16, 24).to(memory_format=torch.channels_last)
    optimizer = MuonAdam(model, muon_lr=1e-3, adam_lr=4e-3)
    optimizer.set_factor(0.5)
    assert optimizer.muon.param_groups[0]["lr"] == 5e-4
    assert optimizer.adam.param_groups[0]["lr"] == 2e-3


def test_another_memory_format_is_refused():
    from muon import MuonAdam

    with pytest.raises(ValueError, match="channels_last"):
        MuonAdam(JointAutoregressiveHierarchicalPriors(16, 24), 1e-3, 1e-3)
