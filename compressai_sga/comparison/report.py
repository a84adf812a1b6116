# SPDX-License-Identifier: Apache-2.0
"""The files of a comparison: CompressAI's JSON, a Markdown table with BD-rates, figures, an HTML report.

The numbers are those of `means`. `tables` and `figure` are functions of a results file alone.

In:  results, {"machine": ..., "cells": ...}; published curves. Out: Markdown, files.
Fails with ``SgaError`` if there is no curve of the anchor's name.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from ..tasks.provenance import measured_on, plt, save_figure
from . import classical, page
from .entries import Entry
from .means import COLUMNS, QUALITIES, MeanCurve, Means, Wanted, bd_table, means, points_table
from .page_data import Curve, Picture, Report, Table
from .published import Published

__all__ = ["Means", "bd_table", "figure", "means", "tables", "write"]


def _markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    return "\n".join(lines + [f"| {' | '.join(row)} |" for row in rows])


def tables(results: Mapping[str, Any], anchor: str | None = None, published: Published | None = None) -> str:
    """The Markdown of a results file."""
    return _text(means(results["cells"], published), results["machine"], anchor)


def _text(found: Means, machine: Mapping[str, str], anchor: str | None) -> str:
    parts = [_said(found, machine)]
    shown_tables, notes = _tables(found, anchor)
    parts += [_markdown(table.head, table.rows) for table in shown_tables]
    return "\n\n".join([*parts, *(["\n".join(f"* {note}" for note in notes)] if notes else [])])


def _tables(found: Means, anchor: str | None) -> tuple[list[Table], list[str]]:
    """The tables, with notes on missing values."""
    result = [Table("Means over the images", *points_table(found))]
    notes = [f"left out: {what}: {why}" for what, why in found.left_out.items()]
    if len(found.curves) > 1:
        label = anchor or found.curves[0].label
        head, rows, reasons = bd_table(found, label)
        result.append(Table(f"BD-rate against {label}, pchip", head, rows))
        notes += reasons
    return result, notes


def _said(found: Means, machine: Mapping[str, str]) -> str:
    published = any(curve.published for curve in found.curves)
    return (
        f"Means over {found.images} images; real bytes; PSNR and MS-SSIM of RGB in 8 bits, means of the "
        "images' values. Seconds by the clock, and memory above what was in use before, on "
        f"{measured_on(machine) if machine else 'no machine'}. Encoder and decoder: thousands of "
        "multiplications a pixel in convolutions and matrix products."
        + (" Published curves are of the images that their sources name." if published else "")
    )


def figure(found: Means, metric: str) -> Figure:
    """Curves of one metric over bits a pixel: ours solid with marks, published ones dotted."""
    fig, axes = plt.subplots(figsize=(7.5, 5.5), layout="constrained")
    ours = [curve for curve in found.curves if not curve.published and metric in curve.values]
    theirs = [curve for curve in found.curves if curve.published and metric in curve.values]
    right = min(2, 1.05 * max(max(curve.values["bpp"]) for curve in ours))
    seen: list[float] = []
    for curve in ours + theirs:
        pairs = zip(curve.values["bpp"], curve.values[metric], strict=True)
        points = sorted((bpp, value) for bpp, value in pairs if math.isfinite(value))
        if metric.startswith("ms-ssim"):
            points = [(bpp, -10 * math.log10(1 - value)) for bpp, value in points if value < 1]
        style: dict[str, Any] = {"marker": "o", "ms": 4}
        if curve.published:
            gap = 1 + 1.5 * theirs.index(curve)
            style = {"ls": (0, (1, gap)), "lw": 1.4, "color": "black"}
        axes.plot(*zip(*points), **style, label=curve.label)
        seen += [value for bpp, value in points if bpp <= right]
    seen = seen or [0.0, 1.0]
    margin = 0.05 * (max(seen) - min(seen))
    name = COLUMNS[metric][0] + (", dB" if metric.startswith("ms-ssim") else "")
    axes.set(xlabel="bits per pixel", ylabel=f"{name}, mean of {found.images} images")
    axes.set(xlim=(0, right), ylim=(min(seen) - margin, max(seen) + margin))
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    return fig


def write(
    out: Path,
    results: Mapping[str, Any],
    *,
    entries: Sequence[Entry],
    wanted: Wanted,
    published: Published,
    anchor: str | None,
    title: str,
    pictures: Sequence[Picture],
    failures: Mapping[str, str],
) -> str:
    """Write everything that belongs to a results file.

    Args:
        out: the folder; it holds results.json.
        results: the part of that file that belongs to this comparison.
        entries: the compared entries.
        wanted: as in `means`.
        published: published curves for the same tables and figures.
        anchor: label of the curve that BD-rates are relative to; None: the first.
        title: of the report.
        pictures: for the viewer of the report.
        failures: by name, for the end of the report.

    Returns:
        The tables as Markdown.
    """
    machine = results["machine"]
    found = means(results["cells"], published, wanted)
    by_label = {entry.label: entry for entry in entries}
    ours = [curve for curve in found.curves if not curve.published]
    for stale in (out / "curves").glob("*.json"):
        stale.unlink()
    for curve in ours:
        entry = by_label[curve.label]
        value = {
            "name": curve.label,
            "description": _description(entry),
            "results": curve.results,
            "points": list(curve.points),
            "images": found.images,
        }
        _write(out / "curves" / f"{entry.slug}.json", json.dumps(value, indent=1) + "\n")
    text = _text(found, machine, anchor)
    _write(out / "table.md", text + "\n")
    for metric in QUALITIES:
        if any(metric in curve.values for curve in ours):
            save_figure(figure(found, metric), out / f"rd-{metric}.png", [out / "results.json"])
    shown_tables, notes = _tables(found, anchor)
    shown = Report(
        title=title,
        paragraphs=[_said(found, machine), *notes],
        curves=[
            _drawn(c, c.description if c.published else _description(by_label[c.label])) for c in found.curves
        ],
        tables=shown_tables,
        pictures=pictures,
        failures=failures,
    )
    page.write(shown, out / "report.html")
    return text


def _drawn(curve: MeanCurve, source: str) -> Curve:
    """A curve of the page."""
    values = {metric: curve.values[metric] for metric in QUALITIES if metric in curve.values}
    return Curve(curve.label, curve.values["bpp"], values, curve.published, source, curve.points)


def _description(entry: Entry) -> str:
    if entry.is_classical:
        return classical.make(entry.name, dict(entry.options)).description
    return f"Inference ({entry.option('coder', 'ans')}), real bitstreams"


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)
