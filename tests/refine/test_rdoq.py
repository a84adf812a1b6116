# SPDX-License-Identifier: Apache-2.0
"""Changes of single symbols: what they promise, what they do, and what is taken back."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from compressai.utils.eval_model.__main__ import read_image

from compressai_sga import zoo
from compressai_sga.refine import rdoq, refine
from compressai_sga.refine.latents import hard_rounding
from compressai_sga.refine.loop import build_adapter
from tests.small_models import build

LMBDA = 0.0067
TRAINED = ["mbt2018-mean-small", "mbt2018-small", "bmshj2018-factorized-small"]
IN_CONTEXT = ["mbt2018", "cheng2020-anchor-checkerboard", "elic2022-gdn", "mbt2018-vbr"]


class Case:
    """A model with latents of an image, and its exact loss in bits."""

    def __init__(self, model, x):
        self.x, self.adapter = x, build_adapter(model, {})
        self.latents, _ = self.adapter.latents_of(x)

    def costs(self, x_hat):
        error = (self.x - x_hat.clamp(0, 1)).square().mean(1, keepdim=True)
        return LMBDA * 255**2 * 16**2 * F.avg_pool2d(error, 16)

    @torch.no_grad()
    def loss(self, latents):
        coded = self.adapter.code(latents, hard_rounding)
        return coded.bits() + self.costs(self.adapter.synthesise(coded.y_hat)).flatten(1).sum(1)

    def polished(self, sweeps):
        generator = torch.Generator().manual_seed(0)
        scale = 2 * 255**2 * LMBDA / 3
        adapter = self.adapter
        return rdoq.polish(adapter, self.latents, adapter.synthesise, self.costs, scale, sweeps, generator)


def photograph(index, size):
    return read_image(zoo.sample_images()[index])[None, :, :size, :size]


@pytest.fixture(params=TRAINED)
def case(request):
    return Case(zoo.load(request.param, 3), photograph(0, 128))


def test_the_true_loss_falls(case):
    polished = case.polished(8)
    assert case.loss(polished) < 0.99 * case.loss(case.latents)
    rounded = case.adapter.code(case.latents, hard_rounding).grid
    assert torch.equal(polished.get("z", case.x), rounded.get("z", case.x))


def single_changes(case, count):
    """(promised, real) falls of the loss by `count` changes, each alone, those that promise most."""
    rounded = case.adapter.code(case.latents, hard_rounding)
    shift = torch.zeros_like(rounded.grid["y"], requires_grad=True)
    coded = case.adapter.code(rounded.grid | {"y": rounded.grid["y"] + shift * rounded.step}, hard_rounding)
    x_hat = case.adapter.synthesise(coded.y_hat)
    generator = torch.Generator().manual_seed(0)
    curvature = 2 * 255**2 * LMBDA / 3 * rdoq._diagonal(x_hat, shift, generator)
    gradient = rdoq._gradient_of_others(coded, case.costs(x_hat), shift)
    with torch.no_grad():
        bits = -torch.log2(coded.likelihoods["y"])
        gain, direction = rdoq._promised_gain(coded, bits, gradient, curvature)
        promised, where = gain.flatten().topk(count)
        before, real = case.loss(rounded.grid), []
        for index in where.tolist():
            moved = rounded.grid["y"].clone()
            moved.view(-1)[index] += direction.view(-1)[index] * rounded.step
            real.append(before - case.loss(rounded.grid | {"y": moved}))
    return promised, torch.cat(real)


def test_a_promise_is_kept(case):
    """A change alone lowers the loss, by about what it promised."""
    promised, real = single_changes(case, 20)
    assert (promised > 0).all()
    assert (real > 0).float().mean() >= 0.9
    assert 0.7 < real.sum() / promised.sum() < 1.5


def test_what_does_not_help_is_taken_back(case, monkeypatch):
    """Where one position in four is told to change the wrong way, the loss falls all the same."""
    generator = torch.Generator().manual_seed(1)
    promised_gain = rdoq._promised_gain

    def promise(*arguments):
        gain, direction = promised_gain(*arguments)
        wrong = torch.rand(gain.shape[2:], generator=generator) < 0.25
        return torch.where(wrong, gain.abs(), gain), torch.where(wrong, -direction, direction)

    monkeypatch.setattr(rdoq, "_promised_gain", promise)
    assert case.loss(case.polished(12)) < 0.995 * case.loss(case.latents)


@pytest.mark.parametrize("name", IN_CONTEXT)
def test_symbols_of_every_structure_can_be_changed(name):
    """Models with contexts and steps other than one: stock decodes what was changed, and it costs less."""
    options = {"compress_kwargs": {"s": 3}} if "vbr" in name else {}
    result = refine(build(name), photograph(1, 64), "polish", lmbda=0.05, **options)
    assert (result.after.loss < result.before.loss).all()


def test_an_adapter_that_does_not_say_how_is_left_alone():
    case = Case(zoo.load("mbt2018-mean-small", 3), photograph(0, 64))
    code = case.adapter.code

    def without(latents, rounding):
        coded = code(latents, rounding)
        return type(coded)(coded.y_hat, coded.likelihoods, coded.grid)

    case.adapter.code = without
    assert torch.equal(case.polished(4)["y"], code(case.latents, hard_rounding).grid["y"])
