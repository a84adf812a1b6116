# SPDX-License-Identifier: Apache-2.0
"""experiments/c3/step_time.py times every backend and prints ratios of neighbours."""

from __future__ import annotations

from compressai_sga.models.c3 import native
from experiments.c3 import step_time


def test_every_backend_has_a_row(monkeypatch, capsys):
    monkeypatch.setattr(step_time, "STEPS", 1)
    step_time.main(["--size", "24", "32", "--rounds", "2"])
    printed = capsys.readouterr().out
    for name in ("torch", *native.KERNELS):
        assert f"\n| {name} | " in printed
    assert "| 1.00 (1.00 to 1.00) |" in printed and "c3-fast, 24x32, 2 rounds; " in printed


def test_ratios_are_of_neighbours():
    text = step_time.table({"torch": [0.3, 0.6, 0.9], "portable": [0.1, 0.1, 0.1]})
    assert "| portable | 100.0 | 6.00 (3.00 to 9.00) |" in text
