# SPDX-License-Identifier: Apache-2.0
"""Claims of muon.py: every weight that has a gradient is trained, blocks of kernels become orthonormal."""

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


@pytest.mark.parametrize("shape", [(2, 64, 75), (1, 64, 1600), (3, 8, 64), (1, 96, 64)])
def test_rows_become_orthonormal(shape):
    from muon import orthonormal_rows

    torch.manual_seed(0)
    x = torch.randn(shape)
    out = orthonormal_rows(x).float()
    assert out.shape == x.shape
    values = torch.linalg.svdvals(out)
    assert values.min() > 0.6 and values.max() < 1.3
    u, _, v = torch.linalg.svd(x, full_matrices=False)
    exact = u @ v
    cosine = (out * exact).sum() / (out.norm() * exact.norm())
    assert cosine > 0.97


def test_the_product_equals_the_steps_on_the_matrix_itself():
    """Jordan et al.'s iteration, X <- a X + b (X X^T) X + c (X X^T)^2 X, in float64."""
    from muon import ITERATIONS, NEWTON_SCHULZ, orthonormal_rows

    torch.manual_seed(0)
    start = (
        torch.randn(48, 300, dtype=torch.float64) * torch.logspace(0, -2, 48, dtype=torch.float64)[:, None]
    )
    x = start / start.norm()
    a, b, c = NEWTON_SCHULZ
    for _ in range(ITERATIONS):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    ours = orthonormal_rows(start.float()[None])[0].double()
    assert (ours - x).norm() / x.norm() < 0.01  # bf16 in the last product


def test_blocks_of_all_kernels_share_products_and_move_by_the_learning_rate():
    """A kernel of 150 rows is three blocks; an entry moves by 0.2 of the learning rate, as Adam's would."""
    from torch import nn

    from muon import MuonAdam

    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(8, 150, 5), nn.Conv2d(150, 64, 3), nn.Conv2d(64, 64, 3))
    model = model.to(memory_format=torch.channels_last)
    optimizer = MuonAdam(model, muon_lr=0.01, adam_lr=0.01)
    assert {shape: len(blocks) for shape, blocks in optimizer.groups.items()} == {
        (64, 200): 2, (22, 200): 1, (64, 1350): 1, (64, 576): 1,
    }  # fmt: skip
    before = [layer.weight.detach().clone() for layer in model]
    for layer in model:
        layer.weight.grad = torch.randn_like(layer.weight)
    optimizer.step()
    for layer, old in zip(model, before, strict=True):
        rms = (layer.weight - old).square().mean().sqrt().item()
        assert rms == pytest.approx(0.2 * 0.01, rel=0.3)  # singular values of 0.7 to 1.2


def test_factor_scales_both_learning_rates():
    from muon import MuonAdam

    model = JointAutoregressiveHierarchicalPriors(16, 24).to(memory_format=torch.channels_last)
    optimizer = MuonAdam(model, muon_lr=1e-3, adam_lr=4e-3)
    optimizer.set_factor(0.5)
    assert optimizer.muon_lr == 5e-4
    assert optimizer.adam.param_groups[0]["lr"] == 2e-3


def test_state_goes_on_where_it_was():
    from muon import MuonAdam

    def run(interrupted: bool) -> list[torch.Tensor]:
        torch.manual_seed(0)
        model = JointAutoregressiveHierarchicalPriors(16, 24).to(memory_format=torch.channels_last)
        optimizer = MuonAdam(model, muon_lr=1e-3, adam_lr=1e-3)
        for step in range(3):
            if interrupted and step == 2:
                state = optimizer.state_dict()
                optimizer = MuonAdam(model, muon_lr=1e-3, adam_lr=1e-3)
                optimizer.load_state_dict(state)
            model.zero_grad()
            loss(model).backward()
            optimizer.step()
        return [p.detach().clone() for p in model.parameters()]

    assert all(torch.equal(a, b) for a, b in zip(run(False), run(True), strict=True))


def test_another_memory_format_is_refused():
    from muon import MuonAdam

    with pytest.raises(ValueError, match="channels_last"):
        MuonAdam(JointAutoregressiveHierarchicalPriors(16, 24), 1e-3, 1e-3)


@pytest.mark.parametrize("size", [0.0, 1e-30, 1e-22, 1e-21, 3e-21, 1e-18, 1e-13])
def test_a_vanishing_gradient_moves_nothing_far(size):
    """The momentum of a layer without gradients fades through numbers whose squares are zero."""
    from muon import orthonormal_rows

    torch.manual_seed(0)
    momentum = size * torch.randn(2, 64, 1728)
    torch.set_flush_denormal(True)  # as in training: squares below 1e-38 are 0
    try:
        out = orthonormal_rows(momentum).float()
    finally:
        torch.set_flush_denormal(False)
    assert torch.isfinite(out).all()
    assert torch.linalg.svdvals(out).max() < 1.3
