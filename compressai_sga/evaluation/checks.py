# SPDX-License-Identifier: Apache-2.0
"""Checks of an evaluation: wrong use ends in one sentence instead of a traceback.

They run only when an option of this package is given. They raise `SgaError`, whose message names the
value, the rule and the cure. `ImageError` concerns one image; the others are still evaluated.

In:  stock's parsed arguments, stock's loaders. Out: nothing, or a loaded model.
"""

from __future__ import annotations

import argparse
import io
import pickle
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from .. import zoo
from ..endings import brief
from ..errors import SgaError
from ..files.images import require_folder, require_writable
from ..models.families import family_of

__all__ = [
    "ImageError",
    "check_arguments",
    "check_model_options",
    "load_checkpoint",
    "load_pretrained",
    "output_file",
    "read_image",
]

_MS_SSIM_MIN_PX = 161  # five scales with an 11-px window: pytorch_msssim refuses 160 and less
_DATA_PARALLEL = "module."
_LOADING_ERRORS = (
    KeyError,
    RuntimeError,
    ValueError,
    TypeError,
    AttributeError,
    IndexError,
    EOFError,
    OSError,
    pickle.UnpicklingError,
)


class ImageError(SgaError):
    """One image cannot be evaluated; the message says why, without its name."""


def check_arguments(args: argparse.Namespace, images: list[Path]) -> None:
    """Refuse arguments for which stock would show a traceback or silently do nothing.

    Args:
        args: the stock namespace.
        images: what stock's `collect_images` found in the data set.

    Raises:
        SgaError: the folder, a checkpoint or a quality does not exist.
    """
    _check_output(args)
    dataset = Path(args.dataset)
    if not dataset.exists():
        raise SgaError(f"the data set {args.dataset} does not exist; give a folder of images")
    if not dataset.is_dir():
        raise SgaError(f"the data set {args.dataset} is a file, not a folder; give the folder that holds it")
    if not images:
        raise SgaError(
            f"the data set {args.dataset} holds no image (*.png, *.jpg, *.webp, ... in small "
            "letters); give a folder that does"
        )
    _warn_of_images(dataset, images, args.per_image)
    if args.source == "checkpoint":
        for path in args.checkpoint_paths:
            if not Path(path).is_file():
                raise SgaError(f"the checkpoint {path} does not exist; -p takes existing files")
        if not args.checkpoint_paths:
            raise SgaError("no checkpoint given; -p takes one or more files")
        if args.architecture.endswith("-vbr") and len(args.checkpoint_paths) > 1:
            raise SgaError("a vbr model takes one checkpoint only; evaluate them one by one")
    elif not all(quality.strip().isdigit() for quality in args.qualities.split(",") if quality):
        raise SgaError(f"-q takes whole numbers separated by commas, not {args.qualities!r}")


def _check_output(args: argparse.Namespace) -> None:
    """Refuse an output that cannot be written, before hours of work; the folder is made, as stock does."""
    if not args.output_directory:
        if args.output_file:
            raise SgaError(f"-o {args.output_file} is a file in the folder of -d; give that, too")
        return
    require_folder(args.output_directory, "-d")
    require_writable(output_file(args))


def output_file(args: argparse.Namespace) -> Path:
    """The file into which stock's `main` writes the results in the end, with -d."""
    how = "entropy estimation" if args.entropy_estimation else args.entropy_coder
    name = args.output_file or f"{args.architecture}-{how}"
    return Path(f"{args.output_directory}/{name}").with_suffix(".json")


def _warn_of_images(dataset: Path, images: list[Path], per_image: bool) -> None:
    """Say on stderr which images stock leaves out, and which results of single images it overwrites."""
    from compressai.utils.eval_model.__main__ import IMG_EXTENSIONS  # late: it is what imports this file

    capital = sorted(
        str(path.relative_to(dataset))
        for path in dataset.rglob("*")
        if path.suffix.lower() in IMG_EXTENSIONS and path.suffix not in IMG_EXTENSIONS
    )
    if capital:
        print(
            f"warning: CompressAI finds only suffixes in small letters; {len(capital)} images are left out "
            f"({', '.join(capital[:3])}{', ...' if len(capital) > 3 else ''}): rename them",
            file=sys.stderr,
        )
    stems: dict[Path, list[str]] = {}
    for path in images:
        stems.setdefault(path.with_suffix(""), []).append(path.name)
    for names in stems.values():
        if per_image and len(names) > 1:
            print(
                f"warning: --per-image keeps the results of one of {', '.join(names)} only, because the "
                "name of a result has no suffix: rename them",
                file=sys.stderr,
            )


def check_model_options(
    args: argparse.Namespace, given: dict[str, Any], refined: bool, architectures: Mapping[str, Any]
) -> None:
    """Refuse options that the chosen model does not have, and refinement of models that cannot be refined.

    Args:
        args: the stock namespace.
        given: values of `options.MODEL_OPTIONS` on the command line, by name.
        refined: whether refinement is asked for.
        architectures: CompressAI's dictionary.
    """
    name = args.architecture
    architecture = architectures.get(name)
    joint = {r.name for r in zoo.list_models() if r.lmbda_range} if args.source == "pretrained" else set()

    def options_of(each: str) -> tuple[str, ...]:
        return getattr(architectures.get(each), "OPTIONS", ("lmbda",) if each in joint else ())

    wrong = [option for option in given if option not in options_of(name)]
    if wrong:
        whose = [each for each in architectures if set(wrong) <= set(options_of(each))]
        raise SgaError(
            f"{_spelled(wrong)}: {name} has no such option, {', '.join(whose) or 'no model'} has; leave it "
            "out, or choose another model (options of refinement start with --refine)"
        )
    if refined and hasattr(architecture, "UNREFINABLE"):
        raise SgaError(f"--refine: {name} {architecture.UNREFINABLE}; leave it out")
    if given and architecture is not None and family_of(name).fitted and args.source == "checkpoint":
        raise SgaError(
            f"{_spelled(given)}: there are no checkpoints of {name}; use pretrained DATASET -a {name}"
        )
    replacing = [option for option in ("lmbda", "bpp") if option in given]
    qualities = {quality for quality in getattr(args, "qualities", "").split(",") if quality}
    if replacing and len(qualities) > 1:
        raise SgaError(
            f"{_spelled(replacing)} replaces the quality, and -q {args.qualities} has several; give one of "
            "the two"
        )


def _spelled(options: Iterable[str]) -> str:
    return ", ".join("--" + option.replace("_", "-") for option in options)


def read_image(stock: Callable[[Path], Tensor], path: Path) -> Tensor:
    """Stock's `read_image`; whatever is wrong with the file becomes an `ImageError`."""
    if not Path(path).is_file():
        raise ImageError("not a file")
    try:
        x = stock(path)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ImageError(f"cannot be read as an image ({brief(error)})") from error
    height, width = x.shape[-2:]
    if min(height, width) < _MS_SSIM_MIN_PX:
        raise ImageError(
            f"{width}x{height} px is too small: MS-SSIM needs sides of at least {_MS_SSIM_MIN_PX} px"
        )
    return x


def load_pretrained(stock: Callable[..., nn.Module], model: str, metric: str, quality: int) -> nn.Module:
    """Stock's `load_pretrained`; for a missing quality or a failed download the error is one sentence."""
    try:
        return stock(model, metric, quality)
    except _LOADING_ERRORS as error:
        raise SgaError(
            f"{model} trained for {metric} with quality {quality} cannot be loaded: {brief(error)}"
        ) from error


def load_checkpoint(
    stock: Callable[..., nn.Module],
    architectures: dict[str, Any],
    arch: str,
    no_update: bool,
    path: str,
    coding: bool,
) -> nn.Module:
    """Stock's `load_checkpoint`; for a file of another kind the error is one sentence.

    Args:
        stock: CompressAI's function.
        architectures: CompressAI's dictionary, to tell which architecture the file does fit.
        arch, no_update, path: as stock takes them.
        coding: whether bitstreams will be made, which need the coding tables.
    """
    if arch not in architectures:
        there = ", ".join(sorted(architectures))
        raise SgaError(f"CompressAI loads no checkpoints of {arch}; choose from {there}")
    try:
        net = stock(arch, no_update, path)
    except _LOADING_ERRORS as error:
        try:
            data = _without_data_parallel(path)
            net = None if data is None else stock(arch, no_update, data)
        except _LOADING_ERRORS:
            net = None
        if net is None:
            raise SgaError(
                f"{path} is not a checkpoint of {arch}: {brief(error)}{_advice(stock, architectures, path)}"
            ) from error
        print(
            f"note: the names in {path} begin with {_DATA_PARALLEL!r}, as DataParallel writes them; they are "
            "read without it",
            file=sys.stderr,
        )
    missing = [
        name
        for name, module in net.named_modules()
        if getattr(module, "_quantized_cdf", None) is not None and not module._quantized_cdf.numel()
    ]
    if no_update and coding and missing:
        raise SgaError(
            f"{path} has no coding tables ({', '.join(missing)}); leave --no-update out, or make "
            "them with python -m compressai.utils.update_model"
        )
    return net


def _without_data_parallel(path: str) -> io.BytesIO | None:
    """The checkpoint with the names that the bare model has; None where they are not DataParallel's."""
    state_dict = _state_dict(path)
    if not state_dict or not all(name.startswith(_DATA_PARALLEL) for name in state_dict):
        return None
    data = io.BytesIO()
    torch.save({name.removeprefix(_DATA_PARALLEL): value for name, value in state_dict.items()}, data)
    data.seek(0)
    return data


def _state_dict(path: str) -> dict[str, Any]:
    """The state dict in a checkpoint, where stock looks for it; empty where the file cannot be read."""
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        for key in ("network", "state_dict", "model_state_dict"):
            if key in checkpoint:
                checkpoint = checkpoint[key]
        return dict(checkpoint)
    except _LOADING_ERRORS:
        return {}


def _advice(stock: Callable[..., nn.Module], architectures: dict[str, Any], path: str) -> str:
    """Which architectures the file fits, found by loading it as each of them."""
    data = _without_data_parallel(path)
    if data is None and not _state_dict(path):
        return ""
    fitting: dict[type, str] = {}
    for name, architecture in architectures.items():
        try:
            stock(name, True, path if data is None else io.BytesIO(data.getvalue()))
        except Exception:  # any failure means: not this one
            continue
        fitting.setdefault(architecture, name)
    return f"; it loads with -a {' or '.join(fitting.values())}" if fitting else "; it fits no architecture"
