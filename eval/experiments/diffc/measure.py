# SPDX-License-Identifier: Apache-2.0
"""DiffC, compression with a diffusion model (Theis et al. 2022): against its theory, and on images.

    python eval/run.py diffc                # the zoo's diffc-f-small, about a quarter of an hour of one core
    python eval/run.py diffc --weights runs/diffc/model.pth --tiny-weights runs/tiny/model.pth --tiny FILE
    python eval/run.py diffc --parts curves --crops 24 --size 128 --device cuda
    python eval/run.py diffc --tables       # only print and draw what was measured

gaussian: Gaussian sources through the codec's process with an ideal channel and the exact denoiser: bits and
          errors of DiffC-A and DiffC-F against the closed forms; the cost of few steps.
overhead: bytes against the sum of the KL divergences, by rate and channel, with an ideal channel beside them.
bias:     how far the channels' draws are from N(shift, I), and the effect on the image's PSNR, by the size
          of the channel. Overhead and bias use small images: those of --tiny with the model of
          --tiny-weights, else the crops of the part curves.
curves:   DiffC-A and DiffC-F, mbt2018-mean-small, JPEG and JPEG 2000 on crops of Kodak: PSNR, sliced
          Wasserstein distance, seconds; prefixes of DiffC's stream of the highest rate.

In:  images and weights, see `--help`. For weights without a cost table (a state dict of a `PixelDenoiser`)
     the table is measured on training images (--photos, or those of the .npz file) and kept in the folder
     --kept.
Out: eval/results/diffc.json, one cell for each image, codec and setting, which a second call does not measure
     again unless the model has changed (after changes of the code, remove the file);
     eval/figures/diffc-gaussian.png, diffc-overhead.png, diffc-curves.png and diffc-crops.png; Markdown
     tables on stdout. Decoded images lie in the folder --kept.
Fails with ``FileNotFoundError`` if images or weights are missing, ``ValueError`` if the results are of
several models.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from compressai_sga import zoo
from compressai_sga.models.diffc import DiffC
from compressai_sga.tasks.records import Record
from compressai_sga.tasks.tasks import Task, add_options, finish, run, run_options
from experiments.diffc.beside import jpeg, jpeg2000, kodak_crops, npz_images, stock
from experiments.diffc.curves import CLASSES, Pictures, beside, coded, prefix, realism
from experiments.diffc.gaussian import simulate, steps_cost
from experiments.diffc.images import ideal, load, npz_crops, photo_crops, sent, tag
from experiments.diffc.images_report import crops_figure, curves_figure, image_tables, overhead_figure
from experiments.diffc.report import gaussian_figure, gaussian_tables
from images import KODAK, SHARED
from reporting import EVAL, save_beside

PARTS = ("gaussian", "overhead", "bias", "curves")
SEED = 0

SCALAR = {"s2s": (0.5, 0.1, 0.01, 0.001), "draws": 200_000, "step": 0.015, "ancestral_steps": 1600}
SPECTRUM = {"s2s": (0.1, 0.01, 1e-4), "draws": 30_000, "step": 0.02, "ancestral_steps": 1000}
STEPS = {"equal": (10, 30, 100, 300, 1000, 10_000), "best": (5, 10, 30, 100)}
STEPS_DRAWS = 100_000

CHANNELS = (("trellis", 10), ("orc", 10), ("pfr", 10))
SIZES = {"trellis": (6, 8, 10, 12), "orc": (6, 8, 10, 12)}  # of part bias
STOCK = "mbt2018-mean-small"
JPEG_QUALITIES = (5, 10, 20, 40, 60, 80)
JPEG2000_BPP = (0.35, 0.5, 0.75, 1, 2)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--parts", nargs="*", choices=PARTS, default=PARTS)
    add(
        "--weights",
        type=Path,
        help="state dict of DiffC or a PixelDenoiser (default: the zoo's diffc-f-small)",
    )
    add("--kodak", type=Path, default=KODAK, help="folder of PNG images")
    add("--crops", type=int, default=12, help="crops of Kodak, each of another image")
    add("--size", type=int, default=64, help="side of the crops in pixels, a multiple of 64")
    add("--tiny", type=Path, default=SHARED / "tiny" / "cifar10_partial.npz", help=".npz with images `test`")
    add("--tiny-weights", type=Path, help="of a model of these images, as --weights")
    add("--images", type=int, default=16, help="images of parts overhead and bias")
    add("--rates", type=float, nargs="+", default=[0.1, 0.25, 0.5, 1, 2], help="bits a pixel to aim at")
    add("--bias-rate", type=float, default=1, help="of part bias")
    add("--photos", type=Path, default=SHARED / "train", help="photographs for a cost table")
    add("--device", default="cpu", help="of DiffC")
    add("--kept", type=Path, default=Path("runs") / "diffc-eval", help="folder of decoded images")
    add("--tables", action="store_true", help="measure nothing")
    add("--out", type=Path, default=EVAL / "results" / "diffc.json", help="results file")
    add_options(parser)
    return parser.parse_args(argv)


# --- Models and images -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Inputs:
    """Where models and images come from, as `--help` says, and the folder of decoded images."""

    weights: Path | None
    tiny_weights: Path | None
    kodak: Path
    crops: int
    size: int
    tiny: Path
    images: int
    photos: Path
    kept: Path
    pictures: Path
    device: str


@functools.lru_cache(maxsize=1)
def model_of(inputs: Inputs) -> DiffC:
    crops = functools.partial(photo_crops, inputs.photos, seed=SEED)
    return load(inputs.weights, crops, inputs.kept, inputs.device)


@functools.lru_cache(maxsize=1)
def crops_of(inputs: Inputs) -> dict[str, Tensor]:
    return kodak_crops(inputs.kodak, inputs.crops, inputs.size, SEED)


@functools.lru_cache(maxsize=1)
def small_of(inputs: Inputs) -> tuple[str, DiffC, dict[str, Tensor]]:
    """Name, model and images of parts overhead and bias."""
    if inputs.tiny_weights is None:
        images = dict(list(crops_of(inputs).items())[: inputs.images])
        return f"crops{inputs.size}", model_of(inputs), images
    images = npz_images(inputs.tiny, inputs.images)
    crops = functools.partial(npz_crops, inputs.tiny)
    return "tiny", load(inputs.tiny_weights, crops, inputs.kept, inputs.device), images


@functools.lru_cache(maxsize=6)  # each image goes through all
def stock_of(quality: int) -> nn.Module:
    return zoo.load(STOCK, quality)


def settings_of(model: DiffC, x: Tensor, bpp: float) -> dict[str, Any]:
    pixels = {"height": x.shape[2], "width": x.shape[3]}
    return {"model": tag(model), "seed": SEED, "bpp": bpp, "device": str(model.costs.device)} | pixels


# --- Gaussian sources --------------------------------------------------------------------------------


def tasks_of_gaussian() -> list[Task]:
    found = []
    for source, of in (("scalar", SCALAR), ("spectrum", SPECTRUM)):
        of = {"source": source, **of, "seed": SEED}
        found.append(Task(f"gaussian {source}", of, gaussian, (of,)))
    for spacing, counts in STEPS.items():
        for steps in counts:
            of = {"steps": steps, "spacing": spacing, "draws": STEPS_DRAWS, "seed": SEED}
            found.append(Task(f"gaussian steps {steps} {spacing}", of, gaussian, (of,)))
    return found


def gaussian(of: dict[str, Any]) -> dict[str, Any]:
    return simulate(**of) if "source" in of else steps_cost(**of)


# --- Channels ----------------------------------------------------------------------------------------


def tasks_of_overhead(inputs: Inputs, rates: list[float]) -> list[Task]:
    rates = sorted(rates)
    found = []
    for bpp in (rates[0] / 2, *rates, 1.25 * rates[-1]):  # so that a real channel's points lie between
        found += tasks_of_channel(inputs, "ideal", 0, bpp)
    for method, size in CHANNELS:
        for bpp in rates:
            found += tasks_of_channel(inputs, method, size, bpp)
    return found


def tasks_of_bias(inputs: Inputs, rate: float) -> list[Task]:
    found = []
    for bpp in (0.5 * rate, rate, 1.25 * rate):
        found += tasks_of_channel(inputs, "ideal", 0, bpp)
    for method, sizes in SIZES.items():
        for size in sizes:
            found += tasks_of_channel(inputs, method, size, rate)
    return found


def tasks_of_channel(inputs: Inputs, method: str, size: int, bpp: float) -> list[Task]:
    """A channel, or method "ideal", at a rate."""
    name, model, images = small_of(inputs)
    found = []
    for image, x in images.items():
        of = settings_of(model, x, bpp) | ({} if method == "ideal" else {"method": method, "size": size})
        arguments = (inputs, image, method, size, bpp)
        found.append(Task(f"channel {name} {method} {size} {bpp:g} {image}", of, channel, arguments))
    return found


def channel(inputs: Inputs, image: str, method: str, size: int, bpp: float) -> dict[str, Any]:
    _, model, images = small_of(inputs)
    x = images[image].to(inputs.device)
    return ideal(model, x, bpp) if method == "ideal" else sent(model, x, method, size, bpp)


# --- Curves ------------------------------------------------------------------------------------------


def settings_of_codecs(rates: list[float]) -> dict[str, list[str]]:
    """What each codec is asked for; a text each, as in the names of cells and folders."""
    return {
        "DiffC": [f"{bpp:g}" for bpp in rates],
        STOCK: [str(r.quality) for r in zoo.list_models() if r.name == STOCK],
        "JPEG": [str(quality) for quality in JPEG_QUALITIES],
        "JPEG2000": [f"{bpp:g}" for bpp in JPEG2000_BPP],
    }


def tasks_of_curves(inputs: Inputs, rates: list[float]) -> list[Task]:
    """Every image through every codec and setting."""
    weights = {str(r.quality): r.sha256 for r in zoo.list_models() if r.name == STOCK}
    steps = {kind: made.default_steps for kind, made in CLASSES.items()}
    model, found = model_of(inputs), []
    for image, x in crops_of(inputs).items():
        for codec, settings in settings_of_codecs(rates).items():
            for setting in settings:
                of: dict[str, Any] = {"seed": SEED, "size": x.shape[2]}
                if codec == "DiffC":
                    of = settings_of(model, x, float(setting)) | {"steps": steps}
                elif codec == STOCK:
                    of["sha256"] = weights[setting]
                arguments = (inputs, codec, setting, image)
                found.append(Task(f"curves {codec} {setting} {image}", of, curve_point, arguments))
    return found


def curve_point(inputs: Inputs, codec: str, setting: str, image: str) -> dict[str, Any]:
    """An image by a codec; the decoded one is kept."""
    x, pictures = crops_of(inputs)[image], Pictures(inputs.pictures)
    if codec == "DiffC":
        return coded(model_of(inputs), x.to(inputs.device), float(setting), image, pictures)
    if codec == STOCK:
        made = stock(stock_of(int(setting)), x)
    elif codec == "JPEG":
        made = jpeg(x, int(setting))
    else:
        made = jpeg2000(x, 24 / float(setting))
    return beside(made, x, pictures, codec, setting, image)


def kinds(codec: str) -> tuple[str, ...]:
    """Its folders of decoded images."""
    return tuple(CLASSES) if codec == "DiffC" else (codec,)


def forget_lost_pictures(record: Record, inputs: Inputs, todo: list[Task]) -> None:
    """Numbers whose image is gone are measured again."""
    for task in todo:
        _, codec, setting, image = task.arguments
        paths = [Pictures(inputs.pictures).path(kind, setting, image) for kind in kinds(codec)]
        if not all(path.is_file() for path in paths):
            record.cells.pop(task.name, None)


def tasks_of_prefixes(
    record: Record, inputs: Inputs, rates: list[float], failures: Collection[str]
) -> list[Task]:
    """The beginnings of DiffC's streams of the highest rate."""
    top, model, found = max(rates), model_of(inputs), []
    for image, x in crops_of(inputs).items():
        name = f"curves DiffC {top:g} {image}"
        if name in failures:
            continue
        whole = record.cells[name]["values"]
        for bpp in sorted(rates):
            size = min(int(bpp * x.shape[2] * x.shape[3] / 8), whole["bytes"])
            of = settings_of(model, x, bpp) | {"of_bpp": top}
            arguments = (inputs, image, whole["string"], size)
            found.append(Task(f"prefix {bpp:g} {image}", of, decoded_prefix, arguments))
    return found


def decoded_prefix(inputs: Inputs, image: str, string: str, size: int) -> dict[str, Any]:
    return prefix(model_of(inputs), crops_of(inputs)[image].to(inputs.device), string, size)


def tasks_of_realism(inputs: Inputs, rates: list[float], failures: Collection[str]) -> list[Task]:
    """Of all images by a codec at a setting, where none failed."""
    images = list(crops_of(inputs))
    of = {"images": images, "size": inputs.size, "seed": SEED, "model": tag(model_of(inputs))}
    return [
        Task(f"realism {kind} {setting}", of, realism_of, (inputs, kind, setting))
        for codec, settings in settings_of_codecs(rates).items()
        for kind in kinds(codec)
        for setting in settings
        if not any(f"curves {codec} {setting} {image}" in failures for image in images)
    ]


def realism_of(inputs: Inputs, kind: str, setting: str) -> dict[str, Any]:
    return realism(crops_of(inputs), Pictures(inputs.pictures), kind, setting)


# --- All ---------------------------------------------------------------------------------------------


def measure(record: Record, args: argparse.Namespace, inputs: Inputs) -> dict[str, str]:
    """What the parts lack; the failures."""
    makers = {
        "gaussian": tasks_of_gaussian,
        "overhead": functools.partial(tasks_of_overhead, inputs, args.rates),
        "bias": functools.partial(tasks_of_bias, inputs, args.bias_rate),
        "curves": functools.partial(tasks_of_curves, inputs, args.rates),
    }
    of_parts = {part: makers[part]() for part in args.parts}
    forget_lost_pictures(record, inputs, of_parts.get("curves", []))
    todo = {task.name: task for part in of_parts.values() for task in part}  # overhead and bias share some
    failures = run(record, todo.values(), title="diffc", **run_options(args))
    if "curves" in args.parts:
        others = tasks_of_prefixes(record, inputs, args.rates, failures)
        others += tasks_of_realism(inputs, args.rates, failures)
        failures |= run(record, others, title="diffc, prefixes and realism", **run_options(args))
    return failures


def draw(record: Record, inputs: Inputs) -> None:
    """The figures, of what was measured."""
    stem = record.path.stem
    parts = {name.split()[0] for name in record.cells}
    for part, name, figure in (
        ("gaussian", "gaussian", gaussian_figure),
        ("channel", "overhead", overhead_figure),
        ("realism", "curves", curves_figure),
    ):
        if part in parts:
            save_beside(figure(record.cells), f"{stem}-{name}", record.path)
    pictures = Pictures(inputs.pictures)
    if "realism" in parts and pictures.folder.is_dir():
        made = crops_figure(record.cells, crops_of(inputs), pictures)
        save_beside(made, f"{stem}-crops", record.path)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    if args.tables and not args.out.is_file():
        raise FileNotFoundError(f"no file {args.out}; measure first, or name the results with --out")
    given = {name: getattr(args, name) for name in Inputs.__annotations__ if name != "pictures"}
    record, inputs = Record(args.out), Inputs(**given, pictures=args.kept / args.out.stem)
    failures = {} if args.tables else measure(record, args, inputs)
    print("\n\n".join(filter(None, (gaussian_tables(record.cells), image_tables(record.cells)))))
    draw(record, inputs)
    finish(failures)
