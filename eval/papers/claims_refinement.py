# SPDX-License-Identifier: Apache-2.0
"""What Yang et al. 2020 (SGA) and Perugachi-Diaz et al. 2024 (SGA+) claim of refining latents.

In:  the folder of results. Out: `CLAIMS`. Verdicts and sentences are computed from the results (`claim`).
"""

from __future__ import annotations

from pathlib import Path

from papers import findings
from papers.claim import Claim, not_measured, nothing

__all__ = ["CLAIMS", "METHODS", "best_of", "lowered"]

METHODS = "python eval/run.py refine-methods --images KODAK"


def lowered(results: Path, *entries: str) -> str:
    """Losses of entries against unrefined ones."""
    return ", ".join(f"`{e}` {-findings.lowering(results, e):.2f} %" for e in entries)


def _sga(results: Path) -> str:
    rate = findings.refined_bd_rate(results, "ssl:200")
    theirs = findings.published_bd_rate(results, "Yang2020 SGA", "Yang2020 base")
    return (
        f"loss: {lowered(results, 'sga-paper:500')}; BD-rate of `ssl:200` {rate:+.1f} % (their published "
        f"points, with SGA, other models, whole images: {theirs:+.1f} %)"
    )


def _sga_lowers(results: Path) -> bool:
    return findings.lowering(results, "sga-paper:500") > 0 > findings.refined_bd_rate(results, "ssl:200")


OTHERS = ("noise:500", "annealing:500", "ste:500")


def best_of(results: Path, entry: str, others: tuple[str, ...]) -> bool:
    """Whether an entry lowers the loss most."""
    return findings.lowering(results, entry) > max(findings.lowering(results, other) for other in others)


CLAIMS: tuple[Claim, ...] = (
    Claim(
        "Refining the latents of a trained model by SGA lowers the rate at equal quality.",
        "sga",
        METHODS,
        _sga,
        _sga_lowers,
        "the curves cross.",
    ),
    Claim(
        "SGA is better than the straight-through estimator, deterministic annealing and uniform noise "
        "(as we understand it).",
        "sga",
        METHODS,
        lambda results: f"loss: {lowered(results, 'atanh:500', *OTHERS)}",
        lambda results: best_of(results, "atanh:500", OTHERS),
        "another relaxation has a lower loss with our settings.",
    ),
    Claim(
        "Bits-back coding of the hyperlatents saves more on top of SGA.",
        "sga",
        METHODS,
        nothing,
        not_measured,
        "it needs models that are trained for it; the plugin refines models as they are.",
    ),
    Claim(
        "SSL is better than SGA after 500 steps: 24 crops, the papers' settings and ours.",
        "sga+",
        METHODS,
        lambda results: f"loss: {lowered(results, 'ssl-paper:500', 'sga-paper:500', 'ssl:500', 'atanh:500')}",
        lambda results: (
            best_of(results, "ssl-paper:500", ("sga-paper:500",))
            and best_of(results, "ssl:500", ("atanh:500",))
        ),
        "the order is another one.",
    ),
)
