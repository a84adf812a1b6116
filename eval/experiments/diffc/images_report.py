# SPDX-License-Identifier: Apache-2.0
"""Tables and figures of eval/experiments/diffc/measure.py, from its results file: the parts on images.

Parts that were not measured yet are left out. Rates and PSNRs are means over the images; overheads are ratios
of sums. Between its measured rates, the PSNR of the ideal channel is interpolated linearly in the logarithm
of the rate.

In:  cells; for the pictures also original and decoded images. Out: Markdown; figures.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor

from experiments.diffc.beside import psnr_db
from experiments.diffc.curves import Pictures
from experiments.diffc.images import bias
from images import levels
from reporting import Cells, Figure, image_grid, markdown, part, plt

__all__ = [
    "channel_tables",
    "crops_figure",
    "curve_tables",
    "curves_figure",
    "gains",
    "image_tables",
    "overhead_figure",
    "prefix_curve",
]

Rows = list[dict[str, Any]]
Channels = dict[tuple[str, str, int, float], Rows]
"""Of (images, method, size, rate aimed at)."""
BAR_PERCENT, BAR_BPP = 12, 0.5  # the overhead that is allowed, and from which rate on
CHANNELS = {"trellis": ("trellis", "C0", "o"), "orc": ("ORC", "C1", "s"), "pfr": ("PFR", "C2", "^")}
CODECS = {
    "F": ("DiffC-F", "C0", "o-"),
    "A": ("DiffC-A", "C3", "s-"),
    "mbt2018-mean-small": ("mbt2018-mean-small", "C2", "^-"),
    "JPEG2000": ("JPEG 2000", "C1", "v-"),
    "JPEG": ("JPEG", "C7", "d-"),
}


# --- Channels ----------------------------------------------------------------------------------------


def channels(cells: Cells) -> Channels:
    """{(set, method, size, rate): values of the images}, rates rising."""
    found: Channels = {}
    values = part(cells, "channel")
    for images in dict.fromkeys(name.split()[0] for name in values):
        _require_one_model({name: v for name, v in values.items() if name.split()[0] == images})
    for name, v in values.items():
        images, method, size, bpp, _ = name.split()
        found.setdefault((images, method, int(size), float(bpp)), []).append(v)
    return dict(sorted(found.items()))


def _require_one_model(values: Cells) -> None:
    """Numbers of different weights must not stand in one table."""
    tags = {v["of"]["model"] for v in values.values() if "model" in v["of"]}
    if len(tags) > 1:
        raise ValueError(
            f"the results have cells of the models {', '.join(sorted(tags))}; remove the file, or name "
            "another with --out, and measure again"
        )


def summary(rows: Rows, ideal: dict[float, Rows]) -> dict[str, float]:
    """Means over the images, and where an ideal channel would be."""
    pixels = sum(v["of"]["height"] * v["of"]["width"] for v in rows)
    found = {key: sum(v[key] for v in rows) for key in ("bytes", "kl_bits")}
    bpp, psnr = 8 * found["bytes"] / pixels, float(np.mean([v["psnr_db"] for v in rows]))
    values = {
        "bpp": bpp,
        "kl_bpp": found["kl_bits"] / pixels,
        "overhead": 8 * found["bytes"] / found["kl_bits"] - 1,
        "psnr_db": psnr,
        "images": len(rows),
    }
    points = sorted(
        (sum(v["kl_bits"] for v in of) / pixels, float(np.mean([v["psnr_db"] for v in of])))
        for of in ideal.values()
        if len(of) == len(rows)
    )
    if points and points[0][0] <= bpp:
        rates, psnrs = np.array(points).T
        values["behind_db"] = float(np.interp(np.log(bpp), np.log(rates), psnrs)) - psnr
        if psnrs[0] <= psnr <= psnrs[-1]:
            values["over_ideal"] = bpp / float(np.exp(np.interp(psnr, psnrs, np.log(rates)))) - 1
    return values


def ideal_of(found: Channels, images: str) -> dict[float, Rows]:
    return {
        bpp: rows for (name, method, _, bpp), rows in found.items() if (name, method) == (images, "ideal")
    }


def image_tables(cells: Cells) -> str:
    """Channels, then codecs beside each other."""
    return "\n\n".join(filter(None, (channel_tables(cells), curve_tables(cells))))


def channel_tables(cells: Cells) -> str:
    """Bytes, divergences and PSNR by channel."""
    found = channels(cells)
    return _channel_table(found) if found else ""


def curve_tables(cells: Cells) -> str:
    """PSNR, realism and seconds by codec and rate."""
    points = curves(cells)
    return f"{_curve_table(points)}\n\n{_checks(cells, points)}" if points else ""


def _channel_table(found: Channels) -> str:
    head = (
        "images | channel | aimed at, bpp | real bpp | Σ KL, bpp | overhead | PSNR, dB "
        "| below the ideal channel at these bits, dB | bits over the ideal channel's at this PSNR "
        "| shrinkage | deviation along the shift | encoding, s an image"
    )
    rows = []
    for (images, method, size, bpp), of in found.items():
        v = summary(of, ideal_of(found, images))
        numbers = [
            f"{v['bpp']:.4f}",
            f"{v['kl_bpp']:.4f}",
            f"{100 * v['overhead']:+.1f} %",
            f"{v['psnr_db']:.2f}",
        ]
        if method == "ideal":
            numbers[2] = ""
            rows.append([f"{len(of)} {images}", "ideal", f"{bpp:g}", *numbers, "", "", "", "", ""])
            continue
        b = bias(of)
        rows.append(
            [
                f"{len(of)} {images}",
                f"{method} {size}",
                f"{bpp:g}",
                *numbers,
                f"{v['behind_db']:.2f}" if "behind_db" in v else "",
                f"{100 * v['over_ideal']:+.1f} %" if "over_ideal" in v else "",
                f"{b['shrinkage']:.3f} ± {b['error']:.3f}",
                f"{b['std_along']:.2f}",
                f"{np.mean([row['seconds'] for row in of]):.2f}",
            ]
        )
    table = markdown(head, rows)
    lines = [table]
    for key, over in (("overhead", "the divergences sent"), ("over_ideal", "an ideal channel at equal PSNR")):
        missed = [
            f"{images} {method} {size} at {bpp:g} bpp"
            for (images, method, size, bpp), of in found.items()
            if method != "ideal"
            and bpp >= BAR_BPP
            and summary(of, ideal_of(found, images)).get(key, 0) > BAR_PERCENT / 100
        ]
        lines.append(
            f"More than {BAR_PERCENT} % over {over} from {BAR_BPP} bpp on: {', '.join(missed) or 'none'}."
        )
    return "\n\n".join(lines)


def overhead_figure(cells: Cells) -> Figure:
    """Overhead by rate; PSNR by rate beside an ideal channel; loss against bias by size."""
    found = channels(cells)
    images = next(iter(found))[0]
    ideal = ideal_of(found, images)
    fig, (left, middle, right) = plt.subplots(1, 3, figsize=(14, 4.4), layout="constrained", dpi=120)
    points = sorted((summary(rows, {}) for rows in ideal.values()), key=lambda v: v["bpp"])
    style = {"ls": "--", "lw": 1, "color": "k", "label": "ideal channel"}
    middle.plot([v["bpp"] for v in points], [v["psnr_db"] for v in points], **style)
    for method, (label, color, mark) in CHANNELS.items():
        size = _by_rate(found, images, method)
        if size is None:
            continue
        keys = [key for key in found if key[:3] == (images, method, size)]
        values, label = [summary(found[key], ideal) for key in keys], f"{label} {size}"
        bpp = [v["bpp"] for v in values]
        left.plot(bpp, [100 * v["overhead"] for v in values], f"{mark}-", color=color, label=label)
        over = [(v["bpp"], 100 * v["over_ideal"]) for v in values if "over_ideal" in v]
        if over:
            left.plot(*zip(*over, strict=True), f"{mark}:", color=color, mfc="none")
        middle.plot(bpp, [v["psnr_db"] for v in values], f"{mark}-", color=color, ms=5, label=label)
    left.plot([BAR_BPP, max(2, BAR_BPP)], [BAR_PERCENT] * 2, "k-", lw=1, label=f"{BAR_PERCENT} %")
    left.set(xscale="log", xlabel="bits per pixel (real bytes)", ylabel="%")
    left.set_title("Bytes over the sum of the KLs;\ndotted: over an ideal channel's bits at equal PSNR")
    middle.set(xscale="log", xlabel="bits per pixel", ylabel="PSNR of DiffC-F, dB", title="PSNR by channel")
    _draw_sizes(right, found, images, ideal)
    for axes in (left, middle, right):
        axes.grid(alpha=0.3)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize=8)
    return fig


def _by_rate(found: Channels, images: str, method: str) -> int | None:
    """The size at which a channel was measured at most rates."""
    sizes = [key[2] for key in found if key[:2] == (images, method)]
    return max(sizes, key=sizes.count, default=None)


def _draw_sizes(axes: Any, found: Channels, images: str, ideal: dict[float, Rows]) -> None:
    """Loss against shrinkage at the rate at which most channels were measured."""
    rates = [key[3] for key in found if key[0] == images and key[1] != "ideal"]
    bpp = max(rates, key=rates.count, default=1.0)
    for method, (label, color, mark) in CHANNELS.items():
        points = []
        for key in (key for key in found if key[:2] == (images, method) and key[3] == bpp):
            v = summary(found[key], ideal)
            if "behind_db" in v:
                points.append((100 * bias(found[key])["shrinkage"], v["behind_db"]))
                axes.annotate(str(key[2]), points[-1], xytext=(5, 4), textcoords="offset points", fontsize=8)
        if points:
            axes.plot(*zip(*points, strict=True), mark, color=color, label=label)
    axes.set(xlabel="shrinkage along the shift, %", ylabel="PSNR below the ideal channel's at equal bits, dB")
    axes.set_title(f"Bias and loss at {bpp:g} bpp, by size of the channel")


# --- Curves ------------------------------------------------------------------------------------------


def curves(cells: Cells) -> dict[str, Rows]:
    """{codec: points, rates rising}: means over the images that all codecs have, their PSNRs, distance."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    _require_one_model(part(cells, "curves"))
    for name, values in part(cells, "curves").items():
        codec, setting, image = name.split()
        if codec == "DiffC":
            shared = {key: values[key] for key in ("bytes", "encode_seconds", "of")}
            for kind in ("F", "A"):
                found.setdefault((kind, setting), {})[image] = shared | values[kind]
        else:
            found.setdefault((codec, setting), {})[image] = values
    everywhere = set.intersection(*map(set, found.values())) if found else set()
    distances = part(cells, "realism")
    points: dict[str, Rows] = {}
    for (codec, setting), by_image in found.items() if everywhere else ():
        rows = [values for image, values in sorted(by_image.items()) if image in everywhere]
        size = rows[0]["of"].get("size") or rows[0]["of"]["height"]
        means = {
            key: float(np.mean([v[key] for v in rows]))
            for key in rows[0]
            if key.endswith(("_db", "_seconds"))
        }
        means["bpp"] = float(np.mean([8 * v["bytes"] / size**2 for v in rows]))
        means["entropy_bpp"] = float(
            np.mean([8 * (v["bytes"] - v.get("header_bytes", 0)) / size**2 for v in rows])
        )
        distance = distances.get(f"{codec} {setting}", {}).get("swd")
        psnrs = [v["psnr_db"] for v in rows]
        points.setdefault(codec, []).append(means | {"setting": setting, "swd": distance, "psnrs": psnrs})
    return {codec: sorted(rows, key=lambda v: v["bpp"]) for codec, rows in points.items()}


def _curve_table(points: dict[str, Rows]) -> str:
    head = (
        "codec | setting | bpp | PSNR, dB | sliced Wasserstein | encoding, s an image | decoding, s an image"
    )
    rows = []
    for codec, (label, _, _) in CODECS.items():
        for v in points.get(codec, []):
            seconds = [f"{v[f'{way}_seconds']:.3g}" for way in ("encode", "decode")]
            bpp = f"{v['bpp']:.4f}"
            if codec == "JPEG":
                bpp += f" ({v['entropy_bpp']:.4f} without tables)"
            swd = "" if v["swd"] is None else f"{v['swd']:.1f}"
            rows.append([label, v["setting"], bpp, f"{v['psnr_db']:.2f}", swd, *seconds])
    count = len(next(iter(points.values()))[0]["psnrs"])
    return f"{markdown(head, rows)}\n\nMeans over {count} crops."


def _checks(cells: Cells, points: dict[str, Rows]) -> str:
    """F above A; PSNR rises with the prefix."""
    lines = []
    pairs = list(zip(points.get("F", []), points.get("A", []), strict=True))
    if pairs:
        found = gains(points)
        alone = [x > y for f, a in pairs for x, y in zip(f["psnrs"], a["psnrs"], strict=True)]
        verdict = "at every rate" if min(found.values()) > 0 else "NOT at every rate"
        by_rate = ", ".join(f"{bpp} bpp {gain:+.2f} dB" for bpp, gain in found.items())
        lines.append(
            f"F above A in PSNR {verdict}: {by_rate}; of single images in {sum(alone)} of {len(alone)}."
        )
    if prefixes := prefix_curve(cells):
        rises = all(b[1] > a[1] for a, b in zip(prefixes, prefixes[1:]))
        by_rate = ", ".join(f"{bpp:.3f} bpp {psnr:.2f} dB" for bpp, psnr in prefixes)
        lines.append(f"PSNR {'rises' if rises else 'does NOT rise'} with the prefix: {by_rate}.")
    return "\n\n".join(lines)


def gains(points: dict[str, Rows]) -> dict[str, float]:
    """PSNR of DiffC-F above DiffC-A in dB, by rate aimed at."""
    pairs = zip(points["F"], points["A"], strict=True)
    return {f["setting"]: f["psnr_db"] - a["psnr_db"] for f, a in pairs}


def prefix_curve(cells: Cells) -> list[tuple[float, float]]:
    """(bpp, PSNR) of the prefixes, means over the images."""
    found: dict[float, Rows] = {}
    for name, values in part(cells, "prefix").items():
        found.setdefault(float(name.split()[0]), []).append(values)
    return [
        (
            float(np.mean([8 * v["bytes"] / (v["of"]["height"] * v["of"]["width"]) for v in rows])),
            float(np.mean([v["psnr_db"] for v in rows])),
        )
        for _, rows in sorted(found.items())
    ]


def curves_figure(cells: Cells) -> Figure:
    """PSNR and sliced Wasserstein distance against the rate."""
    points = curves(cells)
    fig, (left, right) = plt.subplots(1, 2, figsize=(12, 4.8), layout="constrained", dpi=120)
    for codec, (label, color, style) in CODECS.items():
        rows = points.get(codec, [])
        bpp = [v["bpp"] for v in rows]
        left.plot(bpp, [v["psnr_db"] for v in rows], style, color=color, ms=5, lw=1.2, label=label)
        known = [v for v in rows if v["swd"] is not None]
        right.plot(
            [v["bpp"] for v in known],
            [v["swd"] for v in known],
            style,
            color=color,
            ms=5,
            lw=1.2,
            label=label,
        )
        if codec == "JPEG" and rows:
            bpp = [v["entropy_bpp"] for v in rows]
            left.plot(
                bpp, [v["psnr_db"] for v in rows], ":", color=color, lw=1, label="JPEG without its tables"
            )
            right.plot(bpp, [v["swd"] for v in rows], ":", color=color, lw=1, label="JPEG without its tables")
    prefixes = prefix_curve(cells)
    if prefixes:
        label = "prefixes of DiffC-F's longest"
        left.plot(*zip(*prefixes, strict=True), "x--", color="C9", ms=6, lw=0.8, label=label)
    rates = [v["bpp"] for rows in points.values() for v in rows]
    end = max(v["bpp"] for v in points["F"]) if "F" in points else max(rates)
    for axes in (left, right):
        axes.set(xscale="log", xlim=(min(rates) / 1.2, end * 1.3))
        axes.set_xlabel("bits per pixel (real bytes)")
        axes.grid(alpha=0.3, which="both")
        axes.legend(fontsize=8)
    left.set(ylabel="PSNR of RGB, dB", title="Distortion")
    right.set(
        ylabel="sliced Wasserstein distance",
        title="Realism: lower is nearer to the originals",
        yscale="log",
    )
    return fig


def crops_figure(cells: Cells, images: Mapping[str, Tensor], pictures: Pictures) -> Figure:
    """Three images at two rates: original, F, A, and the others at the nearest bytes."""
    points, values = curves(cells), part(cells, "curves")
    rates = [v["setting"] for v in points.get("F", [])]
    shown = [rates[len(rates) // 4], rates[3 * len(rates) // 4]] if len(rates) > 1 else rates
    names = [name for name in images if f"DiffC {rates[0]} {name}" in values][:: max(1, len(images) // 3)][:3]
    rows = [(name, rate) for name in names for rate in shown]
    others = [codec for codec in ("mbt2018-mean-small", "JPEG2000") if codec in points]
    grid = []
    for name, rate in rows:
        x = images[name]
        size = values[f"DiffC {rate} {name}"]["bytes"]
        row = [(f"{name}, original", x)]
        for kind in ("F", "A"):
            x_hat = pictures.get(kind, rate, name)
            row.append((f"DiffC-{kind}, {size} bytes, {psnr_db(x, x_hat):.2f} dB", x_hat))
        for codec in others:
            sizes = {
                p["setting"]: values[f"{codec} {p['setting']} {name}"]["bytes"] for p in points.get(codec, [])
            }
            setting = min(sizes, key=lambda s: abs(np.log(sizes[s] / size)))
            x_hat = pictures.get(codec, setting, name)
            title = f"{CODECS[codec][0]}, {sizes[setting]} bytes, {psnr_db(x, x_hat):.2f} dB"
            row.append((title, x_hat))
        grid.append([(title, levels(image)) for title, image in row])
    return image_grid(grid, size=(2.5, 2.7), fontsize=8)
