# SPDX-License-Identifier: Apache-2.0
"""comparison/resources.py: the peak is that of the block alone, whatever the process held before."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np
import pytest

EVAL = Path(__file__).resolve().parents[2] / "eval"


@pytest.fixture(autouse=True)
def scripts(monkeypatch):
    monkeypatch.syspath_prepend(str(EVAL))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the kernel's peak is Linux's")
def test_memory_is_the_blocks_own():
    from compressai_sga.comparison.resources import measured

    def work(mb: int) -> dict[str, float]:
        with measured() as used:
            np.ones(mb * 10**6, np.uint8).sum()
        return used

    assert 145 <= work(150)["peak_memory_mb"] < 200
    assert 38 <= work(40)["peak_memory_mb"] < 60  # and not the 150 of before


def test_cpu_seconds_do_not_count_waiting():
    from compressai_sga.comparison.resources import measured

    with measured() as used:
        time.sleep(0.2)
    assert 0 <= used["cpu_sec"] < 0.1
    with measured() as used:
        end = time.process_time() + 0.1
        while time.process_time() < end:
            pass
    assert used["cpu_sec"] >= 0.1
