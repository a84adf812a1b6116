# SPDX-License-Identifier: Apache-2.0
"""Claims of experiments/realism/rdp_gaussian.py (Theis & Wagner 2021) on the committed results, and a tiny
run.

Two-sided comparisons at 4.5 standard errors (34: false alarm 2e-4), Kolmogorov-Smirnov tests at 1e-5
(34: 3e-4).
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from experiments.realism import rdp_gaussian

pytest.importorskip("matplotlib", reason='pip install ".[eval]"')
pytest.importorskip("scipy", reason='pip install ".[eval]"')

EVAL = Path(__file__).resolve().parents[2] / "eval"


@pytest.fixture
def script(monkeypatch, tmp_path):
    """Writes below tmp_path."""
    monkeypatch.setattr(rdp_gaussian, "EVAL", tmp_path)
    return rdp_gaussian


def measured() -> list[dict]:
    cells = json.loads((EVAL / "results" / "rdp_gaussian.json").read_text())["cells"].values()
    return [cell["of"] | cell["values"] for cell in cells]


CELLS = pytest.mark.parametrize("cell", measured(), ids=lambda cell: f"d{cell['dims']}-R{cell['rate_bits']}")


def test_every_point_is_there(script):
    points = {(cell["dims"], cell["rate_bits"], cell["blocks"]) for cell in measured()}
    assert points == set(script.POINTS)


@CELLS
def test_code_length_lies_in_the_theorem_s_interval(cell):
    """d R <= bits <= d R + log2(d R + 1) + 5, for real bytes too; in fact the constant 4 suffices."""
    information = cell["dims"] * cell["rate_bits"]
    upper = information + math.log2(information + 1) + 5
    assert information <= cell["code_bits"]["mean"] <= upper - 1
    assert information <= cell["bytes_bits"] <= upper - 1
    assert cell["exact"]


@CELLS
def test_realism_is_perfect(cell):
    assert cell["realism_p"] > 1e-5
    assert cell["channel_p"] > 1e-5


@CELLS
def test_distortions_are_those_of_the_theory(cell):
    """x_hat reaches 2 - 2 rho, and rho x_hat, from the same bits, the distortion-rate function."""
    rho = math.sqrt(1 - 2 ** (-2 * cell["rate_bits"]))
    for key, formula in (("distortion", 2 - 2 * rho), ("distortion_unrealistic", 1 - rho**2)):
        assert abs(cell[key]["mean"] - formula) < 4.5 * cell[key]["error"]
        assert cell[key]["error"] < 0.04 * formula


def test_realism_costs_at_most_twice_the_distortion():
    """D(P = 0) <= 2 D(P = inf) at equal rate; near 2 at low and near 1 at high rates."""
    scalar = sorted((cell for cell in measured() if cell["dims"] == 1), key=lambda cell: cell["rate_bits"])
    ratios = [cell["distortion"]["mean"] / cell["distortion_unrealistic"]["mean"] for cell in scalar]
    assert max(ratios) < 2 and ratios[0] > 1.4
    assert ratios[-1] == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("rate_bits", [0.5, 1])
def test_overhead_of_a_dimension_falls_with_the_size_of_the_block(rate_bits):
    same = sorted((c for c in measured() if c["rate_bits"] == rate_bits), key=lambda cell: cell["dims"])
    overheads = [(cell["code_bits"]["mean"] / cell["dims"]) - rate_bits for cell in same]
    assert [cell["dims"] for cell in same][0] == 1 and same[-1]["dims"] == 8
    assert overheads == sorted(overheads, reverse=True)
    assert overheads[-1] < 0.3 * overheads[0]


def test_tiny_run_and_resume(script, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(script, "POINTS", ((1, 1, 2000), (2, 0.5, 1000)))
    script.main(["--quick"])
    printed = capsys.readouterr().out
    assert "| 2 | 0.5 |" in printed and "least p of 2: " in printed
    path = tmp_path / "results" / "rdp_gaussian-quick.json"
    results = path.read_text()
    for cell in json.loads(results)["cells"].values():
        assert cell["values"]["realism_p"] > 1e-5 and cell["values"]["exact"]
    assert (tmp_path / "figures" / "rdp_gaussian-quick.png").stat().st_size > 1000
    monkeypatch.setattr(script, "measure", lambda *_: pytest.fail("measured again"))
    script.main(["--quick"])
    assert path.read_text() == results


def test_formulas(script):
    """Perfect realism inverts R(D) = -1/2 log2(1 - (1 - D/2)^2)."""
    rates = np.array([0.1, 1, 3])
    distortions = script.realistic_distortion(rates)
    assert -0.5 * np.log2(1 - (1 - distortions / 2) ** 2) == pytest.approx(rates)
    assert script.bound_bits(1.0) == 7
