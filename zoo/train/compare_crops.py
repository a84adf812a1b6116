# SPDX-License-Identifier: Apache-2.0
"""Compare samplers of training crops at an equal number of steps, on held-out photographs.

    python zoo/train/compare_crops.py --data PHOTOS --steps 800

The same model, schedule and seed (train.py: mbt2018-mean, all rates in one training) is trained on crops of
each sampler. The scales are 1, 3/4 and 1/2 for all photographs (an earlier recipe), or depend on the size of
the photograph (crops.py). None, half or all of the crops are chosen by detail.

In:  a folder of photographs that includes some of held_out.txt, both small ones and ones above a megapixel.
Out: OUT/SAMPLER-STEPS-SEED, the run (to resume: run the same command again; finished runs are kept); results
     as JSON; on stdout a table in Markdown. Without --data only the table of the existing results. A score
     is the geometric mean over the eight rates of the loss bpp + lmbda * 255^2 * MSE. The loss is a mean over
     squares of 256 pixels on the diagonals of the photographs of one kind. Lower is better.
Fails with ``ValueError`` if PHOTOS has no image to train on, or none of held_out.txt.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor

import held_out
import train
from crops import MEGAPIXEL, CropSampler, photographs, read_rgb
from run_files import replace

RESULTS = Path(__file__).resolve().parent / "results" / "crops.json"
SHOWN_LMBDA = (0.0018, 0.013, 0.18)


def _before(pixels: int) -> tuple[float, ...]:
    return (1.0, 0.75, 0.5)


SAMPLERS: dict[str, dict[str, Any]] = {
    "before": {"scales": _before, "detailed_share": 0.0},
    "before-half": {"scales": _before, "detailed_share": 0.5},
    "scales": {"detailed_share": 0.0},
    "half": {"detailed_share": 0.5},
    "all": {"detailed_share": 1.0},
    "by-rate": {},
}
WORDS = {
    "before": "every photograph at 1, 3/4, 1/2",
    "before-half": "the same, half of the crops by detail",
    "scales": "large ones at 1/2, 3/8, 1/4, small ones at 1, 3/4",
    "half": "the same scales, half of the crops by detail",
    "all": "the same scales, all crops by detail",
    "by-rate": "the same scales, by detail from none at the lowest rate to all at the highest",
}
SQUARES = {"small": 2, "large": 4, "halved": 3}  # of a photograph of each kind
KINDS = {"small": "small", "large": "large, whole size", "halved": "large, halved"}


def squares(image: Image.Image, count: int, side: int) -> Tensor:
    """(count, 3, side, side) in [0, 1], evenly spaced on the diagonal; ValueError if the image is smaller."""
    free = [length - side for length in image.size]
    if min(free) < 0:
        raise ValueError(
            f"a held-out photograph has {image.size} pixels; give ones of at least {side} a side"
        )
    places = [[round(room * part / (count - 1)) for room in free] for part in range(count)]
    boxes = [(left, top, left + side, top + side) for left, top in places]
    return torch.stack([pil_to_tensor(image.crop(box)) for box in boxes]).float() / 255


class BySource(held_out.HeldOut):
    """Squares of the held-out photographs: of small ones, and of large ones at full and at half size."""

    def __init__(self, folder: Path, sampler: CropSampler):
        found: list[tuple[str, Tensor]] = []
        for path in photographs(folder, held=True):
            image = read_rgb(path)
            sources = {"small": image}
            if image.width * image.height > MEGAPIXEL:
                half = image.resize((image.width // 2, image.height // 2), Image.Resampling.LANCZOS)
                sources = {"large": image, "halved": half}
            for kind, source in sources.items():
                found += [(kind, x) for x in squares(source, SQUARES[kind], held_out.CHECK_PX)]
        if not found:
            raise ValueError(
                f"{folder} holds no photograph of held_out.txt; name the folder of them with --data"
            )
        self.kinds = [kind for kind, _ in found]
        self.crops = torch.stack([x for _, x in found])


class Scored(train.Run):
    """A run of which only the scores are needed."""

    def export(self) -> None:
        """Write no weights."""


def measure(name: str, args: argparse.Namespace, seed: int) -> dict[str, Any]:
    """Train on the crops of one sampler, or resume the training; returns its scores."""
    out = args.out / f"{name}-{args.steps}-{seed}"
    argv = ["--arch", "mbt2018-mean", "-N", str(args.N), "-M", str(args.M), "--data", str(args.data)]
    argv += ["--out", str(out), "--max-steps", str(args.steps), "--seed", str(seed), "--device", args.device]
    path = out / "run.json"
    if not path.exists() or json.loads(path.read_text(encoding="utf-8"))["step"] < args.steps:
        torch.manual_seed(seed)
        sampler = CropSampler(args.data, min_size=train.FINE["size"], seed=seed, **SAMPLERS[name])
        run = Scored(train.parse_args(argv), argv, sampler, BySource(args.data, sampler))
        train.run_until_done(run)
    facts = json.loads(path.read_text(encoding="utf-8"))
    if facts["step"] < args.steps:
        raise KeyboardInterrupt  # which has already been said
    keys = ("machine", "torch", "minutes", "average", "loss", "bpp", "psnr_db")
    scores = {key: facts[key] for key in facts if key.startswith("score")}
    return {"seed": seed, **scores, **{key: facts[key] for key in keys}}


def _numbers(run: dict[str, Any]) -> dict[str, float]:
    """A run's columns of the table."""
    by_source = {title: run[f"score_{kind}"] for kind, title in KINDS.items()}
    by_rate = {f"all, λ = {lmbda:g}": run["loss"][train.LMBDA.index(lmbda)] for lmbda in SHOWN_LMBDA}
    return by_source | {"all": run["score"]} | by_rate


def table(results: dict[str, Any]) -> str:
    """Markdown: scores by source, losses by rate; of several seeds their mean, and half of their range."""
    lines: list[str] = []
    for name, words in WORDS.items():
        if runs := [_numbers(run) for run in results["samplers"].get(name, [])]:
            lines = lines or [f"| crops | {' | '.join(runs[0])} |", "|---" * (len(runs[0]) + 1) + "|"]
            cells = []
            for title in runs[0]:
                values = [run[title] for run in runs]
                spread = f" ± {(max(values) - min(values)) / 2:.3f}" if len(values) > 1 else ""
                cells.append(f"{sum(values) / len(values):.3f}{spread}")
            lines.append(f"| {words} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else list(argv)
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, help="folder of photographs; without it, only the table")
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--samplers", nargs="+", choices=SAMPLERS, default=list(SAMPLERS))
    parser.add_argument("-N", type=int, default=64, help="channels of the transforms")
    parser.add_argument("-M", type=int, default=192, help="channels of the latent")
    parser.add_argument("--out", type=Path, default=Path("runs/crops"))
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args(argv)
    if args.data is not None:
        torch.set_num_threads(1)
        torch.set_flush_denormal(True)
        words = ["PHOTOS" if word == str(args.data) else word for word in argv]
        command = shlex.join(["python", "zoo/train/compare_crops.py", *words])
        results = {"command": command, "steps": args.steps, "N": args.N, "M": args.M, "samplers": {}}
        for seed in args.seeds:
            for name in args.samplers:
                results["samplers"].setdefault(name, []).append(measure(name, args, seed))
                text = json.dumps(results, indent=1) + "\n"
                replace(args.results, lambda path, text=text: path.write_text(text, encoding="utf-8"))
    if not args.results.exists():
        raise ValueError(f"{args.results} is missing; measure it with --data PHOTOS")
    print(table(json.loads(args.results.read_text(encoding="utf-8"))))


if __name__ == "__main__":
    main()
