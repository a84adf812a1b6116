# SPDX-License-Identifier: Apache-2.0
"""The files of a training run. Each is written whole, so that a killed run goes on from its last save.

In:  the folder of the run, what it has found. Out: OUT/log.jsonl, a line a check; OUT/run.json, the last
     check.
Fails with ``TrainingError`` where a file cannot be written.
"""

from __future__ import annotations

import ctypes
import json
import os
import platform
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

__all__ = ["TrainingError", "end_with_parent", "keep_check", "machine", "replace", "write_json"]


LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None
PR_SET_PDEATHSIG = 1


class TrainingError(Exception):
    """One sentence about what stopped a run, with the cure; its files are those of the last save."""


def replace(path: Path, write: Callable[[Path], object]) -> None:
    """Call `write(temporary path)` and move the file to `path`; a kill leaves the old or the new file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    try:
        write(temporary)
        temporary.replace(path)
    except (OSError, RuntimeError) as error:  # torch's writer raises the latter on a full disk
        temporary.unlink(missing_ok=True)
        raise TrainingError(
            f"{path} could not be written ({error}); make room and run the same command again: it goes "
            "on from the last save"
        ) from error


def write_json(path: Path, record: dict[str, Any]) -> None:
    """Write a record in place of the one before."""
    text = json.dumps(record, indent=2) + "\n"
    replace(path, lambda path: path.write_text(text, encoding="utf-8"))


def keep_check(out: Path, line: dict[str, Any], record: dict[str, Any]) -> None:
    """Append the result of a check to the log, and write it with the facts of the run."""
    with (out / "log.jsonl").open("a", encoding="utf-8") as log:
        log.write(json.dumps(line) + "\n")
    write_json(out / "run.json", record | line)


def end_with_parent() -> None:
    """In a training's process: ask for SIGINT, on which it saves itself, when the one that began it ends."""
    if LIBC is not None:
        LIBC.prctl(PR_SET_PDEATHSIG, int(signal.SIGINT))


def machine(device: torch.device) -> str:
    """What a run was trained on, in words."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{os.cpu_count()}-core {platform.machine()} CPU, {torch.get_num_threads()} thread(s)"
