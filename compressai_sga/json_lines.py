# SPDX-License-Identifier: Apache-2.0
"""A file of JSON lines that survives a kill: an entry is on disk when it has been appended.

A process that is killed while it writes leaves a torn last line. Reading ignores every line that is not a
JSON object, and the next entry starts a line of its own.

In:  a path, entries in JSON. Out: the entries, in the order of the file.
Fails with OSError where the file cannot be read or written.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

__all__ = ["JsonLines"]


class JsonLines:
    """Entries of the file `path`, which the first of them makes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: BinaryIO | None = None

    def read(self) -> Iterator[dict[str, Any]]:
        """The entries; none where there is no file."""
        for line in self.path.read_bytes().split(b"\n") if self.path.is_file() else ():
            with contextlib.suppress(ValueError):
                entry = json.loads(line)
                if isinstance(entry, dict):
                    yield entry

    def open(self) -> BinaryIO:
        """The file for appending, at the start of a line."""
        if self._file is None:
            self._file = self.path.open("ab+")
            if self._file.tell():
                self._file.seek(-1, os.SEEK_END)
                if self._file.read(1) != b"\n":
                    self._file.write(b"\n")
        return self._file

    def append(self, entry: Mapping[str, Any]) -> None:
        """Add an entry; it is on disk when this returns."""
        file = self.open()
        try:
            file.write(json.dumps(entry).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        except OSError:
            with contextlib.suppress(OSError):  # which tries to write the rest again
                self.close()
            raise

    def close(self) -> None:
        """Close the file; the next entry opens it again."""
        if self._file is not None:
            file, self._file = self._file, None
            file.close()

    def remove(self) -> None:
        """Close the file and delete it."""
        self.close()
        self.path.unlink(missing_ok=True)
