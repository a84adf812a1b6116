# SPDX-License-Identifier: Apache-2.0
"""Comparisons between several refinements of SGA+, for its tables, figures and claims.

In:  `Results`. Out: estimates, for the parts that were measured.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from scipy.interpolate import PchipInterpolator

from compressai_sga import relaxations
from experiments.sga_plus.plan import METHODS, SEED, SLOPES, THREE, Setting, config
from experiments.sga_plus.runs import Estimate, Results, Run, difference, estimate

__all__ = [
    "Classes",
    "Imitation",
    "Rate",
    "Shape",
    "above_curve",
    "by_quality",
    "class_pairs",
    "imitations",
    "loss_distances",
    "over_qualities",
    "rate_family",
    "seed_error",
    "shapes",
    "stray_probability",
]


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


@dataclass(frozen=True)
class Shape:
    """SSL with another a, at one quality.

    Args:
        quality, a: of SSL.
        run: itself.
        own: its loss minus that with the paper's a.
        atanh: its loss minus that of atanh; None where atanh was not measured.
    """

    quality: int
    a: float
    run: Run
    own: Estimate
    atanh: Estimate | None


def shapes(results: Results, steps: int) -> list[Shape]:
    """By quality and a, where several a were measured at several qualities."""
    found = []
    for quality, own in results.curve("ssl", steps).items():
        atanh = results.paper("atanh", steps, quality)
        for a, run in results.sweep("ssl", steps, "a", quality).items():
            if run is not own:
                gap = estimate(difference(run, atanh)) if atanh else None
                found.append(Shape(quality, a, run, estimate(difference(run, own)), gap))
    return found if len({each.quality for each in found}) > 1 else []


@dataclass(frozen=True)
class Classes:
    """Three classes beside two, with the same T_max.

    Args:
        method: of two classes.
        two, three: runs.
        gap: loss of three minus that of two.
        temperature: of the last step.
        astray: `stray_probability` of three.
    """

    method: str
    two: Run
    three: Run
    gap: Estimate
    temperature: float
    astray: float


def class_pairs(results: Results) -> list[Classes]:
    """With the papers' settings and with other T_max, by steps, method and T_max."""
    found = []
    for steps in results.steps:
        for two, three in THREE.items():
            for t_max, run in results.sweep(three, steps, "t_max").items():
                other = results.paper(two, steps, t_max=t_max)
                if other is not None:
                    last = config(run.setting).temperature(steps - 1, steps)
                    gap, astray = estimate(difference(run, other)), stray_probability(run.setting)
                    found.append(Classes(two, other, run, gap, last, astray))
    return found


def stray_probability(setting: Setting) -> float:
    """Of rounding an integer to one of its neighbours at the last temperature: softmax(log-weights / T)."""
    made = config(setting)
    log_weights = {
        "linear3": partial(relaxations.linear3_log_weight, r=made.r, n=made.n),
        "cosine3": partial(relaxations.cosine3_log_weight, r=made.r, n=made.n),
        "ssl3": partial(relaxations.ssl3_log_weight, r=made.r, n=made.n, a=made.a),
    }
    weights = log_weights[setting.method](torch.tensor([1.0, 0.0, -1.0], dtype=torch.float64))
    temperature = made.temperature(setting.steps - 1, setting.steps)
    return 1 - float(torch.softmax(weights / temperature, 0)[1])


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
