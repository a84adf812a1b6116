# SPDX-License-Identifier: Apache-2.0
"""The command `bd-rate` of `python -m compressai_sga`: compares rate-distortion curves in files.

    python -m compressai_sga bd-rate ANCHOR.json TEST.json ...     each TEST against ANCHOR
    python -m compressai_sga bd-rate REFINED.json                  the refined curve against the unrefined one

In:  CompressAI's JSON with several qualities, as its `eval_model` and `bench` print it: {"results": {"bpp":
[...], "psnr-rgb": [...]}}. Out: BD-rate and BD-PSNR with interval, overlap and method, on stdout. Exit codes:
0; 2 for wrong use, and where a pair has neither delta. Fails with ``SgaError`` where a file cannot be used.
"""

from __future__ import annotations

import argparse
import json
import sys
from typing import get_args

from ..errors import SgaError
from .bd_rate import Interpolation, bd_psnr, bd_rate

__all__ = ["compare_curves"]

Columns = dict[str, list[float]]
UNREFINED = "-unrefined"


def compare_curves(argv: list[str]) -> int:
    """`bd-rate ANCHOR.json [TEST.json ...]`."""
    parser = argparse.ArgumentParser(
        prog="python -m compressai_sga bd-rate",
        description="Bjontegaard deltas between rate-distortion curves; a negative BD-rate is better.",
    )
    parser.add_argument("anchor", metavar="ANCHOR.json", help="JSON of CompressAI with several qualities")
    parser.add_argument("tests", metavar="TEST.json", nargs="*", help="none: ANCHOR against itself unrefined")
    parser.add_argument("--metric", metavar="KEY", default="psnr-rgb", help="of the results (%(default)s)")
    parser.add_argument("--method", choices=get_args(Interpolation), default="pchip", help="(%(default)s)")
    args = parser.parse_args(argv)
    anchor, tests = _columns(args.anchor), {path: _columns(path) for path in args.tests}
    against = args.anchor
    if not tests:
        anchor, tests, against = _unrefined(args.anchor, anchor), {args.anchor: anchor}, "itself unrefined"
    code = 0
    for path, test in tests.items():
        print(f"{path} against {against}, by {args.metric}:")
        reasons = []
        for name, delta in (("BD-rate", bd_rate), ("BD-PSNR", bd_psnr)):
            name = name if args.metric.startswith("psnr") else name.replace("PSNR", args.metric)
            try:  # curves may have rates in common and no quality, or the other way round
                print(f"  {name}  {delta(anchor, test, metric=args.metric, method=args.method)}")
            except SgaError as error:
                reasons.append(f"{name}: {error}")
        if reasons:
            print(f"{path}: no {reasons[0]}", file=sys.stderr)
        code = 2 if len(reasons) == 2 else code
    return code


def _columns(path: str) -> Columns:
    try:
        with open(path, encoding="utf-8") as file:
            content = json.load(file)
    except OSError as error:
        raise SgaError(f"{path} cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise SgaError(
            f"{path} cannot be read as JSON ({error}); name a file of eval_model's output"
        ) from error
    results = content.get("results") if isinstance(content, dict) else None
    found = {name: v for name, v in results.items() if _numbers(v)} if isinstance(results, dict) else {}
    if not found:
        raise SgaError(f"{path} has no lists of numbers under 'results'; name a file of eval_model's output")
    return found


def _numbers(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(v, int | float) for v in value)


def _unrefined(path: str, columns: Columns) -> Columns:
    found = {k.removesuffix(UNREFINED): v for k, v in columns.items() if k.endswith(UNREFINED)}
    if not found:
        raise SgaError(
            f"{path} holds no unrefined curve to compare with; name a second file, or use --refine"
        )
    return found
