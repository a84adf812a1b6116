# SPDX-License-Identifier: Apache-2.0
"""experiments/c3/measure.py measures what it says, once; the plain step computes the loss of the fit;
tables and figures come out of the cells; committed results, where there are any, hold together and still
decode."""

from __future__ import annotations

import base64
import dataclasses
import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional
from torchvision.utils import save_image

from compressai_sga.models.c3 import C3, native
from compressai_sga.models.c3.config import PRESETS
from compressai_sga.models.c3.fit.loop import Fit
from compressai_sga.models.c3.image_codec import decode_image
from experiments.c3 import kodak, measure, report
from experiments.c3.plain import PlainFit, plain_loss

pytest.importorskip("matplotlib", reason='pip install ".[eval]"')

ROOT = Path(__file__).resolve().parents[2]
EVAL = ROOT / "eval"
RESULTS = EVAL / "results" / "c3.json"
KODAK = Path(os.environ.get("COMPRESSAI_SGA_DATA", ROOT.parent / "shared" / "data")) / "kodak"
SIZE = 24
REFERENCE = {"bytes": 300, "mse": 2e-3, "encode_cpu_seconds": 278.0, "decode_cpu_seconds": 0.48}
REFERENCE |= {"bpp": 8 * 300 / SIZE**2, "psnr_db": -10 * math.log10(2e-3)}


@pytest.fixture
def script(monkeypatch):
    """The script; one entry of part warm has an argument that has no effect beside lmbda."""
    entries = {"first": {"preset": "c3-fast"}, "second": {"preset": "c3-fast", "quality": 1}}
    monkeypatch.setattr(measure, "STARTS", entries)
    return measure


def picture(height: int, width: int, seed: int = 0) -> torch.Tensor:
    """Smooth, with an edge; (1, 3, height, width)."""
    coarse = torch.rand(1, 3, 6, 6, generator=torch.Generator().manual_seed(seed))
    x = functional.interpolate(coarse, size=(height, width), mode="bicubic").clamp(0, 1)
    x[:, :, : height // 2, width // 3 :] *= 0.5
    return x


@pytest.fixture
def folder(tmp_path) -> Path:
    """Kodak in small: images 5 and 20, a reference, published points."""
    images = tmp_path / "kodak"
    images.mkdir()
    for number in (5, 20):
        save_image(picture(26, 39, number), images / f"kodim{number:02}.png")
    rows = [{"image": f"kodim{number:02}"} | REFERENCE for number in (5, 20)]
    (tmp_path / "reference.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    curve = {"results": {"bpp": [0.2, 1.0], "psnr-rgb": [30.0, 38.0]}}
    anchors = {key: curve for key in ("VTM", "C3", "Cool-Chic v5.0", "JPEG2000")}
    (tmp_path / "anchors.json").write_text(json.dumps(anchors))
    return tmp_path


def arguments(folder: Path, *more: str) -> list[str]:
    return [
        *("--kodak", str(folder / "kodak"), "--anchors", str(folder / "anchors.json")),
        *("--crops", "5", "20", "--budget", "5", "--warm", "5", "--whole", "20", "--lmbdas", "1e-3"),
        *("--size", str(SIZE), "--steps", "3", "5", "--out", str(folder / "results" / "c3.json")),
        *more,
    ]


def cells_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "results" / "c3.json").read_text())["cells"]


# --- The script ---------------------------------------------------------------------------------------


def test_all_parts_are_measured_once(script, folder, capsys, monkeypatch):
    given = arguments(folder, "--reference", str(folder / "reference.jsonl"))
    script.main(given)
    printed = capsys.readouterr().out
    cells = cells_of(folder)
    assert set(cells) == {
        *("reference kodim05", "reference kodim20", "crops kodim05", "crops kodim20"),
        *("budget 3 kodim05", "budget 5 kodim05", "step c3-fast", "whole kodim20 0.001"),
        *(f"warm {label} {steps} kodim05" for label in ("first", "second") for steps in (3, 5)),
    }
    assert printed.count("|---") > 5
    assert "of 2 crops have a lower J than Cool-Chic 5.0.1's." in printed
    for name in ("c3.png", "c3-crops.png"):
        assert (folder / "figures" / name).stat().st_size > 10_000
    for name in ("coded", "step_times"):  # a second call must not measure, nor want the reference
        monkeypatch.setattr(script, name, None)
    script.main(arguments(folder))
    assert capsys.readouterr().out == printed
    for path in (folder / "kodak").iterdir():
        path.unlink()
    script.main(arguments(folder, "--tables"))
    assert capsys.readouterr().out == printed
    script.main(arguments(folder, "--tables", "--parts", "budget"))
    part = capsys.readouterr().out.strip()
    assert part in printed and part.startswith("| steps | bpp") and "At 5 steps, against c3-fast: " in part


def test_values_are_those_of_the_strings(script, folder):
    script.main(arguments(folder, "--parts", "crops", "whole", "--steps", "60"))
    cells = cells_of(folder)
    for number in (5, 20):
        values = cells[f"crops kodim{number:02}"]["values"]
        strings = [base64.b64decode(s) for s in values["strings"]]
        assert [values["bytes_nets"], values["bytes_latents"]] == [len(s) for s in strings]
        assert values["bytes"] == sum(map(len, strings))
        x = script.read(folder / "kodak", number, SIZE)[0]
        shown = (decode_image(strings, (SIZE, SIZE)) * 255).round() / 255
        mse = float((shown.double() - (x.double() * 255).round() / 255).square().mean())
        assert values["mse"] == pytest.approx(mse, rel=1e-5)
        assert values["psnr_db"] == pytest.approx(-10 * math.log10(mse), abs=1e-3)
        assert values["loss"] == pytest.approx(mse + 1e-3 * 8 * values["bytes"] / SIZE**2, rel=1e-5)
    whole = cells["whole kodim20 0.001"]["values"]
    latents = 8 * whole["bytes_latents"]
    assert -1 < latents - whole["exact_bits"] <= 64  # the coder's guard and its last word
    assert whole["exact_bits"] > 100 and whole["float_bits"] == pytest.approx(whole["exact_bits"], rel=0.1)
    assert whole["bytes"] - whole["bytes_nets"] == whole["bytes_latents"]
    assert whole["macs_per_pixel"] < 3000
    if native.AVAILABLE:
        assert whole["same_latents"] and whole["largest_difference_levels"] <= 1


def test_the_crop_is_the_centre(script, folder):
    x = script.read(folder / "kodak", 5)
    assert torch.equal(script.read(folder / "kodak", 5, SIZE), x[:, :, 1 : 1 + SIZE, 7 : 7 + SIZE])
    with pytest.raises(ValueError, match="--size"):
        script.read(folder / "kodak", 5, 27)


def test_what_was_measured_before_an_interrupt_stays(script, folder, monkeypatch):
    real, done = script.coded, []

    def coded(*given):
        if done:
            raise KeyboardInterrupt
        done.append(real(*given))
        return done[-1]

    monkeypatch.setattr(script, "coded", coded)
    with pytest.raises(SystemExit):
        script.main(arguments(folder, "--parts", "crops"))
    assert set(cells_of(folder)) == {"crops kodim05"}
    before = cells_of(folder)["crops kodim05"]
    monkeypatch.setattr(script, "coded", real)
    script.main(arguments(folder, "--parts", "crops"))
    assert set(cells_of(folder)) == {"crops kodim05", "crops kodim20"}
    assert cells_of(folder)["crops kodim05"] == before


def test_another_preset_is_measured_again(script, monkeypatch):
    before = script.fingerprint("c3-fast")
    assert before == script.fingerprint("c3-fast")
    changed = script.dataclasses.replace(PRESETS["c3-fast"].fit, learning_rate=2e-2)
    preset = script.dataclasses.replace(PRESETS["c3-fast"], fit=changed)
    monkeypatch.setitem(script.PRESETS, "c3-fast", preset)
    assert script.fingerprint("c3-fast") != before


def test_a_reference_must_agree_with_itself(script, tmp_path):
    path = tmp_path / "reference.jsonl"
    good = {"image": "5"} | REFERENCE
    path.write_text(json.dumps(good) + "\n\n")
    assert script.read_reference(path, SIZE) == [good | {"image": "kodim05"}]
    for change in ({"bpp": 1.0}, {"psnr_db": 30.0}, {"mse": 2e-3 * 255**2}, {"bytes": 310}):
        path.write_text(json.dumps(good | change))
        with pytest.raises(ValueError, match="mend the row"):
            script.read_reference(path, SIZE)
    path.write_text(json.dumps({k: v for k, v in good.items() if k != "decode_cpu_seconds"}))
    with pytest.raises(ValueError, match="lacks decode_cpu_seconds"):
        script.read_reference(path, SIZE)


def test_missing_files_are_named_before_anything_is_measured(script, folder, monkeypatch):
    monkeypatch.setattr(script, "coded", None)
    with pytest.raises(FileNotFoundError, match="measure first"):
        script.main(arguments(folder, "--tables"))
    with pytest.raises(FileNotFoundError, match="kodim23.*--kodak"):
        script.main(arguments(folder, "--whole", "5", "23"))
    (folder / "anchors.json").unlink()
    with pytest.raises(FileNotFoundError, match="--anchors"):
        script.main(arguments(folder))


def test_c3_takes_the_arguments_of_the_starts():
    made = {label: C3(**options) for label, options in measure.STARTS.items()}
    assert list(made) == ["cold", "warm"] and all(m.preset.name == "c3-fast" for m in made.values())


# --- The plain step -----------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=[(32, 40), (23, 37)], ids=["even", "odd"])
def fit(request) -> Fit:
    """A fit under way, so that latents and nets are far from where they start."""
    preset = PRESETS["c3-fast"]  # the bits of the nets are not part of what is compared
    preset = dataclasses.replace(preset, fit=dataclasses.replace(preset.fit, weight_bits=False))
    made = Fit(picture(*request.param), preset, 1e-3, steps=60)
    for _ in range(40):
        made.step()
    return made


@pytest.mark.parametrize("rounded", [True, False])
def test_the_plain_loss_is_the_fits(fit, rounded):
    """Loss to 1e-5 and gradients, against float64; latents are far from all zero."""
    plane = fit.plane_hat() if rounded else (fit.plane * fit._gain).detach()
    assert float((plane.abs() > 0.5).sum()) > 20
    plane.requires_grad_()
    ours = fit._loss(plane)[0]
    ours.backward()
    fit._drop_gradients()
    grids = [g.detach()[None].double().requires_grad_() for g in fit.grid_plane.grids(plane)]
    arrays = {name: array[0].detach().double() for name, array in fit.arrays().items()}
    theirs = plain_loss(grids, arrays, fit.x.double(), 1e-3, fit.architecture)
    assert float(ours) == pytest.approx(float(theirs), rel=1e-5)
    theirs.backward()
    for mine, grid in zip(fit.grid_plane.grids(plane.grad), grids, strict=True):
        error = (mine[None] - grid.grad).norm() / grid.grad.norm()
        assert float(error) < 1e-3


def test_the_plain_step_sees_every_array_and_refuses_a_finer_grid(fit):
    plain = PlainFit(fit)
    before = {name: array.detach().clone() for name, array in plain.arrays.items()}
    grids = [grid.detach().clone() for grid in plain.grids]
    plain.step()
    assert all((plain.arrays[name] != array).any() for name, array in before.items())
    assert all((a != b).any() for a, b in zip(plain.grids, grids, strict=True))
    clic = PRESETS["c3-paper-clic"].architecture
    with pytest.raises(ValueError, match="finer"):
        plain_loss(grids, before, fit.x, 1e-3, clic)


# --- Tables and pictures --------------------------------------------------------------------------------


def cell(loss: float, steps: int = 5, print_: str = "a", **others: Any) -> dict[str, Any]:
    values = {"loss": loss, "bpp": 0.5, "psnr_db": 30.0, "encode_cpu_seconds": 2.0, "bytes": 100}
    values |= {"bytes_nets": 25, "bytes_latents": 75, "decode_cpu_seconds": 0.1}
    return {"of": {"steps": steps, "fingerprint": print_}, "values": values | others}


def row_of(table: str, start: str) -> list[str]:
    (row,) = (line for line in table.splitlines() if line.startswith(f"| {start} |"))
    return [c.strip() for c in row.strip("|").split("|")]


def test_the_budget_table_counts_falls_and_compares():
    cells = {"crops a": cell(1.0, 2000), "crops b": cell(3.0, 2000), "crops c": cell(9.0, 2000)}
    cells |= {"budget 1000 a": cell(2.0), "budget 1000 b": cell(4.0)}
    cells |= {"budget 500 a": cell(3.0), "budget 500 b": cell(3.5)}  # measured later
    table = report.tables(cells, ["budget"])
    assert "against c3-fast, 2,000 steps" in table
    assert row_of(table, "500")[3:6] == ["3250.0000", "", "+62.5 %"]
    assert row_of(table, "1,000")[3:6] == ["3000.0000", "1 of 2", "+50.0 %"]
    assert table.index("| 500 |") < table.index("| 1,000 |")


def test_the_warm_table_compares_with_the_first_start():
    cells = {"warm cold 500 a": cell(4.0), "warm warm 500 a": cell(3.0, bytes_nets=10)}
    rows = [line for line in report.tables(cells, ["warm"]).splitlines() if "| 500 |" in line]
    assert "| cold |" in rows[0] and "25.0 %" in rows[0]
    assert "| -25.0 % | 10 | 10.0 % |" in rows[1]


def test_the_crops_table_has_the_reference_only_when_it_is_complete():
    cells = {"crops a": cell(1.0), "crops b": cell(2.0), "reference a": cell(2.0)}
    assert "Cool-Chic" not in report.tables(cells, ["crops"])
    table = report.tables(cells | {"reference b": cell(2.0)}, ["crops"])
    assert "Cool-Chic" in table
    assert row_of(table, "a")[-1] == "-50.0 %" and row_of(table, "b")[-1] == "+0.0 %"
    assert row_of(table, "mean")[-1] == "-25.0 %"


def test_presets_are_not_mixed():
    with pytest.raises(ValueError, match="crops has cells of different presets"):
        report.tables({"crops a": cell(1.0), "crops b": cell(1.0, print_="b")}, ["crops"])


def test_differences_are_shown_around_grey():
    shown = report.difference(np.array([0, 100, 255], np.uint8), np.array([1, 98, 0], np.uint8))
    assert shown.tolist() == [132, 120, 0]


# --- Committed results ----------------------------------------------------------------------------------


@pytest.mark.skipif(not RESULTS.is_file(), reason="eval/results/c3.json has not been measured")
def test_committed_crops_decode_to_what_the_table_says(script):
    cells = json.loads(RESULTS.read_text(encoding="utf-8"))["cells"]
    crops = {name: c for name, c in cells.items() if name.startswith("crops ")}
    assert len(crops) == 8
    for name, c in crops.items():
        values, size = c["values"], c["of"]["size"]
        strings = [base64.b64decode(s) for s in values["strings"]]
        assert values["bytes"] == sum(map(len, strings))
        assert values["loss"] == pytest.approx(values["mse"] + c["of"]["lmbda"] * values["bpp"], rel=1e-4)
        image = decode_image(strings, (size, size))
        if KODAK.is_dir():
            x = script.read(KODAK, int(name[-2:]), size)[0]
            mse = float(((image * 255).round() / 255 - x).double().square().mean())
            assert values["mse"] == pytest.approx(mse, rel=1e-3)  # 8-bit values may differ by one


# --- Kodak in batches -----------------------------------------------------------------------------------


@pytest.mark.slow
def test_kodak_in_batches_is_measured_once(folder, monkeypatch, capsys):
    out = folder / "results" / "c3-kodak.json"
    options = ["--kodak", str(folder / "kodak"), "--images", "5", "20", "--steps", "3", "--out", str(out)]
    for batch in ("2", "1", "2"):
        kodak.main([*options, "--lmbdas", "1e-3", "4e-3", "--batch", batch])
    cells = json.loads(out.read_text(encoding="utf-8"))["cells"]
    assert len(cells) == 2 + 4  # a batch of two, and two of one, at either trade-off
    images = cells["c3-fast 0.001 batch 2 3 kodim05 kodim20"]["values"]["images"]
    x = kodak.read(folder / "kodak", 5)
    assert images["5"]["bpp"] == pytest.approx(8 * images["5"]["bytes"] / (x.shape[2] * x.shape[3]), rel=1e-4)
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| `c3-fast` | 3 |")]
    assert len([row for row in rows if "| 2 | cpu |" in row]) and all("| 2 |" in row for row in rows)
    monkeypatch.setattr(kodak, "measure", None)
    kodak.main([*options, "--lmbdas", "4e-3", "--batch", "2"])  # nothing is measured again
