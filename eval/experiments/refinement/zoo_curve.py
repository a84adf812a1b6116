# SPDX-License-Identifier: Apache-2.0
"""Rate-distortion curves of the zoo's models, unrefined, against published codecs on Kodak.

    python eval/run.py zoo-curve [--kodak DIR] [--anchors FILE] [--names mbt2018-mean-small ...] [--workers N]

In:  a folder of images; the models of the zoo that are installed; published mean points of other
     codecs (JSON: {codec: {"source": ..., "results": {"bpp": [...], "psnr-rgb": [...]}}}).
Out: eval/results/zoo-kodak.json, one cell for each model, quality and image, which a second call does not
     measure again unless the weight has changed (by sha256); eval/results/zoo-kodak-NAME.json, the means in
     CompressAI's schema; the published points of the comparison (`published`);
     eval/figures/zoo-kodak.png; on stdout two Markdown tables: the points, and BD-rates with their PSNR
     interval.

Bits are those of real bitstreams by CompressAI's own `inference`. PSNR is the mean of the images' PSNRs, as
in the anchors. A model for which an image failed has no means and is left out. BD-rate: package
`bjontegaard`, pchip interpolation of log rate over PSNR, on the interval that both curves cover. It needs
three points or more.
Fails with ``FileNotFoundError`` if the images or the anchors are missing.
"""

from __future__ import annotations

import argparse
import functools
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from compressai.utils.eval_model.__main__ import inference, read_image
from torch import nn

from compressai_sga import metrics, zoo
from compressai_sga.comparison import published
from compressai_sga.tasks.records import Record
from compressai_sga.tasks.tasks import Task, add_options, finish, run, run_options
from images import KODAK, SHARED
from reporting import EVAL, Cells, Figure, markdown, plt, save_beside

NAMES = ("bmshj2018-factorized-small", "mbt2018-mean-small", "mbt2018-small")
METRICS = ("bpp", "psnr-rgb", "ms-ssim-rgb")
# Label in our tables: key in the anchors' file.
ANCHORS = {
    "JPEG": "compressai:jpeg",
    "JPEG 2000": "compressai:jpeg2000",
    "bmshj2018-factorized": "compressai:compressai-bmshj2018-factorized_mse_cpu",
    "mbt2018-mean": "compressai:compressai-mbt2018-mean_mse_cpu",
}
# What the claims of this topic compare refinement with.
REFINED = ("Yang2020 base", "Yang2020 SGA")
BD_METHOD: Literal["pchip"] = "pchip"
Curve = dict[str, list[float]]


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kodak", type=Path, default=KODAK, help="folder of PNG images")
    parser.add_argument("--anchors", type=Path, default=SHARED / "anchors" / "kodak.json")
    parser.add_argument("--names", nargs="*", default=NAMES, help="models of the zoo (default: %(default)s)")
    add_options(parser)
    return parser.parse_args(argv)


@functools.lru_cache(maxsize=1)
def load(name: str, quality: int) -> nn.Module:
    """A model of the zoo; the last one is kept."""
    return zoo.load(name, quality)


def measure(name: str, quality: int, image: str) -> dict[str, float]:
    """Bits and quality of one image."""
    measured = inference(load(name, quality), read_image(Path(image)))
    return {key: measured[key] for key in METRICS}


def tasks(names: Iterable[str], images: Iterable[Path]) -> list[Task]:
    """Every image through every quality of these models."""
    entries = [r for name in names for r in zoo.list_models() if r.name == name]
    return [
        Task(cell(r, image), {"sha256": r.sha256}, measure, (r.name, r.quality, str(image)))
        for r in entries
        for image in images
    ]


def cell(entry: zoo.ModelRecord, image: Path) -> str:
    return f"{entry.name} {entry.quality} {image.stem}"


def means(cells: Cells, name: str, images: list[Path]) -> dict[str, Any]:
    """Results of all qualities of a model, in CompressAI's schema."""
    curve: Curve = {key: [] for key in ("quality", "lmbda", *METRICS)}
    for entry in (r for r in zoo.list_models() if r.name == name):
        values = [cells[cell(entry, image)]["values"] for image in images]
        curve["quality"].append(entry.quality)
        curve["lmbda"].append(entry.lmbda)
        for key in METRICS:
            curve[key].append(sum(of[key] for of in values) / len(values))
    return {
        "name": f"{name}-mse",
        "description": "Inference (ans), real bitstreams, means over the images",
        "results": curve,
    }


def bd_rate(anchor: Curve, ours: Curve) -> tuple[float, float, float] | None:
    """(BD-rate in percent, lowest and highest PSNR of the overlap), or None with too few points."""
    if len(ours["bpp"]) < 3:
        return None
    delta = metrics.bd_rate(anchor, ours, method=BD_METHOD)
    return delta.value, delta.low, delta.high


def _sorted(curve: Curve) -> tuple[list[float], list[float]]:
    points = sorted(zip(curve["bpp"], curve["psnr-rgb"], strict=True))
    return [p[0] for p in points], [p[1] for p in points]


def read_results(results: Path, names: Iterable[str] = NAMES) -> tuple[dict[str, Curve], dict[str, Curve]]:
    """Our curves and the published ones from the folder of results."""
    known, curves = published.points(results), {}
    for name in names:
        text = results_path(results, name).read_text(encoding="utf-8")
        curves[name] = json.loads(text)["results"]
    return curves, {label: known[key]["results"] for label, key in ANCHORS.items()}


def results_path(results: Path, name: str) -> Path:
    return results / f"zoo-kodak-{name}.json"


def tables(curves: dict[str, Curve], anchors: dict[str, Curve]) -> str:
    """Points and BD-rates."""
    rows = []
    for name, curve in curves.items():
        points = zip(*(curve[k] for k in ("quality", "lmbda", *METRICS)), strict=True)
        for quality, lmbda, bpp, psnr, ssim in points:
            rows.append(f"{name} | {quality} | {lmbda} | {bpp:.4f} | {psnr:.2f} | {ssim:.4f}")
    text, rows = markdown("model | quality | λ | bpp | PSNR, dB | MS-SSIM", rows), []
    for name, curve in curves.items():
        row = [name]
        for anchor in anchors.values():
            bd = bd_rate(anchor, curve)
            row.append("too few points" if bd is None else f"{bd[0]:+.1f} % ({bd[1]:.1f}–{bd[2]:.1f} dB)")
        rows.append(row)
    rates = markdown(["BD-rate of", *(f"against {anchor}" for anchor in anchors)], rows)
    return f"{text}\n\n{rates}\n\nBD-rate: {BD_METHOD} interpolation over the PSNR interval in brackets."


def headline(curves: dict[str, Curve], anchors: dict[str, Curve]) -> str:
    """Against two classical codecs."""
    rates = (bd_rate(anchors[a], curves["mbt2018-mean-small"])[0] for a in ("JPEG", "JPEG 2000"))
    return (
        "mbt2018-mean-small: BD-rate {:+.1f} % against the published curve of JPEG, {:+.1f} % against "
        "that of JPEG 2000".format(*rates)
    )


def figure(curves: dict[str, Curve], anchors: dict[str, Curve]) -> Figure:
    """Our curves solid with marks, the published ones dotted."""
    fig, axes = plt.subplots(figsize=(7, 5), layout="constrained", dpi=120)
    for label, curve in anchors.items():
        axes.plot(*_sorted(curve), ":", label=label)
    for marker, (name, curve) in zip("osD^v", curves.items(), strict=False):
        axes.plot(*_sorted(curve), f"-{marker}", label=f"{name} (ours)", markersize=5)
    bpp = [b for curve in curves.values() for b in curve["bpp"]]
    psnr = [p for curve in curves.values() for p in curve["psnr-rgb"]]
    axes.set(
        xlim=(0, max(bpp) * 1.15),
        ylim=(min(psnr) - 1.5, max(psnr) + 2),
        xlabel="bits per pixel (real bitstreams)",
        ylabel="PSNR of RGB, dB (mean over images)",
        title="Kodak, models of the zoo without refinement",
    )
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    return fig


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    images = sorted(args.kodak.glob("*.png"))
    if not images:
        raise FileNotFoundError(f"no PNG image in {args.kodak}; name the Kodak folder with --kodak")
    results = EVAL / "results"
    published.keep(args.anchors, (*ANCHORS.values(), *REFINED), results)
    record = Record(results / "zoo-kodak.json")
    failures = run(record, tasks(args.names, images), title="zoo", **run_options(args))
    names = [name for name in args.names if not any(f.startswith(f"{name} ") for f in failures)]
    for name in names:
        content = json.dumps(means(record.cells, name, images), indent=1) + "\n"
        results_path(results, name).write_text(content, encoding="utf-8")
    if names:
        curves, anchors = read_results(results, names)
        sources = [results / published.FILE, *(results_path(results, name) for name in names)]
        save_beside(figure(curves, anchors), "zoo-kodak", *sources)
        print(tables(curves, anchors))
    finish(failures)
