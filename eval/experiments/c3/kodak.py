# SPDX-License-Identifier: Apache-2.0
"""C3 (Kim et al. 2024) on whole Kodak images in batches: its rate-distortion curve, and seconds an image.

    python eval/run.py c3-kodak --presets c3-fast --device cuda --batch 6   # --workers N: on N GPUs
    python eval/run.py c3-kodak --images 1 2 --lmbdas 1e-3 --steps 20       # a trial

The images of a batch are fitted together (`models.c3.fit`). A GPU needs this to be busy, because the fit of
one image consists of many small operations. The seconds of an image are those of its batch, divided by the
number of images.

In:  Kodak; presets of `models.c3.config`; trade-offs, the paper's 14 by default.
Out: eval/results/c3-kodak.json, one cell for each batch, which a second call does not measure again; a table
     of mean bpp, mean PSNR, and PSNR of the mean MSE (published curves use one or the other).
Fails with ``FileNotFoundError`` if images are missing.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from compressai_sga.models.c3 import C3
from compressai_sga.models.c3.config import PRESETS
from compressai_sga.tasks.records import Record
from compressai_sga.tasks.tasks import Task, add_options, finish, run, run_options
from experiments.c3.measure import SEED, image_path, mse_of, read, settings_of
from images import KODAK
from reporting import EVAL, markdown

PAPER_LMBDAS = (1e-4, 2e-4, 3e-4, 4e-4, 5e-4, 8e-4, 1e-3, 2e-3, 3e-3, 4e-3, 5e-3, 8e-3, 1e-2, 2e-2)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--presets", nargs="+", choices=PRESETS, default=["c3-fast"])
    parser.add_argument("--lmbdas", type=float, nargs="+", default=PAPER_LMBDAS)
    parser.add_argument("--images", type=int, nargs="+", default=list(range(1, 25)), metavar="N")
    parser.add_argument("--steps", type=int, help="instead of the preset's")
    parser.add_argument("--batch", type=int, default=1, help="images that are fitted together")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--kodak", type=Path, default=KODAK, help="folder of kodimNN.png")
    parser.add_argument("--out", type=Path, default=EVAL / "results" / "c3-kodak.json")
    add_options(parser)
    return parser.parse_args(argv)


def batches(folder: Path, numbers: list[int], count: int) -> list[list[int]]:
    """Numbers of images of one size, at most `count` together; Kodak has landscapes and portraits."""
    by_size: dict[tuple[int, ...], list[int]] = {}
    for number in numbers:
        by_size.setdefault(tuple(read(folder, number).shape), []).append(number)
    return [same[i : i + count] for same in by_size.values() for i in range(0, len(same), count)]


def measure(
    folder: Path, numbers: list[int], preset: str, lmbda: float, steps: int, device: str
) -> dict[str, Any]:
    """Bytes and mse of each image of a batch, and the seconds of all."""
    x = torch.cat([read(folder, number) for number in numbers]).to(device)
    model = C3(lmbda=lmbda, steps=steps, seed=SEED, preset=preset, progress=False)
    start = time.perf_counter()
    fitted = model.fit(x)
    seconds = time.perf_counter() - start
    images = {}
    for number, image, found in zip(numbers, x.cpu(), fitted):
        x_hat = model.decompress([[s] for s in found.strings], x.shape[2:])["x_hat"]
        size = sum(len(s) for s in found.strings)
        images[str(number)] = {
            "bytes": size,
            "bpp": 8 * size / image[0].numel(),
            "mse": mse_of(image[None], x_hat),
        }
    return {"images": images, "seconds": seconds, "device": _name(device)}


def _name(device: str) -> str:
    return torch.cuda.get_device_name(device) if device.startswith("cuda") else device


def table(cells: dict[str, Any]) -> str:
    """A row for each preset and trade-off."""
    rows: dict[tuple[str, int, float, str, int], list[dict[str, Any]]] = {}
    for cell in cells.values():
        of, values = cell["of"], cell["values"]
        rows.setdefault((of["preset"], of["steps"], of["lmbda"], values["device"], of["batch"]), []).append(
            values
        )
    head = "preset | steps | λ | images | bpp | PSNR, dB | of mean MSE | s an image | batch | on"
    lines = []
    for (preset, steps, lmbda, device, batch), found in sorted(rows.items()):
        images = [v for part in found for v in part["images"].values()]
        mse = np.array([v["mse"] for v in images])
        psnr_db, bpp = float(np.mean(-10 * np.log10(mse))), float(np.mean([v["bpp"] for v in images]))
        seconds = sum(part["seconds"] for part in found) / len(images)
        lines.append(
            f"`{preset}` | {steps} | {lmbda:g} | {len(images)} | {bpp:.4f} | {psnr_db:.2f} "
            f"| {-10 * math.log10(mse.mean()):.2f} | {seconds:.1f} | {batch} | {device}"
        )
    return markdown(head, lines)


def tasks(args: argparse.Namespace) -> list[Task]:
    """Every batch with every preset and trade-off."""
    found = []
    for preset in args.presets:
        for lmbda in args.lmbdas:
            of = settings_of(preset, args.steps, lmbda, device=args.device, batch=args.batch)
            start = f"{preset} {lmbda:g} batch {args.batch} {of['steps']}"
            for numbers in batches(args.kodak, args.images, args.batch):
                name = " ".join([start, *(f"kodim{n:02}" for n in numbers)])
                arguments = (args.kodak, numbers, preset, lmbda, of["steps"], args.device)
                found.append(Task(name, of, measure, arguments))
    return found


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    for number in args.images:  # now, not after an hour
        image_path(args.kodak, number)
    record = Record(args.out)
    failures = run(record, tasks(args), title="c3-kodak", **run_options(args))
    print(table(record.cells))
    finish(failures)
