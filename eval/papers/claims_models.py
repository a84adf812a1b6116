# SPDX-License-Identifier: Apache-2.0
"""What the papers of C3, HFD and DiffC, and the lecture on autoencoders claim of their codecs.

In:  the folder of results. Out: `CLAIMS`. Verdicts and sentences are computed from the results (`claim`).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from papers import findings
from papers.claim import Claim, Verdict, not_measured, nothing
from papers.claims_refinement import METHODS, best_of, lowered

__all__ = ["CLAIMS"]

RDA = "python eval/run.py rda --data KODAK"


def _macs(results: Path) -> str:
    return f"{max(v['macs_per_pixel'] for v in findings.c3_whole(results)):.0f} (`c3-fast`)"


def _near_vtm(results: Path) -> str:
    theirs = findings.published_bd_rate(results, "C3", "VTM")
    return f"no curve of ours; their published points: BD-rate {theirs:+.1f} % against VTM"


def _kumaraswamy(results: Path) -> Verdict:
    better = best_of(results, "soft-round-kumaraswamy:500", ("noise:500",))
    return "partly" if better else "no"


def _hfd(results: Path) -> str:
    first, drawn = (findings.hfd_quality(results, 1, label) for label in ("first", "1.0"))
    change = 100 * (drawn["swd_mean"] / first["swd_mean"] - 1)
    return (
        f"sliced Wasserstein distance of patches {change:+.0f} % at quality 1 for "
        f"{drawn['psnr_db'] - first['psnr_db']:+.2f} dB, the bytes the same"
    )


def _hfd_nearer(results: Path) -> bool:
    pairs = [
        [findings.hfd_quality(results, q, label)["swd_mean"] for label in ("first", "1.0")]
        for q in (1, 2, 3, 4)
    ]
    return all(drawn < first for first, drawn in pairs)


def _closed_forms(results: Path) -> str:
    return f"at most {findings.gaussian_off(results):.1f} % off, bits and errors, two sources"


def _three_db(results: Path) -> str:
    last = findings.gaussian_gains(results, "scalar")[-1]
    return f"{last['gain_db']:.3f} dB at σ² = {last['s2']:g} (theory {last['exact_db']:.3f})"


def _gain_on_images(results: Path) -> str:
    return ", ".join(f"{gain:+.2f} dB at {bpp} bpp" for bpp, gain in findings.diffc_gains(results).items())


def _gain_rises(results: Path) -> bool | Verdict:
    gains = list(findings.diffc_gains(results).values())
    if gains[-1] > 2.7:
        return True
    return "partly" if min(gains) > 0 and gains == sorted(gains) else False


def _progressive(results: Path) -> str:
    return ", ".join(f"{bpp:.2f} bpp {psnr:.2f} dB" for bpp, psnr in findings.diffc_prefixes(results))


def _rises(results: Path) -> bool:
    psnrs = [psnr for _, psnr in findings.diffc_prefixes(results)]
    return psnrs == sorted(psnrs)


def _gaps(results: Path, what: str) -> list[tuple[float, float]]:
    """Of each model of the lecture the gaps at its lowest and its highest rate."""
    found = [gaps for name, gaps in findings.rda_gaps(results, what).items() if name.startswith("rda-")]
    return [(gaps[min(gaps)], gaps[max(gaps)]) for gaps in found]


def _gap(what: str) -> Callable[[Path], str]:
    def result(results: Path) -> str:
        found = findings.rda_gaps(results, what)
        each = [
            f"{name} {gaps[min(gaps)]:+.1f} % at the low rate, {gaps[max(gaps)]:+.1f} % at the high"
            for name, gaps in found.items()
            if name.startswith("rda-")
        ]
        return f"noise above rounding: {'; '.join(each)}"

    return result


def _gap_is_small(what: str) -> Callable[[Path], bool | Verdict]:
    """Below 5 % everywhere; partly where it is below 10 % at the higher rate."""

    def agrees(results: Path) -> bool | Verdict:
        pairs = _gaps(results, what)
        if max(abs(gap) for pair in pairs for gap in pair) < 5:
            return True
        return "partly" if max(abs(high) for _, high in pairs) < 10 else False

    return agrees


def _against_jpeg(results: Path) -> str:
    rows = findings.rda_pictures(results)
    return "; ".join(
        f"{name} {v['bpp']:.3f} bpp, {v['psnr_rgb_db']:.2f} dB, {v['ms_ssim']:.4f}"
        for name, v in rows.items()
        if name in ("JPEG", "JPEG 2000", "rda-l2-small")
    )


def _better_than_jpeg(results: Path) -> bool | Verdict:
    rows = findings.rda_pictures(results)
    ours = rows["rda-l2-small"]
    better = [
        all(ours[key] > rows[name][key] for key in ("psnr_rgb_db", "psnr_luma_db", "ms_ssim"))
        for name in ("JPEG", "JPEG 2000")
    ]
    return True if all(better) else "partly" if any(better) else False


CLAIMS: tuple[Claim, ...] = (
    Claim(
        "The decoder takes fewer than 3000 multiplications a pixel.",
        "c3",
        "python eval/run.py c3",
        _macs,
        lambda results: max(v["macs_per_pixel"] for v in findings.c3_whole(results)) < 3000,
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
        "Soft rounding around Kumaraswamy noise is better than uniform noise (as we understand it).",
        "c3",
        METHODS,
        lambda results: f"loss: {lowered(results, 'soft-round-kumaraswamy:500', 'noise:500')}",
        _kumaraswamy,
        "measured on the latents of a trained model, not in the fit of C3.",
    ),
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
    Claim(
        "For Gaussian sources DiffC's rates and errors have closed forms (as we understand it).",
        "diffc",
        "python eval/run.py diffc --parts gaussian",
        _closed_forms,
        lambda results: findings.gaussian_off(results) < 2,
        "the simulation is too coarse.",
    ),
    Claim(
        "At high rates the flow's reconstruction gains 3 dB over ancestral sampling: Gaussian source.",
        "diffc",
        "python eval/run.py diffc --parts gaussian",
        _three_db,
        lambda results: abs(findings.gaussian_gains(results, "scalar")[-1]["gain_db"] - 3.01) < 0.1,
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
