# SPDX-License-Identifier: Apache-2.0
"""Shared randomness: the same draws for encoder and decoder, on every device and in every version.

Each draw has an address, (seed, step, block, candidate, lane, purpose), and does not depend on earlier draws.
So candidate n costs no more than candidate 0, and the order of a batch does not matter. Philox4x32-10
(Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011) turns the address into words:

    counter = (candidate, lane // 4 + 2^24 purpose, block, step),  key = (seed mod 2^32, seed / 2^32)

and word (lane mod 4) of the result belongs to the lane. All arithmetic is on integers, in torch's int64, so
that CPU and CUDA run the same code. Normal numbers come from a table of quantiles with integer
interpolation, not from libm's log and cos, whose last bit differs between machines.

In:  a seed in [0, 2^64); integers or int64 tensors in [0, 2^32) for step, block and candidate, which
     broadcast together; a number of lanes (dimensions) up to 2^26.
Out: (*broadcast shape, lanes): 32-bit words, uniforms in (0, 1), or normals within +-6.34.
Fails with ``ValueError`` for a number out of its range.
"""

from __future__ import annotations

import functools
import statistics
import zlib
from typing import Literal, get_args

import torch
from torch import Tensor

__all__ = ["Purpose", "normal", "philox4x32", "uniform", "words"]

Purpose = Literal["sample", "dither", "time", "permutation"]

_MASK = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10
_LANE_BITS = 24

_OCTAVES = 32
_NODES_BITS = 8  # nodes of the table of quantiles in an octave of tail probability
_FRACTION_BITS = 26  # of a normal number
_TABLE_CRC32 = 0x04E6AB36


def philox4x32(counter: Tensor, key: tuple[int, int]) -> Tensor:
    """Philox4x32-10: a bijection of 128-bit counters for every 64-bit key.

    Args:
        counter: int64, shape (..., 4), words in [0, 2^32).
        key: two words in [0, 2^32).

    Returns:
        int64, shape (..., 4), words in [0, 2^32).
    """
    return torch.stack(torch.broadcast_tensors(*_philox(*counter.unbind(-1), key=key)), dim=-1)


def words(
    seed: int,
    *,
    lanes: int,
    step: int | Tensor = 0,
    block: int | Tensor = 0,
    candidate: int | Tensor = 0,
    purpose: Purpose = "sample",
    device: torch.device | str | None = None,
) -> Tensor:
    """Independent uniform 32-bit words at the given addresses.

    Args:
        seed: of everything that shares its randomness, in [0, 2^64).
        lanes: number of words at each address, at most 2^26.
        step, block, candidate: the address, in [0, 2^32); tensors broadcast together.
        purpose: what the draws are for; different purposes are independent.
        device: of the result; that of the tensors if there is one, else the CPU.

    Returns:
        int64, shape (*broadcast(step, block, candidate), lanes), values in [0, 2^32).

    Raises:
        ValueError: a number is out of its range.
    """
    quads = _quads(seed, lanes, step, block, candidate, purpose, device)
    return torch.stack(quads, dim=-1).flatten(-2)[..., :lanes]


def uniform(
    seed: int,
    *,
    lanes: int,
    step: int | Tensor = 0,
    block: int | Tensor = 0,
    candidate: int | Tensor = 0,
    purpose: Purpose = "sample",
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float64,
) -> Tensor:
    """Independent uniform numbers (w + 1/2) / 2^32 in the open interval (0, 1).

    Args and Raises as `words`; in float32 only the first 23 bits are used, so that 1 is not reached.

    Returns:
        Shape (*broadcast(step, block, candidate), lanes) in `dtype`, exact: no rounding is involved.
    """
    drawn = words(
        seed, lanes=lanes, step=step, block=block, candidate=candidate, purpose=purpose, device=device
    )
    if dtype == torch.float64:
        return (2 * drawn + 1).to(dtype) * 2.0**-33
    if dtype == torch.float32:
        return ((drawn >> 9) * 2 + 1).to(dtype) * 2.0**-24
    raise ValueError(f"dtype is {dtype}; uniforms come as torch.float64 or torch.float32")


def normal(
    seed: int,
    *,
    lanes: int,
    step: int | Tensor = 0,
    block: int | Tensor = 0,
    candidate: int | Tensor = 0,
    purpose: Purpose = "sample",
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float64,
) -> Tensor:
    """Independent standard normal numbers, multiples of 2^-26 within +-6.34.

    One bit of a word is the sign; the others are the tail probability p = (2k + 1) / 2^33, whose
    quantile is interpolated between the nodes p = 2^-e (1 + j / 256). The interpolation is off by
    less than 3e-6.

    Args and Raises as `words`.

    Returns:
        Shape (*broadcast(step, block, candidate), lanes) in `dtype`; exact in float64, correctly
        rounded in float32.
    """
    if dtype not in (torch.float64, torch.float32):
        raise ValueError(f"dtype is {dtype}; normals come as torch.float64 or torch.float32")
    quads = _quads(seed, lanes, step, block, candidate, purpose, device)
    drawn = torch.stack([_to_normal(quad) for quad in quads], dim=-1).flatten(-2)[..., :lanes]
    return drawn.to(dtype) * 2.0**-_FRACTION_BITS


def _quads(
    seed: int,
    lanes: int,
    step: int | Tensor,
    block: int | Tensor,
    candidate: int | Tensor,
    purpose: Purpose,
    device: torch.device | str | None,
) -> list[Tensor]:
    """Words lane mod 4 = 0, 1, 2, 3 of every address, each of shape (*address, ceil(lanes / 4))."""
    purposes = get_args(Purpose)
    if purpose not in purposes:
        raise ValueError(f"purpose is {purpose!r}; choose one of {', '.join(purposes)}")
    if not 0 <= seed < 2**64:
        raise ValueError(f"seed is {seed}; it must lie in [0, 2^64): take it modulo 2**64")
    if not isinstance(lanes, int):
        raise ValueError(f"lanes is {lanes!r}; it is a number of dimensions, an int")
    groups = -(-lanes // 4)
    if not 0 <= lanes <= 4 << _LANE_BITS:
        raise ValueError(f"lanes is {lanes}; at most 2^26 fit: split the dimensions into blocks")
    address = {"step": step, "block": block, "candidate": candidate}
    if device is None:
        tensors = [value for value in address.values() if isinstance(value, Tensor)]
        device = tensors[0].device if tensors else torch.device("cpu")
    columns = {name: _column(name, value, device) for name, value in address.items()}
    lane = torch.arange(groups, device=device) + (purposes.index(purpose) << _LANE_BITS)
    result = _philox(
        columns["candidate"], lane, columns["block"], columns["step"], key=(seed & _MASK, seed >> 32)
    )
    return list(torch.broadcast_tensors(*result))


def _column(name: str, value: int | Tensor, device: torch.device | str) -> Tensor:
    """An address part with one more dimension, for the lanes."""
    column = torch.as_tensor(value, device=device)
    if column.is_floating_point():
        raise ValueError(f"{name} has the type {column.dtype}; addresses are integers")
    if column.numel() and not (0 <= int(column.min()) and int(column.max()) <= _MASK):
        raise ValueError(f"{name} spans {int(column.min())} to {int(column.max())}; it must lie in [0, 2^32)")
    return column.to(torch.int64)[..., None]


def _philox(c0: Tensor, c1: Tensor, c2: Tensor, c3: Tensor, *, key: tuple[int, int]) -> list[Tensor]:
    """Ten rounds on the four words of broadcastable counters.

    A product of two 32-bit words overflows int64, one with (multiplier - 2^32) does not; the missing
    2^32 times the word is added to the high half.
    """
    k0, k1 = key
    signed0, signed1 = (multiplier - 2**32 for multiplier in _MULTIPLIERS)
    for _ in range(_ROUNDS):
        product0, product1 = c0 * signed0, c2 * signed1
        high0, high1 = (product0 >> 32).add_(c0), (product1 >> 32).add_(c2)
        # Only here do tensors of different shapes meet; what they give is new and may be changed.
        c0, c2 = (high1 ^ (c1 ^ k0)).bitwise_and_(_MASK), (high0 ^ (c3 ^ k1)).bitwise_and_(_MASK)
        c1, c3 = product1.bitwise_and_(_MASK), product0.bitwise_and_(_MASK)
        k0, k1 = (k0 + _WEYL[0]) & _MASK, (k1 + _WEYL[1]) & _MASK
    return [c0, c1, c2, c3]


def _to_normal(word: Tensor) -> Tensor:
    """Words to normal numbers in units of 2^-26; int64 in, int64 out."""
    upper, drop = _quantiles(word.device)
    tail = word | 1  # 2k + 1; bit 0 is the sign
    # A float64 holds the integer exactly: exponent and leading mantissa bits are the node's index.
    bits = tail.to(torch.float64).view(torch.int64)
    node = (bits >> (52 - _NODES_BITS)).sub_(1023 << _NODES_BITS)
    fraction = (bits >> (52 - _NODES_BITS - 24)).bitwise_and_(2**24 - 1)
    size = upper[node].sub_((drop[node] * fraction) >> 24)
    return torch.where((word & 1).bool(), -size, size)


@functools.cache
def _quantiles(device: torch.device) -> tuple[Tensor, Tensor]:
    """Quantiles at the nodes and their decrease to the next node, in units of 2^-26."""
    inverse = statistics.NormalDist().inv_cdf
    nodes = 1 << _NODES_BITS
    tails = [2.0 ** (octave - 33) * (1 + j / nodes) for octave in range(_OCTAVES) for j in range(nodes)]
    # inv_cdf needs libm's log and sqrt, but no node is within 7e-5 units of being rounded otherwise.
    table = torch.tensor([round(-inverse(p) * 2**_FRACTION_BITS) for p in [*tails, 0.5]], dtype=torch.int64)
    crc32 = zlib.crc32(table.to(torch.int32).numpy().tobytes())
    if crc32 != _TABLE_CRC32:
        raise RuntimeError(
            f"the table of normal quantiles has crc32 {crc32:#x}, not {_TABLE_CRC32:#x}: this "
            "machine's arithmetic is not IEEE 754, and what it sends others cannot decode"
        )
    table = table.to(device)
    return table[:-1], table[:-1] - table[1:]
