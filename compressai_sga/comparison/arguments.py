# SPDX-License-Identifier: Apache-2.0
"""The command line of `compare`; `plan` says what it means. Needs no PyTorch.

In:  the arguments after the command's name. Out: a namespace. Fails: argparse's usage message, exit code 2.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from ..metrics import METRICS, SET_METRICS
from ..tasks.options import add_options

__all__ = ["parse"]


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The parsed arguments."""
    parser = argparse.ArgumentParser(
        prog="python -m compressai_sga compare",
        description="Compare codecs on the same images: curves, a table with BD-rates, and an HTML report.",
    )
    parser.add_argument("--images", type=Path, help="folder of images (default: the zoo's samples)")
    parser.add_argument(
        "--entries",
        nargs="+",
        metavar="ENTRY",
        help="NAME[@POINTS][:KEY=VALUE]..., such as jpeg@10,50 or mbt2018-mean-small@1-3:refine=fast; "
        "`python -m pydoc compressai_sga.comparison.entries` tells all (default: a few)",
    )
    parser.add_argument("--out", type=Path, default=Path("runs/compare"), help="(default: %(default)s)")
    parser.add_argument("--anchor", help="entry or published codec for BD-rates (default: the first entry)")
    parser.add_argument("--metrics", default="", help=f"of {', '.join([*METRICS, *SET_METRICS])}, by commas")
    parser.add_argument("--published", nargs="+", metavar="FILE NAME", help="a file of points, codecs in it")
    parser.add_argument("--pictures", type=int, default=3, help="images in the viewer (default: %(default)s)")
    parser.add_argument(
        "--picture-bpp",
        type=float,
        nargs="+",
        default=(0.25, 0.75),
        metavar="BPP",
        help="rates at which the viewer has a picture of each entry (default: 0.25 0.75)",
    )
    parser.add_argument("--title", default="Image codecs compared", help="of the report")
    add_options(parser)
    args = parser.parse_args(argv)
    if args.pictures < 0:
        parser.error(f"--pictures is {args.pictures}; it must be 0 or more")
    return args
