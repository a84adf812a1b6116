# SPDX-License-Identifier: Apache-2.0
"""Training loss against test loss: universal quantisation closes the gap (Agustsson & Theis 2020).

    python eval/run.py universal [--data KODAK] [--workers N]

In:  a folder of photographs (24 of Kodak) and the zoo's mbt2018-mean-small and -uq-small, qualities 1-4.
Out: eval/results/universal.json, resumable by model and quality; eval/figures/universal.png; a table.

On centre crops of 256x256 the loss bpp + lmbda 255^2 MSE is computed twice: as in training (fresh noise, mean
of 8 draws), and of the decoded bitstream. Both use images clamped to [0, 1], as decoding does. The gap is
test minus training, in percent of training, paired by image, with the standard error of its mean. It is given
with ideal code lengths, where only the distribution of the latents differs, and with real bytes, which adds
the overhead of the coder. Eight models take about five minutes on one core.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from compressai_sga import zoo
from compressai_sga.tasks.records import Record, mean_error
from compressai_sga.tasks.tasks import Task, add_options, finish, run, run_options
from images import KODAK, centre_crop
from reporting import EVAL, Cells, Figure, markdown, plt, save_beside

MODELS = {"mbt2018-mean-small": "rounding", "mbt2018-mean-uq-small": "universal quantisation"}
QUALITIES = (1, 2, 3, 4)
DRAWS = 8
SIZE = 256


@torch.no_grad()
def measure(name: str, quality: int, paths: list[str], lmbda: float) -> dict[str, object]:
    """Bits, distortion and loss of a model in training and at test time, means over the images."""
    torch.manual_seed(0)
    net = zoo.load(name, quality)
    rows: dict[str, list[tuple[float, float]]] = {"training": [], "ideal": [], "test": []}
    for x in (centre_crop(Path(path), SIZE) for path in paths):
        pixels = x.shape[-2] * x.shape[-1]
        draws = []
        net.train()
        for _ in range(DRAWS):
            draws.append(ideal(net, x))
        rows["training"].append(tuple(np.mean(draws, axis=0)))
        net.eval()
        rows["ideal"].append(ideal(net, x))
        coded = net.compress(x)
        x_hat = net.decompress(coded["strings"], coded["shape"])["x_hat"]
        size = sum(len(s) for strings in coded["strings"] for s in strings)
        rows["test"].append((8 * size / pixels, float((x_hat - x).square().mean())))
    values: dict[str, object] = {}
    losses = {}
    for name, pairs in rows.items():
        bpp, mse = np.array(pairs).T
        losses[name] = bpp + lmbda * 255**2 * mse
        psnr = float((-10 * np.log10(mse)).mean())
        values[name] = {"bpp": bpp.mean(), "psnr_db": psnr, "loss": mean_error(losses[name])}
    for name, other in (("gap_ideal_percent", "ideal"), ("gap_percent", "test")):
        values[name] = mean_error(100 * (losses[other] / losses["training"] - 1))
    return values


def ideal(net: nn.Module, x: Tensor) -> tuple[float, float]:
    """Bits a pixel by the likelihoods, and MSE of the clamped image, of one forward pass."""
    out = net(x)
    bits = sum(-p.log2().sum() for p in out["likelihoods"].values())
    return float(bits) / x[0, 0].numel(), float((out["x_hat"].clamp(0, 1) - x).square().mean())


def measured(cells: Cells) -> dict[str, dict[int, dict[str, Any]]]:
    """{model: {quality: values}}, both ascending."""
    found: dict[str, dict[int, dict[str, Any]]] = {}
    for name, cell in sorted(cells.items()):
        model, quality = name.rsplit("-", 1)
        found.setdefault(model, {})[int(quality)] = cell["values"]
    return found


def tables(cells: Cells) -> str:
    """Loss in training and at test time, and the gap."""
    head = "model | quality | training: bpp, PSNR, loss | decoded: bpp, PSNR, loss | gap, ideal | gap"
    rows = []
    for model, by_quality in measured(cells).items():
        for quality, r in by_quality.items():
            row = [
                f"{r[k]['bpp']:.3f}, {r[k]['psnr_db']:.2f} dB, {r[k]['loss']['mean']:.4f}"
                for k in ("training", "test")
            ]
            both = (r["gap_ideal_percent"], r["gap_percent"])
            row += [f"{gap['mean']:+.2f} ± {gap['error']:.2f} %" for gap in both]
            rows.append([model, str(quality), *row])
    largest = [f"{max(gaps(cells, m), key=abs):+.2f} % with {MODELS[m]}" for m in MODELS if gaps(cells, m)]
    return f"{markdown(head, rows)}\n\nLargest gap with real bytes: {', '.join(largest)}."


def gaps(cells: Cells, model: str) -> list[float]:
    """Percent by which the loss of real files is above that of training, a quality each."""
    return [values["gap_percent"]["mean"] for values in measured(cells).get(model, {}).values()]


def headline(cells: Cells) -> str:
    """The largest gaps of both."""
    rounding, ours = (max(gaps(cells, model), key=abs) for model in MODELS)
    return f"largest gap of test to training loss {ours:+.2f} % (rounding: {rounding:+.1f} %)"


def figure(cells: Cells) -> Figure:
    """The gap by quality, bars of two standard errors."""
    fig, axes = plt.subplots(figsize=(5.5, 3.6), dpi=150)
    for model, by_quality in measured(cells).items():
        found = [values["gap_percent"] for values in by_quality.values()]
        means, errors = [gap["mean"] for gap in found], [2 * gap["error"] for gap in found]
        axes.errorbar(list(by_quality), means, errors, marker="o", capsize=3, label=MODELS.get(model, model))
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set_xticks(sorted({q for by_quality in measured(cells).values() for q in by_quality}))
    axes.set(xlabel="quality", ylabel="test loss - training loss, %")
    axes.legend()
    fig.tight_layout()
    return fig


def tasks(paths: list[str]) -> list[Task]:
    """One a model and quality, for one stream of noise goes through its images."""
    entries = {(r.name, r.quality): r for r in zoo.list_models()}
    found = []
    for name in MODELS:
        for quality in QUALITIES:
            entry = entries[name, quality]
            of = {"sha256": entry.sha256, "images": len(paths), "size": SIZE, "draws": DRAWS}
            found.append(Task(f"{name}-{quality}", of, measure, (name, quality, paths, entry.lmbda)))
    return found


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, default=KODAK)
    parser.add_argument("--out", type=Path, default=EVAL / "results" / "universal.json")
    add_options(parser)
    args = parser.parse_args(argv)
    paths = [str(path) for path in sorted(args.data.glob("*.png"))]
    if not paths:
        parser.error(f"{args.data} holds no PNG images; name a folder with --data")
    record = Record(args.out)
    failures = run(record, tasks(paths), title="universal", **run_options(args))
    save_beside(figure(record.cells), "universal", args.out)
    print(tables(record.cells))
    finish(failures)
