# SPDX-License-Identifier: Apache-2.0
"""The state of a fit on disk, so that a killed one goes on where it was.

    keeper = Checkpoint(path, fit, seed)        # loads what is there, if it is of this fit
    fit.run(report=keeper)                      # saves every half a minute
    keeper.save()                               # the finished fit, before anything slow is done with it

The file holds everything that determines the fit (image, preset, lmbda, budget, seed, and on a CPU the
number of threads, which changes the order of sums); the file of another fit is refused, not overwritten. It
is replaced atomically, so it is complete at any time. A fit that goes on from it on the same kind of machine,
with the same torch, gives the same bytes as without the interruption, unless `max_seconds` cuts it. Where the
file cannot be written there is a warning, and the fit goes on.

In:  a path, a `Fit`. Out: a callable that saves from time to time.
Fails with ``ValueError`` on the file of another fit, or one that is not a checkpoint.
"""

from __future__ import annotations

import os
import pickle
import signal
import struct
import threading
import time
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from ....endings import brief
from .loop import Fit, Progress

__all__ = ["Checkpoint", "held_interrupt"]

EVERY_SEC = 30.0
"""Between two savings."""

_LOADING_ERRORS = (
    *(OSError, RuntimeError, EOFError, pickle.UnpicklingError, struct.error),
    *(LookupError, TypeError, ValueError, AttributeError, zipfile.BadZipFile, zlib.error),
)


class Checkpoint:
    """Saves a fit from time to time; see the file's head.

    Args:
        path: of the file.
        fit: not yet run; it is put where the file says.
        seed: of the fit.
        every_sec: time between two saves; EVERY_SEC by default.
    """

    def __init__(self, path: str | Path, fit: Fit, seed: int, every_sec: float | None = None) -> None:
        self.path, self.fit = Path(path), fit
        self.every_sec = EVERY_SEC if every_sec is None else every_sec
        device = fit.x.device.type
        if device == "cpu":
            device = f"cpu with OMP_NUM_THREADS={torch.get_num_threads()}"
        self.facts: dict[str, Any] = {
            "image": f"{zlib.crc32(fit.x.cpu().contiguous().numpy().tobytes()):08x}",
            "shape": str(tuple(fit.x.shape)),
            "preset": fit.preset.name,
            "lmbda": ", ".join(f"{value:g}" for value in fit.lmbda.tolist()),
            "steps": fit.steps,
            "max_seconds": fit.max_seconds,
            "seed": seed,
            "device": device,
            "start": ", ".join("cold" if d is None else f"default nets {d.number}" for d in fit.starts),
            "settings": repr(fit.preset),
        }
        self._saved = time.monotonic()
        if self.path.exists():
            self._load()

    def __call__(self, progress: Progress | None = None) -> None:
        """Saves if `every_sec` have passed."""
        if time.monotonic() - self._saved >= self.every_sec:
            self.save()

    def save(self) -> None:
        """Write the file now."""
        temporary = _temporary(self.path)
        try:
            torch.save({"facts": self.facts, "state": self.fit.state_dict()}, temporary)
            os.replace(temporary, self.path)
        except (OSError, RuntimeError) as error:  # torch's own writer raises the latter
            temporary.unlink(missing_ok=True)
            warnings.warn(
                f"{self.path} cannot be written ({brief(error)}): the fit goes on, but could not be resumed "
                "from here; make room, or choose another folder",
                stacklevel=2,
            )
        self._saved = time.monotonic()

    @staticmethod
    def remove(path: str | Path) -> None:
        """Deletes the file, and the temporary file of a process that was killed while saving."""
        for each in (Path(path), _temporary(Path(path))):
            each.unlink(missing_ok=True)

    def _load(self) -> None:
        try:
            with zipfile.ZipFile(self.path) as archive:  # which torch.load does not check
                if damaged := archive.testzip():
                    raise ValueError(f"its part {damaged} is damaged")
            found = torch.load(self.path, map_location=self.fit.x.device, weights_only=True)
            facts, state = dict(found["facts"]), found["state"]
        except _LOADING_ERRORS as error:
            raise ValueError(
                f"{self.path} is not a checkpoint of a fit ({brief(error)}): delete or move it"
            ) from None
        if facts != self.facts:
            raise ValueError(
                f"{self.path} is of another fit: {self._difference(facts)}; give the arguments of that fit, "
                "or delete it to start again"
            )
        try:
            self.fit.load_state_dict(state)
        except (LookupError, TypeError, AttributeError) as error:
            raise ValueError(
                f"{self.path} was written by another version ({brief(error)}): delete it to start again, or "
                "go on with that version"
            ) from None

    def _difference(self, facts: dict[str, Any]) -> str:
        """The differences between the file's fit and this one."""
        other = [name for name in self.facts if facts.get(name) != self.facts[name]]
        if "image" in other or "shape" in other:
            return "its image is not this one"
        told = [name for name in other if name != "settings"]
        if not told:
            return f"preset {self.facts['preset']} has other settings now"
        return ", ".join(f"{name} {facts.get(name)} there, {self.facts[name]} here" for name in told)


def _temporary(path: Path) -> Path:
    return path.with_name(path.name + ".part")


@contextmanager
def held_interrupt() -> Iterator[Callable[[], bool]]:
    """A context in which Ctrl-C only sets what the yielded function returns, so that no step is cut in two.

    A second Ctrl-C interrupts at once. Where Python's own handler is not in place, and outside the main
    thread, nothing is changed.
    """
    held = False

    def handler(*_: object) -> None:
        nonlocal held
        if held:
            raise KeyboardInterrupt
        held = True

    mine = threading.current_thread() is threading.main_thread()
    if not mine or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield lambda: False
        return
    signal.signal(signal.SIGINT, handler)
    try:
        yield lambda: held
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
