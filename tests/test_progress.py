# SPDX-License-Identifier: Apache-2.0
"""The bar tells image, number, loss and steps; the trace has every step whose loss is known. A meter
is a bar on a terminal and a line a minute elsewhere."""

from __future__ import annotations

import io
import json
import sys

import pytest

from compressai_sga import progress as module
from compressai_sga.progress import Meter, Progress


def test_bar_and_trace(capsys):
    trace = io.StringIO()
    progress = Progress("model", images=3, steps=4, trace=trace)
    progress.start("known.png")
    progress.known([(0, 2.5), (1, 2.25)])
    progress.start("new.png")
    for step in range(6):  # more calls than steps must not run over into the next image
        progress.step(step, 4, None if step == 1 else 1.0 + step)
    assert progress.losses == [(0, 1.0), (2, 3.0), (3, 4.0), (4, 5.0), (5, 6.0)]
    progress.done()
    progress.start("broken.png")
    progress.done()
    progress.close()
    out, err = capsys.readouterr()
    assert out == ""
    last = err.rsplit("\r", 1)[-1]
    assert "broken.png (3 of 3): 100%" in last and "12/12" in last and "loss=6.0000" in last
    assert "new.png (2 of 3):  33%" in err
    lines = [json.loads(line) for line in trace.getvalue().splitlines()]
    assert lines[0] == {"model": "model", "image": "known.png", "step": 0, "loss": 2.5}
    assert [line["step"] for line in lines] == [0, 1, 0, 2, 3, 4, 5]


def test_without_a_trace_no_losses_are_kept(capsys):
    progress = Progress("model", images=1, steps=0, trace=None)
    progress.start("a.png")
    progress.step(0, 0, 1.0)
    progress.done()
    progress.close()
    assert progress.losses == []
    assert "1/1" in capsys.readouterr().err


@pytest.fixture
def clock(monkeypatch):
    """The time that a meter sees, in seconds; set its only element."""
    now = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return now


def test_a_log_gets_a_line_a_minute(capsys, clock):
    with Meter("c3", 5) as meter:
        for step in range(1, 6):
            clock[0] += 25
            meter.at(step, f"loss {step}")
    assert capsys.readouterr().err.splitlines() == ["c3: step 3 of 5, loss 3"]
    with Meter("in.png", 8.0, unit=None) as meter:
        clock[0] += 61
        meter.at(2)
        clock[0] += 61
        meter.at(9)  # an estimate of the total may be too low
    assert capsys.readouterr().err.splitlines() == ["in.png: 25%", "in.png: 100%"]


def test_a_terminal_gets_a_bar_and_no_lines(capsys, clock, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with Meter("c3", 5, done=2) as meter:
        clock[0] += 100
        meter.at(4, "loss 4")
        meter.write("a line")
    shown = capsys.readouterr().err
    assert "4/5" in shown and "loss 4" in shown and "a line\n" in shown and "step 4 of 5" not in shown
    with Meter("c3", 5, show=False) as meter:
        meter.at(5)
    assert capsys.readouterr().err == ""
