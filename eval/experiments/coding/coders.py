# SPDX-License-Identifier: Apache-2.0
"""Time and size of this package's entropy coders against stock `ans`, through CompressAI's own calls.

    python eval/run.py coders [--images KODAK] [--rounds 7] [--part time|size]

time   For each model, stock and ours take turns on one 256x256 crop with one thread: `rounds` pairs after a
       pair that warms up. CPU time of the process is measured, which other programs hardly change. This part
       never runs in parallel; --workers is for sizes.
       "model": whole compress / decompress. "entropy": the entropy coding alone, that is the entropy
       bottleneck; build_indexes and the Gaussian conditional; the scan over the latent of an autoregressive
       model. The table has stock's median in ms, and the median and quartiles of stock / ours over the pairs.
size   Bytes of all strings of all images with each coder, from the same latents, and the smallest and
       largest ratio to `ans` among the images.

cheng2020-anchor has random weights (with quality 3's N = 128 and updated tables), because its time does not
depend on them. The script checks that all images decode to stock's symbols. A full run takes about 20 minutes
on one core of the machine that the result names. A run that was killed goes on where it stopped.

Out: eval/results/coders.json, with quartiles; two Markdown tables on stdout, medians and totals.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from compressai.registry import MODELS
from PIL import Image
from torch import Tensor, nn

from compressai_sga import zoo
from compressai_sga.coding import CODERS, set_coder
from compressai_sga.tasks.records import Record
from compressai_sga.tasks.tasks import Task, add_options, finish, run, run_options
from images import KODAK
from reporting import EVAL, Cells, markdown, part

TIMED = (
    ("bmshj2018-factorized-small", 3),
    ("mbt2018-mean-small", 3),
    ("mbt2018-mean-small", 6),
    ("mbt2018-small", 3),
    ("cheng2020-anchor", 3),
)
SIZED = (
    ("bmshj2018-factorized-small", 3),
    ("mbt2018-mean-small", 1),
    ("mbt2018-mean-small", 3),
    ("mbt2018-mean-small", 6),
    ("mbt2018-small", 3),
)


class Fixed(nn.Module):
    """Stands for g_a once its output is known."""

    def __init__(self, y: Tensor):
        super().__init__()
        self.y = y

    def forward(self, x: Tensor) -> Tensor:
        return self.y


def build(name: str, quality: int) -> nn.Module:
    if name != "cheng2020-anchor":
        return zoo.load(name, quality)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = MODELS[name](128).eval()
    model.update(force=True)
    return model


def read(path: Path) -> Tensor:
    """(1, 3, h, w), cut to multiples of 64."""
    x = torch.from_numpy(np.array(Image.open(path).convert("RGB"))).permute(2, 0, 1)[None].float() / 255
    return x[..., : x.shape[2] // 64 * 64, : x.shape[3] // 64 * 64].contiguous()


def crop(path: Path) -> Tensor:
    """What is timed: (1, 3, 256, 256) where the image is so large."""
    return read(path)[..., -256:, -256:].contiguous()


def steps(model: nn.Module, x: Tensor) -> dict[str, Callable[[], object]]:
    """What is timed, by name."""
    out = model.compress(x)
    calls = {
        "model compress": lambda: model.compress(x),
        "model decompress": lambda: model.decompress(out["strings"], out["shape"]),
    }
    y = model.g_a(x)
    bottleneck = model.entropy_bottleneck
    if not hasattr(model, "gaussian_conditional"):
        strings = bottleneck.compress(y)
        calls["entropy compress"] = lambda: bottleneck.compress(y)
        calls["entropy decompress"] = lambda: bottleneck.decompress(strings, y.shape[2:])
        return calls
    conditional = model.gaussian_conditional
    params = model.h_s(bottleneck.decompress(out["strings"][1], out["shape"]))
    string = out["strings"][0]
    if hasattr(model, "context_prediction"):
        padded = torch.nn.functional.pad(y, (2, 2, 2, 2))
        size = (*y.shape[2:], 5, 2)
        empty = torch.zeros_like(padded)
        calls["entropy compress"] = lambda: model._compress_ar(padded.clone(), params, *size)
        calls["entropy decompress"] = lambda: model._decompress_ar(string[0], empty.clone(), params, *size)
        return calls
    scales, means = params.chunk(2, 1)
    calls["entropy compress"] = lambda: conditional.compress(y, conditional.build_indexes(scales), means)
    calls["entropy decompress"] = lambda: conditional.decompress(
        string, conditional.build_indexes(scales), means=means
    )
    return calls


@torch.no_grad()
def measure_time(name: str, quality: int, coder: str, path: Path, rounds: int) -> dict:
    x = crop(path)
    stock, ours = build(name, quality), set_coder(build(name, quality), coder)
    theirs = stock.decompress(*stock.compress(x).values())["x_hat"]
    mine = ours.decompress(*ours.compress(x).values())["x_hat"]
    if (theirs - mine).abs().max() > 1e-4:
        raise SystemExit(f"{name} with {coder} decodes another image than with ans")
    values = {}
    for step, (a, b) in {k: (v, steps(ours, x)[k]) for k, v in steps(stock, x).items()}.items():
        pairs = []
        for turn in range(rounds + 1):
            start = time.process_time()
            a()
            middle = time.process_time()
            b()
            if turn:
                pairs.append((middle - start, time.process_time() - middle))
        ratios = sorted(first / second for first, second in pairs)
        values[step] = {
            "stock_cpu_ms": 1e3 * statistics.median(first for first, _ in pairs),
            "stock / ours": statistics.median(ratios),
            "quartiles": [ratios[len(ratios) // 4], ratios[-1 - len(ratios) // 4]],
        }
    return values


@torch.no_grad()
def measure_size(name: str, quality: int, paths: list[Path]) -> dict:
    sizes: dict[str, list[int]] = {coder: [] for coder in ("ans", *CODERS)}
    model = build(name, quality)
    g_a = model.g_a
    for path in paths:
        x = read(path)
        model.g_a = g_a
        model.g_a = Fixed(model.g_a(x))
        for coder, found in sizes.items():
            strings = set_coder(model, coder).compress(x)["strings"]
            found.append(sum(len(part[0]) for part in strings))
    total = {coder: sum(found) for coder, found in sizes.items()}
    values: dict = {"images": len(paths), "ans_bytes": total["ans"]}
    for coder in CODERS:
        ratios = [ours / stock for ours, stock in zip(sizes[coder], sizes["ans"])]
        values[coder] = {"bytes": total[coder], "ratio": total[coder] / total["ans"]}
        values[coder]["by image"] = [min(ratios), max(ratios)]
    return values


def tasks_of_time(path: Path, rounds: int) -> list[Task]:
    of = {"image": path.name, "size": "x".join(map(str, crop(path).shape[2:])), "rounds": rounds}
    return [
        Task(f"time {name} {quality} {coder}", of, measure_time, (name, quality, coder, path, rounds))
        for name, quality in TIMED
        for coder in CODERS
    ]


def tasks_of_size(paths: list[Path]) -> list[Task]:
    of = {"images": [path.name for path in paths]}
    return [Task(f"size {name} {q}", of, measure_size, (name, q, paths)) for name, q in SIZED]


def tables(cells: Cells) -> str:
    """Times and sizes, a row a model, of what was measured."""
    parts = [make(cells) for make in (time_table, size_table)]
    return "\n\n".join(part for part in parts if part)


def speedups(cells: Cells, step: str) -> dict[str, dict[str, float]]:
    """Stock's time over ours by model and coder, medians; step as "model decompress"."""
    found: dict[str, dict[str, float]] = {}
    for name, values in part(cells, "time").items():
        model, coder = name.rsplit(" ", 1)
        found.setdefault(model, {})[coder] = values[step]["stock / ours"]
    return found


def size_changes(cells: Cells, coder: str) -> list[float]:
    """Percent of bytes against stock's coder, a model each."""
    return [100 * (values[coder]["ratio"] - 1) for values in part(cells, "size").values()]


def headline(cells: Cells) -> str:
    """Speed where it counts, and size."""
    decoding = speedups(cells, "model decompress")
    faster = [decoding[name]["constriction-ans"] for name in ("cheng2020-anchor 3", "mbt2018-small 3")]
    sizes = size_changes(cells, "constriction-exact")
    return (
        f"autoregressive models decode {min(faster):.1f} to {max(faster):.1f} times as fast; "
        f"{min(sizes):+.2f} to {max(sizes):+.2f} % bytes with `constriction-exact`"
    )


def time_table(cells: Cells) -> str:
    """Stock's time over ours, by coder."""
    found = part(cells, "time")
    if not found:
        return ""
    of = next(iter(found.values()))["of"]
    text = (
        f"Stock's time over ours, `{'` / `'.join(CODERS)}`: medians of {of['rounds']} pairs of CPU time, "
        f'{of["image"]}, {of["size"]}; "coding" is without the transforms, but with the context model:'
    )
    steps = ("model compress", "model decompress", "entropy compress", "entropy decompress")
    by_step = [speedups(cells, step) for step in steps]
    rows = [
        [model, *(" / ".join(f"{of[model][c]:#.3g}" for c in CODERS if c in of[model]) for of in by_step)]
        for model in by_step[0]
    ]
    return f"{text}\n\n{markdown('model | compress | decompress | coding: encode | decode', rows)}"


def size_table(cells: Cells) -> str:
    """Change of the bytes of all images, and of the images with the lowest and the highest change."""
    found = part(cells, "size")
    if not found:
        return ""
    images, rows = next(iter(found.values()))["images"], []
    text = f"Bytes of {images} images, against `ans`, and the images with the lowest and highest change:"
    for model, values in found.items():
        row = []
        for coder in CODERS:
            total, (low, high) = values[coder]["ratio"], values[coder]["by image"]
            changes = (100 * (ratio - 1) for ratio in (total, low, high))
            row.append("{:+.3f} % ({:+.2f} to {:+.2f})".format(*changes))
        rows.append([model, f"{values['ans_bytes']:,}", *row])
    head = ["model", "bytes with `ans`", *(f"`{coder}`" for coder in CODERS)]
    return f"{text}\n\n{markdown(head, rows)}"


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--images", type=Path, default=KODAK)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--part", choices=["time", "size"], action="append")
    parser.add_argument("--out", type=Path, default=EVAL / "results" / "coders.json")
    add_options(parser)
    args = parser.parse_args(argv)
    paths = sorted(args.images.glob("*.png")) or zoo.sample_images()
    record, parts, failures = Record(args.out), args.part or ["time", "size"], {}
    if "time" in parts:
        failures |= run(record, tasks_of_time(paths[0], args.rounds), title="coders, time")
    if "size" in parts:
        failures |= run(record, tasks_of_size(paths), title="coders, size", **run_options(args))
    print(tables(record.cells))
    finish(failures)
