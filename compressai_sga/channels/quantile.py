# SPDX-License-Identifier: Apache-2.0
"""The normal quantile function with the same bits on every machine: +, -, *, / and sqrt only.

A decoder that maps shared uniforms to a Gaussian (`reverse`, method "hybrid") must find the
encoder's number to the last bit. libm's log and torch's ndtri differ between CPU and CUDA and between
libraries, while IEEE 754 fixes the basic operations and the square root. So this file uses the rational
approximations of Wichura, "Algorithm AS 241: the percentage points of the normal distribution", 1988
(PPND16), with a logarithm made of `frexp` and the series log m = 2 artanh((m - 1) / (m + 1)).

In:  float64 tensors of probabilities, any shape.
Out: quantiles, relative error below 1e-14.
Fails with ``ValueError`` outside the open interval (0, 1).
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["normal_quantile"]

_SPLIT = 0.425  # |p - 1/2| below which the central approximation holds
_TAIL = 5.0  # sqrt(-log p) from which the far one does
_LN2 = 0.6931471805599453
_SQRT_HALF = 0.7071067811865476
_SERIES_TERMS = 12  # of artanh at |s| <= 0.172: the next one is below 2^-60

_CENTRE = (
    (
        2509.0809287301226727,
        33430.575583588128105,
        67265.770927008700853,
        45921.953931549871457,
        13731.693765509461125,
        1971.5909503065514427,
        133.14166789178437745,
        3.387132872796366608,
    ),
    (
        5226.495278852854561,
        28729.085735721942674,
        39307.89580009271061,
        21213.794301586595867,
        5394.1960214247511077,
        687.1870074920579083,
        42.313330701600911252,
        1.0,
    ),
)
_MIDDLE = (
    (
        7.7454501427834140764e-4,
        0.0227238449892691845833,
        0.24178072517745061177,
        1.27045825245236838258,
        3.64784832476320460504,
        5.7694972214606914055,
        4.6303378461565452959,
        1.42343711074968357734,
    ),
    (
        1.05075007164441684324e-9,
        5.475938084995344946e-4,
        0.0151986665636164571966,
        0.14810397642748007459,
        0.68976733498510000455,
        1.6763848301838038494,
        2.05319162663775882187,
        1.0,
    ),
)
_FAR = (
    (
        2.01033439929228813265e-7,
        2.71155556874348757815e-5,
        0.0012426609473880784386,
        0.026532189526576123093,
        0.29656057182850489123,
        1.7848265399172913358,
        5.4637849111641143699,
        6.6579046435011037772,
    ),
    (
        2.04426310338993978564e-15,
        1.4215117583164458887e-7,
        1.8463183175100546818e-5,
        7.868691311456132591e-4,
        0.0148753612908506148525,
        0.13692988092273580531,
        0.59983220655588793769,
        1.0,
    ),
)


def normal_quantile(probability: Tensor) -> Tensor:
    """x with Phi(x) = probability, bit-identical wherever float64 follows IEEE 754.

    Args:
        probability: in the open interval (0, 1), any shape; taken as float64.

    Returns:
        float64, same shape.

    Raises:
        ValueError: a probability outside (0, 1), or NaN.
    """
    p = probability.to(torch.float64)
    if not bool(((p > 0) & (p < 1)).all()):
        raise ValueError("a probability lies outside the open interval (0, 1); clamp it first")
    centred = p - 0.5
    square = 0.180625 - centred * centred
    tail = torch.minimum(p, 1 - p)
    root = torch.sqrt(-_log(tail))
    outer = torch.where(root <= _TAIL, _ratio(_MIDDLE, root - 1.6), _ratio(_FAR, root - _TAIL))
    outer = torch.where(centred < 0, -outer, outer)
    return torch.where(centred.abs() <= _SPLIT, centred * _ratio(_CENTRE, square), outer)


def _ratio(coefficients: tuple[tuple[float, ...], tuple[float, ...]], x: Tensor) -> Tensor:
    """Quotient of two polynomials, highest power first; every product and sum is rounded separately."""
    values = []
    for polynomial in coefficients:
        value = torch.full_like(x, polynomial[0])
        for coefficient in polynomial[1:]:
            value = value * x
            value = value + coefficient
        values.append(value)
    return values[0] / values[1]


def _log(x: Tensor) -> Tensor:
    """Natural logarithm of positive numbers without libm."""
    mantissa, exponent = torch.frexp(x)
    low = mantissa < _SQRT_HALF
    mantissa = torch.where(low, 2 * mantissa, mantissa)
    exponent = exponent.to(torch.float64) - low.to(torch.float64)
    s = (mantissa - 1) / (mantissa + 1)
    square = s * s
    series = torch.zeros_like(s)
    for term in range(_SERIES_TERMS - 1, -1, -1):
        series = series * square
        series = series + 1 / (2 * term + 1)
    return 2 * s * series + exponent * _LN2
