# SPDX-License-Identifier: Apache-2.0
"""Train the networks of the diffusion models: HFD's and DiffC's.

    python zoo/train/denoiser.py --model hfd --max-minutes 60 --data PHOTOS
    python zoo/train/denoiser.py --model diffc --max-minutes 60 --data PHOTOS

In:  a folder of photographs, or for diffc an .npz file with an array `train` of images (n, H, W, 3), uint8,
     and perhaps one `test`.
Out: OUT/checkpoint.pt (to resume: run the same command again), OUT/log.jsonl (minutes, step, and the score of
     each average), OUT/run.json, OUT/model.pth (the state dict of the best average, settings included); for
     hfd also OUT/pairs.pt, crops and their reconstructions by the first stages, written once. The score is
     the loss on fixed crops of held-out photographs or of `test`; without these, of training images.

Objective: the squared error of v, at log-SNRs spread evenly over the batch. For diffc they cover all levels
that the codec sends; there the error equals the rate up to a factor, which is 1 for log-SNRs of 0 and above.
For hfd they follow the time of the cosine schedule (hfd/network.py gives the reason). Crops by detail
(crops.py), bf16 autocast, channels-last, Muon on the kernels (muon.py), moving averages (averages.py); for
hfd larger crops in the last part. Schedule, saving and checking are those of train.py.
"""

from __future__ import annotations

import argparse
import json
import math
import shlex
import sys
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from averages import Averages
from crops import CropSampler, photographs
from muon import MuonAdam
from run_files import TrainingError, keep_check, machine, replace
from train import learning_rate_factor, run_until_done

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from compressai_sga import zoo  # noqa: E402
from compressai_sga.diffusion.parametrisations import diffuse, target  # noqa: E402
from compressai_sga.diffusion.schedules import Cosine  # noqa: E402
from compressai_sga.diffusion.unet import UNetConfig  # noqa: E402
from compressai_sga.models.diffc.network import SCALE, PixelDenoiser  # noqa: E402
from compressai_sga.models.hfd.network import ResidualDenoiser  # noqa: E402

PAIR_SIZE = 256
CHECK_COUNT = 64
CHECK_SEED = 20  # of crops and noise, apart from training's


def parse_args(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", required=True, choices=["hfd", "diffc"])
    parser.add_argument("--data", type=Path, required=True, help="folder of photographs, or an .npz (diffc)")
    parser.add_argument("--out", type=Path, help="folder of the run (default runs/MODEL)")
    parser.add_argument("--max-minutes", type=float, default=60)
    parser.add_argument("--max-steps", type=int, help="end after so many steps; the schedule follows them")
    parser.add_argument("--size", type=int, default=64, help="side of the crops, px")
    parser.add_argument("--fine-size", type=int, help="side in the last part (default 2 x size for hfd)")
    parser.add_argument("--batch", type=int, default=32, help="crops of --size in a batch; fewer large ones")
    parser.add_argument("--widths", type=int, nargs="+", default=[64, 96, 128])
    parser.add_argument("--blocks", type=int, default=1)
    parser.add_argument("--patch", type=int, default=2)
    parser.add_argument("--first-stage", default="mbt2018-mean-small", help="hfd: model of the zoo")
    parser.add_argument(
        "--qualities", type=int, nargs="+", default=[1, 2, 3, 4], help="hfd: of the first stage"
    )
    parser.add_argument("--pairs", type=int, default=800, help="hfd: crops that the first stages code")
    parser.add_argument("--muon-lr", type=float, default=2e-3)
    parser.add_argument("--adam-lr", type=float, default=1e-3)
    parser.add_argument("--warmup", type=float, default=0.01, help="part of the time, as in train.py")
    parser.add_argument("--decay-from", type=float, default=0.4, help="part of the time, as in train.py")
    parser.add_argument("--fine-from", type=float, default=0.7, help="part of the time before large crops")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    if not (
        args.data.is_dir() or (args.model == "diffc" and args.data.suffix == ".npz" and args.data.is_file())
    ):
        parser.error(f"--data must name a folder of photographs, or for diffc an .npz file, not {args.data}")
    for option in ("max_minutes", "max_steps"):
        if (value := getattr(args, option)) is not None and value <= 0:
            parser.error(f"--{option.replace('_', '-')} must be positive, not {value}")
    if args.fine_size is None:
        args.fine_size = 2 * args.size if args.model == "hfd" else args.size
    if args.out is None:
        args.out = Path("runs") / args.model
    return args


class Task(Protocol):
    """The parts in which the models differ: the network, its data and its loss."""

    net: nn.Module
    generator: torch.Generator  # of the batches
    held: tuple[Tensor, ...]  # a batch of `CHECK_COUNT` examples to choose by, always the same

    def batch(self, count: int, size: int) -> tuple[Tensor, ...]:
        """`count` random examples of `size` x `size` pixels: tensors whose first axis counts the examples."""
        ...

    def loss(self, net: nn.Module, batch: tuple[Tensor, ...], generator: torch.Generator) -> Tensor:
        """Loss of each example, (count,), with noise from the generator."""
        ...


def even(count: int, generator: torch.Generator) -> Tensor:
    """(count,) in (0, 1), one uniform in each of `count` equal parts, in random order."""
    offsets = torch.rand(count, generator=generator, dtype=torch.float64)
    order = torch.randperm(count, generator=generator)
    return (order + offsets) / count


def v_loss(v: Tensor, x: Tensor, eps: Tensor, log_snr: Tensor) -> Tensor:
    return (v.float() - target(x, eps, log_snr, "v")).square().flatten(1).mean(1)


class ArrayCrops:
    """Random images of an array, whole, mirrored at random; `batch` as of `CropSampler`."""

    def __init__(self, path: Path, seed: int, name: str = "train"):
        self.images = torch.from_numpy(np.load(path)[name]).permute(0, 3, 1, 2)
        self.generator = torch.Generator().manual_seed(seed)

    def batch(self, count: int, size: int) -> Tensor:
        if tuple(self.images.shape[2:]) != (size, size):
            raise ValueError(f"the images are {tuple(self.images.shape[2:])} px; give --size accordingly")
        picks = torch.randint(len(self.images), (count,), generator=self.generator)
        mirror = torch.rand(count, generator=self.generator) < 0.5
        x = self.images[picks].float() / 255
        return torch.where(mirror[:, None, None, None], x.flip(3), x)


def samplers(data: Path, min_size: int, seed: int) -> tuple[Any, Any]:
    """The samplers of crops for training and for checks; checks use held-out images if there are any."""
    if data.is_dir():
        held = bool(photographs(data, held=True))
        checks = CropSampler(data, min_size, CHECK_SEED, held=held)
        return CropSampler(data, min_size, seed), checks
    held = "test" in np.load(data).files
    return ArrayCrops(data, seed), ArrayCrops(data, CHECK_SEED, "test" if held else "train")


class DiffC:
    """DiffC: images alone, with all levels of noise equally often."""

    def __init__(self, args: argparse.Namespace):
        config = UNetConfig(widths=tuple(args.widths), blocks=args.blocks, patch=args.patch)
        self.net = PixelDenoiser(config, args.size)
        self.crops, checks = samplers(args.data, max(args.size, args.fine_size), args.seed)
        self.generator = self.crops.generator
        self.held = (checks.batch(CHECK_COUNT, args.size),)

    def batch(self, count: int, size: int) -> tuple[Tensor, ...]:
        return (self.crops.batch(count, size),)

    def loss(self, net: nn.Module, batch: tuple[Tensor, ...], generator: torch.Generator) -> Tensor:
        x = (batch[0] - 0.5) / SCALE
        lowest, highest = self.net.lowest, self.net.highest
        log_snr = lowest + (highest - lowest) * even(len(x), generator)
        eps = torch.randn(x.shape, generator=generator)
        return _v_loss_of(net, x, eps, log_snr)


def _v_loss_of(net: nn.Module, x: Tensor, eps: Tensor, log_snr: Tensor, *more: Tensor) -> Tensor:
    """Error of the network's v for z = diffuse(x, eps, log_snr), on the network's device."""
    device = next(net.parameters()).device
    x, eps, log_snr = x.to(device), eps.to(device), log_snr.to(device)
    z = diffuse(x, eps, log_snr).to(memory_format=torch.channels_last)
    with torch.autocast(device.type, dtype=torch.bfloat16):
        v = net(z, log_snr, *(value.to(device) for value in more))
    return v_loss(v, x, eps, log_snr)


def turned_pairs(
    x: Tensor, first: Tensor, count: int, size: int, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Random crops of pairs, turned alike: x and first (count, 3, size, size) in [0, 1], and labels (count,).

    Args:
        x: (n, 3, S, S), uint8.
        first: their reconstructions by each first stage, (labels, n, 3, S, S), uint8.
    """

    def below(n: int) -> int:
        return int(torch.randint(n, (), generator=generator))

    crops, labels = [], torch.randint(len(first), (count,), generator=generator)
    for label in labels.tolist():
        index, top, left = (below(n) for n in (len(x), x.shape[-2] - size + 1, x.shape[-1] - size + 1))
        both = torch.stack([x[index], first[label, index]])[..., top : top + size, left : left + size]
        turn = below(8)
        for bit, change in ((1, lambda b: b.flip(-1)), (2, lambda b: b.flip(-2)), (4, lambda b: b.mT)):
            both = change(both) if turn & bit else both
        crops.append(both)
    return (*(torch.stack(crops).float() / 255).unbind(1), labels)


class HFD:
    """HFD: pairs of a crop and its reconstruction by a first stage of random quality."""

    def __init__(self, args: argparse.Namespace):
        pairs = self._pairs(args)
        self.x, self.first = pairs["x"], pairs["first"]
        deviations = []
        for index in range(len(args.qualities)):
            errors = [
                (a.float() - b.float()).square().mean()
                for a, b in zip(self.x, self.first[index], strict=True)
            ]
            deviations.append(math.sqrt(torch.stack(errors).mean()) / 255)
        config = UNetConfig(
            in_channels=6,
            widths=tuple(args.widths),
            blocks=args.blocks,
            patch=args.patch,
            labels=len(args.qualities),
        )
        self.net = ResidualDenoiser(config, args.qualities, deviations, args.first_stage)
        self.generator = torch.Generator().manual_seed(args.seed)
        self.schedule = Cosine()
        checks = torch.Generator().manual_seed(CHECK_SEED)
        self.held = turned_pairs(pairs["held_x"], pairs["held_first"], CHECK_COUNT, args.size, checks)

    def _pairs(self, args: argparse.Namespace) -> dict[str, Tensor]:
        """x (n, 3, S, S), first (qualities, n, 3, S, S), uint8, and for checks held_x and held_first."""
        path = args.out / "pairs.pt"
        if not path.exists():
            crops, checks = samplers(args.data, PAIR_SIZE, args.seed)
            x = (crops.batch(args.pairs, PAIR_SIZE) * 255).round().byte()
            held = (checks.batch(CHECK_COUNT, PAIR_SIZE) * 255).round().byte()
            first = torch.stack([self._coded(torch.cat([x, held]), q, args) for q in args.qualities])
            parts = {"x": x, "first": first[:, : len(x)], "held_x": held, "held_first": first[:, len(x) :]}
            replace(path, lambda path: torch.save({name: part.clone() for name, part in parts.items()}, path))
        pairs = torch.load(path, weights_only=True)
        if "held_x" not in pairs or len(pairs["first"]) != len(args.qualities):
            raise ValueError(
                f"{path} is of other qualities or an older recipe; delete it, or give another --out"
            )
        return pairs

    @staticmethod
    @torch.no_grad()
    def _coded(x: Tensor, quality: int, args: argparse.Namespace) -> Tensor:
        """The reconstructions of uint8 crops by the first stage of a quality."""
        stage = zoo.load(args.first_stage, quality).to(args.device)
        made = []
        for batch in tqdm(x.split(4), desc=f"{args.first_stage}-{quality}"):
            x_hat = stage(batch.to(args.device).float() / 255)["x_hat"]
            made.append((x_hat.clamp(0, 1) * 255).round().byte().cpu())
        return torch.cat(made)

    def batch(self, count: int, size: int) -> tuple[Tensor, ...]:
        return turned_pairs(self.x, self.first, count, size, self.generator)

    def loss(self, net: nn.Module, batch: tuple[Tensor, ...], generator: torch.Generator) -> Tensor:
        x, first, labels = batch
        log_snr = self.schedule(even(len(x), generator))
        tau = self.net.deviations.cpu()[labels][:, None, None, None]
        return _v_loss_of(
            net, (x - first) / tau, torch.randn(x.shape, generator=generator), log_snr, first, labels
        )


class Run:
    """A training run and its files, with the interface that `train.run_until_done` needs."""

    def __init__(self, args: argparse.Namespace, argv: list[str]):
        self.args = args
        self.command = shlex.join(["python", "zoo/train/denoiser.py", *argv])
        self.device = torch.device(args.device)
        args.out.mkdir(parents=True, exist_ok=True)
        self.checkpoint = args.out / "checkpoint.pt"
        self.task: Task = {"hfd": HFD, "diffc": DiffC}[args.model](args)
        self.net = self.task.net.to(self.device, memory_format=torch.channels_last).train()
        self.averages = Averages(self.net)
        self.optimizer = MuonAdam(self.net, args.muon_lr, args.adam_lr)
        self.noise = torch.Generator().manual_seed(args.seed + 1)
        self.step, self.seconds = 0, 0.0
        if self.checkpoint.exists():
            self._resume()

    def _resume(self) -> None:
        try:
            saved = torch.load(self.checkpoint, map_location=self.device, weights_only=True)
            self.net.load_state_dict(saved["net"])
            self.averages.load_state_dict(saved["averages"])
            self.optimizer.load_state_dict(saved["optimizer"])
            self.noise.set_state(saved["noise"].cpu())
            self.task.generator.set_state(saved["crops"].cpu())
            self.step, self.seconds = saved["step"], saved["seconds"]
        except Exception as error:  # whatever a damaged pickle or another network gives
            raise TrainingError(
                f"{self.checkpoint} is damaged, or of another command or recipe ({error!r}); give the "
                "command of that run, or another --out"
            ) from error

    @property
    def progress(self) -> float:
        """The share of the budget that is used."""
        if self.args.max_steps is not None:
            return self.step / self.args.max_steps
        return self.seconds / (self.args.max_minutes * 60)

    def train_step(self) -> float:
        """One step, at the point of the schedule that follows from the clock; returns its loss."""
        args = self.args
        size = args.fine_size if self.progress >= args.fine_from else args.size
        count = max(1, args.batch * args.size**2 // size**2)
        self.optimizer.set_factor(learning_rate_factor(self.progress, args.warmup, args.decay_from))
        self.net.zero_grad()
        loss = self.task.loss(self.net, self.task.batch(count, size), self.noise).mean()
        loss.backward()
        if torch.isfinite(nn.utils.clip_grad_norm_(self.net.parameters(), 1.0)):
            self.optimizer.step()
            self.averages.update()
        self.step += 1
        return loss.item()

    @torch.no_grad()
    def check(self) -> dict[str, Any]:
        """Loss of the weights and of their averages on `held`: a line of the log, and run.json."""
        scores = {}
        for decay in (0, *self.averages.decays):
            noise = torch.Generator().manual_seed(CHECK_SEED)
            with self.averages.swapped(decay):
                scores[decay] = self.task.loss(self.net, self.task.held, noise).mean().item()
        best = min(scores, key=lambda decay: scores[decay])
        line = {
            "minutes": round(self.seconds / 60, 4),
            "step": self.step,
            "average": best,
            "score": scores[best],
            "averages": {str(decay): score for decay, score in scores.items()},
        }
        record = {
            "command": self.command,
            "architecture": self.args.model,
            "machine": machine(self.device),
            "torch": torch.__version__,
        }
        keep_check(self.args.out, line, record)
        return line

    def save(self) -> None:
        """Write the checkpoint."""
        content = {
            "net": self.net.state_dict(),
            "averages": self.averages.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "noise": self.noise.get_state(),
            "crops": self.task.generator.get_state(),
            "step": self.step,
            "seconds": self.seconds,
        }
        replace(self.checkpoint, lambda path: torch.save(content, path))

    def export(self) -> None:
        """model.pth, of the average with the best score at the last check."""
        best = json.loads((self.args.out / "run.json").read_text(encoding="utf-8"))["average"]
        with self.averages.swapped(best):
            state = {k: v.detach().cpu().clone().contiguous() for k, v in self.net.state_dict().items()}
        replace(self.args.out / "model.pth", lambda path: torch.save(state, path))


def main(argv: list[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else argv
    args = parse_args(argv)
    torch.set_num_threads(args.threads)
    torch.set_flush_denormal(True)  # as in train.py
    torch.manual_seed(args.seed)
    try:
        run_until_done(Run(args, argv))
    except (TrainingError, ValueError) as error:
        sys.exit(f"denoiser.py: {error}")


if __name__ == "__main__":
    main()
