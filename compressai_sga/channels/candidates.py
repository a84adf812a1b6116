# SPDX-License-Identifier: Apache-2.0
"""The candidates' random draws, found by address: any range of candidates n, for a few blocks at a time.

A proposal says which draws one candidate takes (`distributions.Proposal`: `kind`, `lanes`); `prng` gives them
by address, so the decoder draws candidate n alone. Philox gives four words a call; when `lanes` is not a
multiple of four, 4 / gcd(lanes, 4) neighbours share an address and no word is lost.

In:  block numbers (R,), a range of candidates or one for each block.
Out: draws (R, n, lanes) or (R, lanes) before `transform`, on the device of the block numbers.
Fails with ``ValueError`` for an unknown kind, and as `prng` does.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..errors import ShapeError
from . import prng
from .distributions import Distribution, Proposal

__all__ = ["candidate_draws", "chosen_draws", "expanded_rows"]


def candidate_draws(
    proposal: Proposal,
    seed: int,
    *,
    step: int,
    block: Tensor,
    first: int,
    count: int,
    dtype: torch.dtype = torch.float64,
) -> Tensor:
    """Draws of candidates first, ..., first + count - 1 of some blocks, before `transform`.

    Args:
        proposal: says which draws and how many.
        seed, step: of the shared randomness.
        block: (R,) int64 block numbers.
        first, count: range of candidates, multiples of four.
        dtype: float64, or float32 for the encoder's search.

    Returns:
        (R, count, lanes) on the device of `block`.
    """
    group = _group(proposal.lanes)
    first_group, groups = first // group, count // group
    number = torch.arange(first_group, first_group + groups, device=block.device)
    draws = _draw(proposal, seed, proposal.lanes * group, step, block[:, None], number, dtype)
    return draws.reshape(len(block), count, proposal.lanes)


def chosen_draws(proposal: Proposal, seed: int, *, step: int, block: Tensor, index: Tensor) -> Tensor:
    """Draws (R, lanes) of one candidate a block, in float64 (or int64 words); index is (R,) int64."""
    lanes, group = proposal.lanes, _group(proposal.lanes)
    number = torch.div(index, group, rounding_mode="floor")
    draws = _draw(proposal, seed, lanes * group, step, block, number, torch.float64)
    row = torch.arange(len(index), device=index.device)
    return draws.reshape(len(index), group, lanes)[row, index - number * group]


def _group(lanes: int) -> int:
    """Candidates that share an address, so that their draws fill whole Philox results."""
    return 4 // math.gcd(lanes, 4)


def _draw(
    proposal: Proposal,
    seed: int,
    lanes: int,
    step: int,
    block: Tensor,
    number: Tensor,
    dtype: torch.dtype,
) -> Tensor:
    address = {"lanes": lanes, "step": step, "block": block, "candidate": number, "purpose": "sample"}
    if proposal.kind == "words":
        return prng.words(seed, **address)
    if proposal.kind == "normal":
        return prng.normal(seed, **address, dtype=dtype)
    if proposal.kind == "uniform":
        return prng.uniform(seed, **address, dtype=dtype)
    raise ValueError(f"kind is {proposal.kind!r}; a proposal draws 'normal', 'uniform' or 'words'")


def expanded_rows(distribution: Distribution, batch_shape: torch.Size) -> Tensor:
    """For each entry of the whole batch, the flat number of the distribution's own entry that it uses."""
    own = torch.arange(math.prod(distribution.batch_shape)).reshape(distribution.batch_shape)
    try:
        return own.expand(batch_shape).reshape(-1)
    except RuntimeError as error:
        raise ShapeError(
            f"a distribution has the batch shape {tuple(distribution.batch_shape)}; it must broadcast to "
            f"{tuple(batch_shape)}"
        ) from error
