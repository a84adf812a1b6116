# SPDX-License-Identifier: Apache-2.0
"""Claims of Hoogeboom et al. 2023 about HFD.

In:  the folder of results. Out: `CLAIMS`. Verdicts and sentences are computed from the results (`claim`).
"""

from __future__ import annotations

from pathlib import Path

from experiments.hfd import report
from papers.claim import Claim, not_measured, nothing
from reporting import read_cells

__all__ = ["CLAIMS"]


def _hfd(results: Path) -> str:
    cells = read_cells(results, "hfd")
    first, drawn = (report.point(cells, 1, label) for label in ("first", "1.0"))
    change = 100 * (drawn["swd_mean"] / first["swd_mean"] - 1)
    return (
        f"sliced Wasserstein distance of patches {change:+.0f} % at quality 1 for "
        f"{drawn['psnr_db'] - first['psnr_db']:+.2f} dB, the bytes the same"
    )


def _hfd_nearer(results: Path) -> bool:
    """At every quality."""
    cells = read_cells(results, "hfd")
    pairs = [
        [report.point(cells, q, k)["swd_mean"] for k in ("first", "1.0")] for q in report.qualities(cells)
    ]
    return all(drawn < first for first, drawn in pairs)


CLAIMS: tuple[Claim, ...] = (
    Claim(
        "A score-based decoder behind a codec that was trained for MSE makes its images more realistic.",
        "hfd",
        "python eval/run.py hfd",
        _hfd,
        _hfd_nearer,
        "the distance does not fall at every quality.",
    ),
    Claim(
        "Its FID is better than those of PO-ELIC and HiFiC at equal rate.",
        "hfd",
        "python eval/run.py hfd",
        nothing,
        not_measured,
        "the weights that FID needs were not there, and our network was trained for a short time on a CPU.",
    ),
    Claim(
        "With few steps rectified flow is better, with many steps diffusion.",
        "hfd",
        "python eval/run.py hfd",
        nothing,
        not_measured,
        "we have trained no rectified flow.",
    ),
)
