# SPDX-License-Identifier: Apache-2.0
"""What long work reports on stderr while it runs: `Progress` of an evaluation, and `Meter` of anything else.

`Progress` is one bar, and the trace file. The bar counts refinement steps over all images of a run. It shows
the image's name and number, the number of images, the loss and the time left. The trace has a JSON line for
every step whose loss is known: {"model", "image", "step", "loss"}, with loss = bpp + lmbda * distortion.

`Meter` is a bar on a terminal; elsewhere, in pipes and logs, it is a line a minute.

In:  the number of images, steps an image, an open text file for the trace or None; of a meter, a total.
Out: stderr and the trace file; stdout is left to the results. Fails with OSError where the trace file
     cannot be written.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO

from tqdm import tqdm

__all__ = ["Meter", "Progress"]

EVERY_SEC = 60.0
"""Time between two lines of a meter where there is no terminal."""


class Meter:
    """A bar on a terminal, else a line a minute.

    Args:
        title: what is done.
        total: when it is done, in units.
        unit: one of what is counted, "step"; None for shares of 1, which are shown as per cent.
        done: of it, before the start.
        show: True shows the bar in pipes and logs too, False shows nothing.
    """

    def __init__(
        self,
        title: str,
        total: float,
        unit: str | None = "step",
        done: float = 0,
        show: bool | None = None,
    ) -> None:
        self._title, self._total, self._unit, self._done = title, total, unit, done
        self._shown = time.monotonic()
        self._lines = show is None and not sys.stderr.isatty()
        shares = {"bar_format": "{desc}: {percentage:3.0f}%|{bar}| [{elapsed}<{remaining}]"}
        self._bar = tqdm(
            desc=title,
            total=total,
            initial=done,
            disable=show is False or self._lines,
            leave=False,
            dynamic_ncols=True,
            file=sys.stderr,
            **({"unit": unit} if unit else shares),
        )

    def at(self, done: float, note: str = "") -> None:
        """So much is done; `note` is shown beside it."""
        self._done = min(done, self._total)
        if note:
            self._bar.set_postfix_str(note, refresh=False)
        self._bar.update(self._done - self._bar.n)
        if self._lines and time.monotonic() - self._shown >= EVERY_SEC:
            self._shown = time.monotonic()
            self.write(", ".join(part for part in (f"{self._title}: {self._count()}", note) if part))

    def write(self, text: str) -> None:
        """A line of its own on stderr, above the bar."""
        tqdm.write(text, file=sys.stderr)
        sys.stderr.flush()

    def close(self) -> None:
        """Takes the bar away, which has shown the last of it."""
        if not self._bar.disable:
            self._bar.refresh()
        self._bar.close()

    def __enter__(self) -> Meter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _count(self) -> str:
        if self._unit is None:
            return f"{self._done / self._total:.0%}"
        return f"{self._unit} {self._done:g} of {self._total:g}"


class Progress:
    """Progress bar and trace of one run (one model over all images)."""

    def __init__(self, model: str, images: int, steps: int, trace: TextIO | None) -> None:
        self._model = model
        self._images = images
        self._steps = max(1, steps)
        self._trace = trace
        self._image = ""
        self._number = 0
        self.losses: list[tuple[int, float]] = []
        self._bar = tqdm(
            total=images * self._steps,
            unit="step",
            dynamic_ncols=True,
            mininterval=0.2 if sys.stderr.isatty() else 10.0,
            file=sys.stderr,
        )

    def start(self, image: str) -> None:
        """The next image begins."""
        self._image = image
        self._number += 1
        self.losses = []
        self._bar.set_description(f"{image} ({self._number} of {self._images})")

    def step(self, step: int, steps: int, loss: float | None) -> None:
        """A refinement step of the current image is done: the `on_step` of `refine`."""
        if self._bar.n < self._number * self._steps:
            self._bar.update(1)
        if loss is not None:
            self._bar.set_postfix(loss=f"{loss:.4f}", refresh=False)
            if self._trace is not None:
                self.losses.append((step, float(loss)))
                self._line(step, float(loss))

    def done(self) -> None:
        """The current image is finished, whatever number of steps it took."""
        self._bar.update(self._number * self._steps - self._bar.n)
        if self._trace is not None:
            with self._named():
                self._trace.flush()

    def known(self, losses: list[tuple[int, float]]) -> None:
        """The current image was finished by an earlier, interrupted command."""
        steps = self._number * self._steps - self._bar.n
        self._bar.initial += steps  # so that the time left is judged by real work only
        self._bar.n += steps
        self._bar.refresh()
        for step, loss in losses:
            self._line(step, loss)

    def close(self) -> None:
        """End the bar's line."""
        self._bar.close()

    def _line(self, step: int, loss: float) -> None:
        if self._trace is not None:
            entry: dict[str, Any] = {"model": self._model, "image": self._image}
            with self._named():
                self._trace.write(json.dumps({**entry, "step": step, "loss": loss}) + "\n")

    @contextmanager
    def _named(self) -> Iterator[None]:
        """Errors of writing get the name of the trace file."""
        try:
            yield
        except OSError as error:
            raise OSError(error.errno, error.strerror, self._trace.name) from error
