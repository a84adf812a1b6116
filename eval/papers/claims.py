# SPDX-License-Identifier: Apache-2.0
"""All claims of the papers beside our results: the tables of eval/README.md, one for each paper.

The claims of an experiment are in the `claims` module of its folder. A paper's table has them in the order of
the topics here. Claims of an evaluation without results have no row.

In:  the folder of results. Out: Markdown.
Fails as `claim` does, and with ``FileNotFoundError`` or ``KeyError`` if something was not measured.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from experiments.c3 import claims as c3
from experiments.coding import claims as coding
from experiments.diffc import claims as diffc
from experiments.hfd import claims as hfd
from experiments.realism import claims as realism
from experiments.refinement import claims as refinement
from experiments.reverse_coding import claims as reverse_coding
from experiments.sga_plus import claims as sga_plus
from papers import claim
from papers.claim import PAPERS, Claim, Row

__all__ = ["CLAIMS", "JUDGED", "rows", "table"]

CLAIMS: tuple[Claim, ...] = (
    *c3.CLAIMS,
    *coding.CLAIMS,
    *diffc.CLAIMS,
    *hfd.CLAIMS,
    *realism.CLAIMS,
    *refinement.CLAIMS,
    *reverse_coding.CLAIMS,
)
JUDGED: tuple[Callable[[Path], Sequence[Row]], ...] = (sga_plus.rows,)
"""Where it depends on what was measured which claims there are: functions of the folder of results."""


def rows(results: Path) -> list[Row]:
    """Every claim that can be judged."""
    shown = [each for each in CLAIMS if not each.needs or (results / each.needs).is_file()]
    return [each.row(results) for each in shown] + [row for judge in JUDGED for row in judge(results)]


def table(results: Path) -> str:
    """The number of claims with each verdict, and one table for each paper."""
    judged = rows(results)
    parts = [claim.counts(judged)]
    for key, paper in PAPERS.items():
        if of_paper := [row for row in judged if row.paper == key]:
            parts += [f"### {paper}", claim.table(of_paper)]
    return "\n\n".join(parts)
