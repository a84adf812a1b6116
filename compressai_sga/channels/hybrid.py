# SPDX-License-Identifier: Apache-2.0
"""The hybrid of dithered quantisation and reverse channel coding, for targets of bounded support.

Theis & Yosri, "Algorithms for the communication of samples", 2022. The proposal's distribution
function, with M_d cells a dimension, maps points to y = M F_p(x) in [0, M], where the proposal is uniform.
If the target's support then fits into a unit box around c, shared draws u_n ~ U(0, 1)^D give candidates
that are uniform on this box, although the decoder does not know the box:

    k_n = floor(c - u_n + 1/2),  y_n = k_n + u_n,  x_n = F_p^-1(y_n / M),
    log ratio = log q(x_n) - log p(x_n) - sum_d log M_d.

The number n costs KL - log2 prod M bits instead of KL, and the time to find it falls by the factor prod M;
the cell k is sent as it is, with log2 prod M bits. The decoder needs n, k and M.

In:  TruncatedGaussian, Uniform or Density with `low` and `high` as target, DiagonalGaussian or Uniform
     as proposal, M as int64 (D,), known on both sides (`cell_counts`).
Out: cells (..., D) int64, points (..., D) float64, the same bits on every machine (`quantile`).
Fails with ``ValueError`` for a target whose support is unbounded or too wide for M.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import torch
from torch import Tensor

from .distributions import DiagonalGaussian, Distribution, DrawKind, Uniform
from .quantile import normal_quantile

__all__ = ["UnitBox", "cell_counts", "cells_of", "check_cells", "hybrid_scorer", "points_of"]

_WIDTH_SLACK = 1e-9  # a support that just fits must not fail by rounding


@dataclasses.dataclass(frozen=True)
class UnitBox:
    """The draws of the hybrid: `lanes` uniforms a candidate."""

    lanes: int
    kind: DrawKind = "uniform"


def cell_counts(width: Tensor, proposal: Distribution) -> Tensor:
    """M_d = floor(1 / largest mass that the proposal gives to an interval of this width), at least 1.

    It holds for every position of the target, so the decoder can compute it too. (Where 1 / mass is near an
    integer, machines with different libm may get different M: then send M.)

    Args:
        width: (D,) of the widest support of a target, e.g. that of `DiagonalGaussian.truncated`.
        proposal: without batch dimensions, DiagonalGaussian or Uniform.

    Returns:
        int64, shape (D,).
    """
    width = width.to(torch.float64)
    if not bool((width > 0).all() and torch.isfinite(width).all()):
        raise ValueError("a width is not a positive finite number; truncate the target first")
    if isinstance(proposal, DiagonalGaussian):
        mass = torch.special.erf(width / (2 * math.sqrt(2) * proposal.std.to(torch.float64)))
    elif isinstance(proposal, Uniform):
        mass = width / (proposal.high.to(torch.float64) - proposal.low.to(torch.float64))
    else:
        raise ValueError(_unknown_proposal(proposal))
    return torch.floor(1 / mass).clamp_min(1).to(torch.int64)


def check_cells(target: Distribution, proposal: Distribution, cells: Tensor) -> Tensor:
    """Centres c of the target's unit boxes, clipped to [1/2, M - 1/2].

    Returns:
        float64, shape (*batch, D).

    Raises:
        ValueError: the support is unbounded, or wider than one cell somewhere.
    """
    low, high = getattr(target, "low", None), getattr(target, "high", None)
    if low is None or not bool(torch.isfinite(low).all() and torch.isfinite(high).all()):
        raise ValueError(
            f"a {type(target).__name__} target has no bounded support; hybrid coding needs one: cut it "
            "with DiagonalGaussian.truncated(mass) or give a Density low and high"
        )
    if not isinstance(proposal, DiagonalGaussian | Uniform):
        raise ValueError(_unknown_proposal(proposal))
    if cells.is_floating_point() or cells.shape != (proposal.lanes,) or not bool((cells >= 1).all()):
        raise ValueError(
            f"cells has type {cells.dtype} and shape {tuple(cells.shape)}; it is one integer >= 1 for "
            f"each of {proposal.lanes} dimensions (see cell_counts)"
        )
    ends = [_distribution(proposal, end.to(torch.float64)) for end in (low, high)]
    width = (ends[1] - ends[0]) * cells
    if not bool((width <= 1 + _WIDTH_SLACK).all()):
        fit = torch.floor(1 / (ends[1] - ends[0])).reshape(-1, proposal.lanes).amin(0).clamp_min(1)
        raise ValueError(
            f"the target's support is {float(width.max()):.4g} cells wide in some dimension; it must fit "
            f"into one: take at most cells = {fit.to(torch.int64).tolist()}"
        )
    middle = cells * (ends[0] + ends[1]) / 2
    return torch.maximum(torch.minimum(middle, cells - 0.5), torch.full_like(middle, 0.5))


def cells_of(uniforms: Tensor, centre: Tensor) -> Tensor:
    """k = floor(c - u + 1/2), as float64."""
    return torch.floor(centre - uniforms + 0.5)


def points_of(uniforms: Tensor, cell: Tensor, proposal: Distribution, cells: Tensor) -> Tensor:
    """x = F_p^-1((k + u) / M), the decoder's half; the same bits on every machine."""
    position = (cell.to(torch.float64) + uniforms) / cells
    if isinstance(proposal, DiagonalGaussian):
        return proposal.transform(normal_quantile(position))
    if isinstance(proposal, Uniform):
        return proposal.transform(position)
    raise ValueError(_unknown_proposal(proposal))


def hybrid_scorer(
    target: Distribution, proposal: Distribution, cells: Tensor, centre: Tensor
) -> Callable[..., Tensor]:
    """As `density_ratio.ratio_scorer`, for candidates drawn uniformly from the unit boxes around `centre`."""
    log_cells = float(torch.log(cells.to(torch.float64)).sum())

    def score(draws: Tensor, target_rows: Tensor, proposal_rows: Tensor, rows: Tensor) -> Tensor:
        here = proposal.at(proposal_rows)
        cell = cells_of(draws, centre[rows][:, None])
        points = points_of(draws, cell, here, cells)
        return target.at(target_rows).log_density(points) - here.log_density(points) - log_cells

    return score


def _distribution(proposal: Distribution, points: Tensor) -> Tensor:
    """F_p in every dimension; the encoder's half, libm is fine."""
    if isinstance(proposal, DiagonalGaussian):
        return torch.special.ndtr((points - proposal.mean) / proposal.std)
    return ((points - proposal.low) / (proposal.high - proposal.low)).clamp(0, 1)


def _unknown_proposal(proposal: Distribution) -> str:
    return (
        f"the proposal is a {type(proposal).__name__}; hybrid coding needs its distribution function: take "
        "DiagonalGaussian or Uniform"
    )
