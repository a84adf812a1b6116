# SPDX-License-Identifier: Apache-2.0
"""Train a small stock CompressAI model in minutes: the recipe behind every weight of the zoo.

    python zoo/train/train.py --arch mbt2018-mean --quality 3 --max-minutes 60 --data PHOTOS

In:  a folder of photographs; an architecture of CompressAI or of this package (the class, N and M channels).
Out: OUT/checkpoint.pt (to resume: run the same command again), OUT/model.pth (a stock CompressAI
     state dict of the averaged weights; `eval_model checkpoint -a ARCH -p OUT/model.pth` reads it),
     OUT/log.jsonl (minutes, step, loss, bpp, PSNR on fixed crops of the same photographs) and
     OUT/run.json (what was asked for, what was reached, on which machine).

Objective: bpp + lmbda * 255^2 * MSE, lmbda by CompressAI's table of qualities; for rate-distortion
autoencoders (rda-*) their own distortion and table (`compressai_sga.models.rda`). What makes it fast:
PCA initialisation (pca.py) or --init-from a neighbour (neighbour.py); Muon on the convolution
kernels (muon.py); bf16 autocast with channels-last; an exponential moving average of the weights;
in the last part larger crops, and straight-through rounding before the decoder (Minnen & Singh
2020) so that it learns the noise it will meet. Universally quantised models (*-uq) meet the same
noise all along; their soft rounding is annealed until that part. The schedule follows the clock:
--max-minutes is all the time that training takes (saving and checking, every minute, come on top),
and what was reached is on disk whenever it is stopped.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import shlex
import sys
import time
from pathlib import Path
from typing import Any

import torch
from compressai.entropy_models import EntropyBottleneck, GaussianConditional
from compressai.losses import RateDistortionLoss
from compressai.zoo.image import model_architectures
from crops import CropSampler
from muon import MuonAdam
from neighbour import fit_prior_of_y, take_from_neighbour
from pca import initialise_from_pca
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import compressai_sga.hooks  # noqa: E402, F401 -- registers the package's own architectures
from compressai_sga.models import rda  # noqa: E402
from compressai_sga.models.universal import ARCHITECTURES, anneal  # noqa: E402

# CompressAI's training values for MSE, quality 1..8 (its documentation, "Training").
LMBDA = (0.0018, 0.0035, 0.0067, 0.0130, 0.0250, 0.0483, 0.0932, 0.1800)

COARSE = {"size": 128, "count": 8}
FINE = {"size": 256, "count": 2}
MS_SSIM_COARSE = {"size": 192, "count": 4}  # its coarsest scale needs more than 160 pixels
CHECK = {"size": 256, "count": 16}
EMA_DECAY = 0.998
SAVE_SECONDS = 60

# Soft rounding of universally quantised models: 1 / alpha falls geometrically while crops are coarse.
FIRST_TEMPERATURE, LAST_TEMPERATURE = 0.5, 0.1


def parse_args(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--arch", required=True, choices=sorted(model_architectures))
    parser.add_argument("--quality", type=int, choices=range(1, 9), help="sets lmbda")
    parser.add_argument("--lmbda", type=float, help="another trade-off than the quality's")
    parser.add_argument("-N", type=int, default=64, help="channels of the transforms")
    parser.add_argument("-M", type=int, default=96, help="channels of the latent")
    parser.add_argument("--data", type=Path, help="folder of photographs (searched recursively)")
    parser.add_argument("--out", type=Path, help="folder of the run (default runs/ARCH-QUALITY)")
    parser.add_argument("--max-minutes", type=float, default=60)
    parser.add_argument("--init", choices=["pca", "default"], default="pca")
    parser.add_argument(
        "--init-from",
        type=Path,
        help="model.pth or zoo .safetensors of a neighbour; what fits is taken, the rest is initialised "
        "by --init",
    )
    parser.add_argument("--muon-lr", type=float, default=1e-3)
    parser.add_argument("--adam-lr", type=float, default=1e-3)
    parser.add_argument(
        "--decay-from",
        type=float,
        default=0.4,
        help="part of the time after which learning rates fall along a cosine (0 when continuing)",
    )
    parser.add_argument(
        "--fine-from",
        type=float,
        default=0.6,
        help="part of the time after which crops are large and rounding is straight-through",
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    if args.data is None or not args.data.is_dir():
        parser.error(
            f"--data must name a folder of photographs, not {args.data}; a few dozen of at least "
            "a megapixel will do"
        )
    if args.lmbda is None and args.quality is None:
        parser.error("name a trade-off: --quality 1..8 or --lmbda")
    for option, part in (("--decay-from", args.decay_from), ("--fine-from", args.fine_from)):
        if not 0 <= part < 1:
            parser.error(f"{option} must lie in [0, 1), not {part}")
    if args.max_minutes <= 0:
        parser.error(f"--max-minutes must be positive, not {args.max_minutes}")
    if args.out is None:
        point = f"lmbda{args.lmbda:g}" if args.quality is None else args.quality
        args.out = Path("runs") / f"{args.arch}-{point}"
    args.kind = getattr(model_architectures[args.arch], "distortion", "l2")
    if args.lmbda is None:
        table = rda.LMBDA[args.kind] if args.arch in rda.ARCHITECTURES else LMBDA
        args.lmbda = table[args.quality - 1]
    return args


def initialise(model: nn.Module, args: argparse.Namespace, sampler: CropSampler) -> None:
    """PCA, then what fits of a neighbour, then the factorised prior where it is still fresh."""
    if args.init == "pca":
        initialise_from_pca(model, sampler.batch(32, 128), rda.mse_lmbda(args.lmbda, args.kind))
    taken: list[str] = []
    if args.init_from is not None:
        taken = take_from_neighbour(model, read_weights(args.init_from))
        count = len(model.state_dict())
        print(f"took {len(taken)} of {count} tensors from {args.init_from}", file=sys.stderr)
    if not hasattr(model, "h_a") and "entropy_bottleneck.quantiles" not in taken:
        fit_prior_of_y(model, sampler.batch(16, 128))


def read_weights(path: Path) -> dict[str, Tensor]:
    """The state dict of a run's model.pth, or of a weight of the zoo, whose fp16 parts fit float32."""
    if path.suffix == ".safetensors":
        return load_file(path)
    return torch.load(path, map_location="cpu", weights_only=True)


class Objective(RateDistortionLoss):
    """bpp + lmbda D with the distortion of the architecture; the MSE is there for the PSNR in any case."""

    def __init__(self, lmbda: float, kind: rda.Kind):
        super().__init__(lmbda=lmbda)
        self.kind = kind

    def forward(self, output: dict[str, Any], target: Tensor) -> dict[str, Tensor]:
        out = super().forward(output, target)
        if self.kind != "l2":  # which is what CompressAI's own has taken
            cost = rda.distortion(target, output["x_hat"], self.kind).mean()
            out["loss"] = out["bpp_loss"] + self.lmbda * cost
        return out


class StraightThrough:
    """Forward hooks that give the decoder rounded latents, with the gradient of the identity.

    The rate keeps its uniform noise. Only for latents that a GaussianConditional or the factorised
    prior hands to the decoder; autoregressive models quantise outside of these modules and keep
    noise.
    """

    def __init__(self, model: nn.Module):
        self.on = False
        hyper = hasattr(model, "gaussian_conditional")
        for module in model.modules():
            if isinstance(module, GaussianConditional):
                module.register_forward_hook(self._gaussian, with_kwargs=True)
            elif isinstance(module, EntropyBottleneck) and not hyper:
                module.register_forward_hook(self._bottleneck)

    def _round(self, values: Tensor, centre: Tensor | float) -> Tensor:
        return values + (torch.round(values - centre) + centre - values).detach()

    def _gaussian(self, module, inputs, kwargs, output):
        if self.on and module.training:
            return self._round(inputs[0], kwargs.get("means", 0.0)), output[1]
        return output

    def _bottleneck(self, module, inputs, output):
        if self.on and module.training:
            return self._round(inputs[0], module.quantiles[:, 0, 1].view(1, -1, 1, 1)), output[1]
        return output


def learning_rate_factor(progress: float, step: int, decay_from: float) -> float:
    """Of the base rates: 100 steps of warm-up, constant, then a cosine down to 1 %."""
    warmup = min(1.0, (step + 1) / 100)
    if progress < decay_from:
        return warmup
    phase = min(1.0, (progress - decay_from) / (1 - decay_from))
    return warmup * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * phase)))


def ema_update(mean: Tensor, new: Tensor, count: Tensor) -> Tensor:
    """Exponential moving average that starts as a plain one, so that it forgets the first steps."""
    return torch.lerp(mean, new, max(1 - EMA_DECAY, 10 / (10 + int(count))))


def update_quantiles(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, EntropyBottleneck):
            module._update_quantiles()


@torch.no_grad()
def validate(model: nn.Module, crops: Tensor, criterion: RateDistortionLoss) -> dict[str, float]:
    """Loss, bpp and PSNR with hard rounding on the check crops."""
    update_quantiles(model)
    model.eval()
    out = criterion(model(crops), crops)
    model.train()
    return {
        "loss": out["loss"].item(),
        "bpp": out["bpp_loss"].item(),
        "psnr_db": -10 * math.log10(out["mse_loss"].item()),
    }


def export(model: nn.Module, path: Path) -> None:
    """Write a stock state dict with coding tables, ready for `eval_model checkpoint`."""
    update_quantiles(model)
    model.update(force=True)
    _replace(path, {k: v.contiguous() for k, v in model.state_dict().items()})


def _replace(path: Path, value: Any) -> None:
    """Save so that a killed run leaves the old file or the new one."""
    temporary = path.with_suffix(".tmp")
    torch.save(value, temporary)
    temporary.replace(path)


def machine(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{os.cpu_count()}-core {platform.machine()} CPU, {torch.get_num_threads()} thread(s)"


class Run:
    """A training run and its files: everything that resuming needs is here."""

    def __init__(self, args: argparse.Namespace, argv: list[str]):
        self.args = args
        self.command = shlex.join(["python", "zoo/train/train.py", *argv])
        self.device = torch.device(args.device)
        args.out.mkdir(parents=True, exist_ok=True)
        self.checkpoint = args.out / "checkpoint.pt"
        self.sampler = CropSampler(args.data, min_size=FINE["size"], seed=args.seed)
        self.check_crops = self.sampler.batch(**CHECK).to(self.device)
        model = model_architectures[args.arch](args.N, args.M)
        if not self.checkpoint.exists():
            initialise(model, args, self.sampler)
        self.model = model.to(self.device, memory_format=torch.channels_last).train()
        self.average = AveragedModel(self.model, avg_fn=ema_update)
        self.straight_through = StraightThrough(self.model)
        self.universal = args.arch in ARCHITECTURES
        self.optimizer = MuonAdam(self.model, args.muon_lr, args.adam_lr)
        self.criterion = Objective(args.lmbda, args.kind)
        self.coarse = MS_SSIM_COARSE if args.kind == "ms-ssim" else COARSE
        self.step = 0
        self.seconds = 0.0
        if self.checkpoint.exists():
            self._resume()

    def _resume(self) -> None:
        saved = torch.load(self.checkpoint, map_location=self.device, weights_only=True)
        self.model.load_state_dict(saved["model"])
        self.average.load_state_dict(saved["average"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.sampler.generator.set_state(saved["crops"].cpu())
        self.step, self.seconds = saved["step"], saved["seconds"]

    def train_step(self) -> None:
        """One step at the point of the schedule that the clock says."""
        progress = self.seconds / (self.args.max_minutes * 60)
        fine = progress >= self.args.fine_from
        self.straight_through.on = fine and not self.universal
        if self.universal:
            phase = 1.0 if fine else progress / self.args.fine_from
            temperature = FIRST_TEMPERATURE * (LAST_TEMPERATURE / FIRST_TEMPERATURE) ** phase
            anneal(self.model, temperature)
            anneal(self.average, temperature)
        if fine and self.step % 100 == 0:
            update_quantiles(self.model)  # rounding is around the medians
        self.optimizer.set_factor(learning_rate_factor(progress, self.step, self.args.decay_from))
        x = self.sampler.batch(**(FINE if fine else self.coarse))
        x = x.to(self.device, memory_format=torch.channels_last)
        self.model.zero_grad()
        with torch.autocast(self.device.type, dtype=torch.bfloat16):
            out = self.model(x)
        out["x_hat"] = out["x_hat"].float()
        self.criterion(out, x)["loss"].backward()
        trained = [p for p in self.model.parameters() if p.requires_grad]
        if torch.isfinite(nn.utils.clip_grad_norm_(trained, 1.0)):
            self.optimizer.step()
            self.average.update_parameters(self.model)
        self.step += 1

    def save(self) -> dict[str, float]:
        """Write the checkpoint, the log line and run.json; returns the scores of the average."""
        _replace(
            self.checkpoint,
            {
                "model": self.model.state_dict(),
                "average": self.average.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "crops": self.sampler.generator.get_state(),
                "step": self.step,
                "seconds": self.seconds,
            },
        )
        scores = validate(self.average.module, self.check_crops, self.criterion)
        line = {"minutes": round(self.seconds / 60, 2), "step": self.step, **scores}
        with (self.args.out / "log.jsonl").open("a", encoding="utf-8") as log:
            log.write(json.dumps(line) + "\n")
        record = {
            "command": self.command,
            "architecture": self.args.arch,
            "quality": self.args.quality,
            "lmbda": self.args.lmbda,
            "N": self.args.N,
            "M": self.args.M,
            "machine": machine(self.device),
            "torch": torch.__version__,
            **line,
        }
        text = json.dumps(record, indent=2) + "\n"
        (self.args.out / "run.json").write_text(text, encoding="utf-8")
        return scores


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
                bar.set_postfix({k: f"{v:.4f}" for k, v in run.save().items()})
    except KeyboardInterrupt:
        print(f"\nstopped; the same command continues from {run.checkpoint}", file=sys.stderr)
    run.save()
    bar.close()
    export(run.average.module, args.out / "model.pth")


if __name__ == "__main__":
    main()
