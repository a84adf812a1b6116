# SPDX-License-Identifier: Apache-2.0
"""The pixel model's probabilities sum to one, and the two-part code is a code that fits."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from compressai_sga import zoo
from compressai_sga.errors import ShapeError
from compressai_sga.metrics import pixel_model
from compressai_sga.metrics.critic import Compressor, critic, default_reference
from compressai_sga.metrics.photographs import PHOTOGRAPHS
from compressai_sga.metrics.pixel_model import FittedPixelModel, PixelModel, Plane


def random_model(levels: int) -> PixelModel:
    """Any parameters make a law."""
    generator = np.random.default_rng(levels)
    planes = tuple(
        Plane(
            tuple(generator.normal(0, 0.6, 11 + 8 * index).tolist()),
            tuple(generator.normal(0.1, 0.2, 10 + 5 * index).tolist()),
            tuple(generator.integers(0, 70, 16).tolist()),
        )
        for index in range(3)
    )
    return PixelModel(planes, levels)


@pytest.fixture(scope="module")
def photographs() -> list[Tensor]:
    found = []
    for path in zoo.sample_images():
        with Image.open(path) as image:
            x = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)[None]
        found.append(x[:, :, :160, :128].contiguous())
    return found


@pytest.mark.parametrize(
    ("levels", "height", "width"), [(16, 1, 1), (3, 1, 2), (3, 2, 1), (2, 1, 5), (2, 5, 1), (2, 2, 2)]
)
def test_probabilities_of_all_images_sum_to_1(levels, height, width):
    """Fails when a value is predicted from itself or a later one, or when a tail is lost."""
    values = torch.arange(levels, dtype=torch.uint8)
    x = torch.cartesian_prod(*[values] * (3 * height * width)).view(-1, 3, height, width)
    assert float((-random_model(levels).bits(x)).exp2().sum()) == pytest.approx(1, abs=1e-9)


def test_batches_and_sizes_do_not_matter(photographs):
    x = torch.cat(photographs)
    alone = torch.cat([PHOTOGRAPHS.bits(image[None]) for image in x])
    assert torch.allclose(PHOTOGRAPHS.bits(x), alone, rtol=1e-9)
    assert float(PHOTOGRAPHS.joint_bits(x)) == pytest.approx(float(alone.sum()))


def test_photographs_cost_about_what_a_lossless_codec_needs(photographs):
    """Within 10 % of lossless WebP, in sum, on photographs that it was not fitted to."""
    ours = sum(float(PHOTOGRAPHS.bits(x)) for x in photographs)
    webp = sum(float(Compressor("webp").bits(x)) for x in photographs)
    assert 0.85 < ours / webp < 1.1


def test_fitting_lowers_the_bits_and_pays_for_its_parameters(photographs):
    for x in photographs:
        fitted = PixelModel.fit([x])
        under = float(fitted.bits(x))
        assert under < float(PHOTOGRAPHS.bits(x))
        assert float(FittedPixelModel().bits(x)) == under + fitted.description_bits
        numbers = [w for plane in fitted.planes for w in (*plane.predictor, *plane.magnitude)]
        assert torch.tensor(numbers).half().double().tolist() == numbers  # 16 bits say each
        assert fitted.description_bits == 16 * len(numbers) + 8 * 16 * 3
    assert all(0 <= c < 136 for plane in PHOTOGRAPHS.planes for c in plane.choices)


def test_a_batch_shares_its_parameters(photographs):
    code = FittedPixelModel()
    twice = photographs[0].repeat(2, 1, 1, 1)
    one = code.bits(photographs[0])
    shared = PixelModel.fit([photographs[0]]).description_bits
    assert float(code.joint_bits(twice)) == pytest.approx(2 * float(one) - shared, rel=1e-3)


def test_white_noise_costs_its_entropy():
    """Independent Gaussian values of sigma 8 have log2(8 sqrt(2 pi e)) = 5.05 bits."""
    noise = np.random.default_rng(0).normal(128, 8, (1, 3, 128, 128)).round()
    x = torch.from_numpy(noise.astype(np.uint8))
    assert float(FittedPixelModel().bits(x)) / noise.size == pytest.approx(5.05, abs=0.12)


@pytest.mark.parametrize("value", [0, 77, 255])
def test_flat_images_cost_hardly_more_than_the_parameters(value):
    x = torch.full((1, 3, 96, 80), value, dtype=torch.uint8)
    assert float(FittedPixelModel().bits(x)) < PHOTOGRAPHS.description_bits + 0.05 * x.numel()
    assert float(critic(x, PHOTOGRAPHS, default_reference())) > 0  # not much: photographs have flat places


def test_large_images_are_fitted_to_bands(photographs, monkeypatch):
    x = photographs[0]
    whole = float(FittedPixelModel().bits(x))
    monkeypatch.setattr(pixel_model, "_FIT_PX", 2**13)
    monkeypatch.setattr(pixel_model, "_BAND_ROWS", 16)
    banded = float(FittedPixelModel().bits(x))
    assert whole < banded < 1.05 * whole


@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 1, 8, 8), (1, 3, 0, 8)])
def test_other_shapes_are_refused(shape):
    with pytest.raises(ShapeError, match=r"they must be \(B, 3, H, W\) of torch.uint8"):
        PHOTOGRAPHS.bits(torch.zeros(shape, dtype=torch.uint8))
    with pytest.raises(ShapeError):
        FittedPixelModel().joint_bits(torch.zeros(1, 3, 8, 8))
