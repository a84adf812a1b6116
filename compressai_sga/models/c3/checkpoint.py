# SPDX-License-Identifier: Apache-2.0
"""The state of a fit on disk, so that a killed one goes on where it was.

    keeper = Checkpoint(path, fit, seed)     # loads what is there, if it is of this fit
    fit.run(report=keeper)                   # saves every half a minute

The file names the fit by everything that determines it (image, preset, lmbda, budget, seed); another
one's file is refused, not overwritten. It is replaced at once, so that it is whole at any time.

In:  a path, a `Fit`. Out: a callable for `Fit.run`.
Fails with ``ValueError`` on a file of another fit, or one that is no checkpoint.
"""

from __future__ import annotations

import os
import pickle
import time
import zlib
from pathlib import Path

import torch

from .fit import Fit, Progress

__all__ = ["Checkpoint"]


class Checkpoint:
    """Saves a fit now and then; see the file's head.

    Args:
        path: of the file.
        fit: not yet run; it is put where the file says.
        seed: of the fit.
        every_sec: between two savings.
    """

    def __init__(self, path: str | Path, fit: Fit, seed: int, every_sec: float = 30.0) -> None:
        self.path, self.fit, self.every_sec = Path(path), fit, every_sec
        image = zlib.crc32(fit.x.cpu().contiguous().numpy().tobytes())
        budget = (fit.steps, fit.max_seconds, seed)
        self.key = repr((image, tuple(fit.x.shape), fit.preset, fit.lmbda.tolist(), budget))
        self._saved = time.monotonic()
        if self.path.exists():
            self._load()

    def __call__(self, progress: Progress | None = None) -> None:
        if time.monotonic() - self._saved >= self.every_sec:
            self.save()

    def save(self) -> None:
        """Write the file now."""
        temporary = self.path.with_name(self.path.name + ".part")
        torch.save({"key": self.key, "state": self.fit.state_dict()}, temporary)
        os.replace(temporary, self.path)
        self._saved = time.monotonic()

    def remove(self) -> None:
        """Delete the file, when the fit is coded."""
        self.path.unlink(missing_ok=True)

    def _load(self) -> None:
        try:
            found = torch.load(self.path, map_location=self.fit.x.device, weights_only=True)
            key, state = found["key"], found["state"]
        except (OSError, RuntimeError, pickle.UnpicklingError, EOFError, KeyError, TypeError) as error:
            raise ValueError(f"{self.path} is no checkpoint of a fit ({error}): delete or move it") from None
        if key != self.key:
            raise ValueError(
                f"{self.path} is of another fit: {key[:200]}, this one is {self.key[:200]}; delete it, or "
                "fit with the arguments that it had"
            )
        self.fit.load_state_dict(state)
