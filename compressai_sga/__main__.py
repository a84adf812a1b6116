# SPDX-License-Identifier: Apache-2.0
"""`python -m compressai_sga COMMAND ...`: the package's commands.

In:  a command line. Out: what the command prints; without a command, the list of commands.
Exit codes: 0, 2 for wrong use, else the command's own.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import compressai_sga

__all__ = ["COMMANDS", "Command", "main"]


@dataclass(frozen=True)
class Command:
    """A subcommand; it parses its own arguments.

    Args:
        name: on the command line.
        help: one line.
        run: takes the arguments after the name; its return value is the exit code.
    """

    name: str
    help: str
    run: Callable[[list[str]], int | None]

    def __call__(self, argv: list[str]) -> int | None:
        """Run it; `info` and `--help` need neither CompressAI nor its registration."""
        if self.name != "info" and not {"-h", "--help"}.intersection(argv):
            compressai_sga._load()
        return self.run(argv)


def _eval_model(argv: list[str]) -> None:
    from compressai_sga import hooks
    from compressai_sga.errors import SgaError

    eval_model = importlib.import_module("compressai.utils.eval_model.__main__")
    if not (hooks.enable() and hooks.patch(eval_model)):
        raise SgaError("the installed CompressAI is not one that this package knows; see above")
    eval_model.main(argv)


def _of_files(name: str) -> Callable[[list[str]], int]:
    def run(argv: list[str]) -> int:
        from compressai_sga.files import command

        return getattr(command, name)(argv)

    return run


def _models(argv: list[str]) -> int:
    from compressai_sga import catalogue

    return catalogue.models(argv)


def _bd_rate(argv: list[str]) -> int:
    from compressai_sga.metrics import bd_rate_command as command

    return command.compare_curves(argv)


def _compare(argv: list[str]) -> int:
    from compressai_sga.comparison import arguments
    from compressai_sga.errors import SgaError

    args = arguments.parse(argv)
    for name in ("matplotlib", "plotly", "bjontegaard"):  # all of them before hours of coding
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise SgaError(
                f'compare needs the package {name} ({error}); pip install "compressai-sga[eval]"'
            ) from error
    from compressai_sga.comparison import plan

    return plan.run_comparison(args)


COMMANDS = (
    Command("compress", "compress an image to a .csga file", _of_files("compress")),
    Command("decompress", "write the image of a .csga file", _of_files("decompress")),
    Command("info", "tell what a .csga file holds: model, size, bits by part", _of_files("info")),
    Command(
        "eval_model",
        "evaluate a model on images: `python -m compressai.utils.eval_model` with --refine, "
        "without any start-up hook",
        _eval_model,
    ),
    Command("models", "list the models: qualities, size, cost of decoding, what they are for", _models),
    Command("bd-rate", "BD-rate and BD-PSNR between rate-distortion curves in CompressAI's JSON", _bd_rate),
    Command("compare", "compare models and classical codecs on images: curves, tables, a report", _compare),
)


def main(argv: Sequence[str]) -> int:
    """Run one command; see the module's docstring."""
    from compressai_sga.endings import ended

    # A command gets its arguments untouched: argparse would take options in front for its own.
    for command in COMMANDS:
        if argv and argv[0] == command.name:
            return ended(partial(command, list(argv[1:])))
    parser = argparse.ArgumentParser(
        prog="python -m compressai_sga",
        description="Latent refinement, files, coders and new models for CompressAI.",
        epilog="`python -m compressai_sga COMMAND --help` tells the options of a command.",
    )
    parser.add_argument("--version", action="version", version=f"compressai-sga {compressai_sga.__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", title="commands")
    for command in COMMANDS:
        commands.add_parser(command.name, help=command.help, add_help=False)
    parser.parse_args(argv)
    parser.print_help()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
