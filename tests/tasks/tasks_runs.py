# SPDX-License-Identifier: Apache-2.0
"""Runs of the tasks of tasks_parts.py, and what they left: for the tests of tasks/tasks.py and records.py."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

HERE = Path(__file__).resolve().parent
SCRIPT = HERE / "tasks_parts.py"
POSIX = pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")


def modules(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Of eval/, and the tasks' functions."""
    for folder in (HERE, HERE.parent / "eval"):
        monkeypatch.syspath_prepend(str(folder))
    from compressai_sga.tasks import pool as worker_pool
    from compressai_sga.tasks import records, tasks
    from compressai_sga.tasks.process import pack
    from tests.tasks import tasks_parts

    return SimpleNamespace(
        tasks=tasks, Task=tasks.Task, records=records, pool=worker_pool, parts=tasks_parts, pack=pack
    )


def squares(eval_: SimpleNamespace, folder: Path, count: int) -> list[Any]:
    return [eval_.Task(f"square {x}", {"x": x}, eval_.parts.square, (str(folder), x)) for x in range(count)]


def expected(count: int, without: tuple[int, ...] = ()) -> dict[str, Any]:
    """Settings and values of the script's tasks."""
    numbers = [x for x in range(count) if x not in without]
    return {f"square {x}": ({"x": x}, {"square": x * x, "third": float(f"{x / 3:.6g}")}) for x in numbers}


def read(folder: Path) -> dict[str, Any]:
    """Settings and values in the results file, in its order."""
    cells = json.loads((folder / "results.json").read_text(encoding="utf-8"))["cells"]
    return {name: (cell["of"], cell["values"]) for name, cell in cells.items()}


def calls(folder: Path) -> list[tuple[str, int]]:
    """Names and processes of all calls."""
    files = [path.name.split(".") for path in (folder / "calls").glob("*")]
    return [(name, int(pid)) for name, _, pid in files]


@contextlib.contextmanager
def started() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """A function that starts the script in a group of processes of its own, as a terminal does."""
    groups = []

    def start(folder: Path, *options: str) -> subprocess.Popen[str]:
        with (folder / "stderr").open("w") as file:  # a pipe ends only when the last of its children does
            process = subprocess.Popen(
                [sys.executable, "-W", "ignore", str(SCRIPT), str(folder), *options],
                stderr=file,
                start_new_session=True,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )
        groups.append(process)
        return process

    try:
        yield start
    finally:
        for process in groups:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def ended(process: subprocess.Popen[str], folder: Path, code: int) -> str:
    """Wait for it; what it printed."""
    process.wait(timeout=120)
    printed = (folder / "stderr").read_text(encoding="utf-8")
    assert process.returncode == code, printed
    return printed


def until(true: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.02)


def journal(folder: Path) -> list[str]:
    path = folder / "results.jsonl"
    return path.read_text(encoding="utf-8").splitlines() if path.is_file() else []


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except OSError:  # no Linux, or gone meanwhile
        return not Path("/proc/self/stat").is_file()
    return status.rpartition(")")[2].split()[0] != "Z"  # one that nobody waits for is dead all the same
