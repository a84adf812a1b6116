# SPDX-License-Identifier: Apache-2.0
"""Claims of eval/zoo_curve.py: BD-rate on the common interval, and evaluation that resumes."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path

import pytest

from compressai_sga import zoo

pytest.importorskip("bjontegaard", reason="BD-rates need the package bjontegaard")
pytest.importorskip("matplotlib", reason="the figure needs matplotlib")

SCRIPT = Path(__file__).resolve().parents[1] / "eval" / "zoo_curve.py"
ANCHOR = {"bpp": [0.1, 0.2, 0.4, 0.8], "psnr-rgb": [28.0, 31.0, 34.0, 37.0]}


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    spec = importlib.util.spec_from_file_location("zoo_curve", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_bd_rate_of_half_the_bits_is_minus_fifty_percent(script):
    half = {"bpp": [b / 2 for b in ANCHOR["bpp"]], "psnr-rgb": ANCHOR["psnr-rgb"]}
    value, low, high = script.bd_rate(ANCHOR, half)
    assert value == pytest.approx(-50)
    assert (low, high) == (28, 37)


def test_bd_rate_is_taken_on_the_common_interval_in_any_order(script):
    ours = {"bpp": [0.6, 0.15, 0.3], "psnr-rgb": [36.0, 30.0, 33.0]}
    value, low, high = script.bd_rate(ANCHOR, ours)
    assert (low, high) == (30, 36)
    assert script.bd_rate(ANCHOR, {k: sorted(v) for k, v in ours.items()})[0] == value


def test_two_points_have_no_bd_rate(script):
    assert script.bd_rate(ANCHOR, {k: v[:2] for k, v in ANCHOR.items()}) is None


def test_evaluation_resumes_image_by_image(script, tmp_path, monkeypatch):
    name = "bmshj2018-factorized-small"
    images = [Path(shutil.copy(path, tmp_path)) for path in zoo.sample_images()]
    record = next(r for r in zoo.list_models() if r.name == name)
    monkeypatch.setattr(zoo, "list_models", lambda: [record])
    path = tmp_path / "results" / "curve.json"
    path.parent.mkdir()
    measured, real = [], script.inference

    def inference(net, x):
        if len(measured) == 2:
            raise KeyboardInterrupt
        measured.append(real(net, x))
        return measured[-1]

    monkeypatch.setattr(script, "inference", inference)
    with pytest.raises(KeyboardInterrupt):
        script.evaluate(name, images, path)
    kept = json.loads(path.read_text())["per-image"][str(record.quality)]
    assert len(kept) == 2

    calls = []
    monkeypatch.setattr(script, "inference", lambda net, x: calls.append(x) or real(net, x))
    result = script.evaluate(name, images, path)
    assert len(calls) == 1
    golden = [record.golden[image.name]["bpp"] for image in images]
    assert result["results"]["bpp"] == [pytest.approx(sum(golden) / 3, rel=0.01)]
    assert result == json.loads(path.read_text())


def test_values_of_another_weight_are_measured_again(script, tmp_path, monkeypatch):
    name = "bmshj2018-factorized-small"
    record = next(r for r in zoo.list_models() if r.name == name)
    monkeypatch.setattr(zoo, "list_models", lambda: [record])
    path, (image, *_) = tmp_path / "curve.json", zoo.sample_images()
    result = script.evaluate(name, [image], path)
    result["sha256"][str(record.quality)] = "of another file"
    result["per-image"][str(record.quality)][image.stem]["bpp"] = 99
    path.write_text(json.dumps(result))
    assert script.evaluate(name, [image], path)["results"]["bpp"][0] < 3


def test_published_points_are_kept_beside_the_results(script, tmp_path, monkeypatch):
    """Tables follow from the folder of results alone, wherever the published points came from."""
    monkeypatch.setattr(script, "HERE", tmp_path)
    monkeypatch.setattr(script, "evaluate", lambda name, images, path: script._write(path, {"results": ours}))
    ours = ANCHOR | {key: [1, 2, 3, 4] for key in ("quality", "lmbda", "ms-ssim-rgb")}
    double = {"bpp": [2 * b for b in ANCHOR["bpp"]], "psnr-rgb": ANCHOR["psnr-rgb"]}
    keys = (*script.ANCHORS.values(), *script.REFINED, "never asked for")
    collection = tmp_path / "points.json"
    collection.write_text(json.dumps({key: {"source": "a book", "results": double} for key in keys}))
    shutil.copy(zoo.sample_images()[0], tmp_path / "image.png")
    given = ["--kodak", str(tmp_path), "--anchors", str(collection), "--names", "a-model"]
    script.main(given)
    collection.unlink()
    curves, anchors = script.read_results(tmp_path / "results", ["a-model"])
    assert "| a-model | -50.0 % (28.0–37.0 dB) |" in script.tables(curves, anchors)
    kept = json.loads((tmp_path / "results" / "published-kodak.json").read_text())
    assert set(kept) == set(keys) - {"never asked for"} and kept[keys[0]]["source"] == "a book"
    with pytest.raises(FileNotFoundError, match="--anchors"):
        script.main(given)
    collection.write_text("{}")
    with pytest.raises(ValueError, match="has no compressai:jpeg"):
        script.main(given)


def test_missing_images_are_named(script, tmp_path):
    with pytest.raises(FileNotFoundError, match="no PNG image in .*--kodak"):
        script.main(["--kodak", str(tmp_path)])
