# SPDX-License-Identifier: Apache-2.0
"""The selection rule of reverse channel coding: arrival times and the search over candidates.

Every method picks, among candidates z_n ~ p with times T_n (Theis & Yosri 2022),

    n* = argmin_n [log p(z_n) / q(z_n) + log T_n],        E_n ~ Exp(1) independent,

    mrc   T_n = E_n                                    minimal random coding
    pfr   T_n = E_0 + ... + E_n                        Poisson functional representation
    orc   T_n = sum_{i <= n} E_i N / (N - i)           ordered random coding: N sorted exponentials

With the same N, the picks of mrc and orc have the same distribution (self-normalised importance sampling).
The sorted times of orc make small numbers likelier, which costs fewer bits. Once T_n exceeds exp(best score)
sup q / p, no later candidate can win: pfr is then exact, and orc has its final result.

In:  log ratios log q / p in nats and exponentials, shape (..., n), in the order of the numbers.
Out: numbers, and statistics of the weights that the search saw. Only the encoder uses the times; they come
     from the shared seed so that encoding is reproducible.
Fails with ``ValueError`` for NaN, ``SgaError`` when no candidate has target density or too many would
     be needed.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Literal, get_args

import torch
from torch import Tensor

from ..errors import SgaError
from . import prng

__all__ = ["Found", "Order", "arrival_times", "exponentials", "search", "select"]

Order = Literal["mrc", "pfr", "orc"]

_TILE = {"cpu": 2**17, "cuda": 2**23}  # draws handled at once: fits the second-level cache, fills a GPU
_BOUND_SLACK_NATS = 1e-3  # rounding in float32
_STOP_SLACK_NATS = 1e-9  # a target equal to the proposal stops at once in spite of rounding
_FIRST = 32  # candidates in the first chunk of a search that may stop early


def arrival_times(
    draws: Tensor, order: Order, *, candidates: int | None = None, first: int = 0, start: Tensor | None = None
) -> Tensor:
    """T_n of candidates first, first + 1, ... from their exponentials.

    Args:
        draws: E_n ~ Exp(1), shape (..., n).
        order: "mrc", "pfr" or "orc".
        candidates: N, for "orc" only; default first + n.
        first: number of the first candidate.
        start: T before the first candidate, shape (...); default 0.

    Returns:
        Shape (..., n), ascending for "pfr" and "orc".
    """
    if order == "mrc":
        return draws
    if order == "orc":
        total = first + draws.shape[-1] if candidates is None else candidates
        number = torch.arange(first, first + draws.shape[-1], dtype=draws.dtype, device=draws.device)
        draws = draws * (total / (total - number))
    elif order != "pfr":
        raise ValueError(f"order is {order!r}; choose one of {', '.join(get_args(Order))}")
    times = draws.cumsum(-1)
    return times if start is None else times + start[..., None]


def select(log_ratio: Tensor, draws: Tensor, order: Order) -> Tensor:
    """n* = argmin [log T_n - log_ratio_n] over all given n.

    Args:
        log_ratio: log q(z_n) / p(z_n) in nats, shape (..., N).
        draws: E_n ~ Exp(1), broadcasts with `log_ratio`.
        order: "mrc", "pfr" or "orc", with N candidates. For a prefix of M, pass the first M of both.

    Returns:
        int64, shape (...).
    """
    _check_ratio(log_ratio)
    return (torch.log(arrival_times(draws, order)) - log_ratio).argmin(-1)


def exponentials(seed: int, *, step: int, block: Tensor, first: int, count: int) -> Tensor:
    """E_n ~ Exp(1) of candidates first, ..., first + count - 1 (multiples of four) of some blocks.

    Returns:
        float64, shape (R, count) for `block` of shape (R,).
    """
    number = torch.arange(first // 4, (first + count) // 4, device=block.device)
    uniforms = prng.uniform(seed, lanes=4, step=step, block=block[:, None], candidate=number, purpose="time")
    return -torch.log(uniforms.reshape(len(block), count))


@dataclasses.dataclass(frozen=True)
class Found:
    """What a search found, one entry a block, shape (R,).

    Args:
        index: n*, int64.
        examined: candidates that had to be looked at, one after the other, to know n*; int64.
        stopped: the stop rule fired: no further candidate could have won.
        log_mass: log of the mean of q / p over the candidates seen; 0 if they represent the target.
        effective_size: (sum w)^2 / sum w^2 of w = q / p.
    """

    index: Tensor
    examined: Tensor
    stopped: Tensor
    log_mass: Tensor
    effective_size: Tensor


Score = Callable[[Tensor, int, int], Tensor]  # (rows (R,), first, count) -> log q / p (R, count)


def search(
    score: Score,
    *,
    block: Tensor,
    order: Order,
    limit: int,
    exact: bool,
    log_bound: Tensor,
    lanes: int,
    seed: int,
    step: int,
) -> Found:
    """Searches for n* in chunks of candidates and drops the blocks that have stopped.

    Args:
        score: log ratios of a chunk of candidates; `first` and `count` are multiples of four.
        block: (B,) block numbers.
        order: of the arrival times.
        limit: N, how many candidates there are, or may be looked at if `exact`.
        exact: whether it is an error, not a truncation, when a block reaches `limit` before its stop rule.
        log_bound: (B,) sup log q / p in nats, +inf if unbounded.
        lanes: draws of a candidate; sets how many are handled at once.
        seed, step: of the arrival times.

    Raises:
        SgaError: `exact` and the limit was reached; or no candidate lies in the target's support.
        ValueError: a density ratio is NaN or +inf.
    """
    may_stop = order != "mrc" and bool(torch.isfinite(log_bound).any())
    state = _State.empty(len(block), block.device)
    at_once = _TILE.get(block.device.type, _TILE["cpu"])
    smallest = min(_ceil4(limit), _FIRST if may_stop else max(4, at_once // lanes))
    tile = max(1, at_once // (smallest * lanes))
    for begin in range(0, len(block), tile):
        rows = torch.arange(begin, min(begin + tile, len(block)), device=block.device)
        first = 0
        while first < limit and len(rows):
            count = max(4, at_once // (lanes * len(rows)) // 4 * 4)
            if may_stop:  # a chunk as long as everything before it wastes at most half of the work
                count = min(count, max(_FIRST, first))
            count = min(count, _ceil4(limit - first))
            used = min(count, limit - first)
            log_ratio = score(rows, first, count)[:, :used]
            bound = log_bound[rows] if may_stop else None
            _check_ratio(log_ratio, bound)
            draws = exponentials(seed, step=step, block=block[rows], first=first, count=count)[:, :used]
            start = None if order == "mrc" else state.time[rows]
            times = arrival_times(draws, order, candidates=limit, first=first, start=start)
            done = state.update(rows, log_ratio, times, first, bound)
            first += used
            if done is not None and bool(done.any()):
                rows = rows[~done]
        if exact and len(rows):
            bits = float(log_bound[rows[0]]) / math.log(2)
            raise SgaError(
                f"exact sampling looked at {limit} candidates of {len(rows)} block(s) without being able "
                f"to stop; on average it takes exp(sup log q/p), here about 2^{bits:.1f}"
                ": raise max_candidates, pass candidates=N (truncated), or take 'hybrid' or smaller blocks"
            )
    if bool(torch.isinf(state.best).any()):
        raise SgaError(
            f"none of {limit} candidates of block {int(block[torch.isinf(state.best)][0])} lies in the "
            "target's support; take more candidates or a proposal nearer to the target"
        )
    log_mass = state.log_sum - torch.log(state.seen)
    size = torch.exp(2 * state.log_sum - state.log_sum_squares)
    return Found(state.index, state.examined, state.stopped, log_mass, size)


@dataclasses.dataclass
class _State:
    """Running result of a search, one entry a block."""

    best: Tensor
    index: Tensor
    examined: Tensor
    stopped: Tensor
    time: Tensor
    log_sum: Tensor
    log_sum_squares: Tensor
    seen: Tensor

    @classmethod
    def empty(cls, blocks: int, device: torch.device) -> _State:
        def full(value: float, dtype: torch.dtype = torch.float64) -> Tensor:
            return torch.full((blocks,), value, dtype=dtype, device=device)

        integer = torch.int64
        return cls(
            best=full(math.inf),
            index=full(0, integer),
            examined=full(0, integer),
            stopped=full(False, torch.bool),
            time=full(0),
            log_sum=full(-math.inf),
            log_sum_squares=full(-math.inf),
            seen=full(0),
        )

    def update(
        self, rows: Tensor, log_ratio: Tensor, times: Tensor, first: int, log_bound: Tensor | None
    ) -> Tensor | None:
        """Takes in a chunk; returns which rows have stopped, None when there is no stop rule."""
        log_times = torch.log(times)
        scores = log_times - log_ratio
        value, position = scores.min(-1)
        before = self.best[rows]
        better = value < before
        self.best[rows] = torch.where(better, value, before)
        self.index[rows] = torch.where(better, position + first, self.index[rows])
        self.time[rows] = times[:, -1]
        self._weigh(rows, log_ratio)
        examined = torch.full_like(position, times.shape[-1])
        done = None
        if log_bound is not None:
            running = torch.minimum(scores.cummin(-1).values, before[:, None])
            fires = running + log_bound[:, None] <= log_times + _STOP_SLACK_NATS
            done = fires.any(-1)
            examined = torch.where(done, fires.to(torch.int8).argmax(-1) + 1, examined)
            self.stopped[rows] = done
        self.examined[rows] += examined
        return done

    def _weigh(self, rows: Tensor, log_ratio: Tensor) -> None:
        top = log_ratio.amax(-1, keepdim=True)
        top = torch.where(torch.isinf(top), torch.zeros_like(top), top)
        weights = torch.exp(log_ratio - top)
        top = top[:, 0].to(torch.float64)
        total, squares = weights.sum(-1).to(torch.float64), (weights * weights).sum(-1).to(torch.float64)
        self.log_sum[rows] = torch.logaddexp(self.log_sum[rows], torch.log(total) + top)
        self.log_sum_squares[rows] = torch.logaddexp(self.log_sum_squares[rows], torch.log(squares) + 2 * top)
        self.seen[rows] += log_ratio.shape[-1]


def _check_ratio(log_ratio: Tensor, log_bound: Tensor | None = None) -> None:
    if bool((torch.isnan(log_ratio) | (log_ratio == math.inf)).any()):
        raise ValueError(
            "a log density ratio is NaN or +inf: the target's density is NaN, or positive where the "
            "proposal's is zero; check the parameters and the supports"
        )
    if log_bound is not None and bool((log_ratio > log_bound[:, None] + _BOUND_SLACK_NATS).any()):
        excess = float((log_ratio - log_bound[:, None]).max())
        raise ValueError(
            f"a candidate's log density ratio exceeds log_bound by {excess:.3g} nats: the search would stop "
            "too early; give sup log q / p of the densities as they are, unnormalised or not"
        )


def _ceil4(value: int) -> int:
    return -(-value // 4) * 4
