# SPDX-License-Identifier: Apache-2.0
"""Under perfect realism a stochastic encoder beats every deterministic one: the example of the circle.

Theis and Agustsson 2021, "On the advantages of stochastic encoders".

    python eval/run.py stochastic-encoders             # 15 numbers of codes, 10^6 draws each: half a minute
    python eval/run.py stochastic-encoders --draws 1000

Source: x uniform on the unit circle, squared error, M codes. With s = sin(pi/M) / (pi/M):
* deterministic encoder: the arc of 2 pi/M that holds x; the decoder draws x_hat uniformly from that
  arc with randomness of its own. Perfect realism, D = 2 - 2 s^2.
* stochastic encoder: the angle in units of 2 pi/M goes through universal quantisation
  (`compressai_sga.channels.universal_quantisation`) with a dither known to both; the index modulo M is one
  of exactly M codes. Perfect realism, D = 2 - 2 s.
* no realism: the arc's centroid. D = 1 - s^2, the least that M codes allow.

Out: eval/results/stochastic_encoders.json, for each M and scheme the mean distortion with its standard
     error, the formula, the number of different codes and the entropy of the code, and the two-sided
     Kolmogorov-Smirnov p-value of "angle of x_hat is uniform and its radius is 1" (0 where the radius
     is not 1); eval/figures/stochastic_encoders.png; a Markdown table on stdout.
A second call measures only what is missing.
"""

from __future__ import annotations

import argparse
import math

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from compressai_sga.channels import prng
from compressai_sga.channels import universal_quantisation as universal
from compressai_sga.tasks.records import Record, mean_error
from compressai_sga.tasks.tasks import Task, add_options, finish, run, run_options
from reporting import EVAL, Cells, Figure, markdown, plt, save_beside

SEED = 20210210
CODES = tuple(range(2, 17))
SCHEMES = {
    "deterministic": "deterministic encoder, realism",
    "stochastic": "stochastic encoder, realism",
    "no-realism": "no realism",
}
Z_99 = 2.576  # half width of a two-sided 99 % interval in standard errors


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--draws", type=int, default=1_000_000, help="of x for each M and scheme")
    parser.add_argument("--codes", type=int, nargs="*", default=CODES, metavar="M")
    add_options(parser)
    return parser.parse_args(argv)


def distortion(scheme: str, codes: float | np.ndarray) -> float | np.ndarray:
    """Expected squared error by formula, for any M >= 2."""
    s = np.sinc(1 / np.asarray(codes, dtype=np.float64))
    if scheme == "deterministic":
        return 2 - 2 * s**2
    if scheme == "stochastic":
        return 2 - 2 * s
    if scheme == "no-realism":
        return 1 - s**2
    raise ValueError(f"unknown scheme {scheme!r}, use one of {', '.join(SCHEMES)}")


def send(scheme: str, codes: int, angle: Tensor, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Code angles and decode them: (code in [0, M), angle of x_hat, radius of x_hat)."""
    arc = 2 * math.pi / codes
    if scheme == "stochastic":
        dither = universal.dither(seed, (len(angle),), step=codes)
        index = universal.quantise(angle, dither, step=arc)
        angle_hat = universal.dequantise(index, dither, step=arc)
        return index.long().remainder(codes), angle_hat, torch.ones_like(angle)
    code = (angle / arc).floor().long().clamp(max=codes - 1)
    if scheme == "deterministic":
        private = prng.uniform(seed, lanes=len(angle), step=codes, block=1)
        return code, (code + private) * arc, torch.ones_like(angle)
    if scheme == "no-realism":
        radius = math.sin(math.pi / codes) / (math.pi / codes)
        return code, (code + 0.5) * arc, torch.full_like(angle, radius)
    raise ValueError(f"unknown scheme {scheme!r}, use one of {', '.join(SCHEMES)}")


def measure(scheme: str, codes: int, draws: int) -> dict:
    """Values of one cell: one scheme with M codes."""
    seed = SEED + list(SCHEMES).index(scheme)  # each scheme has a source of its own
    angle = 2 * math.pi * prng.uniform(seed, lanes=draws, step=codes)
    code, angle_hat, radius = send(scheme, codes, angle, seed)
    error = (radius * angle_hat.cos() - angle.cos()) ** 2 + (radius * angle_hat.sin() - angle.sin()) ** 2
    counts = torch.bincount(code, minlength=codes).double()
    turns = (angle_hat / (2 * math.pi)).remainder(1)
    realistic = bool((radius == 1).all())
    return {
        "distortion": mean_error(error.numpy()),
        "formula": float(distortion(scheme, codes)),
        "codes_used": int((counts > 0).sum()),
        "entropy_bits": float(torch.special.entr(counts / draws).sum() / math.log(2)),
        "realism_p": float(stats.kstest(turns.numpy(), "uniform").pvalue) if realistic else 0.0,
    }


def counts(cells: Cells) -> list[int]:
    """Numbers of codes for which all schemes were measured."""
    found = {int(name.split("M=")[1]) for name in cells}
    return sorted(m for m in found if all(f"{scheme} M={m}" in cells for scheme in SCHEMES))


def means(cells: Cells) -> dict[int, dict[str, float]]:
    """Simulated distortions by number of codes and scheme."""
    return {
        m: {s: cells[f"{s} M={m}"]["values"]["distortion"]["mean"] for s in SCHEMES} for m in counts(cells)
    }


def headline(cells: Cells) -> str:
    """Two codes."""
    two = means(cells)[2]
    return (
        f"two codes, perfect realism: squared error {two['stochastic']:.3f} with shared randomness, "
        f"{two['deterministic']:.3f} without"
    )


def tables(cells: Cells) -> str:
    """Simulated distortions, and how far they are from the formulas."""
    head = "codes | deterministic encoder | shared randomness | no realism | deterministic / shared"
    rows, off, draws = [], [], set()
    for m, found in means(cells).items():
        for scheme in SCHEMES:
            cell = cells[f"{scheme} M={m}"]
            off.append(abs(found[scheme] - cell["values"]["formula"]) / cell["values"]["distortion"]["error"])
            draws.add(cell["of"]["draws"])
        ratio = found["deterministic"] / found["stochastic"]
        rows.append([str(m), *(f"{mean:.4f}" for mean in found.values()), f"{ratio:.3f}"])
    drawn = " or ".join(f"{count:,}" for count in sorted(draws))
    return (
        f"{markdown(head, rows)}\n\nSquared error by simulation, {drawn} draws each, within {max(off):.1f} "
        "standard errors of 2 - 2s², 2 - 2s and 1 - s²."
    )


def figure(cells: Cells) -> Figure:
    """Simulated points on the formulas' curves; beside them the ratios that tend to 2 and to 1."""
    codes = counts(cells)
    fig, (left, right) = plt.subplots(1, 2, figsize=(10, 4.2), layout="constrained", dpi=150)
    dense = np.linspace(min(codes), max(codes), 300)
    points = {s: [cells[f"{s} M={m}"]["values"]["distortion"] for m in codes] for s in SCHEMES}
    for (scheme, label), marker in zip(SCHEMES.items(), "os^"):
        (line,) = left.plot(dense, distortion(scheme, dense), lw=1)
        middles, errors = ([p[key] for p in points[scheme]] for key in ("mean", "error"))
        bars = [Z_99 * e for e in errors]
        left.errorbar(codes, middles, bars, fmt=marker, ms=5, color=line.get_color(), label=label)
    left.set(
        xlabel="number of codes M", ylabel="E |x − x̂|²", yscale="log", title="Uniform on the unit circle"
    )
    left.legend(title="points: simulated, lines: formulas", fontsize=9, title_fontsize=9)
    ratios = (
        ("deterministic", "stochastic", "price of a deterministic encoder", "C0", "o"),
        ("stochastic", "no-realism", "price of realism, stochastic encoder", "C1", "s"),
    )
    for above, below, label, color, marker in ratios:
        right.plot(dense, distortion(above, dense) / distortion(below, dense), lw=1, color=color)
        values = [a["mean"] / b["mean"] for a, b in zip(points[above], points[below])]
        relative = [
            Z_99 * math.hypot(a["error"] / a["mean"], b["error"] / b["mean"])
            for a, b in zip(points[above], points[below])
        ]
        bars = [v * r for v, r in zip(values, relative)]
        right.errorbar(codes, values, bars, fmt=marker, ms=5, color=color, label=label)
    right.axhline(2, color="grey", lw=0.8, ls=":")
    right.axhline(1, color="grey", lw=0.8, ls=":")
    right.set(
        xlabel="number of codes M", ylabel="ratio of distortions", ylim=(0.9, 2.1), title="Limits 2 and 1"
    )
    right.legend(loc="center right", fontsize=9)
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.set_xticks(range(min(codes), max(codes) + 1, 2 if max(codes) > 8 else 1))
    return fig


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    record, of = Record(EVAL / "results" / "stochastic_encoders.json"), {"draws": args.draws, "seed": SEED}
    todo = [
        Task(f"{scheme} M={codes}", of, measure, (scheme, codes, args.draws))
        for codes in args.codes
        for scheme in SCHEMES
    ]
    failures = run(record, todo, title="stochastic_encoders", **run_options(args))
    print(tables(record.cells))
    save_beside(figure(record.cells), "stochastic_encoders", record.path)
    finish(failures)
