# SPDX-License-Identifier: Apache-2.0
"""The bits of a step, and the levels to stop at: a table of errors and a shortest path.

On a ladder of levels, linear in log-SNR, the step from level i to level j > i takes

    KL(i, j) = (SNR_j - SNR_i) / (2 ln 2) D mse_i bits,   mse_i = E |x - x_hat(z_i)|^2 per dimension

(Theis et al. 2022, eq. 8 of Ho et al. 2020 in log-SNRs). So one number a level gives the cost of all steps. A
few long steps cost more because x_hat is out of date; many short steps cost more because each step has bits
beyond its divergence. The path from the first level to the last with the fewest bits is found by dynamic
programming, as in Vonderfecht & Liu 2025, with the bits that are really coded as lengths. Its parts are
shortest paths too, so a sender may stop anywhere. The best number of steps grows with D.

Encoder and decoder must find the same path. So the errors are integers in units of 2^-32, the SNRs come from
`decimal`, whose exp is correctly rounded by specification, and lengths are integers in thousandths of a bit.
Of two paths of the same length, the one with the longer last step is taken.

In:  errors (levels,) int64, measured on training images by `measure_errors`; D; the cost of a step.
Out: level numbers, rising. Fails with ``ValueError`` for tables and numbers out of range.
"""

from __future__ import annotations

import dataclasses
import decimal
import functools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ...diffusion.parametrisations import Denoiser, diffuse

__all__ = ["ERROR_UNIT", "Ladder", "StepCost", "measure_errors", "shortest_path"]

ERROR_UNIT = 2.0**-32
"""Of the errors in a table, squared units of the denoiser."""

_SNR_BITS = 40
_DIGITS = 30
_INV_2_LN2 = 721347520444  # 1 / (2 ln 2) in units of 10^-12
_UNREACHABLE = 1 << 100


@dataclasses.dataclass(frozen=True)
class StepCost:
    """Bits of a step with divergence KL: fixed + (1 + share) KL.

    Args:
        fixed_millibits: of every step: side information, and the channel's loss at its ends.
        share_permille: of the divergence.
    """

    fixed_millibits: int
    share_permille: int


@dataclasses.dataclass(frozen=True)
class Ladder:
    """The levels, with the denoiser's error at each; hashable.

    Args:
        lowest, highest: log-SNRs of the first and the last level.
        errors: mse_i of every level, in units of 2^-32.
    """

    lowest: float
    highest: float
    errors: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.lowest < self.highest or len(self.errors) < 2 or not min(self.errors) > 0:
            raise ValueError(
                f"a ladder from {self.lowest} to {self.highest} with {len(self.errors)} errors, the least "
                f"{min(self.errors, default=None)}; it must rise and have at least two errors, all positive"
            )

    def log_snr(self, level: int) -> float:
        """The log-SNR of a level, counted from 0; the same float on every machine."""
        return self.lowest + (self.highest - self.lowest) * level / (len(self.errors) - 1)

    def kl_millibits(self, start: int, end: int, dims: int) -> int:
        """Expected divergence of a step, in thousandths of a bit."""
        snrs = _snrs(self)
        scaled = (snrs[end] - snrs[start]) * self.errors[start] * dims * _INV_2_LN2
        return scaled // (10**9 << (32 + _SNR_BITS))


@functools.lru_cache(maxsize=32)
def _snrs(ladder: Ladder) -> tuple[int, ...]:
    """SNR of every level in units of 2^-40."""
    with decimal.localcontext(decimal.Context(prec=_DIGITS, rounding=decimal.ROUND_HALF_EVEN)):
        levels = [decimal.Decimal(ladder.log_snr(i)) for i in range(len(ladder.errors))]
        return tuple(int((level.exp() * 2**_SNR_BITS).to_integral_value()) for level in levels)


@functools.lru_cache(maxsize=32)
def shortest_path(
    ladder: Ladder, dims: int, cost: StepCost, steps_limit: int | None = None
) -> tuple[int, ...]:
    """The levels to stop at, from 0 to the last, so that the expected bits are fewest.

    Args:
        ladder: levels and errors.
        dims: D of the image.
        cost: of a step.
        steps_limit: no more steps than this; None for the cheapest number of steps.

    Returns:
        Level numbers, the first one 0.
    """
    if dims < 1 or (steps_limit is not None and steps_limit < 1):
        raise ValueError(f"dims is {dims} and steps_limit {steps_limit}; both must be at least 1")
    count = len(ladder.errors)
    snrs = _snrs(ladder)
    scale = dims * _INV_2_LN2 * (1000 + cost.share_permille)
    unit = 10**12 << (32 + _SNR_BITS)
    lengths = [
        [(snrs[j] - snrs[i]) * ladder.errors[i] * scale // unit + cost.fixed_millibits for i in range(j)]
        for j in range(count)
    ]
    path = _walk(lengths, None)
    if steps_limit is None or len(path) - 1 <= steps_limit:
        return path
    return _walk(lengths, steps_limit)


def _walk(lengths: Sequence[Sequence[int]], steps: int | None) -> tuple[int, ...]:
    """Bellman's recursion over the level where a step ends, and over the number of steps if it is limited."""
    count = len(lengths)
    if steps is None:
        total, come_from = [0] * count, [0] * count
        for j in range(1, count):
            total[j], come_from[j] = min((total[i] + lengths[j][i], i) for i in range(j))
        path = [count - 1]
        while path[-1]:
            path.append(come_from[path[-1]])
        return tuple(reversed(path))
    total = [0] + [_UNREACHABLE] * (count - 1)
    history = []
    for _ in range(steps):
        # Level 0 may be "reached" again, so that fewer steps than the limit are a path as well.
        found = [(0, 0)] + [min((total[i] + lengths[j][i], i) for i in range(j)) for j in range(1, count)]
        total = [length for length, _ in found]
        history.append([origin for _, origin in found])
    path = [count - 1]
    for come_from in reversed(history):
        if path[-1]:
            path.append(come_from[path[-1]])
    return tuple(reversed(path))


@torch.no_grad()
def measure_errors(
    denoiser: Denoiser, x: Tensor, log_snrs: Sequence[float], generator: torch.Generator, *, batch: int = 32
) -> Tensor:
    """mse_i of `Ladder`: the mean squared error of the denoiser at each level.

    Args:
        denoiser: x_hat from z and its level.
        x: (N, ...) training images in the denoiser's units.
        log_snrs: the levels.
        generator: of the noise.
        batch: images at a time.

    Returns:
        (levels,) int64, units of 2^-32, at least 1.
    """
    errors = []
    for log_snr in log_snrs:
        level = torch.tensor(log_snr, dtype=torch.float64)
        total = 0.0
        for part in x.split(batch):
            eps = torch.randn(part.shape, generator=generator, dtype=part.dtype).to(part.device)
            x_hat = denoiser(diffuse(part, eps, level), level)
            total += float((x_hat - part).double().square().sum())
        mse = total / x.numel()
        if not math.isfinite(mse):
            raise ValueError(f"the denoiser's error at the log-SNR {log_snr} is {mse}; check its weights")
        errors.append(max(1, round(mse / ERROR_UNIT)))
    return torch.tensor(errors, dtype=torch.int64)
