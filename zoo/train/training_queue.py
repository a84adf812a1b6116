# SPDX-License-Identifier: Apache-2.0
"""Runs of train.py with budgets in CPU hours, one after the other on one core: what `queue.py` does.

    python zoo/train/queue.py QUEUE.toml --data PHOTOS [--only NAME] [--core N] [--list]

In:  a queue (its format is described in `queue_file.py`), photographs, and the existing files of its runs.
Out: the files of train.py, and a table (Markdown) of the finished runs and their results, before and after
     each run. Exit code 0: all runs are done; 1: a run failed, and no later one was started; 2: the queue
     cannot be run as it is; 128 + number after a signal.

The same command goes on after any end: after Ctrl-C or SIGTERM, on which the run saves itself; after a kill,
from the last save; on another machine, from the state beside the queue (at most 16 MB, to be committed). A
run is done if its run.json has the whole budget and its exported weights are not older. If its checkpoint is
not on this machine, it is done if its state has the whole budget. Before anything starts it fails on a queue
that `queue_file.py` or train.py refuses, a missing folder of photographs, files of another run, and a
checkpoint that is older than the state. Needs a POSIX system.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import io
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from queue_file import Queue, QueuedRun, QueueError, read_queue
from run_files import end_with_parent

__all__ = ["Places", "Standing", "main", "standing", "table"]

STATE_MB = 16
WAIT_SECONDS = 60  # for the run of a killed queue to save itself


@dataclass(frozen=True)
class Places:
    """The folders of runs and of states."""

    runs: Path
    states: Path

    def out(self, run: QueuedRun) -> Path:
        return self.runs / run.name

    def state(self, run: QueuedRun) -> Path:
        return self.states / f"{run.name}.safetensors"


@dataclass(frozen=True)
class Standing:
    """How far a run is, by its files.

    `reached` has average, score and loss of the last check, if known. `weights` is the file from which
    another run can start, when this one is done.
    """

    seconds: float
    steps: int
    reached: dict[str, Any]
    done: bool
    weights: Path | None


def train_arguments(run: QueuedRun, data: Path, places: Places, init_from: Path | None) -> list[str]:
    """The command line of train.py."""
    out, state = str(places.out(run)), str(places.state(run))
    words = [*run.options, "--arch", run.arch, "--max-minutes", f"{run.minutes:.10g}"]
    if init_from is not None:
        words += ["--init-from", str(init_from)]
    return [*words, "--data", str(data), "--out", out, "--state", state]


def facts_of(run: QueuedRun, data: Path, places: Places) -> dict[str, Any]:
    """The settings that train.py derives from a run's options, as they appear in its files.

    Raises:
        QueueError: train.py refuses the options.
    """
    import train

    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            args = train.parse_args(train_arguments(run, data, places, None))
    except SystemExit:
        sentence = said.getvalue().strip().rpartition("error: ")[2].rstrip(".")
        raise QueueError(f"run {run.name}: {sentence}; `{train.__file__} --help` has the options") from None
    return {"architecture": args.arch, "N": args.N, "M": args.M, "lmbdas": list(args.lmbdas)}


def standing(run: QueuedRun, facts: dict[str, Any], places: Places) -> Standing:
    """How far a run is, by run.json and its state.

    Raises:
        QueueError: they cannot be read, or belong to a run with other settings.
    """
    out, path = places.out(run), places.state(run)
    record, state = _read_record(out / "run.json"), _read_state(path)
    for file, theirs in ((out / "run.json", record), (path, state)):
        for key, mine in facts.items():
            if theirs and theirs.get(key) != mine:
                raise QueueError(
                    f"{file} is of a run with {key} {theirs.get(key)}, and run {run.name} has {mine}; give "
                    "the run another name, or move the file away"
                )
    done, weights = False, None
    if not (out / "checkpoint.pt").exists() and state.get("seconds", 0) >= 60 * run.minutes:
        done, weights = True, path
    if record.get("minutes", 0) >= run.minutes and _exported(out, len(facts["lmbdas"])):
        done, weights = True, out / "model.pth"
    here, there = 60 * record.get("minutes", 0), state.get("seconds", 0)
    newest = record | state if there > here else state | record
    reached = {key: newest[key] for key in ("average", "score", "loss") if key in newest}
    steps = max(record.get("step", 0), state.get("step", 0))
    return Standing(max(here, there), steps, reached, done, weights)


def _read_record(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise QueueError(f"{path} cannot be read ({error}); remove it, the next check writes it") from error


def _read_state(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        with safe_open(path, "pt") as file:
            return dict(json.loads(file.metadata()["run"]))
    except Exception as error:  # safetensors has its own, and the metadata may be anybody's
        raise QueueError(
            f"{path} cannot be read as a state of train.py ({error!r}); take it from the last commit, or "
            "remove it"
        ) from error


def _exported(out: Path, rates: int) -> bool:
    """Whether all weights exist and are not older than the last check."""
    paths = [out / "model.pth", *out.glob("model-*.pth")]
    if len(paths) <= rates or not paths[0].exists():
        return False
    return min(p.stat().st_mtime_ns for p in paths) >= (out / "run.json").stat().st_mtime_ns


def _refuse_older_checkpoint(run: QueuedRun, places: Places) -> None:
    """Refuse a checkpoint behind the state: a save writes it first, so the state is of another machine."""
    checkpoint = places.out(run) / "checkpoint.pt"
    ahead = _read_state(places.state(run)).get("seconds", 0)
    try:
        here = torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)["seconds"]
    except Exception:  # there is none, or train.py says what is wrong with it
        return
    if ahead > here:
        raise QueueError(
            f"{checkpoint} stands at {here / 3600:.2f} hours and {places.state(run)} at {ahead / 3600:.2f}, "
            "so they are from different machines; remove the one that the run shall not go on from"
        )


def table(runs: list[tuple[QueuedRun, Standing]]) -> str:
    """Markdown: how far each run is, and score and losses at its lowest, middle and highest rate."""
    lines = [
        "| run | architecture | | hours | of | steps | average | score | loss at low, middle, high rate |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for run, at in runs:
        status = "done" if at.done else "begun" if at.steps else "waits"
        losses = at.reached.get("loss", [])
        shown = sorted({0, len(losses) // 2, len(losses) - 1}) if losses else []
        cells = [run.name, run.arch, status, f"{at.seconds / 3600:.2f}", f"{run.hours:g}", str(at.steps)]
        cells += [str(at.reached[key]) if key in at.reached else "-" for key in ("average", "score")]
        cells.append(", ".join(f"{losses[i]:.4f}" for i in shown) or "-")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


class Interruption:
    """Inside the block, the first SIGINT or SIGTERM becomes one SIGINT to the training.

    The training then saves itself and ends. It runs in its own session; else Ctrl-C in a terminal would reach
    it a second time.
    """

    def __init__(self) -> None:
        self.number: int | None = None
        self._child: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Interruption:
        self._before = {n: signal.signal(n, self._receive) for n in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: object) -> None:
        if self.number is None:
            self.number = number
            os.write(2, b"\nqueue.py: waiting for the run to save itself\n")  # print may be at work already
            self._forward()

    def _forward(self) -> None:
        if self._child is not None:
            self._child.send_signal(signal.SIGINT)

    def wait(self, child: subprocess.Popen[bytes]) -> int:
        """Exit code of the training."""
        self._child = child
        if self.number is not None:  # it came while the training was started
            self._forward()
        try:
            return child.wait()
        finally:
            self._child = None


@contextlib.contextmanager
def _locked(out: Path, interruption: Interruption) -> Iterator[int]:
    """A descriptor that locks a run's folder; the training inherits it and keeps the lock until its end.

    Raises:
        QueueError: the folder stays locked, or cannot be written.
    """
    path = out / "queue.lock"
    try:
        out.mkdir(parents=True, exist_ok=True)
        lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise QueueError(f"{path} cannot be written ({error}); make room or name another --runs") from error
    try:
        deadline = None
        while interruption.number is None:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                number = os.pread(lock, 20, 0).decode().strip()
                if deadline is None:
                    deadline = time.monotonic() + WAIT_SECONDS
                    print(f"queue.py: waiting for process {number}, which uses {out}", file=sys.stderr)
                if time.monotonic() > deadline:
                    raise QueueError(
                        f"{out} is in use by process {number}; wait until it has ended, or `kill -INT "
                        f"{number}`: it saves itself"
                    ) from error
            time.sleep(0.2)
        yield lock
    finally:
        os.close(lock)


def _train(arguments: list[str], lock: int, interruption: Interruption) -> int:
    import train

    print(f"\n{shlex.join(['python', os.path.relpath(train.__file__), *arguments])}", flush=True)
    child = subprocess.Popen(
        [sys.executable, train.__file__, *arguments],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        pass_fds=[lock],
        start_new_session=True,
        preexec_fn=end_with_parent,
    )
    with contextlib.suppress(OSError):  # only for the message to who waits, and the disk may be full
        os.ftruncate(lock, 0)
        os.pwrite(lock, str(child.pid).encode(), 0)
    return interruption.wait(child)


class Work:
    """A queue with its folders, checked as a whole; `run` does the runs that are left.

    Args:
        data: folder of photographs; None for the table alone.

    Raises:
        QueueError: see the head of this file.
    """

    def __init__(self, queue: Queue, places: Places, data: Path | None):
        self.queue, self.places, self.data = queue, places, data
        anywhere = data or Path()  # train.py asks for some folder
        self.facts = {run.name: facts_of(run, anywhere, places) for run in queue.runs}

    def standing(self, run: QueuedRun) -> Standing:
        return standing(run, self.facts[run.name], self.places)

    def report(self) -> None:
        """Print the table, and name the states that are too large."""
        print("\n" + table([(run, self.standing(run)) for run in self.queue.runs]), flush=True)
        for path in map(self.places.state, self.queue.runs):
            if path.exists() and (mb := path.stat().st_size / 1e6) > STATE_MB:
                print(
                    f"queue.py: {path} has {mb:.1f} MB, and a state that is committed at most {STATE_MB}; "
                    "lower N or M, or carry it to the other machine by hand",
                    file=sys.stderr,
                )

    def run(self, only: str | None) -> int:
        """Do the runs that are left, in order, or the one that is named; returns the exit code."""
        chosen = [run for run in self.queue.runs if only in (None, run.name)]
        for run in chosen:
            if self._is_left(run, only):
                _refuse_older_checkpoint(run, self.places)
        with Interruption() as interruption:
            for run in chosen:
                if not self._is_left(run, only):
                    continue
                with _locked(self.places.out(run), interruption) as lock:
                    code = 0
                    # while it waited for the lock, another queue may have ended the run
                    if interruption.number is None and self._is_left(run, only):
                        code = _train(self._arguments(run), lock, interruption)
                done = self.standing(run).done
                if interruption.number is not None:
                    print(f"queue.py: stopped; the same command goes on with {run.name}", file=sys.stderr)
                elif code != 0 or not done:
                    self._say_failed(run, code)
                self.report()
                if interruption.number is not None:
                    return 128 + interruption.number
                if code != 0 or not done:
                    return 1
        return 0

    def _is_left(self, run: QueuedRun, only: str | None) -> bool:
        """Whether a run is still to do; a named run that was done elsewhere is exported from its state."""
        at = self.standing(run)
        return not at.done or (only is not None and at.weights == self.places.state(run))

    def _arguments(self, run: QueuedRun) -> list[str]:
        weights = None
        if run.init_from is not None:
            source = next(other for other in self.queue.runs if other.name == run.init_from)
            weights = self.standing(source).weights
            if weights is None and not self.standing(run).steps:
                raise QueueError(
                    f"run {run.name} starts from {source.name}, which is not done; run that first, or "
                    "the queue without --only"
                )
        return train_arguments(run, self.data, self.places, weights)

    def _say_failed(self, run: QueuedRun, code: int) -> None:
        how = f"failed with exit code {code}" if code > 0 else f"was ended by signal {-code}"
        if code == 0:
            how = f"ended before its {run.hours:g} hours"
        print(
            f"queue.py: run {run.name} {how}, see above; no later run was started. When the cause is "
            f"removed, the same command goes on with {run.name}",
            file=sys.stderr,
        )


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="queue.py", description="Train one model after the other, each for its CPU hours."
    )
    parser.add_argument("queue", type=Path, help="TOML file, such as zoo/train/queue.toml")
    parser.add_argument("--data", type=Path, help="folder of photographs; wins over that of the queue")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="of the runs' folders (runs)")
    parser.add_argument("--states", type=Path, help="of fp16 states (`states` beside the queue)")
    parser.add_argument("--only", metavar="NAME", help="this run alone; exports what was done elsewhere")
    parser.add_argument("--core", type=int, help="CPU core to stay on (any)")
    parser.add_argument("--list", action="store_true", help="print the table and end")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """The command; returns its exit code."""
    args = _parse(argv)
    try:
        queue = read_queue(args.queue)
        names = [run.name for run in queue.runs]
        if args.only is not None and args.only not in names:
            raise QueueError(f"--only {args.only} is not in the queue; it has {', '.join(names)}")
        data = args.data or queue.data
        if not args.list and (data is None or not data.is_dir()):
            raise QueueError(
                f"data must be a folder of photographs, not {data}; name one with --data or in the queue"
            )
        if args.core is not None:
            _pin(args.core)
        places = Places(args.runs, args.states or args.queue.parent / "states")
        work = Work(queue, places, None if args.list else data)
        work.report()
        return 0 if args.list else work.run(args.only)
    except QueueError as error:
        print(f"queue.py: {error}", file=sys.stderr)
        return 2


def _pin(core: int) -> None:
    try:
        os.sched_setaffinity(0, {core})
    except (OSError, ValueError, AttributeError) as error:
        raise QueueError(
            f"--core {core} is not available ({error}); this machine has cores 0 to {os.cpu_count() - 1}"
        ) from error
