# SPDX-License-Identifier: Apache-2.0
"""experiments/realism/critic.py: a tiny run that resumes, closed forms, and what the committed results
show."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torchvision.utils import save_image

from experiments.realism import critic
from experiments.realism import critic_report as report

pytest.importorskip("matplotlib", reason='pip install ".[eval]"')

EVAL = Path(__file__).resolve().parents[2] / "eval"
RESULTS = EVAL / "results" / "critic.json"
CELLS = json.loads(RESULTS.read_text(encoding="utf-8"))["cells"] if RESULTS.is_file() else {}


def test_a_tiny_run_measures_once(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(critic, "CROP_PX", 64)
    monkeypatch.setattr(critic, "BATCH_PX", 64)
    monkeypatch.setattr(critic, "BATCHES", (1, 2))
    monkeypatch.setattr(critic, "decoder", lambda: None)
    for index in range(2):
        coarse = torch.rand(1, 3, 9, 9, generator=torch.Generator().manual_seed(index))
        x = nn.functional.interpolate(coarse, size=(70, 80), mode="bicubic").clamp(0, 1)
        save_image(x, tmp_path / f"{index}.png")
    out = tmp_path / "results" / "mine.json"
    arguments = ["--data", str(tmp_path), "--out", str(out)]
    critic.main(arguments)
    printed = capsys.readouterr().out
    assert "| original | " in printed and "| JPEG 10 | " in printed and "of 2 |" in printed
    assert (tmp_path / "figures" / "mine.png").stat().st_size > 1000
    cells = json.loads(out.read_text())["cells"]
    rows = cells["image 0"]["values"]
    assert set(rows["flat"]) >= {"psnr_db", "model", "PNG", "WebP", "two-part", "mixture"}
    least = min(rows["noise alone"][part] for part in ("WebP", "two-part"))
    assert rows["noise alone"]["mixture"] == pytest.approx(least, abs=2 / 64**2)  # a bit for which of two
    assert rows["original"]["psnr_db"] is None and rows["JPEG 10"]["psnr_db"] < rows["JPEG 90"]["psnr_db"]
    one = cells["batches"]["values"]["1 different"]
    assert one["batch"] == pytest.approx(one["alone"])
    for name in ("measure", "measure_batches", "measure_exact"):
        monkeypatch.setattr(critic, name, None)  # a second call must not measure
    critic.main(arguments)
    assert capsys.readouterr().out == printed


def test_small_images_are_named(tmp_path):
    save_image(torch.rand(1, 3, 32, 32), tmp_path / "small.png")
    with pytest.raises(SystemExit, match="failed: image small"):
        critic.main(["--data", str(tmp_path), "--out", str(tmp_path / "critic.json")])


def test_exact_values():
    values = critic.measure_exact()
    assert values["expectation"] == pytest.approx(1, abs=1e-12)
    for t, p in values["tail"].items():
        assert p <= 2 ** -float(t)
    # -log2 P of N(0, I) and of blurred data; numbers found independently
    assert values["gaussian"]["real"]["p_bits"] == pytest.approx(32.7, abs=0.06)
    assert values["gaussian"]["blurred"]["p_bits"] == pytest.approx(24.1, abs=0.06)
    assert values["gaussian"]["blurred"]["u_least"] > 5 > 0 > values["gaussian"]["real"]["u_least"]
    assert values["collapsed"]["1"] == pytest.approx(0, abs=1e-9)
    assert values["collapsed"]["8"] == pytest.approx(28.7, abs=0.1)


def test_bounds_by_samples():
    """U of the Gaussian mixture itself, 20,000 draws, is above the bound and within its log2 of 4."""
    rng = np.random.default_rng(0)
    for scale, name in ((0.5, "blurred"), (1.0, "real")):
        x = scale * rng.standard_normal((20_000, report.DIMS))
        squares = (x**2).sum(1)

        def log2(s: float, squares: np.ndarray = squares) -> np.ndarray:
            return -(report.DIMS / 2 * math.log2(2 * math.pi * s**2) + squares / (2 * s**2 * math.log(2)))

        mixed = np.logaddexp2.reduce([log2(s) - math.log2(len(report.SCALES)) for s in report.SCALES])
        least = report.gaussians()["gaussian"][name]["u_least"]
        assert least <= (mixed - log2(1.0)).mean() < least + 2


def test_separation_counts_pairs():
    def row(model: float, mixture: float) -> dict[str, float]:
        return {"model": model, "mixture": mixture, "WebP": mixture, "two-part": mixture + 1}

    cells = {
        "image a": {"values": {"original": row(5.0, 5.0), "x": row(4.0, 3.0)}},
        "image b": {"values": {"original": row(5.0, 4.0), "x": row(6.0, 5.5)}},
    }
    found = report.separation(cells, "x")
    assert (found["images"], found["u"], found["likelihood"], found["seen_by"]) == (2, 1, 1, "WebP")
    assert found["difference"]["mean"] == pytest.approx((1 - 0.5) / 2)


# --- The committed results --------------------------------------------------------------------

# In how many of 24 images U, and likelihood alone, find the variant less realistic: at least, at most.
KINDS = {
    "blurred, σ = 1.5 px": ((22, 24), (0, 0)),
    "JPEG 10": ((22, 24), (0, 0)),
    "noise, σ = 20": ((24, 24), (24, 24)),
    "sharpened": ((20, 24), (24, 24)),
    "noise alone": ((24, 24), (24, 24)),
    "blurred, σ = 0.7 px": ((0, 14), (0, 0)),  # too little for this critic
    "flat": ((0, 4), (0, 0)),  # the model itself gives it few bits
    "first stage of HFD": ((16, 24), (0, 0)),
    "HFD": ((0, 6), (16, 24)),
}


@pytest.mark.parametrize("variant", KINDS)
def test_what_is_found_and_what_is_not(variant):
    found = report.separation(CELLS, variant)
    assert found["images"] == 24
    for key, (least, most) in zip(("u", "likelihood"), KINDS[variant]):
        assert least <= found[key] <= most


def test_committed_results_are_of_the_shipped_model():
    of = {cell["of"].get("model") for name, cell in CELLS.items() if name != "exact"}
    assert of == {critic.hash_of(critic.PHOTOGRAPHS)}


def test_copies_are_found():
    values = CELLS["batches"]["values"]
    for size in (2, 4, 8):
        assert values[f"{size} copies"]["batch"] > values[f"{size} different"]["batch"] + 4
    assert abs(values["8 copies"]["alone"] - values["1 copies"]["alone"]) < 1e-6
