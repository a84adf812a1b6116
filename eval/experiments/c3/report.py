# SPDX-License-Identifier: Apache-2.0
"""Tables and figures of eval/experiments/c3/measure.py, made from the cells of its results file.

Parts that were not measured yet are left out. J = mse + lmbda * bpp is given in thousandths, for images in
[0, 1].

In:  cells; published points (`published`); originals and decoded crops.
Out: Markdown; two figures.
Fails with ``ValueError`` if cells of one part belong to different presets.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from images import coarsest_jpeg, psnr_db
from reporting import Cells, Figure, image_grid, markdown, part, plt

__all__ = ["ANCHORS", "REFERENCE", "crops", "figure", "headline", "pictures", "tables", "whole"]

REFERENCE = ("image", "bytes", "bpp", "mse", "psnr_db", "encode_cpu_seconds", "decode_cpu_seconds")
REFERENCE_NAME = "Cool-Chic 5.0.1"
# Label: (name among the published points, line style).
ANCHORS = {
    "VTM": ("VTM", "k-"),
    "Cool-Chic 5.0": ("Cool-Chic v5.0", "C2--"),
    "C3": ("C3", "C0--"),
    "JPEG 2000": ("JPEG2000", "C7:"),
}
GAIN = 4  # of the differences that are shown


def same_preset(name: str, values: Cells) -> None:
    """Numbers of different presets must not stand in one table."""
    prints = {v["of"].get("fingerprint") for v in values.values()}
    if len(prints) > 1:
        old = ", ".join(f"{k} ({v['of'].get('fingerprint')})" for k, v in values.items())
        raise ValueError(f"part {name} has cells of different presets: {old}; measure all of them again")


def tables(cells: Cells, parts: Sequence[str]) -> str:
    makers = {
        "crops": crops_table,
        "budget": budget_table,
        "warm": warm_table,
        "whole": whole_table,
        "step": step_table,
    }
    made = []
    for name, make in makers.items():
        if name in parts and part(cells, name):
            same_preset(name, part(cells, name))
            made.append(make(cells))
    return "\n\n".join(made)


def mean(values: Sequence[Any], key: str) -> float:
    return float(np.mean([v[key] for v in values]))


def ratio(ours: float, other: float) -> str:
    return f"{100 * (ours / other - 1):+.1f} %"


def crops(cells: Cells) -> tuple[dict[str, Any], dict[str, Any]]:
    """Ours and the reference's, by crop."""
    return dict(sorted(part(cells, "crops").items())), part(cells, "reference")


def whole(cells: Cells) -> list[dict[str, Any]]:
    """Whole images."""
    return list(part(cells, "whole").values())


def headline(cells: Cells) -> str:
    """Against the reference, and how long decoding takes."""
    ours, reference = crops(cells)
    change = ratio(sum(v["loss"] for v in ours.values()), sum(reference[name]["loss"] for name in ours))
    seconds = mean(ours.values(), "decode_cpu_seconds")
    return (
        f"`c3-fast`: MSE + λ·bpp {change} against {REFERENCE_NAME}, {len(ours)} crops; decoding "
        f"{1e3 * seconds:.0f} ms of CPU"
    )


# --- Tables -----------------------------------------------------------------------------------------


def crops_table(cells: Cells) -> str:
    ours, reference = crops(cells)
    paired = bool(ours) and set(ours) <= set(reference)
    head = "crop of | nets + latents, bytes | bpp | PSNR, dB | 10³ J | encoding, CPU s | decoding, CPU s"
    if paired:
        head += f" | {REFERENCE_NAME}: bytes | bpp | PSNR, dB | 10³ J | encoding, CPU s | decoding, CPU s | J"
    rows = []
    for name, v in ours.items():
        row = [name, f"{v['bytes_nets']} + {v['bytes_latents']}", *_numbers(v)]
        if paired:
            r = reference[name]
            row += [str(r["bytes"]), *_numbers(r), ratio(v["loss"], r["loss"])]
        rows.append(row)
    keys = ("bytes", "bpp", "psnr_db", "loss", "encode_cpu_seconds", "decode_cpu_seconds")
    a = {k: mean(ours.values(), k) for k in (*keys, "bytes_nets", "bytes_latents")}
    row = ["mean", f"{a['bytes_nets']:.0f} + {a['bytes_latents']:.0f}", *_numbers(a)]
    if paired:
        b = {k: mean([reference[n] for n in ours], k) for k in keys}
        row += [f"{b['bytes']:.0f}", *_numbers(b), ratio(a["loss"], b["loss"])]
    text = markdown(head, [*rows, row])
    if paired:
        below = sum(v["loss"] < reference[n]["loss"] for n, v in ours.items())
        text += f"\n\n{below} of {len(ours)} crops have a lower J than {REFERENCE_NAME}'s."
    return text


def _numbers(v: dict[str, Any]) -> list[str]:
    return [
        f"{v['bpp']:.3f}",
        f"{v['psnr_db']:.2f}",
        f"{1e3 * v['loss']:.4f}",
        f"{v['encode_cpu_seconds']:.0f}",
        f"{v['decode_cpu_seconds']:.3f}",
    ]


def by_steps(values: Cells, label: str = "") -> dict[int, Cells]:
    """{steps: {image: values}} of the cells "[label] STEPS IMAGE", steps ascending."""
    found: dict[int, Cells] = {}
    for name, v in values.items():
        *start, steps, image = name.split()
        if " ".join(start) == label:
            found.setdefault(int(steps), {})[image] = v
    return dict(sorted(found.items()))


def budget_table(cells: Cells) -> str:
    budgets, fast = by_steps(part(cells, "budget")), part(cells, "crops")
    images = set(next(iter(budgets.values())))
    compared = f" | against c3-fast, {_steps_of(fast, images)} steps" if images <= set(fast) else ""
    head = f"steps | bpp | PSNR, dB | 10³ J | lower than the row above{compared} | encoding, CPU s"
    rows, above = [], None
    for steps, v in budgets.items():
        lower = "" if above is None else f"{sum(v[i]['loss'] < above[i]['loss'] for i in v)} of {len(v)}"
        row = [f"{steps:,}", *_means(v.values()), lower]
        if compared:
            row.append(ratio(mean(v.values(), "loss"), mean([fast[i] for i in v], "loss")))
        rows.append([*row, f"{mean(v.values(), 'encode_cpu_seconds'):.0f}"])
        above = v
    text = markdown(head, rows)
    if compared:
        alone = ", ".join(f"{ratio(v['loss'], fast[i]['loss'])} on {i}" for i, v in above.items())
        text += f"\n\nAt {steps:,} steps, against c3-fast: {alone}."
    return text


def _steps_of(values: Cells, images: set[str]) -> str:
    return ", ".join(sorted({f"{values[i]['of']['steps']:,}" for i in images}))


def _means(values: Sequence[Any]) -> list[str]:
    values = list(values)
    return [
        f"{mean(values, 'bpp'):.3f}",
        f"{mean(values, 'psnr_db'):.2f}",
        f"{1e3 * mean(values, 'loss'):.4f}",
    ]


def starts(values: Cells) -> list[str]:
    """Labels of part warm in the order of their cells."""
    return list(dict.fromkeys(name.split()[0] for name in values))


def warm_table(cells: Cells) -> str:
    values = part(cells, "warm")
    first, *_ = labels = starts(values)
    found = {label: by_steps(values, label) for label in labels}
    head = f"steps | start | bpp | PSNR, dB | 10³ J | against {first} | nets, bytes | nets, share of the file"
    rows = []
    for steps, base in found[first].items():
        for label in labels:
            v = found[label].get(steps, {})
            if set(v) != set(base):
                continue
            share = np.mean([c["bytes_nets"] / c["bytes"] for c in v.values()])
            change = ratio(mean(v.values(), "loss"), mean(base.values(), "loss")) if label != first else ""
            nets = f"{mean(v.values(), 'bytes_nets'):.0f}"
            rows.append([f"{steps:,}", label, *_means(v.values()), change, nets, f"{100 * share:.1f} %"])
    return markdown(head, rows)


def whole_table(cells: Cells) -> str:
    head = (
        "image | λ | bytes | bpp | PSNR, dB | real / estimated bits, float | exact | encoding, CPU s "
        "| decoding, C++, s | Python, s | C++ and Python differ by, levels | MACs a pixel"
    )
    rows = []
    for name, v in part(cells, "whole").items():
        real, nets = 8 * v["bytes"], 8 * v["bytes_nets"]
        native = "native_seconds" in v
        rows.append(
            [
                name.split()[0],
                f"{v['of']['lmbda']:g}",
                str(v["bytes"]),
                f"{v['bpp']:.4f}",
                f"{v['psnr_db']:.2f}",
                f"{100 * (real / (v['float_bits'] + nets) - 1):+.3f} %",
                f"{100 * (real / (v['exact_bits'] + nets) - 1):+.3f} %",
                f"{v['encode_cpu_seconds']:.0f}",
                f"{v['native_seconds']:.3f}" if native else "not built",
                f"{v['python_seconds']:.2f}",
                f"{v['largest_difference_levels']} ({100 * v['differing_share']:.2g} %)" if native else "",
                f"{v['macs_per_pixel']:.0f}",
            ]
        )
    return markdown(head, rows)


def step_table(cells: Cells) -> str:
    (v,) = part(cells, "step").values()
    size, (low, high) = v["of"]["size"], v["quartiles"]
    times = [f"{v[f'{name}_cpu_ms']:.1f}" for name in ("ours", "plain")]
    head = "image | step, CPU ms | with masked convolutions, CPU ms | ratio (quartiles)"
    return markdown(head, [[f"{size}×{size}", *times, f"{v['ratio']:.2f} ({low:.2f} to {high:.2f})"]])


# --- Figures ----------------------------------------------------------------------------------------


def figure(cells: Cells, published: dict[str, Any]) -> Figure:
    """Whole images beside published curves; loss against steps."""
    fig, (left, right) = plt.subplots(1, 2, figsize=(12, 4.8), layout="constrained", dpi=120)
    _draw_whole(left, part(cells, "whole"), published)
    _draw_steps(right, cells)
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    return fig


def _draw_whole(axes: Any, values: Cells, published: dict[str, Any]) -> None:
    for label, (key, style) in ANCHORS.items():
        curve = published[key]["results"]
        points = sorted(zip(curve["bpp"], curve["psnr-rgb"], strict=True))
        axes.plot(*zip(*points, strict=True), style, lw=1.2, label=f"{label}, mean of 24 images")
    images: dict[str, list[tuple[float, float]]] = {}
    for name, v in values.items():
        images.setdefault(name.split()[0], []).append((v["bpp"], v["psnr_db"]))
    for marker, (name, points) in zip("osD^v", images.items(), strict=False):
        axes.plot(*zip(*sorted(points), strict=True), f"C3{marker}-", lw=0.8, label=f"c3-fast, {name} alone")
    every = [point for points in images.values() for point in points] or [(1.0, 33.0)]
    axes.set(
        xlim=(0, max(1.0, 1.2 * max(p[0] for p in every))),
        ylim=(min(25.0, min(p[1] for p in every) - 1), max(40.0, max(p[1] for p in every) + 1)),
        xlabel="bits per pixel",
        ylabel="PSNR of RGB, dB",
        title="Single Kodak images; curves for orientation only",
    )


def _draw_steps(axes: Any, cells: Cells) -> None:
    budgets, warm = by_steps(part(cells, "budget")), part(cells, "warm")
    lines = {"c3": (budgets, "C3o-")}
    for label, style in zip(starts(warm), ("C1v--", "C2^--"), strict=False):
        lines[f"c3-fast, {label} start"] = (by_steps(warm, label), style)
    fast, reference, ticks = part(cells, "crops"), part(cells, "reference"), set()
    for label, (found, style) in lines.items():
        # Of the very crops that the line is of, or lines of different crops could not be compared.
        found = {steps: v for steps, v in found.items() if set(v) <= set(fast)}
        losses = [100 * mean(v.values(), "loss") / mean([fast[i] for i in v], "loss") for v in found.values()]
        if losses:
            images = next(iter(found.values()))
            crops = "1 crop" if len(images) == 1 else f"{len(images)} crops"
            axes.plot(list(found), losses, style, label=f"{label}, {crops}")
            ticks |= set(found)
    if fast:
        axes.axhline(100, ls="-.", lw=1, color="C0", label=f"c3-fast, {_steps_of(fast, set(fast))} steps")
    if fast and set(fast) <= set(reference):
        level = 100 * mean([reference[i] for i in fast], "loss") / mean(fast.values(), "loss")
        label = f"{REFERENCE_NAME}, 2,000 iterations, {len(fast)} crops"
        axes.axhline(level, ls=":", lw=1, color="black", label=label)
    axes.set(xscale="log", xlabel="steps", ylabel="mse + λ bpp, % of c3-fast's on the same crops")
    axes.set_title("Loss against steps")
    if ticks:
        axes.set_xticks(sorted(ticks), [f"{steps:,}" for steps in sorted(ticks)])
        axes.minorticks_off()


def pictures(rows: Sequence[tuple[str, np.ndarray, np.ndarray, int]]) -> Figure:
    """Original, c3-fast, JPEG, and both differences, a row an image.

    Args:
        rows: (name, original, decoded, bytes); images (H, W, 3) in 8 bits.
    """
    shown = []
    for name, original, decoded, size in rows:
        jpeg, quality = coarsest_jpeg(original, size)
        title = f"JPEG {quality}, {len(jpeg.data):,} bytes, {psnr_db(original, jpeg.pixels):.2f} dB"
        shown.append(
            [
                (f"{name}, original", original),
                (f"c3-fast, {size:,} bytes, {psnr_db(original, decoded):.2f} dB", decoded),
                (title, jpeg.pixels),
                (f"c3-fast - original, {GAIN} times", difference(original, decoded)),
                (f"JPEG - original, {GAIN} times", difference(original, jpeg.pixels)),
            ]
        )
    return image_grid(shown, size=(3, 3.3), fontsize=9)


def difference(original: np.ndarray, decoded: np.ndarray) -> np.ndarray:
    """Around middle grey."""
    shown = 128 + GAIN * (decoded.astype(np.int64) - original)
    return shown.clip(0, 255).astype(np.uint8)
