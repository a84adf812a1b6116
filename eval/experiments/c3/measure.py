# SPDX-License-Identifier: Apache-2.0
"""C3, a codec fitted to one image (Kim et al. 2024): size, loss and time, and the effect of the budget.

    python eval/run.py c3                                # all parts; hours of one core
    python eval/run.py c3 --parts crops --reference FILE
    python eval/run.py c3 --parts warm --tables          # only print what was measured
    python eval/run.py c3 --steps 10 20 --size 48        # a trial; its files end in -trial

crops:  c3-fast on 256x256 centre crops of eight Kodak images at lmbda 1e-3. J = mse + lmbda * bpp, from
        the bytes of both strings and the decoded image in 8 bits. --reference adds rows of another codec
        (JSON lines: image, bytes, bpp, mse, psnr_db, encode_cpu_seconds, decode_cpu_seconds).
budget: c3 on some of the crops, a complete fit for each number of steps.
warm:   c3-fast with and without the package's default nets as a start.
whole:  c3-fast on whole images: estimated against real bits, decoders in C++ and Python.
step:   a step of the fit against the same step with masked convolutions (eval/experiments/c3/plain.py), in
        one process.
figure: whole images beside published Kodak curves, loss against steps; decoded crops.

In:  Kodak, and for the figure the published points (`published` has their form).
Out: eval/results/c3.json, one cell for each image and setting, which a second call does not measure again
     unless the preset has changed (after changes of the code, remove the file); eval/figures/c3.png and
     c3-crops.png; Markdown tables on stdout.
Fails with ``FileNotFoundError`` if images or points are missing, ``ValueError`` if rows of the reference
contradict themselves.
"""

from __future__ import annotations

import argparse
import base64
import dataclasses
import functools
import hashlib
import json
import math
import re
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from compressai_sga.comparison import published
from compressai_sga.models.c3 import C3, native
from compressai_sga.models.c3.config import PRESETS
from compressai_sga.models.c3.fit.grid_plane import GridPlane
from compressai_sga.models.c3.fit.loop import Fit
from compressai_sga.models.c3.image_codec import decode_image, decode_strings
from compressai_sga.models.c3.latent_codec import bits_of
from compressai_sga.models.c3.macs import macs_per_pixel
from compressai_sga.models.c3.model import Fitted
from compressai_sga.models.c3.network import context_of, entropy_net, latent_bits
from compressai_sga.tasks.records import Record
from compressai_sga.tasks.tasks import Task, add_options, finish, run, run_options
from experiments.c3.plain import PlainFit
from experiments.c3.report import ANCHORS, REFERENCE, figure, pictures, tables
from images import KODAK, SHARED, centre_crop, levels
from reporting import EVAL, save_beside

PARTS = ("crops", "budget", "warm", "whole", "step", "figure")
SEED, LMBDA = 0, 1e-3
BUDGETS = (500, 1000, 2000, 5000, 10_000)
WHOLE_STEPS = 300  # of 2 000, for time
WARM_BUDGETS = (300, 1000)
# Label: arguments of `C3`.
STARTS: dict[str, dict[str, Any]] = {
    "cold": {"preset": "c3-fast", "warm": False},
    "warm": {"preset": "c3-fast", "warm": True},
}
DECODES = 5
ROUNDS, ROUND_STEPS = 21, 4
PICTURES = (20, 23)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--parts", nargs="*", choices=PARTS, default=PARTS)
    parser.add_argument("--kodak", type=Path, default=KODAK, help="folder of kodimNN.png")
    parser.add_argument("--anchors", type=Path, default=SHARED / "anchors" / "kodak.json")
    parser.add_argument("--reference", type=Path, help="another codec's results on the crops, JSON lines")
    numbers = {"type": int, "nargs": "+", "metavar": "N"}
    parser.add_argument("--crops", default=[1, 5, 8, 13, 17, 20, 22, 23], **numbers, help="of part crops")
    parser.add_argument(
        "--budget", default=[13, 20], **numbers, help="of part budget: half an hour of one core each"
    )
    parser.add_argument("--warm", default=[13, 20], **numbers, help="of part warm")
    parser.add_argument("--whole", default=[5, 23], **numbers, help="of part whole")
    parser.add_argument("--lmbdas", type=float, nargs="+", default=[1e-3, 4e-3], help="of part whole")
    parser.add_argument("--size", type=int, default=256, help="side of the crops in pixels")
    parser.add_argument("--steps", **numbers, help="a trial: budgets; other parts take the last")
    parser.add_argument("--tables", action="store_true", help="measure nothing, print the tables")
    parser.add_argument("--out", type=Path, help="results file (default: eval/results/c3.json)")
    add_options(parser)
    return parser.parse_args(argv)


# --- Images -----------------------------------------------------------------------------------------


def image_path(folder: Path, number: int) -> Path:
    path = folder / f"kodim{number:02}.png"
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}; name the folder with kodim01.png ... with --kodak")
    return path


def read(folder: Path, number: int, size: int | None = None) -> Tensor:
    """The image (1, 3, H, W), or its centre crop."""
    x = centre_crop(image_path(folder, number), size)
    height, width = x.shape[2:]
    if size is not None and size > min(height, width):
        raise ValueError(f"the image has {height} x {width} px, less than {size}; choose a smaller --size")
    return x


def mse_of(x: Tensor, x_hat: Tensor) -> float:
    """Of images (1, 3, H, W) in 8 bits, on the scale from 0 to 1."""
    return float(np.square((levels(x_hat).astype(np.float64) - levels(x)) / 255).mean())


# --- Fits -------------------------------------------------------------------------------------------


def fingerprint(preset: str) -> str:
    """Of all that a preset fixes but its name and steps."""
    same = dataclasses.replace(PRESETS[preset], name="", steps=0)
    return hashlib.sha256(repr(same).encode()).hexdigest()[:12]


def settings_of(preset: str, steps: int | None, lmbda: float = LMBDA, **others: Any) -> dict[str, Any]:
    """What a cell belongs to."""
    steps = PRESETS[preset].steps if steps is None else steps
    own = {"preset": preset, "fingerprint": fingerprint(preset), "steps": steps, "lmbda": lmbda}
    return own | {"seed": SEED} | others


def coded(x: Tensor, steps: int, lmbda: float, options: dict[str, Any]) -> tuple[Fitted, dict[str, Any]]:
    """Fit, code and decode an image (1, 3, H, W); sizes, loss and times."""
    model = C3(lmbda=lmbda, steps=steps, seed=SEED, progress=False, **options)
    cpu, wall = time.process_time(), time.perf_counter()
    (found,) = model.fit(x)
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    strings, shape = [[string] for string in found.strings], x.shape[2:]
    x_hat, decode_cpu, decode_wall = timed(lambda: model.decompress(strings, shape)["x_hat"], DECODES)
    nets, latents = (len(string) for string in found.strings)
    mse = mse_of(x, x_hat)
    bpp = 8 * (nets + latents) / (shape[0] * shape[1])
    return found, {
        "bytes": nets + latents,
        "bytes_nets": nets,
        "bytes_latents": latents,
        "bpp": bpp,
        "mse": mse,
        "psnr_db": -10 * math.log10(max(mse, 1e-12)),
        "loss": mse + lmbda * bpp,
        "encode_cpu_seconds": cpu,
        "encode_seconds": wall,
        "decode_cpu_seconds": decode_cpu,
        "decode_seconds": decode_wall,
    }


def timed(function: Any, times: int) -> tuple[Any, float, float]:
    """What it returns; medians of CPU and wall time, seconds."""
    cpu, wall = [], []
    for _ in range(times):
        start, start_cpu = time.perf_counter(), time.process_time()
        found = function()
        wall.append(time.perf_counter() - start)
        cpu.append(time.process_time() - start_cpu)
    return found, statistics.median(cpu), statistics.median(wall)


def crop(folder: Path, number: int, size: int, steps: int) -> dict[str, Any]:
    """c3-fast on a centre crop, with its strings."""
    found, values = coded(read(folder, number, size), steps, LMBDA, {"preset": "c3-fast"})
    return values | {"strings": [base64.b64encode(s).decode() for s in found.strings]}


def tasks_of_crops(args: argparse.Namespace) -> list[Task]:
    of = settings_of("c3-fast", args.steps and args.steps[-1], size=args.size)
    return [
        Task(f"crops kodim{number:02}", of, crop, (args.kodak, number, args.size, of["steps"]))
        for number in args.crops
    ]


def keep_reference(record: Record, path: Path, size: int) -> None:
    """The rows of another codec as cells."""
    for of in read_reference(path, size):
        values = of | {"loss": of["mse"] + LMBDA * of["bpp"]}
        record.cell(f"reference {of['image']}", of, lambda values=values: values)


def read_reference(path: Path, size: int) -> list[dict[str, Any]]:
    """Rows of another codec; bpp and PSNR must be those of its bytes and mse."""
    rows = []
    for line in filter(str.strip, path.read_text(encoding="utf-8").splitlines()):
        row = json.loads(line)
        missing = [name for name in REFERENCE if name not in row]
        if missing:
            raise ValueError(f"{path}: a row lacks {', '.join(missing)}; give {', '.join(REFERENCE)}")
        bpp, psnr_db = 8 * row["bytes"] / size**2, -10 * math.log10(row["mse"])
        if abs(bpp / row["bpp"] - 1) > 1e-3 or abs(psnr_db - row["psnr_db"]) > 0.01:
            raise ValueError(
                f"{path}: {row['image']} has {row['bpp']} bpp and {row['psnr_db']} dB, but {row['bytes']} "
                f"bytes of {size} x {size} px are {bpp:.4f} bpp, and mse {row['mse']} (of images in [0, 1]) "
                f"is {psnr_db:.2f} dB; mend the row, or give --size"
            )
        number = int(re.search(r"\d+", str(row["image"]))[0])
        rows.append({name: row[name] for name in REFERENCE} | {"image": f"kodim{number:02}"})
    return rows


def fit(folder: Path, number: int, size: int, steps: int, options: dict[str, Any]) -> dict[str, Any]:
    """Any entry on a centre crop."""
    return coded(read(folder, number, size), steps, LMBDA, options)[1]


def tasks_of_fits(
    args: argparse.Namespace, part: str, label: str, options: dict[str, Any], steps: int
) -> list[Task]:
    """One budget of one entry on the part's crops."""
    others = {name: value for name, value in options.items() if name != "preset"}
    of, found = settings_of(options["preset"], steps, size=args.size, **others), []
    for number in getattr(args, part):
        name = " ".join(filter(None, (part, label, str(steps), f"kodim{number:02}")))
        found.append(Task(name, of, fit, (args.kodak, number, args.size, steps, options)))
    return found


def tasks_of_budget(args: argparse.Namespace) -> list[Task]:
    found = (tasks_of_fits(args, "budget", "", {"preset": "c3"}, n) for n in args.steps or BUDGETS)
    return [task for tasks in found for task in tasks]


def tasks_of_warm(args: argparse.Namespace) -> list[Task]:
    return [
        task
        for steps in args.steps or WARM_BUDGETS
        for label, options in STARTS.items()
        for task in tasks_of_fits(args, "warm", label, options, steps)
    ]


# --- Whole images -----------------------------------------------------------------------------------


def float_bits(found: Fitted) -> float:
    """What the fit's own float nets, with the rounded weights, take the latents' code length for."""
    a = found.nets.architecture
    grid_plane = GridPlane(found.nets.size, a.grids, a.first, a.taps)
    plane = grid_plane.place([grid.astype(np.float32) for grid in found.grids])
    arrays = {name: torch.from_numpy(array)[None] for name, array in found.nets.arrays().items()}
    outputs = entropy_net(arrays, context_of(plane, grid_plane), a)
    return float(latent_bits(grid_plane.latents(plane), outputs)[0].double() @ grid_plane.mask.double())


@torch.no_grad()
def whole(folder: Path, number: int, steps: int, lmbda: float) -> dict[str, Any]:
    """Estimated and real bits of an image, and its decoding by both decoders."""
    x = read(folder, number)
    found, values = coded(x, steps, lmbda, {"preset": "c3-fast"})
    size = tuple(x.shape[2:])
    values |= {
        "float_bits": float_bits(found),
        "exact_bits": float(sum(bits_of(found.grids, found.nets.entropy(), found.nets.architecture.taps))),
        "macs_per_pixel": macs_per_pixel(found.nets.architecture).total,
        "macs_per_pixel_here": macs_per_pixel(found.nets.architecture, size).total,
    }
    images, latents = {}, {}
    for backend, times in (("python", 1), ("native", DECODES)):
        if backend == "python" or native.AVAILABLE:
            decode = functools.partial(decode_image, found.strings, size, backend=backend)
            images[backend], _, values[f"{backend}_seconds"] = timed(decode, times)
            latents[backend] = decode_strings(found.strings, size, backend=backend).grids
    if native.AVAILABLE:
        a, b = (levels(images[backend][None]).astype(np.int64) for backend in ("python", "native"))
        pairs = zip(latents["python"], latents["native"], found.grids, strict=True)
        values["largest_difference_levels"] = int(abs(a - b).max())
        values["differing_share"] = float((a != b).mean())
        values["same_latents"] = all(np.array_equal(p, n) and np.array_equal(p, g) for p, n, g in pairs)
    return values


def tasks_of_whole(args: argparse.Namespace) -> list[Task]:
    steps, found = WHOLE_STEPS if args.steps is None else args.steps[-1], []
    for number in args.whole:
        for lmbda in args.lmbdas:
            of = settings_of("c3-fast", steps, lmbda, native=native.AVAILABLE)
            arguments = (args.kodak, number, steps, lmbda)
            found.append(Task(f"whole kodim{number:02} {lmbda:g}", of, whole, arguments))
    return found


# --- A step ------------------------------------------------------------------------------------------


def step_times(folder: Path, number: int, size: int, rounds: int, steps: int) -> dict[str, Any]:
    """CPU milliseconds of a step of both, and their ratio, in turn."""
    torch.manual_seed(SEED)
    ours = Fit(read(folder, number, size), PRESETS["c3-fast"], LMBDA, steps=100 * rounds * steps)
    runs: dict[str, Any] = {"ours": ours, "plain": PlainFit(ours)}
    times: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(rounds + 1):
        for name in list(runs)[:: 1 if turn % 2 else -1]:
            start = time.process_time()
            for _ in range(steps):
                runs[name].step()
            if turn:  # the first round warms up
                times[name].append(1e3 * (time.process_time() - start) / steps)
    ratios = np.array(times["plain"]) / np.array(times["ours"])
    low, middle, high = np.quantile(ratios, (0.25, 0.5, 0.75))
    medians = {f"{name}_cpu_ms": statistics.median(values) for name, values in times.items()}
    return medians | {"ratio": middle, "quartiles": [low, high]}


def tasks_of_step(args: argparse.Namespace) -> list[Task]:
    steps = ROUND_STEPS if args.steps is None else 1
    rounds = ROUNDS if args.steps is None else 3
    of = {"fingerprint": fingerprint("c3-fast"), "size": args.size, "rounds": rounds, "round_steps": steps}
    return [Task("step c3-fast", of, step_times, (args.kodak, args.crops[0], args.size, rounds, steps))]


# --- All --------------------------------------------------------------------------------------------


def draw(record: Record, args: argparse.Namespace) -> None:
    """The figures, of what was measured."""
    results = record.path.parent
    points = published.keep(args.anchors, [key for key, _ in ANCHORS.values()], results)
    save_beside(figure(record.cells, points), record.path.stem, record.path, results / published.FILE)
    rows = []
    for number in PICTURES:
        cell = record.cells.get(f"crops kodim{number:02}")
        if cell is not None:
            values, size = cell["values"], cell["of"]["size"]
            x_hat = decode_image([base64.b64decode(s) for s in values["strings"]], (size, size))
            original = levels(read(args.kodak, number, size))
            rows.append((f"kodim{number:02}", original, levels(x_hat[None]), values["bytes"]))
    if rows:
        save_beside(pictures(rows), record.path.stem.replace("c3", "c3-crops", 1), record.path)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    name = "c3" if args.steps is None else "c3-trial"
    out = args.out or EVAL / "results" / f"{name}.json"
    if args.tables and not out.is_file():
        raise FileNotFoundError(f"no file {out}; measure first, or name the results with --out")
    record, failures = Record(out), {}
    if not args.tables:
        for number in {*args.crops, *args.budget, *args.warm, *args.whole}:  # now, not after an hour
            image_path(args.kodak, number)
        if "figure" in args.parts and not args.anchors.is_file():
            raise FileNotFoundError(f"no file {args.anchors}; name published points with --anchors")
        if args.reference is not None and "crops" in args.parts:
            keep_reference(record, args.reference, args.size)
        makers = {
            "crops": tasks_of_crops,
            "budget": tasks_of_budget,
            "warm": tasks_of_warm,
            "whole": tasks_of_whole,
        }
        fits = [task for part in args.parts if part in makers for task in makers[part](args)]
        failures = run(record, fits, title="c3", **run_options(args))
        if "step" in args.parts:
            failures |= run(record, tasks_of_step(args), title="c3, step")
        if "figure" in args.parts:
            draw(record, args)
    print(tables(record.cells, args.parts))
    finish(failures)
