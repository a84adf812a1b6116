# SPDX-License-Identifier: Apache-2.0
"""The options of a command whose work is tasks: where they run. Needs no PyTorch.

In:  a parser. Out: the same parser, with the arguments of `tasks.run`.
"""

from __future__ import annotations

import argparse

__all__ = ["add_options"]


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add --workers, --threads and --ray, which `run` takes under these names."""
    where = parser.add_mutually_exclusive_group()
    where.add_argument(
        "--workers", type=_positive, default=1, metavar="N", help="processes on this machine (default: 1)"
    )
    where.add_argument(
        "--ray", metavar="ADDRESS", help="do the tasks on a Ray cluster: its address, or auto, or local"
    )
    parser.add_argument(
        "--threads", type=_positive, default=1, metavar="N", help="torch threads of each process (default: 1)"
    )


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of at least 1")
    return int(text)
