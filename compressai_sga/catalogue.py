# SPDX-License-Identifier: Apache-2.0
"""`python -m compressai_sga models`: the models to choose from, what each costs and what it is for.

In:  the arguments after the command's name. Out: a table on stdout, or JSON with --json. It has for each
model its qualities, the size of its files in MB, the decoder's multiplications a pixel in thousands (at the
lowest and the highest quality), whether the installed package has its weights, and the purpose of its family.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

from .models.families import FAMILIES, family_of

__all__ = ["models", "rows"]


def rows() -> list[dict[str, Any]]:
    """The zoo's models, sorted by name, then those that are fitted to an image and need no weights."""
    from . import zoo  # late: it imports PyTorch, which --help does not need

    found = []
    for name in dict.fromkeys(record.name for record in zoo.list_models()):
        records = zoo.list_models(name)
        family = family_of(records[0].architecture)
        found.append(
            {
                "name": name,
                "architecture": records[0].architecture,
                "qualities": [record.quality for record in records],
                "any_lmbda": records[0].lmbda_range is not None,
                "mb": round(sum({record.file: record.bytes for record in records}.values()) / 1e6, 2),
                "decoder_kmacs_px": [records[0].decoder_kmacs_px, records[-1].decoder_kmacs_px],
                "installed": all(zoo.is_installed(record) for record in records),
                "family": family.title,
                "purpose": family.purpose,
            }
        )
    for family in FAMILIES:
        for name, cls in family.classes.items() if family.fitted else ():
            kmacs = round(cls.untrained().macs.total / 1000, 3)
            found.append(
                {
                    "name": name,
                    "architecture": name,
                    "qualities": list(range(1, 9)),
                    "any_lmbda": True,
                    "mb": round(sum(path.stat().st_size for path in family.data()) / 1e6, 2),
                    "decoder_kmacs_px": [kmacs, kmacs],
                    "installed": True,
                    "family": family.title,
                    "purpose": family.purpose,
                }
            )
    return found


def models(argv: list[str]) -> int:
    """`models [--json]`."""
    parser = argparse.ArgumentParser(
        prog="python -m compressai_sga models",
        description="List the models with weights here, and those that need none.",
        epilog="kMAC/px: thousands of multiplications a pixel of the decoder.",
    )
    parser.add_argument("--json", action="store_true", help="as JSON")
    args = parser.parse_args(argv)
    if args.json:
        print(json.dumps(rows(), indent=2))
        return 0
    lines = [("model", "qualities", "MB", "kMAC/px", "what it is for")]
    for row in rows():
        low, high = row["decoder_kmacs_px"]
        kmacs = _short(low) if low == high else f"{_short(low)}-{_short(high)}"
        where = "" if row["installed"] else " (weights in the repository's zoo/ only)"
        lines.append((row["name"], _ranges(row), f"{row['mb']:.3g}", kmacs, row["purpose"] + where))
    widths = [max(len(line[k]) for line in lines) for k in range(4)]
    for name, qualities, mb, kmacs, purpose in lines:
        cells = f"{name:<{widths[0]}}  {qualities:<{widths[1]}}  {mb:>{widths[2]}}  {kmacs:>{widths[3]}}"
        print(f"{cells}  {purpose}")
    return 0


def _short(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _ranges(row: dict[str, Any]) -> str:
    qualities = row["qualities"]
    if qualities == list(range(qualities[0], qualities[-1] + 1)) and len(qualities) > 1:
        text = f"{qualities[0]}-{qualities[-1]}"
    else:
        text = ",".join(map(str, qualities))
    return text + (" or any λ" if row["any_lmbda"] else "")
