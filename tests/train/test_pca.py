# SPDX-License-Identifier: Apache-2.0
"""Claims of pca.py: at step 0 the codec is a block transform with the step size asked for."""

from __future__ import annotations

import math

import pytest
import torch
from compressai.models import Cheng2020Anchor, FactorizedPrior, MeanScaleHyperprior
from compressai.utils.eval_model.__main__ import read_image

from compressai_sga import zoo


@pytest.fixture
def images():
    """Crops of the zoo's sample images, shape (9, 3, 128, 128)."""
    pictures = [read_image(path) for path in zoo.sample_images()]
    places = ((0, 0), (72, 0), (40, 100))
    return torch.stack([p[:, t : t + 128, s : s + 128] for p in pictures for t, s in places])


def psnr_db(a, b) -> float:
    return -10 * math.log10(float((a - b).pow(2).mean()))


@torch.no_grad()
@pytest.mark.parametrize("architecture", [MeanScaleHyperprior, FactorizedPrior])
def test_step_zero_is_above_25_db(images, architecture):
    from pca import initialise_from_pca

    torch.manual_seed(0)
    model = architecture(64, 96).eval()
    assert psnr_db(model(images)["x_hat"], images) < 15
    initialise_from_pca(model, images, lmbda=0.013)
    y = model.g_a(images)
    assert psnr_db(model.g_s(y), images) > 26
    assert psnr_db(model.g_s(y.round()), images) > 25


@torch.no_grad()
def test_smaller_lmbda_means_coarser_quantisation(images):
    from pca import initialise_from_pca, step_for_lmbda

    energy = []
    for lmbda in (0.013, 0.0018):
        torch.manual_seed(0)
        model = FactorizedPrior(64, 96)
        initialise_from_pca(model, images, lmbda)
        energy.append(model.g_a(images).std())
    expected = step_for_lmbda(0.0018) / step_for_lmbda(0.013)
    assert float(energy[0] / energy[1]) == pytest.approx(expected, rel=0.02)
    assert expected == pytest.approx(math.sqrt(0.013 / 0.0018))


@torch.no_grad()
def test_predicted_scales_start_at_the_latents_deviations(images):
    from pca import initialise_from_pca

    torch.manual_seed(0)
    model = MeanScaleHyperprior(64, 96)
    initialise_from_pca(model, images, lmbda=0.013)
    scales = model.h_s[-1].bias[:96]
    assert torch.allclose(scales, model.g_a(images).std((0, 2, 3)).clamp_min(0.2), rtol=1e-4)
    assert (model.h_s[-1].bias[96:] == 0).all()


def test_another_kind_of_transform_is_refused(images):
    from pca import initialise_from_pca

    with pytest.raises(ValueError, match="stride 2.*--init default"):
        initialise_from_pca(Cheng2020Anchor(32), images, lmbda=0.013)


@torch.no_grad()
@pytest.mark.parametrize("architecture", ["mbt2018-mean", "mbt2018", "elic2022-gdn"])
def test_the_hyperprior_is_heard_from_the_start(images, architecture):
    """PyTorch's default gives a z that rounds to nothing; here it varies, and the scales see it."""
    from compressai.zoo.image import model_architectures

    import compressai_sga  # noqa: F401 -- registers elic2022-gdn
    from pca import Z_STD, initialise_from_pca

    torch.manual_seed(0)
    model = model_architectures[architecture](64, 96).eval()
    hyper = model.latent_codec["hyper"] if hasattr(model, "latent_codec") else model
    y = model.g_a(images)
    assert not hyper.h_a(y).round().any()
    initialise_from_pca(model, images, lmbda=0.013)
    y = model.g_a(images)
    z = hyper.h_a(y)
    assert z.std() == pytest.approx(Z_STD, rel=0.05)
    side = hyper.h_s(z.round())
    assert (side - hyper.h_s(torch.zeros_like(z))).std() > 0.05


@torch.no_grad()
def test_every_layer_has_unit_variance():
    from torch import nn

    from pca import unit_variance

    torch.manual_seed(0)
    layers = nn.Sequential(
        nn.Conv2d(8, 16, 3), nn.ReLU(), nn.ConvTranspose2d(16, 4, 3), nn.ReLU(), nn.Conv2d(4, 6, 1)
    )
    x = 30 * torch.randn(4, 8, 12, 12)
    out = unit_variance(layers, x, last_std=3.0)
    assert torch.equal(out, layers(x))
    assert out.std() == pytest.approx(3, rel=1e-4)
    assert layers[0](x).std() == pytest.approx(1, rel=1e-4)
    assert layers[:3](x).std() == pytest.approx(1, rel=1e-4)
