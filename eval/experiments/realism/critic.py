# SPDX-License-Identifier: Apache-2.0
"""The universal critic on real images: which distortions it finds, and which likelihood alone finds.

    python eval/run.py critic [--data KODAK]        # centre crops of 256 px

Theis, "What makes an image realistic?", 2024. U = -log2 P(x) - K(x) is large if the image has a shorter code
than that of the model P (`compressai_sga.metrics.critic`). P is the pixel model of photographs. K is the
length of real lossless files (PNG, WebP, and JPEG XL if installed), of the two-part code of the pixel model,
and of `default_reference`, the mixture of the two-part code with WebP, which `--metrics critic` uses.

In:  a folder of images; each crop is measured as it is, blurred, sharpened, with noise, as noise alone, flat,
     as JPEG at three qualities, as the first stage of hfd-small decodes it, and as HFD draws it.
Out: eval/results/critic.json, one cell for each crop; tables on stdout; eval/figures/critic.png.

The U of a crop is compared with the U of its own original. This is needed because P is no exact model of real
images: even originals have a U of tens of thousands of bits. A use without reference lacks this comparison.
Batches: n crops of different images against n copies of one crop. The exact part needs no images.

Limits: an image is called unrealistic only if it has a code shorter than that of P. P itself gives a high
probability to a mild blur, a good JPEG and a flat image. The two-part code, which fits the form of P to the
image, detects a strong blur; with WebP and JPEG XL, U is mostly below that of the original. The images that
HFD draws also have a U below that of their originals, because P fits them better.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from compressai.utils.eval_model.__main__ import psnr
from torch import Tensor
from torchvision.transforms.functional import gaussian_blur

from compressai_sga import zoo
from compressai_sga.errors import SgaError
from compressai_sga.metrics.critic import Compressor, batch_critic, critic, default_reference
from compressai_sga.metrics.photographs import PHOTOGRAPHS
from compressai_sga.metrics.pixel_model import FittedPixelModel
from compressai_sga.tasks.records import Record
from compressai_sga.tasks.tasks import Task, add_options, finish, run, run_options
from experiments.realism import critic_report
from images import KODAK, centre_crop, from_levels, levels
from images import jpeg as jpeg_file
from reporting import EVAL, save_beside

CROP_PX, BATCH_PX = 256, 128
BATCHES = (1, 2, 4, 8)
STEPS = 16
SEED = 2403
Pictures = dict[str, Tensor]


def crop(path: Path, side: int) -> Tensor:
    """The square in the middle, (1, 3, side, side), uint8."""
    x = centre_crop(path, side)
    if min(x.shape[2:]) < side:
        raise SgaError(f"{path} is less than {side} px a side; name larger images")
    return eight_bits(255 * x)


def eight_bits(x: Tensor) -> Tensor:
    return x.round().clamp(0, 255).to(torch.uint8)


def jpeg(x: Tensor, quality: int) -> Tensor:
    """The picture as a JPEG of that quality decodes."""
    return eight_bits(255 * from_levels(jpeg_file(levels(x / 255), quality).pixels))


@functools.lru_cache(maxsize=1)
def decoder() -> torch.nn.Module | None:
    """hfd-small at its lowest quality, where its weights are there."""
    try:
        return zoo.load("hfd-small", 1, steps=STEPS)
    except (ValueError, FileNotFoundError):
        return None


def variants(x: Tensor) -> Pictures:
    """What is measured of a crop, by name."""
    generator = torch.Generator().manual_seed(SEED)
    noise = torch.randn(x.shape, generator=generator)
    real = x.float()
    blurred = {sigma: gaussian_blur(real, 2 * math.ceil(3 * sigma) + 1, sigma) for sigma in (0.7, 1.5)}
    found = {
        "original": x,
        **{f"blurred, σ = {sigma} px": eight_bits(values) for sigma, values in blurred.items()},
        "sharpened": eight_bits(real + 2 * (real - blurred[1.5])),
        **{f"noise, σ = {sigma}": eight_bits(real + sigma * noise) for sigma in (5, 20)},
        **{f"JPEG {quality}": jpeg(x, quality) for quality in (90, 50, 10)},
        "noise alone": torch.randint(0, 256, x.shape, generator=generator, dtype=torch.uint8),
        "flat": eight_bits(real.mean((2, 3), keepdim=True).expand_as(real)),
    }
    model = decoder()
    if model is not None:
        with torch.no_grad():
            sent = model.compress(real / 255)
            for name, realism in (("first stage of HFD", 0.0), ("HFD", 1.0)):
                found[name] = eight_bits(255 * model.decompress(**sent, realism=realism)["x_hat"])
    return found


def codes() -> dict[str, Any]:
    """What stands for K, by name."""
    found: dict[str, Any] = {}
    for name, label in (("png", "PNG"), ("webp", "WebP"), ("jxl", "JPEG XL")):
        try:
            found[label] = Compressor(name)  # type: ignore[arg-type]
        except SgaError:
            continue
    return {**found, "two-part": FittedPixelModel(), "mixture": default_reference()}


def measure(path: str) -> dict[str, dict[str, float]]:
    """Bits a pixel of every variant of one image's crop, and its PSNR."""
    x = crop(Path(path), CROP_PX)
    found = {}
    for name, picture in variants(x).items():
        bits = {label: float(code.bits(picture)) / CROP_PX**2 for label, code in codes().items()}
        same = torch.equal(x, picture)
        found[name] = {
            "psnr_db": None if same else float(psnr(x.float(), picture.float())),
            "model": float(PHOTOGRAPHS.bits(picture)) / CROP_PX**2,
            **bits,
        }
    return found


def measure_batches(paths: Sequence[str]) -> dict[str, dict[str, float]]:
    """U a pixel of batches: of different crops, and of copies of the first."""
    crops = [crop(Path(path), BATCH_PX) for path in paths]
    found = {}
    for size in BATCHES:
        for name, batch in (("different", crops[:size]), ("copies", crops[:1] * size)):
            x = torch.cat(batch)
            together = batch_critic(x, PHOTOGRAPHS, Compressor("webp"))
            alone = critic(x, PHOTOGRAPHS, Compressor("webp")).sum()
            pixels = size * BATCH_PX**2
            found[f"{size} {name}"] = {"batch": float(together) / pixels, "alone": float(alone) / pixels}
    return found


def measure_exact() -> dict[str, Any]:
    """Sums over whole finite alphabets, and Gaussians in closed form."""
    law, parts, weights = critic_report.LAW, critic_report.PARTS, critic_report.WEIGHTS
    mixed = [sum(w * part[x] for w, part in zip(weights, parts)) for x in range(len(law))]
    u = [math.log2(mixed[x] / law[x]) for x in range(len(law))]
    return {
        "expectation": sum(p * 2**value for p, value in zip(law, u)),
        "u": u,
        "tail": {str(t): sum(p for p, value in zip(law, u) if value >= t) for t in (0.5, 1, 2)},
        **critic_report.gaussians(),
    }


def tasks(paths: Sequence[Path]) -> list[Task]:
    """One an image, one of batches, one without images."""
    hfd = [r.sha256 for r in zoo.list_models() if (r.name, r.quality) == ("hfd-small", 1)]
    of = {"seed": SEED, "model": hash_of(PHOTOGRAPHS)}
    found = [
        Task(
            f"image {path.stem}",
            {**of, "crop": CROP_PX, "steps": STEPS, "hfd": hfd, "sha256": sha256(path)},
            measure,
            (str(path),),
        )
        for path in paths
    ]
    several = paths[: max(BATCHES)]
    if len(several) == max(BATCHES):
        batches = {**of, "crop": BATCH_PX, "sha256": [sha256(path) for path in several]}
        found.append(Task("batches", batches, measure_batches, ([str(path) for path in several],)))
    exact = {"law": critic_report.LAW, "parts": critic_report.PARTS, "weights": critic_report.WEIGHTS}
    return [*found, Task("exact", exact, measure_exact)]


def sha256(path: Path) -> str:
    """Of a file's bytes."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def hash_of(model: Any) -> str:
    """What the results of a pixel model belong to."""
    return hashlib.sha256(repr(model).encode()).hexdigest()[:16]


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, default=KODAK, help="folder of PNG images")
    parser.add_argument("--out", type=Path, default=EVAL / "results" / "critic.json")
    add_options(parser)
    args = parser.parse_args(argv)
    paths = sorted(args.data.glob("*.png"))
    if not paths:
        parser.error(f"{args.data} holds no PNG image; name a folder with --data")
    record = Record(args.out)
    failures = run(record, tasks(paths), title="critic", **run_options(args))
    if not any(name.startswith("image ") for name in record.cells):
        return finish(failures)
    print(critic_report.tables(record.cells))
    save_beside(critic_report.figure(record.cells), args.out.stem, args.out)
    finish(failures)
