# SPDX-License-Identifier: Apache-2.0
"""Temperatures and learning rates as frozen functions of the step.

In:  step (from 0) and steps (the budget). Out: the value, a float.

The papers' schedules depend on the step alone, so a paper's result at "500 steps" is read out in the
middle of a 2000-step anneal; they are here as published. The others depend on step / steps and reach
their end value with any budget.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

__all__ = ["Constant", "Cosine", "Exponential", "Geometric", "Linear", "StepDecay"]


def _progress(step: int, steps: int) -> float:
    return min(1.0, step / max(1, steps - 1))


@dataclass(frozen=True)
class Constant:
    """The same value at every step."""

    value: float

    def __call__(self, step: int, steps: int) -> float:
        return self.value


@dataclass(frozen=True)
class StepDecay:
    """`value` for the first `share` of the steps, then `value` times `factor`."""

    value: float
    factor: float = 0.1
    share: float = 0.9

    def __call__(self, step: int, steps: int) -> float:
        return self.value * (1.0 if step < self.share * steps else self.factor)


@dataclass(frozen=True)
class Exponential:
    """min(upper, scale * exp(-rate * (step - offset))), not below `lower`; independent of the budget.

    Yang et al. 2020: upper = scale = 0.5, rate = 1e-3, offset = 700. SGA+: upper = scale = 1,
    rate = 1e-3, offset = 0. Deterministic annealing: upper = 0.2, scale = 1, rate = 4e-3.
    Yang & Mandt 2023: upper = scale = 0.5, rate = 5e-4, offset = 200.
    """

    rate: float
    upper: float
    scale: float = 1.0
    offset: float = 0.0
    lower: float = 1e-8

    def __call__(self, step: int, steps: int) -> float:
        value = self.scale * math.exp(-self.rate * (step - self.offset))
        return max(self.lower, min(self.upper, value))


@dataclass(frozen=True)
class Geometric:
    """From `start` to `end` by a constant factor a step."""

    start: float
    end: float

    def __call__(self, step: int, steps: int) -> float:
        return self.start * (self.end / self.start) ** _progress(step, steps)


@dataclass(frozen=True)
class Linear:
    """From `start` to `end` by a constant difference a step."""

    start: float
    end: float

    def __call__(self, step: int, steps: int) -> float:
        return self.start + (self.end - self.start) * _progress(step, steps)


@dataclass(frozen=True)
class Cosine:
    """From `start` to `end` along half a cosine, after a linear warm-up of `warmup` steps."""

    start: float
    end: float = 0.0
    warmup: int = 0

    def __call__(self, step: int, steps: int) -> float:
        fall = 0.5 * (1 + math.cos(math.pi * _progress(step, steps)))
        value = self.end + (self.start - self.end) * fall
        return value * min(1.0, (step + 1) / (self.warmup + 1))
