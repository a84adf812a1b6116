# SPDX-License-Identifier: Apache-2.0
"""The results file of an experiment that is measured piece by piece and goes on where it stopped.

Used by the scripts here that measure for long. A file is

    {"machine": {...}, "cells": {"NAME": {"of": {settings}, "seconds": s, "values": {...}}, ...}}

A cell is measured once: when a cell of that name and of the same settings is in the file, its values
are returned, else it is measured and the whole file is written again (under a temporary name first).
"""

from __future__ import annotations

import json
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

__all__ = ["Record", "machine", "mean_error"]


class Record:
    """Cells of one results file, read when made and written after every new cell."""

    def __init__(self, path: Path):
        self.path = path
        old = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        self.cells: dict[str, dict[str, Any]] = old.get("cells", {})
        self.machine: dict[str, str] = old.get("machine", {})

    def cell(self, name: str, settings: dict[str, Any], measure: Callable[[], dict[str, Any]]) -> dict:
        """Values of the cell `name`, from the file when it has them for these settings."""
        of = json.loads(json.dumps(settings))  # as the file gives it back: tuples are lists
        if self.cells.get(name, {}).get("of") != of:
            tqdm.write(f"{self.path.stem}: {name}", file=sys.stderr)
            start = time.perf_counter()
            values = measure()
            seconds = round(time.perf_counter() - start, 2)
            self.cells[name] = {"of": of, "seconds": seconds, "values": _rounded(values)}
            self.machine = machine()
            self.write()
        return self.cells[name]["values"]

    def write(self) -> None:
        """Write all cells, so that a killed process leaves the old file or the new one."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_suffix(".tmp")
        content = {"machine": self.machine, "cells": self.cells}
        temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        temporary.replace(self.path)


def machine() -> dict[str, str]:
    """What the numbers were measured on."""
    cpu = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        names = [s.split(":")[1].strip() for s in cpuinfo.read_text().split("\n") if "model name" in s]
        cpu = names[0] if names else cpu
    return {
        "cpu": cpu,
        "threads": str(torch.get_num_threads()),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
    }


def mean_error(values: np.ndarray) -> dict[str, float]:
    """Mean of the values and its standard error."""
    values = np.asarray(values, dtype=np.float64)
    return {"mean": float(values.mean()), "error": float(values.std(ddof=1) / len(values) ** 0.5)}


def _rounded(value: Any) -> Any:
    """The same with six significant digits, which keeps the files readable."""
    if isinstance(value, dict):
        return {str(k): _rounded(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(v) for v in value]
    if isinstance(value, float | np.floating):
        return float(f"{value:.6g}")
    return value.item() if isinstance(value, np.generic) else value
