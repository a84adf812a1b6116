# SPDX-License-Identifier: Apache-2.0
"""Claims of experiments/reverse_coding/measure.py (Theis & Yosri 2022 and others) on the committed results,
and a tiny run.

Comparisons with a known value use 4.5 standard errors (each 7e-6), Kolmogorov-Smirnov tests 1e-5.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from experiments.reverse_coding import measure, report
from tests.channels.reverse_coding_reference import REFERENCE

pytest.importorskip("matplotlib", reason='pip install ".[eval]"')
pytest.importorskip("scipy", reason='pip install ".[eval]"')

EVAL = Path(__file__).resolve().parents[2] / "eval"
RECORD = json.loads((EVAL / "results" / "samples.json").read_text())["cells"]
CELLS = {name: cell["of"] | cell["values"] for name, cell in RECORD.items()}
SHIFTED = {name: cell for name, cell in CELLS.items() if name.startswith("normal shifted")}
NORMAL = {name: cell for name, cell in CELLS.items() if name.startswith("normal")}
EXACT = {name: cell for name, cell in NORMAL.items() if name.endswith("exact")}
TARGETS = [cell for name, cell in CELLS.items() if name.startswith("dirichlet")]
BLOCKS = {name: cell for name, cell in CELLS.items() if name.startswith("blocks")}


@pytest.fixture
def script(monkeypatch, tmp_path):
    """Writes below tmp_path."""
    monkeypatch.setattr(measure, "EVAL", tmp_path)
    return measure


# --- One-dimensional Gaussians -----------------------------------------------------------------------


@pytest.mark.parametrize(("kl_bits", "method"), REFERENCE)
def test_numbers_of_an_independent_computation(kl_bits, method):
    """Within 2.5 % for the bits, 0.04 for the error of the mean."""
    number, zipf, bias = REFERENCE[kl_bits, method]
    cell = SHIFTED[f"normal shifted KL={kl_bits} {method}"]
    assert cell["log2_number_bits"]["mean"] == pytest.approx(number, rel=0.025)
    assert cell["zipf_bits"]["mean"] == pytest.approx(zipf, rel=0.025)
    assert cell["bias"]["mean"] == pytest.approx(bias, abs=0.04)


@pytest.mark.parametrize("name", NORMAL)
def test_code_lengths_respect_the_bounds(name):
    cell = NORMAL[name]
    kl = cell["kl_bits"]
    assert cell["bytes_bits"] < kl + math.log2(kl + 1) + 4
    if cell["method"] != "mrc":
        assert cell["log2_number_bits"]["mean"] < kl + math.log2(math.e) / math.e + 1
        assert cell["zipf_bits"]["mean"] < kl + math.log2(kl + 1) + 4


@pytest.mark.parametrize("kl_bits", [4, 8, 14])
@pytest.mark.parametrize("target", ["shifted", "narrow"])
def test_orc_is_below_pfr_is_below_mrc(kl_bits, target):
    cells = [NORMAL[f"normal {target} KL={kl_bits} {method}"] for method in ("orc", "pfr", "mrc")]
    numbers = [cell["log2_number_bits"]["mean"] for cell in cells]
    zipf = [cell["zipf_bits"]["mean"] for cell in cells]
    assert numbers[0] < numbers[1] < numbers[2]
    assert zipf[0] < zipf[1] < zipf[2]


def test_numbers_of_mrc_are_uniform():
    """E log2 of a uniform number from 1 to N is log2(N!) / N."""
    for name, cell in NORMAL.items():
        if cell["method"] == "mrc":
            count, measured = cell["candidates"], cell["log2_number_bits"]
            expected = math.lgamma(count + 1) / math.log(2) / count
            assert abs(measured["mean"] - expected) < 4.5 * measured["error"], name


def test_truncation_shrinks_the_shift_and_the_spread():
    """N(m, 1) has an unbounded density ratio: every truncated method falls short of the mean."""
    for name, cell in SHIFTED.items():
        assert cell["bias"]["mean"] + 4.5 * cell["bias"]["error"] < 0, name
        assert cell["std"]["mean"] < 0.9, name
        assert cell["law_p"] < 1e-9 and not cell["exact"], name
    for kl_bits in (4, 8, 14):
        mrc, orc = (SHIFTED[f"normal shifted KL={kl_bits} {m}"]["bias"] for m in ("mrc", "orc"))
        assert abs(mrc["mean"] - orc["mean"]) < 4.5 * math.hypot(mrc["error"], orc["error"])  # one law


def test_exact_pfr_is_exact():
    assert len(EXACT) == 3
    for name, cell in EXACT.items():
        assert cell["exact"] and cell["law_p"] > 1e-5, name
        assert abs(cell["bias"]["mean"]) < 4.5 * cell["bias"]["error"], name
        std, true = cell["std"], RECORD[name]["of"]["std"]
        assert abs(std["mean"] - true) < 4.5 * std["error"], name


# --- Dirichlet targets ---------------------------------------------------------------------------------


def mean_of(method: str, count: int, what: int) -> float:
    return float(np.mean([target[method][str(count)][what] for target in TARGETS]))


def test_ten_targets_and_eleven_counts():
    assert len(TARGETS) == 10
    assert {target["draws"] for target in TARGETS} == {50_000}
    assert list(TARGETS[0]["orc"]) == [str(2**e) for e in range(11)]


def test_total_variation_falls_with_the_candidates():
    for method in ("mrc", "pfr", "orc", "rejection", "greedy"):
        distances = [mean_of(method, 2**e, 0) for e in range(11)]
        assert distances == sorted(distances, reverse=True)
        assert distances[0] > 0.9


def test_orc_has_mrc_s_law_at_a_lower_rate_than_pfr_s():
    for count in [2**e for e in range(1, 11)]:
        assert mean_of("orc", count, 0) == pytest.approx(mean_of("mrc", count, 0), rel=0.05)
        assert mean_of("orc", count, 1) < mean_of("pfr", count, 1) < mean_of("mrc", count, 1)
    assert mean_of("mrc", 1024, 1) == pytest.approx(10, abs=0.03)


def test_rejection_needs_more():
    """At 1024 candidates both kinds of rejection sampling are further from the target."""
    for method in ("rejection", "greedy"):
        assert mean_of(method, 1024, 0) > mean_of("mrc", 1024, 0)


# --- The hybrid ----------------------------------------------------------------------------------------


def test_hybrid_example():
    """Published setting: M = (12, 6); about 100 candidates where plain PFR needs thousands."""
    ours, plain = CELLS["hybrid hybrid"], CELLS["hybrid pfr"]
    assert ours["cells"] == [12, 6]
    assert ours["half_width"] == pytest.approx(4.056, abs=1e-3)
    assert ours["cell_bits"] == pytest.approx(6.170, abs=1e-3)
    assert ours["information_bits"] == pytest.approx(9.646, abs=1e-3)
    assert 60 < ours["examined"]["mean"] < 180
    assert plain["examined"]["mean"] > 3000 and plain["examined"]["median"] > 1000
    assert ours["log2_number_bits"]["mean"] == pytest.approx(3.16, abs=0.25)  # that of 400 draws


def test_hybrid_costs_no_more_bits_and_is_exact():
    ours, plain = CELLS["hybrid hybrid"], CELLS["hybrid pfr"]
    assert ours["bytes_bits"] < plain["bytes_bits"]
    for cell in (ours, plain):
        information = cell["information_bits"]
        assert information < cell["bytes_bits"] < information + math.log2(information + 1) + 4
        assert cell["exact"] and cell["law_p"] > 1e-5


# --- Blocks and speed ------------------------------------------------------------------------------------


def test_overhead_falls_with_the_size_of_the_blocks():
    orc = sorted((c for c in BLOCKS.values() if c["method"] == "orc" and c["padding_bits"] == 4), key=size)
    overheads = [cell["bytes_bits"] / cell["kl_bits"] - 1 for cell in orc]
    assert [cell["block_bits"] for cell in orc] == [2, 4, 6, 8, 10]
    assert overheads == sorted(overheads, reverse=True)
    for cell in BLOCKS.values():
        kl = cell["kl_bits"] / cell["blocks"]
        assert cell["block_kl_bits"]["max"] <= cell["block_bits"] + cell["spread_bits"]
        assert cell["decodes"]
        if cell["method"] != "mrc":
            assert (cell["bytes_bits"] - cell["kl_bits"]) / cell["blocks"] < math.log2(kl + 1) + 4


def size(cell: dict) -> int:
    return cell["block_bits"]


def test_padding_reduces_the_bias():
    shrinkage = [BLOCKS[f"blocks orc 8+{padding}"]["shrinkage"]["mean"] for padding in (0, 2, 4, 6)]
    assert shrinkage == sorted(shrinkage, reverse=True)


def test_half_a_million_candidates_a_second_on_one_core():
    cells = [cell for name, cell in CELLS.items() if name.startswith("speed cpu")]
    assert len(cells) == 2
    for cell in cells:
        assert cell["candidates_a_sec_cpu"] > 5e5


def test_the_short_table_is_of_the_cells():
    text = report.short_tables(RECORD)
    for kl_bits in (4, 8, 14):
        mrc, pfr, orc = (SHIFTED[f"normal shifted KL={kl_bits} {m}"] for m in ("mrc", "pfr", "orc"))
        each = (f"{c['bytes_bits']:.2f}, {c['bias']['mean']:+.2f}" for c in (mrc, pfr, orc))
        assert f"| {kl_bits} | {mrc['candidates']:,} | {' | '.join(each)} |" in text
    assert f"hybrid {CELLS['hybrid hybrid']['examined']['mean']:.0f} ±" in text
    only = {name: cell for name, cell in RECORD.items() if name.startswith("speed")}
    assert report.short_tables(only).startswith("Candidates of an 8-dimensional block: ")


# --- The script itself -----------------------------------------------------------------------------------


def test_greedy_rejection_reaches_its_target(script):
    """Accepted mass converges to the target, never above it; plain rejection too, with its own speed."""
    probs = torch.tensor([0.6, 0.25, 0.1, 0.05], dtype=torch.float64)
    for greedy in (False, True):
        accept = script.rejection_probabilities(torch.log(4 * probs), 400, greedy)
        reached, missing = torch.zeros(4, dtype=torch.float64), 1.0
        for row in accept:
            reached, missing = reached + missing * row / 4, missing * float(1 - row.mean())
        assert torch.allclose(reached, probs, atol=1e-6)
        assert bool((reached <= probs + 1e-12).all())


def test_shift_has_the_divergence_asked_for(script):
    for kl_bits, std in ((4, 1.0), (8, 0.25)):
        m = script.shift_of(kl_bits, std)
        nats = (std**2 + m**2 - 1) / 2 - math.log(std)
        assert nats / math.log(2) == pytest.approx(kl_bits)


def test_tiny_run_and_resume(script, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(script, "NORMAL", {4: (64, 10_000)})
    monkeypatch.setattr(script, "SYMBOLS", 64)
    monkeypatch.setattr(script, "DIRICHLET_DRAWS", 5000)
    monkeypatch.setattr(script, "TARGETS", 1)
    monkeypatch.setattr(script, "HYBRID_DRAWS", 1000)
    monkeypatch.setattr(script, "BLOCKS_DIMS", 256)
    monkeypatch.setattr(script, "BLOCKS_TOTAL_BITS", 40.0)
    monkeypatch.setattr(script, "BLOCK_BITS", (2, 4))
    argv = ["--quick", "--parts", "normal", "dirichlet", "hybrid", "blocks"]
    script.main(argv)
    printed = capsys.readouterr().out
    assert "| N(m, 1) | 4 | ORC | 64 |" in printed and "greedy rejection" in printed and "12 × 6" in printed
    assert printed.startswith("| KL, bits | N | MRC: bits, error of the mean | PFR | ORC | bound |")
    path = tmp_path / "results" / "samples-quick.json"
    results = path.read_text()
    values = {name: cell["values"] for name, cell in json.loads(results)["cells"].items()}
    numbers = [values[f"normal shifted KL=4 {m}"]["log2_number_bits"]["mean"] for m in ("orc", "pfr", "mrc")]
    assert numbers[0] < numbers[1] < numbers[2] - 1
    assert values["normal narrow KL=4 pfr exact"]["law_p"] > 1e-5
    assert (tmp_path / "figures" / "samples-quick.png").stat().st_size > 1000
    for name in ("normal", "dirichlet", "hybrid_example", "blocks_of"):  # a second call must not measure
        monkeypatch.setattr(script, name, lambda *_: pytest.fail("measured again"))
    script.main(argv)
    assert path.read_text() == results
