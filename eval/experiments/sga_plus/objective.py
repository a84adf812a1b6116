# SPDX-License-Identifier: Apache-2.0
"""The objective that the authors of SGA and SGA+ optimise beside ours, on the same crops.

    python eval/run.py sga-objective --images KODAK
    python eval/run.py sga-objective --table            # prints what is there

Both minimise bpp + lmbda 255^2 MSE under relaxed rounding. They differ in what is rounded and charged:

                  ours (the real codec's)                      the authors'
    z             round(z - median) + median                   round(z)
    y             round(y - mean) + mean                       the same (SGA+); round(y) (Yang et al. 2020)
    p(y)          scale from the coder's table of 64           the predicted scale
    MSE           of x_hat clamped to [0, 1]                   of x_hat as it is

Each row of `ROWS` refines the same crops from the same start with the same noise, learning rate and schedule,
and changes some of these. Then the latents of the last step are coded by the model's own coder, and the
strings and the decoded image are measured, also where they are worse than without refinement. `own` is the
loss that the objective itself gives at these latents under hard rounding, as the authors report it.

Written from the formulas (Yang, Bamler & Mandt 2020; Perugachi-Diaz et al. 2024). Crops are of multiples of
64 pixels, so that there is no padding whose distortion could count.

In:  a folder of images (Kodak), a model of the zoo with means and scales.
Out: eval/results/sga-objective.json, one cell for each row; a Markdown table with paired differences.
Exit code 1 if something failed, 130 after Ctrl-C.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from compressai_sga import zoo
from compressai_sga.refine import trained_lmbda
from compressai_sga.refine.latents import HyperpriorLatents, Rounding, hard_rounding, table_scales
from compressai_sga.refine.loop import STRIDE, build_adapter
from compressai_sga.refine.objective import RateDistortion
from compressai_sga.refine.presets import PRESETS, RefineConfig
from compressai_sga.refine.synthesis import FastSynthesis
from compressai_sga.tasks.records import Record
from compressai_sga.tasks.tasks import Task, add_options, device, finish, run, run_options
from experiments.sga_plus.plan import LABELS
from experiments.sga_plus.runs import Estimate, estimate
from images import KODAK, centre_crop
from reporting import EVAL, Cells, markdown

__all__ = ["OBJECTIVES", "ROWS", "Objective", "code", "gaps", "headline", "main", "measure", "tables"]

NAME = "sga-objective"
EVERY, CROP, STEPS = 4, 128, 500  # those of the reduced form of `measure`


@dataclass(frozen=True)
class Objective:
    """Which parts are those of the real codec; the others are the authors'.

    Args:
        medians: z is rounded around its medians, and not to integers.
        means: y is rounded around its predicted means, and not to integers.
        table: scales are those of the coder's table.
        clamp: the distortion is that of the clamped image.
        precision: of the decoder in the loop.
    """

    medians: bool = True
    means: bool = True
    table: bool = True
    clamp: bool = True
    precision: str = "float32"


OURS, SGA_PLUS, SGA = "ours", "SGA+", "SGA"
OBJECTIVES = {
    OURS: Objective(),
    SGA_PLUS: Objective(medians=False, table=False, clamp=False),
    SGA: Objective(medians=False, means=False, table=False, clamp=False),
    "z to integers": Objective(medians=False),
    "continuous scales": Objective(table=False),
    "no clamp": Objective(clamp=False),
    "bfloat16": Objective(precision="bfloat16"),
}
TEXTS = {
    SGA_PLUS: "the authors' of SGA+",
    SGA: "Yang's: the same, and y to integers",
    "z to integers": "ours, z to integers",
    "continuous scales": "ours, continuous scales",
    "no clamp": "ours, no clamp",
    "bfloat16": "ours, decoder in bfloat16",
}
# Quality, method, objective.
ROWS: tuple[tuple[int, str, str], ...] = (
    (3, "ssl", OURS),
    (3, "ssl", SGA_PLUS),
    (6, "ssl", OURS),
    (6, "ssl", SGA_PLUS),
    (3, "atanh", OURS),
    (3, "atanh", SGA),
    *((3, "ssl", name) for name in list(OBJECTIVES)[3:]),
    (1, "ssl", OURS),
    (1, "ssl", SGA_PLUS),
)
METHOD_PRESETS = {"ssl": "ssl-paper", "atanh": "sga-paper"}


# --- Refining ----------------------------------------------------------------------------------------


def code(
    model: nn.Module, latents: dict[str, Tensor], rounding: Rounding, objective: Objective
) -> tuple[Tensor, Tensor]:
    """y_hat, and the bits of each image (B,) that the objective charges."""
    bottleneck, conditional = model.entropy_bottleneck, model.gaussian_conditional
    z, y = latents["z"], latents["y"]
    centre = bottleneck._get_medians().detach().reshape(1, -1, 1, 1) if objective.medians else 0.0
    z_hat = rounding(z - centre, "z") + centre
    p_z, _, _ = bottleneck._likelihood(z_hat.transpose(0, 1).reshape(z.shape[1], 1, -1))
    p_z = bottleneck.likelihood_lower_bound(p_z).reshape(z.shape[1], z.shape[0], -1)
    scales, means = model.h_s(z_hat).chunk(2, 1)
    centre = means if objective.means else 0.0
    y_hat = rounding(y - centre, "y") + centre
    scales = table_scales(scales, conditional) if objective.table else scales
    p_y = conditional.likelihood_lower_bound(conditional._likelihood(y_hat, scales, means))
    nats = -p_z.log().sum((0, 2)) - p_y.log().flatten(1).sum(1)
    return y_hat, nats / math.log(2)


def loss(x: Tensor, x_hat: Tensor, bits: Tensor, lmbda: float, objective: Objective) -> Tensor:
    """bpp + lmbda 255^2 MSE, (B,)."""
    x_hat = x_hat.clamp(0, 1) if objective.clamp else x_hat
    return bits / x[0, 0].numel() + lmbda * 255**2 * (x - x_hat).square().flatten(1).mean(1)


def measure(
    name: str, quality: int, config: RefineConfig, objective: Objective, paths: Sequence[str], crop: int
) -> dict[str, Any]:
    """Refine a batch by an objective, code it for real; values of each image."""
    start = time.process_time()
    x = torch.cat([centre_crop(Path(path), crop) for path in paths]).to(device())
    model = load(name, quality)
    adapter, lmbda = build_adapter(model, {}), trained_lmbda(model)
    if not isinstance(adapter, HyperpriorLatents) or adapter.has_context:
        raise ValueError(
            f"{name} is no mean-scale hyperprior, whose formulas these are; take mbt2018-mean-small"
        )
    initial, unrefined = adapter.latents_of(x)
    before = real(adapter, x, unrefined, lmbda)
    g_s = FastSynthesis(adapter.model.g_s, objective.precision, before.mse)
    latents = {key: value.detach().clone().requires_grad_() for key, value in initial.items()}
    optimizer = torch.optim.Adam(list(latents.values()), lr=0.0, betas=config.betas)
    generator = torch.Generator(x.device).manual_seed(config.seed)
    for step in range(config.steps):
        rounding = functools.partial(_relaxed, config, step, generator)
        y_hat, bits = code(adapter.model, latents, rounding, objective)
        optimizer.zero_grad()
        loss(x, g_s(y_hat), bits, lmbda, objective).sum().backward()
        optimizer.param_groups[0]["lr"] = config.lr(step, config.steps)
        optimizer.step()
    with torch.no_grad():
        y_hat, bits = code(adapter.model, latents, hard_rounding, objective)
        own = loss(x, adapter.synthesise(y_hat), bits, lmbda, objective)
        grid = adapter.code(latents, hard_rounding).grid
    after = real(adapter, x, adapter.compress(grid, x), lmbda)
    columns = {"loss_before": before.loss, "loss_after": after.loss, "own": own}
    columns |= {"bpp_after": after.bpp, "psnr_db_after": after.psnr_db}
    images = {
        Path(path).stem: {key: values[row].item() for key, values in columns.items()}
        for row, path in enumerate(paths)
    }
    return {"images": images, "lmbda": lmbda, "cpu_seconds": time.process_time() - start}


def _relaxed(config: RefineConfig, step: int, generator: torch.Generator, v: Tensor, name: str) -> Tensor:
    return config.relax(v, step, generator)


def real(adapter: HyperpriorLatents, x: Tensor, out: dict[str, Any], lmbda: float) -> RateDistortion:
    """Of strings, by the stock decoder."""
    sizes = [8 * sum(len(part[row]) for part in out["strings"]) for row in range(len(x))]
    bits = torch.tensor(sizes, dtype=torch.float32, device=x.device)
    return RateDistortion.measure(x, adapter.decompress(out), bits, lmbda, "mse")


@functools.lru_cache(maxsize=1)
def load(name: str, quality: int) -> nn.Module:
    """A model of the zoo where this process computes."""
    return zoo.load(name, quality).to(device())


def tasks(model: str, paths: Sequence[Path], crop: int, steps: int) -> list[Task]:
    """One for a row."""
    records = {r.quality: r for r in zoo.list_models() if r.name == model}
    found = []
    for quality, method, name in ROWS:
        config = dataclasses.replace(PRESETS[METHOD_PRESETS[method]], steps=steps)
        objective = OBJECTIVES[name]
        of = {
            "model": model,
            "sha256": records[quality].sha256,
            "row": [quality, method, name],
            "config": repr(config),
            "objective": dataclasses.asdict(objective),
            "crop": crop,
            "images": [path.stem for path in paths],
        }
        arguments = (model, quality, config, objective, [str(path) for path in paths], crop)
        found.append(Task(f"q{quality} {method} {steps} {name}", of, measure, arguments))
    return found


# --- Tables ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Gaps:
    """A row in percent of the unrefined losses, means over the images.

    Args:
        change: of the real loss by refinement.
        ours: real loss minus that of our objective; None for ours.
        own: the objective's own loss minus the real one.
        worse: images whose loss is above the unrefined one.
        of: settings of the cell.
    """

    change: Estimate
    ours: Estimate | None
    own: Estimate
    worse: int
    of: dict[str, Any]


def gaps(cells: Cells) -> dict[tuple[int, str, str], Gaps]:
    """By row, in the order of `ROWS`; those that were measured."""
    by_row = {tuple(cell["of"]["row"]): cell for cell in cells.values()}
    found = {}
    for row in ROWS:
        if row not in by_row:
            continue
        quality, method, name = row
        before, after, own = (_column(by_row[row], key) for key in ("loss_before", "loss_after", "own"))
        anchor = by_row.get((quality, method, OURS)) if name != OURS else None
        found[row] = Gaps(
            change=estimate(100 * (after / before - 1)),
            ours=estimate(100 * (after - _column(anchor, "loss_after")) / before) if anchor else None,
            own=estimate(100 * (own - after) / before),
            worse=int((after > before).sum()),
            of=by_row[row]["of"],
        )
    return found


def _column(cell: dict[str, Any], key: str) -> np.ndarray:
    images = cell["values"]["images"]
    return np.array([images[name][key] for name in sorted(images)])


def tables(cells: Cells) -> str:
    """One row for each refinement."""
    if not cells:
        return "nothing was measured yet"
    found = gaps(cells)
    rows = [
        [
            LABELS[method],
            str(quality),
            TEXTS.get(name, name),
            gap.change.text(),
            gap.ours.text() if gap.ours else "",
            gap.own.text(),
            str(gap.worse),
        ]
        for (quality, method, name), gap in found.items()
    ]
    head = ["method", "quality", "objective", "real loss against unrefined", "against ours"]
    head += ["its own loss minus the real one", "images worse than unrefined"]
    cell = next(iter(cells.values()))
    of, steps = cell["of"], next(iter(cells)).split()[2]
    minutes = sum(each["values"]["cpu_seconds"] for each in cells.values()) / 60
    note = (
        f"`{of['model']}`, {len(of['images'])} crops of {of['crop']} px, {steps} steps, presets `ssl-paper` "
        "and `sga-paper`; percent of the unrefined loss, means over the images with standard errors. "
        f"{minutes:.1f} minutes of processor time."
    )
    return f"{markdown(head, rows)}\n\n{note}"


def headline(cells: Cells) -> str:
    """The authors' objective against ours."""
    each = [
        f"{gap.ours.text()} ({LABELS[method]}, quality {quality})"
        for (quality, method, name), gap in gaps(cells).items()
        if gap.ours is not None and name in (SGA, SGA_PLUS)
    ]
    return f"real loss by the authors' objective minus that by ours: {', '.join(each)}"


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--images", type=Path, default=KODAK, help="folder of PNG images, of which every 4th")
    parser.add_argument("--model", default=zoo.DEFAULT_MODEL, help="of the zoo (default: %(default)s)")
    parser.add_argument("--crop", type=int, default=CROP, help="side of the square (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=STEPS, help="of each refinement (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=EVAL / "results" / f"{NAME}.json", help="results file")
    parser.add_argument("--table", action="store_true", help="only print what was measured before")
    add_options(parser)
    args = parser.parse_args(argv)
    if args.crop < STRIDE or args.crop % STRIDE:
        parser.error(f"--crop {args.crop} would need padding; take a multiple of {STRIDE}")
    args.paths = sorted(args.images.glob("*.png"))[::EVERY]
    if not args.table and not args.paths:
        parser.error(f"{args.images} holds no PNG image; name the folder of Kodak with --images")
    return args


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    record, failures = Record(args.out), {}
    if not args.table:
        todo = tasks(args.model, args.paths, args.crop, args.steps)
        failures = run(record, todo, title=NAME, **run_options(args))
    print(tables(record.cells))
    finish(failures)
