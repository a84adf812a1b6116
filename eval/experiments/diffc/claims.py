# SPDX-License-Identifier: Apache-2.0
"""Claims of Theis et al. 2022 about DiffC.

In:  the folder of results. Out: `CLAIMS`. Verdicts and sentences are computed from the results (`claim`).
"""

from __future__ import annotations

from pathlib import Path

from experiments.diffc import images_report, report
from papers.claim import Claim, Verdict
from reporting import read_cells

__all__ = ["CLAIMS"]


def _off(results: Path) -> float:
    return report.largest_error(read_cells(results, "diffc"))


def _gaussian_gain(results: Path) -> tuple[float, float, float]:
    """Of the least noise: sigma^2, gain of F over A in dB as measured and in closed form."""
    return report.gains(read_cells(results, "diffc"), "scalar")[-1]


def _gains(results: Path) -> dict[str, float]:
    return images_report.gains(images_report.curves(read_cells(results, "diffc")))


def _prefixes(results: Path) -> list[tuple[float, float]]:
    return images_report.prefix_curve(read_cells(results, "diffc"))


def _closed_forms(results: Path) -> str:
    return f"at most {_off(results):.1f} % off, bits and errors, two sources"


def _three_db(results: Path) -> str:
    s2, measured, exact = _gaussian_gain(results)
    return f"{measured:.3f} dB at σ² = {s2:g} (theory {exact:.3f})"


def _gain_on_images(results: Path) -> str:
    return ", ".join(f"{gain:+.2f} dB at {bpp} bpp" for bpp, gain in _gains(results).items())


def _gain_rises(results: Path) -> bool | Verdict:
    gains = list(_gains(results).values())
    if gains[-1] > 2.7:
        return True
    return "partly" if min(gains) > 0 and gains == sorted(gains) else False


def _progressive(results: Path) -> str:
    return ", ".join(f"{bpp:.2f} bpp {psnr:.2f} dB" for bpp, psnr in _prefixes(results))


def _rises(results: Path) -> bool:
    psnrs = [psnr for _, psnr in _prefixes(results)]
    return psnrs == sorted(psnrs)


CLAIMS: tuple[Claim, ...] = (
    Claim(
        "For Gaussian sources DiffC's rates and errors have closed forms (as we understand it).",
        "diffc",
        "python eval/run.py diffc --parts gaussian",
        _closed_forms,
        lambda results: _off(results) < 2,
        "the simulation is too coarse.",
    ),
    Claim(
        "At high rates the flow's reconstruction gains 3 dB over ancestral sampling: Gaussian source.",
        "diffc",
        "python eval/run.py diffc --parts gaussian",
        _three_db,
        lambda results: abs(_gaussian_gain(results)[1] - 3.01) < 0.1,
        "the noise is not small enough.",
    ),
    Claim(
        "The same on images.",
        "diffc",
        "python eval/run.py diffc --parts curves",
        _gain_on_images,
        _gain_rises,
        "the gain rises with the rate but these rates are not high, the network is small and its steps few.",
    ),
    Claim(
        "Coding is progressive: the beginning of a file is a file of a lower rate (as we understand it).",
        "diffc",
        "python eval/run.py diffc --parts curves",
        _progressive,
        _rises,
        "the quality does not rise with the length.",
    ),
)
