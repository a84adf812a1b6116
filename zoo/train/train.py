# SPDX-License-Identifier: Apache-2.0
"""Train a small CompressAI model for all rates at once: the recipe behind every weight of the zoo.

    python zoo/train/train.py --arch mbt2018-mean --max-minutes 60 --data PHOTOS

In:  a folder of photographs; an architecture of CompressAI or of this package (the class, N and M channels).
Out: OUT/checkpoint.pt (to resume: run the same command again), OUT/log.jsonl (minutes, step, and the scores
     of each average on held-out photographs), OUT/run.json (options, results and machine of the run),
     OUT/model.pth (the joint weights of the best average, for `gains.load_joint`; the latent is scaled by the
     factor that is best on the held-out photographs) and OUT/model-1.pth to OUT/model-8.pth, folded for
     CompressAI's qualities: `eval_model checkpoint -a ARCH -p OUT/model-3.pth`. With --state FILE also the
     fp16 weights; without a checkpoint the run goes on from them.

Objective: for every crop (bpp + lmbda * 255^2 * MSE) / g. Each crop has its own lmbda, and its latent the
gain g = sqrt(lmbda / 0.018). The division by g gives all rates equal influence. Layers get the rate through
their `rates` (`compressai_sga.models.gains`). Rate-distortion autoencoders (rda-*) have their own distortion.
With --quality or --lmbda all crops have the same lmbda.

Training is fast through PCA initialisation (pca.py) or --init-from a neighbour (neighbour.py), crops by
detail (crops.py), Muon on the convolution kernels (muon.py), bf16 autocast with channels-last, and moving
averages that are chosen on held-out photographs (averages.py). In the last part the crops are larger, and
latents are rounded straight-through before the decoder (Minnen & Singh 2020), so that the decoder learns the
noise of rounding. For universally quantised models (*-uq) this noise is the same in the whole training; their
soft rounding is annealed until the last part.

The schedule follows the clock, on a CPU the clock of the processor. Training takes --max-minutes; saving and
checking come on top. The result so far is on disk whenever the training is stopped.
"""

from __future__ import annotations

import argparse
import json
import math
import shlex
import sys
import time
from pathlib import Path
from typing import Any

import torch
from compressai.zoo.image import model_architectures
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm import tqdm

from averages import Averages
from crops import CropSampler
from export import best_scale, export
from held_out import HeldOut, costs, update_quantiles
from muon import MuonAdam
from neighbour import fit_prior_of_y, take_from_neighbour
from pca import initialise_from_pca
from run_files import TrainingError, keep_check, machine, replace, write_json

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import compressai_sga.hooks  # noqa: E402, F401 -- registers the package's own architectures
from compressai_sga.lmbda import LMBDA_BY_QUALITY  # noqa: E402
from compressai_sga.models import rda  # noqa: E402
from compressai_sga.models.gains import (  # noqa: E402
    LMBDA_0,
    RATES,
    Gained,
    condition,
    gain_of,
)
from compressai_sga.models.universal import ARCHITECTURES, anneal  # noqa: E402

LMBDA = LMBDA_BY_QUALITY["mse"]

COARSE = {"size": 128, "count": 8}
FINE = {"size": 256, "count": 2}
MS_SSIM_COARSE = {"size": 192, "count": 4}  # its coarsest scale needs more than 160 pixels
SAVE_SECONDS = 120
CHECK_SECONDS = 300
REWARM_STEPS = 100  # after a resume from fp16 weights, while the optimisers find their momenta again
MAX_LOST_STEPS = 50

# Soft rounding of universally quantised models: 1 / alpha falls geometrically while crops are coarse.
FIRST_TEMPERATURE, LAST_TEMPERATURE = 0.5, 0.1


def parse_args(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--arch", required=True, choices=sorted(model_architectures))
    parser.add_argument("--quality", type=int, choices=range(1, 9), help="for this rate alone")
    parser.add_argument("--lmbda", type=float, help="for this trade-off alone")
    parser.add_argument("-N", type=int, default=64, help="channels of the transforms")
    parser.add_argument("-M", type=int, default=192, help="channels of the latent")
    parser.add_argument("--data", type=Path, help="folder of photographs (searched recursively)")
    parser.add_argument("--out", type=Path, help="folder of the run (default runs/ARCH)")
    parser.add_argument("--max-minutes", type=float, default=60)
    parser.add_argument("--max-steps", type=int, help="end after so many steps; the schedule follows them")
    parser.add_argument("--init", choices=["pca", "default"], default="pca")
    parser.add_argument(
        "--init-from",
        type=Path,
        help="model.pth or .safetensors of a neighbour; what fits is taken, --init does the rest",
    )
    parser.add_argument("--state", type=Path, help=".safetensors of fp16 weights, written at every save")
    parser.add_argument("--muon-lr", type=float, default=1e-3)
    parser.add_argument("--adam-lr", type=float, default=1e-3)
    parser.add_argument("--weight-decay", type=float, default=0.1, help="of the convolution kernels")
    for option, default, what in (
        ("--warmup", 0.05, "in which learning rates rise"),
        ("--decay-from", 0.1, "after which learning rates fall along a cosine (0 when continuing)"),
        ("--fine-from", 0.6, "after which crops are large and rounding is straight-through"),
    ):
        parser.add_argument(option, type=float, default=default, help=f"part of the time {what}")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    if args.data is None or not args.data.is_dir():
        parser.error(
            f"--data must name a folder of photographs, not {args.data}; a few dozen of at least "
            "a megapixel will do"
        )
    if args.lmbda is not None and args.quality is not None:
        parser.error("--quality and --lmbda both name the one trade-off; leave one out")
    for option in ("warmup", "decay_from", "fine_from"):
        if not 0 <= (part := getattr(args, option)) < 1:
            parser.error(f"--{option.replace('_', '-')} must lie in [0, 1), not {part}")
    for option in ("max_minutes", "max_steps", "lmbda"):
        if (value := getattr(args, option)) is not None and value <= 0:
            parser.error(f"--{option.replace('_', '-')} must be positive, not {value}")
    args.kind = getattr(model_architectures[args.arch], "distortion", "l2")
    table = rda.LMBDA[args.kind] if args.arch in rda.ARCHITECTURES else LMBDA
    if args.quality is not None:
        args.lmbda = table[args.quality - 1]
    args.lmbdas = table if args.lmbda is None else (args.lmbda,)
    if args.out is None:
        args.out = Path("runs") / (args.arch if args.lmbda is None else f"{args.arch}-lmbda{args.lmbda:g}")
    return args


def initialise(model: nn.Module, args: argparse.Namespace, sampler: CropSampler) -> None:
    """PCA, then the tensors that fit from a neighbour, then the fit of a factorised prior that is new."""
    if args.init == "pca":
        initialise_from_pca(model, sampler.batch(32, 128), LMBDA_0)
    taken: list[str] = []
    if args.init_from is not None:
        taken = take_from_neighbour(model, read_weights(args.init_from))
        count = len(model.state_dict())
        print(f"took {len(taken)} of {count} tensors from {args.init_from}", file=sys.stderr)
    if not hasattr(model, "h_a") and hasattr(model, "entropy_bottleneck"):
        if "entropy_bottleneck.quantiles" not in taken:
            fit_prior_of_y(model, sampler.batch(16, 128))


def read_weights(path: Path) -> dict[str, Tensor]:
    """The state dict of a run's model.pth, or of a weight of the zoo, whose fp16 parts fit float32."""
    if path.suffix == ".safetensors":
        return load_file(path)
    return torch.load(path, map_location="cpu", weights_only=True)


class StraightThrough:
    """Forward hooks that give the decoder rounded latents, with the gradient of the identity.

    The rate keeps its uniform noise. The hooks act on latents that a GaussianConditional or the factorised
    prior passes to the decoder. Autoregressive models quantise outside of these modules and keep the noise;
    checkerboard models round by themselves.
    """

    def __init__(self, model: nn.Module, gained: Gained):
        self.on = False
        self.gained = gained
        if gained.prior is not None:
            gained.prior.register_forward_hook(self._bottleneck)
        elif hasattr(model, "gaussian_conditional"):
            model.gaussian_conditional.register_forward_hook(self._gaussian, with_kwargs=True)

    def _round(self, values: Tensor, centre: Tensor | float) -> Tensor:
        return values + (torch.round(values - centre) + centre - values).detach()

    def _gaussian(self, module, inputs, kwargs, output):
        if self.on and module.training:
            return self._round(inputs[0], kwargs.get("means", 0.0)), output[1]
        return output

    def _bottleneck(self, module, inputs, output):
        if self.on and module.training:
            return self._round(inputs[0], self.gained.medians()), output[1]
        return output


def learning_rate_factor(progress: float, warmup: float, decay_from: float) -> float:
    """Factor of the learning rates: a linear warm-up, constant, then a cosine down to 1 %."""
    rise = min(1.0, 0.01 + 0.99 * progress / warmup) if warmup else 1.0
    if progress < decay_from:
        return rise
    phase = min(1.0, (progress - decay_from) / (1 - decay_from))
    return rise * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * phase)))


class Run:
    """A training run and its files, with everything that resuming needs.

    Args:
        args, argv: of the command line.
        sampler, held_out: replace those of the recipe.
    """

    def __init__(
        self,
        args: argparse.Namespace,
        argv: list[str],
        sampler: CropSampler | None = None,
        held_out: HeldOut | None = None,
    ):
        self.args = args
        self.command = shlex.join(["python", "zoo/train/train.py", *argv])
        self.device = torch.device(args.device)
        args.out.mkdir(parents=True, exist_ok=True)
        self.checkpoint = args.out / "checkpoint.pt"
        self.sampler = sampler or CropSampler(args.data, min_size=FINE["size"], seed=args.seed)
        self.held_out = held_out or HeldOut(args.data, self.sampler)
        self.facts = {"architecture": args.arch, "N": args.N, "M": args.M, "lmbdas": list(args.lmbdas)}
        model = condition(model_architectures[args.arch](args.N, args.M))
        warm = args.state is not None and args.state.exists() and not self.checkpoint.exists()
        if not self.checkpoint.exists() and not warm:
            initialise(model, args, self.sampler)
        self.step, self.seconds, self.lost, self.resumed_at = 0, 0.0, 0, -REWARM_STEPS
        if warm:
            self._resume_warm(model)
        self.model = model.to(self.device, memory_format=torch.channels_last).train()
        self.gained = Gained(self.model)
        self.straight_through = StraightThrough(self.model, self.gained)
        self.optimizer = MuonAdam(self.model, args.muon_lr, args.adam_lr, args.weight_decay)
        self.averages = Averages(self.model)
        self.universal = args.arch in ARCHITECTURES
        self.coarse = MS_SSIM_COARSE if args.kind == "ms-ssim" else COARSE
        self.lmbdas = torch.tensor(args.lmbdas)
        count = len(args.lmbdas)  # detail is what high rates are spent on, and low ones cannot keep
        self.levels = torch.linspace(0, 1, count) if count > 1 else torch.tensor([0.5])
        self.gains = torch.tensor([gain_of(rda.mse_lmbda(lmbda, args.kind)) for lmbda in args.lmbdas])
        if self.checkpoint.exists():
            self._resume()

    def _check_facts(self, theirs: dict[str, Any], path: Path) -> None:
        for key, mine in self.facts.items():
            if theirs.get(key) != mine:
                raise TrainingError(
                    f"{path} is of a run with {key} {theirs.get(key)}, and {mine} is asked for; give the "
                    "command of that run, or another --out and --state"
                )

    def _resume(self) -> None:
        try:
            saved = torch.load(self.checkpoint, map_location=self.device, weights_only=True)
        except Exception as error:  # whatever a damaged pickle gives
            raise TrainingError(
                f"{self.checkpoint} cannot be read ({error}); remove it to begin again"
            ) from error
        self._check_facts(saved.get("facts", {}), self.checkpoint)
        self._load(self.model, saved["model"], self.checkpoint)
        self.averages.load_state_dict(saved["averages"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.sampler.generator.set_state(saved["crops"].cpu())
        self.step, self.seconds, self.resumed_at = saved["step"], saved["seconds"], saved["resumed_at"]

    def _resume_warm(self, model: nn.Module) -> None:
        """Weights, step and time from the fp16 state; averages and momenta start again, with other crops."""
        path = self.args.state
        try:
            with safe_open(path, "pt") as file:
                facts = json.loads(file.metadata()["run"])
            state = load_file(path)
        except Exception as error:
            raise TrainingError(f"{path} cannot be read ({error}); take it from the last commit") from error
        self._check_facts(facts, path)
        rates = {name: zeros for name, zeros in model.state_dict().items() if name.endswith(f".{RATES}")}
        self._load(model, rates | state, path)  # a state of before there were rates lacks these
        self.step, self.seconds = facts["step"], facts["seconds"]
        self.resumed_at = self.step
        self.sampler.generator.manual_seed(self.args.seed + self.step)
        print(f"going on from {path}: {self.step} steps, {self.seconds / 60:.1f} minutes", file=sys.stderr)

    def _load(self, model: nn.Module, state: dict[str, Tensor], path: Path) -> None:
        try:
            model.load_state_dict(state)
        except RuntimeError as error:  # the class has changed since
            raise TrainingError(
                f"{path} has other weights than {self.args.arch} now ({str(error).splitlines()[1].strip()}); "
                "remove it to go on from --state, or to begin again"
            ) from error

    @property
    def progress(self) -> float:
        """The share of the budget that is used."""
        if self.args.max_steps is not None:
            return self.step / self.args.max_steps
        return self.seconds / (self.args.max_minutes * 60)

    def _rates(self, count: int) -> Tensor:
        """Indices of `count` rates; every rate comes once before any comes again."""
        rounds = math.ceil(count / len(self.lmbdas))
        order = [torch.randperm(len(self.lmbdas), generator=self.sampler.generator) for _ in range(rounds)]
        return torch.cat(order)[:count]

    def train_step(self) -> None:
        """One step, at the point of the schedule that follows from the clock.

        Raises:
            TrainingError: the gradients of too many steps in a row were not finite.
        """
        args = self.args
        fine = self.progress >= args.fine_from
        self.straight_through.on = fine and not self.universal
        if self.universal:
            phase = 1.0 if fine else self.progress / args.fine_from
            anneal(self.model, FIRST_TEMPERATURE * (LAST_TEMPERATURE / FIRST_TEMPERATURE) ** phase)
        if fine and self.step % 100 == 0:
            update_quantiles(self.model)  # rounding is around the medians
        again = min(1.0, (self.step - self.resumed_at + 1) / REWARM_STEPS)
        self.optimizer.set_factor(again * learning_rate_factor(self.progress, args.warmup, args.decay_from))
        size = FINE if fine else self.coarse
        rates = self._rates(size["count"])
        x = self.sampler.batch(**size, level=self.levels[rates])
        x = x.to(self.device, memory_format=torch.channels_last)
        lmbdas, gains = self.lmbdas[rates].to(self.device), self.gains[rates].to(self.device)
        self.model.zero_grad()
        with torch.autocast(self.device.type, dtype=torch.bfloat16), self.gained.at(gains):
            out = self.model(x)
        bpp, distortion, _ = costs(x, out, args.kind)
        ((bpp + lmbdas * distortion) / gains).mean().backward()
        trained = [p for p in self.model.parameters() if p.requires_grad]
        self.step += 1
        if torch.isfinite(nn.utils.clip_grad_norm_(trained, 1.0)):
            self.lost = 0
            self.optimizer.step()
            self.averages.update()
            return
        self.lost += 1
        if self.lost > MAX_LOST_STEPS:
            raise TrainingError(
                f"{self.lost} gradients in a row were not finite, at step {self.step}; lower --muon-lr "
                f"({args.muon_lr:g}) and --adam-lr ({args.adam_lr:g}) and run again: it goes on from "
                "the last save"
            )

    def save(self) -> None:
        """Write the checkpoint, and with --state the fp16 state."""
        content = {
            "facts": self.facts,
            "model": self.model.state_dict(),
            "averages": self.averages.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "crops": self.sampler.generator.get_state(),
            "step": self.step,
            "seconds": self.seconds,
            "resumed_at": self.resumed_at,
        }
        replace(self.checkpoint, lambda path: torch.save(content, path))
        if self.args.state is not None:
            self.save_state()

    def save_state(self) -> None:
        """Write fp16 weights, step and results; for a finished run, the weights of its best average."""
        parameters = {name for name, _ in self.model.named_parameters()}
        record = self.args.out / "run.json"
        checked = json.loads(record.read_text(encoding="utf-8")) if record.exists() else {}
        with self.averages.swapped(checked.get("average", 0) if self.progress >= 1 else 0):
            state = {
                name: (value.half() if name in parameters and value.ndim == 4 else value).cpu().contiguous()
                for name, value in self.model.state_dict().items()
            }
        reached = {key: checked[key] for key in ("average", "score", "loss") if key in checked}
        run = json.dumps({**self.facts, "step": self.step, "seconds": self.seconds, **reached})
        replace(self.args.state, lambda path: save_file(state, path, metadata={"run": run}))

    def check(self) -> dict[str, Any]:
        """Scores of the weights and their averages on held-out photographs: a line of the log, run.json."""
        scores = {}
        for decay in (0, *self.averages.decays):
            with self.averages.swapped(decay):
                scores[decay] = self.held_out.scores(
                    self.model, self.gained, self.args.lmbdas, self.args.kind
                )
        best = min(scores, key=lambda decay: scores[decay]["score"])
        line = {
            "minutes": round(self.seconds / 60, 4),
            "step": self.step,
            "average": best,
            **scores[best],
            "averages": {str(decay): score["score"] for decay, score in scores.items()},
        }
        record = {
            "command": self.command,
            **self.facts,
            "photographs": self.sampler.photographs,
            "machine": machine(self.device),
            "torch": torch.__version__,
        }
        keep_check(self.args.out, line, record)
        return line

    def best(self) -> float:
        """Decay of the average with the best score at the last check."""
        return json.loads((self.args.out / "run.json").read_text(encoding="utf-8"))["average"]

    def export(self) -> None:
        """The weights of the best average; see export.py."""

        def scores(scale: float) -> dict[str, Any]:
            return self.held_out.scores(self.model, self.gained, self.args.lmbdas, self.args.kind, scale)

        with self.averages.swapped(self.best()):
            scale, best = best_scale(scores)
            joint = {k: v.detach().cpu().clone().contiguous() for k, v in self.model.state_dict().items()}
        path = self.args.out / "run.json"
        record = json.loads(path.read_text(encoding="utf-8")) | best | {"latent_scale": round(scale, 4)}
        write_json(path, record)
        gains = {self.args.quality or i + 1: gain for i, gain in enumerate(self.gains.tolist())}
        export(self.args.out, self.args.arch, joint, scale, gains)
        if self.args.state is not None:
            self.save_state()  # again, for the scores of what was exported


def run_until_done(run: Run) -> None:
    """Run steps, saves and checks until the budget is used; after Ctrl-C the run can be resumed."""
    in_steps = run.args.max_steps is not None
    total, unit = (run.args.max_steps, "step") if in_steps else (round(run.args.max_minutes * 60), "s")
    clock = time.process_time if run.device.type == "cpu" else time.monotonic
    share = run.args.threads if run.device.type == "cpu" else 1
    bar = tqdm(
        total=total, initial=min(total, round(run.progress * total)), unit=unit, desc=str(run.args.out)
    )
    saved = checked = run.seconds
    try:
        while run.progress < 1:
            tick = clock()
            run.train_step()
            run.seconds += (clock() - tick) / share
            bar.update(min(round(run.progress * total), total) - bar.n)
            if run.seconds - checked > CHECK_SECONDS:
                checked = run.seconds
                bar.set_postfix(score=run.check()["score"])
            if run.seconds - saved > SAVE_SECONDS:
                saved = run.seconds
                run.save()
        run.check()
        run.save()
        run.export()
    except KeyboardInterrupt:
        run.save()
        print(f"\nstopped; the same command continues from {run.checkpoint}", file=sys.stderr)
    finally:
        bar.close()


def main(argv: list[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else argv
    args = parse_args(argv)
    torch.set_num_threads(args.threads)
    torch.set_flush_denormal(True)  # activations of an unused channel are tiny, and a hundred times slower
    torch.manual_seed(args.seed)
    try:
        run_until_done(Run(args, argv))
    except (TrainingError, ValueError) as error:
        sys.exit(f"train.py: {error}")
    except OSError as error:
        sys.exit(
            f"train.py: {error}; mend that and run the same command again: it goes on from the last save"
        )


if __name__ == "__main__":
    main()
