# SPDX-License-Identifier: Apache-2.0
"""Shared functions of the reports: cells of results files, Markdown tables, figures without a display.

    values = part(read_cells(results, "c3"), "crops")
    print(markdown("crop of | bytes", [[name, f"{v['bytes']}"] for name, v in values.items()]))
    fig, axes = plt.subplots()
    save_beside(fig, "c3", record.path)     # eval/figures/c3.png of eval/results/c3.json

The format of a results file is in `compressai_sga.tasks.records`. Every figure names the files that it was
drawn from (`compressai_sga.tasks.provenance`).

In:  cells; rows. Out: Markdown; PNG files.
Fails with ``FileNotFoundError`` if nothing was measured.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from compressai_sga.tasks.provenance import plt, save_figure

__all__ = [
    "EVAL",
    "Cells",
    "Figure",
    "cells_of",
    "image_grid",
    "markdown",
    "part",
    "plt",
    "read_cells",
    "save_beside",
]

EVAL = Path(__file__).resolve().parent
Cells = Mapping[str, dict[str, Any]]
Row = str | Sequence[str]


def read_cells(results: Path, name: str) -> Cells:
    """The cells of NAME.json in the folder of results."""
    return json.loads((results / f"{name}.json").read_text(encoding="utf-8"))["cells"]


def cells_of(cells: Cells, name: str) -> dict[str, dict[str, Any]]:
    """The cells whose names start with this word, by the rest of their names."""
    return {k.removeprefix(f"{name} "): cell for k, cell in cells.items() if k.startswith(f"{name} ")}


def part(cells: Cells, name: str) -> dict[str, dict[str, Any]]:
    """The values of the cells of `cells_of`, with their settings under "of"."""
    return {k: cell["values"] | {"of": cell["of"]} for k, cell in cells_of(cells, name).items()}


def markdown(head: Row, rows: Iterable[Row]) -> str:
    """A table.

    Args:
        head, rows: cells, or a text with " | " between the cells.
    """
    head, *lines = (f"| {row if isinstance(row, str) else ' | '.join(row)} |" for row in (head, *rows))
    return "\n".join([head, "|---" * (head.count("|") - 1) + "|", *lines])


def save_beside(fig: Figure, name: str, *sources: Path) -> None:
    """Save a figure as NAME.png in `figures`, the folder beside that of its results files."""
    save_figure(fig, sources[0].parent.parent / "figures" / f"{name}.png", sources)


def image_grid(
    rows: Sequence[Sequence[tuple[str, np.ndarray]]], *, size: tuple[float, float], fontsize: float
) -> Figure:
    """Images side by side, pixel by pixel.

    Args:
        rows: title and pixels (H, W, 3) of each image; no row is longer than the first.
        size: width and height of one image in inches.
        fontsize: of the titles.
    """
    columns = len(rows[0])
    fig, places = plt.subplots(
        len(rows),
        columns,
        figsize=(size[0] * columns, size[1] * len(rows)),
        layout="constrained",
        squeeze=False,
        dpi=100,
    )
    for axes in places.flat:
        axes.set_axis_off()
    for line, row in zip(places, rows, strict=True):
        for axes, (title, image) in zip(line, row, strict=False):
            axes.imshow(image, interpolation="nearest")
            axes.set_title(title, fontsize=fontsize)
    return fig
