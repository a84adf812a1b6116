# SPDX-License-Identifier: Apache-2.0
"""The wrappers around stock's command line; see the table in `hooks/__init__.py`.

Each `wrap_...(module, stock)` returns a function that calls `stock` with the same arguments. It
does more only if an option of this package is given or a download fails.

In:  the stock module and its function. Out: the wrapper.
Exit codes of `main`: 2 with one line on stderr for wrong use, 130 when interrupted, else stock's.
"""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

from torch import nn

from .. import zoo
from ..endings import ended
from ..errors import SgaError
from ..evaluation.evaluate import Evaluation
from ..evaluation.options import add_options, given, request_of

__all__ = ["wrap_download", "wrap_inference", "wrap_main", "wrap_setup_args"]


def wrap_setup_args(module: ModuleType, stock: Callable[[], Any]) -> Callable[[], Any]:
    """Stock's `setup_args`, whose parsers also have this package's options."""

    @functools.wraps(stock)
    def setup_args() -> argparse.ArgumentParser:
        return add_options(stock(), _command())

    return setup_args


def _command() -> str:
    """What the user has typed in front of the arguments."""
    started = getattr(sys.modules["__main__"], "__spec__", None)
    if started is not None and started.name == "compressai_sga.__main__":
        return "python -m compressai_sga eval_model"
    return "python -m compressai.utils.eval_model"


def wrap_main(module: ModuleType, stock: Callable[..., Any]) -> Callable[..., Any]:
    """Stock's `main`, which runs inside `Evaluation` when an option of this package is given."""

    @functools.wraps(stock)
    def main(argv: Sequence[str]) -> None:
        found, rest = given(argv)
        if code := ended(lambda: run(argv, found, rest), ours_only=not found):
            raise SystemExit(code)

    def run(argv: Sequence[str], found: bool, rest: list[str]) -> None:
        if found and not {"pretrained", "checkpoint", "-h", "--help"}.intersection(rest):
            argv = _with_source(argv)
        if found:
            request = request_of(argv, module.setup_args().parse_args(argv))
            if request is not None:
                return Evaluation(module, request).main(stock)
        return stock(argv)

    return main


def wrap_inference(module: ModuleType, stock: Callable[..., Any]) -> Callable[..., Any]:
    """Stock's `inference`, without its padding to multiples of 64 for models that need none."""

    @functools.wraps(stock)
    def inference(model: nn.Module, *args: Any, **keywords: Any) -> dict[str, Any]:
        if getattr(model, "downsampling_factor", None) != 1:
            return stock(model, *args, **keywords)
        compute_padding = module.compute_padding
        module.compute_padding = lambda *_, **__: ((0, 0, 0, 0), (0, 0, 0, 0))
        try:
            return stock(model, *args, **keywords)
        finally:
            module.compute_padding = compute_padding

    return inference


def wrap_download(module: ModuleType, stock: Callable[..., Any]) -> Callable[..., Any]:
    """Stock's download of weights; when it fails, the message names the models that need no download."""
    return zoo.with_download_advice(stock)


def _with_source(argv: Sequence[str]) -> list[str]:
    """The command line, completed with the zoo's default model and the sample images."""
    images = zoo.sample_images()
    if not images:
        raise SgaError("no sample images are installed; install compressai-sga again")
    model, quality = zoo.DEFAULT_MODEL, str(zoo.DEFAULT_QUALITY)
    print(
        f"No source given: evaluating {model}, quality {quality}, on the {len(images)} sample "
        f"images in {images[0].parent}",
        file=sys.stderr,
    )
    return ["pretrained", str(images[0].parent), "-a", model, "-q", quality, *argv]
