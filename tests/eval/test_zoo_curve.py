# SPDX-License-Identifier: Apache-2.0
"""Claims of experiments/refinement/zoo_curve.py: BD-rate on the common interval, and a run that goes on
where it stopped."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from compressai_sga import zoo
from experiments.refinement import zoo_curve

pytest.importorskip("bjontegaard", reason="BD-rates need the package bjontegaard")
pytest.importorskip("matplotlib", reason="the figure needs matplotlib")

EVAL = Path(__file__).resolve().parents[2] / "eval"
ANCHOR = {"bpp": [0.1, 0.2, 0.4, 0.8], "psnr-rgb": [28.0, 31.0, 34.0, 37.0]}


def test_bd_rate_of_half_the_bits_is_minus_fifty_percent():
    half = {"bpp": [b / 2 for b in ANCHOR["bpp"]], "psnr-rgb": ANCHOR["psnr-rgb"]}
    value, low, high = zoo_curve.bd_rate(ANCHOR, half)
    assert value == pytest.approx(-50)
    assert (low, high) == (28, 37)


def test_bd_rate_is_taken_on_the_common_interval_in_any_order():
    ours = {"bpp": [0.6, 0.15, 0.3], "psnr-rgb": [36.0, 30.0, 33.0]}
    value, low, high = zoo_curve.bd_rate(ANCHOR, ours)
    assert (low, high) == (30, 36)
    assert zoo_curve.bd_rate(ANCHOR, {k: sorted(v) for k, v in ours.items()})[0] == value


def test_two_points_have_no_bd_rate():
    assert zoo_curve.bd_rate(ANCHOR, {k: v[:2] for k, v in ANCHOR.items()}) is None


@pytest.fixture
def one_model(tmp_path, monkeypatch):
    """The zoo has one quality, and the script writes below tmp_path."""
    name = "bmshj2018-factorized-small"
    record = next(r for r in zoo.list_models() if r.name == name)
    monkeypatch.setattr(zoo, "list_models", lambda name=None: [record])
    monkeypatch.setattr(zoo_curve, "EVAL", tmp_path)
    double = {"bpp": [2 * b for b in ANCHOR["bpp"]], "psnr-rgb": ANCHOR["psnr-rgb"]}
    keys = (*zoo_curve.ANCHORS.values(), *zoo_curve.REFINED, "never asked for")
    collection = tmp_path / "points.json"
    collection.write_text(json.dumps({key: {"source": "a book", "results": double} for key in keys}))
    images = tmp_path / "images"
    images.mkdir()
    for path in zoo.sample_images():
        shutil.copy(path, images)
    return record, ["--kodak", str(images), "--anchors", str(collection), "--names", name]


def test_evaluation_goes_on_image_by_image(one_model, tmp_path, monkeypatch, capsys):
    record, given = one_model
    measured, real = [], zoo_curve.inference

    def inference(net, x):
        if len(measured) == 2:
            raise KeyboardInterrupt
        measured.append(real(net, x))
        return measured[-1]

    monkeypatch.setattr(zoo_curve, "inference", inference)
    with pytest.raises(SystemExit) as stopped:
        zoo_curve.main(given)
    assert stopped.value.code == 130
    results = tmp_path / "results"
    assert len(json.loads((results / "zoo-kodak.json").read_text())["cells"]) == 2

    calls = []
    monkeypatch.setattr(zoo_curve, "inference", lambda net, x: calls.append(x) or real(net, x))
    zoo_curve.main(given)
    assert len(calls) == 1 and "too few points" in capsys.readouterr().out
    value = json.loads(zoo_curve.results_path(results, record.name).read_text())
    golden = [record.golden[image.name]["bpp"] for image in zoo.sample_images()]
    assert value["results"]["bpp"] == [pytest.approx(sum(golden) / 3, rel=0.01)]
    assert value["results"]["quality"] == [record.quality]


def test_values_of_another_weight_are_measured_again(one_model, tmp_path):
    record, given = one_model
    zoo_curve.main(given)
    path = tmp_path / "results" / "zoo-kodak.json"
    content = json.loads(path.read_text())
    for cell in content["cells"].values():
        cell["of"]["sha256"], cell["values"]["bpp"] = "of another file", 99
    path.write_text(json.dumps(content))
    zoo_curve.main(given)
    value = json.loads(zoo_curve.results_path(tmp_path / "results", record.name).read_text())
    assert value["results"]["bpp"][0] < 3


def test_a_model_with_a_failure_has_no_means(one_model, tmp_path, capsys):
    record, given = one_model
    (tmp_path / "images" / "broken.png").write_bytes(b"no image")
    with pytest.raises(SystemExit, match=f"failed: {record.name} {record.quality} broken"):
        zoo_curve.main(given)
    assert not zoo_curve.results_path(tmp_path / "results", record.name).is_file()
    assert len(json.loads((tmp_path / "results" / "zoo-kodak.json").read_text())["cells"]) == 3


def test_published_points_are_kept_beside_the_results(one_model, tmp_path, monkeypatch):
    """Tables follow from the folder of results alone, wherever the published points came from."""
    _, given = one_model
    monkeypatch.setattr(zoo_curve, "run", lambda *_, **__: {})
    ours = ANCHOR | {key: [1, 2, 3, 4] for key in ("quality", "lmbda", "ms-ssim-rgb")}
    monkeypatch.setattr(zoo_curve, "means", lambda *_: {"results": ours})
    given[-1] = "a-model"
    zoo_curve.main(given)
    collection = tmp_path / "points.json"
    collection.unlink()
    curves, anchors = zoo_curve.read_results(tmp_path / "results", ["a-model"])
    assert "| a-model | -50.0 % (28.0–37.0 dB) |" in zoo_curve.tables(curves, anchors)
    kept = json.loads((tmp_path / "results" / "published-kodak.json").read_text())
    keys = {*zoo_curve.ANCHORS.values(), *zoo_curve.REFINED}
    assert set(kept) == keys and all(row["source"] == "a book" for row in kept.values())
    with pytest.raises(FileNotFoundError, match="--anchors"):
        zoo_curve.main(given)
    collection.write_text("{}")
    with pytest.raises(ValueError, match="has no compressai:jpeg"):
        zoo_curve.main(given)


def test_the_committed_means_are_those_of_the_images():
    """And every image was measured with the weight that the zoo has."""
    results = EVAL / "results"
    cells = json.loads((results / "zoo-kodak.json").read_text())["cells"]
    images = [Path(f"kodim{number:02}.png") for number in range(1, 25)]
    assert all(cells[task.name]["of"] == task.of for task in zoo_curve.tasks(zoo_curve.NAMES, images))
    for name in zoo_curve.NAMES:
        value = json.loads(zoo_curve.results_path(results, name).read_text())
        assert value == zoo_curve.means(cells, name, images)


def test_missing_images_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no PNG image in .*--kodak"):
        zoo_curve.main(["--kodak", str(tmp_path)])
