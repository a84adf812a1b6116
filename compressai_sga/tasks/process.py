# SPDX-License-Identifier: Apache-2.0
"""One task in another process: what is sent to the process, and what comes back.

`pack` turns a task's function and arguments into bytes. Functions and classes are named by their module. The
module of the running script is called `__main__`; it is named by its file instead, so that every process
imports the same module. `perform` calls the function and returns an `Outcome`: JSON values, or one line about
the error. An exception itself is never sent back, because it may not survive pickling.

`begin` prepares a new process on this machine: it sets the threads, ignores Ctrl-C (the parent handles it),
and ends the process when the parent is gone, even if the parent was killed.

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
        call: a function of the running script, or of a module that other processes can import.
        arguments: of the function; picklable and small: paths and names rather than images and models.
    """

    name: str
    of: Mapping[str, Any]
    call: Callable[..., dict[str, Any]]
    arguments: tuple[Any, ...] = ()


@dataclass(frozen=True)
class Outcome:
    """Result of a task: values, or one line about the error.

    Args:
        values: JSON, as it is read back from the results file.
        error: one line.
        seconds: of the call.
        machine: the machine that it ran on.
    """

    values: dict[str, Any] | None = None
    error: str = ""
    seconds: float = 0.0
    machine: dict[str, str] | None = None


def device() -> torch.device:
    """The device for the task in this process; a worker sees only its own GPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def attempt(call: Callable[..., dict[str, Any]], arguments: tuple[Any, ...]) -> Outcome:
    """Call the function and return its outcome; only KeyboardInterrupt is raised."""
    start = time.perf_counter()
    try:
        values = call(*arguments)
        seconds = time.perf_counter() - start
        if not isinstance(values, dict):
            raise TypeError(f"it returned {type(values).__name__}; a task must return a dictionary")
        outcome = Outcome(plain(values), "", seconds, machine())
    except (Exception, SystemExit) as error:
        outcome = failed(error)
    values = None
    if time.perf_counter() - start > COLLECT_SEC:
        gc.collect()  # Python counts objects, not bytes: a few cycles may hold many images
    return outcome


def failed(error: BaseException) -> Outcome:
    """The outcome of an exception: its type, its text, and the line of non-library code that raised it."""
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
    """Whether a source file belongs to Python or to a package that pip installed."""
    installed = {"site-packages", "dist-packages"}.intersection(Path(file).parts)
    return bool(installed) or file.startswith((sysconfig.get_path("stdlib"), "<"))


def _is_ours(file: str) -> bool:
    """Whether an error can be traced to this file: it is neither of a library nor of this folder."""
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
    """The name under which another process imports the function's module."""
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
    """The function and arguments of a task as bytes.

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
    """Call the function that was sent; every exception becomes an outcome."""
    try:
        call, arguments = pickle.loads(packed)
        return attempt(call, arguments)
    except BaseException as error:
        return failed(error)


# --- A process of this machine ------------------------------------------------------------------------


def begin(threads: int) -> None:
    """Prepare this process, which is a worker of a run."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    gc.freeze()  # collections pass over what was imported


def _end_with_parent() -> None:
    """End this process with its parent; else it would wait for tasks for ever after the parent was killed."""
    multiprocessing.connection.wait([multiprocessing.parent_process().sentinel])
    os._exit(1)
