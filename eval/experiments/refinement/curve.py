# SPDX-License-Identifier: Apache-2.0
"""Rate-distortion curves of a zoo model over its qualities: unrefined and refined.

    python eval/run.py refine-curve                              # fast at 86 steps, ssl at 200
    python eval/run.py refine-curve --entries best:470 --quality 3

In:  a folder of images, of which the central squares are used (--crop, 0 for whole images); entries
     PRESET:STEPS; all qualities of the zoo, or those named.
Out: eval/results/refine-curve-NAME[-cropN]-PRESET-STEPS.json in CompressAI's schema (one list entry for
     each quality), eval/figures/refine-curve.png, and a Markdown table with the BD-rate of each refined
     curve against the unrefined one (package bjontegaard, pchip of log rate over PSNR, overlap).

Every quality is measured by eval/experiments/refinement/methods.py. Its results are reused, and it goes on
where it stopped. If something failed, no curves are written.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from compressai_sga import metrics, zoo
from compressai_sga.tasks.tasks import finish
from experiments.refinement import methods
from reporting import EVAL, Figure, markdown, plt, save_beside

KEYS = {"psnr-rgb": "psnr_db", "bpp": "bpp", "loss": "loss"}
Curves = dict[str, dict[str, list[float]]]


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = methods.parser_of(__doc__.split("\n")[0], ("fast:86", "ssl:200"))
    parser.add_argument("--quality", type=int, nargs="*", help="default: all in the zoo")
    return parser.parse_args(argv)


def measure(args: argparse.Namespace) -> tuple[list[methods.Results], dict[str, str]]:
    """Results of every quality, and the failures of all."""
    qualities = args.quality or [r.quality for r in zoo.list_models() if r.name == args.model]
    found, failures = [], {}
    for quality in qualities:
        job: Any = SimpleNamespace(**{**vars(args), "quality": quality})
        results, failed = methods.measure(job)
        found.append(results)
        failures |= {f"quality {quality}, {name}": error for name, error in failed.items()}
    return found, failures


def curves_of(by_quality: list[methods.Results], entries: Sequence[str]) -> Curves:
    """Mean bpp, PSNR and loss of every entry, one value a quality."""
    curves: Curves = {e: {k: [] for k in KEYS} for e in ("unrefined", *entries)}
    for results in by_quality:
        for key, theirs in KEYS.items():
            first = results[entries[0]]
            curves["unrefined"][key].append(methods.mean(first, f"{theirs}-before"))
            for entry in entries:
                curves[entry][key].append(methods.mean(results[entry], f"{theirs}-after"))
    return curves


def bd_rate(anchor: dict[str, list[float]], ours: dict[str, list[float]]) -> float | None:
    """BD-rate of `ours` in percent, or None with fewer than three points."""
    if len(ours["bpp"]) < 3:
        return None
    return metrics.bd_rate(anchor, ours).value


def results_paths(results: Path, model: str = zoo.DEFAULT_MODEL, crop: int = 128) -> list[Path]:
    """The files of a model and crop in the folder of results."""
    size = f"-crop{crop}" if crop else ""
    return sorted(results.glob(f"refine-curve-{model}{size}-*.json"))


def read_results(results: Path, model: str = zoo.DEFAULT_MODEL, crop: int = 128) -> Curves:
    """The curves of these files by entry, the unrefined one first."""
    curves = {}
    for path in results_paths(results, model, crop):
        value = json.loads(path.read_text(encoding="utf-8"))
        curves[value["description"].split(",")[0]] = value["results"]
    return dict(sorted(curves.items(), key=lambda item: (item[0] != "unrefined", item[0])))


def refined_bd_rate(curves: Curves, entry: str) -> float:
    """BD-rate of an entry against the unrefined curve, percent."""
    value = bd_rate(curves["unrefined"], curves[entry])
    if value is None:
        raise ValueError(f"the curve {entry} has too few points for a BD-rate; measure more qualities")
    return value


def headline(curves: Curves) -> str:
    """BD-rates of two presets."""
    entries = ("fast:86", "ssl:200")
    each = (f"{refined_bd_rate(curves, e):+.1f} % `{e.replace(':', '` ')}" for e in entries)
    return f"BD-rate against the unrefined curve: {', '.join(each)}"


def table(curves: Curves) -> str:
    """BD-rate and changes of the loss."""
    rows = []
    unrefined = curves["unrefined"]
    for name, curve in curves.items():
        if name == "unrefined":
            continue
        bd = bd_rate(unrefined, curve)
        changes = (f"{100 * (a / b - 1):+.1f} %" for a, b in zip(curve["loss"], unrefined["loss"]))
        shown = "too few points" if bd is None else f"{bd:+.1f} %"
        rows.append([f"`{name}`", shown, ", ".join(changes)])
    return markdown("| BD-rate | loss by quality, against unrefined", rows)


def figure(curves: Curves, model: str = zoo.DEFAULT_MODEL, crop: int = 128) -> Figure:
    """All curves, the unrefined one dashed."""
    fig, axes = plt.subplots(figsize=(6, 4.5), dpi=150)
    for name, curve in curves.items():
        style = "k--o" if name == "unrefined" else "-o"
        axes.plot(curve["bpp"], curve["psnr-rgb"], style, ms=4, lw=1.2, label=name)
    axes.set(xlabel="bits per pixel", ylabel="PSNR, dB")
    what = f"centre crops of {crop} px" if crop else "whole images"
    axes.set_title(f"{model}, {what}, real bitstreams", fontsize=9)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    fig.tight_layout()
    return fig


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    by_quality, failures = measure(args)
    finish(failures)
    curves = curves_of(by_quality, args.entries)
    print(table(curves))
    if args.quality:
        return  # the files and the figure are of all qualities
    crop, paths = f"-crop{args.crop}" if args.crop else "", []
    for name, curve in curves.items():
        value = {
            "name": f"{args.model}-mse",
            "description": f"{name}, real bitstreams, means over the images{crop}",
            "results": curve,
        }
        file = f"refine-curve-{args.model}{crop}-{name.replace(':', '-')}.json"
        paths.append(EVAL / "results" / file)
        paths[-1].write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
    save_beside(figure(curves, args.model, args.crop), "refine-curve", *paths)
