# SPDX-License-Identifier: Apache-2.0
"""Every refinement method on the same crops of Kodak: loss, bits, PSNR and seconds.

    python eval/refine_methods.py                             # every entry of ENTRIES
    python eval/refine_methods.py --entries ssl:500 fast:88   # some; --table prints what is there

In:  a folder of images, of each the square in the middle (--crop, 0 for the whole image); a model of
     the zoo; entries PRESET:STEPS.
Out: eval/results/refine-methods-NAME-QUALITY.json, per entry and image the loss, bpp and PSNR before
     and after (real strings, stock decoder) and the trace of the relaxed loss;
     eval/figures/refine-methods.png (loss against steps); a Markdown table on stdout.

The loss is bpp + lmbda 255^2 MSE with hard rounding; "lowering" is 1 - (mean loss after) / (mean loss
before). Images are refined in batches. Every finished batch is on disk: a second call goes on, and
measures again only what belongs to another weight (by sha256) or other settings of a preset.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

import matplotlib
import torch
from compressai.utils.eval_model.__main__ import read_image
from matplotlib.figure import Figure
from provenance import save_figure
from tqdm import tqdm

import compressai_sga
from compressai_sga import zoo

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

HERE = Path(__file__).resolve().parent
SHARED = Path(os.environ.get("COMPRESSAI_SGA_DATA", HERE.parent.parent / "shared" / "data"))
KODAK = SHARED / "kodak"
ENTRIES = (
    "polish:0",
    "fast:30",
    "fast:88",
    "ssl:500",
    "best:480",
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


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--images", type=Path, default=KODAK)
    parser.add_argument("--crop", type=int, default=128, help="side of the crop, 0: whole image")
    parser.add_argument("--batch", type=int, default=24)
    parser.add_argument("--model", default=zoo.DEFAULT_MODEL)
    parser.add_argument("--quality", type=int, default=zoo.DEFAULT_QUALITY)
    parser.add_argument("--entries", nargs="*", default=ENTRIES, metavar="PRESET:STEPS")
    parser.add_argument("--table", action="store_true", help="only print what was measured before")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return parser.parse_args(argv)


def read_crops(folder: Path, size: int) -> tuple[list[str], list[torch.Tensor]]:
    """Names and centre crops, each (3, size, size); whole images for size 0."""
    paths = sorted(folder.glob("*.png"))
    if not paths:
        raise FileNotFoundError(f"no PNG image in {folder}; name the Kodak folder with --images")
    crops = []
    for path in paths:
        x = read_image(path)
        if size:
            top, left = (x.shape[1] - size) // 2, (x.shape[2] - size) // 2
            x = x[:, top : top + size, left : left + size]
        crops.append(x)
    return [p.stem for p in paths], crops


def batches(crops: list[torch.Tensor], size: int) -> list[list[int]]:
    """Indices of images of one shape, at most `size` together."""
    by_shape: dict[tuple[int, ...], list[int]] = {}
    for index, crop in enumerate(crops):
        by_shape.setdefault(tuple(crop.shape), []).append(index)
    return [same[i : i + size] for same in by_shape.values() for i in range(0, len(same), size)]


def identity(args: argparse.Namespace, preset: str, steps: int) -> dict[str, str]:
    """What a result belongs to: the weight and every setting."""
    record = next(r for r in zoo.list_models() if (r.name, r.quality) == (args.model, args.quality))
    config = compressai_sga.RefineConfig.make(preset=preset, steps=steps)
    return {"sha256": record.sha256, "config": repr(config)}


def measure(args: argparse.Namespace, results: Results, path: Path) -> None:
    """Refine what is missing of every entry, writing after each batch."""
    model = zoo.load(args.model, args.quality).to(args.device)
    names, crops = read_crops(args.images, args.crop)
    for entry in args.entries:
        preset, steps = entry.split(":")
        of = identity(args, preset, int(steps))
        if results.get(entry, {}).get("of") != of:
            results[entry] = {"of": of, "images": {}, "traces": []}
        done = results[entry]
        for indices in batches(crops, args.batch):
            if all(names[i] in done["images"] for i in indices):
                continue
            x = torch.stack([crops[i] for i in indices]).to(args.device)
            with tqdm(total=int(steps), desc=f"{entry} {names[indices[0]]}.. ") as bar:
                result = compressai_sga.refine(
                    model, x, preset=preset, steps=int(steps), on_step=lambda *_: bar.update()
                )
            for row, index in enumerate(indices):
                done["images"][names[index]] = {
                    f"{key}-{when}": round(getattr(rd, key)[row].item(), 5)
                    for when, rd in (("before", result.before), ("after", result.after))
                    for key in ("loss", "bpp", "psnr_db")
                }
            done["traces"].append(
                {"images": len(indices), "loss": [round(t["loss"], 4) for t in result.trace[::10]]}
            )
            done["lmbda"] = result.lmbda
            done.setdefault("seconds", []).append(round(result.seconds, 1))
            path.parent.mkdir(exist_ok=True)
            temporary = path.with_suffix(".tmp")
            temporary.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
            temporary.replace(path)


def results_path(args: argparse.Namespace) -> Path:
    """Where the results of a model, quality and crop are kept."""
    size = f"-crop{args.crop}" if args.crop else ""
    return HERE / "results" / f"refine-methods-{args.model}-{args.quality}{size}.json"


def read_results(path: Path) -> Results:
    """What was measured before, if anything."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def mean(done: dict[str, Any], key: str) -> float:
    return sum(image[key] for image in done["images"].values()) / len(done["images"])


def table(results: Results) -> str:
    """Markdown, best first; only entries with the largest number of images are compared."""
    if not results:
        return "nothing was measured yet"
    count = max(len(done["images"]) for done in results.values())
    complete = {e: d for e, d in results.items() if len(d["images"]) == count}
    none = next(iter(complete.values()))
    lines = [
        "| preset | steps | loss | lowering | bpp | PSNR, dB |",
        "|---|---|---|---|---|---|",
    ]
    for entry, done in sorted(complete.items(), key=lambda item: mean(item[1], "loss-after")):
        preset, steps = entry.split(":")
        lowering = 100 * (1 - mean(done, "loss-after") / mean(done, "loss-before"))
        lines.append(
            f"| `{preset}` | {steps} | {mean(done, 'loss-after'):.4f} | {lowering:.2f} % "
            f"| {mean(done, 'bpp-after'):.4f} | {mean(done, 'psnr_db-after'):.2f} |"
        )
    lines.append(
        f"| none | 0 | {mean(none, 'loss-before'):.4f} | | {mean(none, 'bpp-before'):.4f} "
        f"| {mean(none, 'psnr_db-before'):.2f} |"
    )
    return "\n".join([*lines, "", f"{count} images, lambda = {none['lmbda']}"])


def figure(results: Results) -> Figure:
    """Relaxed loss against steps for the presets that people choose from, with the hard results."""
    fig, axes = plt.subplots(figsize=(7, 4.5), dpi=150)
    known = ("fast:88", "best:480", "ssl:500", "ssl-paper:500", "ssl-paper:2000", "sga-paper:500")
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
    torch.set_num_threads(1)
    path = results_path(args)
    results = read_results(path)
    if not args.table:
        measure(args, results, path)
    print(table(results))
    if results:
        save_figure(figure(results), HERE / "figures" / "refine-methods.png", [path])


if __name__ == "__main__":
    main()
