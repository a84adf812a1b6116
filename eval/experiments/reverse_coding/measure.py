# SPDX-License-Identifier: Apache-2.0
"""Sending a sample instead of a number: the cost of MRC, PFR, ORC and their hybrid with dithering.

Theis & Yosri, "Algorithms for the communication of samples", 2022 (ORC, hybrid); Havasi et al.,
"Minimal random code learning", 2019 (MRC); Li & El Gamal, "Strong functional representation lemma",
2018 (PFR).

    python eval/run.py reverse-coding             # all five parts, ten minutes of one core
    python eval/run.py reverse-coding --quick     # a tenth of the draws
    python eval/run.py reverse-coding --parts normal hybrid

normal:     N(m, 1) and the narrower N(m, 1/16) against N(0, 1), at KL = 4, 8 and 14 bits: bits of the
            number, of its Zipf code and of real bytes; error of the sample's mean and standard deviation.
            Truncated methods see N = 2^8, 2^12, 2^16 candidates. Exact PFR has no stop rule for N(m, 1),
            whose density ratio is unbounded, and is measured on the narrower target.
dirichlet:  the published experiment: ten targets from a Dirichlet(0.01) prior on 8192 symbols, a uniform
            proposal, N = 2^0 ... 2^10: total variation between target and histogram of the draws, and the
            entropy of the number, for MRC, PFR, ORC, rejection and greedy rejection sampling.
hybrid:     the published example: N(mu, 1) in two dimensions, mu ~ N(0, diag(40^2, 20^2)), against
            N(0, diag(40^2 + 1, 20^2 + 1)): candidates and bits of the hybrid and of plain PFR.
blocks:     a Gaussian of 3072 dimensions cut into blocks of bounded KL, as diffusion codecs need it: bits
            against the sum of the KLs, the bias of the sample towards zero, time.
speed:      candidates of an 8-dimensional block that one core scores in a second; with --device cuda the
            same on the GPU, and the number of blocks for which it chooses the same candidate as the CPU.

Out: eval/results/samples.json, eval/figures/samples.png, Markdown tables on stdout; with --quick the
     names end in -quick. A second call measures only what is missing.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time

import numpy as np
import torch
from scipy import stats

from compressai_sga.channels import blocks, hybrid, index_code, prng, reverse
from compressai_sga.channels.density_ratio import divergence_bits, log_ratio_bound
from compressai_sga.channels.distributions import DiagonalGaussian, Finite
from compressai_sga.tasks.records import Record, mean_error
from compressai_sga.tasks.tasks import Task, add_options, finish, run, run_options
from experiments.reverse_coding.report import figure, short_tables, tables
from reporting import EVAL, save_beside

PARTS = ("normal", "dirichlet", "hybrid", "blocks", "speed")
SEED = 20211025

# KL in bits: (candidates of the truncated methods, draws)
NORMAL = {4: (2**8, 40_000), 8: (2**12, 20_000), 14: (2**16, 4_000)}
NARROW = 0.25  # standard deviation of the target whose density ratio is bounded

SYMBOLS, CONCENTRATION, TARGETS, DIRICHLET_DRAWS = 8192, 0.01, 10, 50_000
COUNTS = tuple(2**e for e in range(11))

MEAN_SCALE = (40.0, 20.0)
CUT_MASS = 1e-4  # of the target, so that its support is bounded
HYBRID_DRAWS = 4_000

BLOCKS_DIMS, BLOCKS_TOTAL_BITS = 3072, 1024.0  # a 32x32 image, a third of a bit a value
BLOCKS_TRIALS, BLOCK_SPREAD_BITS = 4, 6
BLOCK_BITS = (2, 4, 6, 8, 10)
SPEED_DIMS = 8


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--parts", nargs="*", choices=PARTS, default=PARTS)
    parser.add_argument("--quick", action="store_true", help="a tenth of the draws")
    parser.add_argument("--device", default="cpu", help="for the part speed")
    add_options(parser)
    return parser.parse_args(argv)


# --- One-dimensional Gaussians ---------------------------------------------------------------------


def shift_of(kl_bits: float, std: float) -> float:
    """m > 0 with KL(N(m, std^2) || N(0, 1)) = kl_bits."""
    return math.sqrt(2 * (kl_bits * math.log(2) + math.log(std)) + 1 - std**2)


def normal(kl_bits: float, std: float, method: str, candidates: int | None, draws: int) -> dict:
    """Bits and law of the sample; `candidates` None is exact sampling."""
    mean = shift_of(kl_bits, std)
    one = torch.ones(1, dtype=torch.float64)
    target, proposal = DiagonalGaussian(mean * one, std * one), DiagonalGaussian(0 * one, one)
    block = torch.arange(draws)
    code = reverse.encode(
        target, proposal, method=method, seed=SEED, block=block, candidates=candidates, kl_bits=kl_bits
    )
    data = reverse.pack(code, kl_bits=kl_bits)
    sample = reverse.decode(code.index, proposal, method=method, seed=SEED, block=block)[:, 0].numpy()
    error = sample - mean
    deviation = error.std(ddof=1)
    return {
        "kl_bits": float(divergence_bits(target, proposal)),
        "log2_number_bits": mean_error(torch.log2(code.index + 1.0).numpy()),
        "zipf_bits": mean_error(index_code.zipf_bits(code.index, kl_bits, code.support).numpy()),
        "bytes_bits": 8 * len(data) / draws,
        "bound_bits": kl_bits + math.log2(kl_bits + 1) + 4,
        "bias": mean_error(error),
        "std": {"mean": deviation, "error": deviation / math.sqrt(2 * draws)},
        "law_p": float(stats.kstest(error / std, "norm").pvalue),
        "exact": bool(code.exact.all()),
        "examined": float(code.examined.double().mean()),
    }


def tasks_of_normal(scale: int) -> list[Task]:
    found = []
    for kl_bits, (candidates, draws) in NORMAL.items():
        for name, std in (("shifted", 1.0), ("narrow", NARROW)):
            runs = [(method, candidates) for method in ("mrc", "pfr", "orc")]
            for method, count in [*runs, ("pfr", None)] if name == "narrow" else runs:
                of = {
                    "kl_bits": kl_bits,
                    "std": std,
                    "method": method,
                    "candidates": count,
                }  # in the order of the arguments
                of["draws"] = draws // scale
                cell = f"normal {name} KL={kl_bits} {method}{'' if count else ' exact'}"
                found.append(Task(cell, of | {"seed": SEED}, normal, tuple(of.values())))
    return found


# --- Dirichlet targets on a finite alphabet ----------------------------------------------------------


def rejection_probabilities(log_ratio: torch.Tensor, count: int, greedy: bool) -> torch.Tensor:
    """Probability of accepting symbol z as candidate n, shape (n, symbols), for a uniform proposal.

    Greedy (Harsha et al. 2010): accept as much as the target still lacks,
    min(1, (q - q_so_far) / ((1 - sum q_so_far) p)); else the constant min p/q times q/p.
    """
    ratio = torch.exp(log_ratio)
    if not greedy:
        return (ratio / ratio.max()).expand(count, -1)
    rows, lacking = torch.zeros(count, len(ratio), dtype=torch.float64), ratio / len(ratio)
    for row in rows:
        missing = lacking.sum()
        if missing <= 0:
            row.fill_(1)
            continue
        row.copy_((lacking * len(ratio) / missing).clamp(0, 1))
        lacking = (lacking - missing * row / len(ratio)).clamp_min(0)
    return rows


def rejection(target: Finite, draws: int, greedy: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Number of the first accepted candidate, the last where there is none, and all candidates."""
    count, width = max(COUNTS), 128
    accept = rejection_probabilities(target.log_probs + math.log(SYMBOLS), count, greedy).float()
    first = torch.full((draws,), count - 1)
    symbols = torch.empty(draws, count, dtype=torch.int16)
    for chunk in range(count // width)[::-1]:  # from behind: the earliest acceptance is written last
        number = torch.arange(chunk * width, (chunk + 1) * width)
        for rows in torch.arange(draws).split(2048):
            address = {"lanes": width, "step": 1 + greedy, "block": rows, "candidate": chunk}
            symbol = (prng.words(SEED, **address) * SYMBOLS) >> 32
            coin = prng.uniform(SEED, purpose="time", **address)
            accepted = coin < accept[number, symbol]
            best = chunk * width + accepted.to(torch.int8).argmax(1)
            first[rows] = torch.where(accepted.any(1), best, first[rows])
            symbols[rows, chunk * width : (chunk + 1) * width] = symbol.to(torch.int16)
    return first, symbols


def histogram_distance(sample: torch.Tensor, probs: torch.Tensor) -> float:
    """Total variation between the histogram of the draws and the target."""
    seen = torch.bincount(sample.long(), minlength=SYMBOLS) / len(sample)
    return float((seen - probs).abs().sum() / 2)


def entropy_bits(index: torch.Tensor) -> float:
    """Of the histogram of the numbers."""
    return float(torch.special.entr(torch.bincount(index) / len(index)).sum() / math.log(2))


def dirichlet(target: int, draws: int) -> dict:
    """Total variation and entropy of the number for one target: {method: {N: (tv, entropy)}}."""
    probs = np.random.default_rng((SEED, target)).dirichlet(np.full(SYMBOLS, CONCENTRATION))
    probs = np.maximum(probs, 1e-300)  # underflow must not take symbols out of the support
    law, proposal = Finite.from_probs(torch.from_numpy(probs / probs.sum())), Finite.uniform(SYMBOLS)
    probs = torch.exp(law.log_probs)
    values = {"kl_bits": float(divergence_bits(law, proposal))}
    for method in ("mrc", "pfr", "orc"):
        values[method] = {}
        for count in COUNTS:
            code = reverse.encode(
                law, proposal, method=method, seed=SEED + target, block=torch.arange(draws), candidates=count
            )
            values[method][count] = (histogram_distance(code.sample, probs), entropy_bits(code.index))
    for method in ("rejection", "greedy"):
        first, symbols = rejection(law, draws, method == "greedy")
        values[method] = {}
        for count in COUNTS:
            index = first.clamp(max=count - 1)
            sample = symbols.gather(1, index[:, None])[:, 0]
            values[method][count] = (histogram_distance(sample, probs), entropy_bits(index))
    exact = reverse.encode(law, proposal, seed=SEED + target, block=torch.arange(draws))
    values["exact"] = (histogram_distance(exact.sample, probs), entropy_bits(exact.index))
    return values


def tasks_of_dirichlet(scale: int) -> list[Task]:
    found = []
    for target in range(TARGETS):
        of = {"target": target, "draws": DIRICHLET_DRAWS // scale}
        settings = of | {"symbols": SYMBOLS, "concentration": CONCENTRATION, "seed": SEED}
        found.append(Task(f"dirichlet {target}", settings, dirichlet, tuple(of.values())))
    return found


# --- The hybrid ------------------------------------------------------------------------------------


def hybrid_example(method: str, draws: int) -> dict:
    """Candidates and bits of exact sampling, by the hybrid or by plain PFR."""
    scale = torch.tensor(MEAN_SCALE, dtype=torch.float64)
    mean = scale * prng.normal(SEED, lanes=2, step=1, candidate=torch.arange(draws))
    target = DiagonalGaussian(mean, torch.ones_like(mean)).truncated(CUT_MASS)
    proposal = DiagonalGaussian(0 * scale, torch.sqrt(1 + scale**2))
    information_bits = float(torch.log2(1 + scale**2).sum() / 2)
    width = (target.high - target.low).amax(0)
    cells = hybrid.cell_counts(width, proposal) if method == "hybrid" else None
    code = reverse.encode(
        target,
        proposal,
        method=method,
        seed=SEED,
        block=torch.arange(draws),
        cells=cells,
        kl_bits=information_bits,
        max_candidates=2**31,
    )
    data = reverse.pack(code, kl_bits=information_bits)
    expected = torch.exp(log_ratio_bound(target, proposal))
    examined = code.examined.double().numpy()
    cell_bits = math.log2(math.prod(cells.tolist())) if method == "hybrid" else 0.0
    return {
        "information_bits": information_bits,
        "half_width": float(width[0] / 2),
        "cells": cells.tolist() if method == "hybrid" else [],
        "cell_bits": cell_bits,
        "log2_number_bits": mean_error(torch.log2(code.index + 1.0).numpy()),
        "code_bits": mean_error(code.bits.numpy()),
        "bytes_bits": 8 * len(data) / draws,
        "examined": mean_error(examined)
        | {"median": np.median(examined), "max": examined.max()}
        | {"quantiles": np.quantile(examined, np.linspace(0, 1, 51)).tolist()},
        "ratio_bound": {"mean": float(expected.mean()), "median": float(expected.median())},
        "law_p": float(stats.kstest((code.sample - mean).flatten().numpy(), "norm").pvalue),
        "exact": bool(code.exact.all()),
    }


def tasks_of_hybrid(scale: int) -> list[Task]:
    found = []
    for method in ("hybrid", "pfr"):
        of = {"method": method, "draws": HYBRID_DRAWS // scale}
        settings = of | {"mean_scale": MEAN_SCALE, "mass": CUT_MASS, "seed": SEED}
        found.append(Task(f"hybrid {method}", settings, hybrid_example, tuple(of.values())))
    return found


# --- Blocks ----------------------------------------------------------------------------------------


def blocks_of(method: str, block_bits: float, padding_bits: int, total_bits: float, trials: int) -> dict:
    """A Gaussian of many dimensions with a shifted mean, sent in blocks; sums or means over the trials."""
    mean = prng.normal(SEED, lanes=BLOCKS_DIMS, step=2**20)
    mean = mean * torch.sqrt(2 * total_bits * math.log(2) / mean.square().sum())
    zero, one = torch.zeros_like(mean), torch.ones_like(mean)
    totals = dict.fromkeys(("blocks", "kl_bits", "code_bits", "bytes_bits", "candidates", "cpu_sec"), 0.0)
    along, across, largest, decodes = [], [], 0.0, True
    for step in range(trials):
        start = time.process_time()
        code = blocks.encode_blocks(
            mean, one, zero, one, seed=SEED, step=step, method=method, block_bits=block_bits,
            max_block_bits=block_bits + BLOCK_SPREAD_BITS, padding_bits=padding_bits,
        )  # fmt: skip
        totals["cpu_sec"] += time.process_time() - start
        data = blocks.pack_blocks(code)
        plan, index = blocks.unpack_blocks(data, BLOCKS_DIMS, method=method)
        sample = blocks.decode_blocks(index, plan, zero, one, seed=SEED, step=step)
        decodes &= torch.equal(sample, code.sample)
        along.append(float((sample * mean).sum() / mean.square().sum()))
        across.append(float((sample - along[-1] * mean).std()))
        largest = max(largest, float(code.kl_bits.max()))
        totals["blocks"] += plan.blocks
        totals["kl_bits"] += float(code.kl_bits.sum())
        totals["code_bits"] += float(code.bits.sum())
        totals["bytes_bits"] += 8 * len(data)
        totals["candidates"] += float(torch.exp2(torch.ceil(code.kl_bits - 1e-9) + padding_bits).sum())
    return totals | {
        "block_kl_bits": {"mean": totals["kl_bits"] / totals["blocks"], "max": largest},
        "shrinkage": {
            "mean": 1 - statistics.mean(along),
            "error": 1 / float(mean.norm()) / math.sqrt(trials),  # of an unbiased sample
        },
        "std_across": statistics.mean(across),
        "decodes": decodes,
    }


def tasks_of_blocks(scale: int) -> list[Task]:
    found = []
    runs = [("orc", block_bits, 4) for block_bits in BLOCK_BITS]
    runs += [("orc", 8, padding_bits) for padding_bits in (0, 2, 6)]
    runs += [(method, 8, 4) for method in ("pfr", "mrc")]
    for method, block_bits, padding_bits in runs:
        of = {"method": method, "block_bits": block_bits, "padding_bits": padding_bits}
        of |= {"total_bits": BLOCKS_TOTAL_BITS, "trials": max(1, BLOCKS_TRIALS // scale)}
        cell = f"blocks {method} {block_bits}+{padding_bits}"
        settings = of | {"dims": BLOCKS_DIMS, "spread_bits": BLOCK_SPREAD_BITS, "seed": SEED}
        found.append(Task(cell, settings, blocks_of, tuple(of.values())))
    return found


# --- Speed -----------------------------------------------------------------------------------------


def speed(count: int, log2_candidates: int, rounds: int, device: str) -> dict:
    """Candidates of 8-dimensional blocks scored a second, in float32, and whether the CPU agrees."""
    mean = 0.5 * prng.normal(SEED, lanes=SPEED_DIMS, step=3, candidate=torch.arange(count))
    one = torch.ones_like(mean)

    def run(device: str, seed: int) -> torch.Tensor:
        target = DiagonalGaussian(mean.to(device), one.to(device))
        proposal = DiagonalGaussian(0 * target.mean[0], target.std[0])
        code = reverse.encode(
            target, proposal, method="orc", seed=seed, candidates=2**log2_candidates, dtype=torch.float32
        )
        return code.index.cpu()

    wall, cpu = [], []
    for turn in range(rounds + 1):  # the first round warms up
        start, start_cpu = time.perf_counter(), time.process_time()
        run(device, turn)
        wall.append(time.perf_counter() - start)
        cpu.append(time.process_time() - start_cpu)
    total = count * 2**log2_candidates
    values = {
        "candidates_a_sec_wall": total / statistics.median(wall[1:]),
        "candidates_a_sec_cpu": total / statistics.median(cpu[1:]),
        "fastest_a_sec_wall": total / min(wall[1:]),
    }
    if device == "cpu":
        return values
    ours, theirs = run(device, 0), run("cpu", 0)
    return values | {
        "device": torch.cuda.get_device_name(device),
        "same_numbers": float((ours == theirs).double().mean()),
    }


def tasks_of_speed(device: str) -> list[Task]:
    found = []
    for count, log2_candidates in ((1, 18), (256, 12)) if device == "cpu" else ((1, 24), (256, 16)):
        of = {"count": count, "log2_candidates": log2_candidates, "rounds": 15, "device": device}
        cell = f"speed {device} {count}x2^{log2_candidates}"
        found.append(Task(cell, of | {"dims": SPEED_DIMS}, speed, tuple(of.values())))
    return found


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    name, scale = ("samples-quick", 10) if args.quick else ("samples", 1)
    record = Record(EVAL / "results" / f"{name}.json")
    makers = {
        "normal": tasks_of_normal,
        "dirichlet": tasks_of_dirichlet,
        "hybrid": tasks_of_hybrid,
        "blocks": tasks_of_blocks,
    }
    todo = [task for part in args.parts if part in makers for task in makers[part](scale)]
    failures = run(record, todo, title="samples", **run_options(args))
    if "speed" in args.parts:  # of which wall time is measured: in this process, nothing beside it
        failures |= run(record, tasks_of_speed(args.device), title="samples, speed")
    print(f"{short_tables(record.cells)}\n\n{tables(record.cells)}")
    save_beside(figure(record.cells), name, record.path)
    finish(failures)
