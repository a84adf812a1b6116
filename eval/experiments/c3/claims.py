# SPDX-License-Identifier: Apache-2.0
"""Claims of Kim et al. 2024 about C3, and of Yang, Mandt & Theis 2023 about entropy coders.

In:  the folder of results. Out: `CLAIMS`. Verdicts and sentences are computed from the results (`claim`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from experiments.c3 import report
from papers.claim import Claim, not_measured, published_bd_rate
from reporting import read_cells

__all__ = ["CLAIMS"]


def _whole(results: Path) -> list[dict[str, Any]]:
    return report.whole(read_cells(results, "c3"))


def _macs(results: Path) -> str:
    return f"{max(v['macs_per_pixel'] for v in _whole(results)):.0f} (`c3-fast`)"


def _near_vtm(results: Path) -> str:
    theirs = published_bd_rate(results, "C3", "VTM")
    return f"no curve of ours; their published points: BD-rate {theirs:+.1f} % against VTM"


def _over_model(results: Path) -> list[float]:
    """Percent of real bits over the code length under the model that codes, of whole images."""
    return [100 * (8 * v["bytes"] / (v["exact_bits"] + 8 * v["bytes_nets"]) - 1) for v in _whole(results)]


def _near_code_length(results: Path) -> str:
    over = _over_model(results)
    return f"C3's latents: {min(over):+.3f} to {max(over):+.3f} % of the file, {len(over)} files"


def _is_near_code_length(results: Path) -> bool:
    return max(_over_model(results)) < 0.1


CLAIMS: tuple[Claim, ...] = (
    Claim(
        "The decoder takes fewer than 3000 multiplications a pixel.",
        "c3",
        "python eval/run.py c3",
        _macs,
        lambda results: max(v["macs_per_pixel"] for v in _whole(results)) < 3000,
        "our architecture takes more.",
    ),
    Claim(
        "On Kodak the rate-distortion curve lies near that of VTM.",
        "c3",
        "python eval/run.py c3-kodak --presets c3-paper --device cuda --batch 6",
        _near_vtm,
        not_measured,
        "complete fits of 24 whole images take a GPU; see `eval/gpu_runs.md`.",
    ),
    Claim(
        "An entropy coder takes hardly more than the code length under its model (as we understand it).",
        "introduction",
        "python eval/run.py c3",
        _near_code_length,
        _is_near_code_length,
        "it takes more than a thousandth.",
    ),
)
