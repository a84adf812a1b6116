# SPDX-License-Identifier: Apache-2.0
"""Train the default nets of C3: the nets that code many photographs together best.

    python zoo/train/c3_nets.py --data PHOTOS --out runs/c3-nets

Every crop has its own latents, and all crops share one pair of nets. The objective is the mean over crops of
the loss of a single image's fit (Kim et al. 2024), with the same noise, annealing and optimiser. A fit that
starts from these nets does not have to learn from one image what is common to all, and a file holds only the
differences.

In:  a folder of photographs, from which crops are drawn as for every recipe (crops.py); trade-offs lmbda. The
     first is trained for --steps; each further one starts from the nets of its neighbour, for --more-steps.
Out: OUT/LMBDA.pt for each trade-off (to resume: run the same command again; a kill loses at most a minute),
     OUT/nets.safetensors when all are done: int32 in units of 2^-12. With --publish it becomes
     zoo/weights/c3-nets.safetensors, with a record in zoo/manifest.json. A file of C3 needs exactly the nets
     that it was coded with. So published sets must stay, and new ones are added after them.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import time
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

ZOO = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ZOO.parent), str(ZOO / "train")]

from compressai_sga.models.c3.config import PRESETS  # noqa: E402
from compressai_sga.models.c3.defaults import read_defaults, save_defaults  # noqa: E402
from compressai_sga.models.c3.fit.loop import Fit  # noqa: E402
from crops import NO_PHOTOGRAPHS, CropSampler  # noqa: E402
from publish import LICENCE, training_data, write_text  # noqa: E402

SAVE_SEC = 60.0
MIN_PX = 256  # of a photograph that crops are drawn from


class SharedFit(Fit):
    """The fit of many images that share their nets: the gradient is the mean over images.

    Every image has a copy of the nets, and after each step the first copy replaces the others. Equal
    gradients are not enough, because SOAP amplifies rounding that differs from image to image in a batched
    product.
    """

    def _update(self, rate: Tensor | float) -> None:
        super()._update(rate)
        with torch.no_grad():
            self.nets.copy_(self.nets[:1].expand_as(self.nets).clone())

    def _clip(self) -> None:
        self.nets.grad.copy_(self.nets.grad.mean(0, keepdim=True).expand_as(self.nets))
        super()._clip()

    def _loss(self, plane: Tensor, cached: bool = False) -> Tensor:
        loss = super()._loss(plane, cached)
        return loss.mean().expand_as(loss)  # or images would part, each with its own best


def parse_args(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--data", type=Path, required=True, help="folder of photographs, searched recursively"
    )
    parser.add_argument("--out", type=Path, default=Path("runs/c3-nets"))
    parser.add_argument("--lmbdas", type=float, nargs="+", default=[1e-3, 4e-3, 1.6e-2, 2.5e-4])
    parser.add_argument("--steps", type=int, default=1500, help="for the first trade-off")
    parser.add_argument("--more-steps", type=int, default=500, help="for each further one")
    parser.add_argument("--crops", type=int, default=48)
    parser.add_argument("--size", type=int, default=128, help="of a crop, pixels")
    parser.add_argument("--leave-out", nargs="*", default=list(NO_PHOTOGRAPHS), help="file names not to take")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--publish", action="store_true", help="put the result into the zoo")
    return parser.parse_args(argv)


def load_crops(folder: Path, count: int, size: int, leave_out: list[str]) -> Tensor:
    """Random crops (count, 3, size, size) in [0, 1]; ValueError if no photograph is large enough."""
    return CropSampler(folder, max(size, MIN_PX), leave_out=leave_out).batch(count, size)


def fit_shared(
    x: Tensor, lmbda: float, steps: int, start: Tensor | None, path: Path
) -> tuple[Tensor, dict[str, Tensor]]:
    """Parameters and arrays of the nets after the whole schedule; resumes from `path`."""
    preset = PRESETS["c3"]  # the nets themselves cost nothing here: no file holds them
    preset = replace(preset, fit=replace(preset.fit, weight_bits=False))
    fit = SharedFit(x, preset, lmbda, steps=steps, warm=False)
    with torch.no_grad():
        fit.nets.copy_(fit.nets.mean(0) if start is None else start)  # one mean colour for all
    of = {"steps": steps, "crops": zlib.crc32(x.cpu().numpy().tobytes()), "nets": repr(preset)}
    saved = time.monotonic()
    if path.exists():
        found = torch.load(path, map_location=x.device, weights_only=True)
        if found["of"] != of:
            raise SystemExit(
                f"{path} was made with other steps, photographs or settings; delete it, or give another --out"
            )
        fit.load_state_dict(found["state"])
    with tqdm(total=steps, initial=fit.step_count, desc=f"lmbda {lmbda:g}") as bar:

        def report(progress: object) -> None:
            nonlocal saved
            bar.update(progress.step - bar.n)
            bar.set_postfix_str(
                f"loss {progress.loss:.3e}, {progress.bpp:.3f} bpp, {progress.psnr_db:.2f} dB"
            )
            if time.monotonic() - saved > SAVE_SEC or fit.done:
                partial = path.with_suffix(".part")
                torch.save({"of": of, "state": fit.state_dict()}, partial)
                partial.replace(path)
                saved = time.monotonic()

        fit.run(report)
    fit.take_best()
    return fit.nets[0].detach(), {name: array[0] for name, array in fit.arrays().items()}


def main(argv: list[str] | None = None) -> None:
    args = parse_args(sys.argv[1:] if argv is None else argv)
    args.out.mkdir(parents=True, exist_ok=True)
    try:
        x = load_crops(args.data, args.crops, args.size, args.leave_out).to(args.device)
    except ValueError as error:
        raise SystemExit(str(error)) from error
    found: dict[float, dict[str, Tensor]] = {}
    nets: dict[float, Tensor] = {}
    for lmbda in args.lmbdas:
        near = min(nets, key=lambda other: abs(np.log(other / lmbda))) if nets else None
        start, steps = (None, args.steps) if near is None else (nets[near], args.more_steps)
        nets[lmbda], found[lmbda] = fit_shared(x, lmbda, steps, start, args.out / f"{lmbda:g}.pt")
    save_defaults(args.out / "nets.safetensors", PRESETS["c3"].architecture, found)
    if args.publish:
        publish(args)


def publish(args: argparse.Namespace) -> None:
    """Copy the nets into the zoo and write their record; refuses to change published sets."""
    target, data = ZOO / "weights/c3-nets.safetensors", (args.out / "nets.safetensors").read_bytes()
    old, new = (read_defaults(p) if p.exists() else () for p in (target, args.out / "nets.safetensors"))
    same = [
        a.lmbda == b.lmbda and all((j == k).all() for j, k in zip(a.integers, b.integers))
        for a, b in zip(old, new)
    ]
    if len(new) < len(old) or not all(same):
        raise SystemExit(
            f"{target} has {len(old)} sets, which existing files may need; the new sets must begin with them"
        )
    target.write_bytes(data)
    path = ZOO / "manifest.json"
    manifest = json.loads(path.read_text(encoding="utf-8"))
    out = [f"--steps {args.steps} --more-steps {args.more_steps} --crops {args.crops} --size {args.size}"]
    out += ["--lmbdas", *(f"{lmbda:g}" for lmbda in args.lmbdas)]
    out += ["--leave-out", *args.leave_out] if args.leave_out != list(NO_PHOTOGRAPHS) else []
    manifest["c3_nets"] = {
        "file": "weights/c3-nets.safetensors",
        "sha256": hashlib.sha256(data).hexdigest(),
        "bytes": len(data),
        "lmbdas": args.lmbdas,
        "licence": LICENCE,
        "training_data": training_data(),
        "command": f"python zoo/train/c3_nets.py --data PHOTOS {' '.join(out)} --publish",
    }
    write_text(path, json.dumps(manifest, indent=2) + "\n")


if __name__ == "__main__":
    main()
