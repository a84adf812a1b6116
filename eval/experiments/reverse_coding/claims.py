# SPDX-License-Identifier: Apache-2.0
"""Claims of Theis & Yosri 2022 about sending samples.

In:  the folder of results. Out: `CLAIMS`. Verdicts and sentences are computed from the results (`claim`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from experiments.reverse_coding import report
from papers.claim import Claim
from reporting import part, read_cells

__all__ = ["CLAIMS"]

COMMAND = "python eval/run.py reverse-coding"
KLS = (4, 8, 14)


def _part(results: Path, name: str) -> dict[str, dict[str, Any]]:
    return part(read_cells(results, "samples"), name)


def _normal(results: Path, kl_bits: int, *methods: str) -> list[dict[str, Any]]:
    values = _part(results, "normal")
    return [report.normal(values, kl_bits, method) for method in methods]


def _both(results: Path) -> list[dict[str, Any]]:
    """The hybrid, and PFR in its example."""
    values = _part(results, "hybrid")
    return [values[method] for method in ("hybrid", "pfr")]


def _at_256(results: Path) -> dict[str, tuple[float, float]]:
    """Total variation, and bits of entropy of the number, by method: means over the targets."""
    values, found = _part(results, "dirichlet"), {}
    for method in ("orc", "pfr", "mrc", "rejection", "greedy"):
        (counts, distance), (_, entropy) = (report.dirichlet_means(values, method, k) for k in (0, 1))
        found[method] = distance[counts.index(256)], entropy[counts.index(256)]
    return found


def _orc(results: Path) -> str:
    each = []
    for kl in KLS:
        mrc, pfr, orc = _normal(results, kl, "mrc", "pfr", "orc")
        each.append(
            f"KL {kl}: errors of the mean {mrc['bias']['mean']:+.2f} and {orc['bias']['mean']:+.2f}; bits "
            f"{orc['bytes_bits']:.2f}, PFR {pfr['bytes_bits']:.2f}, MRC {mrc['bytes_bits']:.2f}"
        )
    return "; ".join(each)


def _orc_agrees(results: Path) -> bool:
    """The same error within 4.5 standard errors, fewer bits."""
    for kl in KLS:
        mrc, pfr, orc = _normal(results, kl, "mrc", "pfr", "orc")
        error = (mrc["bias"]["error"] ** 2 + orc["bias"]["error"] ** 2) ** 0.5
        same_law = abs(mrc["bias"]["mean"] - orc["bias"]["mean"]) < 4.5 * error
        if not (same_law and orc["bytes_bits"] < min(pfr["bytes_bits"], mrc["bytes_bits"])):
            return False
    return True


def _bound(results: Path) -> str:
    each = [(kl, *_normal(results, kl, "exact")) for kl in KLS]
    texts = [f"{v['bytes_bits']:.2f} of {v['bound_bits']:.2f} at KL {kl}" for kl, v in each]
    return f"exact samples of N(m, 1/16), real bytes: {', '.join(texts)}"


def _below_bound(results: Path) -> bool:
    found = [v for kl in KLS for v in _normal(results, kl, "exact", "pfr", "orc")]
    return all(v["bytes_bits"] < v["bound_bits"] for v in found)


def _hybrid(results: Path) -> str:
    ours, plain = _both(results)
    return (
        f"{ours['examined']['mean']:.0f} candidates and {ours['bytes_bits']:.2f} bits, PFR "
        f"{plain['examined']['mean']:.0f} and {plain['bytes_bits']:.2f}"
    )


def _hybrid_agrees(results: Path) -> bool:
    ours, plain = _both(results)
    return ours["examined"]["mean"] < plain["examined"]["mean"] / 10 and ours["exact"] and plain["exact"]


def _dirichlet(results: Path) -> str:
    each = (f"{method} {tv:.3f}, {entropy:.2f} bits" for method, (tv, entropy) in _at_256(results).items())
    return f"total variation and entropy at 256 candidates: {'; '.join(each)}"


def _dirichlet_agrees(results: Path) -> bool:
    (orc, few), (_, pfr), (mrc, many), *others = _at_256(results).values()
    return few < pfr < many and abs(orc / mrc - 1) < 0.05 and min(tv for tv, _ in others) > orc


CLAIMS: tuple[Claim, ...] = (
    Claim(
        "ORC sends a sample of MRC's law with fewer bits than PFR.",
        "samples",
        COMMAND,
        _orc,
        _orc_agrees,
        "the laws differ, or the bits are not fewer.",
    ),
    Claim(
        "PFR and ORC with a Zipf code take at most KL + log₂(KL + 1) + 4 bits.",
        "samples",
        COMMAND,
        _bound,
        _below_bound,
        "the bound is exceeded.",
    ),
    Claim(
        "The hybrid with dithered quantisation needs far fewer candidates than PFR, and samples exactly.",
        "samples",
        COMMAND,
        _hybrid,
        _hybrid_agrees,
        "the candidates are not fewer by ten times.",
    ),
    Claim(
        "Dirichlet targets: ORC has MRC's distance at a lower rate than PFR's; rejection is further off.",
        "samples",
        COMMAND,
        _dirichlet,
        _dirichlet_agrees,
        "the order is another one.",
    ),
)
