# SPDX-License-Identifier: Apache-2.0
"""Claims about C3 in stock's evaluation: no padding, options of the fit reach the model and belong to it
alone, qualities have journals of their own, and everybody else is padded as ever."""

from __future__ import annotations

import json
from types import SimpleNamespace

import compressai.zoo
import pytest
import torch
from compressai.models import FactorizedPrior

from compressai_sga.evaluation import evaluate as evaluate_module
from compressai_sga.models.c3 import C3, C3Fast
from tests.evaluation.c3_images import save

FIT = ["--lmbda", "1e-3", "--steps", "4", "--seed", "1", "--max-seconds", "60"]


@pytest.fixture
def folder(tmp_path):
    """One image whose sides are no multiples of 64, and large enough for MS-SSIM."""
    folder = tmp_path / "images"
    folder.mkdir()
    save(folder / "a.png", 162, 170)
    return folder


@pytest.fixture
def seen(monkeypatch):
    """What C3 models are told to do: (model, x, out) each."""
    calls = []
    compress, forward = C3.compress, C3.forward

    def recording(self, x):
        calls.append(SimpleNamespace(model=self, x=x, out=compress(self, x)))
        return calls[-1].out

    def recording_forward(self, x):
        calls.append(SimpleNamespace(model=self, x=x, out=forward(self, x)))
        return calls[-1].out

    monkeypatch.setattr(C3, "compress", recording)
    monkeypatch.setattr(C3, "forward", recording_forward)
    return calls


def test_stock_inference_does_not_pad_a_model_that_needs_none(eval_model, monkeypatch):
    monkeypatch.setattr(eval_model, "ms_ssim", lambda *_, **__: torch.zeros(()))  # refuses sides below 161
    x = torch.rand(3, 40, 56, generator=torch.Generator().manual_seed(0))
    model = C3Fast(lmbda=1e-3, steps=3)
    coded = model.compress(x[None])
    nets = coded["strings"][0][0]
    assert coded["shape"] == (40, 56) and nets[1:3] == bytes([40, 56])
    seen = []
    monkeypatch.setattr(model, "compress", lambda image: seen.append(image) or coded)
    padding = eval_model.compute_padding
    found = eval_model.inference(model, x)
    assert eval_model.compute_padding is padding
    assert torch.equal(seen[0], x[None])
    assert found["bpp"] == 8 * sum(len(part[0]) for part in coded["strings"]) / (40 * 56)
    x_hat = model.decompress(**coded)["x_hat"]
    assert found["psnr-rgb"] == pytest.approx(eval_model.compute_metrics(x[None], x_hat)["psnr-rgb"])


def test_padding_is_put_back_after_a_failure(eval_model):
    padding = eval_model.compute_padding
    with pytest.raises(ValueError, match="x lies in"):
        eval_model.inference(C3Fast(steps=1), torch.full((3, 8, 8), 2.0))
    assert eval_model.compute_padding is padding


def test_other_models_are_padded_as_ever(eval_model, monkeypatch):
    torch.manual_seed(0)
    model = FactorizedPrior(8, 8).eval()
    model.update()
    seen = []
    compress = model.compress
    monkeypatch.setattr(model, "compress", lambda image: seen.append(image.shape) or compress(image))
    eval_model.inference(model, torch.rand(3, 162, 200))
    assert seen == [(1, 3, 192, 256)]


def test_options_reach_the_model(evaluate, folder, seen):
    source = ["pretrained", folder, "-a", "c3", "-q", 3]
    out = evaluate(*source, *FIT)
    (call,) = seen
    assert type(call.model) is C3 and not call.model.training
    wanted = C3(lmbda=1e-3, steps=4, seed=1, max_seconds=60.0).settings
    assert call.model.settings == wanted and wanted["lmbda"] == 1e-3
    assert call.x.shape == (1, 3, 162, 170) and call.out["shape"] == (162, 170)
    assert out["fit"] == {"lmbda": 1e-3, "steps": 4, "seed": 1, "max_seconds": 60.0}
    results = out["results"]
    assert results["bpp"] == [8 * sum(len(part[0]) for part in call.out["strings"]) / (162 * 170)]
    estimated = evaluate(*FIT, *source, "--entropy-estimation")  # ours may stand in front, too
    assert seen[1].model.settings == call.model.settings
    assert 0 <= results["bpp"][0] - estimated["results"]["bpp"][0] <= 40 / (162 * 170)
    assert estimated["results"]["psnr-rgb"][0] == pytest.approx(results["psnr-rgb"][0], abs=0.05)


def test_qualities_and_keywords(evaluate, folder, seen):
    out = evaluate("pretrained", folder, "-a", "c3-fast", "-q", "5,3", "--steps", 3)
    assert [call.model.lmbda for call in seen] == [4e-3, 1e-3]
    assert out["fit"] == {"lmbda": [4e-3, 1e-3], "steps": 3, "seed": 0, "max_seconds": None}
    assert len(set(out["results"]["bpp"])) == 2
    net = compressai.zoo.image_models["c3"](quality=4, lmbda=1e-3, steps=5, seed=1, max_seconds=60)
    wanted = {"lmbda": 1e-3, "steps": 5, "seed": 1, "max_seconds": 60}
    assert {key: net.settings[key] for key in wanted} == wanted
    coded = net.compress(torch.full((1, 3, 9, 7), 0.5))
    assert net.decompress(**coded)["x_hat"].shape == (1, 3, 9, 7)


def test_qualities_have_journals_of_their_own(evaluate, eval_model, folder, seen, monkeypatch, tmp_path):
    """C3 has no weights that would tell them apart."""
    removed = []
    monkeypatch.setattr(evaluate_module.Journal, "remove", lambda self: removed.append(self.path))
    options = ["--steps", 3, "-d", tmp_path]  # without removal: as if each had been killed at its end
    evaluate("pretrained", folder, "-a", "c3-fast", "-q", 2, *options)
    evaluate("pretrained", folder, "-a", "c3-fast", "-q", 3, *options)
    evaluate("pretrained", folder, "-a", "c3-fast", "-q", 3, "--seed", 5, *options)
    assert len(seen) == 3 and len(set(removed)) == 3
    evaluate("pretrained", folder, "-a", "c3-fast", "-q", 3, *options)
    assert len(seen) == 3  # known


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (
            ["-a", "mbt2018-mean-small", "-q", "3", "--lmbda", "1e-3"],
            "--lmbda: mbt2018-mean-small has no such option, c3, c3-fast",
        ),
        (
            ["-a", "mbt2018-mean", "--steps", "3", "--seed", "1"],
            "--steps, --seed: mbt2018-mean has no such option",
        ),
        (
            ["-a", "mbt2018", "--max-seconds", "3", "--refine", "ssl"],
            "--max-seconds: mbt2018 has no such option",
        ),
        (["-a", "c3", "--refine", "ssl"], "--refine: c3 is fitted to each image"),
        (
            ["-a", "c3", "-q", "3,4", "--lmbda", "1e-3"],
            "--lmbda replaces the quality, and -q 3,4 has several",
        ),
        (["-a", "c3", "-q", "9", "--steps", "3"], "choose 1 to 8"),
        (["-a", "c3", "-m", "ms-ssim", "--steps", "3"], "fitted for the metric 'mse', not 'ms-ssim'"),
        (["-a", "c3", "--steps", "0"], "'0' is not a whole number of at least 1"),
        (["-a", "c3", "--lmbda", "-1"], "'-1' is not a finite number above 0"),
        (["-a", "c3", "--max-seconds", "nan"], "'nan' is not a finite number above 0"),
    ],
)
def test_wrong_use_is_one_sentence(refused, folder, arguments, expected):
    out, err = refused("pretrained", folder, *arguments)
    assert out == "" and expected in err and "Traceback" not in err


def test_there_are_no_checkpoints(refused, folder, checkpoint):
    _, err = refused("checkpoint", folder, "-a", "c3", "-p", checkpoint, "--steps", "3")
    assert "there are no checkpoints of c3; use pretrained" in err


def test_the_stock_command_line(python, folder):
    """As typed by somebody who installed the package; --help knows the options."""
    module = ["-m", "compressai.utils.eval_model", "pretrained"]
    done = python(*module, folder, "-a", "c3-fast", "-q", "3", *FIT)
    assert done.returncode == 0, done.stderr[-2000:]
    out = json.loads(done.stdout)
    assert out["name"] == "c3-fast-mse" and out["fit"]["steps"] == 4
