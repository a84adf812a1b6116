# SPDX-License-Identifier: Apache-2.0
"""The bar tells image, number, loss and steps; the trace has every step whose loss is known."""

from __future__ import annotations

import io
import json

from compressai_sga.progress import Progress


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
