# SPDX-License-Identifier: Apache-2.0
"""The probability distributions of reverse channel coding: what a target and a proposal must provide.

A target q needs a log density. A proposal p must also be drawn from the shared randomness of `prng`, so that
the decoder finds candidate n by its number alone: `kind` and `lanes` say which draws one candidate takes, and
`transform` turns them into a point. All transforms use basic arithmetic only and give the same bits on every
device.

    DiagonalGaussian(mean, std)             target or proposal      points (..., D)
    Uniform(low, high)                      target or proposal      points (..., D)
    TruncatedGaussian(mean, std, low, high) target                  points (..., D)
    Finite(log_probs)                       target; as a proposal from integer weights; points (...) int64
    Density(log_density, lanes, ...)        anything else, by its log density and its transform

In:  parameters of shape (*batch, D), or (*batch, A) for an alphabet of A symbols; a distribution without
     batch dimensions is shared by the whole batch. Densities are in nats.
Fails with ``ShapeError`` for parameters of different shapes and ``ValueError`` for NaN, scales that are
     not positive, empty intervals and probabilities that do not sum to one.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable
from typing import Literal, Protocol, TypeVar

import torch
from torch import Tensor

from ..errors import ShapeError

__all__ = [
    "Density",
    "DiagonalGaussian",
    "DrawKind",
    "Finite",
    "Distribution",
    "Proposal",
    "TruncatedGaussian",
    "Uniform",
]

DrawKind = Literal["normal", "uniform", "words"]

_LOG_SQRT_2PI = 0.5 * math.log(2 * math.pi)
_MAX_TOTAL_WEIGHT = 2**31  # a 32-bit word times the total must fit into int64
_NORMALISATION_TOLERANCE = 1e-4  # in nats, of a float32 table of log probabilities


class Distribution(Protocol):
    """A probability distribution of points: a density, without a way to draw."""

    @property
    def batch_shape(self) -> torch.Size: ...

    def at(self, rows: Tensor) -> Distribution:
        """The distributions of some (flat) batch entries, with a dimension of size 1 for candidates."""
        ...

    def log_density(self, points: Tensor) -> Tensor:
        """Nats, one number a point; -inf outside the support."""
        ...


class Proposal(Distribution, Protocol):
    """A distribution that can be drawn from shared randomness."""

    kind: DrawKind

    @property
    def lanes(self) -> int:
        """Number of draws that one point takes."""
        ...

    def transform(self, draws: Tensor) -> Tensor:
        """Draws (..., lanes) of `kind` to points; float64 in, the same bits on every device out."""
        ...


@dataclasses.dataclass(frozen=True)
class DiagonalGaussian:
    """N(mean, diag(std^2)).

    Args:
        mean: (*batch, D).
        std: (*batch, D), > 0.
    """

    mean: Tensor
    std: Tensor
    kind = "normal"

    def __post_init__(self) -> None:
        _check_parameters(self, mean=self.mean, std=self.std)
        _check_positive("std", self.std)

    @property
    def batch_shape(self) -> torch.Size:
        return self.mean.shape[:-1]

    @property
    def lanes(self) -> int:
        return self.mean.shape[-1]

    @property
    def low(self) -> Tensor:
        """Left end of the support in every dimension."""
        return torch.full_like(self.mean, -math.inf)

    @property
    def high(self) -> Tensor:
        """Right end of the support in every dimension."""
        return torch.full_like(self.mean, math.inf)

    @property
    def precision(self) -> Tensor:
        """Curvature of -log density in every dimension: 1 / std^2."""
        return self.std**-2

    def at(self, rows: Tensor) -> DiagonalGaussian:
        return _at(self, rows)

    def log_density(self, points: Tensor) -> Tensor:
        return self.log_density_by_dim(points).sum(-1)

    def log_density_by_dim(self, points: Tensor) -> Tensor:
        """Nats of every coordinate."""
        return -0.5 * ((points - self.mean) / self.std) ** 2 - torch.log(self.std) - _LOG_SQRT_2PI

    def transform(self, draws: Tensor) -> Tensor:
        scaled = draws * self.std.to(draws.dtype)
        return scaled + self.mean.to(draws.dtype)

    def truncated(self, mass: float = 1e-4) -> TruncatedGaussian:
        """This Gaussian without both tails of every dimension; `mass` is their total over all D dimensions.

        The half-width is Phi^-1(1 - a / 2) standard deviations with a = 1 - (1 - mass)^(1 / D).

        Args:
            mass: total variation distance to this Gaussian, in (0, 1).
        """
        if not 0 < mass < 1:
            raise ValueError(f"mass is {mass}; the part cut off lies between 0 and 1, e.g. 1e-4")
        each = -math.expm1(math.log1p(-mass) / self.lanes)
        width = -torch.special.ndtri(torch.tensor(each / 2, dtype=torch.float64)).to(self.mean) * self.std
        return TruncatedGaussian(self.mean, self.std, self.mean - width, self.mean + width)


@dataclasses.dataclass(frozen=True)
class Uniform:
    """The uniform distribution on the box [low, high].

    Args:
        low, high: (*batch, D), finite, low < high.
    """

    low: Tensor
    high: Tensor
    kind = "uniform"

    def __post_init__(self) -> None:
        _check_parameters(self, low=self.low, high=self.high)
        _check_interval(self.low, self.high)

    @property
    def batch_shape(self) -> torch.Size:
        return self.low.shape[:-1]

    @property
    def lanes(self) -> int:
        return self.low.shape[-1]

    @property
    def mean(self) -> Tensor:
        """Centre of the box."""
        return (self.low + self.high) / 2

    @property
    def precision(self) -> Tensor:
        """Curvature of -log density: zero."""
        return torch.zeros_like(self.low)

    def at(self, rows: Tensor) -> Uniform:
        return _at(self, rows)

    def log_density(self, points: Tensor) -> Tensor:
        return self.log_density_by_dim(points).sum(-1)

    def log_density_by_dim(self, points: Tensor) -> Tensor:
        """Nats of every coordinate."""
        inside = (points >= self.low) & (points <= self.high)
        return torch.where(inside, -torch.log(self.high - self.low), -math.inf)

    def transform(self, draws: Tensor) -> Tensor:
        scaled = draws * (self.high.to(draws.dtype) - self.low.to(draws.dtype))
        return scaled + self.low.to(draws.dtype)


@dataclasses.dataclass(frozen=True)
class TruncatedGaussian:
    """N(mean, diag(std^2)) given that it lies in the box [low, high]; a target only.

    Args:
        mean, std, low, high: (*batch, D); std > 0, low < high (infinite ends are fine).
    """

    mean: Tensor
    std: Tensor
    low: Tensor
    high: Tensor

    def __post_init__(self) -> None:
        _check_parameters(self, mean=self.mean, std=self.std)
        _check_parameters(self, finite=False, mean=self.mean, low=self.low, high=self.high)
        _check_positive("std", self.std)
        _check_interval(self.low, self.high)
        if not bool(torch.isfinite(self.log_mass()).all()):
            raise ValueError(
                "an interval holds no mass of its Gaussian in double precision; move the interval "
                "towards the mean or take Uniform"
            )

    @property
    def batch_shape(self) -> torch.Size:
        return self.mean.shape[:-1]

    @property
    def precision(self) -> Tensor:
        """Curvature of -log density in every dimension: 1 / std^2."""
        return self.std**-2

    def log_mass(self) -> Tensor:
        """log(Phi(b) - Phi(a)) in every dimension, a and b being the standardised ends; in float64."""
        a = ((self.low - self.mean) / self.std).to(torch.float64)
        b = ((self.high - self.mean) / self.std).to(torch.float64)
        a, b = torch.where(a > 0, -b, a), torch.where(a > 0, -a, b)  # in the tail that keeps its digits
        log_b = torch.special.log_ndtr(b)
        return log_b + torch.log1p(-torch.exp(torch.special.log_ndtr(a) - log_b))

    def at(self, rows: Tensor) -> TruncatedGaussian:
        return _at(self, rows)

    def log_density(self, points: Tensor) -> Tensor:
        return self.log_density_by_dim(points).sum(-1)

    def log_density_by_dim(self, points: Tensor) -> Tensor:
        """Nats of every coordinate."""
        plain = -0.5 * ((points - self.mean) / self.std) ** 2 - torch.log(self.std) - _LOG_SQRT_2PI
        inside = (points >= self.low) & (points <= self.high)
        return torch.where(inside, plain - self.log_mass().to(plain.dtype), -math.inf)


@dataclasses.dataclass(frozen=True)
class Finite:
    """A distribution on {0, ..., A - 1}. As a proposal it needs integer weights: see `from_weights`.

    Args:
        log_probs: (*batch, A) nats, log-sum-exp 0; -inf is allowed.
        weights: (A,) non-negative integers, total below 2^31, proportional to the probabilities.
    """

    log_probs: Tensor
    weights: Tensor | None = None
    kind = "words"

    def __post_init__(self) -> None:
        if self.log_probs.dim() < 1 or self.log_probs.shape[-1] < 1:
            raise ShapeError(f"log_probs has the shape {tuple(self.log_probs.shape)}; it is (..., symbols)")
        total = torch.logsumexp(self.log_probs.to(torch.float64), -1)
        if not bool((total.abs() < _NORMALISATION_TOLERANCE).all()):
            raise ValueError(
                f"log_probs sum to exp({float(total.flatten()[0])}) or hold NaN; subtract their "
                "log-sum-exp (torch.log_softmax)"
            )

    @classmethod
    def from_probs(cls, probs: Tensor) -> Finite:
        """From probabilities (..., A) that sum to one."""
        return cls(torch.log(probs.to(torch.float64)))

    @classmethod
    def from_weights(cls, weights: Tensor) -> Finite:
        """From integer weights (A,), which both sides hold exactly; only these can be a proposal."""
        if weights.is_floating_point() or weights.dim() != 1 or bool((weights < 0).any()):
            raise ValueError(
                "the weights of a finite proposal must be non-negative integers of shape (A,), so that "
                "encoder and decoder hold the same ones; multiply the probabilities by 2^20, say, and round"
            )
        total = int(weights.sum())
        if not 0 < total < _MAX_TOTAL_WEIGHT:
            raise ValueError(f"the weights sum to {total}; the total lies in [1, 2^31)")
        return cls(torch.log(weights.to(torch.float64)) - math.log(total), weights.to(torch.int64))

    @classmethod
    def uniform(cls, symbols: int, device: torch.device | str | None = None) -> Finite:
        """The uniform distribution on `symbols` symbols."""
        return cls.from_weights(torch.ones(symbols, dtype=torch.int64, device=device))

    @property
    def batch_shape(self) -> torch.Size:
        return self.log_probs.shape[:-1]

    @property
    def lanes(self) -> int:
        return 1

    def at(self, rows: Tensor) -> Finite:
        if not self.batch_shape:
            return self
        part = copy.copy(self)
        object.__setattr__(part, "log_probs", _rows(self.log_probs, rows))
        return part

    def log_density(self, points: Tensor) -> Tensor:
        if not self.batch_shape:
            return self.log_probs[points]
        return torch.take_along_dim(self.log_probs, points[..., None], -1)[..., 0]

    def transform(self, draws: Tensor) -> Tensor:
        if self.weights is None:
            raise ValueError("a finite proposal needs integer weights; make it with Finite.from_weights")
        cumulative = self.weights.cumsum(0)
        position = (draws[..., 0] * int(cumulative[-1])) >> 32
        if int(cumulative[-1]) == len(cumulative) and bool((self.weights == 1).all()):
            return position
        return torch.searchsorted(cumulative, position, right=True)


@dataclasses.dataclass(frozen=True)
class Density:
    """Any other distribution, given by its log density; the same for every batch entry.

    Args:
        log_density: points (..., D) to nats (...); a constant may be missing if `log_bound` of `encode`
            lacks it too (`Code.log_mass` is then off by it).
        lanes: D for a target; for a proposal the draws that a point takes, which may differ from D.
        transform: for a proposal, draws (..., lanes) to points (..., D). It decides what the decoder
            gets: basic arithmetic is the same on every machine, `exp` or `log` are not.
        kind: of the draws, "uniform" in (0, 1), "normal" or "words" (int64, 32 bits).
        low, high: (D,), the box outside of which a target has no mass; the hybrid needs it.
    """

    log_density: Callable[[Tensor], Tensor]
    lanes: int
    transform: Callable[[Tensor], Tensor] | None = None
    kind: DrawKind = "uniform"
    low: Tensor | None = None
    high: Tensor | None = None

    @property
    def batch_shape(self) -> torch.Size:
        return torch.Size()

    def at(self, rows: Tensor) -> Density:
        return self


L = TypeVar("L")


def _at(distribution: L, rows: Tensor) -> L:
    """A distribution with parameters (*batch, D) at some flat batch entries: parameters (rows, 1, D)."""
    if not distribution.batch_shape:
        return distribution
    part = copy.copy(distribution)  # not replace(): the parameters were checked once
    for field in dataclasses.fields(distribution):
        object.__setattr__(part, field.name, _rows(getattr(distribution, field.name), rows))
    return part


def _rows(values: Tensor, rows: Tensor) -> Tensor:
    return values.reshape(-1, values.shape[-1])[rows][:, None]


def _check_parameters(law: object, finite: bool = True, **tensors: Tensor) -> None:
    name = type(law).__name__
    shapes = {key: tuple(value.shape) for key, value in tensors.items()}
    if len(set(shapes.values())) != 1 or min(value.dim() for value in tensors.values()) < 1:
        raise ShapeError(f"{name} has parameters of the shapes {shapes}; they must be one (..., D)")
    for key, value in tensors.items():
        if not value.is_floating_point():
            raise ValueError(f"{key} of {name} has the type {value.dtype}; make it floating-point")
        bad = ~torch.isfinite(value) if finite else torch.isnan(value)
        if bool(bad.any()):
            raise ValueError(f"{key} of {name} holds NaN or infinity at {bad.nonzero()[0].tolist()}")


def _check_positive(name: str, value: Tensor) -> None:
    if not bool((value > 0).all()):
        raise ValueError(f"{name} has the smallest value {float(value.min())}; scales must be positive")


def _check_interval(low: Tensor, high: Tensor) -> None:
    if not bool((low < high).all()):
        raise ValueError("an interval is empty: every low must be below its high")
