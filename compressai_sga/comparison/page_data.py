# SPDX-License-Identifier: Apache-2.0
"""The content of a comparison's page as plain data: curves, tables, pictures, failures.

In and out: rates in bits a pixel; values by the names of CompressAI's result files ("psnr-rgb" in dB,
"ms-ssim-rgb" in 0 to 1); pictures by their paths. All texts are shown as plain text. Nothing is checked here;
`page.write` checks its input.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

__all__ = ["ORIGINAL", "Curve", "Picture", "Report", "Table"]

ORIGINAL = "original"


@dataclass(frozen=True)
class Curve:
    """The points of one codec.

    Args:
        label: name; equal labels have one colour throughout.
        bpp: bits a pixel of each point.
        values: by metric, one value for each point.
        published: whether it was published elsewhere, not measured here; drawn dotted and grey.
        source: of a published curve.
        points: name of each point, such as "quality 3".
    """

    label: str
    bpp: Sequence[float]
    values: Mapping[str, Sequence[float]]
    published: bool = False
    source: str = ""
    points: Sequence[str] = ()


@dataclass(frozen=True)
class Table:
    """Cells of plain text; the page finds out which are numbers."""

    caption: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Picture:
    """One decoded picture.

    Args:
        image: name of the image that was coded.
        label: codec, as in its `Curve`; "original" for the image itself.
        point: as in `Curve.points`; empty for the original.
        path: PNG, 8 bits a channel.
        bpp: bits a pixel of its file; None for the original.
        values: by metric.
    """

    image: str
    label: str
    point: str
    path: Path
    bpp: float | None
    values: Mapping[str, float]


@dataclass(frozen=True)
class Report:
    """Everything that the page shows; `failures` has the reason for each measurement that failed, by name."""

    title: str
    paragraphs: Sequence[str]
    curves: Sequence[Curve]
    tables: Sequence[Table]
    pictures: Sequence[Picture]
    failures: Mapping[str, str]
