# SPDX-License-Identifier: Apache-2.0
"""The density ratio of target and proposal: its logarithm and supremum, and the KL divergence.

Everything in reverse channel coding depends on r(z) = q(z) / p(z), with target q and proposal p:
KL(q || p) = E_q[log r] sets the cost, and sup r = 1 / w_min tells how long exact sampling may take.
Where the log densities are quadratic in each dimension on an interval (Gaussian, truncated Gaussian,
uniform), log r is quadratic too, so its supremum is at the vertex or at an end:

    x* = (q_prec q_mean - p_prec p_mean) / (q_prec - p_prec),
    two Gaussians: sup log r = log(p_std / q_std) + (q_mean - p_mean)^2 / (2 (p_std^2 - q_std^2)).

In:  two of `distributions`, batch shapes that broadcast. Out: nats (`log_ratio_bound`) or bits.
Fails with ``ShapeError`` for different dimensions, ``ValueError`` for a target with mass where the proposal
has
     none, and for pairs without a closed form.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ..errors import ShapeError
from .distributions import (
    Density,
    DiagonalGaussian,
    Distribution,
    Finite,
    Proposal,
    TruncatedGaussian,
    Uniform,
)

__all__ = ["check_pair", "divergence_bits", "log_ratio_bound", "ratio_scorer"]

_LOG_SQRT_2PI = 0.5 * math.log(2 * math.pi)
_NEGLIGIBLE_MASS = 1e-12  # of a Gaussian target outside a box: no experiment could tell

Quadratic = DiagonalGaussian | TruncatedGaussian | Uniform


def check_pair(target: Distribution, proposal: Proposal) -> torch.Size:
    """Checks that the target is absolutely continuous with respect to the proposal, where that is known.

    Returns:
        The broadcast batch shape.

    Raises:
        ShapeError: different dimensions, or batch shapes that do not broadcast.
        ValueError: target mass outside the support of the proposal; a proposal that cannot be drawn.
    """
    if not hasattr(proposal, "transform") or getattr(proposal, "transform", None) is None:
        raise ValueError(
            f"{type(proposal).__name__} cannot be drawn from shared randomness; as a proposal take "
            "DiagonalGaussian, Uniform, Finite.from_weights or a Density with a transform"
        )
    try:
        batch_shape = torch.broadcast_shapes(target.batch_shape, proposal.batch_shape)
    except RuntimeError as error:
        raise ShapeError(
            f"the target has the batch shape {tuple(target.batch_shape)}, the proposal "
            f"{tuple(proposal.batch_shape)}; they must broadcast"
        ) from error
    if isinstance(target, Finite) or isinstance(proposal, Finite):
        _check_finite(target, proposal)
    elif isinstance(target, Quadratic) and isinstance(proposal, Quadratic):
        if target.mean.shape[-1] != proposal.lanes:
            raise ShapeError(
                f"the target has {target.mean.shape[-1]} dimensions, the proposal {proposal.lanes}"
            )
        _check_support(target, proposal)
    return batch_shape


def log_ratio_bound(target: Distribution, proposal: Proposal) -> Tensor:
    """sup_z log q(z) / p(z) = -log w_min in nats, +inf where the ratio is unbounded.

    Returns:
        float64, of the broadcast batch shape.

    Raises:
        ValueError: no closed form is known for this pair.
    """
    check_pair(target, proposal)
    if isinstance(target, Finite) and isinstance(proposal, Finite):
        return _finite_log_ratio(target, proposal).amax(-1)
    if isinstance(target, Quadratic) and isinstance(proposal, Quadratic):
        return _quadratic_bound(target, proposal).sum(-1)
    raise ValueError(_no_closed_form("bound of the density ratio", target, proposal, "log_bound"))


def divergence_bits(target: Distribution, proposal: Proposal) -> Tensor:
    """KL(target || proposal) in bits, in closed form.

    Returns:
        float64, of the broadcast batch shape.

    Raises:
        ValueError: no closed form is known for this pair.
    """
    check_pair(target, proposal)
    if isinstance(target, Finite) and isinstance(proposal, Finite):
        log_ratio = _finite_log_ratio(target, proposal)
        terms = torch.exp(target.log_probs.to(torch.float64)) * log_ratio
        return torch.where(log_ratio == -math.inf, 0.0, terms).sum(-1) / math.log(2)
    if isinstance(target, Quadratic) and isinstance(proposal, Quadratic):
        # E_q of a quadratic: its value at the mean of q minus half the curvature times the variance.
        mean, variance = _moments(target)
        nats = _plain_log_density(target, mean) - 0.5 * _double(target.precision) * variance
        nats = nats - _plain_log_density(proposal, mean) + 0.5 * _double(proposal.precision) * variance
        return nats.sum(-1) / math.log(2)
    raise ValueError(_no_closed_form("KL divergence", target, proposal, "kl_bits"))


def ratio_scorer(target: Distribution, proposal: Proposal, dtype: torch.dtype) -> Callable[..., Tensor]:
    """log q / p of candidates, as a function of (draws (R, n, lanes), target rows, proposal rows).

    Two Gaussians need no transform: with draws e, m = (q_mean - p_mean) / p_std and s = q_std / p_std
    the result is sum(e^2 (1 - s^-2) / 2 + e m / s^2) + constant, two small matrix products.

    Args:
        target, proposal: distributions.
        dtype: of the draws, float32 or float64; int64 words are taken as they come.

    Returns:
        A function with values of shape (R, n), nats.
    """
    if isinstance(target, DiagonalGaussian) and isinstance(proposal, DiagonalGaussian):
        return _gaussian_scorer(target, proposal, dtype)
    if isinstance(target, Finite) and isinstance(proposal, Finite) and not proposal.batch_shape:
        table = _finite_log_ratio(target, proposal).reshape(-1)
        symbols = target.log_probs.shape[-1]

        def score_finite(draws: Tensor, target_rows: Tensor, proposal_rows: Tensor) -> Tensor:
            return table[proposal.transform(draws) + (target_rows * symbols)[:, None]]

        return score_finite

    def score(draws: Tensor, target_rows: Tensor, proposal_rows: Tensor) -> Tensor:
        here = proposal.at(proposal_rows)
        points = here.transform(draws)
        log_ratio = target.at(target_rows).log_density(points) - here.log_density(points)
        if log_ratio.shape != draws.shape[:-1]:
            raise ShapeError(
                f"log densities of points {tuple(points.shape)} have the shape {tuple(log_ratio.shape)}, not "
                f"{tuple(draws.shape[:-1])}; sum them over the last dimension"
            )
        return log_ratio

    return score


# --- Two Gaussians -----------------------------------------------------------------------------


def _gaussian_scorer(
    target: DiagonalGaussian, proposal: DiagonalGaussian, dtype: torch.dtype
) -> Callable[..., Tensor]:
    same_scale = torch.equal(*torch.broadcast_tensors(target.std, proposal.std))

    def score(draws: Tensor, target_rows: Tensor, proposal_rows: Tensor) -> Tensor:
        q_mean, q_std = _gathered(target, target_rows)
        p_mean, p_std = _gathered(proposal, proposal_rows)
        ratio = q_std / p_std
        shift = (q_mean - p_mean) / p_std
        linear = shift / ratio**2
        constant = (-torch.log(ratio) - 0.5 * shift * linear).sum(-1, keepdim=True)
        log_ratio = _products(draws, linear.to(dtype)) + constant.to(dtype)
        if not same_scale:
            log_ratio = log_ratio + _products(draws * draws, ((1 - ratio**-2) / 2).to(dtype))
        return log_ratio

    return score


def _gathered(law: DiagonalGaussian, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and scale (rows or 1, D) in float64."""
    pick = rows if law.batch_shape else rows[:1] * 0
    lanes = law.lanes
    return tuple(_double(value).reshape(-1, lanes)[pick] for value in (law.mean, law.std))


def _products(draws: Tensor, coefficients: Tensor) -> Tensor:
    """(R, n, D) times (R or 1, D), summed over D."""
    if len(coefficients) == 1:
        return draws @ coefficients[0]
    return torch.matmul(draws, coefficients[:, :, None])[..., 0]


# --- Laws with quadratic log densities -----------------------------------------------------------


def _plain_log_density(law: Quadratic, x: Tensor) -> Tensor:
    """Log density in every dimension as if the quadratic went on outside the support; float64."""
    if isinstance(law, Uniform):
        return -torch.log(_double(law.high) - _double(law.low)) + 0 * x
    plain = -0.5 * ((x - _double(law.mean)) / _double(law.std)) ** 2 - torch.log(_double(law.std))
    plain = plain - _LOG_SQRT_2PI
    return plain - law.log_mass() if isinstance(law, TruncatedGaussian) else plain


def _quadratic_bound(target: Quadratic, proposal: Quadratic) -> Tensor:
    """Supremum of log q / p in every dimension."""
    q_prec, p_prec = _double(target.precision), _double(proposal.precision)
    q_mean, p_mean = _double(target.mean), _double(proposal.mean)
    low = torch.maximum(_double(target.low), _double(proposal.low))
    high = torch.minimum(_double(target.high), _double(proposal.high))
    q_prec, p_prec, q_mean, p_mean, low, high = torch.broadcast_tensors(
        q_prec, p_prec, q_mean, p_mean, low, high
    )
    curvature = q_prec - p_prec
    concave = curvature > 0
    vertex = (q_prec * q_mean - p_prec * p_mean) / torch.where(concave, curvature, 1.0)

    def log_ratio(x: Tensor) -> Tensor:
        return _plain_log_density(target, x) - _plain_log_density(proposal, x)

    def at_end(x: Tensor, sign: int) -> Tensor:
        """Value at a finite end; at an infinite one the limit, from the leading coefficient."""
        slope = sign * (q_prec * q_mean - p_prec * p_mean)
        grows = (curvature < 0) | ((curvature == 0) & (slope > 0))
        flat = (curvature == 0) & (slope == 0)
        limit = torch.where(grows, math.inf, torch.where(flat, log_ratio(torch.zeros_like(x)), -math.inf))
        finite = torch.isfinite(x)
        return torch.where(finite, log_ratio(torch.where(finite, x, 0.0)), limit)

    inside = concave & (vertex >= low) & (vertex <= high)
    ends = torch.maximum(at_end(low, -1), at_end(high, 1))
    at_vertex = _at_vertex(target, proposal, vertex, log_ratio)
    return torch.where(inside, at_vertex, ends)


def _at_vertex(
    target: Quadratic, proposal: Quadratic, vertex: Tensor, log_ratio: Callable[[Tensor], Tensor]
) -> Tensor:
    """log q / p at its vertex; for Gaussians by the closed form, which has no cancellation."""
    if isinstance(target, Uniform) or isinstance(proposal, Uniform):
        return log_ratio(vertex)
    q_std, p_std = _double(target.std), _double(proposal.std)
    difference = (p_std - q_std) * (p_std + q_std)
    squared = (_double(target.mean) - _double(proposal.mean)) ** 2
    value = torch.log(p_std / q_std) + squared / torch.where(difference > 0, 2 * difference, 1.0)
    return value - target.log_mass() if isinstance(target, TruncatedGaussian) else value


def _moments(law: Quadratic) -> tuple[Tensor, Tensor]:
    """Mean and variance in every dimension, float64."""
    if isinstance(law, DiagonalGaussian):
        return _double(law.mean), _double(law.std) ** 2
    if isinstance(law, Uniform):
        return _double(law.mean), (_double(law.high) - _double(law.low)) ** 2 / 12
    mean, std = _double(law.mean), _double(law.std)
    log_mass = law.log_mass()
    ends, densities = [], []
    for end in (law.low, law.high):
        z = (_double(end) - mean) / std
        density = torch.exp(-0.5 * z**2 - _LOG_SQRT_2PI - log_mass)
        densities.append(density)
        ends.append(torch.where(density > 0, z, 0.0) * density)
    shift = densities[0] - densities[1]
    return mean + std * shift, std**2 * (1 + ends[0] - ends[1] - shift**2)


def _check_support(target: Quadratic, proposal: Quadratic) -> None:
    if not isinstance(proposal, Uniform):
        return
    low, high = _double(proposal.low), _double(proposal.high)
    if isinstance(target, DiagonalGaussian):
        mean, std = _double(target.mean), _double(target.std)
        outside = torch.special.ndtr((low - mean) / std) + torch.special.ndtr((mean - high) / std)
        outside = float(outside.sum(-1).max())
        if outside > _NEGLIGIBLE_MASS:
            raise ValueError(
                f"the target is not absolutely continuous with the proposal: it has mass {outside:.3g} "
                "outside the proposal's box; take TruncatedGaussian(mean, std, low, high) or a wider box"
            )
    elif bool(((_double(target.low) < low) | (_double(target.high) > high)).any()):
        raise ValueError(
            "the target is not absolutely continuous with the proposal: its interval reaches out of the "
            "proposal's box; cut it at low and high, or take a wider box"
        )


# --- Finite alphabets ------------------------------------------------------------------------------


def _check_finite(target: Distribution, proposal: Proposal) -> None:
    if isinstance(target, Density) or isinstance(proposal, Density):
        return
    if not (isinstance(target, Finite) and isinstance(proposal, Finite)):
        raise ShapeError(
            f"the target is a {type(target).__name__} and the proposal a {type(proposal).__name__}; "
            "both must be Finite, or neither"
        )
    if proposal.weights is None:
        raise ValueError("a finite proposal needs integer weights; make it with Finite.from_weights")
    sizes = target.log_probs.shape[-1], proposal.log_probs.shape[-1]
    if sizes[0] != sizes[1]:
        raise ShapeError(f"the target has {sizes[0]} symbols, the proposal {sizes[1]}")
    if bool(((proposal.log_probs == -math.inf) & (target.log_probs > -math.inf)).any()):
        raise ValueError(
            "the target is not absolutely continuous with the proposal: a symbol of weight 0 has a "
            "positive target probability; give every symbol that may occur a weight of at least 1"
        )


def _finite_log_ratio(target: Finite, proposal: Finite) -> Tensor:
    """(*batch, A), -inf where the target has no mass."""
    q, p = _double(target.log_probs), _double(proposal.log_probs)
    return torch.where(q == -math.inf, -math.inf, q - p)


def _double(value: Tensor) -> Tensor:
    return value.to(torch.float64)


def _no_closed_form(what: str, target: Distribution, proposal: Distribution, argument: str) -> str:
    pair = f"{type(target).__name__} against {type(proposal).__name__}"
    return f"no closed form of the {what} for {pair}; give it as {argument}"
