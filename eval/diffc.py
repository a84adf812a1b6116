# SPDX-License-Identifier: Apache-2.0
"""DiffC, compression with a diffusion model (Theis et al. 2022): against its theory, and on images.

    python eval/diffc.py                # the zoo's diffc-f-small, about a quarter of an hour of one core
    python eval/diffc.py --weights runs/diffc/model.pth --tiny-weights runs/tiny/model.pth --tiny FILE
    python eval/diffc.py --parts curves --crops 24 --size 128 --device cuda
    python eval/diffc.py --tables       # only print and draw what was measured

gaussian: Gaussian sources through the codec's chain with an ideal channel and the exact denoiser: bits and
          errors of DiffC-A and DiffC-F against the closed forms; what few steps cost.
overhead: bytes against the sum of the KL divergences, by rate and channel; an ideal channel beside them.
bias:     what the channels' draws fall short of N(shift, I), and the image's PSNR for it, by the channel's
          size. Both on small images: those of --tiny with the model --tiny-weights, else the crops of curves.
curves:   DiffC-A and DiffC-F, mbt2018-mean-small, JPEG and JPEG 2000 on crops of Kodak: PSNR, sliced
          Wasserstein distance, seconds; prefixes of DiffC's stream of the highest rate.

In:  images and weights, as `--help` says. A state dict of a `PixelDenoiser` alone gets its cost table from
     training images (--photos, or the .npz file's), which the folder --kept remembers.
Out: eval/results/diffc.json, a cell an image, codec and setting, which a second call does not measure again
     unless the model has changed (after changes of the code, remove the file);
     eval/figures/diffc-gaussian.png, diffc-overhead.png, diffc-curves.png and diffc-crops.png; Markdown
     tables on stdout. Decoded images lie in the folder --kept.
Fails with ``FileNotFoundError`` on missing images or weights, ``ValueError`` where the results are of several
models.
"""

from __future__ import annotations

import argparse
import functools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from diffc_beside import jpeg, jpeg2000, kodak_crops, npz_images, stock
from diffc_curves import CLASSES, Pictures, beside, coded, prefix, realism
from diffc_gaussian import simulate, steps_cost
from diffc_images import ideal, load, npz_crops, photo_crops, sent, tag
from diffc_images_report import crops_figure, curves_figure, image_tables, overhead_figure
from diffc_report import gaussian_figure, gaussian_tables
from provenance import save_figure
from records import Record
from torch import Tensor

from compressai_sga import zoo
from compressai_sga.models.diffc import DiffC

HERE = Path(__file__).resolve().parent
SHARED = Path(os.environ.get("COMPRESSAI_SGA_DATA", HERE.parent.parent / "shared" / "data"))
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
    add("--kodak", type=Path, default=SHARED / "kodak", help="folder of PNG images")
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
    add("--out", type=Path, default=HERE / "results" / "diffc.json", help="results file")
    return parser.parse_args(argv)


class Inputs:
    """Models and images, made when they are needed."""

    def __init__(self, args: argparse.Namespace):
        self.args = args

    @functools.cached_property
    def model(self) -> DiffC:
        crops = functools.partial(photo_crops, self.args.photos, seed=SEED)
        return load(self.args.weights, crops, self.args.kept, self.args.device)

    @functools.cached_property
    def crops(self) -> dict[str, Tensor]:
        return kodak_crops(self.args.kodak, self.args.crops, self.args.size, SEED)

    @functools.cached_property
    def small(self) -> tuple[str, DiffC, dict[str, Tensor]]:
        """Name, model and images of parts overhead and bias."""
        args = self.args
        if args.tiny_weights is None:
            images = dict(list(self.crops.items())[: args.images])
            return f"crops{args.size}", self.model, images
        images = npz_images(args.tiny, args.images)
        model = load(args.tiny_weights, functools.partial(npz_crops, args.tiny), args.kept, args.device)
        return "tiny", model, images

    def on_device(self, x: Tensor) -> Tensor:
        return x.to(self.args.device)


def measure_gaussian(record: Record, inputs: Inputs) -> None:
    for source, of in (("scalar", SCALAR), ("spectrum", SPECTRUM)):
        of = {"source": source, **of, "seed": SEED}
        record.cell(f"gaussian {source}", of, functools.partial(simulate, **of))
    for spacing, counts in STEPS.items():
        for steps in counts:
            of = {"steps": steps, "spacing": spacing, "draws": STEPS_DRAWS, "seed": SEED}
            record.cell(f"gaussian steps {steps} {spacing}", of, functools.partial(steps_cost, **of))


# --- Channels ----------------------------------------------------------------------------------------


def measure_overhead(record: Record, inputs: Inputs) -> None:
    rates = sorted(inputs.args.rates)
    for bpp in (rates[0] / 2, *rates, 1.25 * rates[-1]):  # so that a real channel's points lie between
        measure_ideal(record, inputs, bpp)
    for method, size in CHANNELS:
        for bpp in rates:
            measure_channel(record, inputs, method, size, bpp)


def measure_bias(record: Record, inputs: Inputs) -> None:
    for bpp in (0.5 * inputs.args.bias_rate, inputs.args.bias_rate, 1.25 * inputs.args.bias_rate):
        measure_ideal(record, inputs, bpp)
    for method, sizes in SIZES.items():
        for size in sizes:
            measure_channel(record, inputs, method, size, inputs.args.bias_rate)


def measure_ideal(record: Record, inputs: Inputs, bpp: float) -> None:
    name, model, images = inputs.small
    for image, x in images.items():
        of = settings_of(model, x, bpp)
        cell = f"channel {name} ideal 0 {bpp:g} {image}"
        record.cell(cell, of, lambda x=x: ideal(model, inputs.on_device(x), bpp))


def measure_channel(record: Record, inputs: Inputs, method: str, size: int, bpp: float) -> None:
    name, model, images = inputs.small
    for image, x in images.items():
        of = settings_of(model, x, bpp) | {"method": method, "size": size}
        cell = f"channel {name} {method} {size} {bpp:g} {image}"
        record.cell(cell, of, lambda x=x: sent(model, inputs.on_device(x), method, size, bpp))


def settings_of(model: DiffC, x: Tensor, bpp: float) -> dict[str, Any]:
    pixels = {"height": x.shape[2], "width": x.shape[3]}
    return {"model": tag(model), "seed": SEED, "bpp": bpp, "device": str(model.costs.device)} | pixels


# --- Curves ------------------------------------------------------------------------------------------


def measure_curves(record: Record, inputs: Inputs) -> None:
    args, pictures = inputs.args, Pictures(inputs.args.kept / inputs.args.out.stem)
    settings: dict[str, list[str]] = {}
    for codec, setting, image, of, measure in jobs(inputs, pictures):
        cell = f"curves {codec} {setting} {image}"
        kinds = ("F", "A") if codec == "DiffC" else (codec,)
        for kind in kinds:
            if setting not in settings.setdefault(kind, []):
                settings[kind].append(setting)
        if not all(pictures.path(kind, setting, image).is_file() for kind in kinds):
            record.cells.pop(cell, None)  # its numbers are there, its image is not
        record.cell(cell, of, measure)
    top, model = max(args.rates), inputs.model
    for image, x in inputs.crops.items():
        whole = record.cells[f"curves DiffC {top:g} {image}"]["values"]
        for bpp in sorted(args.rates):
            size = min(int(bpp * x.shape[2] * x.shape[3] / 8), whole["bytes"])
            measure = functools.partial(prefix, model, inputs.on_device(x), whole["string"], size)
            of = settings_of(model, x, bpp) | {"of_bpp": top}
            record.cell(f"prefix {bpp:g} {image}", of, measure)
    for codec, found in settings.items():
        for setting in found:
            of = {"images": list(inputs.crops), "size": args.size, "seed": SEED, "model": tag(model)}
            measure = functools.partial(realism, inputs.crops, pictures, codec, setting)
            record.cell(f"realism {codec} {setting}", of, measure)


def jobs(inputs: Inputs, pictures: Pictures) -> Iterator[tuple[str, str, str, dict[str, Any], Any]]:
    """(codec, setting, image, settings of the cell, how to measure it), image after image."""
    qualities = {str(r.quality): r for r in zoo.list_models() if r.name == STOCK}
    nets = {quality: zoo.load(STOCK, r.quality) for quality, r in qualities.items()}
    model = inputs.model
    for image, x in inputs.crops.items():
        base = {"seed": SEED, "size": x.shape[2]}
        for bpp in inputs.args.rates:
            measure = functools.partial(coded, model, inputs.on_device(x), bpp, image, pictures)
            of = settings_of(model, x, bpp) | {
                "steps": {kind: made.default_steps for kind, made in CLASSES.items()}
            }
            yield "DiffC", f"{bpp:g}", image, of, measure
        coders: dict[tuple[str, str], Any] = {
            (STOCK, quality): functools.partial(stock, net, x) for quality, net in nets.items()
        }
        coders |= {("JPEG", str(q)): functools.partial(jpeg, x, q) for q in JPEG_QUALITIES}
        coders |= {("JPEG2000", f"{b:g}"): functools.partial(jpeg2000, x, 24 / b) for b in JPEG2000_BPP}
        for (codec, setting), code in coders.items():
            of = base | ({"sha256": qualities[setting].sha256} if codec == STOCK else {})

            def measure(x=x, code=code, name=(codec, setting, image)):
                return beside(code(), x, pictures, *name)

            yield codec, setting, image, of, measure


# --- All ---------------------------------------------------------------------------------------------


def draw(record: Record, inputs: Inputs) -> None:
    """The figures, of what was measured."""
    out = inputs.args.out
    folder = out.parent.parent / "figures"
    parts = {name.split()[0] for name in record.cells}
    for part, name, figure in (
        ("gaussian", "gaussian", gaussian_figure),
        ("channel", "overhead", overhead_figure),
        ("realism", "curves", curves_figure),
    ):
        if part in parts:
            save_figure(figure(record.cells), folder / f"{out.stem}-{name}.png", [record.path])
    pictures = Pictures(inputs.args.kept / out.stem)
    if "realism" in parts and pictures.folder.is_dir():
        made = crops_figure(record.cells, inputs.crops, pictures)
        save_figure(made, folder / f"{out.stem}-crops.png", [record.path])


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    torch.set_num_threads(1)
    if args.tables and not args.out.is_file():
        raise FileNotFoundError(f"no file {args.out}; measure first, or name the results with --out")
    record, inputs = Record(args.out), Inputs(args)
    measures = {
        "gaussian": measure_gaussian,
        "overhead": measure_overhead,
        "bias": measure_bias,
        "curves": measure_curves,
    }
    for part in () if args.tables else args.parts:
        measures[part](record, inputs)
    print("\n\n".join(filter(None, (gaussian_tables(record.cells), image_tables(record.cells)))))
    draw(record, inputs)


if __name__ == "__main__":
    main()
