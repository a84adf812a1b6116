# SPDX-License-Identifier: Apache-2.0
"""What Perugachi-Diaz et al. 2024 (SGA+) claim, as eval/experiments/sga_plus/measure.py judges it.

In:  the folder of results. Out: rows; none where the evaluation has not been run.
Fails as `sga_plus_runs.Results` does.
"""

from __future__ import annotations

from pathlib import Path

from experiments.sga_plus import findings as sga_plus_claims
from experiments.sga_plus.runs import Results
from papers import findings
from papers.claim import Row, Verdict

__all__ = ["NAME", "rows"]

NAME = "sga-plus-reduced"
COMMAND = "python eval/run.py sga-plus --reduced --images KODAK"
# Of a verdict there: ours, and why.
VERDICTS: dict[str, tuple[Verdict, str]] = {
    "agrees": ("yes", ""),
    "disagrees": (
        "no",
        "the 95 % interval of the mean over the images is on the other side; model, images and objective are "
        "others than the paper's.",
    ),
    "undecided": ("undecided", "the 95 % interval of the mean over the images holds zero."),
}


def rows(results: Path) -> list[Row]:
    """All claims that the parts that were measured can judge."""
    if not (results / f"{NAME}.json").is_file():
        return []
    found = []
    for each in sga_plus_claims.claims(Results(findings.cells(results, NAME))):
        verdict, why = VERDICTS[each.verdict]
        found.append(Row(f"{each.text} ({each.source}).", "sga+", COMMAND, each.ours, verdict, why))
    return found
