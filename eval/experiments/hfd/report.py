# SPDX-License-Identifier: Apache-2.0
"""Tables and figures of eval/experiments/hfd/measure.py, made from the cells of its results file.

In:  cells; for the crops the originals and the reconstructions, (1, 3, H, W) in [0, 1].
Out: Markdown; two figures. Parts that were not measured yet are left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from reporting import Cells, Figure, image_grid, markdown, part, plt

__all__ = ["CROPS", "crops", "figure", "headline", "point", "qualities", "tables"]

NAMES = {
    "first": "first stage",
    "0.5": "HFD, realism 0.5",
    "0.8": "HFD, realism 0.8",
    "1.0": "HFD, realism 1",
}
STYLES = {"first": "ko-", "0.5": "C0s-", "0.8": "C1D-", "1.0": "C3^-"}
# Where to cut: row and column of the corner of a square of SIDE px.
CROPS = {"kodim01": (200, 120), "kodim13": (280, 300), "kodim23": (90, 160)}
SIDE = 192


def qualities(cells: Cells) -> list[int]:
    return sorted(int(name.split()[1]) for name in cells if name.startswith("set "))


def of_images(cells: Cells, quality: int) -> list[dict[str, Any]]:
    """Values of the images that the set of a quality is made of."""
    images = cells[f"set {quality}"]["of"]["images"]
    return [cells[f"image {quality} {image}"]["values"] for image in images]


def point(cells: Cells, quality: int, label: str) -> dict[str, Any]:
    """Means over the images, and the numbers of their set."""
    values, of_set = of_images(cells, quality), cells[f"set {quality}"]["values"][label]
    return {
        "bpp": np.mean([v["bpp"] for v in values]),
        "psnr_db": np.mean([v["psnr_db"][label] for v in values]),
        "colour": np.mean([np.abs(v["colour_levels"][label]).max() for v in values]),
        "swd_mean": np.mean(of_set["swd"]),
        "swd_each_mean": np.mean(of_set["swd_each"]),
        **of_set,
    }


def headline(cells: Cells) -> str:
    """What a draw gains and costs at the lowest rate."""
    first, drawn = (point(cells, 1, label) for label in ("first", "1.0"))
    return (
        f"same bytes at quality 1: sliced Wasserstein distance "
        f"{100 * (drawn['swd_mean'] / first['swd_mean'] - 1):+.0f} %, PSNR "
        f"{drawn['psnr_db'] - first['psnr_db']:+.2f} dB"
    )


# --- Tables ------------------------------------------------------------------------------------------


def tables(cells: Cells) -> str:
    parts = [quality_table(cells), level_table(cells)] if qualities(cells) else []
    if samplers(cells):
        parts.append(sampler_table(cells))
    return "\n\n".join(parts) or "nothing is measured yet"


def _change(ours: float, other: float) -> str:
    return "" if ours == other else f" ({100 * (ours / other - 1):+.0f} %)"


def _other(value: float | str) -> str:
    return "-" if isinstance(value, str) else f"{value:.3f}"


def quality_table(cells: Cells) -> str:
    head = (
        "quality | decoder | bpp | PSNR, dB | SWD | SWD, each normalised alone | LPIPS | FID | colour shift, "
        "levels of 255 | CPU s an image"
    )
    rows = []
    for quality in qualities(cells):
        first = point(cells, quality, "first")
        seconds = {
            key: np.mean([v[f"{key}_cpu_seconds"] for v in of_images(cells, quality)])
            for key in ("first_stage", "draw")
        }
        for label, name in NAMES.items():
            p = point(cells, quality, label)
            drop = p["psnr_db"] - first["psnr_db"]
            rows.append(
                [
                    str(quality),
                    name,
                    f"{p['bpp']:.4f}",
                    f"{p['psnr_db']:.2f}" + (f" ({drop:+.2f})" if label != "first" else ""),
                    f"{p['swd_mean']:.1f}" + _change(p["swd_mean"], first["swd_mean"]),
                    f"{p['swd_each_mean']:.1f}" + _change(p["swd_each_mean"], first["swd_each_mean"]),
                    _other(p["lpips"]),
                    _other(p["fid"]),
                    f"{p['colour']:.2f}",
                    f"{seconds['first_stage' if label == 'first' else 'draw']:.1f}",
                ]
            )
    of = cells[f"set {qualities(cells)[0]}"]["of"]
    counts = " or ".join(sorted({str(len(cells[f"set {q}"]["of"]["images"])) for q in qualities(cells)}))
    note = (
        f"\n\n{counts} images, the bytes of each equal to the first stage's. {of['method']}, {of['steps']} "
        f"steps, windows of up to {of['window']} px, {of['precision']}. SWD: mean of the levels. CPU s: "
        "coding and decoding of the first stage; the draw. Colour shift: of an image's mean, in the colour "
        "that shifts most."
    )
    lacking = {k: p[k] for k in ("lpips", "fid") if isinstance(p[k], str)}
    note += "".join(f" {k.upper()} {value}." for k, value in lacking.items())
    return markdown(head, rows) + note


def level_table(cells: Cells) -> str:
    """SWD of every level of the pyramid."""
    depth = max(len(cells[f"set {q}"]["values"]["first"]["swd"]) for q in qualities(cells))
    head = "quality | decoder | " + " | ".join(f"1/{2**k}" for k in range(depth))
    rows = [
        [str(q), name, *(f"{v:.1f}" for v in cells[f"set {q}"]["values"][label]["swd"])]
        for q in qualities(cells)
        for label, name in NAMES.items()
    ]
    return markdown(head, rows)


def samplers(cells: Cells) -> dict[str, dict[int, dict[str, Any]]]:
    """{method: {steps: values}}, steps ascending."""
    found: dict[str, dict[int, dict[str, Any]]] = {}
    for name, values in part(cells, "sampler").items():
        method, steps = name.split()
        found.setdefault(method, {})[int(steps)] = values
    return {method: dict(sorted(values.items())) for method, values in found.items()}


def sampler_table(cells: Cells) -> str:
    head = "sampler | steps | PSNR, dB | SWD | SWD of the finest level | CPU s an image"
    rows = [
        [
            method,
            str(steps),
            f"{v['psnr_db']:.2f}",
            f"{np.mean(v['swd']):.1f}",
            f"{v['swd'][0]:.1f}",
            f"{v['cpu_seconds']:.1f}",
        ]
        for method, found in samplers(cells).items()
        for steps, v in found.items()
    ]
    of = next(iter(part(cells, "sampler").values()))["of"]
    note = f"\n\n{len(of['images'])} crops of {of['crop']} px, quality {of['quality']}, realism 1."
    return markdown(head, rows) + note


# --- Figures -----------------------------------------------------------------------------------------


def figure(cells: Cells) -> Figure:
    """PSNR and SWD over rate, SWD level by level at the lowest quality, and samplers."""
    fig, grid = plt.subplots(2, 2, figsize=(11, 8), layout="constrained", dpi=120)
    (psnr, distance), (levels, steps) = grid
    found = qualities(cells)
    for label, name in NAMES.items():
        points = [point(cells, q, label) for q in found]
        bpp = [p["bpp"] for p in points]
        psnr.plot(bpp, [p["psnr_db"] for p in points], STYLES[label], label=name)
        distance.plot(bpp, [p["swd_mean"] for p in points], STYLES[label], label=name)
        if points:
            levels.plot(points[0]["swd"], STYLES[label], label=name)
    psnr.set(xlabel="bits per pixel", ylabel="PSNR, dB", title="Distortion")
    distance.set(
        xlabel="bits per pixel", ylabel="SWD, mean of the levels", title="Distance from real patches"
    )
    if found:
        depth = len(cells[f"set {found[0]}"]["values"]["first"]["swd"])
        levels.set_xticks(range(depth), [f"1/{2**k}" for k in range(depth)])
        levels.set(xlabel="resolution of the level", ylabel="SWD", yscale="log")
        levels.set_title(f"Level by level, quality {found[0]}")
    for (method, values), style in zip(samplers(cells).items(), ("C0o-", "C1s-", "C3^-")):
        steps.plot(list(values), [np.mean(v["swd"]) for v in values.values()], style, label=method)
    steps.set(xlabel="steps", ylabel="SWD, mean of the levels", xscale="log", title="Samplers, realism 1")
    ticks = sorted({n for values in samplers(cells).values() for n in values})
    steps.set_xticks(ticks, map(str, ticks))
    steps.minorticks_off()
    for axes in (psnr, distance, levels, steps):
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend(fontsize=8)
    return fig


def crops(cells: Cells, quality: int, rows: Sequence[tuple[str, Tensor, dict[str, Tensor]]]) -> Figure:
    """Original, first stage, and draws, a row an image.

    Args:
        rows: (name, original, {label: reconstruction}).
    """
    shown = [label for label in NAMES if label != "0.8"]
    grid = []
    for name, x, pictures in rows:
        values = cells[f"image {quality} {name}"]["values"]
        titles = [f"{name}, original"] + [f"{NAMES[k]}, {values['psnr_db'][k]:.2f} dB" for k in shown]
        titles[1] += f", {values['bpp']:.3f} bpp"
        images = [_cut(image, *CROPS.get(name, (0, 0))) for image in (x, *(pictures[k] for k in shown))]
        grid.append(list(zip(titles, images, strict=True)))
    return image_grid(grid, size=(4, 4.3), fontsize=11)


def _cut(x: Tensor, top: int, left: int) -> np.ndarray:
    """The square from (top, left), moved until it lies in the image."""
    top, left = (max(0, min(at, side - SIDE)) for at, side in zip((top, left), x.shape[2:]))
    return x[0, :, top : top + SIDE, left : left + SIDE].permute(1, 2, 0).numpy()
