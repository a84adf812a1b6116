# SPDX-License-Identifier: Apache-2.0
"""Claims of models/c3/soap.py: far fewer steps than Adam where curvature is a Kronecker product in some other
basis, Adam where the basis is the identity, eigenvectors that are found, images that do not mix."""

from __future__ import annotations

import math

import pytest
import torch

from compressai_sga.models.c3.config import PRESETS, ArraySpec, layout
from compressai_sga.models.c3.fit import soap
from compressai_sga.models.c3.fit.adam import Adam
from compressai_sga.models.c3.fit.soap import Soap

ROWS, COLUMNS, BATCH = 8, 7, 3
SPECS = [ArraySpec("synthesis.0.weight", (ROWS, COLUMNS - 1)), ArraySpec("synthesis.0.bias", (ROWS,))]
BETAS = (0.95, 0.95)


def orthogonal(n: int, generator: torch.Generator) -> torch.Tensor:
    return torch.linalg.qr(torch.randn(BATCH, n, n, generator=generator))[0]


def stretched(n: int, condition: float, generator: torch.Generator) -> torch.Tensor:
    """Random matrices with singular values from 1 down to 1 / condition."""
    values = torch.logspace(0, -math.log10(condition), n)
    return orthogonal(n, generator) * values @ orthogonal(n, generator)


class Quadratic:
    """|A (W - W0) B|^2 with Hessian (B B^T) x (A^T A), of condition 10^4, for each image."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.left, self.right = stretched(ROWS, 100, generator), stretched(COLUMNS, 100, generator)
        self.target = torch.randn(BATCH, ROWS, COLUMNS, generator=generator)
        self.nets = torch.zeros(BATCH, ROWS * COLUMNS).requires_grad_()

    def loss(self) -> torch.Tensor:
        weight, bias = self.nets.split([ROWS * (COLUMNS - 1), ROWS], 1)
        whole = torch.cat([weight.unflatten(1, (ROWS, COLUMNS - 1)), bias[..., None]], 2)
        return (self.left @ (whole - self.target) @ self.right).square().sum((1, 2))

    def step(self, optimiser: Adam | Soap, rate: torch.Tensor | float) -> torch.Tensor:
        self.nets.grad = None
        loss = self.loss()
        loss.sum().backward()
        optimiser.step(rate)
        return loss.detach()


def steps_to(name: str, rate: float, part: float, most: int = 600) -> torch.Tensor:
    """Steps until each image's loss is that part of the first."""
    problem = Quadratic()
    optimiser = Soap(problem.nets, SPECS, BETAS) if name == "soap" else Adam([problem.nets], BETAS)
    first, found = problem.loss().detach(), torch.full((BATCH,), most)
    for i in range(most):
        reached = (problem.step(optimiser, rate) < part * first) & (found == most)
        found[reached] = i
        if (found < most).all():
            break
    return found


def test_far_fewer_steps_than_adam_at_its_best_rate():
    soap_steps = steps_to("soap", 0.03, 1e-5)
    adam_steps = torch.stack([steps_to("adam", rate, 1e-5) for rate in (0.01, 0.03, 0.1)]).amin(0)
    assert (soap_steps < 300).all()
    assert (2 * soap_steps < adam_steps).all()


def test_in_the_identitys_basis_it_is_adam(monkeypatch):
    def identity(self: Soap, gradient: torch.Tensor, sides: list[torch.Tensor]) -> None:
        for basis in sides[2:]:
            basis.copy_(torch.eye(basis.shape[1]))

    monkeypatch.setattr(Soap, "_first_bases", identity)
    mine, theirs = Quadratic(), Quadratic()
    optimisers = Soap(mine.nets, SPECS, (0.9, 0.97), every=1000), Adam([theirs.nets], (0.9, 0.97))
    rate = torch.tensor([0.01, 0.02, 0.03])
    for _ in range(30):
        for problem, optimiser in zip((mine, theirs), optimisers):
            problem.step(optimiser, rate)
    assert float(theirs.nets.abs().min()) > 0
    torch.testing.assert_close(mine.nets, theirs.nets, atol=1e-6, rtol=1e-5)


def test_images_of_a_batch_are_independent():
    """Whatever the others are and whatever their rates, an image's bits are the same."""
    found = []
    for others in (1.0, 30.0):
        problem = Quadratic()
        scale = torch.tensor([1.0, others, others])
        problem.target = problem.target * scale[:, None, None]
        optimiser = Soap(problem.nets, SPECS, BETAS)
        for _ in range(40):
            problem.step(optimiser, 0.02 * scale)
        found.append(problem.nets.detach())
    assert torch.equal(found[0][0], found[1][0])
    assert not torch.equal(found[0][1], found[1][1])


@pytest.mark.parametrize("stop", [1, 10, 17])
def test_state_is_all_there_is(stop):
    whole, first, second = Quadratic(), Quadratic(), Quadratic()
    optimisers = [Soap(problem.nets, SPECS, BETAS) for problem in (whole, first, second)]
    for _ in range(30):
        whole.step(optimisers[0], 0.03)
    for _ in range(stop):
        first.step(optimisers[1], 0.03)
    with torch.no_grad():
        second.nets.copy_(first.nets)
        for tensor, saved in zip(optimisers[2].state, optimisers[1].state):
            tensor.copy_(saved)
    optimisers[2].count = optimisers[1].count
    for _ in range(30 - stop):
        second.step(optimisers[2], 0.03)
    assert torch.equal(whole.nets, second.nets)


def test_bases_become_eigenvectors_the_largest_first():
    """Of gradients A Z B with white Z: of A A^T and B^T B; mean squares there are products of eigenvalues."""
    generator = torch.Generator().manual_seed(1)
    left, right = stretched(4, 30, generator), stretched(3, 30, generator)
    nets = torch.zeros(BATCH, 12).requires_grad_()
    optimiser = Soap(nets, [ArraySpec("synthesis.0.weight", (4, 3))], (0.9, 0.998))
    for _ in range(2500):
        gradient = left @ torch.randn(BATCH, 4, 3, generator=generator) @ right
        nets.grad = gradient.flatten(1)
        optimiser.step(1e-3)
    *_, u, v = optimiser._sides[0]
    for basis, exact in ((u, left @ left.mT), (v, right.mT @ right)):
        torch.testing.assert_close(basis.mT @ basis, torch.eye(len(basis[0])).expand_as(basis))
        vectors = torch.linalg.eigh(exact)[1].flip(-1)
        assert float((basis * vectors).sum(1).abs().min()) > 0.97  # up to sign
    sizes = [torch.linalg.svdvals(matrix) ** 2 for matrix in (left, right)]
    expected = sizes[0][:, :, None] * sizes[1][:, None]
    ratio = optimiser._squares[0] / expected
    assert 0.6 < float(ratio.min()) and float(ratio.max()) < 1.6


@pytest.mark.parametrize("name", PRESETS)
def test_every_parameter_belongs_to_one_matrix(name):
    specs = layout(PRESETS[name].architecture)
    places = soap._matrices(specs)
    found = torch.cat([place.flatten() for place in places]).sort()[0]
    assert torch.equal(found, torch.arange(sum(math.prod(spec.shape) for spec in specs)))
    # A bias is a column more; arrays without one are alone.
    weights = [spec for spec in specs if not spec.is_bias]
    names = {spec.name for spec in specs}
    for spec, place in zip(weights, places, strict=True):
        biased = spec.name.endswith(".weight") and spec.name.replace(".weight", ".bias") in names
        assert place.shape == (spec.shape[0], spec.fan_in + biased)


def test_squares_follow_their_directions_when_bases_are_sorted():
    """L and R rise along the identity's columns, so that both bases turn round, and the squares with them."""
    soap = Soap(torch.zeros(1, 6), [ArraySpec("w.weight", (2, 3))], every=1)
    (square,), (sides,) = soap._squares, soap._sides
    square.copy_(torch.arange(6.0).reshape(1, 2, 3))
    for side, size in enumerate((2, 3)):
        sides[side].copy_(torch.diag(torch.arange(1.0, size + 1))[None])
        sides[2 + side].copy_(torch.eye(size)[None])
    soap._move_bases(square, sides)
    assert torch.equal(square[0], torch.arange(6.0).reshape(2, 3).flip(0, 1))
    for side, size in enumerate((2, 3)):
        torch.testing.assert_close(sides[2 + side][0].abs(), torch.eye(size).flip(1))
