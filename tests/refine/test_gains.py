# SPDX-License-Identifier: Apache-2.0
"""What refinement gains on trained models, and the estimate of the trade-off.

Small crops of the sample images and few steps keep this fast; the papers' order of methods needs more
images and steps and is checked on the committed results, in test_eval.py.
"""

from __future__ import annotations

import dataclasses

import pytest
import torch
from compressai.utils.eval_model.__main__ import read_image

from compressai_sga import zoo
from compressai_sga.lmbda import nearest_published
from compressai_sga.models import diffc, hfd
from compressai_sga.models.universal import ARCHITECTURES
from compressai_sga.refine import LMBDA_BY_QUALITY, PRESETS, refine
from compressai_sga.refine.loop import build_adapter
from compressai_sga.refine.objective import estimate_lmbda

OTHERS = {*ARCHITECTURES, *hfd.ARCHITECTURES, *diffc.ARCHITECTURES}
REFINABLE = [r for r in zoo.list_models() if r.architecture not in OTHERS]  # those that round


def crops(size: int) -> torch.Tensor:
    images = [read_image(path) for path in zoo.sample_images()]
    return torch.stack([image[:, :size, :size] for image in images])


@pytest.fixture(scope="module")
def model():
    return zoo.load()


@pytest.fixture(scope="module")
def losses(model):
    """Mean loss with real bits, by preset and steps, on three crops of 64x64."""
    x = crops(64)
    done = {}
    for preset, steps in (("fast", None), ("ssl", 60), ("atanh", 100), ("ssl-paper", 200)):
        result = refine(model, x, preset=preset, steps=steps)
        done[preset] = result.after.loss.mean().item()
        done["none"] = result.before.loss.mean().item()
    return done


def test_gain_is_worth_having(losses):
    assert losses["ssl"] < 0.97 * losses["none"]
    assert losses["atanh"] < 0.97 * losses["none"]


def test_fast_needs_at_most_100_steps_for_what_ssl_paper_does_in_200(losses):
    """In eval/results: 500, on 24 images."""
    assert PRESETS["fast"].steps <= 100
    assert losses["fast"] <= losses["ssl-paper"]


@pytest.mark.parametrize("record", REFINABLE, ids=lambda r: f"{r.name}-{r.quality}")
def test_training_lmbda_is_found_from_the_quantisation_noise(record):
    """The estimate for a model of unknown origin is near the value that it was trained with.

    The models whose training was short (quality 6, the factorised ones) are furthest off.
    """
    net = zoo.load(record.name, record.quality)
    x = crops(192)
    adapter = build_adapter(net, {})
    latents, _ = adapter.latents_of(x)
    whole = slice(0, 192), slice(0, 192)
    generator = torch.Generator().manual_seed(0)
    lmbda = estimate_lmbda(adapter, latents, x, whole, "mse", generator)
    assert 1 / 1.7 < lmbda / record.lmbda < 1.3
    if (record.name, record.quality) == (zoo.DEFAULT_MODEL, zoo.DEFAULT_QUALITY):
        assert nearest_published(lmbda, "mse") == record.lmbda


def test_published_trade_offs_are_fixed_points_and_far_values_stay():
    for known in LMBDA_BY_QUALITY["mse"]:
        assert nearest_published(known * 1.3, "mse") == nearest_published(known / 1.3, "mse") == known
    assert nearest_published(1.0, "mse") == 1.0


def test_other_lmbda_moves_along_the_curve(model):
    """Semi-multi-rate: a larger weight of the distortion gives more bits and a better image."""
    x = crops(128)
    low, high = (refine(model, x, "soft-round", steps=40, lmbda=v) for v in (0.003, 0.015))
    assert low.after.bpp.mean() < low.before.bpp.mean() < high.after.bpp.mean()
    assert low.after.psnr_db.mean() < high.after.psnr_db.mean()


@pytest.mark.parametrize("quality", [3, pytest.param(6, marks=pytest.mark.slow)])
def test_bfloat16_loop_costs_nothing_measurable(quality):
    """The precision of the loop's synthesis changes the result by less than 0.2 % of the loss."""
    model = zoo.load(quality=quality)
    x = crops(128)
    loss = {}
    for precision in ("float32", "bfloat16"):
        config = dataclasses.replace(PRESETS["fast"], steps=40, precision=precision)
        loss[precision] = refine(model, x, config=config).after.loss.mean().item()
    assert loss["bfloat16"] == pytest.approx(loss["float32"], rel=2e-3)
