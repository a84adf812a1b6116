# SPDX-License-Identifier: Apache-2.0
"""tasks/tasks.py: each task once, whatever is killed or fails; processes as the serial run."""

from __future__ import annotations

import argparse
import json
import math
import os
import pickle
import signal
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.tasks.tasks_runs import (
    POSIX,
    SCRIPT,
    calls,
    ended,
    expected,
    is_alive,
    journal,
    modules,
    read,
    squares,
    started,
    until,
)


@pytest.fixture
def eval_(monkeypatch):
    return modules(monkeypatch)


@pytest.fixture
def start():
    with started() as start:
        yield start


# --- Serial -------------------------------------------------------------------------------------------


def test_each_task_is_done_once(eval_, tmp_path, capsys):
    path = tmp_path / "results.json"
    record = eval_.records.Record(path)
    assert eval_.tasks.run(record, squares(eval_, tmp_path, 2), title="t") == {}
    record.cell("other", {}, lambda: {})
    for _ in range(2):
        record = eval_.records.Record(path)
        assert eval_.tasks.run(record, squares(eval_, tmp_path, 4)[::-1], title="t") == {}
    assert len(calls(tmp_path)) == 4
    del (found := read(tmp_path))["other"]
    assert found == expected(4)
    assert list(record.cells) == ["square 3", "square 2", "other", "square 1", "square 0"]
    assert "| 2/4 [00:00<?" in capsys.readouterr().err  # what was known is where the second bar began
    changed = [eval_.Task("square 1", {"x": 1, "new": True}, eval_.parts.square, (str(tmp_path), 1))]
    eval_.tasks.run(record, changed, title="t")
    assert len(calls(tmp_path)) == 5
    assert sorted(path.name for path in tmp_path.iterdir()) == ["calls", "results.json"]


def wrong(eval_: SimpleNamespace) -> dict[str, tuple[Any, str]]:
    """Tasks that fail, and what is said about them."""
    parts, Task = eval_.parts, eval_.Task
    kinds = {
        "raises": (math.sqrt, (-1,), "ValueError: math domain error"),
        "awkward": (parts.awkward, (), "Awkward: 1 and 2 (tasks_parts.py:"),
        "leaves": (parts.leave, (), "SystemExit: 3 (tasks_parts.py:"),
        "number": (parts.give, (1,), "TypeError: it returned int; a task returns a dictionary"),
        "lock": (parts.give_a_lock, (), "TypeError: Object of type lock is not JSON serializable"),
    }
    return {name: (Task(name, {}, call, given), text) for name, (call, given, text) in kinds.items()}


def test_failures_are_named_and_the_others_go_on(eval_, tmp_path, capsys):
    record = eval_.records.Record(tmp_path / "results.json")
    bad = wrong(eval_)
    first, last = squares(eval_, tmp_path, 2)
    failures = eval_.tasks.run(record, [first, *(task for task, _ in bad.values()), last], title="t")
    assert set(failures) == set(bad) and set(record.cells) == {"square 0", "square 1"}
    printed = capsys.readouterr().err
    for name, (_, text) in bad.items():
        assert failures[name].startswith(text)
        assert printed.count(f"{name}: {text}") == 2  # as it failed, and in the summary
    assert "t: 5 of 7 failed" in printed
    with pytest.raises(SystemExit, match="failed: raises, awkward, leaves, number, lock; ") as end:
        eval_.tasks.finish(failures)
    assert isinstance(end.value.code, str)  # which Python prints, and exits with 1
    eval_.tasks.finish({})


def test_nan_and_infinity_stay(eval_, tmp_path):
    values = {"a": math.inf, "b": math.nan}
    task = eval_.Task("x", {"limit": math.inf, "none": math.nan}, eval_.parts.give, (values,))
    for _ in range(2):
        record = eval_.records.Record(tmp_path / "results.json")
        assert eval_.tasks.run(record, [task], title="t") == {}
        found = record.known("x", task.of)
        assert found["a"] == math.inf and math.isnan(found["b"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"workers": 0}, "workers is 0; it must be at least 1"),
        ({"threads": 0}, "threads is 0; it must be at least 1"),
        ({"retries": -1}, "retries is -1; it must be at least 0"),
        ({"workers": 2, "ray": "auto"}, "exclude each other"),
    ],
)
def test_options_of_run(eval_, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        eval_.tasks.run(eval_.records.Record(tmp_path / "r.json"), [], title="t", **options)


@pytest.mark.parametrize("spec", [None, SimpleNamespace(name="tasks_parts")], ids=["file", "-m"])
def test_what_belongs_to_a_script_goes_by_its_file(eval_, monkeypatch, spec):
    """In other processes the script is no `__main__`."""
    main = SimpleNamespace(__file__=str(SCRIPT), __spec__=spec, square=eval_.parts.square)
    for part in (eval_.parts.square, eval_.parts.Awkward):
        monkeypatch.setattr(part, "__module__", "__main__")
    task = eval_.Task("t", {}, eval_.parts.square, (eval_.parts.Awkward, 1))
    with monkeypatch.context() as patched:
        patched.setitem(sys.modules, "__main__", main)
        packed = eval_.pack(task)
    assert pickle.loads(packed) == (eval_.parts.square, (eval_.parts.Awkward, 1))
    monkeypatch.setitem(sys.modules, "__main__", SimpleNamespace())
    with pytest.raises(pickle.PicklingError, match="square is in no file .*; write it into one"):
        eval_.pack(task)


def test_names_must_differ(eval_, tmp_path):
    tasks = squares(eval_, tmp_path, 2) * 2
    with pytest.raises(ValueError, match="several tasks are called 'square 0'"):
        eval_.tasks.run(eval_.records.Record(tmp_path / "r.json"), tasks, title="t")


def test_options_of_scripts(eval_, capsys):
    parser = argparse.ArgumentParser()
    eval_.tasks.add_options(parser)
    assert vars(parser.parse_args([])) == {"workers": 1, "threads": 1, "ray": None}
    for words in ("--workers 0", "--threads -1", "--threads x", "--workers 2 --ray auto"):
        with pytest.raises(SystemExit) as end:
            parser.parse_args(words.split())
        assert end.value.code == 2
    printed = capsys.readouterr().err
    assert "'x' is no number of at least 1" in printed and "not allowed with argument --workers" in printed


# --- Processes ----------------------------------------------------------------------------------------


@POSIX
def test_workers(eval_, tmp_path, monkeypatch, capsys):
    """Whatever tasks do to their processes, each is done or named; at most one waits for each worker."""
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    waiting, wait = [], eval_.pool.wait
    monkeypatch.setattr(
        eval_.pool, "wait", lambda running, **how: waiting.append(len(running)) or wait(running, **how)
    )
    parts, Task, folder = eval_.parts, eval_.Task, str(tmp_path)
    bad = wrong(eval_) | {
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
        *squares(eval_, tmp_path, 40),
    ]
    record = eval_.records.Record(tmp_path / "results.json")
    failures = eval_.tasks.run(record, tasks, title="t", workers=2, threads=3, retries=1)
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
@pytest.mark.parametrize("workers", [1, 2])
def test_a_killed_run_goes_on(start, tmp_path, workers):
    """SIGKILL: nothing that was on disk is lost or done again, and no worker stays."""
    options = ("--count", "8", "--seconds", "0.3", "--workers", str(workers))
    killed = start(tmp_path, *options)
    until(lambda: len(journal(tmp_path)) >= 3)
    os.kill(killed.pid, signal.SIGKILL)
    ended(killed, tmp_path, -signal.SIGKILL)
    until(lambda: not any(is_alive(pid) for _, pid in calls(tmp_path)), seconds=5)
    done = [json.loads(line)["cell"]["of"]["x"] for line in journal(tmp_path) if line.endswith("}")]
    assert 3 <= len(done) < 8 and not (tmp_path / "results.json").exists()
    with (tmp_path / "results.jsonl").open("a") as file:
        file.write('{"name": "square 7", "cell"')  # a kill may cut a line off
    printed = ended(start(tmp_path, *options), tmp_path, 0)
    assert f"| {len(done)}/8 [00:00<?" in printed  # the bar begins there
    assert list(read(tmp_path).items()) == list(expected(8).items())
    names = [name for name, _ in calls(tmp_path)]
    assert set(names) == {str(x) for x in range(8)} and len(names) <= 8 + workers
    assert all(names.count(str(x)) == 1 for x in done)
    assert not journal(tmp_path)


@POSIX
@pytest.mark.parametrize("workers", [1, 2])
def test_ctrl_c(start, tmp_path, workers):
    """In the middle of a task of a minute; what was done before is kept, and its failure is named."""
    options = ("--count", "6", "--long", "3", "--fail", "1", "--workers", str(workers))
    stopped = start(tmp_path, *options)
    here = (0, 2) if workers == 1 else (0, 2, 4, 5)
    until(lambda: len(journal(tmp_path)) == len(here) and "3" in dict(calls(tmp_path)))
    begin = time.monotonic()
    os.killpg(stopped.pid, signal.SIGINT)
    printed = ended(stopped, tmp_path, 130)
    assert time.monotonic() - begin < 10
    assert printed.splitlines()[-1] == (
        f"squares: stopped with {len(here)} of 6 done, kept in {tmp_path / 'results.json'}; "
        "the same command goes on from there"
    )
    assert "Traceback" not in printed and "failed: square 1: TypeError" in printed
    assert list(read(tmp_path)) == [f"square {x}" for x in here]
    assert not any(is_alive(pid) for _, pid in calls(tmp_path))


@POSIX
def test_exit_code_of_a_script_with_failures(start, tmp_path):
    printed = ended(start(tmp_path, "--count", "2", "--fail", "1"), tmp_path, 1)
    assert printed.splitlines()[-1] == "failed: square 1; the same command tries again what failed"
    assert read(tmp_path) == expected(2, without=(1,))


def test_workers_that_do_not_start(eval_, tmp_path, monkeypatch):
    from compressai_sga.errors import SgaError

    monkeypatch.setattr(eval_.pool, "begin", eval_.parts.leave)
    with pytest.raises(SgaError, match="a worker died while it started"):
        eval_.tasks.run(
            eval_.records.Record(tmp_path / "r.json"), squares(eval_, tmp_path, 3), title="t", workers=2
        )


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="memory as Linux counts it")
def test_memory_does_not_grow(eval_):
    """Twelve arrays of 250 MB, each in a cycle, take one worker as much as two of them."""
    tasks = [eval_.Task(str(x), {}, eval_.parts.peak, (250,)) for x in range(12)]
    outcomes = [o.values for _, o in eval_.pool.outcomes(tasks, workers=1, threads=1, retries=0)]
    assert len({values["pid"] for values in outcomes}) == 1
    peaks = [values["peak"] for values in outcomes]
    assert peaks[1] > 250_000
    assert peaks[-1] < 1.3 * peaks[1]
