# SPDX-License-Identifier: Apache-2.0
"""Runs of the tasks of tasks_parts.py, and what they left: for the tests here."""

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
from types import ModuleType
from typing import Any

import pytest

from compressai_sga.tasks.tasks import Task

HERE = Path(__file__).resolve().parent
SCRIPT = HERE / "tasks_parts.py"
Popen = subprocess.Popen[str]
POSIX = pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")


def squares(parts: ModuleType, folder: Path, count: int) -> list[Task]:
    return [Task(f"square {x}", {"x": x}, parts.square, (str(folder), x)) for x in range(count)]


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
def started() -> Iterator[Callable[..., Popen]]:
    """A function that starts the script in a group of processes of its own, as a terminal does."""
    groups = []

    def start(folder: Path, *options: str) -> Popen:
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


def ended(process: Popen, folder: Path, code: int) -> str:
    """Wait for it; what it printed."""
    process.wait(timeout=180)
    printed = (folder / "stderr").read_text(encoding="utf-8")
    assert process.returncode == code, printed
    return printed


def until(true: Callable[[], bool], seconds: float = 180) -> None:
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
