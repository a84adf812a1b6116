# SPDX-License-Identifier: Apache-2.0
"""Figures of eval/experiments/sga_plus/measure.py, made from its results file: one for each part.

Error bars are standard errors of means over the images. They are large for changes of the loss, which vary
between images, and smaller for differences between two settings on the same image.

In:  cells; the folder where `draw` writes. Out: figures; PREFIX-PART.png for the parts that were measured.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from compressai_sga.tasks.provenance import save_figure
from experiments.sga_plus.comparisons import imitations, rate_family
from experiments.sga_plus.plan import LABELS, METHODS, OURS, SGA, THREE
from experiments.sga_plus.runs import Results, Run, difference, estimate, points
from reporting import Figure, plt

__all__ = ["draw", "figure"]

COLORS = {
    "ste": "C7",
    "noise": "C5",
    "atanh": "C0",
    "linear": "C1",
    "cosine": "C2",
    "ssl": "C3",
    "fast": "C8",
    "best": "C4",
}
COLORS |= {three: COLORS[two] for two, three in THREE.items()}
CHANGE = "change of the true loss, %"
GAP = "difference of the losses, % of the unrefined"


def draw(cells: Mapping[str, Any], folder: Path, prefix: str, sources: Sequence[Path]) -> None:
    """Write the figures of what was measured."""
    results = Results(cells)
    for part, make in _MAKERS.items():
        fig = make(results)
        if fig is not None:
            save_figure(fig, folder / f"{prefix}-{part}.png", sources)


def figure(cells: Mapping[str, Any], part: str) -> Figure:
    """The figure of a part.

    Raises:
        KeyError: the part was not measured.
    """
    fig = _MAKERS[part](Results(cells))
    if fig is None:
        raise KeyError(f"the part {part} was not measured")
    return fig


def _panels(count: int, width: float = 5.2, height: float = 4.2) -> tuple[Figure, list[Axes]]:
    size = (width * count, height)
    fig, axes = plt.subplots(1, count, figsize=size, dpi=120, layout="constrained", squeeze=False)
    for each in axes[0]:
        each.grid(alpha=0.3)
    return fig, list(axes[0])


def _style(steps: int, results: Results) -> str:
    """A line for each budget, the first one solid."""
    return ("-", "--", ":", "-.")[min(3, results.steps.index(steps))] if steps in results.steps else "-"


def _bars(axes: Axes, x: Sequence[float], values: Sequence[np.ndarray], **style: Any) -> None:
    """Means over the images with their standard errors."""
    found = [estimate(each) for each in values]
    errors = [np.nan_to_num(each.error) for each in found]
    axes.errorbar(x, [each.mean for each in found], errors, capsize=2, **style)


def _curves(results: Results) -> Figure | None:
    """Rate-distortion curves; changes of the loss by quality, images against atanh."""
    curves = results.curves()
    if not curves:
        return None
    fig, (left, middle, right) = _panels(3)
    none = results.curve("none", 0)
    unrefined = points(none, "before")
    left.plot(unrefined["bpp"], unrefined["psnr-rgb"], "k-o", ms=4, lw=1.2, label="none")
    for k, ((method, steps), curve) in enumerate(curves.items()):
        style = {"color": COLORS[method], "ls": _style(steps, results), "marker": "o", "ms": 3.5, "lw": 1.2}
        if method in OURS:
            style |= {"marker": "s", "ls": "-."}
        if len(curve) < len(none):  # a line would cut the corner
            style |= {"ls": "", "mfc": "w", "ms": 5}
        style["label"] = f"{LABELS[method]} {steps}"
        after = points(curve)
        left.plot(after["bpp"], after["psnr-rgb"], **style)
        shift = 0.035 * (k - len(curves) / 2)
        _bars(middle, [q + shift for q in curve], [run.change() for run in curve.values()], **style)
        anchor = results.curve("atanh", steps)
        common = [q for q in curve if q in anchor]
        if method in ("linear", "cosine", "ssl") and common:
            gaps = [difference(curve[q], anchor[q]) for q in common]
            _bars(right, [q + shift for q in common], gaps, **style)
    right.axhline(0, color=COLORS["atanh"], lw=1, label="atanh, as many steps")
    left.set(xlabel="bits per pixel", ylabel="PSNR, dB", title="Real bitstreams")
    middle.set(xlabel="quality", ylabel=CHANGE, title="Loss against the unrefined image")
    right.set(xlabel="quality", ylabel=GAP, title="Loss against atanh, image by image")
    for axes in (middle, right):
        axes.set_xticks(list(none))
    left.legend(fontsize=7)
    right.legend(fontsize=7)
    return fig


def _tmax(results: Results) -> Figure | None:
    fig, (left, right) = _panels(2)
    drawn = False
    for steps in results.steps:
        anchor = results.sweep("atanh", steps, "t_max")
        for k, method in enumerate(SGA):
            sweep = results.sweep(method, steps, "t_max")
            if len(sweep) < 2:
                continue
            style = {"color": COLORS[method], "ls": _style(steps, results), "marker": "o", "ms": 4}
            style["label"] = f"{LABELS[method]} {steps}"
            shift = 0.008 * (k - 1.5)
            _bars(left, [v + shift for v in sweep], [run.change() for run in sweep.values()], **style)
            common = [value for value in sweep if value in anchor]
            if method != "atanh" and common:
                gaps = [difference(sweep[v], anchor[v]) for v in common]
                _bars(right, [v + shift for v in common], gaps, **style)
            drawn = True
    right.axhline(0, color=COLORS["atanh"], lw=1, label="atanh with this T_max")
    left.set(xlabel="T_max", ylabel=CHANGE, title="Loss by the upper bound of the temperature")
    right.set(xlabel="T_max", ylabel=GAP, title="Against atanh, image by image")
    for axes in (left, right):
        axes.set_xticks(sorted({v for m in SGA for n in results.steps for v in results.sweep(m, n, "t_max")}))
    return _finished(
        fig, (right,), drawn
    )  # the colours of the right panel, and atanh's, are those of the left


def _a(results: Results) -> Figure | None:
    fig, (axes,) = _panels(1, 6.4, 4.6)
    drawn = False
    for steps in results.steps:
        sweep, own = results.sweep("ssl", steps, "a"), results.paper("ssl", steps)
        if len(sweep) < 2 or own is None:
            continue
        style = {"color": COLORS["ssl"], "ls": _style(steps, results), "marker": "o", "ms": 4}
        gaps = [difference(run, own) for run in sweep.values()]
        _bars(axes, list(sweep), gaps, label=f"SSL {steps}", **style)
        for each in imitations(results, steps):
            label = f"{LABELS[each.method]} {steps} (a ≈ {each.a:.3g})"
            style = {"color": COLORS[each.method], "marker": "D", "ls": "", "ms": 6, "label": label}
            _bars(axes, [each.a + 0.05], [difference(each.other, own)], **style)
        drawn = True
    axes.axhline(0, color="k", lw=0.6)
    axes.set(xlabel="a of SSL", ylabel=GAP, title="Loss against SSL with the paper's a, image by image")
    return _finished(fig, (axes,), drawn)


def _lr(results: Results) -> Figure | None:
    fig, (left, right) = _panels(2)
    drawn, ticks = False, set()
    for steps in results.steps:
        own = results.paper("atanh", steps)
        for k, method in enumerate(METHODS):
            sweep = results.sweep(method, steps, "lr")
            if len(sweep) < 2 or own is None:
                continue
            style = {"color": COLORS[method], "ls": _style(steps, results), "marker": "o", "ms": 4}
            at = [lr * (1 + 0.012 * (k - 3.5)) for lr in sweep]
            gaps = [difference(run, own) for run in sweep.values()]
            _bars(left, at, gaps, label=f"{LABELS[method]} {steps}", **style)
            ticks |= set(sweep)
            drawn = True
    if drawn:
        left.set_xscale("log")
        left.set_xticks(sorted(ticks), [f"{tick:g}" for tick in sorted(ticks)])
        left.minorticks_off()
    left.axhline(0, color="k", lw=0.6)
    left.set(
        xlabel="learning rate", ylabel=GAP, title="Loss against atanh at the paper's rate, image by image"
    )
    steps = min(results.steps, default=0)
    for method in ("atanh", "ssl"):
        sweep = results.sweep(method, steps, "lr")
        for (lr, run), line in zip(sweep.items(), ("-", "--", ":", "-.")):
            _true(right, run, color=COLORS[method], ls=line, label=f"{LABELS[method]}, rate {lr:g}")
    right.set(xlabel="steps", ylabel=CHANGE, title="True loss on the way")
    return _finished(fig, (left, right), drawn)


def _true(axes: Axes, run: Run, **style: Any) -> None:
    """The true loss on the way, against the first one."""
    if run.looks:
        done, _, true = run.on_the_way()
        axes.plot(done, 100 * (true / true[0] - 1).mean(1), lw=1.3, **style)


def _classes(results: Results) -> Figure | None:
    fig, (left, right) = _panels(2)
    ticks: list[str] = []
    for steps in results.steps:
        for two, three in THREE.items():
            pair = [results.paper(method, steps) for method in (two, three)]
            if None in pair:
                continue
            gap = difference(pair[1], pair[0])
            _bars(left, [len(ticks)], [gap], color=COLORS[two], marker="o", ls="", ms=7)
            left.plot([len(ticks) + 0.15] * len(gap), gap, ".", color=COLORS[two], ms=4, alpha=0.6)
            ticks.append(f"{LABELS[two]}\n{steps} steps")
            if steps == min(results.steps):
                for run, line in zip(pair, ("-", "--")):
                    _true(right, run, color=COLORS[two], ls=line, label=LABELS[run.setting.method])
    left.set_xticks(range(len(ticks)), ticks)
    left.axhline(0, color="k", lw=0.6)
    left.set(xlim=(-0.5, len(ticks) - 0.5), ylabel=GAP, title="Three classes minus two; dots: images")
    right.set(xlabel="steps", ylabel=CHANGE, title="True loss on the way")
    return _finished(fig, (right,), bool(ticks))


def _loss(results: Results) -> Figure | None:
    """The papers' schedules know no budget: up to the smaller one two runs are the same, and drawn once."""
    fig, (left, right) = _panels(2)
    right.axhline(0, color="k", lw=0.6, zorder=1)
    drawn, since = False, 0
    for steps in results.steps:
        for method in METHODS:
            run = results.paper(method, steps)
            if run is None or not run.looks:
                continue
            style = {"color": COLORS[method], "ls": _style(steps, results), "lw": 1.3}
            style["label"] = f"{LABELS[method]} {steps}"
            done, relaxed, true = run.on_the_way()
            change, gap = 100 * (true / true[0] - 1), 100 * (relaxed / true - 1)
            for axes, values in ((left, change), (right, gap)):
                mean = values.mean(1)
                error = values.std(1, ddof=min(1, values.shape[1] - 1)) / values.shape[1] ** 0.5
                shown = done >= since
                axes.plot(done[shown], mean[shown], **style)
                if axes is right:
                    low, high = (mean - error)[shown], (mean + error)[shown]
                    axes.fill_between(done[shown], low, high, color=COLORS[method], alpha=0.12, lw=0)
            drawn = True
        since = steps
    left.set(xlabel="steps", ylabel=CHANGE, title="True loss: hard rounding on the way")
    right.set(xlabel="steps", ylabel="% of the true loss", title="The method's own loss minus the true one")
    if len(results.steps) > 1:
        ticks = [tick for tick in (0, 50, 100, 200, 500, 1000, 2000) if tick <= max(results.steps)]
        for axes in (left, right):
            axes.set_xscale("symlog", linthresh=100)
            axes.set_xticks(ticks, [str(tick) for tick in ticks])
            axes.set_xlim(-5, 1.1 * max(results.steps))
    return _finished(fig, (left, right), drawn)


def _rates(results: Results) -> Figure | None:
    fig, (left, right) = _panels(2)
    lmbdas: list[float] = []
    for steps in results.steps:
        for method in SGA:
            rates = rate_family(results, method, steps)
            if len(rates) < 2:
                continue
            family = {rate.quality: rate.family for rate in rates}
            if not lmbdas:
                before = points(family, "before")
                left.plot(
                    before["bpp"], before["psnr-rgb"], "k-o", ms=4, label="a model for each λ, unrefined"
                )
            lmbdas, color = [rate.family.lmbda for rate in rates], COLORS[method]
            one, after = points({rate.quality: rate.one for rate in rates}), points(family)
            label = f"{LABELS[method]} {steps}"
            left.plot(
                after["bpp"], after["psnr-rgb"], "-o", color=color, ms=4, label=f"the same, refined: {label}"
            )
            alone = f"quality {results.middle} alone: {label}"
            left.plot(one["bpp"], one["psnr-rgb"], "--D", color=color, mfc="w", ms=5, label=alone)
            for key, line, name in (("unrefined", "--", ", unrefined"), ("refined", "-", ", refined")):
                found = [getattr(rate, key) for rate in rates]
                errors = [np.nan_to_num(each.error) for each in found]
                style = {"color": color, "ls": line, "marker": "D", "ms": 4, "capsize": 2}
                style["label"] = f"{label}: against the λ's own model{name}"
                right.errorbar(lmbdas, [each.mean for each in found], errors, **style)
    left.set(xlabel="bits per pixel", ylabel="PSNR, dB", title="One model at several λ")
    right.axhline(0, color="k", lw=0.6)
    right.set(xlabel="λ", ylabel="difference of the losses, %", title="Loss of the one model at this λ")
    if lmbdas:
        right.set_xscale("log")
        right.set_xticks(lmbdas, [f"{lmbda:g}" for lmbda in lmbdas])
        right.minorticks_off()
    return _finished(fig, (left, right), bool(lmbdas))


def _finished(fig: Figure, panels: Sequence[Axes], drawn: bool) -> Figure | None:
    """With legends; None, and closed, where nothing was drawn."""
    if not drawn:
        plt.close(fig)
        return None
    for axes in panels:
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize=8)
    return fig


_MAKERS: dict[str, Callable[[Results], Figure | None]] = {
    "curves": _curves,
    "tmax": _tmax,
    "a": _a,
    "lr": _lr,
    "classes": _classes,
    "loss": _loss,
    "rates": _rates,
}
