# SPDX-License-Identifier: Apache-2.0
"""Gaussian sources: rates and distortions of DiffC, and the bounds to compare with, in closed form.

Theis, Salimans, Hoffman & Mentzer, "Lossy compression with Gaussian diffusion", 2022; the formulas for
several coordinates were derived here from its definitions. The source is x ~ N(0, diag(lam)), and
z = alpha x + sigma eps is sent, with s2 = sigma^2 = 1 - alpha^2 and v = s2 + (1 - s2) lam. Sums are over
coordinates:

    DiffC          R = 1/2 sum log2(v / s2)
      ancestral    D_A = 2 sum lam s2 / v                       x_hat from the posterior
      flow         D_F = 2 sum lam (1 - sqrt((1 - s2) lam / v))   x_hat = sqrt(lam / v) z
    water-filled   g_i = min(1, theta / lam_i), R = 1/2 sum log2 1/g
                   D_A* = 2 sum lam g,  D_F* = 2 sum lam (1 - sqrt(1 - g)),  D(R) = sum lam g without realism
    RDP optimum    perfect realism at the least rate: r_i = (sqrt(1 + 16 lam_i^2 c^2) - 1) / (4 lam_i c),
                   R = -1/2 sum log2(1 - r^2),  D = 2 sum lam (1 - r)

The reconstructions, except those of D(R), have exactly the source's distribution. At high rate
D_A / D_F -> 2: 3 dB.

In:  lam, (n,) variances > 0, or (..., n) where no water level is computed; s2 in (0, 1).
Out: float64, bits or squared error of one vector. Fails with ``ValueError`` for numbers outside their ranges.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = [
    "RateDistortion",
    "ancestral",
    "discretised_rate_bits",
    "flow",
    "rate_bits",
    "rate_distortion",
    "realism_optimum",
    "water_filled_ancestral",
    "water_filled_flow",
    "water_level",
]


class RateDistortion(NamedTuple):
    """Bits and squared error of one vector."""

    bits: Tensor
    distortion: Tensor


def rate_bits(lam: Tensor, s2: float | Tensor) -> Tensor:
    """I(x; z) = 1/2 sum log2(v / s2), the bits that an ideal channel needs for z."""
    lam, s2 = _checked(lam, s2)
    return 0.5 * torch.log2(_marginal(lam, s2) / s2).sum(-1)


def ancestral(lam: Tensor, s2: float | Tensor) -> RateDistortion:
    """DiffC-A: twice the error of the posterior mean."""
    lam, s2 = _checked(lam, s2)
    return RateDistortion(rate_bits(lam, s2), 2 * (lam * s2 / _marginal(lam, s2)).sum(-1))


def flow(lam: Tensor, s2: float | Tensor) -> RateDistortion:
    """DiffC-F; D_F = 2 (1 - sqrt(1 - s2)) for one standard normal number."""
    lam, s2 = _checked(lam, s2)
    lost = s2 / _marginal(lam, s2)  # 1 - (1 - s2) lam / v
    return RateDistortion(rate_bits(lam, s2), 2 * (lam * _one_minus_root(lost)).sum(-1))


def water_level(lam: Tensor, bits: float) -> float:
    """theta at which reverse water-filling over the variances (n,) spends `bits`."""
    lam, _ = _checked(lam, 0.5)
    _check_bits(bits)
    logs = lam.log2().sort(descending=True).values
    active = torch.arange(1, len(logs) + 1, dtype=torch.float64)
    # With k coordinates above the water it stands at levels[k - 1]; a wrong k spends less than it should.
    levels = (logs.cumsum(0) - 2 * bits) / active
    return float(2 ** levels.max())


def water_filled_ancestral(lam: Tensor, bits: float) -> RateDistortion:
    """DiffC-A* at this rate: a sample of the posterior in each coordinate, D_A* = 2 D(R)."""
    lam, g = _filled(lam, bits)
    return RateDistortion(_bits_of(g), 2 * (lam * g).sum(-1))


def water_filled_flow(lam: Tensor, bits: float) -> RateDistortion:
    """DiffC-F* at this rate."""
    lam, g = _filled(lam, bits)
    return RateDistortion(_bits_of(g), 2 * (lam * _one_minus_root(g)).sum(-1))


def rate_distortion(lam: Tensor, bits: float) -> RateDistortion:
    """Shannon's D(R), without a demand for realism."""
    lam, g = _filled(lam, bits)
    return RateDistortion(_bits_of(g), (lam * g).sum(-1))


def realism_optimum(lam: Tensor, bits: float) -> RateDistortion:
    """The least distortion at this rate among reconstructions with exactly the source's distribution."""
    lam, _ = _checked(lam, 0.5)
    _check_bits(bits)
    low, high = -60.0, 700.0  # log c
    for _ in range(200):
        middle = (low + high) / 2
        if float(_correlation(lam, middle)[0].sum()) < bits:
            low = middle
        else:
            high = middle
    rates, rest = _correlation(lam, (low + high) / 2)
    return RateDistortion(rates.sum(-1), 2 * (lam * rest).sum(-1))


def discretised_rate_bits(lam: Tensor, log_snrs: Tensor) -> Tensor:
    """Bits that DiffC needs for z at log_snrs[-1] in the steps of a grid, with the exact denoiser.

    KL of q(z_T | x) from N(0, 1) at log_snrs[0], then for each step
    (e^s - e^t) / 2 E|x - x_hat_t|^2 nats, where E|x - x_hat_t|^2 = sum lam s2_t / v_t (Ho et al. 2020,
    eq. 8, in log-SNRs). This is the expected rate, over the source, of steps with the posterior's variance.
    With more steps it falls, down to `rate_bits` where z_T is noise.

    Args:
        lam: (n,).
        log_snrs: (steps + 1,), finite, rising.
    """
    log_snrs = log_snrs.double()
    if not bool((log_snrs.diff() > 0).all() and log_snrs.isfinite().all()):
        raise ValueError("log_snrs must be finite and rise; end the grid at the last level that is sent")
    lam, s2 = _checked(lam, torch.sigmoid(-log_snrs[:-1, None]))
    error = (lam * s2 / _marginal(lam, s2)).sum(-1)
    steps_nats = 0.5 * (log_snrs.exp().diff() * error).sum()
    first = s2[0]
    prior_nats = 0.5 * (first + (1 - first) * lam - 1 - first.log()).sum()
    return (steps_nats + prior_nats) / math.log(2)


def _filled(lam: Tensor, bits: float) -> tuple[Tensor, Tensor]:
    level = water_level(lam, bits)
    lam = lam.double()
    return lam, (level / lam).clamp_max(1.0)


def _bits_of(g: Tensor) -> Tensor:
    return -0.5 * g.log2().sum(-1)


def _correlation(lam: Tensor, log_c: float) -> tuple[Tensor, Tensor]:
    """Bits of each coordinate and 1 - r, with q = 4 lam c: r = q / (sqrt(1 + q^2) + 1)."""
    q = 4 * lam * math.exp(log_c)
    root = torch.hypot(torch.ones_like(q), q)
    r = q / (root + 1)
    rest = (1 + 1 / (root + q)) / (root + 1)  # 1 - r without its cancellation: (root + 1 - q) / (root + 1)
    return -0.5 * (torch.log2(rest) + torch.log2(1 + r)), rest


def _marginal(lam: Tensor, s2: Tensor) -> Tensor:
    return s2 + (1 - s2) * lam


def _one_minus_root(y: Tensor) -> Tensor:
    """1 - sqrt(1 - y) without cancellation."""
    return y / (1 + (1 - y).sqrt())


def _checked(lam: Tensor, s2: float | Tensor) -> tuple[Tensor, Tensor]:
    lam, s2 = torch.as_tensor(lam).double(), torch.as_tensor(s2).double()
    if not bool((lam > 0).all()) or lam.dim() == 0:
        raise ValueError(f"lam is {lam.tolist()}; it must be a vector of positive variances")
    if not bool(((s2 > 0) & (s2 < 1)).all()):
        raise ValueError(f"s2 is {s2.tolist()}; the variance of the noise lies between 0 and 1")
    return lam, s2


def _check_bits(bits: float) -> None:
    if not 0 <= bits < math.inf:
        raise ValueError(f"bits is {bits}; a rate is at least 0 and finite")
