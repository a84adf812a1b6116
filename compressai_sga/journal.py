# SPDX-License-Identifier: Apache-2.0
"""The journal of a running evaluation: a finished image is never computed twice.

There is one file of JSON lines (`json_lines`) for each model. The first line describes the run. Every
finished image adds one line. An evaluation that was killed leaves the file. Its name is a fingerprint of
everything that the results depend on (weights included), so that the same command finds the file again
and goes on.

In:  the folder (the output directory, else the user's cache), the facts that make the fingerprint,
     for each image its path (keyed with size and time of change) and a record in JSON.
Out: the records of finished images. Damaged lines, and lines about an image that has changed, are ignored.
Fails with OSError where the folder cannot be written.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .json_lines import JsonLines

__all__ = ["Journal", "cache_folder", "weights_sha256"]


def cache_folder() -> Path:
    """The folder of the journals when the command names no output directory."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "compressai-sga"


def weights_sha256(model: nn.Module) -> str:
    """sha256 of the state dict: names, types, shapes and bytes, coding tables included."""
    digest = hashlib.sha256()
    for name, value in model.state_dict().items():
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        flat = value.detach().cpu().contiguous().reshape(-1)
        digest.update(memoryview(flat.view(torch.uint8).numpy()))
    return digest.hexdigest()


class Journal:
    """Records of finished images, on disk.

    Args:
        folder: created if it is missing.
        facts: everything that the results depend on, JSON; any other value gives another journal.
    """

    def __init__(self, folder: Path, facts: dict[str, Any]) -> None:
        text = json.dumps(facts, sort_keys=True)
        name = hashlib.sha256(text.encode()).hexdigest()[:16]
        folder.mkdir(parents=True, exist_ok=True)
        self._lines = JsonLines(folder / f"compressai-sga-{name}.jsonl")
        self.path = self._lines.path
        self._records: dict[tuple[Any, ...], dict[str, Any]] = {}
        for entry in self._lines.read():
            with contextlib.suppress(KeyError, TypeError, ValueError):  # the first line, or a damaged one
                self._records[entry["image"], entry["size"], entry["mtime_ns"]] = dict(entry["record"])
        self._new = not self.path.is_file()
        if self._new:
            self._append({"run": facts})
        self._lines.open()  # a file that cannot be written fails before the first image

    def _append(self, entry: dict[str, Any]) -> None:
        try:
            self._lines.append(entry)
        except OSError:
            with contextlib.suppress(OSError):
                self.close()
            raise

    def __len__(self) -> int:
        """How many images are finished."""
        return len(self._records)

    @staticmethod
    def _key(image: Path) -> tuple[str, int, int]:
        stat = image.stat()
        return str(image.resolve()), stat.st_size, stat.st_mtime_ns

    def find(self, image: Path) -> dict[str, Any] | None:
        """The record of a finished image; None if it is not done or has changed since."""
        try:
            return self._records.get(self._key(image))
        except OSError:
            return None

    def add(self, image: Path, record: dict[str, Any]) -> None:
        """Append the record of an image; it is on disk when this returns."""
        key = self._key(image)
        self._append(dict(zip(("image", "size", "mtime_ns"), key, strict=True), record=record))
        self._records[key] = record

    def close(self) -> None:
        """Close the file; it stays on disk if it holds a finished image."""
        try:
            self._lines.close()
        finally:
            if not self._records and self._new:
                self._lines.remove()

    def remove(self) -> None:
        """Delete the file: the run is complete."""
        self._lines.remove()
