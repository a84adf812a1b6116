# SPDX-License-Identifier: Apache-2.0
"""comparison/resources.py: the peak is that of the block alone, whatever the process held before."""

from __future__ import annotations

import sys
import time

import numpy as np
import pytest

from compressai_sga.comparison.resources import measured


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the kernel's peak is Linux's")
def test_memory_is_the_blocks_own():
    def work(mb: int) -> dict[str, float]:
        with measured() as used:
            np.ones(mb * 10**6, np.uint8).sum()
        return used

    assert 95 <= work(100)["peak_memory_mb"] < 140
    assert 28 <= work(30)["peak_memory_mb"] < 45  # and not the 100 of before


def test_cpu_seconds_do_not_count_waiting():
    with measured() as used:
        time.sleep(0.2)
    assert 0 <= used["cpu_sec"] < 0.1
    with measured() as used:
        end = time.process_time() + 0.1
        while time.process_time() < end:
            pass
    assert used["cpu_sec"] >= 0.1
