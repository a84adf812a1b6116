# SPDX-License-Identifier: Apache-2.0
"""What a comparison writes: CompressAI's JSON, a Markdown table with BD-rates, figures, the report in HTML.

Means are over the images that every entry coded at every point; a point of which half or more failed is left
out first. BD-rates (`compressai_sga.metrics.bd_rate`, pchip) come with the interval that they are about;
where there is none, the reason stands below the table. `means`, `tables` and `figure` are functions of a
results file of `compare` alone.

In:  results, {"machine": ..., "cells": ...}; published curves. Out: Markdown, files.
Fails with ``SgaError`` for an anchor that is not there.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib

from compressai_sga.comparison import classical
from compressai_sga.comparison import page as compare_html

from ..errors import SgaError
from ..metrics import METRICS, SET_METRICS, bd_rate
from ..tasks.provenance import measured_on, save_figure
from .entries import Entry
from .published import Published

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402

if TYPE_CHECKING:
    from .plan import Comparison

__all__ = ["Curve", "Means", "bd_table", "figure", "means", "points_table", "tables", "write"]

Wanted = Sequence[tuple[str, str, str]]

QUALITIES = ("psnr-rgb", "ms-ssim-rgb", *METRICS, *SET_METRICS)
COLUMNS = {
    "bpp": ("bpp", ".4f"),
    "psnr-rgb": ("PSNR, dB", ".2f"),
    "ms-ssim-rgb": ("MS-SSIM", ".4f"),
    **{name: (name, ".4g") for name in (*METRICS, *SET_METRICS)},
    "encoding_time": ("encoding, s", ".3g"),
    "decoding_time": ("decoding, s", ".3g"),
    "cpu_sec": ("both, CPU s", ".3g"),
    "peak_memory_mb": ("memory, MB", ".0f"),
    "peak_gpu_memory_mb": ("GPU memory, MB", ".0f"),
    "encoder_kmacs_px": ("encoder, kMAC/px", ".4g"),
    "decoder_kmacs_px": ("decoder, kMAC/px", ".4g"),
}


@dataclass(frozen=True)
class Curve:
    """Means of an entry, or published ones.

    Args:
        label: of the entry, or the codec's name in the file of published points.
        points: their names.
        values: by metric, one a point.
        description: how it was coded, or where it was published.
        published: which of the two.
    """

    label: str
    points: tuple[str, ...]
    values: Mapping[str, Sequence[float]]
    description: str = ""
    published: bool = False

    @property
    def results(self) -> dict[str, list[float]]:
        """As `bd_rate` takes it."""
        return {key: list(column) for key, column in self.values.items()}


@dataclass(frozen=True)
class Means:
    """The curves, how many images they are means of, and what was left out and why."""

    curves: list[Curve]
    images: int
    left_out: dict[str, str] = field(default_factory=dict)


def means(
    cells: Mapping[str, Any], published: Published | None = None, wanted: Wanted | None = None
) -> Means:
    """Means over the images that all have.

    Args:
        cells: of a results file; what was measured of an image has "image" in its settings.
        published: curves to go with them.
        wanted: labels, points and images that must be there; None: all that are in the cells, combined.
    """
    values, once, small = {}, {}, 0
    for cell in cells.values():
        of = cell["of"]
        if "image" in of:
            small += "ms-ssim-rgb" not in cell["values"]
            values[of["entry"], of["point"], of["image"]] = cell["values"]
        else:
            once.setdefault((of["entry"], of["point"]), {}).update(cell["values"])
    points = list(dict.fromkeys(key[:2] for key in (values if wanted is None else wanted)))
    images = list(dict.fromkeys(key[2] for key in (values if wanted is None else wanted)))
    left_out: dict[str, str] = {}
    for label, point in list(points):
        failed = sum((label, point, image) not in values for image in images)
        if 2 * failed >= len(images):
            left_out[f"{label}, {point}"] = f"failed on {failed} of {len(images)} images"
            points.remove((label, point))
    for image in list(images):
        missing = [label for label, point in points if (label, point, image) not in values]
        if missing:
            left_out[image] = f"failed with {', '.join(dict.fromkeys(missing))}"
            images.remove(image)
    if small:
        left_out["MS-SSIM"] = "some images have sides of 160 pixels or less"
    curves = []
    for label in dict.fromkeys(label for label, _ in points if images):
        names = [point for each, point in points if each == label]
        rows = [
            _mean([values[label, point, image] for image in images]) | once.get((label, point), {})
            for point in names
        ]
        keys = [key for key in COLUMNS if all(key in row for row in rows)]
        columns = {key: [row[key] for row in rows] for key in keys}
        curves.append(Curve(label, tuple(names), columns))
    for name, codec in (published or {}).items():
        curves.append(Curve(name, (), codec["results"], codec["source"], published=True))
    return Means(curves, len(images), left_out)


def _mean(cells: Sequence[Mapping[str, float]]) -> dict[str, float]:
    common = [key for key in cells[0] if key in COLUMNS and all(key in cell for cell in cells)]
    return {key: math.fsum(cell[key] for cell in cells) / len(cells) for key in common}


def points_table(found: Means) -> tuple[list[str], list[list[str]]]:
    """Head and rows of the table of means: a row a point."""
    ours = [curve for curve in found.curves if not curve.published]
    keys = [key for key in COLUMNS if any(key in curve.values for curve in ours)]
    head = ["entry", "point", *(COLUMNS[key][0] for key in keys)]
    rows = []
    for curve in ours:
        for index, point in enumerate(curve.points):
            cells = [
                format(curve.values[key][index], COLUMNS[key][1]) if key in curve.values else ""
                for key in keys
            ]
            rows.append([curve.label, point, *cells])
    return head, rows


def bd_table(found: Means, anchor: str) -> tuple[list[str], list[list[str]], list[str]]:
    """Head, rows and footnotes of the BD-rates against the curve of that label."""
    by_label = {curve.label: curve for curve in found.curves}
    if anchor not in by_label:
        raise SgaError(f"--anchor: there is no curve {anchor!r}; there are {', '.join(by_label)}")
    base = by_label[anchor]
    keys = [key for key in QUALITIES if key in base.values]
    head = ["against " + anchor, *(f"BD-rate by {COLUMNS[key][0].split(',')[0]}" for key in keys)]
    rows, notes = [], []
    for curve in found.curves:
        if curve is base:
            continue
        cells = []
        for key in keys:
            if key not in curve.values:
                cells.append("")
                continue
            try:
                delta = bd_rate(base.results, curve.results, metric=key)
            except SgaError as error:
                cells.append("-")
                notes.append(f"{curve.label}, {key}: {error}")
            else:
                cells.append(
                    f"{delta.value:+.1f} % ({delta.low:.4g} to {delta.high:.4g} {delta.over}, "
                    f"{100 * delta.overlap:.0f} % of both)"
                )
        rows.append([curve.label, *cells])
    return head, rows, notes


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


def _tables(found: Means, anchor: str | None) -> tuple[list[compare_html.Table], list[str]]:
    """The tables, and notes on what is missing in them."""
    result = [compare_html.Table("Means over the images", *points_table(found))]
    notes = [f"left out: {what}: {why}" for what, why in found.left_out.items()]
    if len(found.curves) > 1:
        label = anchor or found.curves[0].label
        head, rows, reasons = bd_table(found, label)
        result.append(compare_html.Table(f"BD-rate against {label}, pchip", head, rows))
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
    margin = 0.05 * (max(seen) - min(seen))
    name = COLUMNS[metric][0] + (", dB" if metric.startswith("ms-ssim") else "")
    axes.set(xlabel="bits per pixel", ylabel=f"{name}, mean of {found.images} images")
    axes.set(xlim=(0, right), ylim=(min(seen) - margin, max(seen) + margin))
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    return fig


def write(
    comparison: Comparison,
    results: Mapping[str, Any],
    failures: Mapping[str, str],
    args: argparse.Namespace,
) -> str:
    """Everything that the head of `compare` lists, but for the results; the tables as Markdown."""
    machine = results["machine"]
    found = means(results["cells"], comparison.published, comparison.wanted)
    out: Path = comparison.out
    for stale in (out / "curves").glob("*.json"):
        stale.unlink()
    by_label = {entry.label: entry for entry in comparison.entries}
    for curve in found.curves:
        if curve.published:
            continue
        value = {
            "name": curve.label,
            "description": _description(by_label[curve.label]),
            "results": curve.results,
            "points": list(curve.points),
            "images": found.images,
        }
        _write(out / "curves" / f"{by_label[curve.label].slug}.json", json.dumps(value, indent=1) + "\n")
    text = _text(found, machine, args.anchor)
    _write(out / "table.md", text + "\n")
    for metric in QUALITIES:
        if any(metric in curve.values for curve in found.curves if not curve.published):
            save_figure(figure(found, metric), out / f"rd-{metric}.png", [out / "results.json"])
    shown_tables, notes = _tables(found, args.anchor)
    report = compare_html.Report(
        title=args.title,
        paragraphs=[_said(found, machine), *notes],
        curves=[
            compare_html.Curve(
                c.label,
                c.values["bpp"],
                {m: c.values[m] for m in QUALITIES if m in c.values},
                c.published,
                c.description if c.published else _description(by_label[c.label]),
                c.points,
            )
            for c in found.curves
        ],
        tables=shown_tables,
        pictures=pictures(comparison, results["cells"], args.picture_bpp, args.pictures),
        failures=failures,
    )
    compare_html.write(report, out / "report.html")
    return text


def _description(entry: Entry) -> str:
    if entry.is_classical:
        return classical.make(entry.name, dict(entry.options)).description
    return f"Inference ({entry.option('coder', 'ans')}), real bitstreams"


def pictures(
    comparison: Comparison, cells: Mapping[str, Any], rates: Sequence[float], count: int
) -> list[compare_html.Picture]:
    """Originals, and of every entry the decoded picture nearest to each rate."""
    found = []
    for image in comparison.images[:count]:
        name, coded = comparison.name(image), []
        for entry in comparison.entries:
            names = {point: comparison.cell(entry, point, image) for point in entry.points}
            there = {point: cells[cell]["values"] for point, cell in names.items() if cell in cells}
            nearest = {min(there, key=lambda p: abs(there[p]["bpp"] - rate)) for rate in rates if there}
            for point in [p for p in entry.points if p in nearest]:
                values = {key: there[point][key] for key in QUALITIES if key in there[point]}
                path = comparison.picture(entry, point, image)
                coded.append(
                    compare_html.Picture(name, entry.label, point, path, there[point]["bpp"], values)
                )
        if coded:
            original = comparison.original(image)
            found += [compare_html.Picture(name, "original", "", original, None, {}), *coded]
    return found


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)
