# SPDX-License-Identifier: Apache-2.0
"""HFD, a decoder that draws the details which its first stage has lost: distortion, realism, time.

Hoogeboom et al., "High-fidelity image compression with score-based generative models", 2023.

    python eval/run.py hfd [--kodak FOLDER]                # 24 images, qualities 1 to 4, the zoo's hfd-small
    python eval/run.py hfd --weights FILE --images 4 --qualities 1 --crop 256     # a trial
    python eval/run.py hfd --tables                        # only print what was measured

images:   bits, compared byte by byte with those of the first stage alone; PSNR of the first stage and of HFD
          at realism 0.5, 0.8 and 1, one sample for each image; mean colour; CPU seconds. Everything is
          measured on images in 8 bits, which are kept as PNG files in the folder --pictures.
sets:     sliced Wasserstein distance (metrics/sliced_wasserstein.py) between originals and reconstructions,
          level by level, also with the normalisation of Karras et al.; LPIPS and FID if their weights are
          installed.
samplers: three samplers with several numbers of steps on centre crops of a few images at quality 1.

In:  a folder of PNG images; the zoo's hfd-small, or with --weights the state dict of a denoiser that was
     trained by zoo/train/denoiser.py on first stages of the zoo.
Out: eval/results/hfd.json, one cell for each image and set, which a second call does not measure again;
     eval/figures/hfd.png and hfd-crops.png; Markdown tables on stdout.
Fails with ``SystemExit`` without images. If the bits of an image differ from those of the first stage, the
image has failed, and for its quality no set is measured.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import hashlib
import sys
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from compressai.ops import compute_padding
from compressai.utils.eval_model.__main__ import read_image
from torch import Tensor, nn
from torchvision.utils import save_image
from tqdm import tqdm

from compressai_sga import zoo
from compressai_sga.errors import SgaError
from compressai_sga.metrics import METRICS, SET_METRICS, SlicedWasserstein
from compressai_sga.models.hfd import HFD, ResidualDenoiser
from compressai_sga.models.hfd.sampling import seed_of
from compressai_sga.tasks.records import Record
from compressai_sga.tasks.tasks import Task, add_options, finish, run, run_options
from experiments.hfd.report import CROPS, crops, figure, tables
from images import KODAK, centre_crop
from reporting import EVAL, save_beside

REALISM = (0.5, 0.8, 1.0)  # 0 is the first stage
LABELS = ("first", *map(str, REALISM))
BUDGETS = (8, 16, 32, 64)
METHODS = ("dpm2m", "ddim", "ancestral")
SAMPLERS_PX, SAMPLERS_PATCHES = 256, 4096  # few small crops, so many patches of each


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kodak", type=Path, default=KODAK, help="folder of PNG images")
    parser.add_argument(
        "--weights", type=Path, help="state dict of a denoiser (default: the zoo's hfd-small)"
    )
    parser.add_argument("--qualities", type=int, nargs="+", default=[1, 2, 3, 4])
    parser.add_argument("--images", type=int, help="only so many")
    parser.add_argument("--crop", type=int, help="centre crops of so many px")
    parser.add_argument("--steps", type=int, help="of the sampler (default: the model's)")
    parser.add_argument("--samplers", type=int, default=4, help="images of that part, 0 to leave it out")
    parser.add_argument("--budgets", type=int, nargs="+", default=BUDGETS, help="steps in that part")
    parser.add_argument(
        "--precision", choices=["bfloat16", "float32"], default="bfloat16", help="of the denoiser"
    )
    parser.add_argument("--device", default="cpu", help="of the denoiser")
    parser.add_argument("--pictures", type=Path, default=EVAL.parent / "runs" / "hfd-eval")
    parser.add_argument("--tables", action="store_true", help="measure nothing, print the tables")
    parser.add_argument("--out", type=Path, default=EVAL / "results" / "hfd.json")
    add_options(parser)
    return parser.parse_args(argv)


# --- Images ------------------------------------------------------------------------------------------


def find_images(args: argparse.Namespace) -> list[Path]:
    paths = sorted(args.kodak.glob("*.png"))[: args.images]
    if not paths:
        raise SystemExit(f"{args.kodak} holds no PNG images; name a folder with --kodak")
    return paths


def eight_bits(x: Tensor) -> Tensor:
    return (x.clamp(0, 1) * 255).round() / 255


def psnr_db(x: Tensor, x_hat: Tensor) -> float:
    return float(-10 * (x - x_hat).square().mean().clamp_min(1e-12).log10())


# --- The codec ---------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Setup:
    """What every task is told: where the codec comes from, what it works on, where its pictures go.

    Args:
        weights: of a denoiser; None for the zoo's.
        method, steps: of the sampler; None for the model's.
        precision, device: of the denoiser.
        crop: side of the centre crops; None for whole images.
        pictures: folder.
    """

    weights: Path | None
    steps: int | None
    precision: str
    device: str
    crop: int | None
    pictures: Path
    method: str | None = None


class Decoder:
    """HFD at one quality of the first stage, and this stage by itself."""

    def __init__(self, setup: Setup, quality: int) -> None:
        self.device = torch.device(setup.device)
        if setup.weights is None:
            self.model = zoo.load("hfd-small", quality)
            self.sha256 = next(r.sha256 for r in zoo.list_models() if r.name == "hfd-small")
        else:
            net = ResidualDenoiser.from_state_dict(
                torch.load(setup.weights, map_location="cpu", weights_only=True)
            )
            self.model = HFD(zoo.load(net.first_stage, quality), net, quality=quality).eval()
            self.sha256 = hashlib.sha256(setup.weights.read_bytes()).hexdigest()
        self.model.precision = setup.precision
        if setup.steps is not None:
            self.model.steps = setup.steps
        if setup.method is not None:
            self.model.method = setup.method
        self.model.denoiser.to(self.device)
        self.first_name = self.model.denoiser.first_stage
        self.first: nn.Module = zoo.load(self.first_name, quality)

    def settings(self, **others: Any) -> dict[str, Any]:
        """What the numbers depend on."""
        model = self.model
        return {
            "sha256": self.sha256,
            "first_stage": self.first_name,
            "quality": model.quality,
            **{k: getattr(model, k) for k in ("precision", "steps", "method", "window", "overlap")},
            **others,
        }

    @torch.no_grad()
    def first_stage(self, x: Tensor) -> tuple[Tensor, int, int]:
        """Its image in [0, 1], of x's size or padded, the size of the strings in bytes, the seed."""
        pad, _ = compute_padding(*x.shape[2:], min_div=64)
        padded = F.pad(x, pad)
        out, alone = self.model.compress(padded), self.first.compress(padded)
        if out["strings"] != alone["strings"]:
            raise RuntimeError("the strings of HFD are not those of its first stage; look at HFD.compress")
        x_first = self.first.decompress(out["strings"], out["shape"])["x_hat"]
        strings = [part[0] for part in out["strings"]]
        return x_first, sum(map(len, strings)), seed_of(strings)

    @torch.no_grad()
    def draw(self, x_first: Tensor, seed: int) -> tuple[Tensor, float]:
        """What is added to x_1 at realism 1, and CPU seconds (seconds, on a GPU)."""
        clock = time.process_time if self.device.type == "cpu" else time.perf_counter
        start = clock()
        drawn = self.model.restore(x_first.to(self.device), seed=seed, realism=1.0).cpu()
        return drawn - x_first, clock() - start


@functools.lru_cache(maxsize=1)
def decoder_of(setup: Setup, quality: int) -> Decoder:
    """The last one is kept."""
    return Decoder(setup, quality)


def picture(setup: Setup, quality: int, image: str, label: str) -> Path:
    """File of a reconstruction."""
    sha256 = decoder_of(setup, quality).sha256
    return setup.pictures / sha256[:12] / f"{image}-q{quality}-{label}.png"


def measure_image(setup: Setup, quality: int, path: Path) -> dict[str, Any]:
    """Values of one image, whose reconstructions are kept."""
    decoder, x = decoder_of(setup, quality), centre_crop(path, setup.crop)
    start = time.process_time()
    x_first, size, seed = decoder.first_stage(x)
    first_seconds = time.process_time() - start
    drawn, seconds = decoder.draw(x_first, seed)
    _, unpad = compute_padding(*x.shape[2:], min_div=64)
    values: dict[str, Any] = {
        "bytes": size,
        "bpp": 8 * size / x[0, 0].numel(),
        "same_bytes_as_first_stage": True,  # or `first_stage` would have raised
        "draw_cpu_seconds": seconds,
        "first_stage_cpu_seconds": first_seconds,
        "psnr_db": {},
        "colour_levels": {},
    }
    for label, realism in zip(LABELS, (0.0, *REALISM), strict=True):
        x_hat = eight_bits(F.pad(x_first + realism * drawn, unpad))
        file = picture(setup, quality, path.stem, label)
        file.parent.mkdir(parents=True, exist_ok=True)
        save_image(x_hat, file)
        values["psnr_db"][label] = psnr_db(x, x_hat)
        values["colour_levels"][label] = (255 * (x_hat - x).mean((0, 2, 3))).tolist()
    return values


# --- Sets of images ----------------------------------------------------------------------------------


def swd(pairs: Callable[[], Any], **settings: Any) -> dict[str, list[float]]:
    """The distance level by level, in both normalisations."""
    metric = SlicedWasserstein(**settings)
    for x, x_hat in pairs():
        metric.update(x, x_hat)
    return {"swd": metric.levels("original"), "swd_each": metric.levels("each")}


def other_metrics(names: list[str], pairs: Callable[[], Any]) -> dict[str, Any]:
    """Values of `names` among METRICS and SET_METRICS, or what they lack."""
    found: dict[str, Any] = {}
    for name in names:
        try:
            if name in METRICS:
                values = [METRICS[name](x, x_hat) for x, x_hat in pairs()]
                found[name] = sum(values) / len(values)
            else:
                metric = SET_METRICS[name]()
                for x, x_hat in pairs():
                    metric.update(x, x_hat)
                found[name] = metric.compute()
        except SgaError as error:
            tqdm.write(f"{name} is not measured: {error}", file=sys.stderr)
            reason = str(error).split(" (")[0]  # what follows are this machine's paths
            found[name] = f"not measured: {reason.removesuffix(', which could not be loaded')}"
    return found


def measure_set(setup: Setup, quality: int, paths: list[Path]) -> dict[str, Any]:
    """Values of all images together, by the kind of reconstruction."""
    values: dict[str, Any] = {}
    missing: dict[str, str] = {}
    for label in LABELS:

        def pairs(label: str = label) -> Any:
            for path in paths:
                yield centre_crop(path, setup.crop), reconstruction(setup, quality, path, label)

        others = other_metrics([k for k in ("lpips", "fid") if k not in missing], pairs)
        values[label] = {**swd(pairs), **missing, **others}
        missing = {k: v for k, v in values[label].items() if isinstance(v, str)}
    return values


def reconstruction(setup: Setup, quality: int, path: Path, label: str) -> Tensor:
    """A picture (1, 3, H, W), made again where the results came without it."""
    file = picture(setup, quality, path.stem, label)
    if not file.is_file():
        measure_image(setup, quality, path)
    return read_image(file)[None]


# --- Samplers ----------------------------------------------------------------------------------------


def measure_sampler(setup: Setup, quality: int, paths: list[Path]) -> dict[str, Any]:
    """PSNR, distance and time of full draws."""
    decoder = decoder_of(setup, quality)
    pairs, psnrs, total = [], [], 0.0
    for x in (centre_crop(path, setup.crop) for path in paths):
        x_first, _, seed = decoder.first_stage(x)
        drawn, seconds = decoder.draw(x_first, seed)
        _, unpad = compute_padding(*x.shape[2:], min_div=64)
        x_hat = eight_bits(F.pad(x_first + drawn, unpad))
        pairs.append((x, x_hat))
        psnrs.append(psnr_db(x, x_hat))
        total += seconds
    distances = swd(lambda: pairs, patches=SAMPLERS_PATCHES)
    return {"psnr_db": sum(psnrs) / len(psnrs), "cpu_seconds": total / len(psnrs), **distances}


# --- All ---------------------------------------------------------------------------------------------


def tasks_of_images(setup: Setup, qualities: list[int], paths: list[Path]) -> list[Task]:
    found = []
    for quality in qualities:
        of = decoder_of(setup, quality).settings(crop=setup.crop)
        for path in paths:
            found.append(Task(f"image {quality} {path.stem}", of, measure_image, (setup, quality, path)))
    return found


def tasks_of_sets(
    setup: Setup, qualities: list[int], paths: list[Path], failures: Collection[str]
) -> list[Task]:
    """Of the qualities of which no image failed."""
    found = []
    for quality in qualities:
        if not any(f"image {quality} {path.stem}" in failures for path in paths):
            of = decoder_of(setup, quality).settings(crop=setup.crop, images=[p.stem for p in paths])
            found.append(Task(f"set {quality}", of, measure_set, (setup, quality, paths)))
    return found


def tasks_of_samplers(setup: Setup, quality: int, paths: list[Path], budgets: list[int]) -> list[Task]:
    """Other samplers and budgets on a few crops."""
    size, found = min(SAMPLERS_PX, setup.crop or SAMPLERS_PX), []
    of = decoder_of(setup, quality).settings(crop=size, images=[p.stem for p in paths])
    for method in METHODS:
        for steps in budgets:
            own = dataclasses.replace(setup, method=method, steps=steps, crop=size)
            settings = {**of, "method": method, "steps": steps}
            found.append(Task(f"sampler {method} {steps}", settings, measure_sampler, (own, quality, paths)))
    return found


def draw_crops(record: Record, setup: Setup, quality: int, paths: list[Path]) -> None:
    """Pictures of images side by side."""
    rows = []
    for path in [p for p in paths if p.stem in CROPS] or paths[:1]:
        pictures = {label: reconstruction(setup, quality, path, label) for label in LABELS}
        rows.append((path.stem, centre_crop(path, setup.crop), pictures))
    if rows:
        save_beside(crops(record.cells, quality, rows), "hfd-crops", record.path)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    record, failures = Record(args.out), {}
    if not args.tables:
        paths, qualities = find_images(args), args.qualities
        setup = Setup(args.weights, args.steps, args.precision, args.device, args.crop, args.pictures)
        each = tasks_of_images(setup, qualities, paths)
        failures = run(record, each, title="hfd, images", **run_options(args))
        others = tasks_of_sets(setup, qualities, paths, failures)
        if args.samplers:
            others += tasks_of_samplers(setup, qualities[0], paths[: args.samplers], args.budgets)
        failures |= run(record, others, title="hfd, sets and samplers", **run_options(args))
        shown = [path for path in paths if f"image {qualities[0]} {path.stem}" not in failures]
        draw_crops(record, setup, qualities[0], shown)
    save_beside(figure(record.cells), "hfd", record.path)
    print(tables(record.cells))
    finish(failures)
