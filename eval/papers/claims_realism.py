# SPDX-License-Identifier: Apache-2.0
"""What "What makes an image realistic?" claims of its universal critic, as far as a critic can be computed.

In:  the folder of results. Out: `CLAIMS`. Verdicts and sentences are computed from the results (`claim`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from experiments.realism import critic_report
from papers import findings
from papers.claim import Claim, Verdict

__all__ = ["CLAIMS"]

FILE = "critic"
COMMAND = "python eval/run.py critic"
BLUR, JPEG = "blurred, σ = 1.5 px", "JPEG 10"


def _separation(results: Path, variant: str) -> dict[str, Any]:
    return critic_report.separation(findings.cells(results, FILE), variant)


def _exact(results: Path) -> dict[str, Any]:
    return findings.cells(results, FILE)["exact"]["values"]


def _batches(results: Path) -> dict[str, Any]:
    return findings.cells(results, FILE)["batches"]["values"]


def _sums(results: Path) -> str:
    found = _exact(results)
    return (
        f"Σ P·2^U = {found['expectation']:.6f} on an alphabet of four, summed; for a mixture by construction"
    )


def _holds(results: Path) -> bool:
    found = _exact(results)
    return found["expectation"] <= 1 + 1e-9 and all(p <= 2 ** -float(t) for t, p in found["tail"].items())


def _seen(results: Path) -> str:
    each = []
    for variant in (BLUR, JPEG):
        found = _separation(results, variant)
        of = found["images"]
        each.append(
            f"{variant}: U above the original's in {found['u']} of {of} images, −log₂ P in "
            f"{found['likelihood']}"
        )
    return "; ".join(each)


def _critic_sees(results: Path) -> bool:
    found = [_separation(results, variant) for variant in (BLUR, JPEG)]
    return all(row["u"] > 0.9 * row["images"] and row["likelihood"] < 0.1 * row["images"] for row in found)


def _small(results: Path) -> str:
    found = findings.cells(results, FILE)
    real = [c["values"]["original"] for name, c in found.items() if name.startswith("image ")]
    mean = sum(row["model"] - row["mixture"] for row in real) / len(real)
    below = [_separation(results, variant) for variant in ("blurred, σ = 0.7 px", "flat")]
    missed = ", ".join(f"{row['u']} of {row['images']}" for row in below)
    return f"{mean:+.2f} bits a pixel; a mild blur and a flat image are above it in {missed} images"


def _repeats(results: Path) -> str:
    values = _batches(results)
    size = max(int(name.split()[0]) for name in values)
    different, copies = (values[f"{size} {name}"]["batch"] for name in ("different", "copies"))
    return f"{size} images: {copies:+.2f} bits a pixel for copies of one, {different:+.2f} for different ones"


def _sees_repeats(results: Path) -> bool:
    values = _batches(results)
    sizes = {int(name.split()[0]) for name in values} - {1}
    return all(values[f"{n} copies"]["batch"] > 3 + values[f"{n} different"]["batch"] for n in sizes)


def _is_small(results: Path) -> bool | Verdict:
    """Yes, where every distortion is above the originals; partly, where the strong ones are."""
    mild = [_separation(results, variant) for variant in ("blurred, σ = 0.7 px", "JPEG 90", "flat")]
    if all(row["u"] > 0.9 * row["images"] for row in mild):
        return True
    return "partly" if _critic_sees(results) else False


def _hfd(results: Path) -> str:
    names = ("first stage of HFD", "HFD")
    first, drawn = (_separation(results, name)["difference"]["mean"] for name in names)
    return f"U less the original's, bits a pixel: first stage {first:+.3f}, HFD {drawn:+.3f}"


def _hfd_better(results: Path) -> bool | Verdict:
    """Yes, where what is drawn is as near to real images as the standard error of the mean tells."""
    first, drawn = (_separation(results, name)["difference"] for name in ("first stage of HFD", "HFD"))
    if drawn["mean"] >= first["mean"]:
        return False
    return True if abs(drawn["mean"]) < 2 * drawn["error"] else "partly"


CLAIMS: tuple[Claim, ...] = (
    Claim(
        "Of real items the sum of P·2^U is at most 1, so that a large U is rare.",
        "realistic",
        COMMAND,
        _sums,
        _holds,
        "the sum is above 1.",
        needs="critic.json",
    ),
    Claim(
        "Likelihood alone takes a blurred image for realistic; the critic does not.",
        "realistic",
        COMMAND,
        _seen,
        _critic_sees,
        "the critic does not see it in nine of ten images, or likelihood does.",
        needs="critic.json",
    ),
    Claim(
        "U is smaller for real images than for unrealistic ones (as we understand it).",
        "realistic",
        COMMAND,
        _small,
        _is_small,
        "our P is a small pixel model, which real images do not follow exactly; what neither it nor two "
        "lossless codes can exploit is not seen.",
        needs="critic.json",
    ),
    Claim(
        "The batched critic sees that a generator repeats itself.",
        "realistic",
        COMMAND,
        _repeats,
        _sees_repeats,
        "copies do not stand out.",
        needs="critic.json",
    ),
    Claim(
        "A sample of a diffusion decoder is more realistic than the mean that it starts from "
        "(as we understand it).",
        "realistic",
        COMMAND,
        _hfd,
        _hfd_better,
        "its U is below that of real images, too: the draw is nearer to what P expects than they are.",
        needs="critic.json",
    ),
)
