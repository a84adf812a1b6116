# SPDX-License-Identifier: Apache-2.0
"""The rate-distortion figures of the HTML report: names of metrics, colours, traces for plotly.js, legend.

A label has one colour and one mark in all figures; published curves are grey and dotted. MS-SSIM is drawn as
-10 log10(1 - x) in dB. plotly.js reads tags in its texts, so texts for it are escaped once more than texts of
the page.

Part of `page.py`. In: its curves. Out: one figure for each metric that any curve has, as a dictionary
that plotly.js draws, and the HTML around them.
"""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from .page_data import Curve

__all__ = ["colours", "figures", "section", "text"]

# Okabe and Ito's colours without black and yellow; the mark differs wherever the colour comes again.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
GREYS = ("#868d94", "#a08f80", "#7c93a6", "#8d9c7e", "#9c86a0")
# plotly's name of a mark, and the same mark in a box of 34 x 14 for the key
MARKS = {
    "circle": "M13 7a4 4 0 1 0 8 0a4 4 0 1 0-8 0z",
    "square": "M13.5 3.5h7v7h-7z",
    "diamond": "M17 2l5 5l-5 5l-5-5z",
    "triangle-up": "M17 2.5l4.6 8h-9.2z",
    "triangle-down": "M17 11.5l4.6-8h-9.2z",
    "pentagon": "M17 2.4l4.6 3.4l-1.8 5.4h-5.6l-1.8-5.4z",
    "hexagram": "M17 2l1.5 2.5h2.9l-1.5 2.5l1.5 2.5h-2.9l-1.5 2.5l-1.5-2.5h-2.9l1.5-2.5l-1.5-2.5h2.9z",
}
# name, unit, what is better
METRICS = {
    "psnr-rgb": ("PSNR (RGB)", "dB", "higher is better"),
    "psnr-y": ("PSNR (luma)", "dB", "higher is better"),
    "psnr-yuv": ("PSNR (YUV)", "dB", "higher is better"),
    "ms-ssim-rgb": ("MS-SSIM (RGB)", "", "higher is better"),
    "ms-ssim-y": ("MS-SSIM (luma)", "", "higher is better"),
    "lpips": ("LPIPS", "", "lower is better"),
    "fid": ("FID", "", "lower is better"),
    "kid": ("KID", "", "lower is better"),
    "swd": ("Sliced Wasserstein distance", "", "lower is better"),
    "critic": ("Universal critic", "bits a pixel", "lower is better"),
}


def colours(labels: Iterable[str]) -> dict[str, tuple[str, str]]:
    """Colour and mark of each label, in order of first mention."""
    return {
        label: (COLOURS[i % len(COLOURS)], list(MARKS)[i % len(MARKS)])
        for i, label in enumerate(dict.fromkeys(labels))
    }


def text(metric: str, value: float) -> str:
    """A value as text for a caption."""
    name, unit, _ = _metric(metric)
    if _in_db(metric):
        words = f"{name} {_decibel(value):.2f} dB ({value:.5f})"
    else:
        words = f"{name} {value:.2f} dB" if unit == "dB" else f"{name} {value:.4g} {unit}".rstrip()
    return words.replace("inf dB", "∞ dB")


def figures(curves: Sequence[Curve], palette: Mapping[str, tuple[str, str]]) -> list[dict[str, Any]]:
    """One figure for each metric, in the form that plotly.js draws."""
    looks = _looks(curves, palette)
    result = []
    for metric in _metrics(curves):
        name, unit, _ = _metric(metric)
        unit = "dB" if _in_db(metric) else unit
        traces = [_trace(i, c, metric, *looks[i]) for i, c in enumerate(curves) if metric in c.values]
        ours = [t for t in traces if t["line"]["dash"] == "solid"] or traces
        axis = _plain(f"{name}, {unit}" if unit else name)
        result.append({"metric": metric, "axis": axis, "traces": traces, **_ranges(ours, traces)})
    return result


def section(curves: Sequence[Curve], palette: Mapping[str, tuple[str, str]], *, pictures: bool) -> str:
    """The HTML around the figures: legend, choice of axis, a frame for each figure, sources."""
    hint = '<span class="mouse">Drag in a figure to enlarge that part, double-click to go back.</span>'
    hint += " Click a point to see its picture." if pictures else ""
    looks = _looks(curves, palette)
    entries: dict[bool, list[str]] = {False: [], True: []}
    for i, curve in enumerate(curves):
        entries[curve.published].append(
            f'<label><input type="checkbox" checked autocomplete="off" data-curve="{i}">'
            f"{_key(*looks[i], published=curve.published)}<span>{html.escape(curve.label)}</span></label>"
        )
    key = "".join(
        f"<fieldset><legend>{name}</legend>{''.join(entries[published])}</fieldset>\n"
        for name, published in (("Measured here", False), ("Published", True))
        if entries[published]
    )
    sources: dict[str, list[str]] = {}
    for curve in curves:
        if curve.source:
            sources.setdefault(html.escape(curve.source), []).append(html.escape(curve.label))
    items = "".join(f"<li>{', '.join(labels)}: {source}</li>" for source, labels in sources.items())
    return f"""<section>
<h2 id="curves">Curves</h2>
{key}<fieldset class="axis"><legend>Rate axis</legend>
<label><input type="radio" name="axis" value="linear" checked autocomplete="off">linear</label>
<label><input type="radio" name="axis" value="log" autocomplete="off">logarithmic</label></fieldset>
<p class="hint">{hint}</p>
<div class="figures">
{"".join(_frame(metric) for metric in _metrics(curves))}</div>
{f'<ul class="sources">{items}</ul>' if items else ""}
</section>"""


def _frame(metric: str) -> str:
    name, _, better = (html.escape(word) for word in _metric(metric))
    return f"""<figure>
<figcaption><h3>{name} <span>{better}</span></h3><button type="button">Save as SVG</button></figcaption>
<div class="plot" role="img" aria-label="{name} against bits per pixel"></div>
</figure>
"""


def _looks(curves: Sequence[Curve], palette: Mapping[str, tuple[str, str]]) -> list[tuple[str, str]]:
    """Colour and mark of each curve."""
    published = [i for i, curve in enumerate(curves) if curve.published]
    greys = {
        i: (GREYS[n % len(GREYS)], list(MARKS)[n % len(MARKS)] + "-open") for n, i in enumerate(published)
    }
    return [greys.get(i) or palette[curve.label] for i, curve in enumerate(curves)]


def _metrics(curves: Sequence[Curve]) -> list[str]:
    """Metrics that any curve has, the known ones first."""
    found = dict.fromkeys(key for curve in curves for key in curve.values)
    return [key for key in METRICS if key in found] + [key for key in found if key not in METRICS]


def _metric(key: str) -> tuple[str, str, str]:
    return METRICS.get(key, (key, "", ""))


def _in_db(key: str) -> bool:
    """Whether values of 0 to 1 are shown in dB."""
    return key.startswith("ms-ssim")


def _decibel(value: float) -> float:
    return math.inf if value >= 1 else -10 * math.log10(1 - value)


def _drawn(value: float | None) -> float | None:
    """A number for JSON; None leaves a gap in the curve."""
    return round(float(value), 6) if value is not None and math.isfinite(value) else None


def _height(metric: str, value: float | None) -> float | None:
    """A value in the unit of the figure."""
    return _drawn(_decibel(value) if _in_db(metric) and value is not None else value)


def _trace(index: int, curve: Curve, metric: str, colour: str, mark: str) -> dict[str, Any]:
    heights = [_height(metric, value) for value in curve.values[metric]]
    points = list(curve.points) or [""] * len(curve.bpp)
    texts = []
    for point, bpp, value, height in zip(points, curve.bpp, curve.values[metric], heights, strict=True):
        lines = [f"<b>{_plain(curve.label)}</b>{' (published)' if curve.published else ''}", _plain(point)]
        lines += [f"{bpp:.4f} bits per pixel", _plain(text(metric, value)) if height is not None else ""]
        texts.append("<br>".join(line for line in lines if line))
    width = 1.6 if curve.published else 2.2
    return {
        "type": "scatter",
        "mode": "lines+markers",
        "name": _plain(curve.label) + (" (published)" if curve.published else ""),
        "legendgroup": str(index),
        "meta": curve.label,
        "customdata": points,
        "x": [_drawn(bpp) for bpp in curve.bpp],
        "y": heights,
        "text": texts,
        "hovertemplate": "%{text}<extra></extra>",
        "line": {"color": colour, "width": width, "dash": "dot" if curve.published else "solid"},
        "marker": {"color": colour, "symbol": mark, "size": 6 if curve.published else 8},
    }


def _ranges(ours: Sequence[dict[str, Any]], traces: Sequence[dict[str, Any]]) -> dict[str, list[float]]:
    """The initial range of the figure: the rates that were measured here, and all values at these rates."""
    rates = [x for t in ours for x in t["x"] if x is not None and x > 0] or [0.1, 1.0]
    low, high = min(rates), max(rates)
    values = [
        y for t in traces for x, y in zip(t["x"], t["y"], strict=True)
        if y is not None and x is not None and (t in ours or low <= x <= high)
    ] or [0.0, 1.0]  # fmt: skip
    margin = 0.05 * (max(values) - min(values)) or 1.0
    return {"rates": [low, high], "range": [min(values) - margin, max(values) + margin]}


def _plain(words: str) -> str:
    """Text for plotly, with its tags escaped."""
    return html.escape(words, quote=False)


def _key(colour: str, mark: str, *, published: bool) -> str:
    """Line and mark of a curve for the legend."""
    fill = "none" if published else colour
    dash = ' stroke-dasharray="2 3"' if published else ""
    return (
        f'<svg class="key" viewBox="0 0 34 14" aria-hidden="true" stroke="{colour}" stroke-width="1.8">'
        f'<path d="M1 7h32"{dash}/><path d="{MARKS[mark.removesuffix("-open")]}" fill="{fill}"/></svg>'
    )
