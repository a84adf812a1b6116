# SPDX-License-Identifier: Apache-2.0
"""Relaxations of rounding: both limits, finite gradients, and the identities that the papers rest on.

Statistical tests: fixed seeds, two-sided, false-alarm rate 1e-4 each unless said otherwise.
"""

from __future__ import annotations

import math

import pytest
import torch
from scipy import stats

from compressai_sga import relaxations as r
from compressai_sga.refine import METHODS, PRESETS, RefineConfig

ALARM = 1e-4
V = torch.linspace(-3, 3, 121)  # integers, half-integers and between
ANNEALED = [m for m in METHODS if m not in ("ste", "noise")]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def relax(method: str, v: torch.Tensor, temperature: float, noise: float | None = None):
    config = RefineConfig.make(method)
    return METHODS[method](v, temperature, generator(), config, noise)


def noise_of(method: str, level: float) -> float | None:
    """The second annealed quantity near its hard end, for the methods that have one."""
    return {"soft-round": level, "soft-round-kumaraswamy": 1 + level}.get(method)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("temperature", [0.0, 1e-9, 0.05, 0.5, 2.0])
def test_gradients_are_finite_everywhere(method, temperature):
    v = V.clone().requires_grad_()
    out = relax(method, v, temperature, noise_of(method, 0.2))
    (gradient,) = torch.autograd.grad(out.sum(), v)
    assert out.shape == v.shape
    assert torch.isfinite(out).all() and torch.isfinite(gradient).all()


@pytest.mark.parametrize("method", METHODS)
def test_the_images_of_a_batch_share_their_noise(method):
    v = torch.stack([V + 1, V])
    alone = relax(method, v[1:], 0.5, noise_of(method, 0.2))
    assert torch.allclose(relax(method, v, 0.5, noise_of(method, 0.2))[1:], alone)


@pytest.mark.parametrize("method", METHODS)
def test_extreme_values_are_finite(method):
    v = torch.tensor([-1e4, -32768.5, 0.0, 1e-7, 65535.499]).requires_grad_()
    out = relax(method, v, 0.3, noise_of(method, 0.2))
    (gradient,) = torch.autograd.grad(out.sum(), v)
    assert torch.isfinite(out).all() and torch.isfinite(gradient).all()
    assert ((out - v).abs() <= 2).all()


@pytest.mark.parametrize("method", [m for m in ANNEALED if not m.startswith("soft-round")] + ["ste"])
def test_cold_limit_is_rounding(method):
    v = V[(V - V.round()).abs() < 0.49]
    assert torch.equal(relax(method, v, 0.0), v.round())


@pytest.mark.parametrize("method", ["atanh", "linear", "cosine", "ssl", "annealing"])
def test_two_classes_stay_between_the_neighbours(method):
    out = relax(method, V, 0.4)
    assert (out >= V.floor()).all() and (out <= V.floor() + 1).all()


def test_soft_round_limits():
    assert torch.equal(r.soft_round(V[1:-1:3], 0.0), V[1:-1:3].round())
    assert torch.allclose(r.soft_round(V, 1e4), V)
    assert torch.allclose(r.soft_round(V, 100.0), V, atol=1e-4)
    integers = torch.arange(-3.0, 4.0)
    assert torch.allclose(r.soft_round(integers + 0.5, 0.2), integers + 0.5)


def test_ste_has_the_gradient_of_the_identity():
    v = V.clone().requires_grad_()
    out = r.ste(v, 0.0, generator())
    assert torch.equal(out, V.round())
    assert torch.equal(torch.autograd.grad(out.sum(), v)[0], torch.ones_like(V))


def test_uniform_noise_is_uniform():
    out = r.uniform_noise(torch.full((1, 20000), 0.3), 0.0, generator())[0]
    assert stats.kstest(out.numpy() - 0.3, stats.uniform(-0.5, 1).cdf).pvalue > ALARM


@pytest.mark.parametrize("a", [1.0, 1.5, 2.0])
def test_kumaraswamy_noise_follows_its_law_with_mode_zero(a):
    b = (2**a * (a - 1) + 1) / a
    out = r.kumaraswamy_noise(torch.zeros(20000), generator(), a).double().numpy() + 0.5
    assert stats.kstest(out, lambda k: 1 - (1 - k**a) ** b).pvalue > ALARM
    if a > 1:
        grid = torch.linspace(0.01, 0.99, 981, dtype=torch.float64)
        density = a * b * grid ** (a - 1) * (1 - grid**a) ** (b - 1)
        assert grid[density.argmax()].item() == pytest.approx(0.5, abs=2e-3)


def test_gaussian_noise_has_its_standard_deviation():
    out = r.gaussian_noise(torch.zeros(20000), generator(), 0.22)
    assert stats.kstest(out.numpy(), stats.norm(scale=0.22).cdf).pvalue > ALARM


# --- Identities of SGA+ ------------------------------------------------------------------------


@pytest.mark.parametrize("u", [0.1, 0.37, 0.5, 0.8])
@pytest.mark.parametrize("temperature", [0.2, 0.7])
def test_binary_concrete_is_the_two_column_gumbel_softmax(u, temperature):
    """The one-draw sampler has the distribution of Yang et al.'s softmax over {floor, ceil}."""
    count = 20000
    v = torch.full((count,), 3 + u)
    (ours,) = r.binary_concrete(v[None], temperature, generator(1), r.atanh_logit)
    log_weights = torch.stack([-torch.atanh(v - 3), -torch.atanh(4 - v)], -1)
    torch.manual_seed(2)
    weights = torch.nn.functional.gumbel_softmax(log_weights / temperature, tau=temperature)
    theirs = 3 * weights[:, 0] + 4 * weights[:, 1]
    assert stats.ks_2samp(ours.numpy(), theirs.numpy()).pvalue > ALARM


def test_the_comparison_of_samplers_can_fail():
    """A logit temperature that is 20 % off is found by the same test."""
    v = torch.full((20000,), 3.37)
    (ours,) = r.binary_concrete(v[None], 0.2, generator(1), r.atanh_logit)
    (other,) = r.binary_concrete(v[None], 0.24, generator(2), r.atanh_logit)
    assert stats.ks_2samp(ours.numpy(), other.numpy()).pvalue < ALARM


def test_linear_is_ssl_with_a_equal_to_one():
    u = torch.linspace(0.01, 0.99, 99)
    assert torch.allclose(r.linear_logit(u), r.ssl_logit(u, 1.0))


@pytest.mark.parametrize(("logit", "a"), [(r.atanh_logit, 2 / 3), (r.cosine_logit, math.pi / 2)])
def test_slopes_at_one_half_give_the_equivalent_a(logit, a):
    u = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(logit(u), u)
    assert slope.item() / 4 == pytest.approx(a, rel=1e-9)  # the slope of ssl is 4 a


@pytest.mark.parametrize("logit", [r.atanh_logit, r.linear_logit, r.cosine_logit])
def test_probability_of_rounding_up_is_symmetric_and_rising(logit):
    u = torch.linspace(0.01, 0.99, 99, dtype=torch.float64)
    assert torch.allclose(logit(u), -logit(1 - u), atol=1e-9)
    assert (logit(u).diff() > 0).all()


@pytest.mark.parametrize("method", ["linear3", "cosine3", "ssl3"])
def test_three_classes_leave_an_integer_to_both_sides(method):
    """At an integer two classes have nowhere to go; three reach both neighbours."""
    out = relax(method, torch.full((1, 20000), 3.0), 0.9)
    assert out.min() < 2.7 and out.max() > 3.3
    two = relax(method.removesuffix("3"), torch.full((1, 20000), 3.0), 0.9)
    assert (two - 3).abs().median() < 1e-3


def test_three_class_sampler_agrees_with_gumbel_softmax():
    v = torch.full((20000,), 0.3)
    (ours,) = relax("ssl3", v[None], 0.5)
    config = RefineConfig.make("ssl3")
    distance = torch.stack([v + 1, v, v - 1], -1)
    weights = r.ssl3_log_weight(distance, config.r, config.n, config.a)
    torch.manual_seed(3)
    share = torch.nn.functional.gumbel_softmax(weights / 0.5, tau=0.5)
    theirs = share @ torch.tensor([-1.0, 0.0, 1.0])
    assert stats.ks_2samp(ours.numpy(), theirs.numpy()).pvalue > ALARM


def test_every_method_has_a_preset_of_its_name():
    assert set(METHODS) <= set(PRESETS)
    assert all(PRESETS[name].method == name for name in METHODS)


def test_a_preset_is_named_like_a_method():
    for name in PRESETS:
        assert RefineConfig.make(name) == RefineConfig.make(preset=name) == PRESETS[name]
    assert RefineConfig.make("ssl3", "best").method == "ssl3"
    with pytest.raises(ValueError, match="fast and best are both presets of refinement"):
        RefineConfig.make("fast", "best")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 2.5}, "whole number from 0 to 1000000000, not 2.5"),
        ({"steps": "2"}, "whole number from 0 to 1000000000, not '2'"),
        ({"seed": 2**70}, "seed must be a whole number"),
        ({"seed": 0.5}, "seed must be a whole number"),
        ({"lmbda": 1e300}, "lmbda must be above 0 and at most 1e"),
        ({"lr": 1e300}, "learning rate must be above 0 and at most 1e"),
        ({"method": "nosuch"}, "unknown refinement method 'nosuch'; choose from .*ssl.*fast"),
    ],
)
def test_settings_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        RefineConfig.make(**options)
