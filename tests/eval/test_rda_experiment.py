# SPDX-License-Identifier: Apache-2.0
"""experiments/realism/rda.py: the Gaussian latent against known numbers, a tiny run that resumes, and the
lecture's claims on the committed results."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, features
from torch import nn
from torchvision.utils import save_image

from compressai_sga import zoo
from experiments.realism import rda

pytest.importorskip("matplotlib", reason='pip install ".[eval]"')

EVAL = Path(__file__).resolve().parents[2] / "eval"
RESULTS = EVAL / "results" / "rda.json"
CELLS = json.loads(RESULTS.read_text(encoding="utf-8"))["cells"] if RESULTS.is_file() else {}
RECORDS = [r for r in zoo.list_models() if r.name in ("rda-l2-small", "rda-l1-small")]


@pytest.fixture
def script(monkeypatch, tmp_path):
    """Writes below tmp_path."""
    monkeypatch.setattr(rda, "EVAL", tmp_path)
    return rda


# sigma, h and H in bits, error of rounding: numbers found independently
KNOWN = [
    (0.1, 0.261, 0.000, 0.0100),
    (0.2, 0.521, 0.109, 0.0384),
    (0.3, 0.780, 0.550, 0.0662),
    (0.5, 1.2544, 1.2412, 0.0826),
    (1.0, 2.1048, 2.1048, 0.0833),
]


@pytest.mark.parametrize(("sigma", "differential", "discrete", "error"), KNOWN)
def test_gaussian_latent(script, sigma, differential, discrete, error):
    row = script.gaussian(sigma)
    assert row["differential_bits"] == pytest.approx(differential, abs=6e-4)
    assert row["discrete_bits"] == pytest.approx(discrete, abs=6e-4)
    assert row["mse_rounding"] == pytest.approx(error, abs=6e-5)
    assert row["mse_noise"] == pytest.approx(0.0833, abs=5e-5)
    k = np.arange(1, 50)  # the error is periodic in y: its Fourier series under the Gaussian
    series = 1 / 12 + ((-1.0) ** k / (np.pi * k) ** 2 * np.exp(-2 * (np.pi * k * sigma) ** 2)).sum()
    assert row["mse_rounding"] == pytest.approx(series, rel=1e-5)


def test_gaussian_half_way_between_integers_costs_more_than_its_noise(script):
    middle, law = script.gaussian(0.1, 0.5), script.gaussian(0.1)
    assert middle["discrete_bits"] == pytest.approx(1, abs=1e-5)  # a fair coin
    assert middle["differential_bits"] == pytest.approx(law["differential_bits"], abs=1e-6)
    assert law["discrete_bits"] < law["differential_bits"] < middle["discrete_bits"]
    assert middle["mse_rounding"] > 1 / 12 > law["mse_rounding"]


def test_gaussian_by_samples(script):
    """One million draws; 5 standard errors."""
    rng = np.random.default_rng(0)
    y = 0.3 * rng.standard_normal(1_000_000)
    errors = (np.floor(y + 0.5) - y) ** 2
    row = script.gaussian(0.3)
    assert abs(errors.mean() - row["mse_rounding"]) < 5 * errors.std() / 1000
    counts = np.unique(np.floor(y + 0.5), return_counts=True)[1] / len(y)
    assert -(counts * np.log2(counts)).sum() == pytest.approx(row["discrete_bits"], abs=0.005)


@pytest.mark.skipif(not features.check("jpg_2000"), reason="Pillow was built without JPEG 2000")
def test_a_tiny_run_measures_once(script, tmp_path, monkeypatch, capsys):
    """With a stock model in the place of ours: the functions take any model with its own prior of y."""
    for names in ("MODELS", "PICTURED"):
        monkeypatch.setattr(script, names, ("bmshj2018-factorized-small",))
    monkeypatch.setattr(script.rda_pictures, "REFINE", "ste")
    monkeypatch.setattr(
        zoo, "list_models", lambda *name, real=zoo.list_models: [r for r in real(*name) if r.quality == 1]
    )
    coarse = torch.rand(1, 3, 9, 9, generator=torch.Generator().manual_seed(0))
    image = nn.functional.interpolate(coarse, size=(176, 192), mode="bicubic").clamp(0, 1)
    for name, x in {"a.png": image, "b.png": image.flip(3)}.items():
        save_image(x, tmp_path / name)
    real = script.rda_pictures.compress_picture
    monkeypatch.setattr(
        script.rda_pictures,
        "compress_picture",
        lambda *args, refine=None, **more: real(*args, refine=refine, steps=refine and 2, **more),
    )
    arguments = ["--data", str(tmp_path), "--image", "a.png", "--out", str(tmp_path / "r" / "rda.json")]
    assert script.main(arguments) == 0
    printed = capsys.readouterr().out
    assert "| bmshj2018-factorized-small, 255² MSE | 0.0018 |" in printed
    assert "| 0.1 | 0.2606 | 0.0000 | 0.0833 | 0.0100 |" in printed
    sizes = {row.split(" | ")[0][2:]: int(row.split(" | ")[1]) for row in _rows(printed, "a")}
    ours = sizes["bmshj2018-factorized-small"]
    assert ours <= sizes["JPEG"] and ours <= sizes["JPEG 2000"] < 1.1 * ours
    for name in ("rda-entropies", "rda-distortions", "rda-pictures"):
        with Image.open(tmp_path / "figures" / f"{name}.png") as figure:
            assert figure.width > 600
    monkeypatch.setattr(script, "measure", None)  # a second call must not measure
    monkeypatch.setattr(script.rda_pictures, "measure", None)
    script.main(arguments)
    assert capsys.readouterr().out == printed


def _rows(printed: str, image: str) -> list[str]:
    """Rows of the table of pictures."""
    return printed.split(f"| {image} | bytes")[1].splitlines()[2:]


def test_an_image_that_is_not_there_is_named(script, tmp_path, capsys):
    with pytest.raises(SystemExit):
        script.main(["--data", str(tmp_path)])
    assert "kodim" in capsys.readouterr().err


# --- The committed results --------------------------------------------------------------------


def rows_of(record: zoo.ModelRecord) -> list[dict[str, float]]:
    start = f"{record.name}-{record.quality} "
    cells = [cell for name, cell in CELLS.items() if name.startswith(start)]
    assert len(cells) == 24
    assert all(cell["of"]["sha256"] == record.sha256 for cell in cells)
    return [cell["values"] for cell in cells]


@pytest.mark.parametrize("record", RECORDS, ids=lambda r: f"{r.name}-{r.quality}")
def test_training_is_near_the_files_and_above_them(record):
    """Every image: files cost less than the noisy latent, though more than half, and are no worse by 3 %."""
    for row in rows_of(record):
        assert 0.5 < row["bpp_rounding"] / row["bpp_noise"] < 1
        assert row["bpp_file"] == pytest.approx(row["bpp_rounding"], rel=0.01, abs=0.002)
        assert row["distortion_rounding"] < 1.03 * row["distortion_noise"]


def test_the_gap_falls_with_the_rate():
    """Of models that were trained alike; the autoencoders' training differs from one rate to the other."""
    gaps = []
    for record in (r for r in zoo.list_models() if r.name == "bmshj2018-factorized-small"):
        gaps.append(np.mean([row["bpp_noise"] / row["bpp_rounding"] - 1 for row in rows_of(record)]))
    assert len(gaps) == 3 and gaps == sorted(gaps, reverse=True)


@pytest.mark.skipif(not RECORDS, reason="the zoo has no rate-distortion autoencoders yet")
def test_the_table_of_pictures():
    """Better than a larger JPEG in all respects. Against JPEG 2000 of the same size better in MS-SSIM alone,
    not in PSNR, as the lecture's was: within 1 dB below it. Refinement lowers the loss, if not by much."""
    (cell,) = (cell for name, cell in CELLS.items() if name.startswith("pictures "))
    weights = {r.name: r for r in RECORDS if r.quality == 1}
    assert cell["of"]["sha256"] == {name: r.sha256 for name, r in weights.items()}
    rows = cell["values"]
    ours, jpeg, jpeg2000 = rows["rda-l2-small"], rows["JPEG"], rows["JPEG 2000"]
    assert ours["bpp"] == pytest.approx(0.12, abs=0.01)
    assert ours["bytes"] <= jpeg2000["bytes"] < 1.01 * ours["bytes"] < jpeg["bytes"]
    for key in ("psnr_rgb_db", "psnr_luma_db"):
        assert jpeg[key] < ours[key] < jpeg2000[key] < ours[key] + 1
    assert jpeg["ms_ssim"] < jpeg2000["ms_ssim"] < ours["ms_ssim"]

    def loss(row: dict[str, float]) -> float:
        return row["bpp"] + weights["rda-l2-small"].lmbda * 255**2 * 10 ** (-row["psnr_rgb_db"] / 10)

    assert loss(rows["rda-l2-small, refined"]) < loss(ours)
