# SPDX-License-Identifier: Apache-2.0
"""Reverse channel coding: sending a sample of a distribution q that only the encoder knows.

Theis & Yosri, "Algorithms for the communication of samples", 2022; Li & El Gamal 2018 (PFR); Havasi et
al. 2019 (MRC). Encoder and decoder share a proposal p and randomness (`prng`), hence the same candidates
z_0, z_1, ... ~ p. The encoder sends the number n of one of them, chosen so that z_n ~ q:

    method    times (see `selection`)          sample distributed as  bits of the number
    mrc       independent, N candidates       nearly q (N finite)    log2 N
    pfr       Poisson process, all            q exactly              <= KL + log2(KL + 1) + 4
    pfr, N    the same, N candidates          nearly q               the same, N numbers
    orc       sorted, N candidates            as mrc                 less than pfr
    hybrid    dither, then pfr (or orc, N)    q, of bounded support  log2 prod M + those of KL - log2 prod M

KL is KL(q || p) in bits. Truncated methods need N of about 2^(KL + a few): `Code.log_mass` and
`Code.effective_size` tell how well N candidates represent the target, `Code.exact` whether the sample is
exact.

In:  two of `distributions`, shape (*batch, D), or (D,) for one distribution in all of `block`; each batch
     entry uses its own block of randomness.
Out: `Code`: numbers and samples, shape (*batch) and (*batch, D); bytes by `pack`, back by `unpack`.
Fails with ``ShapeError`` or ``ValueError`` for arguments that do not fit (unbounded ratios with exact pfr,
     targets outside the proposal's support, NaN), ``SgaError`` when the candidates do not suffice,
     ``BitstreamError`` for damaged bytes.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import torch
from torch import Tensor

from ..errors import ShapeError
from . import hybrid, index_code
from .bitstream import Code, CodingMethod, check_method, code_bits, expanded, index_model, pack, unpack
from .candidates import candidate_draws, chosen_draws, expanded_rows
from .density_ratio import check_pair, divergence_bits, log_ratio_bound, ratio_scorer
from .distributions import DiagonalGaussian, Distribution, Proposal
from .selection import Found, search

__all__ = ["Code", "CodingMethod", "decode", "default_candidates", "encode", "index_model", "pack", "unpack"]

MAX_CANDIDATES = 2**24
_PADDING_BITS = 4  # of the default N over 2^KL


@torch.no_grad()
def encode(
    target: Distribution,
    proposal: Proposal,
    *,
    method: CodingMethod = "pfr",
    seed: int,
    step: int = 0,
    block: int | Tensor = 0,
    candidates: int | Tensor | None = None,
    kl_bits: float | Tensor | None = None,
    log_bound: float | Tensor | None = None,
    cells: Tensor | None = None,
    support: int | None = None,
    max_candidates: int = MAX_CANDIDATES,
    dtype: torch.dtype = torch.float64,
) -> Code:
    """Chooses a candidate of the proposal that follows the target.

    Args:
        target: q, known here only.
        proposal: p, known on both sides.
        method: "pfr" (exact unless `candidates` is given), "orc", "mrc" or "hybrid".
        seed, step: of the shared randomness.
        block: int64 tensor of block numbers that broadcasts with the batch, or the first block's number:
            batch entries must not share a block unless they are to share their candidates.
        candidates: N of the truncated methods, a number or one for each batch entry (int64); None is
            "all of them" for pfr and hybrid, and 2^(ceil(KL) + 4) for orc and mrc.
        kl_bits: KL in bits that both sides know, a number or (*batch); None codes with Elias-delta.
        log_bound: sup log q / p in nats, for pairs without a closed form; needed for exact sampling.
        cells: M of the hybrid, (D,) int64, see `hybrid.cell_counts`.
        support: how many numbers the index's code must hold, if more than N: what the decoder knows.
        max_candidates: where exact sampling gives up.
        dtype: of the search among Gaussians, float64 or float32; the sample is the decoder's anyway.

    Returns:
        The code, on the device of the distributions.

    Raises:
        ShapeError: dimensions or batch shapes do not fit.
        ValueError: another argument is out of range; the ratio is unbounded and pfr is to be exact.
        SgaError: max_candidates was reached, or no candidate lies in the target's support.
    """
    check_method(method)
    laws_shape = check_pair(target, proposal)
    batch_shape, blocks = _blocks(block, laws_shape, target, proposal)
    device = blocks.device
    target_rows = expanded_rows(target, batch_shape).to(device)
    proposal_rows = expanded_rows(proposal, batch_shape).to(device)
    exact = candidates is None and method in ("pfr", "hybrid")
    order = ("pfr" if exact else "orc") if method == "hybrid" else method
    source, log_cells = proposal, 0.0
    if method == "hybrid":
        if cells is None:
            raise ValueError("method 'hybrid' needs cells, the M of every dimension: see hybrid.cell_counts")
        cells = cells.to(device)
        centre = hybrid.check_cells(target, proposal, cells).expand(*batch_shape, len(cells))
        centre = centre.reshape(-1, len(cells))
        source = hybrid.UnitBox(len(cells))
        log_cells = float(torch.log(cells.to(torch.float64)).sum())
        score_draws = hybrid.hybrid_scorer(target, proposal, cells, centre)
        dtype = torch.float64
    else:
        cells = None
        if not (isinstance(target, DiagonalGaussian) and isinstance(proposal, DiagonalGaussian)):
            dtype = torch.float64  # float32 uniforms are other points than the decoder's
        plain = ratio_scorer(target, proposal, dtype)

        def score_draws(draws: Tensor, t_rows: Tensor, p_rows: Tensor, rows: Tensor) -> Tensor:
            return plain(draws, t_rows, p_rows)

    bound = _bound(target, proposal, log_bound, exact).to(device) - log_cells
    bound = expanded("log_bound", bound, batch_shape)
    counts = _counts(candidates, target, proposal, kl_bits, method, batch_shape, max_candidates)
    found = _search_groups(
        counts.to(device), source, score_draws, target_rows, proposal_rows,
        block=blocks, order=order, exact=exact, log_bound=bound, seed=seed, step=step, dtype=dtype,
    )  # fmt: skip
    chosen = chosen_draws(source, seed, step=step, block=blocks, index=found.index)
    cell = None if cells is None else hybrid.cells_of(chosen, centre).to(torch.int64)
    sample = _points(chosen, proposal, proposal_rows, cell, cells)
    if support is None:
        support = index_code.MAX_SUPPORT if exact or not len(counts) else int(counts.max())
    bits = code_bits(found.index, method, kl_bits, support, cells, batch_shape)
    return Code(
        index=found.index.reshape(batch_shape),
        cell=None if cell is None else cell.reshape(*batch_shape, -1),
        sample=sample.reshape(*batch_shape, *sample.shape[1:]),
        bits=bits.reshape(batch_shape),
        exact=(found.stopped & (order == "pfr")).reshape(batch_shape),
        examined=found.examined.reshape(batch_shape),
        log_mass=found.log_mass.reshape(batch_shape),
        effective_size=found.effective_size.reshape(batch_shape),
        method=method,
        support=support,
        cells=cells,
    )  # fmt: skip


@torch.no_grad()
def decode(
    index: Tensor,
    proposal: Proposal,
    *,
    method: CodingMethod = "pfr",
    seed: int,
    step: int = 0,
    block: int | Tensor = 0,
    cell: Tensor | None = None,
    cells: Tensor | None = None,
) -> Tensor:
    """The candidates with these numbers: the encoder's `Code.sample`, to the last bit, on any machine.

    Args:
        index: 0-based numbers, int64, (*batch).
        proposal: p, batch shape broadcasting to that of `index`.
        method, seed, step, block: as in `encode`.
        cell, cells: k and M, for the hybrid.

    Returns:
        (*batch, D) float64, or (*batch) int64 for an alphabet.

    Raises:
        ShapeError: shapes do not fit.
        ValueError: a number or cell is out of range.
    """
    check_method(method)
    if index.is_floating_point() or (index.numel() and not 0 <= int(index.min()) <= int(index.max()) < 2**32):
        raise ValueError("a number is not an integer in [0, 2^32); check the stream it came from")
    batch_shape, blocks = _blocks(block, index.shape, proposal)
    if batch_shape != index.shape:
        raise ShapeError(f"index has the shape {tuple(index.shape)}, block makes it {tuple(batch_shape)}")
    rows = expanded_rows(proposal, batch_shape).to(blocks.device)
    numbers = index.reshape(-1).to(blocks.device)
    source = proposal
    if method == "hybrid":
        if cells is None or cell is None:
            raise ValueError("method 'hybrid' decodes from a number, a cell and cells: give all three")
        if cell.shape != (*index.shape, len(cells)):
            raise ShapeError(
                f"cell has the shape {tuple(cell.shape)}; with these numbers and cells it is "
                f"{(*index.shape, len(cells))}"
            )
        cells, cell = cells.to(blocks.device), cell.to(blocks.device).reshape(-1, len(cells))
        if not bool(((cell >= 0) & (cell < cells)).all()):
            raise ValueError(f"a cell is outside [0, M), M = {cells.tolist()}; check the stream it came from")
        source = hybrid.UnitBox(len(cells))
    else:
        cell = cells = None
    chosen = chosen_draws(source, seed, step=step, block=blocks, index=numbers)
    sample = _points(chosen, proposal, rows, cell, cells)
    return sample.reshape(*batch_shape, *sample.shape[1:])


def default_candidates(kl_bits: float) -> int:
    """N = 2^(ceil(KL) + 4), at most 2^24: the default of the truncated methods."""
    if math.isnan(kl_bits) or kl_bits > 24 - _PADDING_BITS:
        raise ValueError(
            f"a KL divergence of {kl_bits:.4g} bits needs more than 2^24 candidates; split the target into "
            "blocks (blocks.py), take 'hybrid', or give candidates=N"
        )
    return 2 ** (max(0, math.ceil(kl_bits - 1e-9)) + _PADDING_BITS)


# --- Inside ------------------------------------------------------------------------------------


def _search_groups(
    counts: Tensor, source: Proposal, score_draws: Callable[..., Tensor],
    target_rows: Tensor, proposal_rows: Tensor, *,
    block: Tensor, order: str, exact: bool, log_bound: Tensor, seed: int, step: int, dtype: torch.dtype,
) -> Found:  # fmt: skip
    """One search for all batch entries with the same N."""
    sizes = counts.unique().tolist() or [1]  # nothing to send is no error
    found = None
    for limit in sizes:
        members = (
            (counts == limit).nonzero()[:, 0]
            if len(sizes) > 1
            else torch.arange(len(block), device=block.device)
        )

        def score(rows: Tensor, first: int, count: int, members: Tensor = members) -> Tensor:
            rows = members[rows]
            draws = candidate_draws(
                source, seed, step=step, block=block[rows], first=first, count=count, dtype=dtype
            )
            return score_draws(draws, target_rows[rows], proposal_rows[rows], rows)

        part = search(
            score, block=block[members], order=order, limit=limit, exact=exact,
            log_bound=log_bound[members], lanes=source.lanes, seed=seed, step=step,
        )  # fmt: skip
        if len(sizes) == 1:
            return part
        if found is None:
            found = {f.name: getattr(part, f.name).new_empty(len(block)) for f in dataclasses.fields(part)}
        for name, values in found.items():
            values[members] = getattr(part, name)
    return Found(**found)


def _points(
    chosen: Tensor, proposal: Proposal, rows: Tensor, cell: Tensor | None, cells: Tensor | None
) -> Tensor:
    """Draws (B, lanes) to points (B, D) or symbols (B,)."""
    here = proposal.at(rows)
    if cell is not None:
        return hybrid.points_of(chosen[:, None], cell[:, None], here, cells)[:, 0]
    return here.transform(chosen[:, None])[:, 0]


def _blocks(block: int | Tensor, laws_shape: torch.Size, *laws: Distribution) -> tuple[torch.Size, Tensor]:
    """The whole batch shape and the flat block numbers."""
    device = next((d for d in map(_device, laws) if d is not None), None)
    if not isinstance(block, int) and (not isinstance(block, Tensor) or block.is_floating_point()):
        raise ValueError(f"block is {block}; it is the number of a block, or an integer tensor of them")
    if isinstance(block, Tensor):
        try:
            shape = torch.broadcast_shapes(block.shape, laws_shape)
        except RuntimeError as error:
            raise ShapeError(
                f"block has the shape {tuple(block.shape)}, q and p the batch shape {tuple(laws_shape)}; "
                "they must broadcast"
            ) from error
        numbers = block.expand(shape).reshape(-1).to(torch.int64)
        return shape, numbers if device is None else numbers.to(device)
    count = math.prod(laws_shape)
    return laws_shape, block + torch.arange(count, device=device)


def _device(distribution: Distribution) -> torch.device | None:
    for field in dataclasses.fields(distribution) if dataclasses.is_dataclass(distribution) else ():
        value = getattr(distribution, field.name)
        if isinstance(value, Tensor):
            return value.device
    return None


def _bound(target: Distribution, proposal: Proposal, log_bound: float | Tensor | None, exact: bool) -> Tensor:
    """sup log q / p, +inf where it is not known and not needed."""
    if log_bound is None:
        try:
            bound = log_ratio_bound(target, proposal)
        except ValueError:
            if exact:
                raise
            bound = torch.tensor(math.inf, dtype=torch.float64)
    else:
        bound = torch.as_tensor(log_bound, dtype=torch.float64)
    if exact and not bool(torch.isfinite(bound).all()):
        raise ValueError(
            "the density ratio q / p is unbounded (or NaN), so exact sampling would never stop: the target "
            "needs lighter tails than the proposal (smaller std); pass candidates=N for a truncated "
            "search, or take 'orc'"
        )
    return bound


def _counts(
    candidates: int | Tensor | None, target: Distribution, proposal: Proposal, kl_bits: float | Tensor | None,
    method: CodingMethod, batch_shape: torch.Size, max_candidates: int,
) -> Tensor:  # fmt: skip
    """N for every batch entry, flat int64."""
    if candidates is None and method in ("pfr", "hybrid"):
        candidates = max_candidates
    elif candidates is None:
        kl = divergence_bits(target, proposal) if kl_bits is None else torch.as_tensor(kl_bits)
        candidates = default_candidates(float(kl.max()))
    counts = torch.as_tensor(candidates)
    if (
        counts.is_floating_point()
        or not 1 <= int(counts.min()) <= int(counts.max()) <= index_code.MAX_SUPPORT
    ):
        raise ValueError(f"candidates is {candidates}; give integers from 1 to 2^32")
    return expanded("candidates", counts, batch_shape)
