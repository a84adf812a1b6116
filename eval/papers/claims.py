# SPDX-License-Identifier: Apache-2.0
"""All claims of the papers beside our results: the tables of eval/README.md, one a paper.

Claims of an evaluation that has no results yet have no row. A new claim is a row in the module of its field,
or in a new one that is named here; `claim` says what it needs. An evaluation that judges its claims itself
gives a function in `JUDGED`.

In:  the folder of results. Out: Markdown.
Fails as `claim` does, and with ``FileNotFoundError`` or ``KeyError`` where something was not measured.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import get_args

from papers import claims_coding, claims_models, claims_realism, claims_refinement, claims_sga_plus
from papers.claim import PAPERS, Claim, Row, Verdict

__all__ = ["CLAIMS", "JUDGED", "Claim", "Row", "rows", "table"]

CLAIMS: tuple[Claim, ...] = (
    *claims_refinement.CLAIMS,
    *claims_models.CLAIMS,
    *claims_coding.CLAIMS,
    *claims_realism.CLAIMS,
)
# Functions of the folder of results; no rows where theirs are not there.
JUDGED: tuple[Callable[[Path], Sequence[Row]], ...] = (claims_sga_plus.rows,)


def rows(results: Path) -> list[Row]:
    """Every claim that can be judged."""
    shown = [claim for claim in CLAIMS if not claim.needs or (results / claim.needs).is_file()]
    return [claim.row(results) for claim in shown] + [row for judge in JUDGED for row in judge(results)]


def table(results: Path) -> str:
    """How many claims have which verdict; a table a paper."""
    judged = rows(results)
    found = {verdict: sum(row.verdict == verdict for row in judged) for verdict in get_args(Verdict)}
    counts = ", ".join(f"{count} {verdict}" for verdict, count in found.items() if count)
    lines = [f"{len(judged)} claims. Agrees: {counts}."]
    for key, paper in PAPERS.items():
        if of_paper := [row.markdown() for row in judged if row.paper == key]:
            head = ["| claim | command | our result | agrees |", "|---|---|---|---|"]
            lines += ["", f"### {paper}", "", *head, *of_paper]
    return "\n".join(lines)
