# SPDX-License-Identifier: Apache-2.0
"""Rate and distortion of a rate-distortion autoencoder in training and in files (McAllester's lecture).

    python eval/run.py rda [--data KODAK]        # five minutes on one core

In:  a folder of photographs (24 of Kodak); the zoo's rda-l2-small and rda-l1-small, and
     bmshj2018-factorized-small, which is trained like rda-l2-small for other lambdas.
Out: eval/results/rda.json, resumable by model and image, and three figures:
     rda-entropies    differential, -log2 p~(y + u), against discrete, -log2 P(round(y)): one dot an image
     rda-distortions  distortion of the image decoded from y + u against that from round(y): one dot an image
     rda-pictures     an image near 0.12 bpp: JPEG, JPEG 2000, the autoencoders (`rda_pictures`)
     and Markdown tables of means over the images, of a Gaussian latent, and of the pictures.

Images are clamped to [0, 1] in both cases. Bits of files are those of real strings.

The right-hand panels show one Gaussian latent y ~ N(m, sigma^2) under its true distribution, where everything
is known. The differential entropy h = h(y + u) does not depend on m. The discrete entropy H = -sum P log2 P
is smallest if m is an integer and largest half-way between two integers. The error is 1/12 with noise; with
rounding it is smaller if sigma is small and m is an integer. At low rates most latents are of this last kind,
because they are rounded around their medians. Files are then smaller and better than the estimate of
training. They are better in part because of the recipe: at its end, `zoo/train/train.py` gives rounded
latents to the decoder (but not to the rate).
"""

from __future__ import annotations

import argparse
import functools
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from compressai.utils.eval_model.__main__ import read_image
from matplotlib import ticker
from scipy.special import ndtr
from torch import nn

from compressai_sga import zoo
from compressai_sga.models import rda
from compressai_sga.tasks.records import Record, mean_error
from compressai_sga.tasks.tasks import Task, add_options, run, run_options
from experiments.realism import rda_pictures
from images import KODAK
from reporting import EVAL, Cells, Figure, markdown, plt, save_beside

MODELS = ("rda-l2-small", "bmshj2018-factorized-small", "rda-l1-small")
PICTURED = ("rda-l2-small", "rda-l1-small")
TITLES = {"l2": "255² MSE", "l1": "255 MAE", "ms-ssim": "1 − MS-SSIM"}
IMAGE = "kodim01.png"  # the first that takes 0.12 bpp
SEED = 31230
SIGMAS = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.7, 1.0)


@functools.lru_cache(maxsize=1)
def load(name: str, quality: int) -> nn.Module:
    """A model of the zoo; the last one is kept."""
    return zoo.load(name, quality)


@torch.no_grad()
def measure(name: str, quality: int, image: str, kind: rda.Kind) -> dict[str, float]:
    """Bits a pixel and distortions of one image: with noise, with rounding; bits of its strings."""
    net, x = load(name, quality), read_image(Path(image))[None]
    pixels = x.shape[2] * x.shape[3]
    y = net.g_a(x)
    noise = torch.Generator().manual_seed(SEED)
    values = {}
    for how, y_hat in (("noise", rda.with_noise(y, noise)), ("rounding", rda.with_rounding(net, y))):
        x_hat = net.g_s(y_hat).clamp(0, 1)
        values[f"bpp_{how}"] = float(rda.latent_bits(net, y_hat)) / pixels
        values[f"distortion_{how}"] = float(rda.distortion(x, x_hat, kind))
    (string,) = net.entropy_bottleneck.compress(y)
    return {**values, "bpp_file": 8 * len(string) / pixels}


def gaussian(sigma: float, mean: float = 0.0) -> dict[str, float]:
    """The same of a latent N(mean, sigma^2) under its true law: bits, and squared error of the latent.

    H is a sum; h = -∫ q log2 q with q(v) = P(v) and the error of rounding are midpoint sums over 10 sigma.
    """
    reach = 10 * sigma + 1
    v, step = np.linspace(mean - reach, mean + reach, 400_001, retstep=True)

    def likelihood(at: np.ndarray) -> np.ndarray:
        return ndtr((at - mean + 0.5) / sigma) - ndtr((at - mean - 0.5) / sigma)

    def minus_p_log2_p(p: np.ndarray) -> np.ndarray:
        return -p * np.log2(np.maximum(p, 1e-300))

    density = np.exp(-0.5 * ((v - mean) / sigma) ** 2) / (sigma * math.sqrt(2 * math.pi))
    symbols = np.arange(math.floor(v[0]), math.ceil(v[-1]) + 1)
    return {
        "differential_bits": minus_p_log2_p(likelihood(v)).sum() * step,
        "discrete_bits": minus_p_log2_p(likelihood(symbols)).sum(),
        "mse_noise": 1 / 12,
        "mse_rounding": (density * (v - np.floor(v + 0.5)) ** 2).sum() * step,
    }


@dataclass(frozen=True)
class Weight:
    """A weight of the zoo and what was measured of every image."""

    name: str
    kind: rda.Kind
    lmbda: float
    images: list[dict[str, float]]


def scatter(axes: plt.Axes, weights: list[Weight], keys: tuple[str, str]) -> None:
    """One dot an image, a colour a lambda, on logarithmic axes with the diagonal."""
    for weight in weights:
        points = ([row[key] for row in weight.images] for key in keys)
        axes.loglog(*points, ".", label=f"λ = {weight.lmbda:g}")
    values = [row[key] for weight in weights for row in weight.images for key in keys]
    ends = (min(values) / 1.1, max(values) * 1.1)
    axes.plot(ends, ends, color="black", linewidth=0.8)
    axes.set(xlim=ends, ylim=ends, aspect="equal")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter("{x:g}")
        axis.set_minor_formatter(ticker.NullFormatter())
    axes.legend(fontsize="small")


def figures(cells: Cells) -> dict[str, Figure]:
    """rda-entropies and rda-distortions: a panel a kind of distortion, then the Gaussian latent."""
    weights, law, middle = measured(cells), laws(cells, 0.0), laws(cells, 0.5)
    kinds = list(dict.fromkeys(weight.kind for weight in weights))
    size = {"figsize": (4 * len(kinds) + 4, 4), "layout": "constrained", "dpi": 120}
    one, (entropies,) = plt.subplots(1, len(kinds) + 1, squeeze=False, **size)
    two, (distortions,) = plt.subplots(1, len(kinds) + 1, squeeze=False, **size)
    for kind, left, right in zip(kinds, entropies, distortions):
        of_kind = [weight for weight in weights if weight.kind == kind]
        scatter(left, of_kind, ("bpp_rounding", "bpp_noise"))
        left.set(xlabel="discrete, bpp: −log₂ P(round(y))", ylabel="differential, bpp: −log₂ p̃(y + u)")
        scatter(right, of_kind, ("distortion_rounding", "distortion_noise"))
        right.set(xlabel=f"{TITLES[kind]}, rounding", ylabel=f"{TITLES[kind]}, noise")
        for axes in (left, right):
            axes.set_title(f"trained for {TITLES[kind]}")
    left, right = entropies[-1], distortions[-1]
    left.plot(SIGMAS, [row["differential_bits"] for row in law], label="differential, h(y + u)")
    left.plot(SIGMAS, [row["discrete_bits"] for row in law], label="discrete, m an integer")
    left.plot(SIGMAS, [row["discrete_bits"] for row in middle], "--", label="discrete, m half-way")
    left.set(title="y ~ N(m, σ²), true law", xlabel="σ", ylabel="bits", ylim=(0, None))
    right.plot(SIGMAS, [row["mse_noise"] for row in law], label="noise, 1/12")
    right.plot(SIGMAS, [row["mse_rounding"] for row in law], label="rounding, m an integer")
    right.plot(SIGMAS, [row["mse_rounding"] for row in middle], "--", label="rounding, m half-way")
    right.set(title="y ~ N(m, σ²)", xlabel="σ", ylabel="squared error of y", ylim=(0, None))
    for axes in (left, right):
        axes.legend(fontsize="small")
    return {"rda-entropies": one, "rda-distortions": two}


def gaps(cells: Cells, what: str) -> dict[str, list[float]]:
    """Percent by which noise is above rounding, "bpp" or "distortion"; means of images, rates rising."""
    found: dict[str, list[float]] = {}
    for weight in measured(cells):
        each = [100 * (row[f"{what}_noise"] / row[f"{what}_rounding"] - 1) for row in weight.images]
        found.setdefault(weight.name, []).append(float(np.mean(each)))
    return found


def headline(cells: Cells) -> str:
    """The picture."""
    rows = rda_pictures.last(cells)
    each = ", ".join(
        f"{name} {rows[name]['psnr_rgb_db']:.2f} dB" for name in ("JPEG", PICTURED[0], "JPEG 2000")
    )
    return f"one image at {rows[PICTURED[0]]['bpp']:.2f} bpp or a little more: {each}"


def means_table(weights: list[Weight]) -> str:
    """Means over the images with the differences in percent, paired by image."""
    head = (
        "model | λ | differential, bpp | discrete, bpp | files, bpp | differential − discrete "
        "| distortion: noise | rounding | noise − rounding"
    )
    rows = []
    for weight in weights:
        row = [f"{weight.name}, {TITLES[weight.kind]}", f"{weight.lmbda:g}"]
        for kind, form, more in (("bpp", ".4f", ["bpp_file"]), ("distortion", ".4g", [])):
            keys = [f"{kind}_noise", f"{kind}_rounding"]
            noise, rounding = (np.array([image[key] for image in weight.images]) for key in keys)
            gap = mean_error(100 * (noise / rounding - 1))
            row += [format(np.mean([image[key] for image in weight.images]), form) for key in keys + more]
            row.append(f"{gap['mean']:+.1f} ± {gap['error']:.1f} %")
        rows.append(row)
    return markdown(head, rows)


def law_table(law: list[dict[str, float]]) -> str:
    """The Gaussian's numbers."""
    keys = ("differential_bits", "discrete_bits", "mse_noise", "mse_rounding")
    rows = [[str(sigma), *(f"{row[key]:.4f}" for key in keys)] for sigma, row in zip(SIGMAS, law)]
    return markdown("σ | h, bits | H, bits | error: noise | rounding", rows)


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, default=KODAK)
    parser.add_argument("--image", default=IMAGE, help="of that folder, for the pictures")
    parser.add_argument("--out", type=Path, default=EVAL / "results" / "rda.json")
    add_options(parser)
    args = parser.parse_args(argv)
    if not (args.data / args.image).is_file():
        parser.error(
            f"{args.data} holds no {args.image}; name the folder with --data, the image with --image"
        )
    return args


def tasks(paths: list[Path]) -> list[Task]:
    """Every image through every weight."""
    found = []
    for entry in (r for name in MODELS for r in zoo.list_models() if r.name == name):
        kind = entry.training.get("distortion", "l2")
        lmbda = entry.training.get("lmbda", entry.lmbda)
        of = {"sha256": entry.sha256, "kind": kind, "lmbda": lmbda, "seed": SEED}
        for path in paths:
            arguments = (entry.name, entry.quality, str(path), kind)
            found.append(Task(f"{entry.name}-{entry.quality} {path.stem}", of, measure, arguments))
    return found


def measured(cells: Cells) -> list[Weight]:
    """The weights of a results file, by kind and rate."""
    weights: dict[str, Weight] = {}
    for name, cell in cells.items():
        label = name.split(" ")[0]
        if "lmbda" in cell["of"]:
            of = cell["of"]
            weights.setdefault(label, Weight(label.rsplit("-", 1)[0], of["kind"], of["lmbda"], []))
            weights[label].images.append(cell["values"])
    return sorted(weights.values(), key=lambda weight: (weight.kind != "l2", weight.kind, weight.lmbda))


def laws(cells: Cells, mean: float) -> list[dict[str, float]]:
    """The Gaussian's rows of a results file, one a sigma."""
    return [cells[f"gaussian {mean} {sigma}"]["values"] for sigma in SIGMAS]


def tables(cells: Cells) -> str:
    """All tables of a results file, as Markdown."""
    return "\n\n".join((means_table(measured(cells)), law_table(laws(cells, 0.0)), rda_pictures.table(cells)))


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    record = Record(args.out)
    for mean in (0.0, 0.5):
        for sigma in SIGMAS:
            record.cell(f"gaussian {mean} {sigma}", {}, functools.partial(gaussian, sigma, mean))
    failures = run(record, tasks(sorted(args.data.glob("*.png"))), title="rda", **run_options(args))
    rda_pictures.make(record, args.data / args.image, PICTURED)
    for name, fig in figures(record.cells).items():
        save_beside(fig, name, record.path)
    print(tables(record.cells))
    return 1 if failures else 0
