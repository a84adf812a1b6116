# SPDX-License-Identifier: Apache-2.0
"""Claims of the papers on realism and of the lecture on rate-distortion autoencoders.

In:  the folder of results. Out: `CLAIMS`. Verdicts and sentences are computed from the results (`claim`).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from experiments.realism import critic_report, rda, rda_pictures, rdp_gaussian, stochastic_encoders
from papers.claim import Claim, Verdict
from reporting import read_cells

__all__ = ["CLAIMS"]

RDP = "python eval/run.py rdp-gaussian"
CRITIC = "python eval/run.py critic"
RDA = "python eval/run.py rda --data KODAK"
BLUR, JPEG = "blurred, σ = 1.5 px", "JPEG 10"

# --- Perfect realism -----------------------------------------------------------------------------------


def _points(results: Path) -> list[dict[str, Any]]:
    return rdp_gaussian.points(read_cells(results, "rdp_gaussian"))


def _scalar(results: Path) -> list[dict[str, Any]]:
    return [p for p in _points(results) if p["dims"] == 1]


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
        for p in _points(results)
    )


def _code_length(results: Path) -> str:
    points = _points(results)
    least = min(p["bound_bits"] - p["bytes_bits"] for p in points)
    return f"real bytes, {len(points)} points: above dR everywhere, at least {least:.2f} bits below the bound"


def _code_length_agrees(results: Path) -> bool:
    return all(p["information_bits"] <= p["bytes_bits"] <= p["bound_bits"] for p in _points(results))


def _twice(results: Path) -> str:
    ratios = [p["distortion"]["mean"] / p["distortion_unrealistic"]["mean"] for p in _scalar(results)]
    return f"{max(ratios):.2f} times at the lowest rate, {min(ratios):.2f} at the least"


def _twice_agrees(results: Path) -> bool:
    return all(p["distortion"]["mean"] <= 2 * p["distortion_unrealistic"]["mean"] for p in _scalar(results))


def _codes(results: Path) -> dict[int, dict[str, float]]:
    return stochastic_encoders.means(read_cells(results, "stochastic_encoders"))


def _circle(results: Path) -> str:
    found = _codes(results)
    two, last = found[2], max(found)
    return (
        f"2 codes: {two['stochastic']:.3f} for {two['deterministic']:.3f}; {last} codes: the deterministic "
        f"encoder has {found[last]['deterministic'] / found[last]['stochastic']:.2f} times the error"
    )


def _circle_agrees(results: Path) -> bool:
    return all(v["stochastic"] < v["deterministic"] for v in _codes(results).values())


# --- The critic ----------------------------------------------------------------------------------------


def _separation(results: Path, variant: str) -> dict[str, Any]:
    return critic_report.separation(read_cells(results, "critic"), variant)


def _values(results: Path, name: str) -> dict[str, Any]:
    """Of the cells that are of no image: "exact", "batches"."""
    return read_cells(results, "critic")[name]["values"]


def _sums(results: Path) -> str:
    found = _values(results, "exact")
    return (
        f"Σ P·2^U = {found['expectation']:.6f} on an alphabet of four, summed; for a mixture by construction"
    )


def _holds(results: Path) -> bool:
    found = _values(results, "exact")
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
    real = [
        critic_report.u(image["original"]) for image in critic_report.images(read_cells(results, "critic"))
    ]
    mean = sum(real) / len(real)
    below = [_separation(results, variant) for variant in ("blurred, σ = 0.7 px", "flat")]
    missed = ", ".join(f"{row['u']} of {row['images']}" for row in below)
    return f"{mean:+.2f} bits a pixel; a mild blur and a flat image are above it in {missed} images"


def _repeats(results: Path) -> str:
    values = _values(results, "batches")
    size = max(int(name.split()[0]) for name in values)
    different, copies = (values[f"{size} {name}"]["batch"] for name in ("different", "copies"))
    return f"{size} images: {copies:+.2f} bits a pixel for copies of one, {different:+.2f} for different ones"


def _sees_repeats(results: Path) -> bool:
    values = _values(results, "batches")
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


# --- Autoencoders --------------------------------------------------------------------------------------


def _gaps(results: Path, what: str) -> dict[str, list[float]]:
    """Of each model of the lecture, rates rising."""
    found = rda.gaps(read_cells(results, "rda"), what)
    return {name: found[name] for name in sorted(rda.PICTURED)}


def _gap(what: str) -> Callable[[Path], str]:
    def result(results: Path) -> str:
        each = [
            f"{name} {low:+.1f} % at the low rate, {high:+.1f} % at the high"
            for name, (low, *_, high) in _gaps(results, what).items()
        ]
        return f"noise above rounding: {'; '.join(each)}"

    return result


def _gap_is_small(what: str) -> Callable[[Path], bool | Verdict]:
    """Below 5 % everywhere; partly where it is below 10 % at the higher rate."""

    def agrees(results: Path) -> bool | Verdict:
        found = _gaps(results, what).values()
        if max(abs(gap) for (low, *_, high) in found for gap in (low, high)) < 5:
            return True
        return "partly" if max(abs(gaps[-1]) for gaps in found) < 10 else False

    return agrees


def _picture(results: Path) -> dict[str, dict[str, float]]:
    return rda_pictures.last(read_cells(results, "rda"))


def _against_jpeg(results: Path) -> str:
    rows = _picture(results)
    return "; ".join(
        f"{name} {v['bpp']:.3f} bpp, {v['psnr_rgb_db']:.2f} dB, {v['ms_ssim']:.4f}"
        for name, v in rows.items()
        if name in ("JPEG", "JPEG 2000", "rda-l2-small")
    )


def _better_than_jpeg(results: Path) -> bool | Verdict:
    rows = _picture(results)
    ours = rows["rda-l2-small"]
    better = [
        all(ours[key] > rows[name][key] for key in ("psnr_rgb_db", "psnr_luma_db", "ms_ssim"))
        for name in ("JPEG", "JPEG 2000")
    ]
    return True if all(better) else "partly" if any(better) else False


CLAIMS: tuple[Claim, ...] = (
    Claim(
        "Perfect realism is reached at the rate of the rate-distortion-perception function: N(0, 1), "
        "squared error 2 - 2ρ.",
        "rdp",
        RDP,
        _realism,
        _realism_agrees,
        "the error, or the law, is another.",
    ),
    Claim(
        "The code takes between R and R + log₂(R + 1) + 5 bits.",
        "rdp",
        RDP,
        _code_length,
        _code_length_agrees,
        "the interval is left.",
    ),
    Claim(
        "At one rate perfect realism at most doubles the squared error (as we understand it).",
        "rdp",
        RDP,
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
        "Of real items the sum of P·2^U is at most 1, so that a large U is rare.",
        "realistic",
        CRITIC,
        _sums,
        _holds,
        "the sum is above 1.",
        needs="critic.json",
    ),
    Claim(
        "Likelihood alone takes a blurred image for realistic; the critic does not.",
        "realistic",
        CRITIC,
        _seen,
        _critic_sees,
        "the critic does not see it in nine of ten images, or likelihood does.",
        needs="critic.json",
    ),
    Claim(
        "U is smaller for real images than for unrealistic ones (as we understand it).",
        "realistic",
        CRITIC,
        _small,
        _is_small,
        "our P is a small pixel model, which real images do not follow exactly; what neither it nor two "
        "lossless codes can exploit is not seen.",
        needs="critic.json",
    ),
    Claim(
        "The batched critic sees that a generator repeats itself.",
        "realistic",
        CRITIC,
        _repeats,
        _sees_repeats,
        "copies do not stand out.",
        needs="critic.json",
    ),
    Claim(
        "A sample of a diffusion decoder is more realistic than the mean that it starts from "
        "(as we understand it).",
        "realistic",
        CRITIC,
        _hfd,
        _hfd_better,
        "its U is below that of real images, too: the draw is nearer to what P expects than they are.",
        needs="critic.json",
    ),
    Claim(
        "The differential entropy that is trained is near the discrete one (as we understand it).",
        "lecture",
        RDA,
        _gap("bpp"),
        _gap_is_small("bpp"),
        "many latents are rounded to their medians nearly always, which costs less than noise.",
        needs="rda.json",
    ),
    Claim(
        "The distortion with noise is near that with rounding (as we understand it).",
        "lecture",
        RDA,
        _gap("distortion"),
        _gap_is_small("distortion"),
        "many latents are rounded to their medians nearly always, which disturbs the image less than noise.",
        needs="rda.json",
    ),
    Claim(
        "Near 0.12 bpp the autoencoder is better than JPEG and JPEG 2000 in PSNR and MS-SSIM.",
        "lecture",
        RDA,
        _against_jpeg,
        _better_than_jpeg,
        "not better than both in all respects; our model is small and was trained for minutes.",
        needs="rda.json",
    ),
)
