# SPDX-License-Identifier: Apache-2.0
"""Stock `eval_model` with refinement, options of this package's models, further metrics and a journal.

`Evaluation` replaces globals of the stock module by its own methods while stock's `main` runs. Stock
still reads the images, pads, times, codes, decodes, measures and writes. Stock `inference` codes each
image twice, once as usual and once inside `compressai_sga.refined`, so that both results come from
real bitstreams.

In:  stock's module and a command line.
Out: stock's JSON with further keys. `results` holds the refined numbers under stock's keys, the unrefined
     ones with "-unrefined", and `loss` = bpp + lmbda * D (D: 255^2 * MSE after rounding to 8 bits, or
     1 - MS-SSIM). `refine` holds the settings of the refinement, `fit` those of C3's fit, `options` the
     options that were given for another model of this package. `failed` lists images that could not be
     evaluated.
Exit codes: 2 for wrong use and failed images, 130 when interrupted.
"""

from __future__ import annotations

import contextlib
import copy
import json
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, TextIO

import compressai
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..coding import coded_on_cpu
from ..errors import SgaError
from ..journal import Journal, cache_folder, weights_sha256
from ..lmbda import LMBDA_BY_QUALITY, set_trained_lmbda, trained_lmbda
from ..models.families import family_of
from ..precision import full_float32
from ..progress import Progress
from ..refine import RefineConfig, refine, refined
from ..version import __version__
from . import checks
from .extra_metrics import Measures
from .gpu import waiting
from .options import Request

__all__ = ["Evaluation"]

_UNREFINED = "-unrefined"


class Evaluation:
    """One call of eval_model with at least one option of this package.

    Args:
        module: `compressai.utils.eval_model.__main__`.
        request: the command line.
    """

    def __init__(self, module: ModuleType, request: Request) -> None:
        self._module = module
        self._stock = SimpleNamespace(**{name: getattr(module, name) for name in self.REPLACED})
        self._request = request
        self._args = request.args
        self._config: RefineConfig | None = None
        self._images: list[Path] = []
        self._journals: list[Journal] = []
        self._known: dict[str, Any] | None = None
        self._progress: Progress | None = None
        self._trace: TextIO | None = None
        self._output: str | None = None  # the results as text, as soon as they are complete
        self._lmbdas: list[float] = []  # of each run
        self._lmbda: float | None = None  # of the current image
        self._measures = Measures(())
        self._failed: dict[str, str] = {}
        self._options: list[dict[str, Any]] = []  # of the model in each run

    #: Globals of the stock module that methods of the same name replace while stock's `main` runs.
    REPLACED = (
        "json",
        "read_image",
        "compute_metrics",
        "inference",
        "inference_entropy_estimation",
        "load_pretrained",
        "load_checkpoint",
        "eval_model",
    )

    def main(self, stock_main: Callable[..., Any]) -> None:
        """Run stock's `main` with this evaluation's functions; report failures and interrupts."""
        args, request = self._args, self._request
        self._images = list(self._module.collect_images(args.dataset))
        checks.check_arguments(args, self._images)
        refined = request.refine is not None
        checks.check_model_options(args, request.model, refined, self._module.architectures)
        if request.refine is not None:
            if args.half:
                raise SgaError(
                    "--half and --refine exclude each other: refined latents are coded with "
                    "float32 tables, which a half-precision decoder does not have; leave one out"
                )
            try:
                self._config = RefineConfig.make(metric=args.metric, **request.refine)
            except ValueError as error:
                raise SgaError(f"--refine: {error}") from error
        Measures.check(request.metrics)
        try:
            if request.trace is not None:
                self._trace = open(request.trace, "w", encoding="utf-8")
        except OSError as error:
            why = error.strerror or error
            raise SgaError(f"--refine-trace {request.trace} cannot be written: {why}") from error
        try:
            with self._replaced(), full_float32():
                stock_main(list(request.argv))
        except OSError as error:
            if self._output is None:  # it was not the results that could not be written
                raise
            raise SgaError(self._lost(error)) from error
        except KeyboardInterrupt:
            raise SystemExit(self._interrupted()) from None
        finally:
            for journal in self._journals:
                journal.close()
            if self._progress is not None:
                self._progress.close()
            if self._trace is not None:
                with contextlib.suppress(OSError):  # a full disk, which has been reported
                    self._trace.close()
        for journal in self._journals:
            journal.remove()
        if self._failed:
            for path, reason in self._failed.items():
                print(f"error: {path}: {reason}", file=sys.stderr)
            raise SystemExit(2)

    @contextlib.contextmanager
    def _replaced(self) -> Iterator[None]:
        for name in self.REPLACED:
            setattr(self._module, name, getattr(self, name))
        try:
            yield
        finally:
            for name, value in vars(self._stock).items():
                setattr(self._module, name, value)

    def _lost(self, error: OSError) -> str:
        """Print the results that could not be written; leave no empty file that looks like results."""
        print(self._output)
        path = checks.output_file(self._args)
        if path.is_file() and path.stat().st_size < len(self._output or ""):
            path.unlink()
        return f"{path} cannot be written ({error.strerror or error}); the results are on stdout instead"

    def _interrupted(self) -> int:
        if self._progress is not None:
            self._progress.close()
        kept = sum(len(journal) for journal in self._journals)
        if kept:
            folder, images = self._journals[0].path.parent, "image" if kept == 1 else "images"
            text = f"{kept} finished {images} kept in {folder}; the same command continues"
        else:
            text = "no finished image is kept; the same command starts again"
        print(f"interrupted: {text}", file=sys.stderr)
        return 130

    # From here on: the replacements.

    @property
    def json(self) -> SimpleNamespace:
        """Stock's `json`, whose `dumps` adds this package's keys to the final result."""

        def dumps(value: Any, **keywords: Any) -> str:
            if "source" in value:  # which marks the file of a single image
                return json.dumps(value, **keywords)
            self._output = json.dumps({**value, **self._extra_keys()}, **keywords)
            return self._output

        return SimpleNamespace(dumps=dumps)

    def _extra_keys(self) -> dict[str, Any]:
        extra: dict[str, Any] = {}
        if self._config is not None:
            config, lmbdas = self._config, self._lmbdas
            extra["refine"] = {
                "method": config.method,
                "preset": config.preset,
                "steps": config.steps,
                "lmbda": lmbdas[0] if len(set(lmbdas)) == 1 else lmbdas,
                "lr": getattr(config.lr, "start", None) or config.lr.value,
                "seed": config.seed,
            }
        if self._request.model:
            runs = self._options or [{}]
            values = {key: [run[key] for run in runs] for key in runs[0]}
            name = "fit" if family_of(self._args.architecture).fitted else "options"
            extra[name] = {key: each[0] if len(set(each)) == 1 else each for key, each in values.items()}
        if self._failed:
            extra["failed"] = [{"image": k, "error": v} for k, v in self._failed.items()]
        return extra

    def read_image(self, filepath: Path) -> Tensor:
        return checks.read_image(self._stock.read_image, filepath)

    def load_pretrained(self, model: str, metric: str, quality: int) -> nn.Module:
        stock = self._load_with_options if self._request.model else self._stock.load_pretrained
        net = checks.load_pretrained(stock, model, metric, quality)
        published = model in compressai.zoo.image.model_urls and quality in range(1, 9)
        if published and trained_lmbda(net, metric) is None:
            set_trained_lmbda(net, LMBDA_BY_QUALITY[metric][quality - 1], metric)
        return net

    def _load_with_options(self, model: str, metric: str, quality: int) -> nn.Module:
        """Load a pretrained model with its options, which stock's `load_pretrained` cannot take."""
        make = self._module.pretrained_models[model]
        net = make(quality=quality, metric=metric, pretrained=True, progress=False, **self._request.model)
        self._options.append(_options_of(net) or self._request.model)  # stock classes do not keep them
        return net.eval()

    def load_checkpoint(self, arch: str, no_update: bool, checkpoint_path: str) -> nn.Module:
        net = checks.load_checkpoint(
            self._stock.load_checkpoint,
            self._module.architectures,
            arch,
            no_update,
            checkpoint_path,
            coding=not self._args.entropy_estimation,
        )
        for name, value in self._request.model.items():
            setattr(net, name, value)
        if self._request.model:
            net.check_options()
        self._options.append(_options_of(net))
        return net

    def compute_metrics(self, org: Tensor, rec: Tensor, max_val: int = 255) -> dict[str, Any]:
        self._measures.take(org, rec, max_val)
        return self._stock.compute_metrics(org, rec, max_val)

    def _measure(self, suffix: str, stock: Callable[..., Any], *args: Any) -> dict[str, Any]:
        return {**stock(*args), **self._measures.collect(suffix)}

    def inference(
        self, model: nn.Module, x: Tensor, vbr_stage: Any = None, vbr_scale: Any = None
    ) -> dict[str, Any]:
        if self._known is not None:
            return dict(self._known["results"])
        vbr = () if vbr_scale is None else (vbr_stage, vbr_scale)
        if self._config is None:
            return self._measure("", self._stock.inference, waiting(model), x, *vbr)
        codec = coded_on_cpu(model)
        plain = self._measure(_UNREFINED, self._stock.inference, waiting(model, codec, codec), x, *vbr)
        pad, _ = self._module.compute_padding(x.size(1), x.size(2), min_div=2**6)
        with refined(model, **self._keywords(), pad=pad) as made, _refusals():
            best = self._measure("", self._stock.inference, waiting(model, decoder=codec), x, *vbr)
        return self._joined(best, plain, made[-1].lmbda)

    def inference_entropy_estimation(
        self, model: nn.Module, x: Tensor, vbr_stage: Any = None, vbr_scale: Any = None
    ) -> dict[str, Any]:
        if self._known is not None:
            return dict(self._known["results"])
        stock = self._stock.inference_entropy_estimation
        vbr = () if vbr_scale is None else (vbr_stage, vbr_scale)
        if self._config is None:
            return self._measure("", stock, waiting(model), x, *vbr)
        pad, unpad = self._module.compute_padding(x.size(1), x.size(2), min_div=2**6)
        stock_forward, made = model.forward, []

        def forward_padded(x: Tensor, **keywords: Any) -> dict[str, Any]:
            # Stock estimates sides that are multiples of 64 only; so these are padded here.
            out = stock_forward(F.pad(x, pad), **keywords)
            return {**out, "x_hat": F.pad(out["x_hat"], unpad)}

        def forward_refined(x: Tensor, **keywords: Any) -> dict[str, Any]:
            kw = {**keywords, "s": 0} if keywords else None
            padded = F.pad(x, pad)
            made.append(refine(model, padded, **self._keywords(), pad=pad, compress_kwargs=kw))
            return {"x_hat": made[-1].x_hat, "likelihoods": made[-1].likelihoods}

        with _instance_attribute(model, "forward", forward_padded):
            plain = self._measure(_UNREFINED, stock, waiting(model), x, *vbr)
        with _instance_attribute(model, "forward", forward_refined), _refusals():
            best = self._measure("", stock, waiting(model), x, *vbr)
        # Stock shares the time out evenly; refinement belongs to the encoder alone.
        best["encoding_time"] += best["decoding_time"] - plain["decoding_time"]
        best["decoding_time"] = plain["decoding_time"]
        return self._joined(best, plain, made[-1].lmbda)

    def _keywords(self) -> dict[str, Any]:
        options = {**self._request.refine, "metric": self._args.metric}
        return {**options, "on_step": self._progress.step}

    def _joined(self, best: dict[str, Any], plain: dict[str, Any], lmbda: float) -> dict[str, Any]:
        self._lmbda = lmbda
        results = dict(best)
        for suffix, numbers in (("", best), (_UNREFINED, plain)):
            if self._args.metric == "mse":
                distortion = 255**2 * 10 ** (-numbers["psnr-rgb"] / 10)
            else:
                distortion = 1 - numbers["ms-ssim-rgb"]
            results["loss" + suffix] = numbers["bpp"] + lmbda * distortion
        results.update({key + _UNREFINED: value for key, value in plain.items()})
        return results

    def eval_model(
        self,
        model: nn.Module,
        outputdir: str,
        inputdir: str,
        filepaths: Sequence[Path],
        **keywords: Any,
    ) -> dict[str, Any]:
        """Stock's `eval_model` image by image, with the journal and the bar around it."""
        if keywords["vbr_scale"] is not None:
            # Stock hands over the same model at every scale; what refinement notes on it (the
            # trade-off that it finds) holds for one scale only.
            model = copy.deepcopy(model)
        journal = self._open_journal(model, keywords)
        label = keywords["trained_net"]
        steps = 1 if self._config is None else self._config.steps
        self._progress = Progress(label, len(filepaths), steps, self._trace)
        suffixes = ("",) if self._config is None else ("", _UNREFINED)
        self._measures = Measures(self._request.metrics, suffixes)
        total: defaultdict[str, float] = defaultdict(float)
        lmbdas: list[float] = []
        done = 0
        for path in filepaths:
            self._progress.start(Path(path).name)
            self._known = None if journal is None else journal.find(path)
            self._measures.start()
            self._lmbda = None
            try:
                found = self._stock.eval_model(model, outputdir, inputdir, [path], **keywords)
            except checks.ImageError as error:
                self._failed[str(path)] = str(error)
                self._progress.done()
                continue
            if self._known is not None:
                record = self._known
                if record["lmbda"] is not None and trained_lmbda(model, self._args.metric) is None:
                    set_trained_lmbda(model, record["lmbda"], self._args.metric)
                self._progress.known([tuple(pair) for pair in record["losses"]])
            else:
                record = {
                    "results": dict(found),
                    "lmbda": self._lmbda,
                    "losses": self._progress.losses,
                    "x_hat": self._measures.pictures(),
                }
                if journal is not None:
                    try:
                        journal.add(path, record)
                    except OSError as error:
                        _warn_of_journal(journal.path.parent, error)
                        journal = None
                self._progress.done()
            if record["x_hat"]:
                self._measures.add(self._stock.read_image(path)[None], record["x_hat"])
            for key, value in record["results"].items():
                total[key] += value
            if record["lmbda"] is not None:
                lmbdas.append(record["lmbda"])
            done += 1
        self._progress.close()
        if lmbdas:
            self._lmbdas.append(sum(lmbdas) / len(lmbdas) if len(set(lmbdas)) > 1 else lmbdas[0])
        means = {key: value / done for key, value in total.items()}
        return {**means, **self._measures.compute()} if done else {}

    def _open_journal(self, model: nn.Module, keywords: dict[str, Any]) -> Journal | None:
        args, scale = self._args, keywords["vbr_scale"]
        facts = {
            "compressai_sga": __version__,
            "compressai": compressai.__version__,
            "torch": torch.__version__,
            "architecture": args.architecture,
            "weights": weights_sha256(model),
            "refine": self._request.refine,
            "config": repr(self._config),
            "trained_lmbda": None if self._config is None else trained_lmbda(model, args.metric),
            "metric": args.metric,
            "metrics": self._request.metrics,
            "trace": self._request.trace is not None,
            "coder": args.entropy_coder,
            "entropy_estimation": args.entropy_estimation,
            "half": args.half,
            "device": next(model.parameters()).device.type,
            "vbr": None if scale is None else [keywords["vbr_stage"], float(scale)],
        }
        if hasattr(model, "OPTIONS"):
            facts["options"] = getattr(model, "settings", {}) | _options_of(model)
        folder = Path(args.output_directory) if args.output_directory else cache_folder()
        try:
            journal = Journal(folder, facts)
        except OSError as error:
            _warn_of_journal(folder, error)
            return None
        self._journals.append(journal)
        return journal


def _warn_of_journal(folder: Path, error: OSError) -> None:
    why = error.strerror or error
    print(f"warning: finished images are not kept, {folder} cannot be written: {why}", file=sys.stderr)


def _options_of(net: nn.Module) -> dict[str, Any]:
    """Values of the model's options, by name; empty for models of other packages."""
    settings = getattr(net, "settings", {})  # where an attribute None means the model's own
    return {name: settings.get(name, getattr(net, name)) for name in getattr(net, "OPTIONS", ())}


@contextlib.contextmanager
def _refusals() -> Iterator[None]:
    """Turn a ValueError of `refine`, which means wrong use, into ``SgaError``."""
    try:
        yield
    except ValueError as error:
        raise SgaError(f"--refine: {error}") from error


@contextlib.contextmanager
def _instance_attribute(owner: nn.Module, name: str, value: Any) -> Iterator[None]:
    before = vars(owner).get(name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        delattr(owner, name)
        if before is not None:
            setattr(owner, name, before)
