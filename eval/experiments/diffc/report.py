# SPDX-License-Identifier: Apache-2.0
"""Tables and figures of eval/experiments/diffc/measure.py, from its results file: the Gaussian sources.

Parts that were not measured yet are left out. Error bars are two standard errors.

In:  cells. Out: Markdown; a figure.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from experiments.diffc.gaussian import LAM, formula
from reporting import Cells, Figure, markdown, part, plt

__all__ = ["gains", "gaussian_figure", "gaussian_tables", "largest_error"]

SOURCES = {"scalar": "x ~ N(0, 1)", "spectrum": "64 coordinates, λₖ = 1/k²"}
CURVES = {  # key of the closed forms: label, colour, line
    "ancestral": ("DiffC-A", "C3", "-"),
    "flow": ("DiffC-F", "C0", "-"),
    "flow_filled": ("DiffC-F*, water-filled noise", "C0", ":"),
    "realism_optimum": ("optimum under perfect realism", "C2", "--"),
    "rate_distortion": ("D(R), no realism", "k", "--"),
}
SPACINGS = {"equal": ("equal in log-SNR", "C7", "o"), "best": ("by dynamic programming", "C1", "s")}


def _levels(values: Cells, source: str) -> list[dict[str, Any]]:
    return values.get(source, {"levels": []})["levels"]


def largest_error(cells: Cells) -> float:
    """Largest difference from a closed form, of bits and errors, in percent."""
    values = part(cells, "gaussian")
    return max(
        abs(100 * (level[name]["mean"] / level["formula"][name] - 1))
        for source in SOURCES
        for level in _levels(values, source)
        for name in ("bits", "ancestral", "flow")
    )


def gains(cells: Cells, source: str) -> list[tuple[float, float, float]]:
    """By falling noise: sigma^2, gain of F over A in dB as measured and in closed form."""
    levels = _levels(part(cells, "gaussian"), source)
    return [(level["s2"], level["gain_db"], level["formula"]["gain_db"]) for level in levels]


def gaussian_tables(cells: Cells) -> str:
    values = part(cells, "gaussian")
    made = [_levels_table(values)] if set(SOURCES) & set(values) else []
    if any(name.startswith("steps") for name in values):
        made.append(_steps_table(values))
    return "\n\n".join(made)


def _levels_table(values: Cells) -> str:
    head = (
        "source | σ² | R, bits | measured | D_A | measured | D_F | measured | gain of F, dB | measured "
        "| D_A*, D_F*, optimum with realism, D(R)"
    )
    rows = []
    for source in SOURCES:
        for level in _levels(values, source):
            row, exact = [source, f"{level['s2']:g}"], level["formula"]
            for name in ("bits", "ancestral", "flow"):
                off = 100 * (level[name]["mean"] / exact[name] - 1)
                error = 100 * level[name]["error"] / exact[name]
                row += [f"{exact[name]:.5g}", f"{off:+.2f} ± {error:.2f} %"]
            beside = ("ancestral_filled", "flow_filled", "realism_optimum", "rate_distortion")
            row += [f"{exact['gain_db']:.3f}", f"{level['gain_db']:.3f}"]
            rows.append([*row, ", ".join(f"{exact[name]:.5f}" for name in beside)])
    return markdown(head, rows)


def _by_spacing(values: Cells, spacing: str) -> dict[int, dict[str, Any]]:
    names = [name.split() for name in values if name.startswith("steps") and name.endswith(spacing)]
    return {steps: values[f"steps {steps} {spacing}"] for steps in sorted(int(name[1]) for name in names)}


def _steps_table(values: Cells) -> str:
    equal, best = (_by_spacing(values, spacing) for spacing in SPACINGS)
    head = "steps | bits, equal in log-SNR | measured | bits, levels by dynamic programming | measured"
    rows = []
    for steps in sorted({*equal, *best}):
        row = [f"{steps:,}"]
        for found in (equal, best):
            if steps in found:
                v = found[steps]
                row += [f"{v['formula_bits']:.4f}", f"{v['bits']['mean']:.4f} ± {v['bits']['error']:.4f}"]
            else:
                row += ["", ""]
        rows.append(row)
    information = next(iter((equal | best).values()))["information_bits"]
    return f"{markdown(head, rows)}\n\nInformation: {information:.4f} bits."


def gaussian_figure(cells: Cells) -> Figure:
    """Distortion against bits for both sources, lines exact and marks measured; bits against steps."""
    values = part(cells, "gaussian")
    fig, axes = plt.subplots(1, 3, figsize=(14, 4.4), layout="constrained", dpi=120)
    for place, (source, title) in zip(axes, SOURCES.items(), strict=False):
        _draw_source(place, source, _levels(values, source))
        place.set_title(title)
    _draw_steps(axes[2], values)
    for place in axes:
        place.grid(alpha=0.3)
        place.legend(fontsize=8)
    return fig


def _draw_source(axes: Any, source: str, levels: list[dict[str, Any]]) -> None:
    """Squared errors of a number; of a vector, whose curves lie close, in dB above D(R)."""
    exact = [formula(LAM[source], float(s2)) for s2 in torch.logspace(-4.2, -0.15, 60)]
    vector = source == "spectrum"

    def shown(error: float, exact: dict[str, float]) -> float:
        return 10 * np.log10(error / exact["rate_distortion"]) if vector else error

    for name, (label, color, line) in CURVES.items():
        # With one coordinate the water-filled noise is the noise, and F meets the optimum.
        if vector or name not in ("flow_filled", "realism_optimum"):
            bits, errors = [e["bits"] for e in exact], [shown(e[name], e) for e in exact]
            axes.plot(bits, errors, line, color=color, lw=1.1, label=label)
    for name in ("ancestral", "flow"):
        found = [level[name] for level in levels]
        ends = [
            [
                shown(v["mean"] + 2 * sign * v["error"], level["formula"])
                for v, level in zip(found, levels, strict=True)
            ]
            for sign in (-1, 0, 1)
        ]
        low, middle, high = (np.array(end) for end in ends)
        bits = [level["bits"]["mean"] for level in levels]
        style = {"fmt": "o", "ms": 5, "color": CURVES[name][1]}
        label = f"{CURVES[name][0]}, simulated"
        axes.errorbar(bits, middle, yerr=[middle - low, high - middle], label=label, **style)
    label = "squared error, dB above D(R)" if vector else "squared error"
    axes.set(xlabel="bits (sum of the KL divergences)", ylabel=label, yscale="linear" if vector else "log")
    if vector:
        axes.set(xscale="log", ylim=(-1.8, 4.2))  # the legend below the curves


def _draw_steps(axes: Any, values: Cells) -> None:
    for spacing, (label, color, mark) in SPACINGS.items():
        found = _by_spacing(values, spacing)
        steps = list(found)
        axes.plot(steps, [v["formula_bits"] for v in found.values()], "-", color=color, lw=1, label=label)
        means = [v["bits"]["mean"] for v in found.values()]
        errors = [2 * v["bits"]["error"] for v in found.values()]
        axes.errorbar(steps, means, yerr=errors, fmt=mark, ms=5, color=color, label=f"{label}, simulated")
        for v in found.values():
            information = v["information_bits"]
    if any(name.startswith("steps") for name in values):
        axes.axhline(information, color="k", ls="--", lw=1, label="information")
    axes.set(
        xscale="log", xlabel="steps", ylabel="bits", title="What few steps cost: N(0, 1), log-SNR -12 to 6"
    )
    axes.set_yticks(np.arange(4, 12))
