# SPDX-License-Identifier: Apache-2.0
"""Noise schedules: how much signal is left at time t, as the log-SNR.

Kingma et al., "Variational diffusion models", 2021: a variance-preserving process is described by

    z_t = alpha x + sigma eps,   log_snr = log(alpha^2 / sigma^2),   alpha^2 = sigmoid(log_snr) = 1 - sigma^2

and only the log-SNR matters: a schedule is a function from t in [0, 1], 0 clean and 1 noise, to the log-SNR.
Rectified flow, z = (1 - s) x + s eps, is the same process in other units: z_t / (alpha + sigma) is its z with
s = sigma / (alpha + sigma). So models of either kind can be combined with steps of either kind.

In:  t, a number or tensor in [0, 1]. Out: log-SNR, float64, shape of t; falls from t = 0 to t = 1.
     Everything is computed in float64 on the tensor's device; samplers and decoders keep log-SNRs on the
     CPU, so that no coefficient depends on a GPU's exp and log.
Fails with ``ValueError`` for a time outside [0, 1] or a parameter out of range.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

__all__ = [
    "Cosine",
    "LinearLogSnr",
    "NoiseSchedule",
    "RectifiedFlow",
    "alpha_sigma",
    "flow_log_snr",
    "flow_time",
    "grid",
]


class NoiseSchedule(Protocol):
    """t in [0, 1] -> log-SNR in nats, float64, falling in t."""

    def __call__(self, t: float | Tensor) -> Tensor: ...


@dataclass(frozen=True)
class Cosine:
    """log_snr = -2 (log tan(pi t / 2) + log shift), within +-limit.

    shift = 1 is Nichol & Dhariwal 2021, with alpha = cos(pi t / 2). HFD (Hoogeboom et al. 2023) shifts it
    to less noise, shift < 1, because its first stage already gives the coarse structure. At t = 1/2,
    alpha^2 = 1 / (1 + shift^2).

    Args:
        shift: > 0; above 1 for more noise.
        limit: > 0, of the absolute log-SNR; 15 leaves alpha^2 = 3e-7 at t = 1.
    """

    shift: float = 1.0
    limit: float = 15.0

    def __post_init__(self) -> None:
        if not (0 < self.shift < math.inf and self.limit > 0):
            raise ValueError(f"shift is {self.shift} and limit {self.limit}; both must be positive")

    def __call__(self, t: float | Tensor) -> Tensor:
        angle = math.pi / 2 * _time(t)
        # The tangent's pole at t = 1, and 0 at t = 0, end in the clamp.
        log_snr = -2 * (torch.log(torch.sin(angle) / torch.cos(angle)) + math.log(self.shift))
        return log_snr.clamp(-self.limit, self.limit)


@dataclass(frozen=True)
class LinearLogSnr:
    """log_snr = highest + (lowest - highest) t: every step of a grid removes the same noise in dB.

    Args:
        lowest: at t = 1.
        highest: at t = 0.
    """

    lowest: float = -12.0
    highest: float = 6.0

    def __post_init__(self) -> None:
        if not self.lowest < self.highest:
            raise ValueError(f"lowest is {self.lowest} and highest {self.highest}; lowest must be less")

    def __call__(self, t: float | Tensor) -> Tensor:
        t = _time(t)
        return self.highest * (1 - t) + self.lowest * t


@dataclass(frozen=True)
class RectifiedFlow:
    """log_snr = 2 log((1 - t) / t), within +-limit: t is the flow's own time s (Liu et al. 2022)."""

    limit: float = 15.0

    def __post_init__(self) -> None:
        if not self.limit > 0:
            raise ValueError(f"limit is {self.limit}; it must be positive")

    def __call__(self, t: float | Tensor) -> Tensor:
        return flow_log_snr(_time(t)).clamp(-self.limit, self.limit)


def alpha_sigma(log_snr: float | Tensor, like: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """alpha = sqrt(sigmoid(log_snr)) and sigma = sqrt(sigmoid(-log_snr)); exact at both infinities.

    Args:
        log_snr: any shape; () or (B,) together with `like`.
        like: (B, ...); the results then broadcast to it and have its type and device.

    Returns:
        float64 of the shape of `log_snr`, or as `like` asks.
    """
    log_snr = torch.as_tensor(log_snr, dtype=torch.float64)
    alpha, sigma = torch.sigmoid(log_snr).sqrt(), torch.sigmoid(-log_snr).sqrt()
    if like is None:
        return alpha, sigma
    return _fit(alpha, like), _fit(sigma, like)


def flow_time(log_snr: float | Tensor) -> Tensor:
    """s = sigma / (alpha + sigma) = sigmoid(-log_snr / 2), the time of a rectified flow."""
    return torch.sigmoid(-torch.as_tensor(log_snr, dtype=torch.float64) / 2)


def flow_log_snr(s: float | Tensor) -> Tensor:
    """log_snr = 2 log((1 - s) / s), the inverse of `flow_time`; infinite at s = 0 and s = 1."""
    s = torch.as_tensor(s, dtype=torch.float64)
    return 2 * (torch.log1p(-s) - torch.log(s))


def grid(schedule: NoiseSchedule, steps: int, *, start: float = 1.0, clean: bool = True) -> Tensor:
    """The log-SNRs of a sampler that makes `steps` steps, equally spaced in time.

    Args:
        schedule: of the log-SNR.
        steps: at least 1.
        start: time at which the sampler starts, in (0, 1].
        clean: end at +infinity, where sigma = 0 and the last step returns x_hat itself, instead of the
            schedule's value at t = 0.

    Returns:
        float64 on the CPU, shape (steps + 1,), rising.

    Raises:
        ValueError: a number is out of its range, or the schedule does not rise over the grid because its
            clamp flattens it.
    """
    if steps < 1 or not 0 < start <= 1:
        raise ValueError(f"steps is {steps} and start {start}; steps must be at least 1, start in (0, 1]")
    log_snrs = schedule(start * torch.arange(steps, -1, -1, dtype=torch.float64) / steps)
    if clean:
        log_snrs[-1] = math.inf
    if not bool((log_snrs.diff() > 0).all()):
        raise ValueError(
            f"{schedule} is flat within a grid of {steps} steps from t = {start}, where its clamp holds; "
            "take fewer steps or a wider clamp"
        )
    return log_snrs


def _time(t: float | Tensor) -> Tensor:
    t = torch.as_tensor(t, dtype=torch.float64)
    if not bool(((t >= 0) & (t <= 1)).all()):
        raise ValueError(f"t reaches from {float(t.min())} to {float(t.max())}; times lie in [0, 1]")
    return t


def _fit(values: Tensor, like: Tensor) -> Tensor:
    if values.dim() == 0 and values.device.type == "cpu":  # works with tensors of any device, without a copy
        return values.to(like.dtype)
    if values.dim() == 1:
        values = values.reshape(-1, *[1] * (like.dim() - 1))
    return values.to(like)
