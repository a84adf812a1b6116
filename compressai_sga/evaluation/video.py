# SPDX-License-Identifier: Apache-2.0
"""Stock's evaluation of video, `compressai.utils.video.eval_model`, with refinement.

`VideoEvaluation` replaces globals of the stock module by its own methods while stock's `main` runs. Stock
still reads the clips, pads, codes, measures and writes. Its `eval_model` codes each clip twice, once as usual
and once inside `refine.refined_frames`, so that both results come from real bitstreams.

In:  stock's module and a command line.
Out: stock's JSON with further keys. `results` holds the refined numbers under stock's keys, the unrefined
     ones with "-unrefined", and `loss` = bpp + lmbda * D, with bpp = bitrate / (pixels a second) and D the
     mean of stock's mse-rgb, or 1 - ms-ssim-rgb. `refine` holds the settings of the refinement. The name of a
     clip's own file ends in a fingerprint of weights and settings: stock takes the numbers of a clip from its
     file where there is one, so an interrupted command goes on after its last whole clip, and a command with
     other settings takes nothing for its own.
Exit codes: 2 for wrong use, 130 when interrupted.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, TextIO

import compressai
import torch
from compressai.datasets import RawVideoSequence, VideoFormat
from torch import nn

from ..errors import SgaError
from ..files.images import require_writable
from ..journal import weights_sha256
from ..lmbda import set_trained_lmbda, trained_lmbda
from ..precision import full_float32
from ..progress import Progress
from ..refine import RefineConfig, refined_frames
from ..refine.frames import check_video_model
from ..refine.video import FRAME_STRIDE
from ..version import __version__
from . import checks
from .options import Request

__all__ = ["VideoEvaluation"]

_UNREFINED = "-unrefined"
_MS_SSIM_MIN_PX = 161
_NAMING = (
    "CompressAI reads size, frames a second and format from the whole path, as in "
    "cars_320x240_30fps_8bit_P420.yuv"
)


class VideoEvaluation:
    """One call of the command with an option of this package.

    Args:
        module: `compressai.utils.video.eval_model.__main__`.
        request: the command line, which asks for refinement.
    """

    def __init__(self, module: ModuleType, request: Request) -> None:
        self._module = module
        self._stock = SimpleNamespace(**{name: getattr(module, name) for name in self.REPLACED})
        self._request, self._args = request, request.args
        self._trace: TextIO | None = None
        self._progress: _Frames | None = None  # of the pass that refines
        self._label = ""
        self._lmbdas: list[float] = []  # of each clip in each run
        self._finished = 0

    #: Globals of the stock module that methods of the same name replace while stock's `main` runs.
    REPLACED = (
        "json",
        "tqdm",
        "load_pretrained",
        "load_checkpoint",
        "run_inference",
        "eval_model",
        "eval_model_entropy_estimation",
    )

    def main(self, stock_main: Callable[..., Any]) -> None:
        """Run stock's `main` with this evaluation's functions; report an interrupt."""
        args, request = self._args, self._request
        check_arguments(args, self._module.collect_videos(args.dataset))
        with _refusals():
            self._config = RefineConfig.make(metric=args.metric, **(request.refine or {}))
        try:
            if request.trace is not None:
                self._trace = open(request.trace, "w", encoding="utf-8")
        except OSError as error:
            why = error.strerror or error
            raise SgaError(f"--refine-trace {request.trace} cannot be written: {why}") from error
        try:
            with self._replaced(), full_float32():
                stock_main(list(request.argv))
        except KeyboardInterrupt:
            clips = "clip" if self._finished == 1 else "clips"
            print(
                f"interrupted: {self._finished} finished {clips} kept in {args.output_directory}; the same "
                "command continues",
                file=sys.stderr,
            )
            raise SystemExit(130) from None
        finally:
            if self._trace is not None:
                self._trace.close()

    @contextlib.contextmanager
    def _replaced(self) -> Iterator[None]:
        for name in self.REPLACED:
            setattr(self._module, name, getattr(self, name))
        try:
            yield
        finally:
            for name, value in vars(self._stock).items():
                setattr(self._module, name, value)

    # From here on: the replacements.

    @property
    def json(self) -> SimpleNamespace:
        """Stock's `json`, whose `dumps` adds the settings of the refinement."""

        def dumps(value: Any, **keywords: Any) -> str:
            of_clip = "source" in value  # which marks the file of a single clip
            lmbdas = self._lmbdas[-1:] if of_clip else list(dict.fromkeys(self._lmbdas))
            return json.dumps({**value, "refine": self._settings(lmbdas)}, **keywords)

        return SimpleNamespace(dumps=dumps, load=json.load)

    def _settings(self, lmbdas: list[float]) -> dict[str, Any]:
        config = self._config
        return {
            "method": config.method,
            "preset": config.preset,
            "steps": config.steps,
            "lmbda": lmbdas[0] if len(lmbdas) == 1 else lmbdas,
            "lr": getattr(config.lr, "start", None) or config.lr.value,
            "seed": config.seed,
        }

    def tqdm(self, total: int) -> Any:
        """Stock's bar of frames; where frames are refined, a bar of their steps."""
        if self._progress is None:
            return self._stock.tqdm(total=total, desc="unrefined", unit="frame", leave=False)
        return self._progress

    def load_pretrained(self, model: str, metric: str, quality: int) -> nn.Module:
        return _refinable(checks.load_pretrained(self._stock.load_pretrained, model, metric, quality))

    def load_checkpoint(self, arch: str, no_update: bool, checkpoint_path: str) -> nn.Module:
        stock, models = self._stock.load_checkpoint, self._module.models
        return _refinable(
            checks.load_checkpoint(stock, models, arch, no_update, checkpoint_path, coding=True)
        )

    def run_inference(
        self, filepaths: Sequence[Path], inputdir: Path, net: nn.Module, outputdir: Path, **keywords: Any
    ) -> dict[str, Any]:
        """Stock's `run_inference` with the fingerprint in the names of its files."""
        self._label = keywords["trained_net"]
        name = f"{self._label}-refined-{self._fingerprint(net)}"
        for path in filepaths if not keywords["force"] else ():
            folder = Path(outputdir) / Path(path).parent.relative_to(inputdir)
            self._recall(folder / f"{path.stem}-{name}.json", net)
        return self._stock.run_inference(
            filepaths, inputdir, net, outputdir, **{**keywords, "trained_net": name}
        )

    def _fingerprint(self, net: nn.Module) -> str:
        facts = {
            "compressai_sga": __version__,
            "compressai": compressai.__version__,
            "torch": torch.__version__,
            "weights": weights_sha256(net),
            "config": repr(self._config),
            "trained_lmbda": trained_lmbda(net, self._args.metric),
            "coder": self._args.entropy_coder,
            "device": next(net.parameters()).device.type,
        }
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:8]

    def _recall(self, path: Path, net: nn.Module) -> None:
        """Note the trade-off of a clip that is finished; remove what a killed command has left of a file."""
        if not path.is_file():
            return
        try:
            lmbda = float(json.loads(path.read_text(encoding="utf-8"))["refine"]["lmbda"])
        except (ValueError, KeyError, TypeError):
            path.unlink()
            return
        self._finished += 1
        self._lmbdas.append(lmbda)
        if trained_lmbda(net, self._args.metric) is None:
            set_trained_lmbda(net, lmbda, self._args.metric)

    def eval_model(
        self, net: nn.Module, sequence: Path, binpath: Path, keep_binaries: bool = False
    ) -> dict[str, Any]:
        stock = self._stock.eval_model
        return self._both(net, sequence, lambda keep: stock(net, sequence, binpath, keep and keep_binaries))

    def eval_model_entropy_estimation(self, net: nn.Module, sequence: Path) -> dict[str, Any]:
        stock = self._stock.eval_model_entropy_estimation
        return self._both(net, sequence, lambda keep: stock(net, sequence))

    def _both(
        self, net: nn.Module, sequence: Path, evaluate: Callable[[bool], dict[str, Any]]
    ) -> dict[str, Any]:
        """Stock's numbers of a clip, unrefined and refined; `evaluate` is told whether to keep its file."""
        clip = RawVideoSequence.from_file(str(sequence))
        pad, _ = self._module.compute_padding(clip.height, clip.width, min_div=FRAME_STRIDE)
        plain = evaluate(False)
        steps = self._config.steps
        self._progress = _Frames(self._label, sequence.stem, len(clip), steps, self._trace)
        keywords = {**(self._request.refine or {}), "metric": self._args.metric}
        try:
            with refined_frames(net, pad=pad, on_step=self._progress.step, **keywords) as made, _refusals():
                best = evaluate(True)
        finally:
            self._progress.close()
            self._progress = None
        self._finished += 1
        self._lmbdas.append(made[-1].lmbda)
        pixels = float(clip.framerate) * clip.height * clip.width
        results = dict(best)
        for suffix, numbers in (("", best), (_UNREFINED, plain)):
            mse = self._args.metric == "mse"
            distortion = numbers["mse-rgb"] if mse else 1 - numbers["ms-ssim-rgb"]
            results["loss" + suffix] = numbers["bitrate"] * 1000 / pixels + made[-1].lmbda * distortion
        results.update({key + _UNREFINED: value for key, value in plain.items()})
        return results


class _Frames:
    """`Progress` of a clip, in place of stock's bar: `update` ends a frame."""

    def __init__(self, label: str, clip: str, frames: int, steps: int, trace: TextIO | None) -> None:
        self._clip, self._frames, self._frame = clip, frames, 0
        self._progress = Progress(label, frames, steps, trace)
        self.step, self.close = self._progress.step, self._progress.close

    def __enter__(self) -> _Frames:
        self._next()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def update(self, frames: int) -> None:
        self._progress.done()
        self._next()

    def _next(self) -> None:
        if self._frame < self._frames:
            self._progress.start(f"{self._clip}, frame {self._frame}")
            self._frame += 1


def _refinable(net: nn.Module) -> nn.Module:
    check_video_model(net)
    return net


@contextlib.contextmanager
def _refusals() -> Iterator[None]:
    """Turn a ValueError of `refine`, which means wrong use, into ``SgaError``."""
    try:
        yield
    except ValueError as error:
        raise SgaError(f"--refine: {error}") from error


def check_arguments(args: argparse.Namespace, clips: Sequence[Path]) -> None:
    """Refuse arguments and clips for which stock would show a traceback, perhaps after hours.

    Args:
        args: the stock namespace.
        clips: what stock's `collect_videos` found in the data set.

    Raises:
        SgaError: the value, the rule, the cure.
    """
    if args.half:
        raise SgaError(
            "--half and --refine exclude each other: refined latents are coded with float32 tables, which a "
            "half-precision decoder does not have; leave one out"
        )
    dataset = Path(args.dataset)
    if not dataset.is_dir():
        raise SgaError(f"the data set {args.dataset} is no folder; give the folder that holds the clips")
    if not clips:
        raise SgaError(
            f"the data set {args.dataset} holds no *.yuv, the only clips that CompressAI reads; convert "
            "others with ffmpeg -i CLIP -pix_fmt yuv420p NAME_WIDTHxHEIGHT_RATEfps_8bit_P420.yuv"
        )
    for clip in clips:
        _check_clip(clip)
    _check_output(args)
    if args.source == "checkpoint":
        for path in args.paths:
            if not Path(path).is_file():
                raise SgaError(f"the checkpoint {path} does not exist; -p takes existing files")
        if not args.paths:
            raise SgaError("no checkpoint given; -p takes one or more files")
    elif not all(quality.strip().isdigit() for quality in args.qualities.split(",") if quality):
        raise SgaError(f"-q takes whole numbers separated by commas, not {args.qualities!r}")


def _check_output(args: argparse.Namespace) -> None:
    if not args.output_directory:
        raise SgaError(
            "-d is missing, and CompressAI would write the results into the file system's root (the second "
            "folder of its command line is not used); give -d OUTDIR"
        )
    try:
        Path(args.output_directory).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SgaError(
            f"-d {args.output_directory} is no folder and cannot become one ({error.strerror}); choose "
            "another"
        ) from error
    how = "entropy-estimation" if args.entropy_estimation else args.entropy_coder
    name = args.output_file or f"{args.architecture}-{how}"
    require_writable(Path(f"{args.output_directory}/{name}").with_suffix(".json"))


def _check_clip(path: Path) -> None:
    try:
        clip = RawVideoSequence.from_file(str(path))
    except (KeyError, RuntimeError) as error:
        missing = {"bitdepth2": "format (P420)", "framerate": "frames a second (30fps)"}
        lacking = missing.get(error.args[0], "size (320x240)")
        raise SgaError(f"the path {path} does not tell the {lacking}; rename it: {_NAMING}") from error
    except (ValueError, OSError) as error:
        raise SgaError(
            f"the clip {path} cannot be read ({error}): its size must be a whole number of the frames that "
            f"its path names; {_NAMING}"
        ) from error
    size = f"{clip.width}x{clip.height}"
    if clip.format != VideoFormat.YUV420:
        raise SgaError(f"the clip {path} is {clip.format.value}; CompressAI evaluates 4:2:0 only, convert it")
    if clip.width % 2 or clip.height % 2:
        raise SgaError(f"the clip {path} has {size} px; CompressAI takes even sides only, cut it")
    if min(clip.width, clip.height) < _MS_SSIM_MIN_PX:
        raise SgaError(
            f"the clip {path} has {size} px: MS-SSIM, which CompressAI measures, needs sides of at least "
            f"{_MS_SSIM_MIN_PX}; take it out of the folder. The function refine_frames has no such "
            "limit"
        )
    if not len(clip):
        raise SgaError(f"the clip {path} has no frame; take it out of the folder")
