# SPDX-License-Identifier: Apache-2.0
"""Claims of models/rda.py: one formula for both rates, the losses as written, the lecture's rounding, and
files, refinement and stock evaluation as for any of CompressAI's models."""

from __future__ import annotations

import math

import compressai.zoo
import pytest
import torch
from compressai.models import FactorizedPrior, MeanScaleHyperprior
from compressai.registry import MODELS
from compressai.utils.eval_model.__main__ import inference, load_checkpoint
from compressai.zoo.image import model_architectures
from pytorch_msssim import ms_ssim

import compressai_sga
from compressai_sga.coding import set_coder
from compressai_sga.errors import UnsupportedModelError
from compressai_sga.models import rda
from tests.small_models import once

NAMES = {"rda-l2": "l2", "rda-l1": "l1", "rda-ms-ssim": "ms-ssim"}


@once
def build(name: str = "rda-l2") -> torch.nn.Module:
    """A small model with random weights, wide latents off the integers, and coding tables."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = rda.ARCHITECTURES[name](16, 24)
        net.g_a[-1].weight.data *= 30
        for bias in net.entropy_bottleneck.biases:  # medians other than 0
            bias.data += 0.3
        net.update(update_quantiles=True)
    return net.eval()


def images(batch: int = 2, side: int = 64) -> torch.Tensor:
    coarse = torch.rand(batch, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    return torch.nn.functional.interpolate(coarse, side, mode="bicubic").clamp(0, 1)


def noise(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# --- Rounding ---------------------------------------------------------------------------------


def test_half_way_goes_up_where_torch_takes_the_even_one():
    v = torch.tensor([-2.5, -1.5, -0.5, 0.5, 1.5, 2.5])
    assert rda.round_half_up(v).tolist() == [-2, -1, 0, 1, 2, 3]
    assert torch.round(v).tolist() == [-2, -2, 0, 0, 2, 2]


def test_everywhere_else_both_are_the_nearest_integer():
    v = 20 * torch.randn(10_000, generator=noise())
    assert torch.equal(rda.round_half_up(v), torch.round(v))
    for dtype in (torch.float64, torch.float32):
        half = torch.tensor([0.5, -0.5], dtype=dtype)
        just = torch.nextafter(half, torch.tensor([0.0, -1.0], dtype=dtype))
        assert rda.round_half_up(just).tolist() == [0, -1]  # floor(v + 1/2) gives 1 for the first
    large = torch.tensor([2.0**23 + 1, -(2.0**23) - 1, 2.0**24])  # v + 1/2 is no float there
    assert torch.equal(rda.round_half_up(large), large)


def test_the_bottleneck_rounds_so():
    bottleneck = build().entropy_bottleneck
    values, medians = torch.tensor([0.75, 1.75, -1.25]), torch.tensor(0.25)
    assert bottleneck.quantize(values, "symbols", medians).tolist() == [1, 2, -1]
    assert bottleneck.quantize(values, "dequantize", medians).tolist() == [1.25, 2.25, -0.75]
    assert bottleneck.quantize(values, "symbols").dtype == torch.int32
    noisy = bottleneck.quantize(values, "noise") - values
    assert 0 < float(noisy.abs().max()) <= 0.5
    with pytest.raises(ValueError, match="'round'.*noise, dequantize or symbols"):
        bottleneck.quantize(values, "round")


# --- Rate -------------------------------------------------------------------------------------


@torch.no_grad()
def test_one_formula_is_a_density_and_a_probability():
    """Of every channel, p~ integrates to 1, and sums to 1 over the integers around the median."""
    per_unit = 16
    v = torch.arange(-300 * per_unit, 300 * per_unit) / per_unit
    for channel in range(3):
        net = build()
        bottleneck = net.entropy_bottleneck
        for group in (bottleneck.matrices, bottleneck.biases, bottleneck.factors):
            for parameter in group:  # of this channel alone
                parameter.data = parameter.data[channel : channel + 1]
        bits = rda.latent_bits(net, v[:, None, None, None])  # an image a value
        assert bits.shape == v.shape and float(bits.min()) >= 0
        p = torch.exp2(-bits)
        assert float(p.sum()) / per_unit == pytest.approx(1, abs=1e-3)
        assert float(p[::per_unit].sum()) == pytest.approx(1, abs=1e-3)


@torch.no_grad()
def test_discrete_bits_are_those_of_stock_in_evaluation_and_of_the_strings():
    net, x = build(), images()
    likelihoods = net(x)["likelihoods"]["y"]
    expected = -likelihoods.log2().flatten(1).sum(1)
    bits = rda.discrete_bits(net, x)
    torch.testing.assert_close(bits, expected)
    real = [8 * len(string) for string in net.compress(x)["strings"][0]]
    assert real == pytest.approx(bits.tolist(), rel=0.02, abs=64)


@torch.no_grad()
def test_differential_bits_are_those_of_stock_in_training():
    """Means of 40 draws, which agree within 5 standard errors."""
    net, x = build(), images(1)
    ours = torch.stack([rda.differential_bits(net, x, noise(seed)) for seed in range(40)]).flatten()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net.train()
        theirs = torch.stack([-net(x)["likelihoods"]["y"].log2().sum() for _ in range(40)])
    error = math.hypot(float(ours.std()), float(theirs.std())) / 40**0.5
    assert abs(float(ours.mean() - theirs.mean())) < 5 * error
    assert float(ours.std()) < 0.05 * float(ours.mean())  # so that the comparison says something


@torch.no_grad()
def test_noise_is_the_generators_and_fills_half_a_step_to_either_side():
    net, x = build(), images()
    y = net.g_a(x)
    u = rda.with_noise(y, noise(1)) - y
    assert -0.5 <= float(u.min()) < -0.49 and 0.49 < float(u.max()) <= 0.5
    assert float(u.mean()) == pytest.approx(0, abs=0.05)
    assert torch.equal(rda.differential_bits(net, x, noise(1)), rda.differential_bits(net, x, noise(1)))
    assert not torch.equal(rda.differential_bits(net, x, noise(1)), rda.differential_bits(net, x, noise(2)))


def test_training_has_gradients_and_files_have_none():
    net, x = build(), images(1)
    loss = rda.differential_bits(net, x, noise()).sum() + rda.noise_distortion(net, x, noise()).sum()
    for gradient in torch.autograd.grad(loss, [net.g_a[0].weight, net.g_s[0].weight]):
        assert torch.isfinite(gradient).all() and float(gradient.abs().max()) > 0
    (gradient,) = torch.autograd.grad(
        rda.rounding_distortion(net, x).sum(), [net.g_a[0].weight], allow_unused=True
    )
    assert gradient is None or float(gradient.abs().max()) == 0


def test_models_with_a_hyperprior_are_refused():
    with pytest.raises(UnsupportedModelError, match="hyperprior, h_a; take"):
        rda.discrete_bits(MeanScaleHyperprior(16, 24), images(1))
    with pytest.raises(UnsupportedModelError, match="has no g_a, g_s, entropy_bottleneck"):
        rda.discrete_bits(torch.nn.Linear(1, 1), images(1))


# --- Distortion -------------------------------------------------------------------------------


def test_distortions_are_what_the_formulas_say():
    x = torch.full((2, 3, 176, 176), 0.5)
    x_hat = x + torch.tensor([0.1, -0.2]).reshape(2, 1, 1, 1)
    torch.testing.assert_close(rda.distortion(x, x_hat, "l2"), torch.tensor([25.5**2, 51.0**2]))
    torch.testing.assert_close(rda.distortion(x, x_hat, "l1"), torch.tensor([25.5, 51.0]))
    x = images(2, 176)
    x_hat = (x + 0.1 * torch.randn(x.shape, generator=noise())).clamp(0, 1)
    ssim = torch.stack([ms_ssim(x_hat[i : i + 1], x[i : i + 1], data_range=1.0) for i in range(2)])
    torch.testing.assert_close(rda.distortion(x, x_hat, "ms-ssim"), 1 - ssim)
    with pytest.raises(ValueError, match="'l3'; there are l2, l1, ms-ssim"):
        rda.distortion(x, x_hat, "l3")


@torch.no_grad()
@pytest.mark.parametrize(("name", "kind"), NAMES.items())
def test_a_model_is_measured_by_what_it_is_trained_for(name, kind):
    net, x = build(name), images(1, 176)
    assert net.distortion == kind
    x_hat = net.decompress(**net.compress(x))["x_hat"]
    expected = rda.distortion(x, x_hat, kind)
    torch.testing.assert_close(rda.rounding_distortion(net, x), expected, rtol=1e-4, atol=1e-6)
    with_noise = rda.noise_distortion(net, x, noise())
    assert with_noise.shape == (1,) and not torch.allclose(with_noise, expected, rtol=1e-5)
    assert torch.equal(rda.rounding_distortion(net, x, "l1"), rda.rounding_distortion(build(), x, "l1"))


def test_trade_offs_rise_and_come_back():
    for kind, lmbdas in rda.LMBDA.items():
        assert len(lmbdas) == 8 and sorted(lmbdas) == list(lmbdas)
        for lmbda, l2 in zip(lmbdas, rda.LMBDA["l2"], strict=True):
            assert rda.mse_lmbda(lmbda, kind) == pytest.approx(l2, rel=0.08 if kind == "ms-ssim" else 0.01)
    with pytest.raises(ValueError, match="'mse'; there are"):
        rda.mse_lmbda(1.0, "mse")


# --- As any model of CompressAI ---------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_compressai_knows_the_architectures(name):
    assert model_architectures[name] is MODELS[name] is rda.ARCHITECTURES[name]
    net, stock = (compressai.zoo.image_models[n](quality=6) for n in (name, "bmshj2018-factorized"))
    assert (net.N, net.M) == (stock.N, stock.M) == (192, 320)
    assert net.state_dict().keys() == stock.state_dict().keys()


@torch.no_grad()
@pytest.mark.parametrize("coder", ["ans", "constriction-ans"])
def test_strings_decode_to_what_forward_gives_also_by_the_stock_class(coder):
    net, x = set_coder(build(), coder), images()
    coded = net.compress(x)
    expected = net(x)["x_hat"].clamp(0, 1)
    torch.testing.assert_close(net.decompress(**coded)["x_hat"], expected, rtol=0, atol=1e-5)
    stock = set_coder(FactorizedPrior.from_state_dict(net.state_dict()).eval(), coder)
    torch.testing.assert_close(stock.decompress(**coded)["x_hat"], expected, rtol=0, atol=1e-5)


def test_stock_evaluation_of_a_checkpoint(tmp_path):
    torch.save(build("rda-l1").state_dict(), tmp_path / "model.pth")
    net = load_checkpoint("rda-l1", True, str(tmp_path / "model.pth"))
    assert type(net) is rda.L1Autoencoder
    result = inference(net, images(1, 192)[0])
    assert result["bpp"] > 0 and math.isfinite(result["psnr-rgb"])


def test_refinement_refines_it():
    net, x = build("rda-l1"), images(1)
    result = compressai_sga.refine(net, x, method="ssl", steps=30, lmbda=0.01, seed=0)
    assert float(result.after.loss) < float(result.before.loss)
    with torch.no_grad():
        x_hat = net.decompress(result.strings, result.shape)["x_hat"]
    mse = float((x_hat - x).square().mean())
    assert mse == pytest.approx(float(result.after.mse), rel=1e-3)
