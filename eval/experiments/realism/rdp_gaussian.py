# SPDX-License-Identifier: Apache-2.0
"""Perfect realism at the rate of the rate-distortion-perception function, for a Gaussian source.

Theis and Wagner 2021, "A coding theorem for the rate-distortion-perception function".

    python eval/run.py rdp-gaussian             # half a minute on one core
    python eval/run.py rdp-gaussian --quick     # a tenth of the blocks

Source: x ~ N(0, I_d), squared error per dimension. The sample x_hat ~ N(rho x, (1 - rho^2) I_d) is sent,
coded against N(0, I_d) by exact Poisson functional representation with the Zipf code of the index. Then
* the information is R = -1/2 log2(1 - rho^2) bits per dimension;
* x_hat ~ N(0, I_d): perfect realism, at D = 2 - 2 rho = 2 - 2 sqrt(1 - 2^-2R), the least that R allows;
* the same bits decode without realism, as rho x_hat, to D = 1 - rho^2 = 2^-2R, the rate-distortion
  function;
* the code of one block has a mean length between d R and d R + log2(d R + 1) + 5 bits; a block of more
  dimensions pays this once.
The search is long for unlikely targets: it takes 2^(d R) exp(|x|^2 / 2) candidates for an x.

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
from typing import Any

import numpy as np
import torch
from scipy import stats

from compressai_sga.channels import prng, reverse
from compressai_sga.channels.distributions import DiagonalGaussian
from compressai_sga.tasks.records import Record, mean_error
from compressai_sga.tasks.tasks import Task, add_options, finish, run, run_options
from reporting import EVAL, Cells, Figure, markdown, plt, save_beside

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


def points(cells: Cells) -> list[dict[str, Any]]:
    """Settings and values, dimensions rising, then rates."""
    found = [cell["of"] | cell["values"] for cell in cells.values()]
    return sorted(found, key=lambda p: (p["dims"], p["rate_bits"]))


def headline(cells: Cells) -> str:
    """One bit, alone and in blocks."""
    of = {(p["dims"], p["rate_bits"]): p for p in points(cells)}
    one, eight = of[1, 1], of[8, 1]
    return (
        f"1 bit: squared error {one['distortion']['mean']:.3f} with perfect realism (theory "
        f"{one['formula']:.3f}); {eight['bytes_bits'] / 8:.2f} bits a sample are sent in blocks of 8"
    )


def tables(cells: Cells) -> str:
    """Bits and distortions of every point, and the test for realism."""
    head = (
        "d | R, bits | bits sent | dR + log₂(dR + 1) + 5 | distortion | 2 - 2ρ | of its multiple ρ "
        "| 2^(-2R) | candidates, mean"
    )
    found, rows = points(cells), []
    for p in found:
        row = [f"{p['dims']}", f"{p['rate_bits']}", f"{p['bytes_bits']:.2f}", f"{p['bound_bits']:.2f}"]
        for name in ("", "_unrealistic"):
            row += [f"{p[f'distortion{name}']['mean']:.4f}", f"{p[f'formula{name}']:.4f}"]
        rows.append([*row, f"{p['candidates']['mean']:.0f}"])
    least = min(p["realism_p"] for p in found)
    realism = f"Kolmogorov-Smirnov test for N(0, 1) of what is decoded: least p of {len(found)}: {least:.2g}."
    return "\n".join([markdown(head, rows), "", *_shared(found), realism])


def _shared(found: list[dict[str, Any]]) -> list[str]:
    """What a sample costs by itself and in the largest block, by rate."""
    lines = []
    for rate in sorted({p["rate_bits"] for p in found}):
        same = {p["dims"]: p["bytes_bits"] / p["dims"] for p in found if p["rate_bits"] == rate}
        if len(same) > 1:
            most = max(same)
            lines.append(
                f"In blocks of {most} samples, {rate} bit a sample costs {same[most]:.2f} bits instead of "
                f"{same[min(same)]:.2f}."
            )
    return lines


def figure(cells: Cells) -> Figure:
    """Distortion against information; code length of a block; code length a dimension."""
    found = points(cells)
    fig, (left, middle, right) = plt.subplots(1, 3, figsize=(13, 4.2), layout="constrained", dpi=150)
    rates = np.linspace(0.03, 6.3, 400)
    scalar = [p for p in found if p["dims"] == 1]
    information = [p["rate_bits"] for p in scalar]
    curves = (
        (realistic_distortion, "distortion", "perfect realism: x̂, 2 − 2ρ", "C0", "o"),
        (least_distortion, "distortion_unrealistic", "no realism: ρ x̂, $2^{-2R}$", "C2", "^"),
    )
    for curve, key, label, color, marker in curves:
        left.plot(rates, curve(rates), color=color, lw=1)
        left.plot(information, [p[key]["mean"] for p in scalar], marker, color=color, ms=5, label=label)
    left.set(xlabel="information R, bits", ylabel="squared error D", yscale="log")
    left.set_title("x ~ N(0, 1): one code, two reconstructions")
    left.legend(title="points: coded, lines: formulas", fontsize=9, title_fontsize=9)

    total = np.linspace(0, 6.3, 200)
    middle.fill_between(
        total, total, bound_bits(total), color="C0", alpha=0.12, lw=0, label="R to R + log₂(R+1) + 5"
    )
    middle.plot(information, [p["code_bits"]["mean"] for p in scalar], "o", ms=5, label="Zipf code")
    middle.plot(information, [p["bytes_bits"] for p in scalar], "k+", ms=7, label="real bytes")
    middle.plot(
        information,
        [p["log2_index_bits"]["mean"] for p in scalar],
        "v",
        ms=4,
        label="log₂ of the number (from 1)",
    )
    middle.set(xlabel="information R, bits", ylabel="bits", title="One number at a time")
    middle.legend(loc="upper left", fontsize=9)

    for rate, color in ((0.5, "C0"), (1, "C3")):
        same = [p for p in found if p["rate_bits"] == rate]
        dims = np.array([p["dims"] for p in same])
        dense = np.linspace(1, dims.max(), 100)
        right.fill_between(dense, rate, bound_bits(dense * rate) / dense, color=color, alpha=0.1, lw=0)
        bits = np.array([p["code_bits"]["mean"] for p in same])
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
    record, todo = Record(EVAL / "results" / f"{name}.json"), []
    for dims, rate_bits, blocks in POINTS:
        blocks = blocks // 10 if args.quick else blocks
        of = {"dims": dims, "rate_bits": rate_bits, "blocks": blocks, "seed": SEED}
        todo.append(Task(f"d={dims} R={rate_bits}", of, measure, (dims, rate_bits, blocks)))
    failures = run(record, todo, title="rdp_gaussian", **run_options(args))
    print(tables(record.cells))
    save_beside(figure(record.cells), name, record.path)
    finish(failures)
