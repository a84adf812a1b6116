# SPDX-License-Identifier: Apache-2.0
"""What a comparison writes: CompressAI's JSON, a Markdown table with BD-rates, figures, the report in HTML.

Means are over the images that every entry coded at every point; an entry of which more than half failed is
left out first. BD-rates (`compressai_sga.metrics.bd_rate`, pchip) come with the interval that they are about;
where there is none, the reason stands below the table.

In:  a record of `compare`'s cells. Out: files in the comparison's folder, and the Markdown as text.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import classical
import compare_html
import matplotlib
import trials  # noqa: F401 -- what the values mean
from entries import Entry
from records import Record

from compressai_sga.errors import SgaError
from compressai_sga.metrics import METRICS, SET_METRICS, bd_rate

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

if TYPE_CHECKING:
    from compare import Comparison

__all__ = ["Curve", "bd_table", "curves", "figure", "points_table", "shown", "write"]

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


@dataclass
class Means:
    """The curves, the images that they are over, and what was left out."""

    curves: list[Curve]
    images: list[Path]
    left_out: dict[str, str] = field(default_factory=dict)


def shown(point: str) -> str:
    """A point's name: itself, or that of its checkpoint."""
    return Path(point).stem if "/" in point or point.endswith((".pth", ".tar", ".pt")) else point


def curves(comparison: Comparison, record: Record) -> Means:
    """Means over the images that all have."""
    values = {
        (entry, point, image): record.cells.get(comparison.cell(entry, point, image), {}).get("values")
        for entry in comparison.entries
        for point in entry.points
        for image in comparison.images
    }
    left_out: dict[str, str] = {}
    kept: list[Entry] = []
    for entry in comparison.entries:
        there = [found is not None for (e, *_), found in values.items() if e is entry]
        if sum(there) * 2 <= len(there):
            left_out[entry.label] = f"failed on {len(there) - sum(there)} of {len(there)} codings"
        else:
            kept.append(entry)
    images = []
    for image in comparison.images:
        missing = [e.label for e in kept for p in e.points if values[e, p, image] is None]
        if missing:
            left_out[str(image)] = f"failed with {', '.join(dict.fromkeys(missing))}"
        else:
            images.append(image)
    found = []
    if images:
        for entry in kept:
            rows = [_row(record, comparison, entry, point, images) for point in entry.points]
            keys = [key for key in COLUMNS if all(key in row for row in rows)]
            found.append(
                Curve(
                    entry.label,
                    tuple(shown(point) for point in entry.points),
                    {key: [row[key] for row in rows] for key in keys},
                    _description(entry),
                )
            )
    published = [
        Curve(name, (), codec["results"], codec["source"], published=True)
        for name, codec in comparison.published.items()
    ]
    return Means(found + published, images, left_out)


def _row(
    record: Record, comparison: Comparison, entry: Entry, point: str, images: Sequence[Path]
) -> dict[str, float]:
    """Means of a point, and what was measured once for it."""
    cells = [record.cells[comparison.cell(entry, point, image)]["values"] for image in images]
    means = {
        key: math.fsum(cell[key] for cell in cells) / len(cells)
        for key in cells[0]
        if all(key in cell for cell in cells)
    }
    for what in ("macs", "set"):
        once = record.cells.get(f"{entry.label} {shown(point)}: {what}", {})
        means |= once.get("values", {})
    return means


def _description(entry: Entry) -> str:
    if entry.is_classical:
        return classical.make(entry.name, dict(entry.options)).description
    return f"Inference ({entry.option('coder', 'ans')}), real bitstreams"


def points_table(means: Means) -> tuple[list[str], list[list[str]]]:
    """Head and rows of the table of means: a row a point."""
    ours = [curve for curve in means.curves if not curve.published]
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


def bd_table(means: Means, anchor: str) -> tuple[list[str], list[list[str]], list[str]]:
    """Head, rows and footnotes of the BD-rates against the curve of that label."""
    by_label = {curve.label: curve for curve in means.curves}
    if anchor not in by_label:
        raise SgaError(f"--anchor: there is no curve {anchor!r}; there are {', '.join(by_label)}")
    base = by_label[anchor]
    keys = [key for key in QUALITIES if key in base.values]
    head = ["against " + anchor, *(f"BD-rate by {COLUMNS[key][0].split(',')[0]}" for key in keys)]
    rows, notes = [], []
    for curve in means.curves:
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


def figure(means: Means, metric: str, path: Path) -> None:
    """Curves of one metric over bits a pixel: ours solid with marks, published ones dotted."""
    fig, axes = plt.subplots(figsize=(7.5, 5.5), layout="constrained")
    ours = [curve for curve in means.curves if not curve.published and metric in curve.values]
    for curve in means.curves:
        if metric not in curve.values:
            continue
        pairs = sorted(zip(curve.values["bpp"], curve.values[metric], strict=True))
        x, y = zip(*pairs, strict=True)
        if metric.startswith("ms-ssim"):
            y = [-10 * math.log10(1 - value) for value in y]
        axes.plot(
            x,
            y,
            **({"ls": ":", "lw": 1.2} if curve.published else {"marker": "o", "ms": 4}),
            label=curve.label,
        )
    name = COLUMNS[metric][0] + (", dB" if metric.startswith("ms-ssim") else "")
    highest = max((max(curve.values["bpp"]) for curve in ours), default=1)
    axes.set(
        xlabel="bits per pixel",
        ylabel=f"{name}, mean of {len(means.images)} images",
        xlim=(0, min(2, 1.05 * highest)),
    )
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    path.parent.mkdir(parents=True, exist_ok=True)
    fig.savefig(path, dpi=120)
    plt.close(fig)


def write(
    comparison: Comparison, record: Record, failures: Mapping[str, str], args: argparse.Namespace
) -> str:
    """Everything that the head of `compare` lists, but for the results; the tables as Markdown."""
    means = curves(comparison, record)
    out: Path = comparison.out
    out.mkdir(parents=True, exist_ok=True)
    anchor = args.anchor or next((curve.label for curve in means.curves), "")
    for entry, curve in [(e, c) for e in comparison.entries for c in means.curves if c.label == e.label]:
        value = {
            "name": entry.label,
            "description": curve.description,
            "results": curve.results,
            "points": list(curve.points),
            "images": len(means.images),
        }
        _write(out / f"{entry.slug}.json", json.dumps(value, indent=1) + "\n")
    head, rows = points_table(means)
    tables = [compare_html.Table("Means over the images", head, rows)]
    notes = [f"left out: {what}: {why}" for what, why in means.left_out.items()]
    if len(means.curves) > 1:
        head, rows, reasons = bd_table(means, anchor)
        tables.append(compare_html.Table(f"BD-rate against {anchor}, pchip", head, rows))
        notes += reasons
    said = _said(means, record)
    text = "\n\n".join(
        [
            said,
            *(f"{_markdown(table.head, table.rows)}" for table in tables),
            *(f"* {note}" for note in notes),
        ]
    )
    _write(out / "table.md", text + "\n")
    measured = [m for m in QUALITIES if any(m in c.values for c in means.curves if not c.published)]
    for metric in measured:
        figure(means, metric, out / f"rd-{metric}.png")
    report = compare_html.Report(
        title=args.title,
        paragraphs=[said, *notes],
        curves=[
            compare_html.Curve(
                c.label,
                c.values["bpp"],
                {m: c.values[m] for m in QUALITIES if m in c.values},
                c.published,
                c.description,
                c.points,
            )
            for c in means.curves
        ],
        tables=tables,
        pictures=pictures(comparison, record, args.picture_bpp, args.pictures),
        failures=failures,
    )
    compare_html.write(report, out / "report.html")
    return text


def _said(means: Means, record: Record) -> str:
    cpu, threads, torch = (record.machine.get(key, "?") for key in ("cpu", "threads", "torch"))
    where = f"{cpu}, {threads} torch threads a process, torch {torch}"
    return (
        f"Means over {len(means.images)} images; real bytes; PSNR and MS-SSIM of RGB in 8 bits, means of the "
        f"images' values. Seconds by the clock, and memory above what was in use before: of {where}. "
        "Encoder and decoder: thousands of multiplications a pixel in convolutions and matrix products."
    )


def pictures(
    comparison: Comparison, record: Record, rates: Sequence[float], count: int
) -> list[compare_html.Picture]:
    """Originals, and of every entry the decoded picture nearest to each rate."""
    found = []
    for image in comparison.images[:count]:
        name = str(image.relative_to(comparison.folder))
        found.append(compare_html.Picture(name, "original", "", image, None, {}))
        for entry in comparison.entries:
            cells = {
                point: record.cells[comparison.cell(entry, point, image)]["values"]
                for point in entry.points
                if comparison.cell(entry, point, image) in record.cells
            }
            nearest = {min(cells, key=lambda p: abs(cells[p]["bpp"] - rate)) for rate in rates if cells}
            for point in [p for p in entry.points if p in nearest]:
                values = {key: cells[point][key] for key in QUALITIES if key in cells[point]}
                path = comparison.picture(entry, point, image)
                found.append(
                    compare_html.Picture(name, entry.label, shown(point), path, cells[point]["bpp"], values)
                )
    return found


def _write(path: Path, text: str) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)
