# SPDX-License-Identifier: Apache-2.0
"""Refinement notices what would spoil it: tables that do not fit, likelihood bounds of 0, NaN gradients."""

from __future__ import annotations

import copy
import re
import warnings
from types import SimpleNamespace

import pytest
import torch
from compressai.utils.eval_model.__main__ import read_image
from torch import Tensor

import compressai_sga
from compressai_sga.errors import UnsupportedModelError
from compressai_sga.refine import refine
from compressai_sga.refine.loop import _Run
from tests.small_models import build, picture

OPTIONS = {"steps": 12, "lmbda": 0.05, "lr": 0.05}


@pytest.fixture(scope="module")
def images() -> Tensor:
    return picture(68, 100, batch=2)


# --- Tables ------------------------------------------------------------------------------------


def test_a_coder_with_other_tables_is_refused_with_the_numbers():
    """Indexes 12 rows too high decode well, at twice the bits."""
    model = compressai_sga.zoo.load("mbt2018-mean-small", quality=3)
    x = read_image(compressai_sga.zoo.sample_images()[0])[None, :, :128, :128]
    refine(model, x, steps=0)
    conditional = model.gaussian_conditional
    stock, last = conditional.build_indexes, len(conditional.scale_table) - 1
    conditional.build_indexes = lambda scales: (stock(scales) + 12).clamp(max=last)
    message = r"latents in (\d+) bits, but by their likelihoods they take (\d+): .*update\(force=True\)"
    with pytest.raises(UnsupportedModelError, match=message) as told:
        refine(model, x, steps=0)
    real, ideal = map(int, re.search(message, str(told.value)).groups())
    with torch.no_grad():
        out = model.compress(x)
    assert real == 8 * sum(len(string) for part in out["strings"] for string in part)
    assert real > 1.5 * ideal


def test_tables_of_other_weights_are_refused(images):
    model = build("bmshj2018-factorized")
    model.entropy_bottleneck.matrices[0].data += 3  # as after further training without update()
    with pytest.raises(UnsupportedModelError, match=r"model.update\(force=True\)"):
        refine(model, images, steps=0, lmbda=0.05)
    model.update(force=True)
    refine(model, images, steps=0, lmbda=0.05)


# --- Likelihood bounds -------------------------------------------------------------------------


def test_a_bound_lost_in_half_precision_is_restored_and_named(images):
    """1e-9 is 0 in half precision, log2 of 0 has no gradient, and one NaN stays in Adam for good."""
    model = build("mbt2018-mean")
    spoilt = copy.deepcopy(model)
    for part in (spoilt.entropy_bottleneck, spoilt.gaussian_conditional):
        bound = part.likelihood_lower_bound.bound
        bound.copy_(bound.half().float())
        assert bound.item() == 0
    x = (images + 0.5 * torch.rand(images.shape, generator=torch.Generator().manual_seed(0))).clamp(0, 1)
    healthy = refine(model, x, "soft-round", **OPTIONS)
    with pytest.warns(UserWarning, match="entropy_bottleneck, gaussian_conditional have the lower bound 0"):
        result = refine(spoilt, x, "soft-round", **OPTIONS)
    assert result.strings == healthy.strings
    assert result.trace == healthy.trace
    assert healthy.notes == ()
    (note,) = result.notes
    assert "refinement used 1e-09" in note
    assert spoilt.gaussian_conditional.likelihood_lower_bound.bound.item() == 0  # the model is left as it was


# --- Gradients ---------------------------------------------------------------------------------


class _Broken(torch.autograd.Function):
    """The identity; the gradient of the first image has a NaN."""

    @staticmethod
    def forward(ctx, v):
        return v.clone()

    @staticmethod
    def backward(ctx, gradient):
        gradient = gradient.clone()
        gradient[0, 0, 0, 0] = float("nan")
        return gradient


def test_an_image_with_a_gradient_that_is_no_number_skips_the_step_alone(images, monkeypatch):
    model = build("mbt2018-mean")
    clean = refine(model, images, "annealing", **OPTIONS)
    stock = _Run._rounding

    def rounding(self, step):
        relaxed = stock(self, step)
        if step not in (2, 5):
            return relaxed
        return lambda v, name: relaxed(_Broken.apply(v) if name == "y" else v, name)

    monkeypatch.setattr(_Run, "_rounding", rounding)
    with pytest.warns(UserWarning, match="image 0 of the batch skipped 2 of 12 steps"):
        result = refine(model, images, "annealing", **OPTIONS)
    assert result.notes == (
        "image 0 of the batch skipped 2 of 12 steps, because its gradient was not finite",
    )
    assert (result.after.loss < result.before.loss).all()
    assert [part[1] for part in result.strings] == [part[1] for part in clean.strings]
    assert [part[0] for part in result.strings] != [part[0] for part in clean.strings]


def test_a_skipped_image_stands_still_in_spite_of_its_momentum():
    latent = torch.zeros(2, 1, 1, 1, requires_grad=True)
    optimizer = torch.optim.Adam([latent], lr=0.1)
    run = SimpleNamespace(skipped=torch.zeros(2, dtype=torch.int64))
    places = []
    for first in (1.0, float("nan"), float("-inf"), 1.0):
        _Run._step(run, optimizer, [latent], [torch.tensor([first, 1.0]).view(2, 1, 1, 1)])
        places.append(latent.flatten().tolist())
    (a, b, c, d), falling = zip(*places)
    assert 0 > a == b == c > d
    assert sorted(falling, reverse=True) == list(falling) and len({*falling}) == 4
    assert run.skipped.tolist() == [2, 0]


def test_nothing_is_said_of_a_refinement_without_a_fault(images):
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        result = refine(build("mbt2018-mean"), images, **OPTIONS)
    assert result.notes == ()
    assert result.threads == torch.get_num_threads()
