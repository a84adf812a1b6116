# SPDX-License-Identifier: Apache-2.0
"""Functions that the tests here have done as tasks, in this module and as a script of their own.

    python tests/tasks/tasks_parts.py FOLDER --count 8 --seconds 0.2 [--workers 2 | --ray ADDRESS]

measures `square` of so many numbers into FOLDER/results.json. Every call leaves a file in FOLDER/calls, named
by the task, the number of the call and the process.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any


def called(folder: str, name: str) -> int:
    """Leave a file; how often the task was called, with this call."""
    calls = Path(folder) / "calls"
    calls.mkdir(parents=True, exist_ok=True)
    count = 1 + len(list(calls.glob(f"{name}.*")))
    (calls / f"{name}.{count}.{os.getpid()}").touch()
    return count


def square(folder: str, x: int, seconds: float = 0.0) -> dict[str, Any]:
    called(folder, str(x))
    time.sleep(seconds)
    return {"square": x * x, "third": x / 3}


def where(folder: str, x: int) -> dict[str, Any]:
    """What a task sees of its process."""
    import torch

    time.sleep(0.3)  # so that the other worker takes the next one
    return {
        "pid": os.getpid(),
        "module": square.__module__,
        "threads": torch.get_num_threads(),
        "omp": os.environ.get("OMP_NUM_THREADS"),
        "gpu": os.environ.get("CUDA_VISIBLE_DEVICES"),
    }


def kill(folder: str, name: str, times: int) -> dict[str, Any]:
    """Die by SIGKILL the first times."""
    count = called(folder, name)
    if count <= times:
        os.kill(os.getpid(), signal.SIGKILL)
    return {"calls": count}


class Awkward(Exception):
    """Pickling it works, unpickling does not."""

    def __init__(self, one: int, two: int):
        super().__init__(f"{one}\nand {two}")


def awkward() -> dict[str, Any]:
    raise Awkward(1, 2)


def interrupt() -> dict[str, Any]:
    raise KeyboardInterrupt


def leave() -> dict[str, Any]:
    sys.exit(3)


def give(value: Any) -> Any:
    return value


def give_a_lock() -> dict[str, Any]:
    import threading

    return {"lock": threading.Lock()}


LEFT: set[int] = set()  # cycles that are not collected


class Knot:
    """Part of a cycle by itself."""

    def __init__(self) -> None:
        self.own = self
        LEFT.add(id(self))

    def __del__(self) -> None:
        LEFT.discard(id(self))


def cycle(seconds: float) -> dict[str, Any]:
    """Leave a cycle behind, after some seconds."""
    Knot()
    time.sleep(seconds)
    return {"left": len(LEFT)}


def peak(megabytes: int) -> dict[str, Any]:
    """Handle a large array; the peak memory of the process so far, in kB.

    The array is part of a cycle, as arrays are that closures and models refer to.
    """
    import numpy as np

    image = np.ones((megabytes, 1 << 20), np.uint8)
    cycle: list[Any] = [image]
    cycle.append(cycle)
    time.sleep(0.25)
    status = Path("/proc/self/status").read_text()
    (line,) = (line for line in status.splitlines() if line.startswith("VmHWM"))
    return {"pixels": image.size, "pid": os.getpid(), "peak": int(line.split()[1])}


def main() -> None:
    from compressai_sga.tasks.records import Record
    from compressai_sga.tasks.tasks import Task, add_options, finish, run

    parser = argparse.ArgumentParser()
    parser.add_argument("folder")
    parser.add_argument("--count", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=0.0)
    parser.add_argument("--fail", type=int, help="the number that fails")
    parser.add_argument("--long", type=int, help="the number that takes a minute")
    add_options(parser)
    args = parser.parse_args()
    tasks = []
    for x in range(args.count):
        number, seconds = None if x == args.fail else x, 60 if x == args.long else args.seconds
        tasks.append(Task(f"square {x}", {"x": x}, square, (args.folder, number, seconds)))
    record = Record(Path(args.folder) / "results.json")
    how = {"workers": args.workers, "threads": args.threads, "ray": args.ray}
    finish(run(record, tasks, title="squares", **how))


if __name__ == "__main__":
    main()
