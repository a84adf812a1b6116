# SPDX-License-Identifier: Apache-2.0
"""Blocks of Gaussians whose candidates are rotations of a few vectors: thousands of them from a few draws.

Reverse channel coding of N(shift, I) against N(0, I) in L lanes scores every candidate z_n by <z_n, shift>.
With independent candidates this takes N L draws and products. Here candidate n = g L + r is vector g rotated
by r places, with a random sign for each lane:

    z_n[i] = sign[i] w_g[(i + r) mod L],      w_g ~ N(0, I) independent.

So the scores of all rotations are one circular correlation, L log L operations by the Fourier transform.
Each candidate is still exactly N(0, I). The scores of two rotations of one vector are correlated, by the
autocorrelation of shift * sign. The signs are random, so this is of the order L^-1/2, and the chosen
candidate has the bias and variance that independent candidates would give, within the error of measurement
(see the tests). Where a block has many vectors, up to 16 neighbouring blocks share them, each with its own
signs. The decoder draws one vector a block and needs no transform.

As in `blocks`, a shared random permutation deals the coordinates to the blocks. The caller chooses the
numbers of blocks and of candidates. A block with too much divergence for its candidates raises no error: its
sample falls short of the shift, and a closed loop corrects for it.

In:  the shift of D coordinates in units of the standard deviation, float; a `Split`; seed and step.
Out: the numbers of the candidates, (blocks,) int64; D standard normal numbers with that shift, float64, the
     same bits on any machine. Fails with ``ShapeError`` or ``ValueError`` for arguments that do not fit.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import torch
from torch import Tensor

from ..errors import ShapeError
from . import prng
from .selection import Order, exponentials, select

__all__ = ["MAX_LOG2_CANDIDATES", "Split", "choose", "deliver", "scores"]

MAX_LOG2_CANDIDATES = 24
_MOST_SHARING = 16
_TILE = {"cpu": 2**18, "cuda": 2**24}  # candidates handled at once


@dataclasses.dataclass(frozen=True)
class Split:
    """How D coordinates are cut; both sides know it.

    Args:
        dims: D, at least 1.
        blocks: 1 to D.
        log2_candidates: of each block, 0 to 24; at 0 nothing is chosen and the sample is one of N(0, I).
    """

    dims: int
    blocks: int
    log2_candidates: int

    def __post_init__(self) -> None:
        if not 1 <= self.blocks <= self.dims or not 0 <= self.log2_candidates <= MAX_LOG2_CANDIDATES:
            raise ValueError(
                f"{self.dims} dimensions in {self.blocks} blocks of 2^{self.log2_candidates} candidates; "
                f"choose 1 to {self.dims} blocks and 2^0 to 2^{MAX_LOG2_CANDIDATES} candidates"
            )

    @property
    def lanes(self) -> int:
        """Largest number of coordinates in a block."""
        return -(-self.dims // self.blocks)

    @property
    def vectors(self) -> int:
        """Number of vectors w_0, w_1, ... of a block."""
        return -(-(2**self.log2_candidates) // self.lanes)

    @property
    def sharing(self) -> int:
        """Neighbouring blocks with the same vectors: few, so that far more numbers are drawn than sent."""
        return max(1, min(_MOST_SHARING, self.vectors // 4))


@torch.no_grad()
def choose(shift: Tensor, split: Split, *, order: Order = "orc", seed: int, step: int = 0) -> Tensor:
    """The candidates' numbers, argmin_n log T_n - <z_n, shift> in each block (`selection`).

    Args:
        shift: (D,).
        split: of the coordinates.
        order: of the arrival times: "orc", "pfr" or "mrc".
        seed, step: of the shared randomness.

    Returns:
        (blocks,) int64, in [0, 2^log2_candidates).
    """
    index = torch.zeros(split.blocks, dtype=torch.int64, device=shift.device)
    for block, score in scores(shift, split, seed=seed, step=step):
        count = score.shape[1]
        draws = exponentials(seed, step=step, block=block, first=0, count=max(4, count))[:, :count]
        index[block] = select(score.double(), draws, order)
    return index


@torch.no_grad()
def scores(shift: Tensor, split: Split, *, seed: int, step: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
    """<z_n, shift> of all candidates, some blocks at a time.

    Args:
        shift: (D,).
        split: of the coordinates; with a single candidate there is nothing to score.
        seed, step: of the shared randomness.

    Yields:
        Numbers of blocks (b,), rising, and float32 scores (b, 2^log2_candidates).
    """
    if shift.shape != (split.dims,):
        raise ShapeError(f"shift has the shape {tuple(shift.shape)}; it must be ({split.dims},)")
    if not bool(torch.isfinite(shift).all()):
        raise ValueError("shift holds NaN or infinity; check the network and the image")
    count, lanes, device = 2**split.log2_candidates, split.lanes, shift.device
    if count == 1:
        return
    order_of, sign = _deal(split, seed, step, device)
    padded = shift.new_zeros(split.blocks * lanes, dtype=torch.float32)
    padded[: split.dims] = (shift[order_of] * sign).float()
    spectrum = torch.fft.rfft(padded.reshape(lanes, split.blocks).T).conj()
    group, sharing = torch.arange(split.vectors, device=device), split.sharing
    rows = max(1, _TILE.get(device.type, _TILE["cpu"]) // (len(group) * lanes * sharing)) * sharing
    for first in range(0, split.blocks, rows):
        block = torch.arange(first, min(first + rows, split.blocks), device=device)
        bank = torch.arange(first // sharing, int(block[-1]) // sharing + 1, device=device)
        address = {"step": step, "block": bank[:, None], "candidate": group}
        w = torch.fft.rfft(prng.normal(seed, lanes=lanes, **address, dtype=torch.float32))
        shared = w.repeat_interleave(sharing, 0)[: len(block)] if sharing > 1 else w
        score = torch.fft.irfft(shared * spectrum[block][:, None], n=lanes)
        yield block, score.flatten(1)[:, :count]


@torch.no_grad()
def deliver(index: Tensor, split: Split, *, seed: int, step: int = 0) -> Tensor:
    """The standard normal numbers that the encoder chose.

    Args:
        index: (blocks,) int64.
        split, seed, step: as in `choose`.

    Returns:
        (D,) float64.
    """
    if index.shape != (split.blocks,):
        raise ShapeError(f"index has the shape {tuple(index.shape)}; there are {split.blocks} blocks")
    if bool(((index < 0) | (index >= 2**split.log2_candidates)).any()):
        raise ValueError(f"an index is outside [0, 2^{split.log2_candidates}); check where it came from")
    lanes, device = split.lanes, index.device
    order_of, sign = _deal(split, seed, step, device)
    group, turn = torch.div(index, lanes, rounding_mode="floor"), index % lanes
    bank = torch.arange(split.blocks, device=device) // split.sharing
    w = prng.normal(seed, lanes=lanes, step=step, block=bank, candidate=group)
    place = (torch.arange(lanes, device=device) + turn[:, None]) % lanes
    turned = w.gather(1, place).T.reshape(-1)[: split.dims]
    normal = torch.empty_like(turned)
    normal[order_of] = turned * sign
    return normal


def _deal(split: Split, seed: int, step: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Order of the coordinates, block by block within each lane, and the sign of each place."""
    words = prng.words(seed, lanes=split.dims, step=step, purpose="permutation", device=device)
    # The upper bits sort, the lowest is a coin of its own.
    return torch.argsort(words >> 1, stable=True), (2 * (words & 1) - 1)
