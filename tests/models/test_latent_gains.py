# SPDX-License-Identifier: Apache-2.0
"""Claims of models/gains.py: a batch with a gain an image is the models with these gains folded in, for every
latent structure, with rates and without; stock alone decodes those; what cannot be folded is refused with the
reason."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from compressai.entropy_models import EntropyBottleneck, EntropyModel, GaussianConditional
from compressai.latent_codecs import EntropyBottleneckLatentCodec
from compressai.models.base import SimpleVAECompressionModel
from compressai.registry import MODELS
from torch import nn

from compressai_sga.errors import UnsupportedModelError
from compressai_sga.models import elic, rda, universal
from compressai_sga.models.gains import (
    LMBDA_0,
    RATES,
    Gained,
    condition,
    fold,
    gain_of,
    load_joint,
    places,
    scale_latent,
)
from compressai_sga.refine import LMBDA_BY_QUALITY
from tests.small_models import once

STOCK = {
    "bmshj2018-factorized": (8, 12),
    "bmshj2018-factorized-relu": (8, 12),
    "bmshj2018-hyperprior": (8, 12),
    "mbt2018-mean": (8, 12),
    "mbt2018": (8, 12),
    "cheng2020-anchor": (8,),
    "cheng2020-anchor-checkerboard": (8,),
}
OURS = {
    "elic2022-gdn": (8, 12, [2, 2, 8]),
    "bmshj2018-factorized-uq": (8, 12),
    "bmshj2018-hyperprior-uq": (8, 12),
    "mbt2018-mean-uq": (8, 12),
    "rda-l2": (8, 12),
}
REFUSED = {
    "elic2022-official": (8, 160),
    "elic2022-chandelier": (8, 160),
    "cheng2020-attn": (8,),
    "bmshj2018-hyperprior-vbr": (8, 12),
    "mbt2018-mean-vbr": (8, 12),
    "mbt2018-vbr": (8, 12),
}
SIZES = {**STOCK, **OURS, **REFUSED}
CLASSES = {**MODELS, **elic.ARCHITECTURES, **universal.ARCHITECTURES, **rda.ARCHITECTURES}


@once
def build(name: str) -> nn.Module:
    """A random model with wide latents and scales, medians and biases that are not 0, images of mean grey."""
    with torch.random.fork_rng():
        torch.manual_seed(2)
        model = CLASSES[name](*SIZES[name])
        for module in model.modules():
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d) and module.bias is not None:
                module.bias.data.uniform_(-0.2, 0.2)
            if isinstance(module, EntropyBottleneck):
                for bias in module.biases:
                    bias.data += 0.3
        first, *others = places(model).outputs
        inside = [m for m in model.g_s.modules() if isinstance(m, nn.Conv2d | nn.ConvTranspose2d)]
        inside[-1].bias.data.fill_(0.5)
        for layer in others:
            if not any(layer is m for m in inside):  # scales, and means
                layer.bias.data[: layer.out_channels // 2] += 2
        with torch.no_grad():
            first.weight.mul_(3 / model.g_a(images()).std())
        model.update(force=True, update_quantiles=True)
    return model.eval()


def with_rates(model: nn.Module) -> nn.Module:
    """Scales and offsets as far from 1 and 0 as training takes them."""
    for name, parameter in condition(model).named_parameters():
        if name.endswith(f".{RATES}"):
            parameter.data.normal_(std=0.01, generator=torch.Generator().manual_seed(len(name)))
    return model


def rates_of(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: p for name, p in model.named_parameters() if name.endswith(f".{RATES}")}


def images(batch: int = 2) -> torch.Tensor:
    coarse = torch.rand(batch, 3, 12, 12, generator=torch.Generator().manual_seed(1))
    return nn.functional.interpolate(coarse, 64, mode="bicubic").clamp(0, 1)


def assert_same(out: dict, expected: dict) -> None:
    assert out["likelihoods"].keys() == expected["likelihoods"].keys()
    for name, likelihoods in out["likelihoods"].items():
        torch.testing.assert_close(likelihoods, expected["likelihoods"][name], atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(out["x_hat"], expected["x_hat"], atol=1e-6, rtol=1e-5)


def test_gains_of_rates():
    assert gain_of(LMBDA_0) == 1 and gain_of(4 * LMBDA_0) == pytest.approx(2)
    lmbdas = torch.tensor(LMBDA_BY_QUALITY["mse"])
    assert lmbdas.log().mean().exp().item() == pytest.approx(LMBDA_0, rel=0.02)


@pytest.mark.parametrize("prepare", [lambda model: model, with_rates], ids=["plain", "rates"])
@pytest.mark.parametrize("name", [*STOCK, *OURS])
@torch.no_grad()
def test_a_batch_of_gains_is_the_folded_models(name, prepare):
    """In float64, so that no rounding in the last bit moves a latent to another integer."""
    model, x, gains = prepare(build(name)).double(), images().double(), torch.tensor([0.45, 1.9]).double()
    plain, joint = model(x), copy.deepcopy(model)
    gained = Gained(joint)
    with gained.at(gains):
        out = joint(x)
    assert_same(joint(x), plain)  # outside, the gain is 1
    moved = []
    for b, gain in enumerate(gains.tolist()):
        folded = fold(copy.deepcopy(model), gain)
        assert not rates_of(folded)
        expected = folded(x[b : b + 1])
        mine = {key: value[b : b + 1] for key, value in out["likelihoods"].items()}
        assert_same({"x_hat": out["x_hat"][b : b + 1], "likelihoods": mine}, expected)
        moved.append((expected["likelihoods"]["y"] / plain["likelihoods"]["y"][b : b + 1]).log())
    assert moved[0].mean() > 0.3 and moved[1].mean() < -0.3  # the gain is a gain


@pytest.mark.parametrize("name", [*STOCK, *OURS])
@torch.no_grad()
def test_without_rounding_a_gain_changes_nothing_but_the_unit_of_y(name, monkeypatch):
    """The same image, the same density of y itself; scales, and y less its means, in the new unit."""
    seen: list[tuple[torch.Tensor, ...]] = []
    likelihood = GaussianConditional._likelihood

    def recording(self, inputs, scales, means=None):
        seen.append((inputs if means is None else inputs - means, scales))
        return likelihood(self, inputs, scales, means)

    for owner in (EntropyModel, rda.RoundingBottleneck):
        monkeypatch.setattr(owner, "quantize", lambda self, inputs, mode, means=None: inputs)
    for module in ("checkerboard", "gaussian_conditional", "hyper"):
        monkeypatch.setattr(f"compressai.latent_codecs.{module}.quantize_ste", lambda values: values)
    monkeypatch.setattr(universal._Universal, "_through_channel", lambda self, v, training: v)
    monkeypatch.setattr(GaussianConditional, "_likelihood", recording)
    model, x, gain = build(name).double(), images().double(), 1.9
    plain = model(x)
    torch.testing.assert_close(plain["x_hat"], model.g_s(model.g_a(x)))
    expected, seen = seen, []
    prior, folded = places(model).prior, fold(copy.deepcopy(model), gain)
    torch.testing.assert_close(folded(x)["x_hat"], plain["x_hat"])
    assert len(seen) == len(expected) and bool(seen) is (prior is None)
    for ours, theirs in zip(seen, expected):
        for value, other in zip(ours, theirs):
            torch.testing.assert_close(value, gain * other)
    if prior is not None:
        y = model.g_a(x).transpose(0, 1).flatten(1)[:, None]
        scaled = places(folded).prior._logits_cumulative(gain * y, False)
        torch.testing.assert_close(scaled, prior._logits_cumulative(y, False))


@pytest.mark.parametrize("name", [*STOCK, *OURS])
@torch.no_grad()
def test_training_sees_the_folded_model_too(name):
    """The same with the noise of training, which is drawn alike for batches of one shape."""
    model, x = with_rates(build(name)).double().train(), images().double()
    folded, joint = fold(copy.deepcopy(model), 1.9), copy.deepcopy(model)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        expected = folded(x)
        torch.manual_seed(0)
        with Gained(joint).at(torch.full((2,), 1.9).double()):
            out = joint(x)
    assert_same(out, expected)


@pytest.mark.parametrize("name", [*STOCK, *OURS])
def test_scaling_back_gives_the_model_again(name):
    model = with_rates(build(name))
    back = scale_latent(scale_latent(copy.deepcopy(model), 0.3), 1 / 0.3).state_dict()
    for key, value in model.state_dict().items():
        if key.startswith("entropy_bottleneck._") and back[key].numel() == 0:
            assert places(model).prior is not None  # a table to be made again
        else:
            torch.testing.assert_close(back[key], value, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("name", ["bmshj2018-factorized", "bmshj2018-factorized-uq", "rda-l2"])
def test_tables_of_a_folded_prior_are_made_again(name):
    folded, x = fold(build(name), 0.45), images()
    with pytest.raises(ValueError, match="update|Uninitialized"), torch.no_grad():
        folded.compress(x)
    folded.update()
    with torch.no_grad():
        out = folded.compress(x)
        assert torch.allclose(folded.decompress(**out)["x_hat"], folded(x)["x_hat"].clamp(0, 1), atol=1e-5)


def test_medians_are_those_of_the_folded_prior():
    model = build("bmshj2018-factorized")
    gained = Gained(model)
    assert gained.medians().shape == (1, 12, 1, 1) and gained.medians().abs().max() > 0.05
    with gained.at(torch.tensor([0.5, 3.0])):
        medians = gained.medians()
    for b, gain in enumerate((0.5, 3.0)):
        folded = fold(build("bmshj2018-factorized"), gain).entropy_bottleneck._get_medians()
        assert torch.allclose(medians[b].flatten(), folded.flatten(), rtol=1e-5)


def test_bfloat16_rounds_the_latent_and_not_the_gain():
    model = build("bmshj2018-factorized")
    seen = []
    gain, last = 1.003, model.g_a[-1]  # in bfloat16 it would be 1
    last.register_forward_hook(lambda *call: seen.append(call[-1]))
    gained = Gained(model)
    last.register_forward_hook(lambda *call: seen.append(call[-1]))
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16), gained.at(torch.full((2,), gain)):
        model(images())
    assert seen[0].dtype == seen[1].dtype == torch.bfloat16
    assert torch.equal(seen[1], (seen[0].float() * gain).bfloat16()) and not torch.equal(*seen)


# --- Rates -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*STOCK, *OURS])
@torch.no_grad()
def test_rates_are_of_every_layer_but_those_at_the_picture_and_silent_at_gain_1(name):
    plain, model = build(name), with_rates(build(name))
    convolutions = [n for n, m in plain.named_modules() if isinstance(m, nn.Conv2d | nn.ConvTranspose2d)]
    ends = [[n for n in convolutions if n.startswith(part)] for part in ("g_a", "g_s")]
    expected = [n for n in convolutions if n not in (ends[0][0], ends[1][-1])]
    assert [n.removesuffix(f".{RATES}") for n in rates_of(model)] == expected
    for x_hat in (model(images())["x_hat"], fold(copy.deepcopy(model), 1.0)(images())["x_hat"]):
        torch.testing.assert_close(x_hat, plain(images())["x_hat"])
    folded = fold(model, 0.5).state_dict()
    assert folded.keys() == plain.state_dict().keys()
    layer = expected[0]
    assert not torch.allclose(folded[f"{layer}.weight"], plain.state_dict()[f"{layer}.weight"], rtol=1e-3)


def test_rates_are_learned_and_differ_by_rate():
    model = condition(build("mbt2018-mean")).train()
    with Gained(model).at(torch.tensor([0.5, 2.0])):
        out = model(images())
    (out["x_hat"].square().mean() - out["likelihoods"]["y"].log2().mean()).backward()
    assert all(rates.grad.abs().min(1).values.max() > 0 for rates in rates_of(model).values())
    with torch.no_grad():
        for rates in rates_of(model).values():
            rates -= 0.01 * rates.grad / rates.grad.norm()
    low, high = (fold(copy.deepcopy(model), gain).h_s[2].bias for gain in (0.5, 2.0))
    assert not torch.equal(low, high)


def test_folded_weights_do_not_hang_on_the_last_bit_of_a_logarithm():
    """Of layers that meet no gain."""
    gain = gain_of(0.0035)
    folded = [fold(with_rates(build("mbt2018-mean")), g).g_a[2] for g in (gain, gain * (1 + 1e-15))]
    assert torch.equal(folded[0].weight, folded[1].weight) and torch.equal(folded[0].bias, folded[1].bias)


def test_a_joint_state_dict_is_loaded_with_its_rates_and_refused_with_others():
    model = with_rates(build("mbt2018-mean"))
    state = model.state_dict()
    loaded = load_joint(type(model), state)
    assert loaded.state_dict().keys() == state.keys()
    assert all(torch.equal(rates, state[name]) for name, rates in rates_of(loaded).items())
    with pytest.raises(RuntimeError, match="Unexpected key.*rates"):
        type(model).from_state_dict(state)  # stock would leave out what the rates do
    plain = build("mbt2018-mean")
    assert not rates_of(load_joint(type(plain), plain.state_dict()))
    for change in ({"g_a.0.rates": torch.zeros(4, 8)}, {"g_a.2.rates": torch.zeros(4, 9)}):
        with pytest.raises(RuntimeError, match="rates"):
            load_joint(type(model), state | change)
    with pytest.raises(RuntimeError, match="rates .* do not match the layers of MeanScaleHyperprior"):
        load_joint(type(model), {k: v for k, v in state.items() if k != "g_s.0.rates"})


def test_convolutions_that_no_rates_fold_into():
    model = build("mbt2018-mean")
    model.g_s[2] = nn.ConvTranspose2d(8, 8, 5, 2, 2, 1, groups=2)
    with pytest.raises(
        UnsupportedModelError, match="g_s.2 of MeanScaleHyperprior is a transposed .* 2 groups"
    ):
        condition(model)
    with pytest.raises(UnsupportedModelError, match="ends with AttentionBlock"):
        condition(MODELS["cheng2020-attn"](8))


# --- Stock -------------------------------------------------------------------------------------

STOCK_DECODER = """
import pickle, sys, torch
from compressai.registry import MODELS
torch.set_num_threads(1)
jobs = pickle.load(open(sys.argv[1], "rb"))
images = {}
for name, (size, state, strings, shape) in jobs.items():
    model = MODELS[name](*size).eval()
    model.load_state_dict(state)
    with torch.no_grad():
        images[name] = model.decompress(strings, shape)["x_hat"]
assert not any(m.startswith("compressai_sga.") or m == "compressai_sga" for m in sys.modules)
torch.save(images, sys.argv[2])
"""


def test_stock_alone_decodes_the_folded_models(tmp_path, python):
    jobs, expected = {}, {}
    for name, size in STOCK.items():
        model, x = fold(with_rates(build(name)), 1.9), images(1)
        model.update()
        with torch.no_grad():
            out = model.compress(x)
            expected[name] = model.decompress(**{k: out[k] for k in ("strings", "shape")})["x_hat"]
        assert expected[name].std() > 1e-3
        jobs[name] = (size, model.state_dict(), out["strings"], out["shape"])
    (tmp_path / "jobs.pkl").write_bytes(pickle.dumps(jobs))
    files = tmp_path / "jobs.pkl", tmp_path / "images.pt"
    python("-c", STOCK_DECODER, *files, check=True, COMPRESSAI_SGA_DISABLE="1")
    decoded = torch.load(tmp_path / "images.pt")
    for name in STOCK:
        assert (decoded[name] - expected[name]).abs().max() <= 1e-5, name


# --- What is refused ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("elic2022-official", "g_a of Elic2022Official ends with AttentionBlock; a gain needs a convolution"),
        ("elic2022-chandelier", "g_a of Elic2022Chandelier ends with AttentionBlock; a gain needs"),
        ("cheng2020-attn", "g_a of Cheng2020Attention ends with AttentionBlock"),
        ("bmshj2018-hyperprior-vbr", "ScaleHyperpriorVbr has gains of its own"),
        ("mbt2018-mean-vbr", "MeanScaleHyperpriorVbr has gains of its own"),
        ("mbt2018-vbr", "JointAutoregressiveHierarchicalPriorsVbr has gains of its own"),
    ],
)
def test_models_without_a_place_for_a_gain(name, sentence):
    model = MODELS[name](*SIZES[name])
    before = copy.deepcopy(model.state_dict())
    for use in (places, Gained, lambda net: fold(net, 2.0)):
        with pytest.raises(UnsupportedModelError, match=sentence):
            use(model)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_models_whose_parts_are_others():
    model = build("mbt2018-mean")
    model.g_s = nn.Sequential(MODELS["elic2022-official"](8, 160).g_s[0], *model.g_s)
    with pytest.raises(UnsupportedModelError, match="g_s of MeanScaleHyperprior begins with AttentionBlock"):
        places(model)
    model.g_s = nn.Sequential()
    with pytest.raises(UnsupportedModelError, match="g_s of MeanScaleHyperprior begins with no layer"):
        places(model)
    model = build("mbt2018-mean")
    model.h_s.append(nn.Sigmoid())
    with pytest.raises(UnsupportedModelError, match="h_s of MeanScaleHyperprior ends with Sigmoid"):
        places(model)
    with pytest.raises(UnsupportedModelError, match="Conv2d has no g_a; a gain is for the latent between"):
        places(nn.Conv2d(3, 3, 1))
    model = build("bmshj2018-factorized")
    del model.entropy_bottleneck
    with pytest.raises(UnsupportedModelError, match="neither a hyperprior nor a bottleneck over y"):
        places(model)
    model = SimpleVAECompressionModel()
    model.g_a, model.g_s = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 3, 1)
    model.latent_codec = EntropyBottleneckLatentCodec(EntropyBottleneck(4))
    with pytest.raises(UnsupportedModelError, match="y by EntropyBottleneckLatentCodec without"):
        places(model)


@pytest.mark.parametrize("bad", [0.0, -1.0, float("inf"), float("nan")])
def test_bad_gains(bad):
    model = build("bmshj2018-factorized")
    with pytest.raises(ValueError, match="must be positive and finite"):
        fold(model, bad)
    with pytest.raises(ValueError, match="must be positive and finite"):
        gain_of(bad)
    gained = Gained(model)
    for gains in (torch.tensor([1.0, bad]), torch.ones(2, 1)):
        with pytest.raises(ValueError, match="one positive and finite number an image"), gained.at(gains):
            pass
