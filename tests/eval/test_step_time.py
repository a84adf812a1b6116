# SPDX-License-Identifier: Apache-2.0
"""experiments/refinement/step_time.py measures once and prints what its file says; committed results have
our loop ahead."""

from __future__ import annotations

import json
import statistics
from pathlib import Path

import pytest

from compressai_sga import zoo
from experiments.refinement import step_time

EVAL = Path(__file__).resolve().parents[2] / "eval"


def test_the_script_measures_once(tmp_path, monkeypatch, capsys):
    arguments = ["--size", "64", "--rounds", "2", "--out", str(tmp_path / "step-time.json")]
    monkeypatch.setattr(step_time, "STEPS", 1)
    step_time.main(arguments)
    printed = capsys.readouterr().out
    assert "| theirs, float32 | " in printed and "| 1.00 (1.00 to 1.00) |" in printed
    assert "quality 3, 64x64, 2 rounds; " in printed
    monkeypatch.setattr(step_time, "measure", pytest.fail)  # a second call must not measure
    step_time.main(arguments)
    assert capsys.readouterr().out == printed


def test_the_table_has_medians_and_ends():
    values = {"theirs, float32": {"ms": 100.4, "theirs / this": [1.0, 1.0, 1.0]}}
    values["ours"] = {"ms": 24.6, "theirs / this": [3.5, 4.0, 6.0]}
    of = {"model": "m", "quality": 1, "size": 8, "rounds": 3}
    on = {"cpu": "A CPU", "threads": "1", "torch": "2.9.0+cpu"}
    text = step_time.tables({"cell": {"of": of, "values": values}}, on)
    assert "| ours | 25 | 4.00 (3.50 to 6.00) |" in text
    assert text.endswith("m quality 1, 8x8, 3 rounds; A CPU, one thread, torch 2.9.0.")


def test_the_committed_result_is_of_the_shipped_weight_and_faster():
    cells = json.loads((EVAL / "results" / "step-time.json").read_text(encoding="utf-8"))["cells"]
    (record,) = (r for r in zoo.list_models() if (r.name, r.quality) == ("mbt2018-mean-small", 3))
    (cell,) = cells.values()
    assert cell["of"]["sha256"] == record.sha256
    ours = {name: v["theirs / this"] for name, v in cell["values"].items() if name.startswith("ours")}
    assert len(ours) == 2 and all(statistics.median(ratios) > 1.5 for ratios in ours.values())
