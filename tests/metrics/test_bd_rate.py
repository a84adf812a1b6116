# SPDX-License-Identifier: Apache-2.0
"""Bjontegaard deltas equal a second implementation on published curves, and refuse what has no delta."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest

from compressai_sga.errors import SgaError
from compressai_sga.metrics import bd_psnr, bd_rate

ROOT = Path(__file__).resolve().parents[2]
ANCHORS = (
    Path(os.environ.get("COMPRESSAI_SGA_DATA", ROOT.parent / "shared" / "data")) / "anchors" / "kodak.json"
)
CURVE = {"bpp": [0.1, 0.2, 0.4, 0.8], "psnr-rgb": [28.0, 31.0, 34.0, 37.0]}

package = pytest.mark.skipif(
    importlib.util.find_spec("bjontegaard") is None,
    reason='the package bjontegaard is missing: pip install ".[test]"',
)


def scaled(rate: float = 1, quality: float = 0) -> dict[str, list[float]]:
    return {"bpp": [rate * b for b in CURVE["bpp"]], "psnr-rgb": [q + quality for q in CURVE["psnr-rgb"]]}


# The second implementation: Hermite cubics with slopes written out here, summed by Gauss-Legendre.


def pchip_slopes(x, y):
    """Fritsch & Butland: weighted harmonic means inside, one-sided three-point formulas at the ends."""
    h, d = np.diff(x), np.diff(y) / np.diff(x)
    slopes = np.zeros_like(y)
    for k in range(1, len(x) - 1):
        if d[k - 1] * d[k] > 0:
            w1, w2 = 2 * h[k] + h[k - 1], h[k] + 2 * h[k - 1]
            slopes[k] = (w1 + w2) / (w1 / d[k - 1] + w2 / d[k])
    for end, (h0, h1, d0, d1) in {0: (h[0], h[1], d[0], d[1]), -1: (h[-1], h[-2], d[-1], d[-2])}.items():
        slope = ((2 * h0 + h1) * d0 - h0 * d1) / (h0 + h1)
        if slope * d0 <= 0:
            slope = 0.0
        elif d0 * d1 <= 0 and abs(slope) > 3 * abs(d0):
            slope = 3 * d0
        slopes[end] = slope
    return slopes


def akima_slopes(x, y):
    """Akima 1970, the differences at the ends continued linearly."""
    d = np.diff(y) / np.diff(x)
    d = np.concatenate(
        [[3 * d[0] - 2 * d[1], 2 * d[0] - d[1]], d, [2 * d[-1] - d[-2], 3 * d[-1] - 2 * d[-2]]]
    )
    left, right = np.abs(d[3:] - d[2:-1]), np.abs(d[1:-2] - d[:-3])
    weight = left + right
    flat = weight < 1e-9 * weight.max()
    mean = (d[1:-2] + d[2:-1]) / 2
    return np.where(flat, mean, (left * d[1:-2] + right * d[2:-1]) / np.where(flat, 1, weight))


def mean_of_hermite(x, y, slopes, low, high):
    nodes, weights = np.polynomial.legendre.leggauss(4)  # exact for cubics
    cuts = np.unique(np.concatenate([[low, high], x[(x > low) & (x < high)]]))
    total = 0.0
    for a, b in zip(cuts, cuts[1:]):
        k = min(np.searchsorted(x, (a + b) / 2) - 1, len(x) - 2)
        h = x[k + 1] - x[k]
        t = ((a + b) / 2 + (b - a) / 2 * nodes - x[k]) / h
        value = (
            (1 + 2 * t) * (1 - t) ** 2 * y[k]
            + t * (1 - t) ** 2 * h * slopes[k]
            + t**2 * (3 - 2 * t) * y[k + 1]
            + t**2 * (t - 1) * h * slopes[k + 1]
        )
        total += (b - a) / 2 * (weights * value).sum()
    return total / (high - low)


def mean_of_polynomial(x, y, low, high):
    centre = x.mean()  # another basis than the package's
    primitive = np.polynomial.Polynomial.fit(x - centre, y, 3).integ()
    return (primitive(high - centre) - primitive(low - centre)) / (high - low)


def second(x_a, y_a, x_t, y_t, method):
    low, high = max(x_a.min(), x_t.min()), min(x_a.max(), x_t.max())
    means = []
    for x, y in ((x_a, y_a), (x_t, y_t)):
        if method == "cubic":
            means.append(mean_of_polynomial(x, y, low, high))
        else:
            slopes = (pchip_slopes if method == "pchip" else akima_slopes)(x, y)
            means.append(mean_of_hermite(x, y, slopes, low, high))
    return means[1] - means[0]


# Published points on Kodak: mbt2018-mean as CompressAI has it, ELIC, JPEG (some of its qualities).
PUBLISHED = {
    "mbt2018-mean": (
        [0.1239, 0.198, 0.3072, 0.4606, 0.6617, 0.9144, 1.2342, 1.6191],
        [27.699, 29.359, 31.129, 32.951, 34.968, 36.911, 38.838, 40.633],
    ),
    "ELIC": (
        [0.1235, 0.1965, 0.3337, 0.4908, 0.7041, 0.8573],
        [29.113, 30.698, 32.784, 34.577, 36.488, 37.624],
    ),
    "JPEG": (
        [0.2212, 0.4231, 0.7289, 0.9644, 1.5718, 2.3502],
        [23.78, 28.042, 30.903, 32.399, 35.239, 37.912],
    ),
}


def check_against_second(anchor, curve, method):
    (rate_a, psnr_a), (rate_t, psnr_t) = (
        np.array(sorted(zip(c["bpp"], c["psnr-rgb"]))).T for c in (anchor, curve)
    )
    log_a, log_t = np.log10(rate_a), np.log10(rate_t)
    found = bd_rate(anchor, curve, method=method)
    assert found.value == pytest.approx(
        100 * (10 ** second(psnr_a, log_a, psnr_t, log_t, method) - 1), rel=1e-7, abs=1e-7
    )
    found = bd_psnr(anchor, curve, method=method)
    assert found.value == pytest.approx(second(log_a, psnr_a, log_t, psnr_t, method), rel=1e-7, abs=1e-7)


@package
@pytest.mark.parametrize("method", ["pchip", "akima", "cubic"])
@pytest.mark.parametrize(("test", "percent", "decibels"), [("ELIC", -23.94, 1.3), ("JPEG", 143.9, -4.88)])
def test_equal_to_a_second_implementation_on_a_few_published_points(test, percent, decibels, method):
    """On curves as smooth as these the methods agree, too."""
    anchor, curve = ({"bpp": r, "psnr-rgb": q} for r, q in (PUBLISHED["mbt2018-mean"], PUBLISHED[test]))
    check_against_second(anchor, curve, method)
    assert bd_rate(anchor, curve, method=method).value == pytest.approx(percent, abs=0.3)
    assert bd_psnr(anchor, curve, method=method).value == pytest.approx(decibels, abs=0.01)


@package
@pytest.mark.parametrize("method", ["pchip", "akima", "cubic"])
def test_equal_to_a_second_implementation_on_the_published_curves(method):
    if not ANCHORS.is_file():
        pytest.skip(f"no published points at {ANCHORS}; set COMPRESSAI_SGA_DATA")
    curves = {k: v["results"] for k, v in json.loads(ANCHORS.read_text(encoding="utf-8")).items()}
    anchor = curves["compressai:compressai-mbt2018-mean_mse_cpu"]
    compared = 0
    for curve in curves.values():
        if len(curve["bpp"]) >= 4:
            check_against_second(anchor, curve, method)
            compared += 1
    assert compared > 60


@package
def test_half_the_bits_and_one_decibel_more():
    assert bd_rate(CURVE, scaled(rate=0.5)).value == pytest.approx(-50)
    assert bd_psnr(CURVE, scaled(quality=1)).value == pytest.approx(1)
    assert bd_rate(CURVE, CURVE).value == bd_psnr(CURVE, CURVE).value == 0


@package
def test_interval_and_overlap_are_reported():
    delta = bd_rate(CURVE, scaled(quality=3))  # 28 to 37 dB against 31 to 40 dB
    assert (delta.low, delta.high) == (31, 37)
    assert delta.overlap == pytest.approx(6 / 12)
    assert delta.value == pytest.approx(-50)
    assert str(delta) == "-50.00 % (31 to 37 dB, overlap 50 %, pchip)"
    delta = bd_psnr(CURVE, scaled(rate=2))  # three octaves, shifted by one
    assert (delta.low, delta.high) == pytest.approx((0.2, 0.8))
    assert delta.overlap == pytest.approx(2 / 4)
    assert delta.value == pytest.approx(-3)
    assert str(delta) == "-3.00 dB (0.2 to 0.8 bpp, overlap 50 %, pchip)"


@package
def test_forms_of_a_curve():
    mixed = {k: [v[i] for i in (2, 0, 3, 1)] for k, v in scaled(rate=0.5).items()}
    nested = {"name": "ours", "description": "", "results": mixed}
    assert bd_rate({"name": "anchor", "results": CURVE}, nested) == bd_rate(CURVE, scaled(rate=0.5))


@package
def test_ms_ssim_is_taken_in_decibels():
    decibels = np.array([8.0, 12.0, 15.0, 17.0])
    ssim = {"bpp": CURVE["bpp"], "ms-ssim-rgb": list(1 - 10 ** (-decibels / 10))}
    other = {"bpp": [0.9 * b for b in CURVE["bpp"]], "ms-ssim-rgb": list(1 - 10 ** (-(decibels + 1) / 10))}
    as_psnr = [{"bpp": c["bpp"], "psnr-rgb": list(q)} for c, q in ((ssim, decibels), (other, decibels + 1))]
    assert bd_rate(ssim, other, metric="ms-ssim-rgb").value == pytest.approx(bd_rate(*as_psnr).value)
    with pytest.raises(SgaError, match="below 1"):
        bd_rate({**ssim, "ms-ssim-rgb": [0.8, 0.9, 0.95, 1.0]}, ssim, metric="ms-ssim-rgb")


@package
def test_a_metric_may_fall_with_the_rate():
    lpips = {"bpp": CURVE["bpp"], "lpips": [0.4, 0.3, 0.2, 0.1]}
    delta = bd_rate(lpips, {**lpips, "bpp": [b / 2 for b in lpips["bpp"]]}, metric="lpips")
    assert delta.value == pytest.approx(-50) and (delta.low, delta.high) == (0.1, 0.4)
    better = {**lpips, "lpips": [v - 0.05 for v in lpips["lpips"]]}
    assert bd_psnr(lpips, better, metric="lpips").value == pytest.approx(-0.05)
    with pytest.raises(SgaError, match="lpips rises with the rate of the anchor"):
        bd_rate({**lpips, "lpips": [0.1, 0.2, 0.3, 0.4]}, lpips, metric="lpips")


@package
@pytest.mark.parametrize(
    ("test", "message"),
    [
        (
            scaled(quality=20),
            "no dB in common: the anchor covers 28 to 37 dB, the test curve 48 to 57 dB",
        ),
        ({k: v[:2] for k, v in CURVE.items()}, "the test curve has 2 points; pchip needs at least 3"),
        (
            {**CURVE, "psnr-rgb": [28.0, 31.0, 30.5, 37.0]},
            r"from \(0.2 bpp, psnr-rgb 31\) to \(0.4 bpp, 30.5\); psnr-rgb must rise",
        ),
        ({**CURVE, "bpp": [0.1, 0.2, 0.2, 0.8]}, "must rise strictly"),
        ({**CURVE, "bpp": [0.0, 0.2, 0.4, 0.8]}, "rates above 0"),
        ({**CURVE, "psnr-rgb": [28.0, 31.0, 34.0, float("inf")]}, "must be finite"),
        ({**CURVE, "bpp": [0.1, 0.2]}, "2 values of bpp and 4 of psnr-rgb"),
        ({"bpp": [1.0], "psnr": [30.0]}, "has no 'psnr-rgb', only 'bpp', 'psnr'"),
    ],
)
def test_what_has_no_delta_is_refused(test, message):
    with pytest.raises(SgaError, match=message):
        bd_rate(CURVE, test)


@package
def test_no_common_rate_is_refused():
    with pytest.raises(
        SgaError, match="no bpp in common: the anchor covers 0.1 to 0.8 bpp, the test curve 10 to 80"
    ):
        bd_psnr(CURVE, scaled(rate=100))


@package
def test_cubic_needs_four_points():
    with pytest.raises(SgaError, match="cubic needs at least 4"):
        bd_rate(CURVE, {k: v[:3] for k, v in CURVE.items()}, method="cubic")


def test_unknown_method_is_refused():
    with pytest.raises(ValueError, match="'spline'; it must be one of pchip, akima, cubic"):
        bd_rate(CURVE, CURVE, method="spline")


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "bjontegaard", None)
    with pytest.raises(SgaError, match=r"package bjontegaard .* pip install 'compressai-sga\[eval\]'"):
        bd_rate(CURVE, CURVE)
