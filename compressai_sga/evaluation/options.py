# SPDX-License-Identifier: Apache-2.0
"""The options that this package adds to `python -m compressai.utils.eval_model`, for images and for video.

They are added to the stock parser and to its subparsers, without a default. So they may stand before or
after `pretrained` / `checkpoint`, and an option that is not given does not appear in the namespace.
Abbreviations of stock options (`--met`) keep their meaning. `MODEL_OPTIONS` are for the models of this
package whose class lists them in `OPTIONS`; `--lmbda` is also for the zoo's jointly trained models. Whether
the chosen model has an option is checked later (`checks`). The command for video
(`compressai.utils.video.eval_model`) has `REFINE_OPTIONS` alone.

In:  the stock parser; a command line. Out: the same parser; a `Request`, or None if none of the options is
given. Fails: a wrong value ends in argparse's usage message and exit code 2.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ..metrics import METRICS, SET_METRICS
from ..refine import PRESETS, RefineConfig

__all__ = ["MODEL_OPTIONS", "REFINE_OPTIONS", "Request", "add_options", "dest_of", "given", "request_of"]

_METRIC_NAMES = (*METRICS, *SET_METRICS)


def _number(kind: type, rule: str, holds: Callable[[Any], bool]) -> Callable[[str], Any]:
    def parse(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError:
            value = None
        if value is None or not holds(value):
            raise argparse.ArgumentTypeError(f"{text!r} is not {rule}")
        return value

    return parse


def _metric_names(text: str) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    unknown = [name for name in names if name not in _METRIC_NAMES]
    if unknown or not names:
        raise argparse.ArgumentTypeError(
            f"unknown metric {', '.join(unknown) or text!r}; choose from {', '.join(_METRIC_NAMES)}"
        )
    return names


def _refine_name(keyword: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        try:
            RefineConfig.make(**{keyword: text})
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None
        return text

    return parse


_positive = _number(float, "a finite number above 0", lambda v: math.isfinite(v) and v > 0)
_count = _number(int, "a whole number of at least 0", lambda v: v >= 0)

_OPTIONS: dict[str, dict[str, Any]] = {
    "--refine": {
        "metavar": "NAME",
        "type": _refine_name("method"),
        "help": f"refine the latents of every image or frame by a method or preset: {', '.join(PRESETS)} "
        "(default: the preset's)",
    },
    "--refine-preset": {
        "metavar": "NAME",
        "type": _refine_name("preset"),
        "help": "settings of the refinement, where --refine names another method than theirs: any of its "
        "names (default: that of --refine, or ssl)",
    },
    "--refine-steps": {
        "metavar": "N",
        "type": _count,
        "help": "refinement steps an image or frame (default: the preset's)",
    },
    "--refine-lmbda": {
        "metavar": "L",
        "type": _positive,
        "help": "weight of the distortion, moves along the rate-distortion curve "
        "(default: the model's training value)",
    },
    "--refine-lr": {
        "metavar": "R",
        "type": _positive,
        "help": "learning rate (default: the preset's)",
    },
    "--refine-seed": {
        "metavar": "S",
        "type": _count,
        "help": "seed of the refinement's noise (default: 0)",
    },
    "--refine-trace": {
        "metavar": "FILE",
        "help": "write the loss of every step there, as JSON lines",
    },
    "--lmbda": {
        "metavar": "L",
        "type": _positive,
        "help": "instead of a quality; C3: weight of the rate in mse + L * bpp; the zoo's jointly trained "
        "models: weight of the distortion, as in training",
    },
    "--steps": {
        "metavar": "N",
        "type": _number(int, "a whole number of at least 1", lambda v: v >= 1),
        "help": "C3: steps of the fit to an image; HFD, DiffC: steps of the sampler (default: the model's)",
    },
    "--seed": {
        "metavar": "S",
        "type": _count,
        "help": "of C3's fit, DiffC's shared noise (default: 0), HFD's noise (default: from the strings)",
    },
    "--max-seconds": {
        "metavar": "T",
        "type": _positive,
        "help": "C3: time for the fit to an image (default: no limit)",
    },
    "--realism": {
        "metavar": "R",
        "type": _number(float, "a number from 0 to 1", lambda v: 0 <= v <= 1),
        "help": "HFD: from 0, the first stage's image, to 1, a full sample (default: the model's)",
    },
    "--bpp": {
        "metavar": "B",
        "type": _positive,
        "help": "DiffC: bits a pixel, instead of a quality",
    },
    "--metrics": {
        "metavar": "NAMES",
        "type": _metric_names,
        "help": f"further metrics, separated by commas: {', '.join(_METRIC_NAMES)}",
    },
}
MODEL_OPTIONS = ("--lmbda", "--steps", "--seed", "--max-seconds", "--realism", "--bpp")
REFINE_OPTIONS = tuple(option for option in _OPTIONS if option.startswith("--refine"))


def dest_of(option: str) -> str:
    """Name of an option in the namespace; for MODEL_OPTIONS also the name in the model's `OPTIONS`."""
    return option[2:].replace("-", "_")


_DESTS = tuple(dest_of(option) for option in _OPTIONS)


@dataclass(frozen=True)
class Request:
    """What a command line asks of this package.

    Args:
        argv: the command line, completed with a source if it had none.
        args: the stock namespace, with this package's options.
        refine: keywords of `RefineConfig.make`; None without refinement.
        model: options of the model by name; empty if none is given.
        trace: path of the trace file.
        metrics: names of further metrics.
    """

    argv: tuple[str, ...]
    args: argparse.Namespace
    refine: dict[str, Any] | None
    model: dict[str, Any]
    trace: str | None
    metrics: tuple[str, ...]


def add_options(
    parser: argparse.ArgumentParser, command: str | None = None, options: Sequence[str] = tuple(_OPTIONS)
) -> argparse.ArgumentParser:
    """Add this package's options to the parser of eval_model and to its subparsers.

    Args:
        parser: stock's.
        command: what the parsers call the program; None: as stock does.
        options: those to add.
    """
    parsers = [parser]
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            parsers.extend(action.choices.values())
            if command is not None:
                for name, each in action.choices.items():
                    each.prog = f"{command} {name}"
    if command is not None:
        parser.prog = command
    for each in parsers:
        group = each.add_argument_group("compressai-sga")
        ours = [
            group.add_argument(option, default=argparse.SUPPRESS, **_OPTIONS[option]) for option in options
        ]
        _prefer_stock_abbreviations(each, ours)
    return parser


def _prefer_stock_abbreviations(parser: argparse.ArgumentParser, ours: list[Any]) -> None:
    stock = parser._get_option_tuples

    def get_option_tuples(option_string: str) -> list[Any]:
        found = stock(option_string)
        theirs = [match for match in found if not any(match[0] is action for action in ours)]
        if not theirs and len(found) > 1 and _may_be_stocks(option_string.partition("=")[0]):
            return []  # of a subparser, which the parser in front must not find ambiguous
        return theirs or found

    parser._get_option_tuples = get_option_tuples  # type: ignore[method-assign]


def _may_be_stocks(name: str) -> bool:
    """Whether an abbreviation may mean stock's --metric, the only one that starts like an option of ours."""
    return "--metric".startswith(name)


def given(argv: Sequence[str], options: Sequence[str] = tuple(_OPTIONS)) -> tuple[bool, list[str]]:
    """Whether the command line has one of these options, and the command line without them."""
    found, rest = False, []
    arguments = iter(argv)
    for argument in arguments:
        name, equals, _ = argument.partition("=")
        short = len(name) > 2 and any(option.startswith(name) for option in options)
        short = short and not _may_be_stocks(name)
        if name in options or short:
            found = True
            if not equals:
                next(arguments, None)
        else:
            rest.append(argument)
    return found, rest


def request_of(argv: Sequence[str], args: argparse.Namespace) -> Request | None:
    """This package's part of a parsed command line; None if none of its options is given."""
    ours = {dest: getattr(args, dest) for dest in _DESTS if hasattr(args, dest)}
    if not ours:
        return None
    trace, metrics = ours.pop("refine_trace", None), ours.pop("metrics", ())
    model = {dest: ours.pop(dest) for dest in map(dest_of, MODEL_OPTIONS) if dest in ours}
    refine = None
    if ours or trace is not None:
        refine = {dest.removeprefix("refine_"): value for dest, value in ours.items()}
        refine["method"] = refine.pop("refine", None)
    return Request(tuple(argv), args, refine, model, trace, metrics)
