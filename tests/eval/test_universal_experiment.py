# SPDX-License-Identifier: Apache-2.0
"""experiments/coding/universal.py runs and resumes; its committed results show the claim of Agustsson &
Theis 2020: at test time a universally quantised model has the loss of its training, a rounding one does
not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn
from torchvision.utils import save_image

from compressai_sga import zoo
from experiments.coding import universal

EVAL = Path(__file__).resolve().parents[2] / "eval"
CELLS = json.loads((EVAL / "results" / "universal.json").read_text(encoding="utf-8"))["cells"]
RECORDS = [r for r in zoo.list_models() if r.name.startswith("mbt2018-mean") and r.quality <= 4]


@pytest.mark.parametrize("record", RECORDS, ids=lambda r: f"{r.name}-{r.quality}")
def test_gap_between_training_and_test(record):
    """Ideal code lengths: within 4 standard errors of 0 and below 0.2 %; rounding is off by more than 5 %."""
    cell = CELLS[f"{record.name}-{record.quality}"]
    assert cell["of"]["sha256"] == record.sha256 and cell["of"]["images"] == 24
    gap = cell["values"]["gap_ideal_percent"]
    if "-uq-" in record.name:
        assert abs(gap["mean"]) < min(0.2, 4 * gap["error"])
        assert abs(cell["values"]["gap_percent"]["mean"]) < 0.5
    else:
        assert gap["mean"] < -5 and abs(gap["mean"]) > 4 * gap["error"]


def test_all_qualities_are_measured():
    assert len(RECORDS) == 8 and len(CELLS) == 8


def test_the_script_measures_once(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(universal, "QUALITIES", (3,))
    monkeypatch.setattr(universal, "DRAWS", 1)
    coarse = torch.rand(1, 3, 9, 9, generator=torch.Generator().manual_seed(0))
    image = nn.functional.interpolate(coarse, size=(256, 270), mode="bicubic").clamp(0, 1)
    images = tmp_path / "images"
    images.mkdir()
    save_image(image, images / "a.png")
    save_image(image.flip(3), images / "b.png")
    arguments = ["--data", str(images), "--out", str(tmp_path / "results" / "universal.json")]
    universal.main(arguments)
    printed = capsys.readouterr().out
    assert "| mbt2018-mean-small | 3 |" in printed and "| mbt2018-mean-uq-small | 3 |" in printed
    assert "% with rounding, " in printed and "% with universal quantisation." in printed
    assert (tmp_path / "figures" / "universal.png").stat().st_size > 1000
    monkeypatch.setattr(universal, "measure", lambda *_: pytest.fail("measured again"))
    universal.main(arguments)
    assert capsys.readouterr().out == printed


def test_a_folder_without_images_is_named(tmp_path, capsys):
    with pytest.raises(SystemExit):
        universal.main(["--data", str(tmp_path), "--out", str(tmp_path / "results" / "u.json")])
    assert "--data" in capsys.readouterr().err
