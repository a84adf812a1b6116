# SPDX-License-Identifier: Apache-2.0
"""Claims of models/c3/{model,image_codec}.py: any image becomes strings that decode, in another process, to
what the encoder saw; the strings are everything; the estimate is their length; damage is found."""

from __future__ import annotations

import importlib
import json
import math
import pickle
import signal

import compressai.zoo
import numpy as np
import pytest
import torch
from PIL import Image

import compressai_sga
from compressai_sga.errors import BitstreamError, SgaError
from compressai_sga.models.c3 import ARCHITECTURES, C3, C3Fast
from compressai_sga.models.c3 import model as module
from compressai_sga.models.c3.config import PRESETS, Preset
from compressai_sga.models.c3.fit.loop import Fit
from compressai_sga.models.c3.fit.weight_quantisation import _Search, round_nets
from compressai_sga.models.c3.image_codec import decode_image, decode_strings, encode_image, reconstruct
from compressai_sga.models.c3.latent_codec import bits_of
from tests.models.c3.c3_pictures import constant, natural, noise
from tests.models.c3.c3_random import SMALL, random_grids, random_nets

LMBDA = 1e-3


def total_bits(out: dict) -> int:
    return 8 * sum(len(string) for part in out["strings"] for string in part)


def cost(x: torch.Tensor, x_hat: torch.Tensor, bits: int) -> float:
    return float((x - x_hat).square().mean()) + LMBDA * bits / (x.shape[2] * x.shape[3])


@pytest.fixture(scope="module")
def coded() -> tuple[torch.Tensor, list[module.Fitted], dict]:
    """Two natural crops with their fits and strings."""
    x = natural(64, 72, batch=2)
    fitted = C3Fast(lmbda=LMBDA, steps=250).fit(x)
    strings = [[f.strings[part] for f in fitted] for part in (0, 1)]
    return x, fitted, {"strings": strings, "shape": torch.Size((64, 72))}


# --- Any image -----------------------------------------------------------------------------------

IMAGES = {
    "1x1": noise(1, 1),
    "1x7": noise(1, 7),
    "9x1": noise(9, 1),
    "odd": natural(37, 51),
    "white": constant(1.0),
    "bright": constant(0.96),
    "black": constant(0.0),
    "grey": constant(0.4, 65, 2),
    "noise": noise(),
    "two": natural(17, 16, batch=2),
}


@pytest.mark.parametrize("name", IMAGES)
def test_any_image_decodes_to_what_the_encoder_saw(name):
    x = IMAGES[name]
    model = C3Fast(lmbda=LMBDA, steps=20)
    seen: list[module.Fitted] = []
    fit = model.fit
    model.fit = lambda image: seen.extend(fit(image)) or seen
    with torch.no_grad():
        out = model.compress(x)
    assert out["shape"] == x.shape[2:] and len(out["strings"]) == 2
    found = C3().decompress(out["strings"], out["shape"])["x_hat"]
    assert found.shape == x.shape and float(found.min()) >= 0 and float(found.max()) <= 1
    assert torch.equal(found, torch.stack([f.x_hat for f in seen]))


@pytest.mark.parametrize("name", ["white", "bright", "black", "grey"])
def test_constant_images_are_small_and_right(name):
    x = IMAGES[name]
    out = C3Fast(lmbda=LMBDA, steps=60).compress(x)
    x_hat = C3().decompress(out["strings"], out["shape"])["x_hat"]
    assert float((x - x_hat).abs().max()) < 0.02
    assert len(out["strings"][0][0]) < 80 and len(out["strings"][1][0]) < 20


def test_within_inference_mode_and_without_gradients():
    x = natural(16, 16)
    model = C3Fast(lmbda=LMBDA, steps=5)
    with torch.inference_mode():
        one = model.compress(x.clone())
    with torch.no_grad():
        two = model.compress(x)
    assert one["strings"] == two["strings"]


# --- The strings are everything -------------------------------------------------------------------


def test_decodes_in_a_fresh_process_from_strings_and_shape(coded, tmp_path, python):
    x, fitted, out = coded
    (tmp_path / "out.pkl").write_bytes(
        pickle.dumps({"strings": out["strings"], "shape": tuple(out["shape"])})
    )
    code = """
import pickle, sys, torch
from compressai_sga.models.c3 import C3Paper
out = pickle.load(open(sys.argv[1] + "/out.pkl", "rb"))
torch.save(C3Paper().decompress(out["strings"], out["shape"])["x_hat"], sys.argv[1] + "/x_hat.pt")
"""
    python("-c", code, tmp_path, check=True)
    found = torch.load(tmp_path / "x_hat.pt", weights_only=True)
    torch.testing.assert_close(found, torch.stack([f.x_hat for f in fitted]), atol=1e-6, rtol=0)


def test_beats_a_constant_image_by_far(coded):
    """The constant's cost is given no bits at all."""
    x, fitted, out = coded
    for i, f in enumerate(fitted):
        bits = 8 * sum(map(len, f.strings))
        constant_cost = float((x[i] - x[i].mean((1, 2), keepdim=True)).square().mean())
        assert cost(x[i : i + 1], f.x_hat[None], bits) < constant_cost / 2


def test_estimate_is_the_length(coded):
    """The latents' strings are at most 40 bits (guard, whole bytes) longer than the tables say; the float
    nets' estimate, by which the fit goes, is within 1.5 % at these few latents."""
    x, fitted, _ = coded
    for i, f in enumerate(fitted):
        bits = sum(bits_of(f.grids, f.nets.entropy(), f.nets.architecture.taps))
        assert 0 <= 8 * len(f.strings[1]) - bits <= 40
        fit = Fit(x[i : i + 1], PRESETS["c3-fast"], LMBDA, backend="torch")
        search = _Search(fit)
        search.inputs = module_context(fit, f)
        search.latents = fit.grid_plane.latents(fit.grid_plane.place(f.grids).float())
        arrays = {name: torch.from_numpy(a)[None] for name, a in f.nets.arrays().items()}
        with torch.no_grad():
            estimate = float(search.rate(arrays)) * search.px / LMBDA
        assert estimate == pytest.approx(bits, rel=0.015)


def module_context(fit: Fit, fitted: module.Fitted):
    from compressai_sga.models.c3.network import context_of

    return context_of(fit.grid_plane.place(fitted.grids).float(), fit.grid_plane)


def test_backends_agree(coded):
    _, fitted, out = coded
    strings = [part[0] for part in out["strings"]]
    latents = decode_strings(strings, out["shape"], backend="python").grids
    for a, b in zip(latents, fitted[0].grids):
        np.testing.assert_array_equal(a, b)
    other = decode_image(strings, out["shape"], backend="python")
    assert float((other - fitted[0].x_hat).abs().max()) < 1e-5
    assert int(((other * 255).round() - (fitted[0].x_hat * 255).round()).abs().max()) <= 1


@pytest.mark.parametrize("architecture", ["paper", "small"])
def test_other_architectures_round_trip(architecture):
    architecture = SMALL if architecture == "small" else PRESETS["c3-paper-clic"].architecture
    nets, grids = random_nets(architecture, (19, 30)), random_grids(architecture, (19, 30))
    strings = encode_image(nets, grids)
    assert torch.equal(decode_image(strings, (19, 30)), reconstruct(nets, grids))


def test_forward_gives_the_reconstruction_and_the_bits():
    x = natural(40, 40)
    model = C3Fast(lmbda=LMBDA, steps=30)
    with torch.no_grad():
        out, coded = model(x), model.compress(x)
    assert torch.equal(out["x_hat"], C3().decompress(coded["strings"], coded["shape"])["x_hat"])
    bits = sum(float(-torch.log2(p.double()).sum()) for p in out["likelihoods"].values())
    assert 0 <= total_bits(coded) - bits <= 40


def test_paper_preset_round_trips():
    x = natural(32, 40)
    out = ARCHITECTURES["c3-paper"](lmbda=LMBDA, steps=40).compress(x)
    x_hat = C3().decompress(out["strings"], out["shape"])["x_hat"]
    assert float((x - x_hat).square().mean()) < float((x - x.mean((2, 3), keepdim=True)).square().mean()) / 2


# --- Damage --------------------------------------------------------------------------------------


def test_damaged_strings_are_refused(coded):
    _, _, out = coded
    nets, latents = (part[0] for part in out["strings"])
    rng = np.random.default_rng(0)
    shape = out["shape"]
    for _ in range(60):
        for part, string in enumerate((nets, latents)):
            damaged = bytearray(string)
            damaged[int(rng.integers(len(string)))] ^= 1 << int(rng.integers(8))
            strings = [[nets], [latents]]
            strings[part] = [bytes(damaged)]
            with pytest.raises(BitstreamError):
                C3().decompress(strings, shape)
    for wrong in (
        [[nets], [latents[:-3]]],
        [[nets], [latents + b"\7"]],
        [[latents], [nets]],
        [[nets], [b""]],
        [[b""], [latents]],
        [[nets], [out["strings"][1][1]]],
        [[nets]],
        [[nets], []],
    ):
        with pytest.raises(BitstreamError):
            C3().decompress(wrong, shape)
    for wrong_shape in ((64, 71), (72, 64), (64,), (1, 1)):
        with pytest.raises(BitstreamError):
            C3().decompress([[nets], [latents]], wrong_shape)


# --- CompressAI's interface ----------------------------------------------------------------------


def test_stock_evaluation_runs(tmp_path):
    """CompressAI's eval_model on the entry that its dictionary has, with few steps."""
    compressai_sga.hooks.enable()
    evaluation = importlib.import_module("compressai.utils.eval_model.__main__")
    path = tmp_path / "a.png"
    pixels = (natural(192, 192)[0].permute(1, 2, 0) * 255).round().byte().numpy()
    Image.fromarray(pixels).save(path)
    entry = compressai.zoo.image_models["c3-fast"]
    assert compressai.zoo.image.model_architectures["c3-fast"] is C3Fast
    net = entry(quality=3, pretrained=True, steps=30, progress=False)
    options = {"architecture": "c3-fast", "half": False, "per_image": False}
    result = evaluation.eval_model(net, None, tmp_path, [path], **options)
    assert 0 < result["bpp"] < 8 and result["psnr-rgb"] > 12
    with pytest.raises(SgaError, match="ms-ssim"):
        entry(metric="ms-ssim")


def test_interface():
    assert set(ARCHITECTURES) == {"c3", "c3-fast", "c3-paper"}
    for name, cls in ARCHITECTURES.items():
        model = cls(quality=4).eval()
        assert model.preset is PRESETS[name] and model.lmbda == 2e-3
        assert next(model.parameters()).device.type == "cpu" and not model.state_dict()
        assert not sum(parameter.numel() for parameter in model.parameters())
        assert model.update() is False
        model.load_state_dict({})
        assert isinstance(cls.from_state_dict({}), cls)
        assert model.macs.total < 3000
    assert C3(lmbda=5e-3).lmbda == 5e-3 and C3(preset="c3-paper").preset.name == "c3-paper"
    assert isinstance(C3(preset=Preset("mine", 5, PRESETS["c3"].architecture)).preset, Preset)
    with pytest.raises(ValueError, match="preset"):
        C3(preset="c4")
    with pytest.raises(ValueError, match="quality"):
        C3(quality=0)


def test_max_seconds_holds_for_all_of_it():
    import time

    model = C3Fast(lmbda=LMBDA, max_seconds=6.0, steps=10**6)
    start = time.monotonic()
    model.compress(natural(32, 32))
    assert time.monotonic() - start < 9.0


@pytest.fixture
def ctrl_c():
    """Python's own handler, which is not there where the tests run as a shell's job."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("at", [25, 38, 39])
def test_interrupted_fit_goes_on(at, tmp_path, monkeypatch, ctrl_c):
    """The step that was being made is finished, the very last too: half of one is no state of a fit."""
    x, path = natural(24, 24), tmp_path / "c3.pt"
    expected = C3Fast(lmbda=LMBDA, steps=40).compress(x)
    step, killed = Fit.step, []

    def step_with_signal(self):
        if self.step_count == at and not killed:
            killed.append(True)
            signal.raise_signal(signal.SIGINT)
        step(self)

    monkeypatch.setattr(Fit, "step", step_with_signal)
    model = C3Fast(lmbda=LMBDA, steps=40, checkpoint=path)
    with pytest.raises(KeyboardInterrupt):
        model.compress(x)
    assert path.exists()
    counts = []
    monkeypatch.setattr(Fit, "step", lambda self: (counts.append(self.step_count), step(self)))
    assert model.compress(x)["strings"] == expected["strings"]
    assert counts == list(range(at + 1, 40)) and not path.exists()


def test_interrupt_without_a_checkpoint_is_pythons_own(monkeypatch, ctrl_c):
    def step_with_signal(self):
        signal.raise_signal(signal.SIGINT)
        raise AssertionError("the step went on")

    monkeypatch.setattr(Fit, "step", step_with_signal)
    with pytest.raises(KeyboardInterrupt):
        C3Fast(steps=3).compress(natural(8, 8))


def test_checkpoint_may_stay(tmp_path, monkeypatch):
    """With the finished fit in it, from which the same call goes on without a step."""
    x, path = natural(16, 16), tmp_path / "c3.pt"
    model = C3Fast(lmbda=LMBDA, steps=12, checkpoint=path, keep_checkpoint=True)
    expected = model.compress(x)["strings"]
    assert path.exists()
    monkeypatch.setattr(Fit, "step", None)
    assert model.compress(x)["strings"] == expected and path.exists()
    model.keep_checkpoint = False
    model.compress(x)
    assert not list(tmp_path.iterdir())


def test_a_fit_of_limited_time_goes_on_with_what_is_left_of_it(tmp_path, monkeypatch, ctrl_c):
    x, path = natural(16, 16), tmp_path / "c3.pt"
    step = Fit.step

    def step_with_signal(self):
        step(self)
        self.seconds += 1.0
        if self.step_count == 2:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(Fit, "step", step_with_signal)
    model = C3Fast(lmbda=LMBDA, steps=10**6, max_seconds=5.0, checkpoint=path)
    with pytest.raises(KeyboardInterrupt):
        model.compress(x)
    model.compress(x)  # of 5 seconds 0.6 are the fit's: it was over


def test_settings_tell_fits_apart():
    base = {"lmbda": 1e-3, "steps": 5, "seed": 1, "max_seconds": 60}
    assert {k: C3(quality=4, **base).settings[k] for k in base} == base
    assert C3().settings["steps"] == PRESETS["c3"].steps and C3().settings["lmbda"] == 2e-3
    others = [C3(**base), C3Fast(**base), *(C3(**{**base, name: 7}) for name in base)]
    assert len({repr(model.settings) for model in others}) == len(others)
    json.dumps(C3().settings)


def test_progress_bar_says_where_it_is(capsys, monkeypatch):
    C3Fast(lmbda=LMBDA, steps=20, progress=True).compress(natural(16, 16))
    said = capsys.readouterr().err
    for word in ("c3-fast", "loss", "bpp", "dB", "s left", "20/20"):
        assert word in said
    C3Fast(lmbda=LMBDA, steps=5).compress(natural(16, 16))
    assert not capsys.readouterr().err  # no terminal, and no minute
    monkeypatch.setattr("compressai_sga.progress.EVERY_SEC", 0.0)
    C3Fast(lmbda=LMBDA, steps=2).compress(natural(16, 16))
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(", loss")[0] for line in lines] == ["c3-fast: step 1 of 2", "c3-fast: step 2 of 2"]


def test_adaptive_choice_is_the_best_of_its_candidates_for_each_image():
    x = torch.cat([natural(16, 16), noise(16, 16)])
    model = C3(preset="c3-paper", adaptive=True, steps=6, lmbda=LMBDA, progress=False)
    assert len(model.candidates) == 12
    model.candidates = model.candidates[::7]  # the others cost only time
    found = model.fit(x)
    alone = [C3(preset=p, steps=6, lmbda=LMBDA, progress=False).fit(x) for p in model.candidates]
    for i, image in enumerate(x):
        costs = [model._cost(fitted[i], image) for fitted in alone]
        assert model._cost(found[i], image) == pytest.approx(min(costs), rel=1e-6) and min(costs) < max(costs)
        decoded = model.decompress([[part] for part in found[i].strings], (16, 16))["x_hat"][0]
        torch.testing.assert_close(decoded, found[i].x_hat)


def test_adaptive_choice_is_for_the_papers_presets():
    with pytest.raises(ValueError, match="c3-fast has no adaptive choice; c3-paper"):
        C3Fast(adaptive=True)


def test_encoder_uses_the_search_of_the_preset(monkeypatch):
    called = []
    monkeypatch.setattr(_Search, "shared", lambda self: called.append("shared"))
    monkeypatch.setattr(_Search, "each", lambda self: called.append("each"))
    for name in ("c3-paper", "c3-fast"):
        fit = Fit(natural(16, 16), PRESETS[name], LMBDA, steps=1)
        fit.run()
        round_nets(fit)
    assert called == ["shared", "each"]


def test_psnr_of_a_natural_crop_is_reasonable(coded):
    x, fitted, _ = coded
    for image, f in zip(x, fitted):
        assert -10 * math.log10(float((image - f.x_hat).square().mean())) > 28


def test_stock_evaluation_runs_it():
    """Both of CompressAI's measurements: real strings, and likelihoods; they agree."""
    from compressai.utils.eval_model.__main__ import inference, inference_entropy_estimation

    model = C3Fast(lmbda=LMBDA, steps=25).eval()
    x = natural(192, 192)[0]  # ms-ssim needs more than 160
    real, estimated = inference(model, x), inference_entropy_estimation(model, x)
    assert real["psnr-rgb"] > 18 and real["bpp"] < 3
    assert estimated["psnr-rgb"] == pytest.approx(real["psnr-rgb"], abs=0.05)
    assert 0 <= real["bpp"] - estimated["bpp"] <= 40 / 192**2
