# SPDX-License-Identifier: Apache-2.0
"""Perfect realism at the rate that the rate-distortion-perception function promises: the Gaussian.

Theis and Wagner 2021, "A coding theorem for the rate-distortion-perception function".

    python eval/run.py rdp-gaussian             # half a minute on one core
    python eval/run.py rdp-gaussian --quick     # a tenth of the blocks

Source: x ~ N(0, I_d), squared error a dimension. Sent is x_hat ~ N(rho x, (1 - rho^2) I_d), coded against
N(0, I_d) by exact Poisson functional representation with the Zipf code of the index. Then
* the information is R = -1/2 log2(1 - rho^2) bits a dimension;
* x_hat ~ N(0, I_d): perfect realism, at D = 2 - 2 rho = 2 - 2 sqrt(1 - 2^-2R), the least that R allows;
* the same bits decode without realism, as rho x_hat, to D = 1 - rho^2 = 2^-2R, the rate-distortion
  function;
* the code of one block has a mean length between d R and d R + log2(d R + 1) + 5 bits; a block of more
  dimensions pays this once.
The search is long where the target is unlikely: 2^(d R) exp(|x|^2 / 2) candidates for an x.

Out: eval/results/rdp_gaussian.json, for each number of dimensions and R: mean ideal code length of the
     Zipf model, mean length of the real bytes (one stream for all blocks), both distortions, the p-values
     of two two-sided Kolmogorov-Smirnov tests (all coordinates of x_hat against N(0, 1); of
     (x_hat - rho x) / sqrt(1 - rho^2) against N(0, 1)), and the number of candidates;
     eval/figures/rdp_gaussian.png; a Markdown table on stdout. With --quick both names end in -quick.
A second call measures only what is missing.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from matplotlib.figure import Figure
from scipy import stats

from compressai_sga.channels import prng, reverse
from compressai_sga.channels.distributions import DiagonalGaussian
from compressai_sga.tasks.provenance import save_figure
from compressai_sga.tasks.records import Record, mean_error
from compressai_sga.tasks.tasks import Task, add_options, finish, run

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

HERE = Path(__file__).resolve().parents[2]
SEED = 20210428
# (dimensions of a block, bits a dimension, blocks)
POINTS = (
    *((1, rate, 50_000) for rate in (0.1, 0.25, 0.5, 1, 1.5, 2, 3, 4, 5, 6)),
    (2, 0.5, 20_000),
    (4, 0.5, 10_000),
    (8, 0.5, 1_000),
    (2, 1, 20_000),
    (4, 1, 10_000),
    (6, 1, 1_000),
    (8, 1, 200),
)
MAX_CANDIDATES = 2**31  # of one block: the search always ends by its stop rule, or fails
CONSTANT_BITS = 5  # of the paper's bound R + log2(R + 1) + 5


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a tenth of the blocks")
    add_options(parser)
    return parser.parse_args(argv)


def realistic_distortion(rate: float | np.ndarray) -> float | np.ndarray:
    """Least squared error a dimension with x_hat ~ N(0, 1), at `rate` bits a dimension."""
    return 2 - 2 * np.sqrt(1 - np.exp2(-2 * rate))


def least_distortion(rate: float | np.ndarray) -> float | np.ndarray:
    """Least squared error a dimension without realism: the distortion-rate function."""
    return np.exp2(-2 * rate)


def bound_bits(information_bits: float | np.ndarray) -> float | np.ndarray:
    """Upper bound on the mean code length of a block."""
    return information_bits + np.log2(information_bits + 1) + CONSTANT_BITS


def measure(dims: int, rate_bits: float, blocks: int) -> dict:
    """Values of one cell: blocks of `dims` dimensions at `rate_bits` a dimension."""
    rho = math.sqrt(1 - 2 ** (-2 * rate_bits))
    information_bits = dims * rate_bits
    seed = SEED + 1000 * dims + round(100 * rate_bits)
    x = prng.normal(seed, lanes=dims, step=1, candidate=torch.arange(blocks))
    noise = torch.full_like(x, math.sqrt(1 - rho**2))
    proposal = DiagonalGaussian(torch.zeros(dims, dtype=x.dtype), torch.ones(dims, dtype=x.dtype))
    code = reverse.encode(
        DiagonalGaussian(rho * x, noise),
        proposal,
        seed=seed,
        kl_bits=information_bits,
        max_candidates=MAX_CANDIDATES,
    )
    data = reverse.pack(code, kl_bits=information_bits)
    index, _ = reverse.unpack(data, blocks, method="pfr", kl_bits=information_bits)
    x_hat = reverse.decode(index, proposal, seed=seed)
    residual = (x_hat - rho * x) / noise
    candidates = code.examined.double().numpy()
    return {
        "information_bits": information_bits,
        "code_bits": mean_error(code.bits.numpy()),
        "bytes_bits": 8 * len(data) / blocks,
        "bound_bits": float(bound_bits(information_bits)),
        "log2_index_bits": mean_error(torch.log2(index + 1.0).numpy()),
        "distortion": mean_error((x_hat - x).square().mean(1).numpy()),
        "formula": float(realistic_distortion(rate_bits)),
        "distortion_unrealistic": mean_error((rho * x_hat - x).square().mean(1).numpy()),
        "formula_unrealistic": float(least_distortion(rate_bits)),
        "realism_p": float(stats.kstest(x_hat.flatten().numpy(), "norm").pvalue),
        "channel_p": float(stats.kstest(residual.flatten().numpy(), "norm").pvalue),
        "exact": bool(code.exact.all()),
        "candidates": {"mean": candidates.mean(), "median": np.median(candidates), "max": candidates.max()},
    }


def tables(cells: Mapping[str, Any]) -> str:
    """Bits and distortions of every point, and the test for realism."""
    lines = [
        "| d | R, bits | bits sent | dR + log₂(dR + 1) + 5 | distortion | 2 - 2ρ | of its multiple ρ "
        "| 2^(-2R) | candidates, mean |",
        "|---" * 9 + "|",
    ]
    rows = sorted(cells.values(), key=lambda cell: (cell["of"]["dims"], cell["of"]["rate_bits"]))
    for row in rows:
        of, v = row["of"], row["values"]
        errors = (
            v["distortion"]["mean"],
            v["formula"],
            v["distortion_unrealistic"]["mean"],
            v["formula_unrealistic"],
        )
        lines.append(
            f"| {of['dims']} | {of['rate_bits']} | {v['bytes_bits']:.2f} | {v['bound_bits']:.2f} "
            f"| {' | '.join(f'{e:.4f}' for e in errors)} | {v['candidates']['mean']:.0f} |"
        )
    least = min(row["values"]["realism_p"] for row in rows)
    realism = f"Kolmogorov-Smirnov test for N(0, 1) of what is decoded: least p of {len(rows)}: {least:.2g}."
    return "\n".join([*lines, "", *_shared(rows), realism])


def _shared(rows: list[Mapping[str, Any]]) -> list[str]:
    """What a sample costs by itself and in the largest block, by rate."""
    lines = []
    for rate in sorted({row["of"]["rate_bits"] for row in rows}):
        same = {
            row["of"]["dims"]: row["values"]["bytes_bits"] / row["of"]["dims"]
            for row in rows
            if row["of"]["rate_bits"] == rate
        }
        if len(same) > 1:
            most = max(same)
            lines.append(
                f"In blocks of {most} samples, {rate} bit a sample costs {same[most]:.2f} bits instead of "
                f"{same[min(same)]:.2f}."
            )
    return lines


def figure(cells: Mapping[str, Any]) -> Figure:
    """Distortion against information; code length of a block; code length a dimension."""
    rows = list(cells.values())
    fig, (left, middle, right) = plt.subplots(1, 3, figsize=(13, 4.2), layout="constrained", dpi=150)
    rates = np.linspace(0.03, 6.3, 400)
    scalar = [r for r in rows if r["of"]["dims"] == 1]
    information = [r["of"]["rate_bits"] for r in scalar]
    curves = (
        (realistic_distortion, "distortion", "perfect realism: x̂, 2 − 2ρ", "C0", "o"),
        (least_distortion, "distortion_unrealistic", "no realism: ρ x̂, $2^{-2R}$", "C2", "^"),
    )
    for curve, key, label, color, marker in curves:
        left.plot(rates, curve(rates), color=color, lw=1)
        left.plot(
            information, [r["values"][key]["mean"] for r in scalar], marker, color=color, ms=5, label=label
        )
    left.set(xlabel="information R, bits", ylabel="squared error D", yscale="log")
    left.set_title("x ~ N(0, 1): one code, two reconstructions")
    left.legend(title="points: coded, lines: formulas", fontsize=9, title_fontsize=9)

    total = np.linspace(0, 6.3, 200)
    middle.fill_between(
        total, total, bound_bits(total), color="C0", alpha=0.12, lw=0, label="R to R + log₂(R+1) + 5"
    )
    middle.plot(information, [r["values"]["code_bits"]["mean"] for r in scalar], "o", ms=5, label="Zipf code")
    middle.plot(information, [r["values"]["bytes_bits"] for r in scalar], "k+", ms=7, label="real bytes")
    middle.plot(
        information,
        [r["values"]["log2_index_bits"]["mean"] for r in scalar],
        "v",
        ms=4,
        label="log₂ of the number (from 1)",
    )
    middle.set(xlabel="information R, bits", ylabel="bits", title="One number at a time")
    middle.legend(loc="upper left", fontsize=9)

    for rate, color in ((0.5, "C0"), (1, "C3")):
        same = [r for r in rows if r["of"]["rate_bits"] == rate]
        dims = np.array([r["of"]["dims"] for r in same])
        dense = np.linspace(1, dims.max(), 100)
        right.fill_between(dense, rate, bound_bits(dense * rate) / dense, color=color, alpha=0.1, lw=0)
        bits = np.array([r["values"]["code_bits"]["mean"] for r in same])
        right.plot(dims, bits / dims, "o-", lw=0.8, ms=5, color=color, label=f"R = {rate} bits a dimension")
        right.axhline(rate, color=color, lw=0.8, ls=":")
    right.set(
        xlabel="dimensions of a block", ylabel="bits a dimension", title="Vectors: the overhead is shared"
    )
    right.legend(title="dots: coded, shaded: bounds", fontsize=9, title_fontsize=9)
    for axes in (left, middle, right):
        axes.grid(alpha=0.3)
    return fig


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    name = "rdp_gaussian-quick" if args.quick else "rdp_gaussian"
    record, todo = Record(HERE / "results" / f"{name}.json"), []
    for dims, rate_bits, blocks in POINTS:
        blocks = blocks // 10 if args.quick else blocks
        of = {"dims": dims, "rate_bits": rate_bits, "blocks": blocks, "seed": SEED}
        todo.append(Task(f"d={dims} R={rate_bits}", of, measure, (dims, rate_bits, blocks)))
    how = {"workers": args.workers, "threads": args.threads, "ray": args.ray}
    failures = run(record, todo, title="rdp_gaussian", **how)
    print(tables(record.cells))
    save_figure(figure(record.cells), HERE / "figures" / f"{name}.png", [record.path])
    finish(failures)
