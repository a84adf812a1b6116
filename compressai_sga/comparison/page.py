# SPDX-License-Identifier: Apache-2.0
"""The report of a comparison as one HTML file: curves, tables, and a viewer that wipes between two pictures.

The file is complete: it opens from disk without a network, and its Content-Security-Policy forbids the
browser every request. Curves are drawn by plotly.js from the package plotly (4.8 MB of the file; left out if
there are no curves). Each picture is stored once as lossless WebP, with exactly the pixels of its PNG. The
page is `page.html`, its figures are `page_curves.py`, its viewer is `viewer.js`.

In:  a `Report` (`page_data`); its pictures are PNG with 8 bits a channel.
Out: the file; it appears only when it is complete.
Fails with ``SgaError`` without plotly, for columns of unequal length, for two pictures with the same image,
label and point, and for a picture with more than 8 bits a channel; with ``OSError`` if a picture cannot be
read.
"""

from __future__ import annotations

import base64
import html
import io
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from ..errors import SgaError
from . import page_curves
from .page_data import ORIGINAL, Curve, Picture, Report, Table

__all__ = ["write"]

HERE = Path(__file__).resolve().parent
MODES = ("RGB", "RGBA", "L", "LA", "P", "1")  # alpha is dropped, as it is before coding
LONG = 32  # letters of a cell beyond which its lines break
NUMBER = re.compile(
    r"([+\-−]?)(∞|inf|\d{1,3}(?:[,\u2009\u202f]\d{3})+(?:\.\d+)?|\d*\.?\d+(?:e[+\-]?\d+)?)"
    r"\s*(?:±.*|%|[a-zµ]{1,5}(?:/[a-zµ]{1,5})?)?",
    re.IGNORECASE,
)


def write(report: Report, path: Path) -> None:
    """Write the page.

    Raises:
        SgaError: see the head of the file.
    """
    for curve in report.curves:
        _check_curve(curve)
    for table in report.tables:
        _check_table(table)
    _check_places(report.pictures)
    plotly = _plotly() if report.curves else ""
    labels = [c.label for c in report.curves if not c.published]
    labels += [p.label for p in report.pictures if p.label != ORIGINAL]
    colours = page_curves.colours(labels)
    described = [_describe(picture, colours) for picture in report.pictures]
    data = {"figures": page_curves.figures(report.curves, colours), "pictures": described}
    slots = {
        "title": html.escape(report.title),
        "paragraphs": "\n".join(f"<p>{html.escape(text)}</p>" for text in report.paragraphs),
        "navigation": _navigation(report),
        "curves": page_curves.section(report.curves, colours, pictures=bool(report.pictures))
        if report.curves
        else "",
        "tables": _tables(report.tables),
        "failures": _failures(report.failures),
        # "<" cannot end the script element when it is written as a number
        "data": json.dumps(data, ensure_ascii=False, allow_nan=False).replace("<", "\\u003c"),
        "plotly": f"<script>{plotly}</script>" if plotly else "",
        "viewer": (HERE / "viewer.js").read_text(encoding="utf-8") if report.pictures else "",
        "pictures": _files(report.pictures),
    }
    page = (HERE / "page.html").read_text(encoding="utf-8")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    try:
        with temporary.open("w", encoding="utf-8", errors="replace") as file:
            for i, piece in enumerate(re.split(r"\{\{(\w+)\}\}", page)):
                # Pictures come one by one, so that memory holds one of them.
                file.writelines([piece] if i % 2 == 0 else slots[piece])
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _plotly() -> str:
    try:
        from plotly.offline import get_plotlyjs
    except ImportError as error:
        raise SgaError(
            f'the curves of the report need the package plotly ({error}); pip install "compressai-sga[eval]"'
        ) from error
    return get_plotlyjs()


def _check_curve(curve: Curve) -> None:
    columns = {"points": curve.points} if curve.points else {}
    for name, column in {**curve.values, **columns}.items():
        if len(column) != len(curve.bpp):
            raise SgaError(
                f"the curve {curve.label!r} has {len(column)} entries of {name} for {len(curve.bpp)} rates; "
                "give one for each rate, nan where it is unknown"
            )


def _check_table(table: Table) -> None:
    for row in table.rows:
        if len(row) != len(table.head):
            raise SgaError(
                f"a row of the table {table.caption!r} has {len(row)} cells under {len(table.head)} heads: "
                f"{list(row)}; give one cell for each head, empty where there is nothing to say"
            )


def _check_places(pictures: Sequence[Picture]) -> None:
    seen = set()
    for picture in pictures:
        place = (picture.image, picture.label, picture.point)
        if place in seen:
            raise SgaError(
                f"two pictures of {picture.image!r} are both {picture.label!r}, {picture.point!r}; the "
                "viewer shows one for each image, label and point: give them different points"
            )
        seen.add(place)


def _navigation(report: Report) -> str:
    parts = [("curves", report.curves), ("tables", report.tables), ("pictures", report.pictures)]
    names = [name for name, content in [*parts, ("failures", report.failures)] if content]
    links = "\n".join(f'<a href="#{name}">{name.capitalize()}</a>' for name in names)
    warning = ""
    if count := len(report.failures):
        text = "1 measurement failed" if count == 1 else f"{count} measurements failed"
        warning = f'<p class="warning">{text}: see <a href="#failures">the end of the page</a>.</p>'
    return f"{warning}<nav>{links}</nav>" if len(names) > 1 else warning


def _number(cell: str) -> float | None:
    """The number that a cell begins with, if only a unit or an error follows; else None."""
    found = NUMBER.fullmatch(cell.strip())
    if not found:
        return None
    digits = re.sub("[,\u2009\u202f]", "", found[2]).replace("∞", "inf")
    return float(("-" if found[1] in ("-", "−") else "") + digits)


def _tables(tables: Sequence[Table]) -> str:
    if not tables:
        return ""
    return '<section>\n<h2 id="tables">Tables</h2>\n' + "\n".join(map(_table, tables)) + "\n</section>"


def _table(table: Table) -> str:
    """HTML of a table; columns of numbers are aligned right, and cells carry their number for sorting."""
    numbers = [[_number(cell) for cell in row] for row in table.rows]
    right = []
    for i in range(len(table.head)):
        filled = sum(bool(row[i].strip()) for row in table.rows)
        right.append(2 * sum(row[i] is not None for row in numbers) >= max(1, filled))
    head = "".join(
        f'<th scope="col"{" class=number" * is_right}><button type="button">{html.escape(name)}</button></th>'
        for is_right, name in zip(right, table.head)
    )
    rows = []
    for row, values in zip(table.rows, numbers):
        cells = []
        for i, (cell, value) in enumerate(zip(row, values)):
            tag = "td" if i else 'th scope="row"'
            names = " ".join(["number"] * right[i] + ["long"] * (len(cell) > LONG))
            marks = f' class="{names}"' if names else ""
            if value is not None:
                marks += f' data-number="{str(value).replace("inf", "Infinity")}"'
            cells.append(f"<{tag}{marks}>{html.escape(cell)}</{tag[:2]}>")
        rows.append(f"<tr>{''.join(cells)}</tr>")
    caption = html.escape(table.caption)
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{caption}"><table>'
        f"<caption><span>{caption}</span></caption>\n"
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n" + "\n".join(rows) + "\n</tbody></table></div>"
    )


def _failures(failures: Mapping[str, str]) -> str:
    if not failures:
        return ""
    entries = "\n".join(
        f"<dt>{html.escape(name)}</dt><dd>{html.escape(text)}</dd>" for name, text in failures.items()
    )
    return f'<section>\n<h2 id="failures">Failures</h2>\n<dl class="failures">\n{entries}\n</dl>\n</section>'


def _describe(picture: Picture, colours: Mapping[str, tuple[str, str]]) -> dict[str, Any]:
    """The description of a picture, without its pixels, for the viewer."""
    with Image.open(picture.path) as image:
        if image.mode not in MODES:
            raise SgaError(
                f"{picture.path} has pixels of mode {image.mode}; the report takes 8 bits a channel "
                f"({', '.join(MODES)}): convert the picture before it is saved"
            )
        width, height = image.size
    facts = [] if picture.bpp is None else [f"{picture.bpp:.4f} bpp"]
    facts += [page_curves.text(key, value) for key, value in picture.values.items()]
    return {
        "image": picture.image,
        "label": picture.label,
        "point": picture.point,
        "bpp": None if picture.bpp is None else float(picture.bpp),
        "facts": facts,
        "width": width,
        "height": height,
        "colour": None if picture.label == ORIGINAL else colours[picture.label][0],
    }


def _files(pictures: Sequence[Picture]) -> Iterator[str]:
    """Each picture as a data URI in an element that the browser neither runs nor decodes."""
    for i, picture in enumerate(pictures):
        with Image.open(picture.path) as image:
            pixels = image.convert("RGB")
        pixels.info.clear()  # a colour profile would change one side of the viewer only
        kind, data = _lossless(pixels)
        uri = f"data:image/{kind};base64,{base64.b64encode(data).decode('ascii')}"
        yield f'<script type="text/plain" id="picture-{i}">{uri}</script>\n'


def _lossless(image: Image.Image) -> tuple[str, bytes]:
    """Lossless WebP, a fifth to a third smaller than PNG; PNG for sides above WebP's 16383 pixels."""
    file = io.BytesIO()
    if max(image.size) > 16383:
        image.save(file, "PNG")
        return "png", file.getvalue()
    image.save(file, "WEBP", lossless=True, quality=80, method=4)
    return "webp", file.getvalue()
