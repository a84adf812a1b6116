# SPDX-License-Identifier: Apache-2.0
"""Tasks in processes of this machine, by `concurrent.futures`.

Every worker is a ProcessPoolExecutor of one process. A process may die, by a crash of native code or for its
memory. This breaks only its own executor and concerns only its own task. The task is tried again in a new
process, after all others. If its processes keep dying, it is reported as failed.

A worker gets its next task when it has finished the last one, so that no queue grows. Workers are spawned.
Before a worker imports anything, its number of threads is set, and on machines with GPUs also its GPU, in
turn (CUDA_VISIBLE_DEVICES).

In:  tasks, numbers of workers and of threads. Out: (task, outcome) in the order in which they end.
Fails with ``SgaError`` where no worker starts. Closing the generator kills the workers.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import signal
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Future, ProcessPoolExecutor, wait

import torch
from tqdm import tqdm

from ..errors import SgaError
from .process import Outcome, Task, begin, failed, pack, perform

__all__ = ["outcomes"]


def outcomes(
    tasks: Sequence[Task], *, workers: int, threads: int, retries: int
) -> Iterator[tuple[Task, Outcome]]:
    """Run the tasks.

    Args:
        tasks: the tasks to run.
        workers: processes.
        threads: torch threads of each.
        retries: further tries of a task whose process dies.
    """
    others = set(multiprocessing.active_children())
    gpus = torch.cuda.device_count()
    count = min(workers, len(tasks))
    idle = deque(_Worker(threads, index % gpus if gpus else None) for index in range(count))
    everyone = list(idle)
    queue = deque((task, 0) for task in tasks)
    running: dict[Future, tuple[_Worker, Task, int]] = {}
    started = False
    try:
        while queue or running:
            while queue and idle:
                task, deaths = queue.popleft()
                try:
                    packed = pack(task)
                except pickle.PicklingError as error:
                    yield task, failed(error)
                    continue
                worker = idle.popleft()
                running[worker.submit(packed)] = worker, task, deaths
            # The time-out lets Ctrl-C through where waiting for a lock cannot be interrupted.
            for future in wait(running, timeout=1, return_when=FIRST_COMPLETED).done:
                worker, task, deaths = running.pop(future)
                idle.append(worker)
                error = future.exception()
                started |= worker.has_started
                if not isinstance(error, BrokenExecutor):
                    yield task, future.result() if error is None else failed(error)
                    continue
                worker.stop()
                if not started:
                    raise _no_start()
                if deaths < retries:
                    tqdm.write(f"its process died; it will be tried again: {task.name}", file=sys.stderr)
                    queue.append((task, deaths + 1))
                else:
                    yield task, Outcome(error=died(deaths + 1))
    finally:
        if running:
            for child in set(multiprocessing.active_children()) - others:
                child.kill()
        for worker in everyone:
            worker.stop()


def died(times: int) -> str:
    """The line about a task whose process dies."""
    return f"the process died {'once' if times == 1 else f'{times} times'}, perhaps out of memory"


def _no_start() -> SgaError:
    return SgaError(
        "a worker died while it started. The lines above may say why; else there is too little memory. "
        'A script that uses workers must do its work below `if __name__ == "__main__"`'
    )


class _Worker:
    """An executor of one process, made for its first task and made again when its process has died."""

    def __init__(self, threads: int, gpu: int | None):
        self._threads, self._gpu = threads, gpu
        self._executor: ProcessPoolExecutor | None = None
        self._ready: Future | None = None

    def submit(self, packed: bytes) -> Future:
        try:
            return self._submit(packed)
        except BrokenExecutor:  # it died between two tasks
            self.stop()
            return self._submit(packed)

    @property
    def has_started(self) -> bool:
        """Whether its process has started far enough to take a task."""
        return self._ready.done() and self._ready.exception() is None

    def stop(self) -> None:
        if self._executor is not None:
            self._executor.shutdown(cancel_futures=True)
            self._executor = None

    def _submit(self, packed: bytes) -> Future:
        with _spawning(self._threads, self._gpu):
            if self._executor is None:
                self._executor = ProcessPoolExecutor(
                    1, multiprocessing.get_context("spawn"), initializer=begin, initargs=(self._threads,)
                )
                self._ready = self._executor.submit(os.getpid)
            return self._executor.submit(perform, packed)


@contextlib.contextmanager
def _spawning(threads: int, gpu: int | None) -> Iterator[None]:
    """Set what a new process inherits; Ctrl-C is held back during the block and ignored by the process."""
    changes = {"OMP_NUM_THREADS": str(threads)}
    if gpu is not None:
        seen = os.environ.get("CUDA_VISIBLE_DEVICES")
        changes["CUDA_VISIBLE_DEVICES"] = seen.split(",")[gpu].strip() if seen else str(gpu)
    before = {key: os.environ.get(key) for key in changes}
    can_block = hasattr(signal, "pthread_sigmask")
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT}) if can_block else None
    os.environ.update(changes)
    try:
        yield
    finally:
        for key, value in before.items():
            if value is None:
                del os.environ[key]
            else:
                os.environ[key] = value
        if can_block:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
