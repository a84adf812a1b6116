# SPDX-License-Identifier: Apache-2.0
"""The results file of an experiment that is measured piece by piece and can be resumed.

A file is

    {"machine": {...}, "cells": {"NAME": {"of": {settings}, "seconds": s, "values": {...}}, ...}}

A cell is measured once. If the file has a cell of that name with the same settings, its values are returned.
Otherwise the cell is measured and the whole file is written again (under a temporary name first).

Runs of many cells (`tasks`) append each cell to a journal beside the file, NAME.jsonl. The journal is read
together with the file and becomes part of it when the run ends. A line that a kill has cut off counts as not
measured (`json_lines`). A cell that was measured on another machine than the rest of the file has its own
"machine".

Only one process at a time may add to a file. It holds the lock NAME.lock, which the system releases when the
process dies. Another process is refused with ``SgaError``.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout
from tqdm import tqdm

from ..errors import SgaError
from ..json_lines import JsonLines

__all__ = ["Record", "machine", "mean_error", "plain"]


class Record:
    """Cells of one results file and of its journal, read at construction."""

    def __init__(self, path: Path):
        self.path = path
        self.cells: dict[str, dict[str, Any]] = {}
        self.machine: dict[str, str] = {}
        self._journal = JsonLines(path.with_suffix(".jsonl"))
        self._lock = FileLock(path.with_suffix(".lock"), timeout=0)
        self._read()

    def cell(self, name: str, settings: Mapping[str, Any], measure: Callable[[], dict[str, Any]]) -> dict:
        """Values of the cell `name`: from the file if it has them for these settings, else measured now."""
        values = self.known(name, settings)
        if values is None:
            with self.alone():
                tqdm.write(f"{self.path.stem}: {name}", file=sys.stderr)
                start = time.perf_counter()
                measured = measure()
                values = self._set(name, settings, time.perf_counter() - start, measured)
                self.write()
        return values

    def known(self, name: str, settings: Mapping[str, Any]) -> dict[str, Any] | None:
        """Values of the cell `name` if they were measured with these settings."""
        cell = self.cells.get(name, {})
        return cell["values"] if cell.get("of") == plain(dict(settings), digits=None) else None

    def keep(
        self,
        name: str,
        settings: Mapping[str, Any],
        seconds: float,
        values: dict[str, Any],
        measured_on: Mapping[str, str] | None = None,
    ) -> None:
        """Append a measured cell to the journal; it is on disk when this returns.

        Args:
            name: of the cell.
            settings: of the measurement.
            seconds: that it took.
            values: JSON.
            measured_on: result of `machine` where it was measured; None: on this machine.
        """
        with self.alone():
            self._set(name, settings, seconds, values)
            if measured_on not in (None, self.machine):
                self.cells[name]["machine"] = dict(measured_on)
            self._journal.append({"name": name, "cell": self.cells[name], "machine": self.machine})

    def sort(self, names: Sequence[str]) -> None:
        """Put the cells with these names into this order; the others stay where they are."""
        here = [name for name in names if name in self.cells]
        moving, ordered = set(here), iter(here)
        self.cells = {
            name: self.cells[name]
            for name in (next(ordered) if name in moving else name for name in list(self.cells))
        }

    def write(self) -> None:
        """Write all cells, so that a killed process leaves the old file or the new one."""
        with self.alone():
            temporary = self.path.with_suffix(".tmp")
            content = {"machine": self.machine, "cells": self.cells}
            with temporary.open("w", encoding="utf-8") as file:
                file.write(json.dumps(content, indent=1) + "\n")
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(self.path)
            self._journal.remove()
            self._seen = self._stamps()

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Keep other processes off the file, and read what they have added since.

        Raises:
            SgaError: another process is writing the file.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._lock.acquire()
        except Timeout:
            raise SgaError(
                f"another run is writing {self.path}; wait until it ends, or give this one another file"
            ) from None
        outermost = self._lock.lock_counter == 1
        try:
            if outermost and self._stamps() != self._seen:
                self._read()
            yield
        finally:
            if outermost:
                self._journal.close()
                if os.name == "posix":  # elsewhere an open file cannot be removed, and filelock does it
                    Path(self._lock.lock_file).unlink(missing_ok=True)
            self._lock.release()

    def _set(self, name: str, settings: Mapping[str, Any], seconds: float, values: dict[str, Any]) -> dict:
        self._now_on(machine())
        self.cells[name] = {
            "of": plain(dict(settings), digits=None),
            "seconds": round(seconds, 2),
            "values": plain(values),
        }
        return self.cells[name]["values"]

    def _now_on(self, machine: dict[str, str]) -> None:
        """The machine of the next cells; those of another one keep that as their own."""
        if self.machine not in ({}, machine):
            for cell in self.cells.values():
                if cell.setdefault("machine", self.machine) == machine:
                    del cell["machine"]
        self.machine = machine

    def _read(self) -> None:
        self._seen = self._stamps()
        old = json.loads(self.path.read_text(encoding="utf-8")) if self.path.is_file() else {}
        self.cells, self.machine = old.get("cells", {}), old.get("machine", {})
        for entry in self._journal.read():
            self._now_on(entry["machine"])
            self.cells[entry["name"]] = entry["cell"]

    def _stamps(self) -> list[tuple[int, int] | None]:
        """Stamps of the file and of its journal, which change when another process writes."""
        files = [path.stat() if path.is_file() else None for path in (self.path, self._journal.path)]
        return [(file.st_mtime_ns, file.st_size) if file else None for file in files]


def machine() -> dict[str, str]:
    """The machine that numbers are measured on."""
    return {
        "cpu": _cpu(),
        "threads": str(torch.get_num_threads()),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
    }


@functools.cache
def _cpu() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        names = [s.split(":")[1].strip() for s in cpuinfo.read_text().split("\n") if "model name" in s]
        if names:
            return names[0]
    return platform.processor() or platform.machine()


def mean_error(values: np.ndarray) -> dict[str, float]:
    """Mean of the values and its standard error."""
    values = np.asarray(values, dtype=np.float64)
    return {"mean": float(values.mean()), "error": float(values.std(ddof=1) / len(values) ** 0.5)}


def plain(value: Any, digits: int | None = 6) -> Any:
    """The value as it is read back from the file: lists for tuples, Python's numbers, few digits.

    NaN and infinity stay what they are, in the file as Python writes them.

    Args:
        value: of dictionaries, lists, strings and numbers.
        digits: significant digits of floats; None: all.

    Raises:
        TypeError: for what JSON does not hold.
    """
    return json.loads(json.dumps(_rounded(value, digits)))


def _rounded(value: Any, digits: int | None) -> Any:
    if isinstance(value, dict):
        return {str(k): _rounded(v, digits) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(v, digits) for v in value]
    if isinstance(value, float | np.floating) and digits is not None:
        return float(f"{value:.{digits}g}")
    return value.item() if isinstance(value, np.generic) else value
