# SPDX-License-Identifier: Apache-2.0
"""tasks/tasks.py: each task once, whatever is killed or fails; processes as the serial run."""

from __future__ import annotations

import argparse
import gc
import json
import math
import os
import pickle
import re
import signal
import sys
import time
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from compressai_sga.errors import SgaError
from compressai_sga.tasks import pool
from compressai_sga.tasks.process import attempt, pack, perform
from compressai_sga.tasks.records import Record
from compressai_sga.tasks.tasks import Task, add_options, finish, run
from tests.tasks.tasks_runs import (
    POSIX,
    SCRIPT,
    calls,
    ended,
    expected,
    is_alive,
    journal,
    read,
    squares,
    until,
)

# --- Serial -------------------------------------------------------------------------------------------


def test_each_task_is_done_once(parts, tmp_path, capsys):
    path = tmp_path / "results.json"
    record = Record(path)
    assert run(record, squares(parts, tmp_path, 2), title="t") == {}
    record.cell("other", {}, lambda: {})
    for _ in range(2):
        record = Record(path)
        assert run(record, squares(parts, tmp_path, 4)[::-1], title="t") == {}
    assert len(calls(tmp_path)) == 4
    del (found := read(tmp_path))["other"]
    assert found == expected(4)
    assert list(record.cells) == ["square 3", "square 2", "other", "square 1", "square 0"]
    assert "| 2/4 [00:00<?" in capsys.readouterr().err  # what was known is where the second bar began
    changed = [Task("square 1", {"x": 1, "new": True}, parts.square, (str(tmp_path), 1))]
    run(record, changed, title="t")
    assert len(calls(tmp_path)) == 5
    assert sorted(path.name for path in tmp_path.iterdir()) == ["calls", "results.json"]


def wrong(parts: ModuleType) -> dict[str, tuple[Any, str]]:
    """Tasks that fail, and what is said about them."""
    kinds = {
        "raises": (math.sqrt, (-1,), "ValueError: math domain error"),
        "awkward": (parts.awkward, (), "Awkward: 1 and 2 (tasks_parts.py:"),
        "leaves": (parts.leave, (), "SystemExit: 3 (tasks_parts.py:"),
        "number": (parts.give, (1,), "TypeError: it returned int; a task must return a dictionary"),
        "lock": (parts.give_a_lock, (), "TypeError: Object of type lock is not JSON serializable"),
    }
    return {name: (Task(name, {}, call, given), text) for name, (call, given, text) in kinds.items()}


def test_failures_are_named_and_the_others_go_on(parts, tmp_path, capsys):
    record = Record(tmp_path / "results.json")
    bad = wrong(parts)
    first, last = squares(parts, tmp_path, 2)
    failures = run(record, [first, *(task for task, _ in bad.values()), last], title="t")
    assert set(failures) == set(bad) and set(record.cells) == {"square 0", "square 1"}
    printed = capsys.readouterr().err
    for name, (_, text) in bad.items():
        assert failures[name].startswith(text)
        assert printed.count(f"{name}: {text}") == 2  # as it failed, and in the summary
    assert "t: 5 of 7 failed" in printed
    with pytest.raises(SystemExit, match="failed: raises, awkward, leaves, number, lock; ") as end:
        finish(failures)
    assert isinstance(end.value.code, str)  # which Python prints, and exits with 1
    finish({})


def test_nan_and_infinity_stay(parts, tmp_path):
    values = {"a": math.inf, "b": math.nan}
    task = Task("x", {"limit": math.inf, "none": math.nan}, parts.give, (values,))
    for _ in range(2):
        record = Record(tmp_path / "results.json")
        assert run(record, [task], title="t") == {}
        found = record.known("x", task.of)
        assert found["a"] == math.inf and math.isnan(found["b"])


def test_ctrl_c_in_a_serial_run(parts, tmp_path, capsys):
    """What was done before is kept, what failed is named, and the rest is left for the next run."""
    tasks = [wrong(parts)["raises"][0], *squares(parts, tmp_path, 2)]
    record = Record(tmp_path / "results.json")
    with pytest.raises(SystemExit) as end:
        run(record, [*tasks[:2], Task("interrupts", {}, parts.interrupt), tasks[2]], title="t")
    assert end.value.code == 130
    printed = capsys.readouterr().err
    assert printed.splitlines()[-1] == (
        f"t: stopped with 1 of 4 done, kept in {record.path}; the same command goes on from there"
    )
    assert "failed: raises: ValueError" in printed
    assert read(tmp_path) == expected(1) and [name for name, _ in calls(tmp_path)] == ["0"]
    assert list(run(record, tasks, title="t")) == ["raises"] and read(tmp_path) == expected(2)


def test_the_line_that_failed_is_not_the_machinery(tmp_path):
    """It is one of this package or of the user's; libraries and the tasks' own files are passed over."""
    from compressai_sga.comparison import entries

    assert re.search(r"there are .* \(entries\.py:\d+\)$", attempt(entries.parse, ("jpg",)).error)
    for outcome in (attempt(json.loads, ("x",)), perform(b"junk")):
        assert outcome.error and ".py:" not in outcome.error
    for place, is_named in (("lib/site-packages/theirs.py", False), ("mine/tasks.py", True)):
        found: dict[str, Any] = {}
        exec(compile("def call(): raise ValueError('no')", str(tmp_path / place), "exec"), found)
        assert attempt(found["call"], ()).error == "ValueError: no" + is_named * " (tasks.py:1)"


def test_a_long_task_leaves_no_garbage(parts):
    """A cycle, as arrays are in that closures and models refer to, is gone when the outcome is there."""
    gc.disable()
    try:
        outcome = attempt(parts.cycle, (0.25,))
    finally:
        gc.enable()
    assert outcome.values == {"left": 1} and not parts.LEFT


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"workers": 0}, "workers is 0; it must be at least 1"),
        ({"threads": 0}, "threads is 0; it must be at least 1"),
        ({"retries": -1}, "retries is -1; it must be at least 0"),
        ({"workers": 2, "ray": "auto"}, "exclude each other"),
    ],
)
def test_options_of_run(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        run(Record(tmp_path / "r.json"), [], title="t", **options)


@pytest.mark.parametrize("spec", [None, SimpleNamespace(name="tasks_parts")], ids=["file", "-m"])
def test_what_belongs_to_a_script_goes_by_its_file(parts, monkeypatch, spec):
    """In other processes the script is no `__main__`."""
    main = SimpleNamespace(__file__=str(SCRIPT), __spec__=spec, square=parts.square)
    for part in (parts.square, parts.Awkward):
        monkeypatch.setattr(part, "__module__", "__main__")
    task = Task("t", {}, parts.square, (parts.Awkward, 1))
    with monkeypatch.context() as patched:
        patched.setitem(sys.modules, "__main__", main)
        packed = pack(task)
    assert pickle.loads(packed) == (parts.square, (parts.Awkward, 1))
    monkeypatch.setitem(sys.modules, "__main__", SimpleNamespace())
    with pytest.raises(pickle.PicklingError, match="square is in no file .*; write it into one"):
        pack(task)


def test_names_must_differ(parts, tmp_path):
    tasks = squares(parts, tmp_path, 2) * 2
    with pytest.raises(ValueError, match="several tasks are called 'square 0'"):
        run(Record(tmp_path / "r.json"), tasks, title="t")


def test_options_of_scripts(capsys):
    parser = argparse.ArgumentParser()
    add_options(parser)
    assert vars(parser.parse_args([])) == {"workers": 1, "threads": 1, "ray": None}
    for words in ("--workers 0", "--threads -1", "--threads x", "--workers 2 --ray auto"):
        with pytest.raises(SystemExit) as end:
            parser.parse_args(words.split())
        assert end.value.code == 2
    printed = capsys.readouterr().err
    assert "'x' is no number of at least 1" in printed and "not allowed with argument --workers" in printed


# --- Processes ----------------------------------------------------------------------------------------


@POSIX
def test_workers(parts, tmp_path, monkeypatch, capsys):
    """Whatever tasks do to their processes, each is done or named; at most one waits for each worker."""
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    waiting, wait = [], pool.wait
    monkeypatch.setattr(
        pool, "wait", lambda running, **how: waiting.append(len(running)) or wait(running, **how)
    )
    folder = str(tmp_path)
    bad = wrong(parts) | {
        "interrupts": (Task("interrupts", {}, parts.interrupt), "KeyboardInterrupt"),
        "nameless": (
            Task("nameless", {}, lambda: {}),
            "PicklingError: it cannot be sent to ",
        ),
        "deadly": (
            Task("deadly", {}, parts.kill, (folder, "deadly", 9)),
            "the process died 2 times, perhaps out of memory",
        ),
    }
    tasks = [
        *(Task(f"where {x}", {}, parts.where, (folder, x)) for x in range(4)),
        Task("fatal once", {}, parts.kill, (folder, "once", 1)),
        *(task for task, _ in bad.values()),
        *squares(parts, tmp_path, 40),
    ]
    record = Record(tmp_path / "results.json")
    failures = run(record, tasks, title="t", workers=2, threads=3, retries=1)
    assert list(failures) == list(bad)
    for name in bad:
        assert failures[name].startswith(bad[name][1])
    assert list(record.cells) == [task.name for task in tasks if task.name not in bad]
    assert record.cells["fatal once"]["values"] == {"calls": 2}
    assert [name for name, _ in calls(tmp_path)].count("deadly") == 2
    assert sorted(name for name, _ in calls(tmp_path) if name.isdigit()) == sorted(map(str, range(40)))
    found = read(tmp_path)
    assert {name: value for name, value in found.items() if name.startswith("square")} == expected(40)
    seen = [found[f"where {x}"][1] for x in range(4)]
    assert {s["pid"] for s in seen}.isdisjoint({os.getpid()}) and len({s["pid"] for s in seen}) == 2
    assert {(s["threads"], s["omp"], s["module"]) for s in seen} == {(3, "3", "tasks_parts")}
    assert len({(s["pid"], s["gpu"]) for s in seen}) == 2 and {s["gpu"] for s in seen} == {"5", "7"}
    assert max(waiting) == 2
    assert "OMP_NUM_THREADS" not in os.environ and os.environ["CUDA_VISIBLE_DEVICES"] == "5,7"
    assert "it will be tried again: fatal once" in capsys.readouterr().err


@POSIX
def test_a_run_that_is_stopped_killed_and_goes_on(start, tmp_path):
    """Ctrl-C, then SIGKILL, both amid a minute's task of one of two workers; then the rest, in one process.

    What was on disk is neither lost nor done again, and no worker stays. Its failure is named each time, and
    ends the last run with code 1.
    """
    options = ("--count", "8", "--fail", "1")
    path = tmp_path / "results.json"

    def failed() -> bool:
        return "failed: square 1" in (tmp_path / "stderr").read_text(encoding="utf-8")

    def in_two_processes(long: int, seconds: float) -> Any:
        run = start(tmp_path, *options, "--workers", "2", "--long", str(long), "--seconds", str(seconds))
        until(lambda: str(long) in dict(calls(tmp_path)) and journal(tmp_path) and failed())
        return run

    stopped = in_two_processes(2, 0.5)
    begin = time.monotonic()
    os.killpg(stopped.pid, signal.SIGINT)
    printed = ended(stopped, tmp_path, 130)
    assert time.monotonic() - begin < 10
    kept = [of["x"] for of, _ in read(tmp_path).values()]
    assert printed.splitlines()[-1] == (
        f"squares: stopped with {len(kept)} of 8 done, kept in {path}; the same command goes on from there"
    )
    assert "Traceback" not in printed and "failed: square 1: TypeError" in printed
    assert kept and kept == sorted(kept) and not {1, 2}.intersection(kept)
    assert not any(is_alive(pid) for _, pid in calls(tmp_path))

    written = path.read_bytes()
    killed = in_two_processes(7, 0.2)
    os.kill(killed.pid, signal.SIGKILL)
    printed = ended(killed, tmp_path, -signal.SIGKILL)
    assert f"| {len(kept)}/8 [00:00<?" in printed  # the bar begins there
    until(lambda: not any(is_alive(pid) for _, pid in calls(tmp_path)), seconds=5)
    assert path.read_bytes() == written
    done = kept + [json.loads(line)["cell"]["of"]["x"] for line in journal(tmp_path) if line.endswith("}")]
    assert len(kept) < len(done) < 7
    before = [name for name, _ in calls(tmp_path)]
    with path.with_suffix(".jsonl").open("a") as file:
        file.write('{"name": "square 7", "cell"')  # a kill may cut a line off

    printed = ended(start(tmp_path, *options), tmp_path, 1)
    assert f"| {len(done)}/8 [00:00<?" in printed
    assert printed.splitlines()[-1] == "failed: square 1; the same command tries again what failed"
    assert list(read(tmp_path).items()) == list(expected(8, without=(1,)).items()) and not journal(tmp_path)
    names = [name for name, _ in calls(tmp_path)]
    assert set(names) == {*map(str, range(8)), "None"} - {"1"}
    assert all(names.count(str(x)) == 1 for x in kept)
    assert all(names.count(str(x)) == before.count(str(x)) for x in done)


@POSIX
@pytest.mark.slow
def test_a_killed_serial_run_goes_on(start, tmp_path):
    """As above; by default the parts of this run alone: a cut-off journal, a serial run, a killed one."""
    options = ("--count", "6", "--seconds", "0.3")
    killed = start(tmp_path, *options)
    until(lambda: len(journal(tmp_path)) >= 3)
    os.kill(killed.pid, signal.SIGKILL)
    ended(killed, tmp_path, -signal.SIGKILL)
    done = [json.loads(line)["cell"]["of"]["x"] for line in journal(tmp_path) if line.endswith("}")]
    assert 3 <= len(done) < 6 and not (tmp_path / "results.json").exists()
    ended(start(tmp_path, *options), tmp_path, 0)
    assert list(read(tmp_path).items()) == list(expected(6).items())
    names = [name for name, _ in calls(tmp_path)]
    assert len(names) <= 7 and all(names.count(str(x)) == 1 for x in done)


def test_workers_that_do_not_start(parts, tmp_path, monkeypatch):
    monkeypatch.setattr(pool, "begin", parts.leave)
    with pytest.raises(SgaError, match="a worker died while it started"):
        run(Record(tmp_path / "r.json"), squares(parts, tmp_path, 1), title="t", workers=2)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="memory as Linux counts it")
def test_memory_does_not_grow(parts):
    """Twelve arrays of 250 MB, each in a cycle, take one worker as much as two of them."""
    tasks = [Task(str(x), {}, parts.peak, (250,)) for x in range(12)]
    outcomes = [o.values for _, o in pool.outcomes(tasks, workers=1, threads=1, retries=0)]
    assert len({values["pid"] for values in outcomes}) == 1
    peaks = [values["peak"] for values in outcomes]
    assert peaks[1] > 250_000
    assert peaks[-1] < 1.3 * peaks[1]
