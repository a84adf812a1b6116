# SPDX-License-Identifier: Apache-2.0
"""Our coders in CompressAI's place: every model in both directions, the command line, pickles, disable()."""

from __future__ import annotations

import copy
import json
import pickle

import compressai
import numpy as np
import pytest
import torch
from compressai.entropy_models import EntropyBottleneck, EntropyModel, GaussianConditional
from compressai.registry import MODELS
from PIL import Image
from torch import nn

from compressai_sga import hooks, zoo
from compressai_sga.coding import CODERS, autoregressive_models, checksum, coders, entropy_models, set_coder
from compressai_sga.errors import BitstreamError
from compressai_sga.models.elic import ARCHITECTURES
from compressai_sga.refine import refine
from tests.small_models import SIZES, build, picture, rate_point


@pytest.fixture(autouse=True)
def enabled():
    assert hooks.enable()
    yield
    compressai.set_entropy_coder("ans")
    assert hooks.enable()


def make_model(name: str, coder: str = "ans") -> nn.Module:
    return set_coder(build(name), coder)


@torch.no_grad()
def both_ways(model: nn.Module, x: torch.Tensor, **kwargs) -> tuple[list, torch.Tensor]:
    """Strings and decoded image; the symbols of both directions agree."""
    with checksum.record() as encoded:
        out = model.compress(x, **kwargs)
    with checksum.record() as decoded:
        x_hat = model.decompress(out["strings"], out["shape"], **kwargs)["x_hat"]
    assert (encoded.crc32, encoded.symbols) == (decoded.crc32, decoded.symbols)
    return out, x_hat


def size(out: dict) -> int:
    return sum(len(string) for part in out["strings"] for string in part)


# --- Every model ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SIZES)
def test_the_image_is_stocks(name):
    """Both directions; no symbol differs from stock's, and strings are not longer."""
    heavy = name.startswith(("elic", "cheng"))
    x, kwargs = picture(64, 64 if heavy else 128, 1 if heavy else 2), rate_point(name)
    model = make_model(name)
    stock, expected, theirs = watched(model, x, **kwargs)
    assert expected.std() > 0 and theirs.abs().max() >= 1
    autoregressive = name.startswith(("mbt2018-vbr", "cheng")) or name == "mbt2018"
    for coder in ("constriction-ans", "constriction-exact") if heavy else CODERS:
        out, x_hat, y_hat = watched(set_coder(model, coder), x, **kwargs)
        # A symbol that differed would show as 1 here, and float32's noise as 1e-6 of the values.
        assert (y_hat - theirs).abs().max() < 1e-3 and (x_hat - expected).abs().max() < 1e-3
        assert autoregressive or torch.equal(x_hat, expected)
        if coder != "constriction-exact":
            assert size(out) <= size(stock), coder


def watched(model: nn.Module, x: torch.Tensor, **kwargs) -> tuple[dict, torch.Tensor, torch.Tensor]:
    """`both_ways`, and what the decoder gave to g_s."""
    seen = []
    handle = model.g_s.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].clone()))
    out, x_hat = both_ways(model, x, **kwargs)
    handle.remove()
    return out, x_hat, seen[-1]


def test_every_image_model_of_stock_is_there():
    files = {f"compressai.models.{name}" for name in ("google", "waseda", "vbr", "sensetime")}
    stock = {n for n, m in MODELS.items() if m.__module__ in files and not n.endswith("-small")}
    assert set(SIZES) == stock | {*ARCHITECTURES}


def test_the_command_line_takes_the_coder(evaluate, images, checkpoint, python):
    """Stock's own evaluation: in this process, and in one that imports nothing of ours."""
    command = ("checkpoint", images, "-a", "mbt2018-mean", "-p", checkpoint, "-c")
    results = {coder: evaluate(*command, coder) for coder in ("ans", *CODERS)}
    done = python("-m", "compressai.utils.eval_model", *command, "constriction-ans")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["results"]["bpp"] == results["constriction-ans"]["results"]["bpp"]
    for coder in CODERS:
        assert coder in results[coder]["description"]
        assert results[coder]["results"]["psnr-rgb"] == results["ans"]["results"]["psnr-rgb"]
        assert results[coder]["results"]["bpp"][0] < results["ans"]["results"]["bpp"][0]


def test_the_names_are_there_when_compressai_is_imported_second(python):
    """The other order is that of the next test."""
    program = "import compressai_sga, compressai; print(*compressai.available_entropy_coders())"
    done = python("-W", "ignore", "-c", program)
    assert set(CODERS) < set(done.stdout.split()), done.stderr


def test_set_entropy_coder_and_a_fresh_process(python, tmp_path):
    """A pickled model, its strings, and nothing else: another process decodes the same image."""
    jobs, images = {}, {}
    for coder in CODERS:
        compressai.set_entropy_coder(coder)
        for name in ("mbt2018-mean", "mbt2018", "cheng2020-anchor-checkerboard"):
            torch.manual_seed(1)
            model = MODELS[name](*SIZES[name]).eval()
            model.update(force=True)
            assert all(m.entropy_coder.name == coder for m in model.modules() if hasattr(m, "entropy_coder"))
            out, images[coder, name] = both_ways(copy.deepcopy(model), picture(64, 64, 1))
            jobs[coder, name] = (model, out)
    compressai.set_entropy_coder("ans")
    (tmp_path / "jobs.pkl").write_bytes(pickle.dumps(jobs))
    (tmp_path / "decode.py").write_text(
        "import pickle, torch, compressai\n"
        "torch.set_num_threads(1)\n"
        "print(*compressai.available_entropy_coders())\n"
        "jobs = pickle.load(open('jobs.pkl', 'rb'))\n"
        "with torch.no_grad():\n"
        "    images = {k: m.decompress(o['strings'], o['shape'])['x_hat'] for k, (m, o) in jobs.items()}\n"
        "torch.save(images, 'images.pt')\n"
    )
    done = python("-W", "ignore", tmp_path / "decode.py")
    assert done.returncode == 0 and set(CODERS) < set(done.stdout.split()), done.stderr
    for key, image in torch.load(tmp_path / "images.pt").items():
        assert (image - images[key]).abs().max() < 1e-5, key


@pytest.mark.parametrize(
    "name", ["bmshj2018-factorized", "mbt2018-mean", "mbt2018", "mbt2018-vbr", "elic2022-gdn"]
)
def test_damaged_strings_of_a_model(name):
    """Every string in turn: cut, changed, of another coder, empty."""
    x, kwargs = picture(64, 64, 1), rate_point(name)
    for coder in CODERS:
        model = make_model(name, coder)
        out, _ = both_ways(model, x, **kwargs)
        for part in range(len(out["strings"])):
            (good,) = out["strings"][part]
            middle = len(good) // 2
            changed = good[:middle] + bytes([good[middle] ^ 4]) + good[middle + 1 :]
            for bad in (good[:-1], changed, good + b"\1", b"", b"\xff" * len(good)):
                strings = list(out["strings"])
                strings[part] = [bad]
                with pytest.raises(BitstreamError), torch.no_grad():
                    model.decompress(strings, out["shape"], **kwargs)


# --- Size ----------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("name", ["mbt2018-mean-small", "bmshj2018-factorized-small"])
def test_length_on_trained_models(name):
    """Against stock's strings (at most as long), against the estimate, and the gain of exact scales.

    The gain is one over the images: a single image that its model takes for too easy can be longer.
    """
    model, sizes, bits = zoo.load(name, 3), dict.fromkeys(("ans", *CODERS), 0), 0.0
    for path in zoo.sample_images():
        pixels = torch.from_numpy(np.array(Image.open(path).convert("RGB"))).permute(2, 0, 1)[None]
        x = pixels[..., :192, :192] / 255
        own = {coder: size(both_ways(set_coder(model, coder), x)[0]) for coder in sizes}
        assert own["constriction-ans"] <= own["ans"] and own["constriction-range"] <= own["ans"]
        sizes = {coder: sizes[coder] + own[coder] for coder in sizes}
        bits += sum(float(-torch.log2(part).sum()) for part in model(x)["likelihoods"].values())
    assert 0.99 * bits < 8 * sizes["constriction-ans"] < 1.01 * bits + 3 * 2 * 25
    if "mean" in name:
        assert sizes["constriction-exact"] < sizes["constriction-ans"]


# --- Refinement ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["mbt2018-mean", "mbt2018", "cheng2020-anchor-checkerboard", "mbt2018-vbr", "elic2022-gdn"]
)
@pytest.mark.parametrize("coder", ["constriction-ans", "constriction-exact"])
def test_refined_strings_are_the_coders(name, coder):
    """What `refine` reports is the size of these strings and the image that they decode to."""
    model, x, kwargs = make_model(name, coder), picture(64, 64, 1), rate_point(name)
    result = refine(model, x, "ssl", steps=6, lr=0.05, lmbda=0.05, compress_kwargs=kwargs)
    total = sum(len(part[0]) for part in result.strings)
    assert result.after.bpp[0].item() == pytest.approx(8 * total / 64**2)
    assert (result.after.loss <= result.before.loss).all()
    with torch.no_grad():
        decoded = model.decompress(result.strings, result.shape, **kwargs)["x_hat"]
    assert (decoded.clamp(0, 1) - result.x_hat).abs().max() < 1e-4  # 1.2.9.dev0 does not clamp


# --- Taking it back ------------------------------------------------------------------------------


def test_disable_gives_stock():
    model = make_model("mbt2018-mean", "constriction-ans")
    stock, before = make_model("mbt2018-mean"), picture(64, 64, 1)
    out, x_hat = both_ways(model, before)
    stock_strings = both_ways(stock, before)[0]["strings"]
    compressai.set_entropy_coder("constriction-range")
    hooks.disable()
    assert compressai.available_entropy_coders()[0] == "ans" and compressai.get_entropy_coder() == "ans"
    assert not set(CODERS) & set(compressai.available_entropy_coders())
    with pytest.raises(ValueError, match="Unknown entropy coder"):
        GaussianConditional(None, entropy_coder="constriction-ans")
    with torch.no_grad():
        assert stock.compress(before)["strings"] == stock_strings
        # One to which our coder was bound goes on with it.
        assert model.compress(before)["strings"] == out["strings"]
        assert torch.equal(model.decompress(out["strings"], out["shape"])["x_hat"], x_hat)
    hooks.enable()
    assert set(CODERS) < set(compressai.available_entropy_coders())
    assert len(set(compressai.available_entropy_coders())) == len(compressai.available_entropy_coders())


def test_somebody_elses_name_is_left_alone():
    names = compressai.available_entropy_coders()
    names.append("theirs")
    try:
        hooks.disable()
        assert names == ["ans", "theirs"]
        hooks.enable()
        assert names[:2] == ["ans", "theirs"] and set(CODERS) < set(names)
    finally:
        names.remove("theirs")


def test_a_changed_entropy_model_leaves_the_coders_out(monkeypatch):
    hooks.disable()
    monkeypatch.setattr(GaussianConditional, "build_indexes", lambda self, scales, more: None)
    with pytest.warns(UserWarning, match="build_indexes has the parameters"):
        hooks.enable()
    assert not set(CODERS) & set(compressai.available_entropy_coders())
    monkeypatch.undo()
    hooks.disable()


def test_other_coders_go_to_stock(monkeypatch):
    """With `ans`, nothing of ours codes."""

    def fail(*args, **kwargs):
        raise AssertionError("ours was called")

    for method in ("encode_chunks", "write_parts", "decoder"):
        monkeypatch.setattr(coders.Coder, method, fail)
    monkeypatch.setattr(entropy_models, "symbol_indexes", fail)
    for function in ("scan_compress", "scan_decompress"):
        monkeypatch.setattr(autoregressive_models, function, fail)
    both_ways(make_model("mbt2018"), picture(64, 64, 1))


@pytest.mark.skipif(compressai.__version__ != "1.2.8", reason="later ones cannot be scripted in stock either")
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:FutureWarning")
def test_wrapped_entropy_models_can_be_scripted_as_stock_ones_can():
    assert hasattr(EntropyModel.quantize, "__wrapped__")
    torch.jit.script(EntropyBottleneck(2).eval())
    conditional = GaussianConditional([0.5, 1.0]).eval()
    inputs = torch.rand(1, 2, 3, 3), torch.ones(1, 2, 3, 3)
    for ours, scripted in zip(conditional(*inputs), torch.jit.script(conditional)(*inputs)):
        assert torch.equal(ours, scripted)
