# SPDX-License-Identifier: Apache-2.0
"""One task as a process does it: what is sent there, and what comes back.

`pack` makes bytes of a task's function and its arguments. Functions and classes go by the names of their
modules; those of the script that runs, whose module is called `__main__`, by the name of its file, so that
every process imports the same module. `perform` calls it and returns an `Outcome` that can always be sent
back: JSON values or one line about the error, never an exception, which might not survive pickling.

`begin` starts a process on this machine: its threads, no Ctrl-C (which the parent answers), and its end when
the parent is gone, however that died.

In:  tasks. Out: outcomes.
Fails with PicklingError where a function or an argument cannot be sent.
"""

from __future__ import annotations

import gc
import importlib
import io
import multiprocessing
import multiprocessing.connection
import os
import pickle
import signal
import sys
import sysconfig
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from .records import machine, plain

__all__ = [
    "Outcome",
    "Task",
    "attempt",
    "begin",
    "device",
    "failed",
    "is_library",
    "module_of",
    "pack",
    "perform",
]

COLLECT_SEC = 0.2  # after longer tasks a collection of garbage, some 0.05 seconds, is cheap
LINE_CHARACTERS = 500
MACHINERY = Path(__file__).parent
PACKAGE = MACHINERY.parent


@dataclass(frozen=True)
class Task:
    """One measurement.

    Args:
        name: of its cell in the record.
        of: the settings that its values belong to; JSON.
        call: a function of a module, which other processes can import, or of the script that runs.
        arguments: for it; picklable and small: paths and names rather than images and models.
    """

    name: str
    of: Mapping[str, Any]
    call: Callable[..., dict[str, Any]]
    arguments: tuple[Any, ...] = ()


@dataclass(frozen=True)
class Outcome:
    """What became of a task: values, or one line about the error.

    Args:
        values: JSON as the results file gives it back.
        error: one line.
        seconds: of the call.
        machine: what it ran on.
    """

    values: dict[str, Any] | None = None
    error: str = ""
    seconds: float = 0.0
    machine: dict[str, str] | None = None


def device() -> torch.device:
    """Where the task that runs in this process should compute; a worker sees no GPU but its own."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def attempt(call: Callable[..., dict[str, Any]], arguments: tuple[Any, ...]) -> Outcome:
    """Call it and take what comes; only KeyboardInterrupt, which is the user's, passes."""
    start = time.perf_counter()
    try:
        values = call(*arguments)
        seconds = time.perf_counter() - start
        if not isinstance(values, dict):
            raise TypeError(f"it returned {type(values).__name__}; a task returns a dictionary")
        outcome = Outcome(plain(values), "", seconds, machine())
    except (Exception, SystemExit) as error:
        outcome = failed(error)
    values = None
    if time.perf_counter() - start > COLLECT_SEC:
        gc.collect()  # Python counts objects, not bytes: a few cycles may hold many images
    return outcome


def failed(error: BaseException) -> Outcome:
    """The outcome that names an exception, and the line of our own code that raised it."""
    try:
        text = " ".join(str(error).split())
    except Exception:  # an exception may fail to describe itself
        text = "no description"
    lines = [f for f in traceback.extract_tb(error.__traceback__) if _is_ours(f.filename)]
    place = f" ({Path(lines[-1].filename).name}:{lines[-1].lineno})" if lines else ""
    if len(text) > LINE_CHARACTERS:
        text = text[:LINE_CHARACTERS] + " ..."
    return Outcome(error=type(error).__name__ + (text and f": {text}") + place)


def is_library(file: str) -> bool:
    """Whether a source file is Python's own, or of a package that pip installed."""
    installed = {"site-packages", "dist-packages"}.intersection(Path(file).parts)
    return bool(installed) or file.startswith((sysconfig.get_path("stdlib"), "<"))


def _is_ours(file: str) -> bool:
    """Whether a line there says more than that a library raised: in this package, too, except here."""
    path = Path(file)
    if path.is_relative_to(PACKAGE):
        return not path.is_relative_to(MACHINERY)
    return not is_library(file)


# --- There and back -----------------------------------------------------------------------------------


class _Pickler(pickle.Pickler):
    """Names what belongs to the running script by the script's file."""

    def reducer_override(self, obj: Any) -> Any:
        if getattr(obj, "__module__", None) == "__main__" and hasattr(obj, "__qualname__"):
            return _find, (module_of(obj), obj.__qualname__)
        return NotImplemented


def module_of(function: Callable[..., Any]) -> str:
    """Name by which another process imports the function's module."""
    if function.__module__ != "__main__":
        return function.__module__
    main = sys.modules["__main__"]
    if getattr(main, "__spec__", None) is not None:  # python -m
        return main.__spec__.name
    if getattr(main, "__file__", None) is None:
        raise pickle.PicklingError(
            f"{function.__qualname__} is in no file that other processes can import; write it into one"
        )
    return Path(main.__file__).stem


def _find(module: str, qualname: str) -> Any:
    found = importlib.import_module(module)
    for name in qualname.split("."):
        found = getattr(found, name)
    return found


def pack(task: Task) -> bytes:
    """The task's call, to be sent.

    Raises:
        PicklingError: see the head of the file.
    """
    buffer = io.BytesIO()
    try:
        _Pickler(buffer, pickle.HIGHEST_PROTOCOL).dump((task.call, task.arguments))
    except Exception as error:  # pickle raises several
        raise pickle.PicklingError(f"it cannot be sent to another process: {error}") from error
    return buffer.getvalue()


def perform(packed: bytes) -> Outcome:
    """Do what was sent; nothing passes, for here nobody presses Ctrl-C."""
    try:
        call, arguments = pickle.loads(packed)
        return attempt(call, arguments)
    except BaseException as error:
        return failed(error)


# --- A process of this machine ------------------------------------------------------------------------


def begin(threads: int) -> None:
    """Prepare this process, the child of a run."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    gc.freeze()  # collections pass over what was imported


def _end_with_parent() -> None:
    """A parent that was killed says nothing, and its children would wait for work for ever."""
    multiprocessing.connection.wait([multiprocessing.parent_process().sentinel])
    os._exit(1)
