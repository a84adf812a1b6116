# SPDX-License-Identifier: Apache-2.0
"""Which results files a figure was drawn from (by sha256), and on which machine they were measured.

    save_figure(fig, path, sources)     # PNG with a text chunk that names the sources
    drawn_from(path) == digest(sources) # whether the figure was drawn from exactly these files

The bytes of a PNG depend on the version of matplotlib. So figures are not compared by their bytes, but by the
files that they were drawn from. A figure is saved at its own resolution.

In:  figures of matplotlib (the extra `[eval]`); paths. Out: PNG files; strings.
Fails with ``FileNotFoundError`` where a source is missing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
from PIL import Image

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402

__all__ = ["digest", "drawn_from", "measured_on", "plt", "save_figure"]

CHUNK = "Results"


def digest(sources: Sequence[Path]) -> str:
    """Names and sha256 of results files, in the order of their names."""
    paths = sorted(sources, key=lambda path: path.name)
    return ", ".join(f"{path.name} {hashlib.sha256(path.read_bytes()).hexdigest()}" for path in paths)


def save_figure(fig: Figure, path: Path, sources: Sequence[Path]) -> None:
    """Write a figure together with the names of its sources, whole or not at all, and close it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    fig.savefig(temporary, format="png", metadata={CHUNK: digest(sources)})
    temporary.replace(path)
    plt.close(fig)


def drawn_from(path: Path) -> str:
    """The sources that a figure names; empty if it names none."""
    with Image.open(path) as image:
        return str(image.info.get(CHUNK, ""))


def measured_on(machine: Mapping[str, str]) -> str:
    """The machine of a results file (`records.machine`) in words."""
    threads = "one thread" if machine["threads"] == "1" else f"{machine['threads']} threads"
    return f"{machine['cpu']}, {threads}, torch {machine['torch'].split('+')[0]}"
