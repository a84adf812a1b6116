# SPDX-License-Identifier: Apache-2.0
"""Bjontegaard deltas between two rate-distortion curves, and the share of the curves that they cover.

Bjontegaard, "Calculation of average PSNR differences between RD-curves", VCEG-M33, 2001. Between the ends of
the interval that both curves cover,

    BD-rate = 10^(mean over q of log10 R_test(q) - log10 R_anchor(q)) - 1       q: quality, dB
    BD-PSNR = mean over log10 R of q_test(R) - q_anchor(R)                      R: rate, bits a pixel

R(q) and q(R) run through the points. `method` says how: "pchip" (the default: monotone where the points
are, as in the reference software of HEVC and VVC), "akima" (Herglotz et al. 2022, arXiv:2202.12565, who find
it closest to densely sampled curves), "cubic" (one polynomial, Bjontegaard's own: exact for 4 points only).
The package `bjontegaard` computes the numbers; this file adds the checks that it leaves to its user.

A delta says nothing about the parts that only one curve covers, so it comes with its interval and `overlap`.
In:  curves in CompressAI's form {"bpp": [...], "psnr-rgb": [...]}, or a dict with that under "results";
     points in any order.
Out: `Delta`.
Fails with ``SgaError`` without the package, for too few points, for curves that do not rise (or fall, as
lpips does) strictly with the rate, and where the curves have no interval in common.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from types import ModuleType
from typing import Any, Literal, get_args

import numpy as np

from ..errors import SgaError

__all__ = ["Delta", "bd_psnr", "bd_rate"]

Interpolation = Literal["pchip", "akima", "cubic"]
_LEAST = {"pchip": 3, "akima": 3, "cubic": 4}  # two points would be a straight line under another name


@dataclass(frozen=True)
class Delta:
    """A Bjontegaard delta and the interval that it was averaged over.

    Args:
        value: BD-rate in percent, or BD-PSNR in the metric's unit.
        unit: "%" or the metric's.
        low: lower end of the common interval: quality for a BD-rate, bits a pixel for a BD-PSNR.
        high: upper end.
        over: the unit of low and high.
        overlap: length of the common interval over that of the interval that either curve covers, 0 to 1;
            for a BD-PSNR on the axis of log rate.
        method: of interpolation.
    """

    value: float
    unit: str
    low: float
    high: float
    over: str
    overlap: float
    method: str

    def __str__(self) -> str:
        return (
            f"{self.value:+.2f} {self.unit} ({self.low:.4g} to {self.high:.4g} {self.over}, "
            f"overlap {100 * self.overlap:.0f} %, {self.method})"
        )


def bd_rate(
    anchor: Mapping[str, Any],
    test: Mapping[str, Any],
    *,
    metric: str = "psnr-rgb",
    method: Interpolation = "pchip",
) -> Delta:
    """Mean change of the rate at equal quality, from `anchor` to `test`, in percent; negative is better.

    Args:
        anchor: the curve to compare with.
        test: the curve in question.
        metric: key of the quality. MS-SSIM is taken in dB, -10 log10(1 - MS-SSIM).
        method: of interpolation, see the head of the file.

    Raises:
        SgaError: see the head of the file.
    """
    package = _package(method)
    (rate_a, quality_a), (rate_t, quality_t), sign = _curves(anchor, test, metric, method)
    low, high, overlap = _common(quality_a, quality_t, lambda q: sign * q, _unit(metric))
    value = package.bd_rate(
        rate_a, quality_a, rate_t, quality_t, method, require_matching_points=False, min_overlap=0
    )
    return Delta(float(value), "%", low, high, _unit(metric), overlap, method)


def bd_psnr(
    anchor: Mapping[str, Any],
    test: Mapping[str, Any],
    *,
    metric: str = "psnr-rgb",
    method: Interpolation = "pchip",
) -> Delta:
    """Mean change of the quality at equal rate, from `anchor` to `test`, in the metric's unit.

    Arguments and errors are those of `bd_rate`.
    """
    package = _package(method)
    (rate_a, quality_a), (rate_t, quality_t), sign = _curves(anchor, test, metric, method)
    low, high, overlap = _common(np.log10(rate_a), np.log10(rate_t), lambda r: 10**r, "bpp")
    value = package.bd_psnr(
        rate_a, quality_a, rate_t, quality_t, method, require_matching_points=False, min_overlap=0
    )
    return Delta(sign * float(value), _unit(metric), low, high, "bpp", overlap, method)


def _package(method: str) -> ModuleType:
    if method not in get_args(Interpolation):
        raise ValueError(f"method is {method!r}; it must be one of {', '.join(get_args(Interpolation))}")
    try:
        import bjontegaard
    except ImportError as error:
        raise SgaError(
            f"Bjontegaard deltas need the package bjontegaard ({error}); pip install 'compressai-sga[eval]'"
        ) from error
    return bjontegaard


def _unit(metric: str) -> str:
    return "dB" if metric.startswith(("psnr", "ms-ssim")) else metric


Points = tuple[np.ndarray, np.ndarray]


def _curves(
    anchor: Mapping[str, Any], test: Mapping[str, Any], metric: str, method: str
) -> tuple[Points, Points, int]:
    """Both curves sorted by rate, with the sign that makes their quality rise."""
    curves, signs = [], []
    for name, curve in (("anchor", anchor), ("test", test)):
        rate, quality = _points(curve, metric, name)
        if len(rate) < _LEAST[method]:
            raise SgaError(
                f"the {name} curve has {len(rate)} points; {method} needs at least {_LEAST[method]}: measure "
                "more qualities"
            )
        rises = bool(quality[-1] > quality[0])
        for here, after in pairwise(zip(rate, quality)):
            if after[0] <= here[0] or (after[1] > here[1]) != rises or after[1] == here[1]:
                raise SgaError(
                    f"the {name} curve goes from ({here[0]:.6g} bpp, {metric} {here[1]:.6g}) to "
                    f"({after[0]:.6g} bpp, {after[1]:.6g}); {metric} must {'rise' if rises else 'fall'} "
                    "strictly with the rate: leave one of the two out"
                )
        curves.append((rate, quality))
        signs.append(1 if rises else -1)
    if signs[0] != signs[1]:
        does = {1: "rises", -1: "falls"}
        raise SgaError(
            f"{metric} {does[signs[0]]} with the rate of the anchor and {does[signs[1]]} with that of the "
            "test curve; check that both hold the same metric"
        )
    (rate_a, quality_a), (rate_t, quality_t) = curves
    return (rate_a, signs[0] * quality_a), (rate_t, signs[0] * quality_t), signs[0]


def _points(curve: Mapping[str, Any], metric: str, name: str) -> Points:
    columns: Mapping[str, Sequence[float]] = curve.get("results", curve)
    for key in ("bpp", metric):
        if key not in columns:
            raise SgaError(
                f"the {name} curve has no {key!r}, only {', '.join(map(repr, columns))}; name another metric"
            )
    rate, quality = (np.asarray(columns[key], dtype=np.float64) for key in ("bpp", metric))
    if rate.shape != quality.shape or rate.ndim != 1:
        raise SgaError(
            f"the {name} curve has {rate.size} values of bpp and {quality.size} of {metric}; it must have as "
            "many of one as of the other"
        )
    if metric.startswith("ms-ssim"):
        if not (quality < 1).all():
            raise SgaError(f"the {name} curve has {metric} {quality.max():.6g}; in dB it must be below 1")
        quality = -10 * np.log10(1 - quality)
    if not (np.isfinite(rate).all() and np.isfinite(quality).all() and (rate > 0).all()):
        raise SgaError(
            f"the {name} curve has bpp {list(rate)} and {metric} {list(quality)}; all must be finite and "
            "rates above 0: leave the other points out"
        )
    order = np.lexsort((quality, rate))
    return rate[order], quality[order]


def _common(
    a: np.ndarray, b: np.ndarray, shown: Callable[[float], float], axis: str
) -> tuple[float, float, float]:
    """The ends of the interval that both curves cover, and its share of the interval that either covers."""
    low, high = max(a.min(), b.min()), min(a.max(), b.max())
    if low >= high:
        spans = (sorted((shown(c.min()), shown(c.max()))) for c in (a, b))
        anchor, test = (f"{least:.4g} to {most:.4g} {axis}" for least, most in spans)
        raise SgaError(
            f"the curves have no {axis} in common: the anchor covers {anchor}, the test curve {test}; "
            "measure qualities in between"
        )
    overlap = (high - low) / (max(a.max(), b.max()) - min(a.min(), b.min()))
    least, most = sorted((shown(low), shown(high)))
    return float(least), float(most), float(overlap)
