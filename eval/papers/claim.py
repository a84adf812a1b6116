# SPDX-License-Identifier: Apache-2.0
"""A claim of a paper beside our result: a row of eval/README.md.

    Claim(claim, paper, command, result, agrees, why)

A verdict is computed from the results, never typed. If it is not "yes", a sentence says why. A claim is
stated as it is if it was read in the paper's abstract or tables or in its authors' code. Otherwise it ends in
"(as we understand it)". A number of a paper is given only if it was read there or follows from published
points (`published`).

In:  the folder of results. Out: sentences and verdicts.
Fails with ``ValueError`` for a paper that is not in `PAPERS`, or a verdict without its reason.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from compressai_sga import metrics
from compressai_sga.comparison import published
from reporting import markdown

__all__ = [
    "PAPERS",
    "Claim",
    "Row",
    "Verdict",
    "counts",
    "not_measured",
    "nothing",
    "published_bd_rate",
    "table",
]

Verdict = Literal["yes", "partly", "no", "undecided", "not measured"]
PAPERS = {
    "sga": 'Yang, Bamler & Mandt 2020, "Improving inference for neural image compression"',
    "sga+": "Perugachi-Diaz, Gansekoele & Bhulai 2024, "
    '"Robustly overfitting latents for flexible neural image compression"',
    "c3": "Kim, Bauer, Theis, Schwarz & Dupont 2024, "
    '"C3: High-performance and low-complexity neural compression from a single image or video"',
    "hfd": 'Hoogeboom et al. 2023, "High-fidelity image compression with score-based generative models"',
    "diffc": 'Theis, Salimans, Hoffman & Mentzer 2022, "Lossy compression with Gaussian diffusion"',
    "samples": 'Theis & Yosri 2022, "Algorithms for the communication of samples"',
    "universal": 'Agustsson & Theis 2020, "Universally quantized neural compression"',
    "rdp": 'Theis & Wagner 2021, "A coding theorem for the rate-distortion-perception function"',
    "stochastic": 'Theis & Agustsson 2021, "On the advantages of stochastic encoders"',
    "realistic": 'Theis 2024, "What makes an image realistic?"',
    "lecture": "McAllester, lecture on rate-distortion autoencoders",
    "introduction": 'Yang, Mandt & Theis 2023, "An introduction to neural data compression"',
}


@dataclass(frozen=True)
class Row:
    """A claim that was judged.

    Args:
        claim: what the paper says, in a sentence.
        paper: key of `PAPERS`.
        command: for the measurement.
        result: ours.
        verdict: whether it agrees.
        why: a sentence for any verdict but "yes".
    """

    claim: str
    paper: str
    command: str
    result: str
    verdict: Verdict
    why: str = ""

    def __post_init__(self) -> None:
        if self.paper not in PAPERS:
            raise ValueError(f"there is no paper {self.paper!r}; use one of {', '.join(PAPERS)}, or add it")
        if self.verdict not in get_args(Verdict):
            raise ValueError(f"{self.verdict!r} is no verdict; use one of {', '.join(get_args(Verdict))}")
        if self.verdict != "yes" and not self.why:
            raise ValueError(f"nobody says why {self.claim!r} is {self.verdict!r}; give it a `why`")

    def cells(self) -> list[str]:
        """Claim, command, result, verdict."""
        verdict = self.verdict if self.verdict == "yes" else f"{self.verdict}: {self.why}"
        return [self.claim, f"`{self.command}`", self.result, verdict]


@dataclass(frozen=True)
class Claim:
    """One claim before it is judged; the other arguments are those of `Row`.

    Args:
        result: makes our result from the folder of results.
        agrees: makes a verdict, or whether it is "yes", from the folder of results.
        needs: a results file; without it there is no row.
    """

    claim: str
    paper: str
    command: str
    result: Callable[[Path], str]
    agrees: Callable[[Path], bool | Verdict]
    why: str = ""
    needs: str = ""

    def row(self, results: Path) -> Row:
        """The claim judged by the results; True becomes "yes", False "no"."""
        found = self.agrees(results)
        verdict: Verdict = found if isinstance(found, str) else "yes" if found else "no"
        return Row(self.claim, self.paper, self.command, self.result(results), verdict, self.why)


def table(rows: Sequence[Row]) -> str:
    """The rows as a Markdown table."""
    return markdown("claim | command | our result | agrees", [row.cells() for row in rows])


def counts(rows: Sequence[Row]) -> str:
    """The number of claims with each verdict, in words."""
    found = {verdict: sum(row.verdict == verdict for row in rows) for verdict in get_args(Verdict)}
    each = ", ".join(f"{count} {verdict}" for verdict, count in found.items() if count)
    return f"{len(rows)} claims. Agrees: {each}."


def published_bd_rate(results: Path, codec: str, anchor: str) -> float:
    """BD-rate of one published curve against another, in percent (pchip over the common PSNR interval)."""
    points = published.points(results)
    return metrics.bd_rate(points[anchor]["results"], points[codec]["results"], method="pchip").value


def not_measured(results: Path) -> Verdict:
    """The verdict of a claim without an experiment."""
    return "not measured"


def nothing(results: Path) -> str:
    """The result of a claim without an experiment."""
    return "-"
