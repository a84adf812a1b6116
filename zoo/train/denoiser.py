# SPDX-License-Identifier: Apache-2.0
"""Train the networks of the diffusion models: HFD's and DiffC's.

    python zoo/train/denoiser.py --model hfd --max-minutes 60 --data PHOTOS
    python zoo/train/denoiser.py --model diffc --max-minutes 60 --data PHOTOS

In:  a folder of photographs, or for diffc an .npz file with an array `train` of images (n, H, W, 3), uint8.
Out: OUT/checkpoint.pt (to resume: run the same command again), OUT/model.pth (the state dict of the averaged
     weights, settings included), OUT/log.jsonl (minutes, step, loss on fixed crops of the same photographs),
     OUT/run.json; for hfd also OUT/pairs.pt, crops and what the first stages make of them, written once.

Objective: the squared error of v, at log-SNRs spread evenly over the batch: for diffc over all that a codec
sends, where it is the rate but for a factor that is 1 from log-SNR 0 on; for hfd over the time of the cosine
schedule (hfd/network.py says why this one). bf16 autocast, channels-last, Muon on the kernels (muon.py), an
exponential moving average, in the last part larger crops for hfd. The schedule follows the clock, as in
train.py.
"""

from __future__ import annotations

import argparse
import json
import math
import shlex
import sys
import time
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from crops import CropSampler
from muon import MuonAdam
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from tqdm import tqdm
from train import _replace, learning_rate_factor, machine

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from compressai_sga import zoo  # noqa: E402
from compressai_sga.diffusion.parametrisations import diffuse, target  # noqa: E402
from compressai_sga.diffusion.schedules import Cosine  # noqa: E402
from compressai_sga.diffusion.unet import UNetConfig  # noqa: E402
from compressai_sga.models.diffc.network import SCALE, PixelDenoiser  # noqa: E402
from compressai_sga.models.hfd.network import ResidualDenoiser  # noqa: E402

EMA_DECAY = 0.999
SAVE_SECONDS = 60
PAIR_SIZE = 256
CHECK_COUNT = 64
CHECK_SEED = 20  # of the noise, apart from training's


def parse_args(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", required=True, choices=["hfd", "diffc"])
    parser.add_argument("--data", type=Path, required=True, help="folder of photographs, or an .npz (diffc)")
    parser.add_argument("--out", type=Path, help="folder of the run (default runs/MODEL)")
    parser.add_argument("--max-minutes", type=float, default=60)
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
    if args.max_minutes <= 0:
        parser.error(f"--max-minutes must be positive, not {args.max_minutes}")
    if args.fine_size is None:
        args.fine_size = 2 * args.size if args.model == "hfd" else args.size
    if args.out is None:
        args.out = Path("runs") / args.model
    return args


class Task(Protocol):
    """What differs between the models: the network, its data and its loss."""

    net: nn.Module

    def loss(self, net: nn.Module, count: int, size: int, generator: torch.Generator) -> Tensor:
        """Of a random batch, one value an example, (count,)."""
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

    def __init__(self, path: Path, seed: int):
        self.images = torch.from_numpy(np.load(path)["train"]).permute(0, 3, 1, 2)
        self.generator = torch.Generator().manual_seed(seed)

    def batch(self, count: int, size: int) -> Tensor:
        if tuple(self.images.shape[2:]) != (size, size):
            raise ValueError(f"the images are {tuple(self.images.shape[2:])} px; give --size accordingly")
        picks = torch.randint(len(self.images), (count,), generator=self.generator)
        mirror = torch.rand(count, generator=self.generator) < 0.5
        x = self.images[picks].float() / 255
        return torch.where(mirror[:, None, None, None], x.flip(3), x)


class DiffC:
    """Images alone, all levels of noise alike."""

    def __init__(self, args: argparse.Namespace):
        config = UNetConfig(widths=tuple(args.widths), blocks=args.blocks, patch=args.patch)
        self.net = PixelDenoiser(config, args.size)
        folder = args.data.is_dir()
        self.crops = (
            CropSampler(args.data, args.size, args.seed) if folder else ArrayCrops(args.data, args.seed)
        )
        self.generator = self.crops.generator

    def loss(self, net: nn.Module, count: int, size: int, generator: torch.Generator) -> Tensor:
        x = (self.crops.batch(count, size) - 0.5) / SCALE
        lowest, highest = self.net.lowest, self.net.highest
        log_snr = lowest + (highest - lowest) * even(count, generator)
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


class HFD:
    """Pairs of a crop and what a first stage makes of it; quality at random."""

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

    def _pairs(self, args: argparse.Namespace) -> dict[str, Tensor]:
        """x (n, 3, S, S) and first (qualities, n, 3, S, S), uint8; kept in the run's folder."""
        path = args.out / "pairs.pt"
        if path.exists():
            return torch.load(path, weights_only=True)
        x = (CropSampler(args.data, PAIR_SIZE, args.seed).batch(args.pairs, PAIR_SIZE) * 255).byte()
        first = []
        for quality in args.qualities:
            stage = zoo.load(args.first_stage, quality).to(args.device)
            made = []
            for batch in tqdm(x.split(4), desc=f"{args.first_stage}-{quality}"):
                with torch.no_grad():
                    x_hat = stage(batch.to(args.device).float() / 255)["x_hat"]
                made.append((x_hat.clamp(0, 1) * 255).round().byte().cpu())
            first.append(torch.cat(made))
        _replace(path, {"x": x, "first": torch.stack(first)})
        return torch.load(path, weights_only=True)

    def _below(self, n: int) -> int:
        return int(torch.randint(n, (), generator=self.generator))

    def loss(self, net: nn.Module, count: int, size: int, generator: torch.Generator) -> Tensor:
        crops, labels = [], torch.randint(len(self.first), (count,), generator=self.generator)
        for label in labels.tolist():
            index, top, left = (
                self._below(n) for n in (len(self.x), PAIR_SIZE - size + 1, PAIR_SIZE - size + 1)
            )
            both = torch.stack([self.x[index], self.first[label, index]])
            both = both[..., top : top + size, left : left + size]
            turn = self._below(8)
            for bit, change in ((1, lambda b: b.flip(-1)), (2, lambda b: b.flip(-2)), (4, lambda b: b.mT)):
                both = change(both) if turn & bit else both
            crops.append(both)
        x, first = (torch.stack(crops).float() / 255).unbind(1)
        log_snr = self.schedule(even(count, generator))
        tau = self.net.deviations.cpu()[labels][:, None, None, None]
        return _v_loss_of(
            net, (x - first) / tau, torch.randn(x.shape, generator=generator), log_snr, first, labels
        )


def ema_update(mean: Tensor, new: Tensor, count: Tensor) -> Tensor:
    """Exponential moving average that starts as a plain one; buffers of bytes are taken over."""
    if not mean.is_floating_point():
        return new
    return torch.lerp(mean, new, max(1 - EMA_DECAY, 10 / (10 + int(count))))


class Run:
    """A training run and its files: everything that resuming needs is here."""

    def __init__(self, args: argparse.Namespace, argv: list[str]):
        self.args = args
        self.command = shlex.join(["python", "zoo/train/denoiser.py", *argv])
        self.device = torch.device(args.device)
        args.out.mkdir(parents=True, exist_ok=True)
        self.checkpoint = args.out / "checkpoint.pt"
        self.task: Task = {"hfd": HFD, "diffc": DiffC}[args.model](args)
        self.net = self.task.net.to(self.device, memory_format=torch.channels_last).train()
        self.average = AveragedModel(self.net, avg_fn=ema_update)
        self.optimizer = MuonAdam(self.net, args.muon_lr, args.adam_lr)
        self.noise = torch.Generator().manual_seed(args.seed + 1)
        self.step, self.seconds = 0, 0.0
        if self.checkpoint.exists():
            saved = torch.load(self.checkpoint, map_location=self.device, weights_only=True)
            self.net.load_state_dict(saved["net"])
            self.average.load_state_dict(saved["average"])
            self.optimizer.load_state_dict(saved["optimizer"])
            self.noise.set_state(saved["noise"].cpu())
            self.task.generator.set_state(saved["crops"].cpu())
            self.step, self.seconds = saved["step"], saved["seconds"]

    def train_step(self) -> float:
        """One step at the point of the schedule that the clock says; its loss."""
        args = self.args
        progress = self.seconds / (args.max_minutes * 60)
        size = args.fine_size if progress >= args.fine_from else args.size
        count = max(1, args.batch * args.size**2 // size**2)
        self.optimizer.set_factor(learning_rate_factor(progress, self.step, args.decay_from))
        self.net.zero_grad()
        loss = self.task.loss(self.net, count, size, self.noise).mean()
        loss.backward()
        if torch.isfinite(nn.utils.clip_grad_norm_(self.net.parameters(), 1.0)):
            self.optimizer.step()
            self.average.update_parameters(self.net)
        self.step += 1
        return loss.item()

    @torch.no_grad()
    def check(self) -> float:
        """Loss of the averaged weights on fixed crops under fixed noise; training's state is put back."""
        state = self.task.generator.get_state()
        self.task.generator.manual_seed(CHECK_SEED)
        noise = torch.Generator().manual_seed(CHECK_SEED)
        loss = self.task.loss(self.average.module, CHECK_COUNT, self.args.size, noise).mean().item()
        self.task.generator.set_state(state)
        return loss

    def save(self) -> dict[str, float]:
        """Write the checkpoint, the weights, the log line and run.json."""
        saved = {
            "net": self.net.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "noise": self.noise.get_state(),
            "crops": self.task.generator.get_state(),
            "step": self.step,
            "seconds": self.seconds,
        }
        _replace(self.checkpoint, saved)
        state = self.average.module.state_dict()
        _replace(self.args.out / "model.pth", {key: value.cpu().contiguous() for key, value in state.items()})
        line = {"minutes": round(self.seconds / 60, 2), "step": self.step, "loss": self.check()}
        with (self.args.out / "log.jsonl").open("a", encoding="utf-8") as log:
            log.write(json.dumps(line) + "\n")
        record = {
            "command": self.command,
            "architecture": self.args.model,
            "machine": machine(self.device),
            "torch": torch.__version__,
            **line,
        }
        (self.args.out / "run.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        return line


def main(argv: list[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else argv
    args = parse_args(argv)
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    run = Run(args, argv)
    budget = args.max_minutes * 60
    bar = tqdm(total=round(budget), initial=round(run.seconds), unit="s", desc=str(args.out))
    last_save = run.seconds
    try:
        while run.seconds < budget:
            tick = time.monotonic()
            run.train_step()
            run.seconds += time.monotonic() - tick
            bar.update(min(round(run.seconds), bar.total) - bar.n)
            if run.seconds - last_save > SAVE_SECONDS:
                last_save = run.seconds
                bar.set_postfix({key: f"{value:.4f}" for key, value in run.save().items()})
    except KeyboardInterrupt:
        print(f"\nstopped; the same command continues from {run.checkpoint}", file=sys.stderr)
    run.save()
    bar.close()


if __name__ == "__main__":
    main()
