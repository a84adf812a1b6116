# SPDX-License-Identifier: Apache-2.0
"""The same command for several files at once, each in a process of its own.

    with Jobs(["compress", "--model=c3-fast"], count=4) as jobs:
        line = jobs(Path("a.png"), Path("a.csga"))  # from any thread

A process takes its share of the cores: OMP_NUM_THREADS is the number of cores divided by `count`, unless
it is set already. At the end of the block, also after an interrupt, processes that still run get the signal
of Ctrl-C; a fit keeps what it has.

In:  a command with its options, a file and its output. Out: the last line that the command printed.
Fails with ``SgaError``, which is what the command said on stderr at the end.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

from ..errors import SgaError

__all__ = ["Jobs"]


class Jobs:
    """Starts the processes; see the file's head.

    Args:
        command: what follows `python -m compressai_sga`, without the files.
        count: of the processes at once; the callers' threads keep it.
    """

    def __init__(self, command: Sequence[str], count: int) -> None:
        self._command = [sys.executable, "-m", __name__.partition(".")[0], *command]
        threads = str(max(1, (os.cpu_count() or 1) // count))
        self._environment = {"OMP_NUM_THREADS": threads, **os.environ}
        self._running: set[subprocess.Popen[str]] = set()
        self._lock, self._ended = threading.Lock(), False

    def __call__(self, source: Path, target: Path) -> str:
        with self._lock:
            if self._ended:
                raise SgaError("interrupted before it began")
            process = subprocess.Popen(
                [*self._command, os.fspath(source), os.fspath(target)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env=self._environment,
                start_new_session=True,  # a terminal's Ctrl-C is passed on once, below
            )
            self._running.add(process)
        try:
            said, complaint = process.communicate()
        finally:
            with self._lock:
                self._running.discard(process)
        if process.returncode:
            why = _last(complaint) or f"its process ended with {process.returncode}"
            raise SgaError(why.removeprefix("error: "))
        return _last(said)

    def __enter__(self) -> Jobs:
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._ended = True
            for process in self._running:
                process.send_signal(signal.SIGINT)


def _last(text: str) -> str:
    return next((line for line in reversed(text.splitlines()) if line.strip()), "")
