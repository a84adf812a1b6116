# SPDX-License-Identifier: Apache-2.0
"""experiments/sga_plus/objective.py: our objective is the one that `refine` optimises, the authors' follows
their formulas, and tables follow from the cells."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from compressai.utils.eval_model.__main__ import read_image
from torchvision.utils import save_image

import compressai_sga
from compressai_sga import zoo
from compressai_sga.refine.latents import hard_rounding
from compressai_sga.refine.loop import build_adapter
from compressai_sga.refine.presets import PRESETS
from compressai_sga.schedules import Constant
from experiments.sga_plus import objective
from experiments.sga_plus.objective import OBJECTIVES, OURS, ROWS, SGA, SGA_PLUS

RESULTS = Path(__file__).resolve().parents[2] / "eval" / "results" / "sga-objective.json"


@pytest.fixture(scope="module")
def model():
    return zoo.load(zoo.DEFAULT_MODEL, 3)


@pytest.fixture
def crop(tmp_path):
    """A crop of 64 pixels: path and tensor."""
    path = tmp_path / "crop.png"
    x = read_image(zoo.sample_images()[0])[None, :, :64, :64]
    save_image(x, path)
    return str(path), x


def test_ours_is_what_refine_optimises(model, crop, monkeypatch):
    path, x = crop
    config = dataclasses.replace(PRESETS["ssl-paper"], steps=8, lr=Constant(5e-2))
    monkeypatch.setattr(objective, "load", lambda name, quality: model)
    found = objective.measure("", 3, config, OBJECTIVES[OURS], [path], 64)["images"]["crop"]
    result = compressai_sga.refine(model, x, config=config)
    assert found["loss_before"] == pytest.approx(result.before.loss.item(), rel=1e-6)
    assert found["loss_after"] == pytest.approx(result.after.loss.item(), rel=1e-3)
    assert found["loss_after"] < found["loss_before"]
    assert found["own"] == pytest.approx(found["loss_after"], rel=0.05)  # the ends of the strings
    theirs = objective.measure("", 3, config, OBJECTIVES[SGA_PLUS], [path], 64)["images"]["crop"]
    assert theirs["own"] != found["own"]


def test_each_part_is_that_of_its_formula(model, crop):
    """Integers or centres, and the bits of a Gaussian's interval under the scale that is named."""
    adapter = build_adapter(model, {})
    latents, _ = adapter.latents_of(crop[1])
    frozen = adapter.model
    medians = frozen.entropy_bottleneck._get_medians().reshape(1, -1, 1, 1)
    normal, conditional = torch.distributions.Normal(0.0, 1.0), frozen.gaussian_conditional
    for name in OBJECTIVES:
        chosen = OBJECTIVES[name]
        y_hat, bits = objective.code(frozen, latents, hard_rounding, chosen)
        z = latents["z"]
        z_hat = (z - medians).round() + medians if chosen.medians else z.round()
        scales, means = frozen.h_s(z_hat).chunk(2, 1)
        expected = (latents["y"] - means).round() + means if chosen.means else latents["y"].round()
        assert torch.equal(y_hat, expected)
        scales = scales.clamp_min(0.11)
        if chosen.table:
            scales = conditional.scale_table[torch.searchsorted(conditional.scale_table, scales)]
        distance = (y_hat - means).abs()
        p_y = normal.cdf((0.5 - distance) / scales) - normal.cdf((-0.5 - distance) / scales)
        _, p_z = frozen.entropy_bottleneck(z_hat, training=False)
        if not chosen.medians:  # the module itself rounds around the medians
            values = z_hat.transpose(0, 1).reshape(z.shape[1], 1, -1)
            p_z, _, _ = frozen.entropy_bottleneck._likelihood(values)
        total = -(p_y.clamp_min(1e-9).log2().sum() + p_z.clamp_min(1e-9).log2().sum())
        assert bits.item() == pytest.approx(total.item(), rel=1e-4), name
    x, x_hat = torch.zeros(1, 3, 8, 8), torch.full((1, 3, 8, 8), -0.1)
    for clamp, expected in ((True, 0.5), (False, 0.5 + 255**2 * 0.01)):
        chosen = dataclasses.replace(OBJECTIVES[OURS], clamp=clamp)
        value = objective.loss(x, x_hat, torch.tensor([32.0]), 1.0, chosen)
        assert value.item() == pytest.approx(expected, rel=1e-5)


def cell(row: tuple[int, str, str], before: float, after: list[float], own: float) -> dict:
    images = {
        f"i{k}": {"loss_before": before, "loss_after": loss, "own": own, "bpp_after": 1, "psnr_db_after": 30}
        for k, loss in enumerate(after)
    }
    of = {"model": "m", "row": list(row), "images": list(images), "crop": 64}
    return {"of": of, "values": {"images": images, "lmbda": 1, "cpu_seconds": 30}}


def test_tables_of_known_losses():
    cells = {
        "q3 ssl 500 ours": cell((3, "ssl", OURS), 2.0, [1.8, 1.8], 1.8),
        "q3 ssl 500 SGA+": cell((3, "ssl", SGA_PLUS), 2.0, [1.9, 2.1], 1.7),
    }
    lines = [line.split(" | ") for line in objective.tables(cells).splitlines()]
    assert lines[2][3:] == ["-10.00 ± 0.00 %", "", "+0.00 ± 0.00 %", "0 |"]
    assert lines[3][3:] == ["+0.00 ± 5.00 %", "+10.00 ± 5.00 %", "-15.00 ± 5.00 %", "1 |"]
    assert "+10.00 ± 5.00 % (SSL, quality 3)" in objective.headline(cells)
    assert objective.tables({}) == "nothing was measured yet"


def test_every_row_changes_something():
    assert all(name in OBJECTIVES for _, _, name in ROWS) and len(set(ROWS)) == len(ROWS)
    assert {name for _, _, name in ROWS} == set(OBJECTIVES)
    assert len(set(OBJECTIVES.values())) == len(OBJECTIVES)
    assert not dataclasses.asdict(OBJECTIVES[SGA]).keys() - {
        "medians",
        "means",
        "table",
        "clamp",
        "precision",
    }


def test_wrong_use_is_said(crop, tmp_path, capsys):
    for wrong, said in (
        (["--crop", "100"], "multiple of 64"),
        (["--images", str(tmp_path / "none")], "none"),
    ):
        with pytest.raises(SystemExit):
            objective.main(wrong)
        assert said in capsys.readouterr().err
    with pytest.raises(ValueError, match="no mean-scale hyperprior"):
        objective.measure(
            "bmshj2018-factorized-small", 3, PRESETS["ssl-paper"], OBJECTIVES[OURS], [crop[0]], 64
        )


@pytest.mark.skipif(not RESULTS.is_file(), reason="nothing was measured")
def test_results_are_of_the_shipped_weights_and_the_rows():
    weights = {r.quality: r.sha256 for r in zoo.list_models() if r.name == zoo.DEFAULT_MODEL}
    cells = json.loads(RESULTS.read_text(encoding="utf-8"))["cells"]
    assert {tuple(each["of"]["row"]) for each in cells.values()} <= set(ROWS)
    for each in cells.values():
        quality, method, name = each["of"]["row"]
        config = dataclasses.replace(PRESETS[objective.METHOD_PRESETS[method]], steps=objective.STEPS)
        assert each["of"]["sha256"] == weights[quality] and each["of"]["config"] == repr(config)
        assert each["of"]["objective"] == dataclasses.asdict(OBJECTIVES[name])
