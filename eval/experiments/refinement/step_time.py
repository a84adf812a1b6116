# SPDX-License-Identifier: Apache-2.0
"""Time of one refinement step, compared with the loop published by the authors of SGA+.

    python eval/run.py step-time [--size 256] [--rounds 15]     # a minute on one core

Their loop (yperugachidiaz/flexible_neural_image_compression) is written here from its description, not from
its code. The weights stay trainable, so that the backward pass also computes their gradients. Tensors are
float32 and contiguous. Two columns of logits go through a relaxed one-hot distribution. Every step is
followed by a complete hard evaluation and reads several values back. Ours is the loop of
`compressai_sga.refine` with `ssl-paper`, in the precision that it chooses (bfloat16 where that is fast) and
in float32.

All loops do the same work: mean-scale hyperprior, SSL two-class relaxation, Adam on y and z, one thread. They
are timed in turn, `rounds` times a few steps each. CPU time of the process is measured, which other programs
hardly change.

Out: eval/results/step-time.json, the median time of a step of each loop and the ratios of neighbours; a
     Markdown table on stdout. A second call measures only on another kind of processor.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import statistics
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import RelaxedOneHotCategorical
from tqdm import tqdm

from compressai_sga import zoo
from compressai_sga.refine import trained_lmbda
from compressai_sga.refine.loop import _pad, _Run
from compressai_sga.refine.presets import RefineConfig
from compressai_sga.tasks.provenance import measured_on
from compressai_sga.tasks.records import Record, machine
from reporting import EVAL, Cells, markdown

STEPS = 10  # steps a round
THEIRS = "theirs, float32"


class PublishedLoop:
    """The comparison loop; `step` makes one step."""

    def __init__(self, model: nn.Module, x: Tensor, lmbda: float):
        self.model, self.x, self.lmbda = model, x, lmbda
        with torch.no_grad():
            y = model.g_a(x)
            z = model.h_a(y)
        self.y, self.z = y.requires_grad_(), z.requires_grad_()
        self.optimizer = torch.optim.Adam([self.y, self.z], lr=5e-3)
        self.count = 0

    def round_ssl(self, v: Tensor, temperature: float) -> Tensor:
        floor, ceil = v.floor(), v.ceil()
        u = torch.stack([v - floor, ceil - v], -1).clamp(1e-5, 1 - 1e-5)
        logits = -torch.log1p((u / (1 - u)) ** 2.3)
        weights = RelaxedOneHotCategorical(temperature, logits=logits / temperature).rsample()
        return (weights * torch.stack([floor, ceil], -1)).sum(-1)

    def loss(self, y: Tensor, z: Tensor, rounding) -> tuple[Tensor, ...]:
        model, pixels = self.model, self.x.shape[0] * self.x.shape[2] * self.x.shape[3]
        z_hat = rounding(z)
        values = z_hat.permute(1, 0, 2, 3).reshape(z.shape[1], 1, -1)
        p_z = model.entropy_bottleneck.likelihood_lower_bound(model.entropy_bottleneck._likelihood(values)[0])
        scales, means = model.h_s(z_hat).chunk(2, 1)
        y_hat = rounding(y - means) + means
        conditional = model.gaussian_conditional
        p_y = conditional.likelihood_lower_bound(conditional._likelihood(y_hat, scales, means))
        bpp_y, bpp_z = (-torch.log(p).sum() / (math.log(2) * pixels) for p in (p_y, p_z))
        mse = (model.g_s(y_hat) - self.x).pow(2).mean()
        return self.lmbda * 255**2 * mse + bpp_y + bpp_z, mse, bpp_y, bpp_z

    def step(self) -> None:
        temperature = min(1.0, math.exp(-1e-3 * self.count))
        self.count += 1
        relaxed = self.loss(self.y, self.z, lambda v: self.round_ssl(v, temperature))
        with torch.no_grad():
            hard = self.loss(self.y, self.z, torch.round)
        self.optimizer.zero_grad()
        relaxed[0].backward()
        self.optimizer.step()
        for value in (*relaxed, *hard):
            value.item()


def measure(name: str, quality: int, size: int, rounds: int) -> dict[str, Any]:
    """Milliseconds of a step by the median, and the ratios of theirs to each, by loop."""
    model = zoo.load(name, quality)
    image = torch.rand(1, 3, size // 8, size // 8, generator=torch.Generator().manual_seed(0))
    x = nn.functional.interpolate(image, size=(size, size), mode="bicubic").clamp(0, 1)
    lmbda = trained_lmbda(model)
    theirs = PublishedLoop(model, x, lmbda)

    def run_theirs() -> None:
        for _ in range(STEPS):
            theirs.step()

    runs = {THEIRS: run_theirs}
    padded, pad = _pad(x, None)
    for precision in ("auto", "float32"):
        config = RefineConfig.make(preset="ssl-paper", steps=STEPS, lmbda=lmbda)
        ours = _Run(model, padded, pad, dataclasses.replace(config, precision=precision), {})
        chosen = "bfloat16" if all(ours.fast.bfloat16) else "float32"
        label = f"ours, {precision}" + (f" ({chosen})" if precision == "auto" else "")
        runs[label] = partial(ours.descend, None)

    times: dict[str, list[float]] = {label: [] for label in runs}
    for turn in tqdm(range(rounds + 1), unit="round"):
        for label, run in runs.items():
            start = time.process_time()
            run()
            if turn:  # the first round warms up
                times[label].append((time.process_time() - start) / STEPS)
    return {
        label: {
            "ms": 1e3 * statistics.median(values),
            "theirs / this": sorted(a / b for a, b in zip(times[THEIRS], values, strict=True)),
        }
        for label, values in times.items()
    }


def headline(cells: Cells) -> str:
    """By the precision that our loop chooses, median of pairs."""
    (cell,) = cells.values()
    (ratios,) = (v["theirs / this"] for name, v in cell["values"].items() if name.startswith("ours, auto"))
    return f"{statistics.median(ratios):.1f} times as fast as the published loop, one thread"


def tables(cells: Cells, on: Mapping[str, str]) -> str:
    """A table a cell; `on` is the machine."""
    head = "loop | CPU ms a step (median) | published / this (median of pairs, lowest to highest)"
    parts = []
    for cell in cells.values():
        rows = []
        for label, values in cell["values"].items():
            ratios = values["theirs / this"]
            spread = f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"
            rows.append([label, f"{values['ms']:.0f}", spread])
        of = cell["of"]
        what = f"{of['model']} quality {of['quality']}, {of['size']}x{of['size']}, {of['rounds']} rounds"
        parts.append(f"{markdown(head, rows)}\n\n{what}; {measured_on(on)}.")
    return "\n\n".join(parts)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--size", type=int, default=256, help="side of the image in pixels")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--model", default=zoo.DEFAULT_MODEL)
    parser.add_argument("--quality", type=int, default=zoo.DEFAULT_QUALITY)
    parser.add_argument("--out", type=Path, default=EVAL / "results" / "step-time.json")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    record = Record(args.out)
    weight = next(r for r in zoo.list_models() if (r.name, r.quality) == (args.model, args.quality))
    of = {"model": args.model, "quality": args.quality, "sha256": weight.sha256}
    of |= {"size": args.size, "rounds": args.rounds, "steps": STEPS, "cpu": machine()["cpu"]}
    one = partial(measure, args.model, args.quality, args.size, args.rounds)
    record.cell(f"{args.model} {args.quality} {args.size} px", of, one)
    print(tables(record.cells, record.machine))
