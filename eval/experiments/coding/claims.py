# SPDX-License-Identifier: Apache-2.0
"""Claims of Agustsson & Theis 2020 about universal quantisation.

In:  the folder of results. Out: `CLAIMS`. Verdicts and sentences are computed from the results (`claim`).
"""

from __future__ import annotations

from pathlib import Path

from experiments.coding import universal
from papers.claim import Claim
from reporting import read_cells

__all__ = ["CLAIMS"]


def _gaps(results: Path, model: str) -> list[float]:
    return universal.gaps(read_cells(results, "universal"), model)


def _universal(results: Path) -> str:
    rounding, ours = (_gaps(results, model) for model in universal.MODELS)
    return (
        f"gap of the losses {min(ours):+.2f} to {max(ours):+.2f} % with real bytes; with rounding "
        f"{min(rounding):+.1f} to {max(rounding):+.1f} %"
    )


def _universal_agrees(results: Path) -> bool:
    return max(map(abs, _gaps(results, "mbt2018-mean-uq-small"))) < 0.5


CLAIMS: tuple[Claim, ...] = (
    Claim(
        "With universal quantisation the loss at test time is the loss of training (as we understand it).",
        "universal",
        "python eval/run.py universal --data KODAK",
        _universal,
        _universal_agrees,
        "the gap is larger than half a percent.",
    ),
)
