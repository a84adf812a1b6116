# SPDX-License-Identifier: Apache-2.0
"""The wrappers around stock's command for video; see the table in `hooks/__init__.py`.

Each `wrap_...(module, stock)` returns a function that calls `stock` with the same arguments.

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

import compressai

from ..endings import ended
from ..evaluation.options import REFINE_OPTIONS, add_options, given, request_of
from ..evaluation.video import VideoEvaluation

__all__ = ["wrap_create_parser", "wrap_main"]


def wrap_create_parser(module: ModuleType, stock: Callable[[], Any]) -> Callable[[], Any]:
    """Stock's `create_parser`, whose parsers also have the options of refinement."""

    @functools.wraps(stock)
    def create_parser() -> argparse.ArgumentParser:
        command = "python -m compressai.utils.video.eval_model"
        return add_options(stock(), command, REFINE_OPTIONS)

    return create_parser


def wrap_main(module: ModuleType, stock: Callable[..., Any]) -> Callable[..., Any]:
    """Stock's `main`, which codes with the coder of -c, and refines where an option of ours is given."""

    @functools.wraps(stock)
    def main(args: Sequence[str] | None = None) -> None:
        argv = list(sys.argv[1:] if args is None else args)
        found, _ = given(argv, REFINE_OPTIONS)
        if code := ended(lambda: run(argv), ours_only=not found):
            raise SystemExit(code)

    def run(argv: list[str]) -> None:
        parsed = module.create_parser().parse_args(argv)
        compressai.set_entropy_coder(parsed.entropy_coder)
        request = request_of(argv, parsed)
        if request is not None:
            return VideoEvaluation(module, request).main(stock)
        return stock(argv)

    return main
