# SPDX-License-Identifier: Apache-2.0
"""The measurements of an evaluation as tasks; each is done once, on any process or machine.

    failures = run(record, tasks, title="compare", workers=2)
    print(tables(record.cells))
    finish(failures)                # if tasks failed: names them and ends the script with code 1

A task has a name in the results file (`records`), the settings that its values belong to, and a function with
its arguments. The function returns JSON: numbers, strings, lists, dictionaries. Results that the record has
are not measured again. Each result is on disk when its task ends. A task that fails is named, and the others
go on.

`run` works in this process, in --workers processes of this machine (`pool`), or on the cluster at
--ray ADDRESS (`ray_cluster`). Only this process writes the record. A task whose process dies is tried twice
more. A run that was killed, or stopped by Ctrl-C (exit code 130), goes on when the same command is given
again, and tasks that failed are then tried again.

In:  tasks; a record. Out: the record's cells, in the order of the tasks; the failures by name.
Fails with ``ValueError`` for contradicting options or two tasks of one name, and with ``SgaError`` if another
run writes the record, if no worker starts, or if Ray or its cluster is missing.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from tqdm import tqdm

from . import pool, ray_cluster
from .options import add_options
from .process import Outcome, Task, attempt, device
from .records import Record

__all__ = ["Task", "add_options", "device", "finish", "run", "run_options"]

INTERRUPTED = 130  # the exit code of a program that Ctrl-C ended
NAMES = 10


def run_options(args: argparse.Namespace) -> dict[str, Any]:
    """The keywords of `run` that the options of `add_options` set."""
    return {"workers": args.workers, "threads": args.threads, "ray": args.ray}


def run(
    record: Record,
    tasks: Iterable[Task],
    *,
    title: str,
    workers: int = 1,
    threads: int = 1,
    ray: str | None = None,
    retries: int = 2,
) -> dict[str, str]:
    """Measure the tasks that the record does not have yet.

    Args:
        record: holds the known results and gets the new ones.
        tasks: the measurements; each has a name of its own.
        title: of the progress bar.
        workers: processes; 1 stands for this one.
        threads: torch threads of each.
        ray: address of a Ray cluster, instead of workers.
        retries: further tries of a task whose process dies; one that fails is not tried again.

    Returns:
        One line about each task that failed, by name; empty where all went well.

    Raises:
        ValueError, SgaError: see the head of the file.
        SystemExit: with code 130, after Ctrl-C; the results so far are kept.
    """
    _check(workers, threads, ray, retries)
    tasks = list(tasks)
    twice = [name for name, count in Counter(task.name for task in tasks).items() if count > 1]
    if twice:
        raise ValueError(f"several tasks are called {twice[0]!r}; each needs a name of its own")
    torch.set_num_threads(threads)
    with record.alone():
        missing = [task for task in tasks if record.known(task.name, task.of) is None]
        if ray is not None:
            outcomes = ray_cluster.outcomes(missing, address=ray, threads=threads, retries=retries)
        elif workers > 1:
            outcomes = pool.outcomes(missing, workers=workers, threads=threads, retries=retries)
        else:
            outcomes = _here(missing)
        try:
            failures = _kept(record, outcomes, len(tasks), len(missing), title)
        except KeyboardInterrupt:
            done = sum(record.known(task.name, task.of) is not None for task in tasks)
            _write(record, tasks)
            print(
                f"{title}: stopped with {done} of {len(tasks)} done, kept in {record.path}; "
                "the same command goes on from there",
                file=sys.stderr,
            )
            raise SystemExit(INTERRUPTED) from None
        _write(record, tasks)
    failures = {task.name: failures[task.name] for task in tasks if task.name in failures}
    if failures:
        lines = [f"  {name}: {error}" for name, error in failures.items()]
        print("\n".join([f"{title}: {len(failures)} of {len(tasks)} failed", *lines]), file=sys.stderr)
    return failures


def finish(failures: Mapping[str, str]) -> None:
    """End a script: exit code 1 if tasks failed.

    Raises:
        SystemExit: with code 1, if there are failures; Python prints their names.
    """
    if failures:
        names = [*list(failures)[:NAMES], *(["..."] if len(failures) > NAMES else [])]
        raise SystemExit(f"failed: {', '.join(names)}; the same command tries again what failed")


def _check(workers: int, threads: int, ray: str | None, retries: int) -> None:
    for name, value, least in (("workers", workers, 1), ("threads", threads, 1), ("retries", retries, 0)):
        if value < least:
            raise ValueError(f"{name} is {value}; it must be at least {least}")
    if workers > 1 and ray is not None:
        raise ValueError(f"workers ({workers}) and ray ({ray!r}) exclude each other; leave one out")


def _here(tasks: Sequence[Task]) -> Iterator[tuple[Task, Outcome]]:
    for task in tasks:
        yield task, attempt(task.call, task.arguments)


def _kept(
    record: Record, outcomes: Iterator[tuple[Task, Outcome]], total: int, missing: int, title: str
) -> dict[str, str]:
    """Write outcomes to the record as they come; returns the failures."""
    failures: dict[str, str] = {}
    bar = tqdm(total=total, initial=total - missing, desc=title, dynamic_ncols=True)
    with contextlib.closing(outcomes), bar:
        for task, outcome in outcomes:
            if outcome.values is None:
                failures[task.name] = outcome.error
                tqdm.write(f"failed: {task.name}: {outcome.error}", file=sys.stderr)
            else:
                record.keep(task.name, task.of, outcome.seconds, outcome.values, outcome.machine)
            bar.update()
    return failures


def _write(record: Record, tasks: Sequence[Task]) -> None:
    record.sort([task.name for task in tasks])
    record.write()
