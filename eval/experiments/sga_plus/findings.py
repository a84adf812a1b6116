# SPDX-License-Identifier: Apache-2.0
"""What the SGA+ paper claims, and whether our results agree: every verdict is computed.

The claims are those of the abstracts (arXiv:2401.17789, versions 1 and 3) and of the captions of tables and
figures; the paper's own numbers are not quoted. "agrees" and "disagrees" mean that Student's 95 % interval of
the mean over the images leaves out zero on that side; else the images are too few to tell: "undecided". For a
claim that two settings are alike, "agrees" means that the interval holds zero, with a standard error that is
at least the one between two seeds.

In:  `Results`. Out: `Claim`s, of those parts that were measured.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from scipy.interpolate import PchipInterpolator

from experiments.sga_plus.plan import LABELS, METHODS, SEED, SGA, SLOPES, THREE
from experiments.sga_plus.runs import Estimate, Results, Run, bd, difference, estimate, spread

__all__ = ["Claim", "Imitation", "Rate", "claims", "imitations", "loss_distances", "rate_family"]

AGREES, DISAGREES, UNDECIDED = "agrees", "disagrees", "undecided"


@dataclass(frozen=True)
class Claim:
    """One claim.

    Args:
        key: part and a word, for tests.
        text: what the paper says.
        source: where it says so.
        ours: our numbers.
        verdict: agrees, disagrees or undecided.
    """

    key: str
    text: str
    source: str
    ours: str
    verdict: str


def claims(results: Results) -> list[Claim]:
    """All that can be judged."""
    makers: tuple[Callable[[Results], list[Claim]], ...] = (
        _better_than_atanh,
        _best,
        _less_sensitive,
        _interpolation,
        _best_a,
        _three_classes,
        _rates,
    )
    return [claim for make in makers for claim in make(results)]


def lower(values: Estimate) -> str:
    """Verdict on the claim that these are below zero."""
    return {-1: AGREES, 0: UNDECIDED, 1: DISAGREES}[values.sign]


def over_qualities(results: Results, ours: str, theirs: str, steps: int) -> Estimate | None:
    """Difference of the losses by image, mean over the qualities that both methods have."""
    one, other = results.curve(ours, steps), results.curve(theirs, steps)
    common = [q for q in one if q in other]
    if not common:
        return None
    return estimate(np.mean([difference(one[q], other[q]) for q in common], axis=0))


def by_quality(results: Results, ours: str, theirs: str, steps: int) -> dict[int, int]:
    """Sign of the difference at each quality."""
    one, other = results.curve(ours, steps), results.curve(theirs, steps)
    return {q: estimate(difference(one[q], other[q])).sign for q in one if q in other}


def _better_than_atanh(results: Results) -> list[Claim]:
    found = []
    for steps in results.steps:
        for method in ("ssl", "linear", "cosine"):
            gap = over_qualities(results, method, "atanh", steps)
            if gap is None:
                continue
            ours = f"loss {gap.text()}"
            delta = bd(results.curve("atanh", steps), results.curve(method, steps))
            signs = by_quality(results, method, "atanh", steps)
            for sign, word in ((-1, "lower"), (1, "HIGHER")):
                if where := [str(q) for q, each in signs.items() if each == sign]:
                    ours += f", {word} at quality {', '.join(where)}"
            if delta is not None:
                ours += f"; BD-rate {delta.rate.value:+.2f} %, BD-PSNR {delta.psnr.value:+.3f} dB"
            source = "abstract, Table 1" if method == "ssl" else "abstract: SGA+ improves on SGA"
            text = f"{LABELS[method]} is better than atanh (SGA), {steps} steps"
            found.append(Claim(f"curves {method} atanh {steps}", text, source, ours, lower(gap)))
    return found


def _best(results: Results) -> list[Claim]:
    found = []
    for steps in results.steps:
        others = {
            m: gap
            for m in METHODS
            if m not in ("ssl", "atanh") and (gap := over_qualities(results, "ssl", m, steps)) is not None
        }
        if not others:
            continue
        signs = [gap.sign for gap in others.values()]
        verdict = DISAGREES if 1 in signs else AGREES if set(signs) == {-1} else UNDECIDED
        ours = ", ".join(f"{LABELS[m]} {gap.text()}" for m, gap in others.items())
        text = f"SSL is better than STE, noise, linear and cosine, {steps} steps"
        ours = f"its loss minus that of {ours}"
        found.append(Claim(f"curves ssl best {steps}", text, "abstract, Figures 2a and 3a", ours, verdict))
    return found


def _less_sensitive(results: Results) -> list[Claim]:
    found = []
    for field, methods in (("t_max", ("linear", "cosine", "ssl")), ("lr", ("ssl",))):
        for steps in results.steps:
            anchor = results.sweep("atanh", steps, field)
            for method in methods:
                sweep = results.sweep(method, steps, field)
                common = [value for value in sweep if value in anchor]
                if len(common) < 3:
                    continue
                one = spread(sweep[value] for value in common)
                other = spread(anchor[value] for value in common)
                gap = estimate(one - other)
                values = ", ".join(f"{value:g}" for value in common)
                ours = (
                    f"worst minus best of {values}: {LABELS[method]} {one.mean():.2f} %, atanh "
                    f"{other.mean():.2f} %; difference {gap.text()}"
                )
                what = {"t_max": "T_max", "lr": "the learning rate"}[field]
                text = f"{LABELS[method]} is less sensitive to {what} than atanh, {steps} steps"
                source = "abstract, " + {"t_max": "Table 2", "lr": "Table C.3, Figure C.6"}[field]
                key = f"{field} {method} {steps}".replace("t_max", "tmax")
                found.append(Claim(key, text, source, ours, lower(gap)))
    return found


@dataclass(frozen=True)
class Imitation:
    """SSL with the a of another method's slope beside that method.

    Args:
        method: that is imitated.
        a: of SSL.
        ssl, other: runs.
        gap: loss of SSL minus that of the method.
        same: whether every image has the same loss, bits and PSNR.
    """

    method: str
    a: float
    ssl: Run
    other: Run
    gap: Estimate
    same: bool


def seed_error(results: Results, steps: int) -> float:
    """Standard error of the difference between two seeds of SSL; 0 where there is one only."""
    one, other = results.paper("ssl", steps), results.paper("ssl", steps, seed=SEED)
    if one is None or other is None or len(one.images) < 2:
        return 0.0
    return float(np.sqrt(np.mean(difference(other, one) ** 2) / len(one.images)))


def imitations(results: Results, steps: int) -> list[Imitation]:
    """Those that were measured, all with the T_max of SSL."""
    ssl, found = results.sweep("ssl", steps, "a"), []
    for method, a in SLOPES.items():
        t_max = next((run.setting.t_max for run in ssl.values()), None)
        other = results.paper(method, steps, t_max=t_max)
        if a in ssl and other is not None:
            one = ssl[a]
            keys = ("loss_after", "bpp_after", "psnr_db_after")
            same = all(np.array_equal(one.values(key), other.values(key)) for key in keys)
            gap = estimate(difference(one, other), seed_error(results, steps))
            found.append(Imitation(method, a, one, other, gap, same))
    return found


def _interpolation(results: Results) -> list[Claim]:
    found = []
    for steps in results.steps:
        for each in imitations(results, steps):
            ours = "the same bits on every image" if each.same else f"loss {each.gap.text()}"
            if not each.same:
                ours += f" (standard error between seeds {each.gap.least:.2f})"
            verdict = AGREES if each.same or each.gap.sign == 0 else DISAGREES
            text = f"SSL with a = {each.a:.4g} is as good as {LABELS[each.method]}, {steps} steps"
            key = f"a {each.method} {steps}"
            found.append(Claim(key, text, "Table 4; slopes of the formulas", ours, verdict))
    return found


def _best_a(results: Results) -> list[Claim]:
    found = []
    for steps in results.steps:
        sweep = results.sweep("ssl", steps, "a")
        own = results.paper("ssl", steps)
        if len(sweep) < 3 or own is None:
            continue
        least = seed_error(results, steps)
        gaps = {a: estimate(difference(own, run), least) for a, run in sweep.items() if a != own.setting.a}
        signs = [gap.sign for gap in gaps.values()]
        verdict = DISAGREES if 1 in signs else AGREES if set(signs) == {-1} else UNDECIDED
        ours = "its loss minus that of a = " + ", ".join(f"{a:.3g}: {gap.text()}" for a, gap in gaps.items())
        text = f"a = {own.setting.a:g} is the best of {', '.join(f'{a:.3g}' for a in sweep)}, {steps} steps"
        found.append(Claim(f"a best {steps}", text, "the choice of Tables 2 and C.3", ours, verdict))
    return found


def _three_classes(results: Results) -> list[Claim]:
    found = []
    for steps in results.steps:
        for two, three in THREE.items():
            one, other = results.paper(three, steps), results.paper(two, steps)
            if one is None or other is None:
                continue
            gap, gain = estimate(difference(one, other)), estimate(one.change())
            ours = f"against two classes {gap.text()}; against no refinement {gain.text()}"
            text = f"{LABELS[two]} with three classes refines as well as with two, {steps} steps"
            verdict = {-1: AGREES, 0: AGREES, 1: DISAGREES}[gap.sign]
            source = "abstract: can be extended; Table C.5 compares"
            found.append(Claim(f"classes {two} {steps}", text, source, ours, verdict))
    return found


def loss_distances(results: Results, steps: int) -> dict[str, np.ndarray]:
    """By method, how far its own loss is from the true one: mean over the way, in percent, by image."""
    found = {}
    for method in METHODS:
        run = results.paper(method, steps)
        if run is not None and run.looks:
            _, relaxed, true = run.on_the_way()
            found[method] = np.abs(100 * (relaxed / true - 1)).mean(0)
    return found


@dataclass(frozen=True)
class Rate:
    """One model refined for the lambda of another.

    Args:
        quality: of that other model.
        one: the one model, refined for that lambda.
        family: that model, refined for its own.
        unrefined: loss of `one` minus that of the other model unrefined.
        refined: and minus that of the other model refined.
        above: PSNR of `one` minus that of the unrefined models' curve at its bits, dB; None where no image's
            bits are on the curve.
    """

    quality: int
    one: Run
    family: Run
    unrefined: Estimate
    refined: Estimate
    above: Estimate | None


def above_curve(one: Run, curve: Mapping[int, Run]) -> Estimate | None:
    """PSNR of `one` above the unrefined curve, pchip over the logarithm of the rate, image by image."""
    gaps = []
    for name, values in one.images.items():
        pairs = sorted(
            (np.log(r.images[name]["bpp_before"]), r.images[name]["psnr_db_before"]) for r in curve.values()
        )
        rates, psnrs = (np.array(column) for column in zip(*pairs))
        at = np.log(values["bpp_after"])
        if len(rates) > 1 and rates[0] <= at <= rates[-1] and (np.diff(rates) > 0).all():
            gaps.append(values["psnr_db_after"] - float(PchipInterpolator(rates, psnrs)(at)))
    return estimate(gaps) if gaps else None


def rate_family(results: Results, method: str, steps: int) -> list[Rate]:
    """By rising lambda; the one model's own is among them."""
    curve, found = results.curve(method, steps), []
    for quality, family in curve.items():
        own = quality == results.middle
        one = results.paper(method, steps, lmbda=None if own else family.lmbda)
        if one is None:
            continue
        before = family.values("loss_before")
        gap = estimate(100 * (one.values("loss_after") - before) / before)
        above = above_curve(one, curve)
        found.append(Rate(quality, one, family, gap, estimate(difference(one, family)), above))
    return sorted(found, key=lambda rate: rate.family.lmbda) if len(found) > 1 else []


def _rates(results: Results) -> list[Claim]:
    found = []
    for steps in results.steps:
        for method in SGA:
            rates = rate_family(results, method, steps)
            others = [rate for rate in rates if rate.quality != results.middle and rate.above is not None]
            if not others:
                continue
            bpp = [rate.one.mean("bpp_after") for rate in rates]
            signs = [rate.above.sign for rate in others]
            heights = ", ".join(f"{r.above.text(2, ' dB')} at λ = {r.family.lmbda:g}" for r in others)
            ours = (
                f"λ from {rates[0].family.lmbda:g} to {rates[-1].family.lmbda:g} gives {bpp[0]:.3f} to "
                f"{bpp[-1]:.3f} bpp; above the unrefined models' curve by {heights}"
            )
            text = f"{LABELS[method]} moves one model partly along the rate-distortion curve, {steps} steps"
            verdict = AGREES if 1 in signs else DISAGREES if set(signs) == {-1} else UNDECIDED
            source = "abstract of version 1, Figure 3c"
            found.append(Claim(f"rates {method} {steps}", text, source, ours, verdict))
    return found
