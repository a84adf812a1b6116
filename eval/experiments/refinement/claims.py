# SPDX-License-Identifier: Apache-2.0
"""Claims about refining latents: Yang et al. 2020 (SGA); SGA+ and C3 as far as measured here.

In:  the folder of results. Out: `CLAIMS`. Verdicts and sentences are computed from the results (`claim`).
"""

from __future__ import annotations

from pathlib import Path

from experiments.refinement import curve, methods
from papers.claim import Claim, Verdict, not_measured, nothing, published_bd_rate

__all__ = ["CLAIMS"]

METHODS = "python eval/run.py refine-methods --images KODAK"
OTHERS = ("noise:500", "annealing:500", "ste:500")


def _lowered(results: Path, *entries: str) -> str:
    """Losses of entries against unrefined ones."""
    found = methods.read_results(results)
    return "loss: " + ", ".join(f"`{e}` {-methods.lowering(found, e):.2f} %" for e in entries)


def _best_of(results: Path, entry: str, *others: str) -> bool:
    """Whether an entry lowers the loss most."""
    found = methods.read_results(results)
    return methods.lowering(found, entry) > max(methods.lowering(found, other) for other in others)


def _bd_rate(results: Path) -> float:
    return curve.refined_bd_rate(curve.read_results(results), "ssl:200")


def _sga(results: Path) -> str:
    rate = _bd_rate(results)
    theirs = published_bd_rate(results, "Yang2020 SGA", "Yang2020 base")
    return (
        f"{_lowered(results, 'sga-paper:500')}; BD-rate of `ssl:200` {rate:+.1f} % (their published "
        f"points, with SGA, other models, whole images: {theirs:+.1f} %)"
    )


def _sga_lowers(results: Path) -> bool:
    return methods.lowering(methods.read_results(results), "sga-paper:500") > 0 > _bd_rate(results)


def _kumaraswamy(results: Path) -> Verdict:
    better = _best_of(results, "soft-round-kumaraswamy:500", "noise:500")
    return "partly" if better else "no"


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
        lambda results: _lowered(results, "atanh:500", *OTHERS),
        lambda results: _best_of(results, "atanh:500", *OTHERS),
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
        lambda results: _lowered(results, "ssl-paper:500", "sga-paper:500", "ssl:500", "atanh:500"),
        lambda results: (
            _best_of(results, "ssl-paper:500", "sga-paper:500") and _best_of(results, "ssl:500", "atanh:500")
        ),
        "the order is another one.",
    ),
    Claim(
        "Soft rounding around Kumaraswamy noise is better than uniform noise (as we understand it).",
        "c3",
        METHODS,
        lambda results: _lowered(results, "soft-round-kumaraswamy:500", "noise:500"),
        _kumaraswamy,
        "measured on the latents of a trained model, not in the fit of C3.",
    ),
)
