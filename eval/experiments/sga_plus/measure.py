# SPDX-License-Identifier: Apache-2.0
"""The claims of SGA+ (Perugachi-Diaz et al. 2024), tested on the small zoo and Kodak.

    python eval/run.py sga-plus --reduced --workers 2
    python eval/run.py sga-plus --parts curves tmax       # whole images, for a GPU: eval/gpu_runs.md j
    python eval/run.py sga-plus --reduced --table         # prints and draws what is there

In:  a folder of images (Kodak); a model of the zoo; the parts of `plan`.
Out: eval/results/sga-plus[-reduced].json, one cell for each setting and batch: loss, bpp and PSNR of each
     image before and after, from real strings and the stock decoder; for some settings also the method's
     loss and the true loss during the run;
     eval/figures/sga-plus[-reduced]-PART.png; on stdout Markdown tables, and a table of the claims with
     computed verdicts (`claims`).

A cell belongs to the weight (sha256), the whole configuration, the crop and the images; a second call does
not measure it again. Unlike the papers' code, ours optimises the bits that are really coded, and keeps the
unrefined latents of an image if refining makes it worse. Exit code 1 if something failed, 130 after Ctrl-C.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import compressai_sga
from compressai_sga import zoo
from compressai_sga.refine import loop
from compressai_sga.refine.objective import distortion
from compressai_sga.tasks.records import Record
from compressai_sga.tasks.tasks import Task, add_options, device, finish, run, run_options
from experiments.sga_plus.figures import draw
from experiments.sga_plus.plan import FULL, PARTS, REDUCED, Plan, Setting, config
from experiments.sga_plus.report import tables
from images import KODAK, centre_crop
from reporting import EVAL

LOOKS = 20  # at the losses on the way, the last one after the last step
SECONDS_PER_PIXEL_STEP = 3.7e-7  # of one core of a busy 2-core AMD EPYC, six crops of 128 px at once


class Watched(loop._Run):
    """A refinement that looks at both losses every so many steps: of the same latents, image by image.

    It draws its own noise, so that the refinement is what it would be without.
    """

    def __init__(self, x: Tensor, model: nn.Module, config: compressai_sga.RefineConfig):
        x, pad = loop._pad(x, None)
        super().__init__(model, x, pad, config, {})
        self.own = torch.Generator(x.device).manual_seed(config.seed + 1000)
        self.looks: list[dict[str, Any]] = []

    def _rounding(self, step: int) -> Any:
        if step % max(1, self.config.steps // LOOKS) == 0:
            self.look(step, step)
        return super()._rounding(step)

    @torch.no_grad()
    def look(self, done: int, step: int) -> None:
        """Note the losses after `done` steps, with the temperature of `step`."""
        coded = self.adapter.code(self.latents, lambda v, name: self.config.relax(v, step, self.own))
        x_hat = self.adapter.synthesise(coded.y_hat)[..., self.crop[0], self.crop[1]]
        relaxed = coded.bits() / self.pixels + self.lmbda * distortion(self.x, x_hat, self.config.metric)
        true = self.hard_loss(self.latents)
        self.looks.append({"step": done, "method": relaxed.tolist(), "true": true.tolist()})

    def result(self) -> compressai_sga.RefineResult:
        """As `refine` returns it."""
        start, steps = time.perf_counter(), self.config.steps
        trace = self.descend(None)
        self.look(steps, steps - 1)
        return self.finish(trace, start)


@functools.lru_cache(maxsize=2)
def load(name: str, quality: int) -> nn.Module:
    """A model of the zoo where this process computes."""
    return zoo.load(name, quality).to(device())


def measure(name: str, setting: Setting, paths: Sequence[str], crop: int, watched: bool) -> dict[str, Any]:
    """Refine a batch of images of one size; values of each."""
    start = time.process_time()
    x = torch.cat([centre_crop(Path(path), crop) for path in paths]).to(device())
    model = load(name, setting.quality)
    if watched:
        run = Watched(x, model, config(setting))
        result, looks = run.result(), run.looks
    else:
        result, looks = compressai_sga.refine(model, x, config=config(setting)), []
    images = {
        Path(path).stem: {
            f"{key}_{when}": getattr(rd, key)[row].item()
            for when, rd in (("before", result.before), ("after", result.after))
            for key in ("loss", "bpp", "psnr_db")
        }
        for row, path in enumerate(paths)
    }
    cpu_seconds = time.process_time() - start
    seconds = round(result.seconds, 2)
    return {
        "images": images,
        "lmbda": result.lmbda,
        "cpu_seconds": cpu_seconds,
        "refine_seconds": seconds,
        "looks": looks,
    }


def batches(paths: Sequence[Path], plan: Plan) -> list[list[Path]]:
    """Images of one size, at most `plan.batch` together."""
    by_shape: dict[tuple[int, ...], list[Path]] = {}
    for path in paths:
        by_shape.setdefault(tuple(centre_crop(path, plan.crop).shape), []).append(path)
    size = plan.batch
    return [same[i : i + size] for same in by_shape.values() for i in range(0, len(same), size)]


def tasks(plan: Plan, parts: Sequence[str], model: str, paths: Sequence[Path]) -> list[Task]:
    """One for a setting and a batch."""
    records = {r.quality: r for r in zoo.list_models() if r.name == model}
    together = batches(paths, plan)
    found = []
    for setting in plan.settings(parts, model):
        for batch in together:
            of = {
                "model": model,
                "sha256": records[setting.quality].sha256,
                "setting": dataclasses.asdict(setting),
                "config": repr(config(setting)),
                "crop": plan.crop,
                "images": [path.stem for path in batch],
                "watched": plan.watched(setting),
            }
            arguments = (model, setting, [str(path) for path in batch], plan.crop, of["watched"])
            found.append(Task(f"{setting.name}: {batch[0].stem}+{len(batch)}", of, measure, arguments))
    return found


def expected(plan: Plan, missing: Sequence[Task], paths: Sequence[Path], workers: int) -> str:
    """What is to be done, and for how long."""
    sizes = {path.stem: centre_crop(path, plan.crop).shape for path in paths} if missing else {}
    work = 0
    for task in missing:
        steps = 1.1 * task.of["setting"]["steps"] + 20  # a look, a polish and the coding cost some
        work += sum(sizes[name].numel() // 3 * steps for name in task.of["images"])
    minutes = work * SECONDS_PER_PIXEL_STEP / 60
    what = f"crops of {plan.crop} px" if plan.crop else "whole images"
    return (
        f"{len(paths)} {what}, {len(missing)} refinements to do: about {minutes:.1f} minutes of one core of "
        f"a 2-core AMD EPYC, {minutes / workers:.1f} with {workers} of them idle"
    )


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--reduced", action="store_true", help="6 crops, fewer of all")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, metavar="PART", help=f"{PARTS}")
    parser.add_argument("--images", type=Path, default=KODAK, help="folder of PNG images")
    parser.add_argument("--model", default=zoo.DEFAULT_MODEL, help="of the zoo (default: %(default)s)")
    parser.add_argument("--qualities", type=int, nargs="+", help="of the curves")
    parser.add_argument("--steps", type=int, nargs="+", help="budgets, rising")
    parser.add_argument("--crop", type=int, help="side of the square in the middle; 0: whole images")
    parser.add_argument("--batch", type=int, help="images refined together")
    parser.add_argument("--out", type=Path, help="results file")
    parser.add_argument("--figures", type=Path, default=EVAL / "figures", help="folder of the figures")
    parser.add_argument("--table", action="store_true", help="only print and draw what was measured before")
    add_options(parser)
    args = parser.parse_args(argv)
    plan = REDUCED if args.reduced else FULL
    changes = {key: getattr(args, key) for key in ("crop", "batch") if getattr(args, key) is not None}
    if args.qualities:
        qualities = tuple(args.qualities)
        changes |= {"qualities": qualities, "long_qualities": qualities}
    if args.steps:
        changes |= {"steps": tuple(args.steps)}
        changes |= {"sweep_steps": tuple(args.steps[: len(plan.sweep_steps)])}
    args.plan = dataclasses.replace(plan, **changes)
    args.out = args.out or EVAL / "results" / f"sga-plus{'-reduced' if args.reduced else ''}.json"
    known = {r.quality for r in zoo.list_models() if r.name == args.model}
    if unknown := {*args.plan.qualities, args.plan.middle} - known:
        parser.error(f"{args.model} has no quality {min(unknown)}; the zoo has {sorted(known)}")
    args.paths = sorted(args.images.glob("*.png"))[:: args.plan.every]
    if not args.table and not args.paths:
        parser.error(f"{args.images} holds no PNG image; name the folder of Kodak with --images")
    return args


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    record, failures = Record(args.out), {}
    if not args.table:
        todo = tasks(args.plan, args.parts, args.model, args.paths)
        missing = [task for task in todo if record.known(task.name, task.of) is None]
        print(expected(args.plan, missing, args.paths, args.workers), flush=True)
        failures = run(record, todo, title="sga-plus", **run_options(args))
    print(tables(record.cells))
    if record.cells:
        draw(record.cells, args.figures, args.out.stem, [args.out])
    finish(failures)
