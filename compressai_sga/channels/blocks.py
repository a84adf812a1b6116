# SPDX-License-Identifier: Apache-2.0
"""Sending a sample of a high-dimensional Gaussian in blocks of bounded KL divergence.

The time of reverse channel coding grows as 2^KL. So N(q_mean, q_std^2) against N(p_mean, p_std^2) in D
dimensions is cut into n blocks that are coded on their own, which costs about log2(KL) more bits for each
block (as in DiffC: Theis et al. 2022, Vonderfecht & Liu 2025). Only the encoder knows which coordinates carry
the divergence; a pseudo-random permutation spreads them, so that all blocks get nearly the same:

    position i of the permuted, standardised coordinates belongs to block i mod n, lane i // n.

The encoder raises n until no block has more than `max_block_bits`; it looks at N = 2^(ceil(KL_b) +
padding_bits) candidates of block b, which the decoder need not know. A shift of the mean has an unbounded
density ratio, so the sample is never exact: on average it falls short along q_mean - p_mean. A loop whose
next step starts from the sample that the decoder has corrects for this. The bias is about 0.1 standard
deviations for blocks of 1 or 2 bits and 0.3 to 0.5 at 8 bits; `eval/experiments/reverse_coding/measure.py`
measures it, with bits and time.

In:  tensors of one shape, any device; p_mean and p_std the same bits on both sides. KL in bits.
Out: `BlockCode` with the sample, lengths and divergences by block; bytes (with n, the rounded mean
     divergence and the support, a few bytes) by `pack_blocks`.
Fails with ``ShapeError`` or ``ValueError`` for arguments that do not fit, ``SgaError`` when a single
     coordinate has more than `max_block_bits`, ``BitstreamError`` for most damaged bytes (there is no
     checksum).
"""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor

from ..errors import BitstreamError, SgaError, ShapeError
from . import index_code, prng
from .bitstream import CodingMethod, index_model
from .candidates import chosen_draws
from .distributions import DiagonalGaussian
from .reverse import encode

__all__ = [
    "BlockCode",
    "BlockPlan",
    "decode_blocks",
    "encode_blocks",
    "pack_blocks",
    "plan_blocks",
    "unpack_blocks",
]

_GROWTH = 1.08  # of the number of blocks, until the fullest one fits
_MAX_LOG2_SUPPORT = 32
_HEADER_LIMITS = (2**32, index_code.MAX_KL_EIGHTHS + 1, _MAX_LOG2_SUPPORT + 1)


@dataclasses.dataclass(frozen=True)
class BlockPlan:
    """What the decoder must know besides the proposal, seed, step and first block.

    Args:
        blocks: n, at most one a dimension.
        kl_eighths: mean divergence of a block in eighths of a bit, for the code of the numbers.
        log2_support: candidates' numbers are below 2^this.
    """

    blocks: int
    kl_eighths: int
    log2_support: int

    def model(self, method: CodingMethod) -> index_code.IndexModel:
        """The model of the blocks' numbers."""
        return index_model(method, self.kl_eighths / 8, 2**self.log2_support)


@dataclasses.dataclass(frozen=True)
class BlockCode:
    """What `encode_blocks` chose; n blocks.

    Args:
        index: 0-based numbers of the candidates, int64, (n,).
        plan: the side information.
        sample: what `decode_blocks` returns, float64, shape of the means.
        kl_bits: divergence of every block, (n,).
        bits: length of every number, (n,).
        log_mass, effective_size: as in `bitstream.Code`, (n,).
        method: of the search.
    """

    index: Tensor
    plan: BlockPlan
    sample: Tensor
    kl_bits: Tensor
    bits: Tensor
    log_mass: Tensor
    effective_size: Tensor
    method: CodingMethod

    @property
    def side_bits(self) -> int:
        """Length of the plan in the bytes."""
        return 8 * len(_header(self.plan))

    @property
    def overhead_bits(self) -> float:
        """All bits, side information included, minus the sum of the divergences."""
        return float(self.bits.sum()) + self.side_bits - float(self.kl_bits.sum())


@torch.no_grad()
def encode_blocks(
    q_mean: Tensor,
    q_std: Tensor,
    p_mean: Tensor,
    p_std: Tensor,
    *,
    seed: int,
    step: int = 0,
    block: int = 0,
    method: CodingMethod = "orc",
    block_bits: float = 8.0,
    max_block_bits: float = 14.0,
    padding_bits: int = 4,
) -> BlockCode:
    """Sends a sample of N(q_mean, diag q_std^2) to a decoder that knows N(p_mean, diag p_std^2).

    Args:
        q_mean, q_std: target, any shape with D elements, q_std > 0.
        p_mean, p_std: proposal, same shape.
        seed, step: of the shared randomness.
        block: number of the first block; calls that share seed and step need ranges that do not overlap.
        method: "orc", or "pfr" / "mrc" with the same number of candidates.
        block_bits: divergence that a block should have.
        max_block_bits: divergence that no block may exceed.
        padding_bits: log2 of the candidates over 2^KL.

    Raises:
        ShapeError: different shapes. ValueError: bad parameters or a method that is not truncated.
        SgaError: a coordinate alone exceeds `max_block_bits`.
    """
    if method not in ("orc", "pfr", "mrc"):
        raise ValueError(f"method is {method!r}; blocks are coded with 'orc', 'pfr' or 'mrc'")
    if not 0 <= padding_bits or not 0 < block_bits <= max_block_bits <= _MAX_LOG2_SUPPORT - padding_bits:
        raise ValueError(
            f"block_bits = {block_bits}, max_block_bits = {max_block_bits}, padding_bits = {padding_bits}; "
            "they must satisfy 0 < block_bits <= max_block_bits, padding_bits >= 0 and max_block_bits + "
            "padding_bits <= 32"
        )
    shape = q_mean.shape
    if any(value.shape != shape for value in (q_std, p_mean, p_std)):
        shapes = [tuple(value.shape) for value in (q_mean, q_std, p_mean, p_std)]
        raise ShapeError(f"means and scales have the shapes {shapes}; they must be equal")
    q_mean, q_std, p_mean, p_std = (v.to(torch.float64).reshape(-1) for v in (q_mean, q_std, p_mean, p_std))
    DiagonalGaussian(q_mean, q_std), DiagonalGaussian(p_mean, p_std)  # for their checks
    order = _permutation(q_mean.numel(), seed, step, block, q_mean.device)
    shift, ratio = ((q_mean - p_mean) / p_std)[order], (q_std / p_std)[order]
    kl = (0.5 * (ratio**2 + shift**2 - 1) - torch.log(ratio)) / math.log(2)
    plan, kl = plan_blocks(
        kl, block_bits=block_bits, max_block_bits=max_block_bits, padding_bits=padding_bits
    )
    log2_counts = torch.ceil(kl - 1e-9).clamp_min(0).to(torch.int64) + padding_bits
    target = DiagonalGaussian(_to_blocks(shift, plan.blocks, 0.0), _to_blocks(ratio, plan.blocks, 1.0))
    code = encode(
        target,
        _standard_normal(target.lanes, q_mean.device),
        method=method,
        seed=seed,
        step=step,
        block=block,
        candidates=1 << log2_counts,
        kl_bits=plan.kl_eighths / 8,
        support=2**plan.log2_support,
        dtype=torch.float32,
    )
    sample = _from_blocks(code.sample, order, p_mean, p_std)
    return BlockCode(
        code.index, plan, sample.reshape(shape), kl, code.bits, code.log_mass, code.effective_size, method
    )


@torch.no_grad()
def decode_blocks(
    index: Tensor,
    plan: BlockPlan,
    p_mean: Tensor,
    p_std: Tensor,
    *,
    seed: int,
    step: int = 0,
    block: int = 0,
) -> Tensor:
    """The encoder's sample, to the last bit on any machine.

    Args:
        index: (n,) int64.
        plan: the side information.
        p_mean, p_std, seed, step, block: as in `encode_blocks`.

    Returns:
        float64, shape of `p_mean`.
    """
    shape, device = p_mean.shape, p_mean.device
    if (
        p_std.shape != shape
        or index.shape != (plan.blocks,)
        or not 1 <= plan.blocks <= max(1, p_mean.numel())
    ):
        raise ShapeError(
            f"{plan.blocks} blocks, numbers of the shape {tuple(index.shape)}, a mean of {tuple(shape)} and "
            f"scales of {tuple(p_std.shape)} do not belong together"
        )
    p_mean, p_std = (value.to(torch.float64).reshape(-1) for value in (p_mean, p_std))
    order = _permutation(p_mean.numel(), seed, step, block, device)
    normal = _standard_normal(-(-p_mean.numel() // plan.blocks), device)
    number = block + torch.arange(plan.blocks, device=device)
    draws = chosen_draws(normal, seed, step=step, block=number, index=index.to(device))
    return _from_blocks(draws, order, p_mean, p_std).reshape(shape)


def plan_blocks(
    kl: Tensor, *, block_bits: float, max_block_bits: float, padding_bits: int
) -> tuple[BlockPlan, Tensor]:
    """Chooses the number of blocks so that none has more than `max_block_bits`.

    Args:
        kl: divergence of the permuted coordinates in bits, (D,).
        block_bits, max_block_bits, padding_bits: as in `encode_blocks`.

    Returns:
        The plan and the divergences of its blocks, (n,).
    """
    dims = kl.numel()
    if not dims:
        raise ShapeError("there is no coordinate to send")
    if float(kl.max()) > max_block_bits:
        raise SgaError(
            f"one coordinate has a divergence of {float(kl.max()):.4g} bits, more than max_block_bits = "
            f"{max_block_bits}; raise max_block_bits, or approach the target in more steps"
        )
    blocks = min(dims, max(1, math.ceil(float(kl.sum()) / block_bits - 1e-9)))
    while True:
        by_block = _to_blocks(kl, blocks, 0.0).sum(-1)
        if float(by_block.max()) <= max_block_bits:
            break
        blocks = min(dims, math.ceil(blocks * _GROWTH))
    log2_support = max(0, math.ceil(float(by_block.max()) - 1e-9)) + padding_bits
    eighths = index_code.kl_eighths(max(0.0, float(by_block.mean())))
    return BlockPlan(blocks, eighths, log2_support), by_block


def pack_blocks(code: BlockCode) -> bytes:
    """Plan and numbers: three LEB128 integers (blocks, kl_eighths, log2_support), then the numbers."""
    numbers = index_code.encode_numbers([(code.index, code.plan.model(code.method))])
    return _header(code.plan) + numbers


def unpack_blocks(data: bytes, dims: int, *, method: CodingMethod = "orc") -> tuple[BlockPlan, Tensor]:
    """Plan and numbers back from the bytes of `pack_blocks`.

    Args:
        data: the bytes.
        dims: D, which limits the number of blocks.
        method: as in the encoder.

    Raises:
        BitstreamError: the bytes are damaged, or belong to other dimensions.
    """
    values, position = [], 0
    for limit in _HEADER_LIMITS:
        value, position = _read_leb128(data, position)
        if value >= limit:
            raise BitstreamError(
                f"the header of a block code holds {value}; at most {limit - 1} is possible: it is damaged"
            )
        values.append(value)
    plan = BlockPlan(*values)
    if not 1 <= plan.blocks <= dims:
        raise BitstreamError(
            f"a block code has {plan.blocks} blocks for {dims} dimensions: it is damaged or of another size"
        )
    (index,) = index_code.decode_numbers(data[position:], [(plan.blocks, plan.model(method))])
    return plan, index


def _permutation(dims: int, seed: int, step: int, block: int, device: torch.device) -> Tensor:
    """Order of the coordinates, (D,): sorted by shared random words, ties by position."""
    words = prng.words(seed, lanes=dims, step=step, block=block, purpose="permutation", device=device)
    return torch.argsort(words, stable=True)


def _to_blocks(values: Tensor, blocks: int, fill: float) -> Tensor:
    """(D,) to (n, ceil(D / n)), filled up with `fill`."""
    lanes = -(-values.numel() // blocks)
    padding = values.new_full((lanes * blocks - values.numel(),), fill)
    return torch.cat([values, padding]).reshape(lanes, blocks).T.contiguous()


def _from_blocks(draws: Tensor, order: Tensor, p_mean: Tensor, p_std: Tensor) -> Tensor:
    """Standard draws (n, lanes) to the sample (D,)."""
    flat = torch.empty_like(p_mean)
    flat[order] = draws.T.reshape(-1)[: order.numel()]
    return DiagonalGaussian(p_mean, p_std).transform(flat)


def _standard_normal(lanes: int, device: torch.device) -> DiagonalGaussian:
    zeros = torch.zeros(lanes, dtype=torch.float64, device=device)
    return DiagonalGaussian(zeros, torch.ones_like(zeros))


def _header(plan: BlockPlan) -> bytes:
    return b"".join(_leb128(value) for value in (plan.blocks, plan.kl_eighths, plan.log2_support))


def _leb128(value: int) -> bytes:
    """Seven bits a byte, low ones first; the high bit says that more follow."""
    out = bytearray()
    while value >= 128:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def _read_leb128(data: bytes, position: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 35, 7):
        if position >= len(data):
            raise BitstreamError("a block code ends inside its header")
        byte = data[position]
        position += 1
        value |= (byte & 127) << shift
        if byte < 128:
            if byte == 0 and shift:
                break
            return value, position
    raise BitstreamError(
        f"a number in the header of a block code is not in its shortest form (byte {position})"
    )
