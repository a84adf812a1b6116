# SPDX-License-Identifier: Apache-2.0
"""Claims of models/universal.py: stock models with dither instead of rounding train, code and load as
stock ones do, and what the decoder gets has the law that training saw."""

from __future__ import annotations

import copy
import math
import pickle

import compressai.zoo
import pytest
import torch
from compressai.entropy_models import EntropyBottleneck
from compressai.models import (
    Cheng2020Anchor,
    FactorizedPrior,
    FactorizedPriorReLU,
    JointAutoregressiveHierarchicalPriors,
    MeanScaleHyperprior,
    ScaleHyperprior,
)
from compressai.models.vbr import ScaleHyperpriorVbr
from compressai.registry import MODELS
from compressai.zoo.image import model_architectures
from scipy import stats

import compressai_sga
from compressai_sga.errors import BitstreamError, UnsupportedModelError
from compressai_sga.models import universal as module
from compressai_sga.models.universal import LEVELS, UniversalBottleneck, UniversalGaussian, anneal, universal
from tests.small_models import once

ALARM = 1e-4
STOCK = (FactorizedPrior, FactorizedPriorReLU, ScaleHyperprior, MeanScaleHyperprior)


@once
def build(stock: type, temperature: float = 0.2) -> torch.nn.Module:
    """A small model with random weights, wide latents and coding tables."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = universal(stock)(16, 24)
        last = [m for m in net.g_a.modules() if isinstance(m, torch.nn.Conv2d)][-1]
        last.weight.data *= 30
        if hasattr(net, "h_s"):  # scales that suit such latents; chunk 0 of its outputs
            last = [m for m in net.h_s.modules() if isinstance(m, torch.nn.Conv2d)][-1]
            last.bias.data[:24] += 1.5
        anneal(net, temperature)
        net.update(update_quantiles=True)
    return net.eval()


def images(batch: int = 2, side: int = 64) -> torch.Tensor:
    return torch.rand(batch, 3, side, side, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("temperature", [math.inf, 0.2, 0.0])
@pytest.mark.parametrize("stock", STOCK)
def test_strings_decode_to_what_forward_gives(stock, temperature):
    net, x = build(stock, temperature), images()
    with torch.no_grad():
        out, coded = net(x), net.compress(x)
        x_hat = net.decompress(coded["strings"], coded["shape"])["x_hat"]
    torch.testing.assert_close(x_hat, out["x_hat"].clamp(0, 1), rtol=0, atol=1e-5)
    bits = sum(-p.log2().sum() for p in out["likelihoods"].values())
    real = 8 * sum(len(s) for strings in coded["strings"] for s in strings)
    assert real == pytest.approx(float(bits), rel=0.01, abs=2 * 2 * 8 * 8)  # 8 bytes a string


def test_every_image_of_a_batch_decodes_alone():
    """Not so with a hyperprior, as in stock: its network's last bits depend on the size of the batch."""
    net, x = build(FactorizedPrior), images(3)
    with torch.no_grad():
        coded = net.compress(x)
        together = net.decompress(coded["strings"], coded["shape"])["x_hat"]
        for i in range(3):
            strings = [[part[i]] for part in coded["strings"]]
            alone = net.decompress(strings, coded["shape"])["x_hat"]
            torch.testing.assert_close(alone, together[i : i + 1], rtol=0, atol=1e-5)


def test_at_temperature_0_it_is_the_stock_model():
    ours = build(MeanScaleHyperprior, temperature=0.0)
    stock = MeanScaleHyperprior(16, 24)
    names = stock.state_dict().keys()
    tables = ("_quantized_cdf", "_offset", "_cdf_length", "scale_table")
    state = {k: v for k, v in ours.state_dict().items() if k in names and not k.endswith(tables)}
    stock.load_state_dict({**stock.state_dict(), **state})
    with torch.no_grad():
        expected, out = stock.eval()(images()), ours(images())
    torch.testing.assert_close(out["x_hat"], expected["x_hat"], rtol=0, atol=1e-5)
    for name, p in expected["likelihoods"].items():
        torch.testing.assert_close(out["likelihoods"][name], p, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("temperature", [math.inf, 0.3])
def test_decoded_latents_have_the_law_of_training(temperature):
    """y_hat - means in training and at test time, both kinds of module; two-sample KS."""
    gaussian = build(MeanScaleHyperprior, temperature).gaussian_conditional
    bottleneck = build(FactorizedPrior, temperature).entropy_bottleneck
    y = 2 * torch.randn(1, 24, 50, 50, generator=torch.Generator().manual_seed(2))
    means, scales = 0.3 * torch.ones_like(y), torch.ones_like(y)
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(3)
        for call in (
            lambda training: gaussian(y, scales, means, training=training)[0],
            lambda training: bottleneck(y, training=training)[0] - bottleneck._medians(2),
        ):
            trained, coded = call(True).flatten(), call(False).flatten()
            assert stats.ks_2samp(trained.numpy(), coded.numpy()).pvalue > ALARM
            likely = [float(-gaussian._likelihood(v, torch.ones(1)).log2().mean()) for v in (trained, coded)]
            assert likely[0] == pytest.approx(likely[1], rel=0.01)


def test_rounding_has_another_law_than_its_training():
    """The gap that universal quantisation closes: this same test finds it in the stock module."""
    stock = MeanScaleHyperprior(16, 24).gaussian_conditional
    y = 2 * torch.randn(60_000, generator=torch.Generator().manual_seed(2))
    ones = torch.ones_like(y)
    trained, coded = (stock(y, ones, 0.3 * ones, training=t)[0] - 0.3 for t in (True, False))
    assert stats.ks_2samp(trained.numpy(), coded.numpy()).pvalue < 1e-9


def test_training_has_gradients_everywhere():
    net = build(MeanScaleHyperprior, temperature=0.1).train()
    out = net(images())
    loss = (out["x_hat"] - images()).square().mean() + sum(
        -p.log().mean() for p in out["likelihoods"].values()
    )
    loss.backward()
    gradients = [p.grad for name, p in net.named_parameters() if not name.endswith("quantiles")]
    assert all(g is not None and torch.isfinite(g).all() for g in gradients)
    assert all(float(g.abs().max()) > 0 for g in gradients)


def test_state_dict_pickle_and_copy_code_alike(tmp_path):
    net, x = build(MeanScaleHyperprior), images(1)
    with torch.no_grad():
        strings = net.compress(x)["strings"]
        loaded = type(net).from_state_dict(net.state_dict()).eval()
        for other in (loaded, copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
            assert float(other.gaussian_conditional.temperature) == pytest.approx(0.2)
            assert other.compress(x)["strings"] == strings


def test_strings_decode_in_a_fresh_process(tmp_path, python):
    net, x = build(MeanScaleHyperprior), images(1)
    with torch.no_grad():
        coded = net.compress(x)
        expected = net.decompress(coded["strings"], coded["shape"])["x_hat"]
    torch.save({"state": net.state_dict(), "coded": coded}, tmp_path / "file")
    program = (
        "import sys, torch; from compressai_sga.models.universal import ARCHITECTURES;"
        "file = torch.load(sys.argv[1], weights_only=False); coded = file['coded'];"
        "net = ARCHITECTURES['mbt2018-mean-uq'].from_state_dict(file['state']).eval();"
        "x_hat = net.decompress(coded['strings'], coded['shape'])['x_hat'];"
        "torch.save(x_hat.detach(), sys.argv[1])"
    )
    python("-c", program, tmp_path / "file", check=True)
    torch.testing.assert_close(torch.load(tmp_path / "file"), expected, rtol=0, atol=1e-5)


def test_a_stock_checkpoint_can_be_trained_on():
    stock = MeanScaleHyperprior(16, 24)
    stock.update()
    net = universal(MeanScaleHyperprior).from_state_dict(stock.state_dict())
    assert torch.equal(net.g_a[0].weight, stock.g_a[0].weight)
    assert math.isinf(net.entropy_bottleneck.temperature)
    with pytest.raises(ValueError, match="update\\(force=True\\)"):
        net.compress(images(1))
    net.update(force=True)
    assert net.entropy_bottleneck._offset.numel() == 16 * LEVELS
    assert net.gaussian_conditional._quantized_cdf.numel() == 0  # its tables were stock's


def test_damaged_strings_are_refused():
    net = build(MeanScaleHyperprior)
    with torch.no_grad():
        coded = net.compress(images(1))
        ys, zs = coded["strings"]
        for wrong in (ys[0][:-1], ys[0][:10], b"", bytes([ys[0][0] ^ 1]) + ys[0][1:]):
            with pytest.raises(BitstreamError):
                net.decompress([[wrong], zs], coded["shape"])


@pytest.mark.parametrize(
    "stock, part",
    [
        (JointAutoregressiveHierarchicalPriors, "context_prediction"),
        (Cheng2020Anchor, "context_prediction"),
        (ScaleHyperpriorVbr, "Gain"),
    ],
)
def test_models_that_round_elsewhere_are_refused(stock, part):
    arguments = (16,) if stock is Cheng2020Anchor else (16, 24)
    with pytest.raises(UnsupportedModelError, match=part):
        universal(stock)(*arguments)


def test_refinement_refuses_it_and_says_why():
    with pytest.raises(UnsupportedModelError, match="dither"):
        compressai_sga.refine(build(MeanScaleHyperprior), images(1), steps=1, lmbda=0.01)


def test_wrong_temperatures_are_named():
    net = build(FactorizedPrior)
    for wrong in (-0.1, float("nan")):
        with pytest.raises(ValueError, match="temperature"):
            anneal(net, wrong)
    with pytest.raises(ValueError, match="FactorizedPrior has no temperature"):
        anneal(FactorizedPrior(16, 24), 0.1)


def test_another_temperature_needs_other_tables():
    net, x = build(FactorizedPrior), images(1)
    anneal(net, 0.2)
    net.compress(x)  # the same one: the tables stay
    anneal(net, 2.0)
    with pytest.raises(ValueError, match="update\\(force=True\\)"):
        net.compress(x)
    assert net.update()
    strings = net.compress(x)["strings"]
    net.update(force=True)
    assert net.compress(x)["strings"] == strings


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("stock", [FactorizedPrior, MeanScaleHyperprior])
def test_other_float_types_work_where_stock_does(stock, dtype):
    net, x = build(stock).to(dtype), images(1).to(dtype)
    net.update(force=True)
    with torch.no_grad():
        out, coded = net(x), net.compress(x)
        x_hat = net.decompress(coded["strings"], coded["shape"])["x_hat"]
    assert x_hat.dtype == out["x_hat"].dtype == dtype
    assert float((x_hat - out["x_hat"].clamp(0, 1)).abs().max()) < 0.05


def test_sizes_that_do_not_fit_are_named():
    gaussian = build(MeanScaleHyperprior).gaussian_conditional
    y, scales = torch.zeros(3, 4, 2, 2), torch.ones(2, 4, 2, 2)
    with pytest.raises(ValueError, match="indexes"):
        gaussian.compress(y, scales)
    strings = gaussian.compress(y[:2], scales)
    with pytest.raises(ValueError, match="strings"):
        gaussian.decompress([*strings, strings[0]], scales)
    assert gaussian.decompress(strings, scales).shape == scales.shape
    assert gaussian.compress(y[:0], scales[:0]) == []
    assert gaussian.decompress([], scales[:0]).shape == (0, 4, 2, 2)


def test_latents_that_are_no_numbers_are_refused():
    net = build(MeanScaleHyperprior)
    with pytest.raises(ValueError, match="latent"):
        net.gaussian_conditional.compress(torch.full((1, 4, 2, 2), math.nan), torch.ones(1, 4, 2, 2))
    with pytest.raises(ValueError, match="latent"):
        net.entropy_bottleneck.compress(torch.full((1, 16, 2, 2), math.inf))


def test_every_entropy_model_has_its_own_dither():
    net = build(MeanScaleHyperprior)
    assert (net.entropy_bottleneck.dither_block, net.gaussian_conditional.dither_block) == (0, 1)

    class Two(FactorizedPrior):
        def __init__(self, N, M):
            super().__init__(N, M)
            self.second = EntropyBottleneck(N)

    two = universal(Two)(8, 8)
    assert two.entropy_bottleneck.dither_block != two.second.dither_block


def test_a_model_that_rounds_by_itself_is_told():
    net = build(MeanScaleHyperprior)
    for entropy_model in (net.entropy_bottleneck, net.gaussian_conditional):
        for mode in ("noise", "dequantize"):
            with pytest.raises(UnsupportedModelError, match=mode):
                entropy_model.quantize(torch.zeros(2), mode)


@pytest.mark.parametrize("name", module.ARCHITECTURES)
def test_compressai_knows_the_architectures(name):
    assert model_architectures[name] is MODELS[name] is module.ARCHITECTURES[name]
    net = compressai.zoo.image_models[name](quality=1)
    stock = compressai.zoo.image_models[name.removesuffix("-uq")](quality=1)
    assert (net.N, net.M) == (stock.N, stock.M)
    kinds = {type(m) for m in net.modules()}
    assert UniversalBottleneck in kinds and (UniversalGaussian in kinds or "factorized" in name)
    assert universal(type(stock)) is type(net)
