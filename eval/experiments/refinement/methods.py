# SPDX-License-Identifier: Apache-2.0
"""Every refinement method on the same crops of Kodak: loss, bits, PSNR and seconds.

    python eval/run.py refine-methods                             # every entry of ENTRIES
    python eval/run.py refine-methods --entries ssl:500 fast:86   # some; --table prints what is there

In:  a folder of images, of which the central squares are used (--crop, 0 for whole images); a model of
     the zoo; entries PRESET:STEPS.
Out: eval/results/refine-methods-NAME-QUALITY[-cropN].json, one cell for each entry and batch: loss, bpp and
     PSNR of every image before and after (real strings, stock decoder), and the trace of the relaxed loss;
     eval/figures/refine-methods.png (loss against steps); a Markdown table on stdout.

The loss is bpp + lmbda 255^2 MSE with hard rounding; "lowering" is 1 - (mean loss after) / (mean loss
before). Images are refined in batches of one shape. A second call measures only entries whose weight (by
sha256), preset settings or batch have changed.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import nn

import compressai_sga
from compressai_sga import zoo
from compressai_sga.tasks.records import Record
from compressai_sga.tasks.tasks import Task, add_options, finish, run, run_options
from images import KODAK, centre_crop
from reporting import EVAL, Cells, Figure, markdown, plt, read_cells, save_beside

SHOWN = "refine-methods-mbt2018-mean-small-3-crop128"  # the results that the documents show
ENTRIES = (
    "polish:0",
    "fast:30",
    "fast:86",
    "ssl:500",
    "best:470",
    "ssl-paper:500",
    "sga-paper:500",
    "ssl-paper:2000",
    "ssl:200",
    "atanh:500",
    "linear:500",
    "cosine:500",
    "soft-round:500",
    "soft-round-kumaraswamy:500",
    "annealing:500",
    "linear3:500",
    "cosine3:500",
    "ssl3:500",
    "noise:500",
    "ste:500",
    "linear-paper:500",
    "cosine-paper:500",
    "ssl3-paper:500",
    "noise-paper:500",
    "ste-paper:500",
)
Results = dict[str, dict[str, Any]]


def parser_of(description: str, entries: Sequence[str]) -> argparse.ArgumentParser:
    """The options of what, how, and where to refine; `entries` are the default ones."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--images", type=Path, default=KODAK)
    parser.add_argument("--crop", type=int, default=128, help="side of the crop, 0: whole image")
    parser.add_argument("--batch", type=int, default=24)
    parser.add_argument("--model", default=zoo.DEFAULT_MODEL)
    parser.add_argument("--entries", nargs="*", default=entries, metavar="PRESET:STEPS")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add_options(parser)
    return parser


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = parser_of(__doc__.split("\n")[0], ENTRIES)
    parser.add_argument("--quality", type=int, default=zoo.DEFAULT_QUALITY)
    parser.add_argument("--table", action="store_true", help="only print what was measured before")
    return parser.parse_args(argv)


def batches(paths: list[Path], crop: int, count: int) -> list[list[Path]]:
    """Images whose crops have one shape, at most `count` together."""
    by_shape: dict[tuple[int, ...], list[Path]] = {}
    for path in paths:
        with Image.open(path) as image:
            shape = tuple(min(crop or side, side) for side in image.size)
        by_shape.setdefault(shape, []).append(path)
    return [same[i : i + count] for same in by_shape.values() for i in range(0, len(same), count)]


@functools.lru_cache(maxsize=1)
def load(name: str, quality: int, device: str) -> nn.Module:
    """A model of the zoo; the last one is kept."""
    return zoo.load(name, quality).to(device)


def config_of(preset: str, steps: int) -> compressai_sga.RefineConfig:
    """All presets in the same precision, so that their times compare; the papers' presets are in float32."""
    config = compressai_sga.RefineConfig.make(preset=preset, steps=steps)
    return dataclasses.replace(config, precision="auto")


def refined(
    name: str, quality: int, preset: str, steps: int, paths: list[Path], crop: int, device: str
) -> dict[str, Any]:
    """A batch before and after, image by image, and every tenth relaxed loss on the way."""
    x = torch.cat([centre_crop(path, crop) for path in paths]).to(device)
    result = compressai_sga.refine(load(name, quality, device), x, config=config_of(preset, steps))
    images = {
        path.stem: {
            f"{key}-{when}": getattr(rd, key)[row].item()
            for when, rd in (("before", result.before), ("after", result.after))
            for key in ("loss", "bpp", "psnr_db")
        }
        for row, path in enumerate(paths)
    }
    trace = [step["loss"] for step in result.trace[::10]]
    return {"images": images, "trace": trace, "lmbda": result.lmbda}


def tasks(args: argparse.Namespace) -> list[Task]:
    """Every entry and batch."""
    paths = sorted(args.images.glob("*.png"))
    if not paths:
        raise FileNotFoundError(f"no PNG image in {args.images}; name the Kodak folder with --images")
    weight = next(r for r in zoo.list_models() if (r.name, r.quality) == (args.model, args.quality))
    found = []
    for entry in args.entries:
        preset, steps = entry.split(":")
        config = config_of(preset, int(steps))
        for batch in batches(paths, args.crop, args.batch):
            names = [path.stem for path in batch]
            of = {"sha256": weight.sha256, "config": repr(config), "images": names}
            arguments = (args.model, args.quality, preset, int(steps), batch, args.crop, args.device)
            found.append(Task(f"{entry} {names[0]} to {names[-1]}", of, refined, arguments))
    return found


def measure(args: argparse.Namespace) -> tuple[Results, dict[str, str]]:
    """Refine what is missing of every entry; all results, and the failures."""
    record, todo = Record(results_path(args)), tasks(args)
    now = {task.name.split()[0]: (task.of["sha256"], task.of["config"]) for task in todo}
    for name, cell in list(record.cells.items()):
        of, entry = cell["of"], name.split()[0]
        if entry in now and now[entry] != (of["sha256"], of["config"]):
            del record.cells[name]  # it does not belong beside the others of this entry
    failures = run(record, todo, title=f"{args.model} {args.quality}", **run_options(args))
    return by_entry(record.cells), failures


def results_path(args: argparse.Namespace) -> Path:
    """Where the results of a model, quality and crop are kept."""
    size = f"-crop{args.crop}" if args.crop else ""
    return EVAL / "results" / f"refine-methods-{args.model}-{args.quality}{size}.json"


def by_entry(cells: Cells) -> Results:
    """The batches of each entry together: "images", "traces" with the number of their images, "lmbda"."""
    results: Results = {}
    for name, cell in cells.items():
        values = cell["values"]
        done = results.setdefault(name.split()[0], {"images": {}, "traces": [], "lmbda": values["lmbda"]})
        done["images"] |= values["images"]
        done["traces"].append({"images": len(values["images"]), "loss": values["trace"]})
    return results


def read_results(results: Path) -> Results:
    """Those that the documents show."""
    return by_entry(read_cells(results, SHOWN))


def lowering(results: Results, entry: str) -> float:
    """Percent by which an entry, PRESET:STEPS, lowers the mean loss of real bitstreams."""
    after, before = (mean(results[entry], f"loss-{when}") for when in ("after", "before"))
    return 100 * (1 - after / before)


def headline(results: Results) -> str:
    """Our presets and the papers'."""
    entries = ("best:470", "fast:86", "ssl:200", "ssl-paper:500", "sga-paper:500")
    each = ", ".join(f"{-lowering(results, e):.2f} % `{e.replace(':', '` ')}" for e in entries)
    return f"bpp + λ·255²·MSE by preset and steps: {each}"


def mean(done: dict[str, Any], key: str) -> float:
    return sum(image[key] for image in done["images"].values()) / len(done["images"])


def table(results: Results) -> str:
    """Markdown, best first; only entries with the largest number of images are compared."""
    if not results:
        return "nothing was measured yet"
    count = max(len(done["images"]) for done in results.values())
    complete = {e: d for e, d in results.items() if len(d["images"]) == count}
    none = next(iter(complete.values()))
    lines = []
    for entry, done in sorted(complete.items(), key=lambda item: mean(item[1], "loss-after")):
        preset, steps = entry.split(":")
        lines.append(
            f"`{preset}` | {steps} | {mean(done, 'loss-after'):.4f} | {lowering(results, entry):.2f} % "
            f"| {mean(done, 'bpp-after'):.4f} | {mean(done, 'psnr_db-after'):.2f}"
        )
    lines.append(
        f"none | 0 | {mean(none, 'loss-before'):.4f} | | {mean(none, 'bpp-before'):.4f} "
        f"| {mean(none, 'psnr_db-before'):.2f}"
    )
    text = markdown("preset | steps | loss | lowering | bpp | PSNR, dB", lines)
    return f"{text}\n\n{count} images, lambda = {none['lmbda']}"


def figure(results: Results) -> Figure:
    """Relaxed loss against steps for the presets that people choose from, with the hard results."""
    fig, axes = plt.subplots(figsize=(7, 4.5), dpi=150)
    known = ("fast:86", "best:470", "ssl:500", "ssl-paper:500", "ssl-paper:2000", "sga-paper:500")
    shown = [entry for entry in known if entry in results] or list(results)[:6]
    for entry in shown:
        done = results[entry]
        before = mean(done, "loss-before")
        images = sum(trace["images"] for trace in done["traces"])
        length = min(len(trace["loss"]) for trace in done["traces"])
        loss = [sum(t["loss"][k] * t["images"] for t in done["traces"]) / images for k in range(length)]
        steps = int(entry.split(":")[1])
        (line,) = axes.plot([10 * k + 1 for k in range(length)], loss, lw=1, alpha=0.6)
        axes.plot(max(1, steps), mean(done, "loss-after"), "o", color=line.get_color(), label=entry)
    axes.axhline(before, color="black", lw=1, ls="--", label="unrefined")
    axes.set(xlabel="steps", ylabel="bpp + λ 255² MSE", xscale="log", xlim=(0.9, None))
    axes.set_title("Lines: relaxed loss on the way. Dots: real bitstreams at the end.", fontsize=9)
    axes.legend(fontsize=8, loc="upper right", ncols=2)
    fig.tight_layout()
    return fig


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    path = results_path(args)
    results, failures = (by_entry(Record(path).cells), {}) if args.table else measure(args)
    print(table(results))
    if results:
        save_beside(figure(results), "refine-methods", path)
    finish(failures)
