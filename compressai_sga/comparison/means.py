# SPDX-License-Identifier: Apache-2.0
"""Means of a comparison over its images, as tables: one row for each point, and BD-rates against one curve.

Means are over the images that every entry coded at every point. A point that failed on half of the images or
more is left out first. BD-rates (`compressai_sga.metrics.bd_rate`, pchip) are given with their interval;
where no BD-rate can be computed, the reason is given instead.

In:  the cells of a results file ({name: {"of": {...}, "values": {...}}}); published curves. Out: `Means`;
     heads and rows of text.
Fails with ``SgaError`` if there is no curve of the anchor's name.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..errors import SgaError
from ..metrics import METRICS, SET_METRICS, bd_rate
from .published import Published

__all__ = ["COLUMNS", "QUALITIES", "MeanCurve", "Means", "Wanted", "bd_table", "means", "points_table"]

Wanted = Sequence[tuple[str, str, str]]  # label, point and image

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
class MeanCurve:
    """The mean points of an entry or of a published codec.

    Args:
        label: of the entry, or the codec's name in the file of published points.
        points: names of the points.
        values: by metric, one value for each point.
        description: how it was coded, or where it was published.
        published: whether it is a published curve.
    """

    label: str
    points: tuple[str, ...]
    values: Mapping[str, Sequence[float]]
    description: str = ""
    published: bool = False

    @property
    def results(self) -> dict[str, list[float]]:
        """The points in the form that `bd_rate` takes."""
        return {key: list(column) for key, column in self.values.items()}


@dataclass(frozen=True)
class Means:
    """The curves, the number of images of each mean, and what was left out and why."""

    curves: list[MeanCurve]
    images: int
    left_out: dict[str, str] = field(default_factory=dict)


def means(
    cells: Mapping[str, Any], published: Published | None = None, wanted: Wanted | None = None
) -> Means:
    """Means over the images that all entries have.

    Args:
        cells: of a results file; the cells of single images have "image" in their settings.
        published: published curves for the same tables.
        wanted: labels, points and images that must be there; None: all combinations of those in the cells.
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
        curves.append(MeanCurve(label, tuple(names), columns))
    for name, codec in (published or {}).items():
        curves.append(MeanCurve(name, (), codec["results"], codec["source"], published=True))
    return Means(curves, len(images), left_out)


def _mean(cells: Sequence[Mapping[str, float]]) -> dict[str, float]:
    common = [key for key in cells[0] if key in COLUMNS and all(key in cell for cell in cells)]
    return {key: math.fsum(cell[key] for cell in cells) / len(cells) for key in common}


def points_table(found: Means) -> tuple[list[str], list[list[str]]]:
    """Head and rows of the table of means, one row for each point."""
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
