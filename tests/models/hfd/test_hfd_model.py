# SPDX-License-Identifier: Apache-2.0
"""Claims of models/hfd/model.py: the bits are the first stage's, images depend on nothing but the strings and
the knobs, realism 0 is the first stage, state dicts hold everything, refinement refines the first stage."""

from __future__ import annotations

import math

import pytest
import torch
from compressai.models import CompressionModel, FactorizedPrior
from compressai.registry import MODELS
from torch import Tensor

import compressai_sga
from compressai_sga.errors import BitstreamError, SgaError, ShapeError
from compressai_sga.models.hfd import HFD
from compressai_sga.models.hfd.sampling import seed_of
from tests.models.hfd.hfd_parts import GaussianNetwork, first_stage, generator, hfd, images, random_network

ARCHITECTURES = ["bmshj2018-factorized", "mbt2018-mean", "mbt2018", "elic2022-official", "mbt2018-mean-uq"]


def decoded(model: HFD, out: dict, **knobs) -> Tensor:
    with torch.no_grad():
        return model.decompress(out["strings"], out["shape"], **knobs)["x_hat"]


def compressed(model: HFD, x: Tensor, **kwargs) -> dict:
    with torch.no_grad():
        return model.compress(x, **kwargs)


def forbidden(*_):
    raise AssertionError("the network was called")


# --- Bits and images ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_bits_are_the_first_stages(name):
    x, model = images(2, 64, 128), hfd(name)
    out, plain = compressed(model, x), compressed(first_stage(name), x)
    assert out["strings"] == plain["strings"] and out["shape"] == plain["shape"]
    assert len({*out["strings"][0]}) == 2
    x_hat = decoded(model, out)
    assert x_hat.shape == x.shape and 0 <= float(x_hat.min()) and float(x_hat.max()) <= 1
    assert float((x_hat - decoded(model, out, realism=0)).std()) > 0.01


def test_keywords_go_to_the_first_stage():
    x, model = images(), hfd("bmshj2018-hyperprior-vbr")
    rates = []
    for rate in ({"s": 0}, {"s": 5}):
        out, plain = compressed(model, x, **rate), compressed(model.first_stage, x, **rate)
        assert out["strings"] == plain["strings"]
        with torch.no_grad():
            first = model.first_stage.decompress(**out, **rate)["x_hat"]
        assert torch.equal(decoded(model, out, realism=0, **rate), first)
        assert not torch.equal(decoded(model, out, **rate), first)
        rates.append(len(out["strings"][0][0]))
    assert rates[0] < rates[1]


def test_realism_0_is_the_first_stage_bit_for_bit():
    x, model = images(3, 64, 128), hfd("mbt2018-mean", realism=0.0)
    model.denoiser.forward = forbidden
    out = compressed(model, x)
    with torch.no_grad():
        plain, forward = model.first_stage.decompress(**out), model.first_stage(x)
        assert torch.equal(decoded(model, out), plain["x_hat"])
        assert torch.equal(model(x)["x_hat"], forward["x_hat"])
    with pytest.raises(AssertionError, match="was called"):
        decoded(model, out, realism=0.5)
    small = hfd(realism=0.0)
    assert decoded(small, compressed(small, images(1, 32, 32))).shape == (1, 3, 32, 32)


def test_an_image_is_the_same_alone_and_in_a_batch():
    x, model = images(3, 64, 128), hfd("mbt2018-mean")
    together = decoded(model, compressed(model, x))
    for index in range(3):
        out = compressed(model, x)
        alone = {"strings": [[part[index]] for part in out["strings"]], "shape": out["shape"]}
        assert torch.equal(decoded(model, alone), together[index : index + 1])


def test_another_process_decodes_the_same_image(tmp_path, python):
    model = hfd("mbt2018-mean", realism=0.8)
    out = compressed(model, images(2, 64, 128))
    torch.save((model.state_dict(), out["strings"], tuple(out["shape"])), tmp_path / "sent.pt")
    program = (
        "import sys, torch\n"
        "from compressai_sga.models.hfd import HFD\n"
        "state, strings, shape = torch.load(sys.argv[1])\n"
        "with torch.no_grad():\n"
        "    x_hat = HFD.from_state_dict(state).eval().decompress(strings, shape)['x_hat']\n"
        "torch.save(x_hat, sys.argv[2])\n"
    )
    there = tmp_path / "there.pt"
    threads = str(torch.get_num_threads())
    python("-c", program, tmp_path / "sent.pt", there, check=True, OMP_NUM_THREADS=threads)
    assert torch.equal(torch.load(there), decoded(model, out))


def test_psnr_falls_with_realism():
    """The error is |x - x_1|^2 + realism^2 tau^2 |r|^2 for a draw that is independent of x, given x_1."""
    tau = 0.05
    model = HFD(first_stage(), GaussianNetwork(1.0, tau=tau), quality=1, steps=8, progress=False).eval()
    out = compressed(model, images(1, 128, 128))
    x_first = decoded(model, out, realism=0)
    x = x_first + tau * torch.randn(x_first.shape, generator=generator(9))
    inner = (x_first > 0.3) & (x_first < 0.7)  # where the clamp to [0, 1] does nothing
    assert int(inner.sum()) > 20_000
    psnrs = []
    for realism in (0, 0.25, 0.5, 0.75, 1):
        mse = (decoded(model, out, realism=realism) - x)[inner].square().mean()
        psnrs.append(-10 * math.log10(mse))
        assert float(mse) == pytest.approx(tau**2 * (1 + realism**2), rel=0.05)
    assert psnrs == sorted(psnrs, reverse=True) and psnrs[0] - psnrs[-1] == pytest.approx(3.01, abs=0.2)


# --- Knobs -------------------------------------------------------------------------------------


def test_the_seed_comes_from_the_strings_unless_given():
    model = hfd()
    out = compressed(model, images(2, seed=4))
    own = decoded(model, out)
    assert torch.equal(own, decoded(model, out))
    seeds = [seed_of(strings) for strings in zip(*out["strings"])]
    for index, seed in enumerate(seeds):
        assert torch.equal(decoded(model, out, seed=seed)[index], own[index])
        assert not torch.equal(decoded(model, out, seed=seed)[1 - index], own[1 - index])
    model.seed = 0
    zero = decoded(model, out)
    assert torch.equal(zero, decoded(model, out, seed=0)) and not torch.equal(zero, own)
    # The same noise on both images.
    first = decoded(model, out, realism=0)
    noise = zero - first
    assert float(torch.corrcoef(noise.flatten(1))[0, 1]) > 0.5


def test_keywords_and_attributes_are_the_same_knobs():
    model, calls = hfd(precision="float32"), []
    model.denoiser.register_forward_hook(lambda *_: calls.append(1))
    out = compressed(model, images())
    by_keyword = decoded(model, out, steps=3, realism=0.25, seed=6)
    assert len(calls) == 3 * 4 / 2  # windows of 48 px, three at a time
    model.steps, model.realism, model.seed = 3, 0.25, 6
    assert torch.equal(decoded(model, out), by_keyword)
    built = hfd(steps=3, realism=0.25, seed=6, precision="float32")
    assert torch.equal(decoded(built, out), by_keyword)
    others = {"method": "ancestral", "window": 64, "overlap": 8, "precision": "bfloat16", "quality": 3}
    for name, value in others.items():
        before = getattr(model, name)
        setattr(model, name, value)
        assert not torch.equal(decoded(model, out), by_keyword)
        setattr(model, name, before)


def test_the_quality_chooses_label_and_deviation():
    one, three = hfd(quality=1), hfd(quality=3)
    out = compressed(one, images())
    first = decoded(one, out, realism=0)
    spreads = [float((decoded(model, out) - first).std()) for model in (one, three)]
    assert spreads[0] / spreads[1] == pytest.approx(0.05 / 0.02, rel=0.4)
    one.denoiser.deviations.copy_(torch.tensor([0.02, 0.05]))
    assert not torch.equal(decoded(one, out), decoded(three, out))


@pytest.mark.parametrize(
    "knobs, message",
    [
        ({"realism": -0.1}, "realism is -0.1; choose from 0"),
        ({"realism": 1.1}, "realism is 1.1"),
        ({"realism": math.nan}, "realism is nan"),
        ({"seed": -1}, "take it modulo"),
        ({"seed": 2**64}, "take it modulo"),
        ({"steps": 0}, "steps is 0"),
        ({"method": "euler"}, "method is 'euler'"),
        ({"quality": 2}, "quality is 2; this network was trained on .* quality 1, 3"),
        ({"overlap": 30}, "half the window"),
    ],
)
def test_knobs_out_of_range_are_refused(knobs, message):
    with pytest.raises(ValueError, match=message):
        hfd(**knobs)
    model = hfd()
    out = compressed(model, images())
    if knobs.keys() & {"realism", "seed", "steps"}:
        with pytest.raises(ValueError, match=message):
            decoded(model, out, **knobs)
    for name, value in knobs.items():
        setattr(model, name, value)
    with pytest.raises(ValueError, match=message):
        decoded(model, out)


def test_small_images_say_what_to_do():
    model = hfd()
    out = compressed(model, images(1, 48, 64))
    with pytest.raises(ShapeError, match=r"48x64 px; .* pad the image .* realism=0"):
        decoded(model, out)
    # A side that is no multiple of the network's is none of its business.
    assert model.restore(images(1, 71, 67)).shape == (1, 3, 71, 67)


@pytest.mark.parametrize("counts", [(), (0, 0), (1, 2)])
def test_strings_that_do_not_belong_together_are_refused(counts):
    with pytest.raises(BitstreamError, match="each part must have one an image"):
        decoded(hfd(), {"strings": [[b"1234"] * count for count in counts], "shape": (4, 4)})


# --- As a CompressAI model ---------------------------------------------------------------------


def test_forward_has_the_first_stages_likelihoods_and_a_draw():
    x, model = images(2), hfd("mbt2018-mean")
    with torch.no_grad():
        out, plain = model(x), model.first_stage(x)
        again = model.restore(plain["x_hat"].clamp(0, 1))
    assert out["likelihoods"].keys() == plain["likelihoods"].keys()
    assert all(torch.equal(out["likelihoods"][key], plain["likelihoods"][key]) for key in ("y", "z"))
    assert torch.equal(out["x_hat"], again) and not torch.equal(again, plain["x_hat"])
    assert not torch.equal(model.restore(plain["x_hat"].clamp(0, 1), seed=1), again)


def test_training_mode_says_how_to_train():
    model = hfd().train()
    assert model.denoiser.training and not model.first_stage.training
    with pytest.raises(SgaError, match=r"zoo/train/denoiser.py.* eval\(\)"):
        model(images())


def test_it_is_a_compression_model():
    model = hfd("mbt2018-mean")
    assert isinstance(model, CompressionModel) and model.downsampling_factor == 64
    assert not any(p.requires_grad for p in model.first_stage.parameters())
    assert all(p.requires_grad for p in model.denoiser.parameters())
    assert model.aux_loss() == model.first_stage.aux_loss()
    assert not model.update() and model.update(force=True)
    out = compressed(model, images())
    assert decoded(model.double().float(), out).shape == (1, 3, 64, 64)


def test_half_precision_runs():
    model = hfd(precision="float32")
    out = compressed(model, images())
    plain = decoded(model, out)
    model.denoiser.half()
    near = decoded(model, out)
    assert near.dtype == torch.float32 and 0 < float((near - plain).abs().max()) < 0.02


def test_an_interrupt_leaves_nothing_half_done():
    model = hfd()
    out = compressed(model, images())
    expected, calls = decoded(model, out), []

    def interrupt(*_):
        calls.append(1)
        if len(calls) == 5:
            raise KeyboardInterrupt

    handle = model.denoiser.register_forward_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        decoded(model, out)
    handle.remove()
    assert torch.equal(decoded(model, out), expected)


def test_the_bar_counts_steps_of_all_images(capfd):
    model = hfd(progress=True)
    decoded(model, compressed(model, images(2)))
    assert "/8 [" in (shown := capfd.readouterr().err) and "hfd:" in shown
    for progress in (False, None):  # None: a terminal alone sees it
        model.show_progress = progress
        decoded(model, compressed(model, images(2)))
        assert not capfd.readouterr().err


# --- State dicts -------------------------------------------------------------------------------


# Stock's elic2022-official takes no widths from a state dict.
@pytest.mark.parametrize("name", [name for name in ARCHITECTURES if not name.startswith("elic")])
def test_a_state_dict_holds_everything(name):
    model = hfd(name, quality=3, realism=0.7, seed=5, method="ddim")
    state = model.state_dict()
    assert {key.partition(".")[0] for key in state} == {"first_stage", "denoiser", "_extra_state"}
    copy = HFD.from_state_dict(state).eval()
    copy.show_progress = False
    assert type(copy.first_stage) is type(model.first_stage) and copy.settings == model.settings
    assert copy.settings["architecture"] == name
    out = compressed(model, images())
    assert compressed(copy, images()) == out
    assert torch.equal(decoded(copy, out), decoded(model, out))


def test_half_the_size_loads_as_well():
    model = hfd("mbt2018-mean")
    state = {k: v.half() if v.is_floating_point() else v for k, v in model.state_dict().items()}
    copy = HFD.from_state_dict(state).eval()
    assert {p.dtype for p in copy.parameters()} == {torch.float32}
    for (key, mine), other in zip(copy.state_dict().items(), state.values()):
        assert torch.equal(mine, other.to(mine.dtype)), key


def test_weights_load_into_a_model_and_bring_their_knobs():
    model, other = hfd("mbt2018-mean", quality=3, steps=2), hfd("mbt2018-mean")
    for parameter in [*other.denoiser.parameters(), *other.first_stage.parameters()]:
        parameter.data.zero_()
    other.load_state_dict(model.state_dict())
    assert other.settings == model.settings
    out = compressed(model, images())
    assert compressed(other, images()) == out and torch.equal(decoded(other, out), decoded(model, out))


def test_state_dicts_of_other_kinds_are_refused():
    state = hfd().state_dict()
    with pytest.raises(ValueError, match=r"first_stage\.\*, denoiser\.\* and _extra_state"):
        HFD.from_state_dict(random_network().state_dict())
    with pytest.raises(ValueError, match="_extra_state"):
        HFD.from_state_dict({k: v for k, v in state.items() if k != "_extra_state"})
    with pytest.raises(ValueError, match="damaged"):
        HFD.from_state_dict(state | {"_extra_state": state["_extra_state"][:-1]})


def test_first_stages_of_ones_own_need_a_name():
    class Mine(FactorizedPrior):
        pass

    stock = first_stage()
    stage = Mine(16, 24)
    stage.load_state_dict(stock.state_dict())
    model = HFD(stage, random_network(), quality=1, steps=2, progress=False)
    assert decoded(model, compressed(model, images())).shape == (1, 3, 64, 64)
    name = model.settings["architecture"]
    assert name.endswith("Mine")
    with pytest.raises(ValueError, match="register_model"):
        HFD.from_state_dict(model.state_dict())
    MODELS[name] = Mine
    try:
        assert type(HFD.from_state_dict(model.state_dict()).first_stage) is Mine
    finally:
        del MODELS[name]


# --- Refinement --------------------------------------------------------------------------------


def test_refinement_refines_the_first_stage():
    model, x = hfd("mbt2018-mean"), images(1, 64, 128)
    options = {"method": "ssl", "steps": 8, "lmbda": 0.01}
    refined = compressai_sga.refine(model, x, **options)
    plain = compressai_sga.refine(model.first_stage, x, **options)
    assert refined.strings == plain.strings and refined.strings != compressed(model, x)["strings"]
    assert bool((refined.after.loss <= refined.before.loss).all())
    x_hat = decoded(model, {"strings": refined.strings, "shape": refined.shape})
    assert not torch.equal(x_hat, refined.x_hat)
    first = decoded(model, {"strings": refined.strings, "shape": refined.shape}, realism=0)
    assert torch.equal(first, refined.x_hat)
    with compressai_sga.refined(model, **options):
        out = model.compress(x)
    assert out["strings"] == refined.strings
    assert compressed(model, x)["strings"] != refined.strings
