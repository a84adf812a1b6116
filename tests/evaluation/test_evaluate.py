# SPDX-License-Identifier: Apache-2.0
"""Refined evaluation gives stock's JSON with better numbers, from real bitstreams."""

from __future__ import annotations

import importlib
import inspect
import json
import math
from pathlib import Path

import compressai
import pytest
import torch
from compressai import models
from compressai.registry import MODELS

import compressai_sga
from compressai_sga.evaluation import evaluate as evaluate_module
from compressai_sga.evaluation import extra_metrics as measures
from compressai_sga.models.elic import SpaceChannelContext
from compressai_sga.refine import trained_lmbda

STOCK_KEYS = ["psnr-rgb", "ms-ssim-rgb", "bpp", "encoding_time", "decoding_time"]
TIMES = {"encoding_time", "decoding_time"}
FAST = ["--refine", "ssl", "--refine-steps", "8", "--refine-lmbda", "0.01"]


def test_results_have_stock_keys_first_and_improve(evaluate, images, checkpoint, tmp_path):
    trace = tmp_path / "trace.jsonl"
    out = evaluate(
        *("checkpoint", images, "-a", "mbt2018-mean", "-p", checkpoint, "--per-image"),
        *("-d", tmp_path, "-o", "all", "--refine", "ssl", "--refine-steps", 30),
        *("--refine-lmbda", 0.01, "--refine-lr", 0.03, "--refine-trace", trace),
    )
    results = out["results"]
    assert list(results)[:5] == STOCK_KEYS
    extra = {"loss", "loss-unrefined", *(key + "-unrefined" for key in STOCK_KEYS)}
    assert set(results) == {*STOCK_KEYS, *extra}
    assert results["loss"][0] < results["loss-unrefined"][0]
    assert results["encoding_time"][0] > results["encoding_time-unrefined"][0]
    assert out["refine"] == {
        **{"method": "ssl", "preset": "ssl", "steps": 30, "lmbda": 0.01, "lr": 0.03, "seed": 0},
    }
    assert json.loads((tmp_path / "all.json").read_text()) == out
    assert not list(tmp_path.glob("*.jsonl.*")) and list(tmp_path.glob("*.jsonl")) == [trace]

    lines = [json.loads(line) for line in trace.read_text().splitlines()]
    assert [line["image"] for line in lines] == ["a.png"] * 30 + ["b.png"] * 30 + ["c.png"] * 30
    assert all(math.isfinite(line["loss"]) for line in lines)

    each = [json.loads((tmp_path / f"{n}-small-ans.json").read_text()) for n in "abc"]
    assert set(each[0]) == {"source", "name", "description", "results"}
    for key in results:
        assert results[key][0] == pytest.approx(sum(e["results"][key] for e in each) / 3)
    for one in (e["results"] for e in each):
        mse = 255**2 * 10 ** (-one["psnr-rgb"] / 10)
        assert one["loss"] == pytest.approx(one["bpp"] + 0.01 * mse)


def test_unrefined_numbers_are_stocks(evaluate, images, checkpoint):
    source = ["checkpoint", images, "-a", "mbt2018-mean", "-p", checkpoint]
    for estimation in ([], ["--entropy-estimation"]):
        if estimation:  # stock estimates sides that are multiples of 64 only
            source[1] = images.parent / "estimation"
            source[1].mkdir()
            (source[1] / "c.png").write_bytes((images / "c.png").read_bytes())
        stock = evaluate(*source, *estimation)["results"]
        ours = evaluate(*source, *estimation, *FAST)["results"]
        for key in set(STOCK_KEYS) - TIMES:
            assert ours[f"{key}-unrefined"] == stock[key]


def test_entropy_estimation_is_near_the_real_bits_and_handles_padding(evaluate, images, checkpoint):
    source = ["checkpoint", images, "-a", "mbt2018-mean", "-p", checkpoint, *FAST]
    real = evaluate(*source)["results"]
    estimated = evaluate(*source, "--entropy-estimation")["results"]
    # Strings of images this small carry a constant of up to 16 bytes that no estimate has.
    assert abs(real["bpp"][0] - estimated["bpp"][0]) < 16 * 8 / (192 * 176) + 0.02 * real["bpp"][0]
    assert estimated["psnr-rgb"][0] == pytest.approx(real["psnr-rgb"][0], abs=0.01)
    assert estimated["encoding_time"][0] > estimated["decoding_time"][0]


def test_refined_strings_reach_the_stock_decoder(evaluate, eval_model, images, checkpoint, monkeypatch):
    """What is measured is what a fresh stock model decodes from the strings alone."""
    net = MODELS["mbt2018-mean"].from_state_dict(torch.load(checkpoint)["state_dict"]).eval()
    net.update(force=True)
    seen = []
    decompress = MODELS["mbt2018-mean"].decompress

    def recording(self, strings, shape):
        seen.append((strings, shape))
        return decompress(self, strings, shape)

    monkeypatch.setattr(MODELS["mbt2018-mean"], "decompress", recording)
    folder = images.parent / "one"
    folder.mkdir()
    (folder / "b.png").write_bytes((images / "b.png").read_bytes())
    out = evaluate("checkpoint", folder, "-a", "mbt2018-mean", "-p", checkpoint, *FAST)
    monkeypatch.undo()
    strings, shape = seen[-1]
    x = eval_model.read_image(folder / "b.png")[None]
    _, unpad = eval_model.compute_padding(*x.shape[2:], min_div=64)
    x_hat = torch.nn.functional.pad(net.decompress(strings, shape)["x_hat"], unpad)
    psnr = eval_model.compute_metrics(x, x_hat)["psnr-rgb"]
    assert out["results"]["psnr-rgb"] == [pytest.approx(psnr, abs=1e-4)]
    bits = 8 * sum(len(s[0]) for s in strings)
    assert out["results"]["bpp"] == [bits / (x.size(2) * x.size(3))]
    # The options and the padding have arrived: refine alone gives the same bytes.
    assert strings == compressai_sga.refine(net, x, "ssl", steps=8, lmbda=0.01).strings


@pytest.mark.parametrize(
    ("name", "architecture", "arguments"),
    [
        ("bmshj2018-factorized", models.FactorizedPrior, (16, 24)),
        ("bmshj2018-hyperprior", models.ScaleHyperprior, (16, 24)),
        ("mbt2018", models.JointAutoregressiveHierarchicalPriors, (16, 24)),
        ("cheng2020-anchor-checkerboard", MODELS["cheng2020-anchor-checkerboard"], (16,)),
        ("elic2022-gdn", SpaceChannelContext, (16, 24, [4, 4, 16])),
    ],
)
def test_other_architectures(evaluate, images, tmp_path, name, architecture, arguments):
    torch.manual_seed(1)
    torch.save(architecture(*arguments).state_dict(), tmp_path / "m.pth.tar")
    (tmp_path / "images").mkdir()
    (tmp_path / "images/b.png").write_bytes((images / "b.png").read_bytes())
    options = ["--refine-steps", 2, "--refine-lmbda", 0.01]
    out = evaluate("checkpoint", tmp_path / "images", "-a", name, "-p", tmp_path / "m.pth.tar", *options)
    assert out["results"]["loss"][0] <= out["results"]["loss-unrefined"][0] + 0.02
    assert out["refine"]["method"] == "ssl"


def test_the_space_channel_model_in_every_way(evaluate, images, tmp_path):
    """By its name and a file: bytes of each coder, the estimate of them, and refined by each preset."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        net = SpaceChannelContext(16, 24, [4, 4, 16])
        net.g_a[-1].weight.data.mul_(40)
        net.update(update_quantiles=True)
    torch.save({"state_dict": net.state_dict()}, tmp_path / "m.pth.tar")
    (tmp_path / "images").mkdir()
    (tmp_path / "images/c.png").write_bytes((images / "c.png").read_bytes())
    source = ["checkpoint", tmp_path / "images", "-a", "elic2022-gdn", "-p", tmp_path / "m.pth.tar"]
    stock, estimated = evaluate(*source)["results"], evaluate(*source, "--entropy-estimation")["results"]
    assert estimated["psnr-rgb"] == pytest.approx(stock["psnr-rgb"], abs=1e-3)
    exact = evaluate(*source, "-c", "constriction-exact")["results"]
    assert exact["psnr-rgb"] == stock["psnr-rgb"] and exact["bpp"][0] < stock["bpp"][0]
    for preset in ("ssl", "fast", "best"):
        option = "--refine" if preset == "ssl" else "--refine-preset"
        for more in ([], ["-c", "constriction-ans"], ["--entropy-estimation"]):
            out = evaluate(*source, option, preset, "--refine-steps", 2, "--refine-lmbda", 0.01, *more)
            results = out["results"]
            assert results["loss"][0] < results["loss-unrefined"][0] and out["refine"]["preset"] == preset


def test_vbr_gets_its_stage_and_scale(evaluate, images, tmp_path, monkeypatch):
    torch.manual_seed(1)
    net = models.MeanScaleHyperpriorVbr(16, 24, vr_entbttlnck=True)
    torch.save(net.state_dict(), tmp_path / "vbr.pth.tar")
    (tmp_path / "images").mkdir()
    (tmp_path / "images/b.png").write_bytes((images / "b.png").read_bytes())
    source = ["checkpoint", tmp_path / "images", "-a", "mbt2018-mean-vbr"]
    source += ["-p", tmp_path / "vbr.pth.tar", "--vbr_quantstep", "10.0,2.0"]
    stock = evaluate(*source)["results"]
    ours = evaluate(*source, *FAST)["results"]
    assert len(ours["bpp"]) == 2
    for key in set(STOCK_KEYS) - TIMES:
        assert ours[f"{key}-unrefined"] == stock[key]
    # One model serves all scales, but every scale has a trade-off of its own.
    estimates = iter([0.013, 0.025])
    loop = importlib.import_module("compressai_sga.refine.loop")  # the function hides the package
    monkeypatch.setattr(loop, "estimate_lmbda", lambda *_: next(estimates))
    assert evaluate(*source, "--refine-steps", 1)["refine"]["lmbda"] == [0.013, 0.025]


def test_pretrained_models_get_the_published_lmbda(evaluate, images, monkeypatch, checkpoint):
    state_dict = torch.load(checkpoint)["state_dict"]
    monkeypatch.setattr(compressai.zoo.image, "load_state_dict_from_url", lambda url, progress: state_dict)
    net = MODELS["mbt2018-mean"].from_state_dict(state_dict).eval()
    net.update(force=True)
    monkeypatch.setattr(compressai.zoo.image, "load_pretrained", lambda _: net.state_dict())
    source = ["pretrained", images, "-a", "mbt2018-mean", "-q", "3,1", "--refine", "noise"]
    out = evaluate(*source, "--refine-steps", 1)
    assert out["refine"]["lmbda"] == [0.0018, 0.0067]
    assert len(out["results"]["bpp"]) == 2
    out = evaluate(*source, "--refine-steps", 1, "-m", "ms-ssim")
    assert out["refine"]["lmbda"] == [2.40, 8.73]
    results = out["results"]
    assert results["loss"][0] == pytest.approx(results["bpp"][0] + 2.40 * (1 - results["ms-ssim-rgb"][0]))


def test_no_source_evaluates_the_default_model_on_the_samples(evaluate, monkeypatch, images, checkpoint):
    state_dict = torch.load(checkpoint)["state_dict"]

    def small(quality, metric, pretrained, progress):
        assert pretrained and quality == compressai_sga.zoo.DEFAULT_QUALITY
        net = MODELS["mbt2018-mean"].from_state_dict(state_dict)
        net.update(force=True)
        return net

    name = compressai_sga.zoo.DEFAULT_MODEL
    monkeypatch.setitem(compressai.zoo.image_models, name, small)
    monkeypatch.setattr(compressai_sga.zoo, "sample_images", lambda: sorted(images.glob("*.png")))
    out = evaluate("--refine", "ssl", "--refine-steps", 1, "--refine-lmbda", 0.01)
    assert out["name"] == f"{name}-mse"
    assert out["refine"]["steps"] == 1
    assert "failed" not in out


def test_other_metrics(evaluate, images, checkpoint, monkeypatch):
    monkeypatch.setitem(measures.METRICS, "lpips", lambda x, x_hat: (x - x_hat).abs().max().item())
    grids = []

    class Largest:
        def __init__(self):
            self.values = []

        def update(self, x, x_hat):
            grids.append((x_hat * 255 - (x_hat * 255).round()).abs().max().item())
            self.values.append((x - x_hat).abs().max().item())

        def compute(self):
            return max(self.values)

    monkeypatch.setitem(measures.SET_METRICS, "fid", Largest)
    source = ["checkpoint", images, "-a", "mbt2018-mean", "-p", checkpoint]
    stock = evaluate(*source)["results"]
    results = evaluate("--metrics", "lpips,fid", *source)["results"]
    assert list(results) == [*STOCK_KEYS, "lpips", "fid"]
    assert all(results[key] == stock[key] for key in set(STOCK_KEYS) - TIMES)
    assert results["fid"][0] >= results["lpips"][0] > 0
    assert max(grids) < 1e-4
    both = evaluate("--metrics=fid", *source, *FAST)["results"]
    assert both["fid-unrefined"] == pytest.approx(results["fid"])


def test_interrupted_between_models_and_with_set_metrics(
    evaluate, eval_model, images, checkpoint, monkeypatch, capsys
):
    class Mean:
        def __init__(self):
            self.values = []

        def update(self, x, x_hat):
            self.values.append((x - x_hat).abs().mean().item())

        def compute(self):
            return sum(self.values) / len(self.values)

    monkeypatch.setitem(measures.SET_METRICS, "fid", Mean)
    other = checkpoint.with_name("other.pth.tar")
    weights = torch.load(checkpoint)["state_dict"]
    torch.save({**weights, "g_s.6.bias": weights["g_s.6.bias"] + 0.01}, other)
    command = ["checkpoint", images, "-a", "mbt2018-mean", "--metrics", "fid"]
    command += ["--refine-seed", 3, "--refine-steps", 4, "--refine-lmbda", 0.01]
    command += ["-p", checkpoint, other]
    whole = evaluate(*command)
    calls = []
    stock = eval_model.inference

    def interrupted(*args):
        calls.append(args)
        if len(calls) == 9:  # the second image of the second model, refined
            raise KeyboardInterrupt
        return stock(*args)

    interrupted.__signature__ = inspect.signature(stock)
    monkeypatch.setattr(eval_model, "inference", interrupted)
    with pytest.raises(SystemExit) as stop:
        evaluate(*command)
    assert stop.value.code == 130
    assert "interrupted: 4 finished images kept" in capsys.readouterr().err
    done = len(calls)
    continued = evaluate(*command)
    assert len(calls) - done == 2 * 2
    for key in whole["results"]:
        if "time" not in key:
            assert continued["results"][key] == whole["results"][key]


def test_ours_is_the_result_that_plot_reads(evaluate, images, checkpoint, tmp_path):
    evaluate(*("checkpoint", images, "-a", "mbt2018-mean", "-p", checkpoint, "-d", tmp_path, *FAST))
    pytest.importorskip("matplotlib")
    plot = importlib.import_module("compressai.utils.plot.__main__")
    file = next(tmp_path.glob("*.json"))
    for metric in ("psnr", "ms-ssim", "loss", "bpp-unrefined"):
        assert len(plot.parse_json_file(file, metric)["ys"]) == 1
    figure = tmp_path / "figure.png"
    plot.main(["-f", str(file), "-o", str(figure)])
    assert figure.stat().st_size > 0


def test_stock_is_put_back_and_models_are_left_alone(evaluate, eval_model, images, checkpoint):
    before = {name: getattr(eval_model, name) for name in evaluate_module.Evaluation.REPLACED}
    evaluate("checkpoint", images, "-a", "mbt2018-mean", "-p", checkpoint, *FAST)
    assert before == {name: getattr(eval_model, name) for name in before}
    assert before["json"] is json
    net = MODELS["mbt2018-mean"](16, 24)
    assert trained_lmbda(net) is None and Path(images).is_dir()
