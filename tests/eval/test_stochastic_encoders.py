# SPDX-License-Identifier: Apache-2.0
"""Claims of experiments/realism/stochastic_encoders.py (Theis & Agustsson 2021) on the committed results,
and a tiny run.

Every simulated distortion is within 4.5 standard errors of its formula (45 two-sided comparisons: false
alarm 3e-4), and every realistic scheme passes its Kolmogorov-Smirnov test at 1e-5 (30: 3e-4).
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from experiments.realism import stochastic_encoders

pytest.importorskip("matplotlib", reason='pip install ".[eval]"')
pytest.importorskip("scipy", reason='pip install ".[eval]"')

EVAL = Path(__file__).resolve().parents[2] / "eval"
CODES = range(2, 17)
SCHEMES = ("deterministic", "stochastic", "no-realism")


@pytest.fixture
def script(monkeypatch, tmp_path):
    """Writes below tmp_path."""
    monkeypatch.setattr(stochastic_encoders, "EVAL", tmp_path)
    return stochastic_encoders


@pytest.fixture(scope="module")
def cells():
    committed = json.loads((EVAL / "results" / "stochastic_encoders.json").read_text())["cells"]
    return {name: cell["values"] for name, cell in committed.items()}


def s(codes: int) -> float:
    return math.sin(math.pi / codes) / (math.pi / codes)


@pytest.mark.parametrize("codes", CODES)
def test_simulated_distortions_are_those_of_the_paper(cells, codes):
    expected = {
        "deterministic": 2 - 2 * s(codes) ** 2,
        "stochastic": 2 - 2 * s(codes),
        "no-realism": 1 - s(codes) ** 2,
    }
    for scheme, formula in expected.items():
        measured = cells[f"{scheme} M={codes}"]["distortion"]
        assert abs(measured["mean"] - formula) < 4.5 * measured["error"]
        assert measured["error"] < 0.0025 * formula


def test_two_codes(cells):
    """M = 2: 1.1894, 0.7268 and 0.5947; the stochastic encoder's distortion is 39 % lower."""
    deterministic, stochastic, least = (cells[f"{scheme} M=2"]["distortion"]["mean"] for scheme in SCHEMES)
    assert (deterministic, stochastic, least) == pytest.approx((1.1894, 0.7268, 0.5947), rel=5e-3)
    assert deterministic / stochastic == pytest.approx(1.637, rel=5e-3)


def test_stochastic_lies_between_and_the_advantage_tends_to_three_decibels(cells):
    ratios = []
    for codes in CODES:
        means = [cells[f"{scheme} M={codes}"]["distortion"]["mean"] for scheme in SCHEMES]
        assert means[0] > means[1] > means[2]
        ratios.append(means[0] / means[1])
    assert ratios[0] < 1.7 < 1.97 < min(ratios[-8:]) and max(ratios) < 2.02


def test_realism_and_number_of_codes(cells):
    """Both realistic schemes put x_hat uniformly on the circle, and no scheme uses an M+1st code."""
    for codes in CODES:
        for scheme in SCHEMES:
            values = cells[f"{scheme} M={codes}"]
            assert values["codes_used"] == codes
            assert values["entropy_bits"] == pytest.approx(math.log2(codes), abs=1e-3)
            if scheme != "no-realism":
                assert values["realism_p"] > 1e-5
        assert cells[f"no-realism M={codes}"]["realism_p"] == 0


def test_the_realism_test_can_fail(script, monkeypatch):
    """Deterministic decoding to the arc's middle is far from uniform."""
    send = script.send

    def middle(scheme, codes, angle, seed):
        code, _, radius = send("no-realism", codes, angle, seed)
        return code, (code + 0.5) * 2 * math.pi / codes, radius / radius

    monkeypatch.setattr(script, "send", middle)
    assert script.measure("deterministic", 4, 1000)["realism_p"] < 1e-9


def test_tiny_run_and_resume(script, tmp_path, capsys, monkeypatch):
    argv = ["--draws", "500", "--codes", "2", "5"]
    script.main(argv)
    printed = capsys.readouterr().out
    assert "| 5 |" in printed and "500 draws each, within " in printed
    path = tmp_path / "results" / "stochastic_encoders.json"
    results = path.read_text()
    assert len(json.loads(results)["cells"]) == 6
    assert (tmp_path / "figures" / "stochastic_encoders.png").stat().st_size > 1000
    monkeypatch.setattr(script, "measure", lambda *_: pytest.fail("measured again"))
    script.main(argv)
    assert path.read_text() == results


def test_unknown_scheme_is_refused(script):
    with pytest.raises(ValueError, match="stochastic"):
        script.distortion("other", np.array([2.0]))
