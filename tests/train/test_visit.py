# SPDX-License-Identifier: Apache-2.0
"""Claims of visit.py: parts and shards keep to their sizes and lose nothing; a visit ends in time, and the
next one goes on (on a pretend GPU)."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from compressai.entropy_models import EntropyBottleneck
from PIL import Image
from safetensors.torch import load_file
from torchvision.transforms.functional import to_pil_image

from tests.pretend_cuda import REASON, PretendCuda
from tests.train.synthetic import synthetic_photo


def pixels(folder) -> dict[str, np.ndarray]:
    return {
        p.relative_to(folder).as_posix(): np.array(Image.open(p)) for p in folder.rglob("*") if p.is_file()
    }


def test_parts_hold_photographs_bit_for_bit(tmp_path, monkeypatch):
    import crops
    import visit

    data = tmp_path / "data" / "b"
    data.mkdir(parents=True)
    for seed in range(6):
        to_pil_image(synthetic_photo(96, seed)).save(data / f"{seed}.png")
    monkeypatch.setattr(crops, "held_out", lambda: frozenset({"b/4.png"}))
    wheel = tmp_path / "x.whl"
    wheel.write_bytes(b"x" * 1000)
    monkeypatch.setattr(visit, "PART_BYTES", 65_000)
    counts = visit.pack(tmp_path / "data", tmp_path / "parcel", 2, [wheel])
    parts = sorted((tmp_path / "parcel").iterdir())
    assert len(parts) == 2 and all(0 < part.stat().st_size <= 65_000 for part in parts)
    assert all(counts) and sum(counts) < 6
    assert sum(len(visit.smaller(p)) < p.stat().st_size for p in data.iterdir()) == 6
    assert visit.unpack(tmp_path / "parcel", tmp_path / "there", install=False) == sum(counts)
    here, there = pixels(tmp_path / "data"), pixels(tmp_path / "there")
    assert "b/4.png" in there  # held out, as its name says
    assert all(np.array_equal(here[name], found) for name, found in there.items())


def test_shards_belong_together(tmp_path, monkeypatch):
    import visit

    monkeypatch.setattr(visit, "SHARD_BYTES", 100)
    state = tmp_path / "state"
    for content in (b"a" * 300, bytes(range(250))):
        state.write_bytes(content)
        visit.shard(state, tmp_path / "out", "q3")
    shards = sorted((tmp_path / "out").iterdir())
    assert [len(path.read_bytes()) for path in shards] == [100, 100, 50]
    (joined,) = visit.join(tmp_path / "out", tmp_path / "states")
    assert joined.name == "q3.safetensors" and joined.read_bytes() == bytes(range(250))
    shards[1].write_bytes(b"b" * 100)
    with pytest.raises(ValueError, match="not those of one state"):
        visit.join(tmp_path / "out", tmp_path / "states")
    shards[1].unlink()
    with pytest.raises(ValueError, match=r"shards \[2\] of 3 of q3"):
        visit.join(tmp_path / "out", tmp_path / "states")


def test_jobs_have_names(tmp_path):
    import visit

    assert visit.parse_jobs(["a --arch x -N 8"]) == {"a": ["--arch", "x", "-N", "8"]}
    for wrong in (["--arch x"], ["a"], ["a/b --arch x"], ["a --arch x", "a --arch y"]):
        with pytest.raises(SystemExit) as stop:
            visit.main(["train", "--data", ".", "--out", str(tmp_path), *(f"--job={job}" for job in wrong)])
        assert stop.value.code == 2


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's signal of a parent's death")
def test_jobs_save_themselves_when_the_visit_breaks_off(tmp_path, monkeypatch):
    import visit

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(visit, "TRAIN", tmp_path / "train.py")
    visit.TRAIN.write_text(
        "import pathlib, time\n"
        "try:\n    pathlib.Path('started').touch(), time.sleep(60)\n"
        "except KeyboardInterrupt:\n    pathlib.Path('saved').touch()\n"
    )

    def wait_for(name: str) -> None:
        for _ in range(3000):
            if Path(name).exists():
                return
            time.sleep(0.02)
        pytest.fail(f"{name} did not come")

    process = multiprocessing.get_context("fork").Process(
        target=lambda: (visit.start_process([]), wait_for("started"), os._exit(1))
    )
    process.start()
    process.join()
    wait_for("saved")


class Forked:
    """`train.py` in a fork of this process, on the pretend device."""

    def __init__(self, arguments: list[str]):
        import train

        def run() -> None:
            torch.set_num_threads(1)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            with PretendCuda():
                train.main(arguments)

        self.process = multiprocessing.get_context("fork").Process(target=run)
        self.process.start()

    def poll(self) -> int | None:
        return self.process.exitcode

    def send_signal(self, number: int) -> None:
        os.kill(self.process.pid, number)

    def wait(self) -> int:
        self.process.join()
        return self.process.exitcode


@pytest.mark.skipif(bool(REASON), reason=REASON)
def test_a_visit_and_the_next(photos, tmp_path, monkeypatch):
    """Two qualities side by side; the first visit is too short, the second goes on to the end."""
    import held_out
    import train
    import visit

    monkeypatch.chdir(tmp_path)
    for module, name, value in (
        (train, "COARSE", {"size": 64, "count": 2}),
        (train, "FINE", {"size": 64, "count": 1}),
        (train, "SAVE_SECONDS", 0),
        (held_out, "CHECK_PX", 64),
        (held_out, "CHECK_CROPS", 1),
    ):
        monkeypatch.setattr(module, name, value)
    monkeypatch.setattr(EntropyBottleneck, "_update_quantiles", lambda *_, **__: None)
    monkeypatch.setattr(visit, "POLL_SECONDS", 0.2)
    options = ["--arch", "mbt2018-mean", "-N", "8", "-M", "12", "--init", "default", "--max-steps"]
    jobs = {f"q{q}": [*options, "1000", "--lmbda", str(0.01 * q)] for q in (1, 2)}
    checkpoints = [tmp_path / "runs" / name / "checkpoint.pt" for name in jobs]
    clock = SimpleNamespace(monotonic=lambda: 600.0 * all(p.exists() for p in checkpoints), sleep=time.sleep)
    monkeypatch.setattr(visit, "time", clock)
    where = {"data": photos, "out": tmp_path / "results", "start": Forked}
    assert visit.train(jobs, minutes=9, **where) == []
    first = [torch.load(path, weights_only=True)["step"] for path in checkpoints]
    monkeypatch.setattr(visit, "time", time)
    last = max(first) + 1
    jobs = {f"q{q}": [*options, str(last), "--lmbda", str(0.01 * q)] for q in (1, 2)}
    jobs["wrong"] = [*options, "2", "--lmbda", "-1"]
    assert visit.train(jobs, minutes=9, **where) == ["wrong"]
    assert "| q2 |" in (tmp_path / "results" / "table.md").read_text()
    states = visit.join(tmp_path / "results", tmp_path / "states")
    assert [path.stem for path in states] == ["q1", "q2"]
    for path in states:
        run = json.loads((tmp_path / "runs" / path.stem / "run.json").read_text())
        assert run["step"] == last and run["machine"] == "pretend"
        assert load_file(path)["g_a.0.weight"].dtype == torch.float16
