# SPDX-License-Identifier: Apache-2.0
"""The evaluation scripts run, resume without doing anything twice, and say what they measured.

And the committed results hold what the README and the papers' order claim.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn
from torchvision.utils import save_image

import compressai_sga
from compressai_sga import zoo
from experiments.refinement import curve, methods

EVAL = Path(__file__).resolve().parents[2] / "eval"
MEASURED = EVAL / "results" / "refine-methods-mbt2018-mean-small-3-crop128.json"


@pytest.fixture(autouse=True)
def elsewhere(monkeypatch, tmp_path):
    """The scripts write below tmp_path."""
    monkeypatch.setattr(methods, "EVAL", tmp_path)
    monkeypatch.setattr(curve, "EVAL", tmp_path)


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for index in range(3):
        coarse = torch.rand(1, 3, 9, 9, generator=torch.Generator().manual_seed(index))
        image = nn.functional.interpolate(coarse, size=(72, 80), mode="bicubic").clamp(0, 1)
        save_image(image, folder / f"image{index}.png")
    return folder


def test_methods_are_measured_once(images, tmp_path, capsys, monkeypatch):
    argv = ["--images", str(images), "--crop", "64", "--batch", "2", "--entries", "ssl:3", "fast:2"]
    methods.main(argv)
    printed = capsys.readouterr().out
    assert "| `ssl` | 3 |" in printed and "| `fast` | 2 |" in printed and "3 images" in printed
    (path,) = (tmp_path / "results").glob("*.json")
    content = path.read_text()
    assert len(json.loads(content)["cells"]) == 4  # two entries, two batches
    results = methods.by_entry(json.loads(content)["cells"])
    assert set(results["ssl:3"]["images"]) == {"image0", "image1", "image2"}
    for image in results["fast:2"]["images"].values():
        assert image["loss-after"] <= image["loss-before"]
    monkeypatch.setattr(compressai_sga, "refine", None)  # a second call must not refine
    methods.main(argv)
    assert path.read_text() == content
    assert (tmp_path / "figures" / "refine-methods.png").stat().st_size > 1000


def test_curve_is_in_compressai_schema(images, tmp_path, capsys, monkeypatch):
    two = [r for r in zoo.list_models() if r.name == zoo.DEFAULT_MODEL and r.quality in (2, 3)]
    monkeypatch.setattr(curve.zoo, "list_models", lambda name=None: two)
    curve.main(["--images", str(images), "--crop", "64", "--entries", "polish:0"])
    value = json.loads(next((tmp_path / "results").glob("refine-curve-*polish-0.json")).read_text())
    assert {"name", "description", "results"} <= set(value)
    assert len(value["results"]["bpp"]) == len(value["results"]["psnr-rgb"]) == 2
    assert "| `polish:0` | too few points | -" in capsys.readouterr().out  # the loss fell


def test_bd_rate_of_half_the_bits():
    anchor = {"bpp": [0.2, 0.4, 0.6, 0.8], "psnr-rgb": [28.0, 31.0, 33.0, 34.5]}
    half = {"bpp": [b / 2 for b in anchor["bpp"]], "psnr-rgb": anchor["psnr-rgb"]}
    assert curve.bd_rate(anchor, half) == pytest.approx(-50)


def test_missing_images_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="--images"):
        methods.main(["--images", str(tmp_path), "--entries", "ssl:1"])


def cells() -> dict[str, dict]:
    return json.loads(MEASURED.read_text(encoding="utf-8"))["cells"]


def lowering(entry: str) -> float:
    """Percent of the unrefined loss, mean over the images."""
    batches = [cell["values"]["images"] for name, cell in cells().items() if name.split()[0] == entry]
    images = [image for batch in batches for image in batch.values()]
    after, before = (sum(i[f"loss-{when}"] for i in images) for when in ("after", "before"))
    return 100 * (1 - after / before)


def test_committed_results_are_known_to_the_script(monkeypatch, tmp_path):
    """They are of the shipped weight, of 24 images, and their presets are the package's."""
    for number in range(1, 25):
        Image.new("RGB", (768, 512)).save(tmp_path / f"kodim{number:02}.png")
    known = {name: cell["of"] for name, cell in cells().items()}
    entries = [name.split()[0] for name in known]
    args = methods.parse_args(["--images", str(tmp_path), "--entries", *entries])
    assert {task.name: task.of for task in methods.tasks(args)} == known and len(known) == 20


def test_batches_are_of_one_shape(tmp_path):
    sizes = [(80, 72), (72, 80), (80, 72), (80, 72)]
    for number, size in enumerate(sizes):
        Image.new("RGB", size).save(tmp_path / f"{number}.png")
    paths = sorted(tmp_path.glob("*.png"))
    stems = [[path.stem for path in batch] for batch in methods.batches(paths, 0, 2)]
    assert stems == [["0", "2"], ["3"], ["1"]]
    assert len(methods.batches(paths, 64, 4)) == 1


def test_values_of_other_settings_are_measured_again(images, tmp_path):
    argv = ["--images", str(images), "--crop", "64", "--entries", "polish:0"]
    methods.main([*argv, "--batch", "2"])
    (path,) = (tmp_path / "results").glob("*.json")
    content = json.loads(path.read_text())
    for cell in content["cells"].values():
        cell["of"]["sha256"], cell["values"]["images"] = "of another file", {"image0": {}, "gone": {}}
    path.write_text(json.dumps(content))
    methods.main(argv)
    results = methods.by_entry(json.loads(path.read_text())["cells"])
    assert set(results["polish:0"]["images"]) == {"image0", "image1", "image2"}


def test_committed_results_show_the_order_of_the_paper():
    """ssl below atanh below none at 500 steps, as published and in our settings."""
    assert lowering("ssl-paper:500") > lowering("sga-paper:500") > 0
    assert lowering("ssl:500") > lowering("atanh:500") > 0


def test_committed_results_show_our_presets_ahead():
    assert lowering("fast:86") >= lowering("ssl-paper:500")
    assert lowering("best:470") > lowering("ssl-paper:2000")
