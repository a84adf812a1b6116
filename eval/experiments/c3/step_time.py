# SPDX-License-Identifier: Apache-2.0
"""Time of one step of C3's fit, in C++ against PyTorch.

    python eval/run.py c3-step-time [--size 256 256] [--rounds 15]     # some minutes on one core

Whole steps of the main phase of c3-fast (noise, loss, gradients, SOAP, Adam), one thread, a smooth random
image. The backends are timed in turn; `rounds` times each. CPU time of the process is measured, which other
programs change little, and ratios are of neighbours. Which set of instructions pays depends on the
processor: some execute 512 bits as two halves.

Out: a Markdown table on stdout.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
from torch import nn
from tqdm import tqdm

from compressai_sga.models.c3 import native
from compressai_sga.models.c3.config import PRESETS
from compressai_sga.models.c3.fit import memory
from compressai_sga.models.c3.fit.loop import Fit
from compressai_sga.tasks.provenance import measured_on
from compressai_sga.tasks.records import machine
from reporting import markdown

REFERENCE = "torch"
STEPS = 10  # of the other backends, for one of the reference


def measure(size: tuple[int, int], rounds: int) -> dict[str, list[float]]:
    """CPU seconds of a step by backend, one for each round."""
    few = tuple(-(-side // 8) for side in size)
    x = torch.rand(1, 3, *few, generator=torch.Generator().manual_seed(0))
    x = nn.functional.interpolate(x, size=size, mode="bicubic").clamp(0, 1)
    names = (REFERENCE, *native.KERNELS)
    steps = {name: 1 if name == REFERENCE else STEPS for name in names}
    preset = PRESETS["c3-fast"]
    fits = {name: Fit(x, preset, 1e-3, steps=20 * STEPS * (rounds + 1), backend=name) for name in names}
    times: dict[str, list[float]] = {name: [] for name in names}
    with memory.kept():
        for turn in tqdm(range(rounds + 1), unit="round"):
            for name, fit in fits.items():
                start = time.process_time()
                for _ in range(steps[name]):
                    fit.step()
                if turn:  # the first round warms up
                    times[name].append((time.process_time() - start) / steps[name])
    return times


def table(times: dict[str, list[float]]) -> str:
    """Medians, and ratios of neighbours."""
    rows = []
    for name, values in times.items():
        ratios = sorted(a / b for a, b in zip(times[REFERENCE], values, strict=True))
        spread = f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"
        rows.append([name, f"{1e3 * statistics.median(values):.1f}", spread])
    return markdown("backend | CPU ms a step (median) | torch / this (median, lowest to highest)", rows)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--size", type=int, nargs=2, default=(256, 256), help="height and width in pixels")
    parser.add_argument("--rounds", type=int, default=15)
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    times = measure(tuple(args.size), args.rounds)
    print(f"{table(times)}\n\nc3-fast, {args.size[0]}x{args.size[1]}, {args.rounds} rounds; ", end="")
    print(f"{measured_on(machine())}.")
