# SPDX-License-Identifier: Apache-2.0
"""Training loss against test loss: universal quantisation closes the gap (Agustsson & Theis 2020).

    python eval/universal.py [--data ../shared/data/kodak]

In:  a folder of photographs (24 of Kodak) and the zoo's mbt2018-mean-small and -uq-small, qualities 1-4.
Out: eval/results/universal.json, resumable by model and quality; eval/figures/universal.png; a table.

For centre crops of 256x256: the loss bpp + lmbda 255^2 MSE as training computes it (fresh noise, mean of
8 draws) and of the decoded bitstream. Distortions are of images clamped to [0, 1] in both, as decoding
does. The gap is test minus training, in percent of training, paired by image, with the standard error
of its mean: once with ideal code lengths, where the law of the latents is all that differs, and once with
real bytes, which adds what the coder takes. Eight models take about five minutes on one core.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from compressai.utils.eval_model.__main__ import read_image
from matplotlib.figure import Figure
from provenance import save_figure
from records import Record, mean_error
from torch import Tensor, nn
from tqdm import tqdm

from compressai_sga import zoo

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

EVAL = Path(__file__).resolve().parent
MODELS = {"mbt2018-mean-small": "rounding", "mbt2018-mean-uq-small": "universal quantisation"}
QUALITIES = (1, 2, 3, 4)
DRAWS = 8
SIZE = 256


def crops(folder: Path) -> list[Tensor]:
    """Centre crops (1, 3, 256, 256) of the PNG images of a folder."""
    images = []
    for path in sorted(folder.glob("*.png")):
        x = read_image(path)
        top, left = ((side - SIZE) // 2 for side in x.shape[1:])
        images.append(x[None, :, top : top + SIZE, left : left + SIZE])
    if not images:
        raise SystemExit(f"{folder} holds no PNG images; name a folder with --data")
    return images


@torch.no_grad()
def measure(net: nn.Module, images: list[Tensor], lmbda: float) -> dict[str, object]:
    """Bits, distortion and loss in training and at test time, means over the images."""
    rows: dict[str, list[tuple[float, float]]] = {"training": [], "ideal": [], "test": []}
    for x in tqdm(images, leave=False):
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


def measured(cells: Mapping[str, Any]) -> dict[str, dict[int, dict[str, Any]]]:
    """{model: {quality: values}}, both ascending."""
    found: dict[str, dict[int, dict[str, Any]]] = {}
    for name, cell in sorted(cells.items()):
        model, quality = name.rsplit("-", 1)
        found.setdefault(model, {})[int(quality)] = cell["values"]
    return found


def tables(cells: Mapping[str, Any]) -> str:
    """Loss in training and at test time, and the gap."""
    lines = [
        "| model | quality | training: bpp, PSNR, loss | decoded: bpp, PSNR, loss | gap, ideal | gap |",
        "|---|---|---|---|---|---|",
    ]
    for model, by_quality in measured(cells).items():
        for quality, r in by_quality.items():
            row = [
                f"{r[k]['bpp']:.3f}, {r[k]['psnr_db']:.2f} dB, {r[k]['loss']['mean']:.4f}"
                for k in ("training", "test")
            ]
            gaps = (r["gap_ideal_percent"], r["gap_percent"])
            row += [f"{gap['mean']:+.2f} ± {gap['error']:.2f} %" for gap in gaps]
            lines.append(f"| {model} | {quality} | {' | '.join(row)} |")
    lines += ["", "Largest gap with real bytes: " + ", ".join(_largest(cells)) + "."]
    return "\n".join(lines)


def _largest(cells: Mapping[str, Any]) -> list[str]:
    """By the way of quantising."""
    found = measured(cells)
    texts = []
    for model, label in MODELS.items():
        gaps = [values["gap_percent"]["mean"] for values in found.get(model, {}).values()]
        if gaps:
            texts.append(f"{max(gaps, key=abs):+.2f} % with {label}")
    return texts


def figure(cells: Mapping[str, Any]) -> Figure:
    """The gap by quality, bars of two standard errors."""
    fig, axes = plt.subplots(figsize=(5.5, 3.6), dpi=150)
    for model, by_quality in measured(cells).items():
        gaps = [values["gap_percent"] for values in by_quality.values()]
        means, errors = [g["mean"] for g in gaps], [2 * g["error"] for g in gaps]
        axes.errorbar(list(by_quality), means, errors, marker="o", capsize=3, label=MODELS.get(model, model))
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set_xticks(sorted({q for by_quality in measured(cells).values() for q in by_quality}))
    axes.set(xlabel="quality", ylabel="test loss - training loss, %")
    axes.legend()
    fig.tight_layout()
    return fig


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, default=Path("../shared/data/kodak"))
    parser.add_argument("--out", type=Path, default=EVAL / "results" / "universal.json")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    images = crops(args.data)
    record = Record(args.out)
    lmbdas = {(r.name, r.quality): (r.lmbda, r.sha256) for r in zoo.list_models()}
    for name in MODELS:
        for quality in QUALITIES:
            lmbda, sha256 = lmbdas[name, quality]
            settings = {"sha256": sha256, "images": len(images), "size": SIZE, "draws": DRAWS}

            def one(name=name, quality=quality, lmbda=lmbda) -> dict[str, object]:
                torch.manual_seed(0)
                return measure(zoo.load(name, quality), images, lmbda)

            record.cell(f"{name}-{quality}", settings, one)
    path = args.out.parent.parent / "figures" / "universal.png"
    save_figure(figure(record.cells), path, [args.out])
    print(tables(record.cells))


if __name__ == "__main__":
    main()
