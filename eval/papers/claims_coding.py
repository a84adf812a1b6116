# SPDX-License-Identifier: Apache-2.0
"""What the papers on sent samples, universal quantisation, realism and coding claim.

In:  the folder of results. Out: `CLAIMS`. Verdicts and sentences are computed from the results (`claim`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from papers import findings
from papers.claim import Claim

__all__ = ["CLAIMS"]

SAMPLES = "python eval/run.py reverse-coding"

KLS = (4, 8, 14)


def _orc(results: Path) -> str:
    each = []
    for kl in KLS:
        mrc, pfr, orc = (findings.normal(results, kl, m) for m in ("mrc", "pfr", "orc"))
        each.append(
            f"KL {kl}: errors of the mean {mrc['bias']['mean']:+.2f} and {orc['bias']['mean']:+.2f}; bits "
            f"{orc['bytes_bits']:.2f}, PFR {pfr['bytes_bits']:.2f}, MRC {mrc['bytes_bits']:.2f}"
        )
    return "; ".join(each)


def _orc_agrees(results: Path) -> bool:
    """The same error within 4.5 standard errors, fewer bits."""
    for kl in KLS:
        mrc, pfr, orc = (findings.normal(results, kl, m) for m in ("mrc", "pfr", "orc"))
        error = (mrc["bias"]["error"] ** 2 + orc["bias"]["error"] ** 2) ** 0.5
        same_law = abs(mrc["bias"]["mean"] - orc["bias"]["mean"]) < 4.5 * error
        if not (same_law and orc["bytes_bits"] < min(pfr["bytes_bits"], mrc["bytes_bits"])):
            return False
    return True


def _bound(results: Path) -> str:
    each = [(findings.exact(results, kl), kl) for kl in KLS]
    texts = [f"{v['bytes_bits']:.2f} of {v['bound_bits']:.2f} at KL {kl}" for v, kl in each]
    return f"exact samples of N(m, 1/16), real bytes: {', '.join(texts)}"


def _below_bound(results: Path) -> bool:
    found = [findings.exact(results, kl) for kl in KLS]
    found += [findings.normal(results, kl, method) for kl in KLS for method in ("pfr", "orc")]
    return all(v["bytes_bits"] < v["bound_bits"] for v in found)


def _hybrid(results: Path) -> str:
    ours, plain = (findings.hybrid(results, method) for method in ("hybrid", "pfr"))
    return (
        f"{ours['examined']['mean']:.0f} candidates and {ours['bytes_bits']:.2f} bits, PFR "
        f"{plain['examined']['mean']:.0f} and {plain['bytes_bits']:.2f}"
    )


def _hybrid_agrees(results: Path) -> bool:
    ours, plain = (findings.hybrid(results, method) for method in ("hybrid", "pfr"))
    return ours["examined"]["mean"] < plain["examined"]["mean"] / 10 and ours["exact"] and plain["exact"]


def _dirichlet(results: Path) -> str:
    each = []
    for method in ("orc", "pfr", "mrc", "rejection", "greedy"):
        distance, entropy = findings.dirichlet(results, method, 256)
        each.append(f"{method} {distance:.3f}, {entropy:.2f} bits")
    return f"total variation and entropy at 256 candidates: {'; '.join(each)}"


def _dirichlet_agrees(results: Path) -> bool:
    (orc, few), (_, pfr), (mrc, many) = (findings.dirichlet(results, m, 256) for m in ("orc", "pfr", "mrc"))
    rejection = min(findings.dirichlet(results, m, 256)[0] for m in ("rejection", "greedy"))
    return few < pfr < many and abs(orc / mrc - 1) < 0.05 and rejection > orc


def _universal(results: Path) -> str:
    ours, rounding = (
        findings.universal_gaps(results, name) for name in ("mbt2018-mean-uq-small", "mbt2018-mean-small")
    )
    return (
        f"gap of the losses {min(ours):+.2f} to {max(ours):+.2f} % with real bytes; with rounding "
        f"{min(rounding):+.1f} to {max(rounding):+.1f} %"
    )


def _universal_agrees(results: Path) -> bool:
    return max(map(abs, findings.universal_gaps(results, "mbt2018-mean-uq-small"))) < 0.5


def _scalar(results: Path) -> list[dict[str, Any]]:
    return sorted((p for p in findings.rdp(results) if p["dims"] == 1), key=lambda p: p["rate_bits"])


def _realism(results: Path) -> str:
    return "; ".join(
        f"{p['rate_bits']} bits: {p['distortion']['mean']:.4f} for {p['formula']:.4f}"
        for p in _scalar(results)
        if p["rate_bits"] in (0.5, 1, 2, 4)
    )


def _realism_agrees(results: Path) -> bool:
    """Within 4.5 standard errors, and the law of what is decoded is not refused."""
    return all(
        abs(p["distortion"]["mean"] - p["formula"]) < 4.5 * p["distortion"]["error"] and p["realism_p"] > 1e-5
        for p in findings.rdp(results)
    )


def _code_length(results: Path) -> str:
    points = findings.rdp(results)
    least = min(p["bound_bits"] - p["bytes_bits"] for p in points)
    return f"real bytes, {len(points)} points: above dR everywhere, at least {least:.2f} bits below the bound"


def _code_length_agrees(results: Path) -> bool:
    return all(p["information_bits"] <= p["bytes_bits"] <= p["bound_bits"] for p in findings.rdp(results))


def _twice(results: Path) -> str:
    ratios = [p["distortion"]["mean"] / p["distortion_unrealistic"]["mean"] for p in _scalar(results)]
    return f"{max(ratios):.2f} times at the lowest rate, {min(ratios):.2f} at the least"


def _twice_agrees(results: Path) -> bool:
    return all(p["distortion"]["mean"] <= 2 * p["distortion_unrealistic"]["mean"] for p in _scalar(results))


def _circle(results: Path) -> str:
    found = findings.circle(results)
    two, last = found[2], max(found)
    return (
        f"2 codes: {two['stochastic']:.3f} for {two['deterministic']:.3f}; {last} codes: the deterministic "
        f"encoder has {found[last]['deterministic'] / found[last]['stochastic']:.2f} times the error"
    )


def _circle_agrees(results: Path) -> bool:
    return all(v["stochastic"] < v["deterministic"] for v in findings.circle(results).values())


def _over_model(results: Path) -> list[float]:
    """Percent of real bits over the code length under the model that codes, of whole images."""
    return [
        100 * (8 * v["bytes"] / (v["exact_bits"] + 8 * v["bytes_nets"]) - 1)
        for v in findings.c3_whole(results)
    ]


def _near_code_length(results: Path) -> str:
    over = _over_model(results)
    return f"C3's latents: {min(over):+.3f} to {max(over):+.3f} % of the file, {len(over)} files"


def _is_near_code_length(results: Path) -> bool:
    return max(_over_model(results)) < 0.1


CLAIMS: tuple[Claim, ...] = (
    Claim(
        "ORC sends a sample of MRC's law with fewer bits than PFR.",
        "samples",
        SAMPLES,
        _orc,
        _orc_agrees,
        "the laws differ, or the bits are not fewer.",
    ),
    Claim(
        "PFR and ORC with a Zipf code take at most KL + log₂(KL + 1) + 4 bits.",
        "samples",
        SAMPLES,
        _bound,
        _below_bound,
        "the bound is exceeded.",
    ),
    Claim(
        "The hybrid with dithered quantisation needs far fewer candidates than PFR, and samples exactly.",
        "samples",
        SAMPLES,
        _hybrid,
        _hybrid_agrees,
        "the candidates are not fewer by ten times.",
    ),
    Claim(
        "Dirichlet targets: ORC has MRC's distance at a lower rate than PFR's; rejection is further off.",
        "samples",
        SAMPLES,
        _dirichlet,
        _dirichlet_agrees,
        "the order is another one.",
    ),
    Claim(
        "With universal quantisation the loss at test time is the loss of training (as we understand it).",
        "universal",
        "python eval/run.py universal --data KODAK",
        _universal,
        _universal_agrees,
        "the gap is larger than half a percent.",
    ),
    Claim(
        "Perfect realism is reached at the rate of the rate-distortion-perception function: N(0, 1), "
        "squared error 2 - 2ρ.",
        "rdp",
        "python eval/run.py rdp-gaussian",
        _realism,
        _realism_agrees,
        "the error, or the law, is another.",
    ),
    Claim(
        "The code takes between R and R + log₂(R + 1) + 5 bits.",
        "rdp",
        "python eval/run.py rdp-gaussian",
        _code_length,
        _code_length_agrees,
        "the interval is left.",
    ),
    Claim(
        "At one rate perfect realism at most doubles the squared error (as we understand it).",
        "rdp",
        "python eval/run.py rdp-gaussian",
        _twice,
        _twice_agrees,
        "it more than doubles.",
    ),
    Claim(
        "Under perfect realism a stochastic encoder beats every deterministic one: the circle "
        "(as we understand it).",
        "stochastic",
        "python eval/run.py stochastic-encoders",
        _circle,
        _circle_agrees,
        "it does not for some numbers of codes.",
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
