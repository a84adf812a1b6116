# SPDX-License-Identifier: Apache-2.0
"""The TOML file of a training queue: its keys, and the check of its content.

In:  text such as that of `queue.toml`:
         data = "photos"                # relative to this file; --data overrides it
         [[run]]
         name = "small"                 # of its folder runs/small and its state states/small.safetensors
         arch = "mbt2018-mean"          # of train.py; by default the name
         hours = 1.5                    # CPU hours
         options = { muon-lr = 5e-4 }   # other options of train.py, without dashes
         init_from = "first"            # an earlier run; this one starts from its weights
Out: a `Queue` of its runs, in their order.
Fails with `QueueError`, one sentence with value, rule and cure, at the first key, name, number or option that
does not follow these rules. Architectures and values of options are not checked here; train.py checks them.
Needs Python 3.11, or tomli.
"""

from __future__ import annotations

import math
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["Queue", "QueueError", "QueuedRun", "read_queue"]

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
KEYS = {"name", "arch", "hours", "options", "init_from"}
# What train.py is told by the queue itself, and --max-steps, as the budget is in hours.
OWN_OPTIONS = ("arch", "data", "out", "state", "max-minutes", "max-steps", "init-from")


class QueueError(Exception):
    """One sentence about what is wrong with a queue or its files, with the cure; no file was changed."""


@dataclass(frozen=True)
class QueuedRun:
    """One run: `options` are arguments of train.py, `init_from` the name of an earlier run."""

    name: str
    arch: str
    hours: float
    options: tuple[str, ...] = ()
    init_from: str | None = None

    @property
    def minutes(self) -> float:
        """The value of --max-minutes for train.py."""
        return round(60 * self.hours, 4)


@dataclass(frozen=True)
class Queue:
    data: Path | None
    runs: tuple[QueuedRun, ...]


def read_queue(path: Path) -> Queue:
    """The queue of a TOML file; `data` is taken relative to the file.

    Raises:
        QueueError: the file cannot be read, or breaks a rule at the head of this file.
    """
    try:
        import tomllib
    except ModuleNotFoundError:  # Python 3.10
        try:
            import tomli as tomllib
        except ModuleNotFoundError:
            version = ".".join(map(str, sys.version_info[:2]))
            raise QueueError(
                f"Python {version} cannot read TOML, 3.11 can; take it, or pip install tomli"
            ) from None
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise QueueError(
            f"{path} cannot be read as TOML ({error}); zoo/train/queue.toml is an example"
        ) from error
    _no_others(content, {"data", "run"}, str(path))
    data, rows = content.get("data"), content.get("run")
    if data is not None and not isinstance(data, str):
        raise QueueError(f"{path}: data must be the name of a folder in quotes, not {data!r}")
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
        raise QueueError(f"{path} has no runs; each is a table that begins with the line [[run]]")
    runs: list[QueuedRun] = []
    for row in rows:
        runs.append(_read_run(row, f"{path}, run {len(runs) + 1}", [run.name for run in runs]))
    return Queue(None if data is None else path.parent / data, tuple(runs))


def _no_others(content: dict[str, Any], known: set[str], where: str) -> None:
    for key in content:
        if key not in known:
            raise QueueError(f"{where}: key {key!r} is not known; use {', '.join(sorted(known))}")


def _read_run(row: dict[str, Any], where: str, earlier: list[str]) -> QueuedRun:
    _no_others(row, KEYS, where)
    name = row.get("name")
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise QueueError(
            f"{where}: name {name!r} must be a word of letters, digits, dots and dashes: files are called so"
        )
    if name in earlier:
        raise QueueError(f"{where}: name {name!r} is taken by an earlier run; give each its own")
    hours = row.get("hours")
    if type(hours) not in (int, float) or not 0 < hours < math.inf:
        raise QueueError(f"{where} ({name}): hours must be a positive number of CPU hours, not {hours!r}")
    arch = row.get("arch", name)
    if not isinstance(arch, str):
        raise QueueError(
            f"{where} ({name}): arch must be the name of an architecture in quotes, not {arch!r}"
        )
    init_from = row.get("init_from")
    if init_from is not None and init_from not in earlier:
        raise QueueError(
            f"{where} ({name}): init_from {init_from!r} must name an earlier run of the queue "
            f"({', '.join(earlier) or 'there is none'})"
        )
    options = row.get("options", {})
    if not isinstance(options, dict):
        raise QueueError(
            f"{where} ({name}): options must be a table such as {{ muon-lr = 5e-4 }}, not {options!r}"
        )
    words = []
    for key, value in options.items():
        if type(value) not in (str, int, float):
            raise QueueError(f"{where} ({name}): option {key} must have a number or a string, not {value!r}")
        if key in OWN_OPTIONS:
            raise QueueError(
                f"{where} ({name}): option {key!r} is not for the queue, which sets {', '.join(OWN_OPTIONS)} "
                "itself; use arch, hours and init_from of the run"
            )
        words += [f"-{key}" if len(key) == 1 else f"--{key}", str(value)]
    return QueuedRun(name, arch, hours, tuple(words), init_from)
