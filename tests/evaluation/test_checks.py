# SPDX-License-Identifier: Apache-2.0
"""Wrong use ends with one sentence on stderr and exit code 2, never with a traceback."""

from __future__ import annotations

import importlib
import json
from urllib.error import URLError

import compressai
import pytest
import torch
from compressai.models import FactorizedPrior
from compressai.zoo.image import model_architectures

from compressai_sga.errors import SgaError
from compressai_sga.refine import METHODS, PRESETS

FAST = ["--refine", "ssl", "--refine-steps", "2", "--refine-lmbda", "0.01"]


@pytest.fixture
def source(images, checkpoint):
    return ["checkpoint", images, "-a", "mbt2018-mean", "-p", checkpoint]


@pytest.mark.parametrize(
    ("option", "value", "expected"),
    [
        ("--refine", "magic", ["magic", *METHODS]),
        ("--refine-preset", "magic", ["magic", *PRESETS]),
        ("--refine-steps", "-1", ["-1", "at least 0"]),
        ("--refine-steps", "many", ["many", "whole number"]),
        ("--refine-lmbda", "0", ["'0'", "above 0"]),
        ("--refine-lmbda", "nan", ["nan", "finite"]),
        ("--refine-lr", "inf", ["inf", "finite"]),
        ("--refine-seed", "x", ["'x'", "whole number"]),
        ("--metrics", "lpips,vmaf", ["vmaf", "lpips", "fid"]),
        ("--metrics", ",", ["lpips", "fid"]),
    ],
)
def test_option_values(refused, source, option, value, expected):
    for arguments in ([option, value, *source], [*source, f"{option}={value}"]):
        _, err = refused(*arguments)
        assert "Traceback" not in err
        assert all(word in err.splitlines()[-1] for word in expected)


def test_data_sets_and_files(refused, source, tmp_path, images, checkpoint):
    (tmp_path / "empty").mkdir()
    for dataset, expected in (
        (tmp_path / "empty", "no image"),
        (tmp_path / "missing", "does not exist"),
        (images / "a.png", "a file, not a folder"),
    ):
        out, err = refused("checkpoint", dataset, *source[2:], *FAST)
        assert out == "" and str(dataset) in err and expected in err and "Traceback" not in err
    _, err = refused(*source[:-1], tmp_path / "missing.pth.tar", *FAST)
    assert "missing.pth.tar does not exist" in err
    _, err = refused(*source, *FAST, "--half")
    assert "--half" in err and "float32" in err
    _, err = refused(*source, *FAST, "--refine-trace", tmp_path / "no" / "trace.jsonl")
    assert "trace.jsonl cannot be written" in err


def test_checkpoints_of_another_kind(refused, source, tmp_path, images, monkeypatch):
    torch.manual_seed(0)
    other = tmp_path / "other.pth.tar"
    torch.save(FactorizedPrior(16, 24).state_dict(), other)
    _, err = refused(*source[:-1], other, *FAST)
    assert "other.pth.tar is not a checkpoint of mbt2018-mean" in err
    assert "-a bmshj2018-factorized" in err and "Traceback" not in err
    text = tmp_path / "text.pth.tar"
    text.write_text("no published weights")
    _, err = refused(*source[:-1], text, *FAST)
    assert "text.pth.tar is not a checkpoint of mbt2018-mean" in err
    _, err = refused("checkpoint", images, "-a", "bmshj2018-factorized", "-p", other, "--no-update", *FAST)
    assert "no coding tables (entropy_bottleneck)" in err and "--no-update" in err
    _, err = refused(
        "checkpoint", images, "-a", "bmshj2018-factorized-relu", "-p", other, *FAST
    )  # stock lists this name and spells its key differently
    assert "bmshj2018_factorized_relu" in err
    # A model whose quantisation noise costs nothing has no trade-off to estimate.
    objective = importlib.import_module("compressai_sga.refine.objective")
    monkeypatch.setattr(objective, "distortion", lambda x, x_hat, metric: 0 * x_hat.sum((1, 2, 3)))
    _, err = refused("checkpoint", images, "-a", "bmshj2018-factorized", "-p", other, "--refine=ssl")
    assert "--refine-lmbda" in err and "Traceback" not in err


def test_pretrained(refused, images, monkeypatch):
    def offline(url, **keywords):
        raise URLError("no route")

    monkeypatch.setattr(compressai.zoo.image, "load_state_dict_from_url", offline)
    _, err = refused("pretrained", images, "-a", "mbt2018-mean", *FAST)
    assert "mbt2018-mean trained for mse with quality 1 cannot be loaded" in err
    _, err = refused("pretrained", images, "-a", "mbt2018-mean", "-q", "9", *FAST)
    assert "9" in err
    _, err = refused("pretrained", images, "-a", "mbt2018-mean", "-q", "best", *FAST)
    assert "'best'" in err
    for options in ([], FAST):
        _, err = refused("pretrained", images, "-a", "elic2022-official", *options)
        assert "no published weights for elic2022-official" in err and "checkpoint" in err
    with pytest.raises(SgaError, match="no published weights"):
        compressai.zoo.image_models["elic2022-chandelier"](quality=1, pretrained=True)
    _, err = refused("pretrained", images, "-a", "mbt2018-mean-vbr", "-m", "ms-ssim", *FAST)
    assert "ms-ssim" in err and "Traceback" not in err


def test_broken_images_are_named_and_the_others_evaluated(refused, evaluate, source, images, tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    good = (images / "a.png").read_bytes()
    (folder / "a.png").write_bytes(good)
    (folder / "cut.png").write_bytes(good[: len(good) // 2])
    (folder / "folder.png").mkdir()
    (folder / "text.jpg").write_text("not an image")
    from PIL import Image

    Image.new("RGB", (300, 160)).save(folder / "small.png")
    for options in (FAST, [*FAST, "--entropy-estimation"], ["--refine-steps", "0", *FAST[4:]]):
        only_a = tmp_path / f"only{len(options)}"
        only_a.mkdir()
        (only_a / "a.png").write_bytes(good)
        expected = evaluate("checkpoint", only_a, *source[2:], *options)["results"]
        out, err = refused("checkpoint", folder, *source[2:], *options)
        out = json.loads(out)
        failed = {one["image"].rsplit("/", 1)[-1]: one["error"] for one in out["failed"]}
        assert set(failed) == {"cut.png", "folder.png", "text.jpg", "small.png"}
        assert "161 px" in failed["small.png"] and "not a file" in failed["folder.png"]
        assert all(f"{name}: " in err for name in failed) and "Traceback" not in err
        for key in ("psnr-rgb", "bpp", "loss", "bpp-unrefined"):
            assert out["results"][key] == expected[key]
    (folder / "a.png").unlink()
    out, _ = refused("checkpoint", folder, *source[2:], *FAST)
    assert json.loads(out)["results"] == {} and len(json.loads(out)["failed"]) == 4


def test_without_our_options_stock_errors_stay(eval_model, source, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    with pytest.raises(SystemExit) as stop:
        eval_model.main(["checkpoint", str(tmp_path / "empty"), *map(str, source[2:])])
    assert stop.value.code == 1
    assert "no images found in directory" in capsys.readouterr().err
    with pytest.raises(FileNotFoundError):
        eval_model.main([*map(str, source[:-1]), str(tmp_path / "missing.pth.tar")])
    with pytest.raises(SystemExit) as stop:
        eval_model.main([])
    assert stop.value.code == 1


def test_unlisted_names_take_checkpoints():
    for name in ("cheng2020-anchor-checkerboard", "elic2022-official", "elic2022-chandelier"):
        assert model_architectures[name] is compressai.registry.MODELS[name]
        assert compressai.zoo.models[name] is compressai.zoo.image_models[name]
    net = compressai.zoo.image_models["cheng2020-anchor-checkerboard"](quality=1, N=16)
    assert type(net) is compressai.registry.MODELS["cheng2020-anchor-checkerboard"]
