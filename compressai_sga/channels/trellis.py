# SPDX-License-Identifier: Apache-2.0
"""A trellis code for samples of a Gaussian: a long message instead of many short blocks.

A block of reverse channel coding with 2^R candidates gets a sample whose score, <z, shift> / |shift|, is the
largest of 2^R normal numbers. For R = 14 an ideal channel needs only 11 bits for that score. The loss falls
slowly, as log(R) / R, while the work grows as 2^R. In a trellis code a candidate's vector depends on the bits
before it:

    state_t = last k bits sent,   number_t = (state_t, next b bits) < 2^(k + b),   z_t = candidate number_t

of segment t, drawn as in `circulant`. Viterbi's algorithm finds the message with the largest total score in
2^(k + b) operations a segment. A trellis with random vectors on its branches reaches the rate-distortion
function as k grows (Viterbi & Omura 1974); here it is 10 % above it for k = 12 (tests). The message is
tail-biting, that is, a circle: a second search starts in the last state of the first. So the first bits are
worth as much as the others.

The decoder draws one candidate a segment. Its result differs from a sample of N(shift, I) in one respect: the
score does not vary, but is about sqrt(2 ln 2 R), whatever |shift| is. Choose R so that this is at most
|shift|. In the other D - 1 directions the result is noise, as it should be.

In:  the shift of D coordinates in units of the standard deviation; a `Message`; seed and step.
Out: b bits a segment, (segments,) int64, all equally likely; D standard normal numbers from them, float64,
     the same bits on any machine. Fails with ``ShapeError`` or ``ValueError`` for arguments that do not fit.
"""

from __future__ import annotations

import dataclasses
import itertools

import torch
from torch import Tensor

from ..errors import ShapeError
from .circulant import MAX_LOG2_CANDIDATES, Split, deliver, scores

__all__ = ["Message", "decode_message", "encode_message"]


_EXHAUSTIVE_BITS = 12
_LONGEST = 1024  # segments in a circle
_SHORT, _STARTS = 64, 2**15  # segments up to which, and states over all, several starts are tried


@dataclasses.dataclass(frozen=True)
class Message:
    """How a message is laid out; both sides know it.

    Args:
        dims: D.
        bits: R, at least 1.
        state_bits: k, at least 1; messages shorter than k + b bits have less.
    """

    dims: int
    bits: int
    state_bits: int = 12

    def __post_init__(self) -> None:
        if (
            self.dims < 1
            or self.bits < 1
            or not 1 <= self.state_bits + self.symbol_bits <= MAX_LOG2_CANDIDATES
        ):
            raise ValueError(
                f"{self.bits} bits for {self.dims} dimensions with {self.state_bits} bits of state; give at "
                f"least 1 of each, and at most {MAX_LOG2_CANDIDATES} bits for state and symbol together"
            )

    @property
    def symbol_bits(self) -> int:
        """b: 1, except with more bits than dimensions, or with so few bits that all messages can be tried."""
        return self.bits if self.bits <= _EXHAUSTIVE_BITS else -(-self.bits // self.dims)

    @property
    def segments(self) -> int:
        """Number of segments of the coordinates; the message has b bits for each."""
        return self.bits // self.symbol_bits

    @property
    def sent_bits(self) -> int:
        """R, or a little less where the segments have several bits each."""
        return self.segments * self.symbol_bits

    @property
    def parts(self) -> list[int]:
        """Segments of each circle: long messages are cut into equal parts, so that memory is bounded."""
        count = -(-self.segments // _LONGEST)
        ends = [self.segments * i // count for i in range(count + 1)]
        return [end - start for start, end in zip(ends, ends[1:])]

    @property
    def split(self) -> Split:
        """The candidates of the segments."""
        # Short circles do better with less memory than a quarter of them, by experiment.
        state = min(self.state_bits, self.symbol_bits * (min(self.parts) // 4))
        return Split(self.dims, self.segments, state + self.symbol_bits)


@torch.no_grad()
def encode_message(shift: Tensor, message: Message, *, seed: int, step: int = 0) -> Tensor:
    """The message with the largest score; arguments as `circulant.choose`.

    Returns:
        (segments,) int64, in [0, 2^b).
    """
    split, parts = message.split, []
    rows = (row for _, score in scores(shift, split, seed=seed, step=step) for row in score)
    for length in message.parts:
        table = torch.stack(list(itertools.islice(rows, length)))
        parts.append(_tail_biting(table, message.symbol_bits))
    return torch.cat(parts)


@torch.no_grad()
def decode_message(symbols: Tensor, message: Message, *, seed: int, step: int = 0) -> Tensor:
    """The standard normal numbers that the encoder chose.

    Args:
        symbols: (segments,) int64.
        message, seed, step: as in `encode_message`.

    Returns:
        (D,) float64.
    """
    b, total = message.symbol_bits, message.split.log2_candidates
    if symbols.shape != (message.segments,):
        raise ShapeError(f"symbols have the shape {tuple(symbols.shape)}; there are {message.segments}")
    if bool(((symbols < 0) | (symbols >= 2**b)).any()):
        raise ValueError(f"a symbol is outside [0, 2^{b}); check where it came from")
    numbers = []
    for part in symbols.split(message.parts):
        number = torch.zeros_like(part)
        for back in reversed(range(-(-total // b))):
            number = (number << b) | part.roll(back)
        numbers.append(number & (2**total - 1))
    return deliver(torch.cat(numbers), message.split, seed=seed, step=step)


def _tail_biting(table: Tensor, b: int) -> Tensor:
    """Symbols (T,) of the best path in a circle, nearly: scores (T, 2^(k + b))."""
    states, middle = table.shape[1] >> b, len(table) // 2
    metric = table.new_zeros(1, states)
    for part in (table, table[:middle]):
        metric = _viterbi(part, metric, b)
    # States in which good paths are, once round the circle: in a short one each in turn as start and end.
    tried = min(states, max(1, _STARTS // states)) if len(table) <= _SHORT else 1
    starts = metric[0].topk(tried).indices
    tied = torch.full((tried, states), -torch.inf, device=table.device)
    tied.scatter_(1, starts[:, None], 0.0)
    rolled, best = table.roll(-middle, 0), 0
    if tried > 1:
        best = int(_viterbi(rolled, tied, b).gather(1, starts[:, None]).argmax())
    back = torch.empty(len(table), states, dtype=torch.int32, device=table.device)
    _viterbi(rolled, tied[best : best + 1], b, back)
    return torch.tensor(_trace(back, int(starts[best]), b), device=table.device).roll(middle)


def _viterbi(table: Tensor, metric: Tensor, b: int, back: Tensor | None = None) -> Tensor:
    """Total scores of the best paths to each state.

    Args:
        table: (T, 2^(k + b)).
        metric: (starts, 2^k), scores before, of several starts.
        b: bits a segment.
        back: (T, 2^k), where the b bits that the best path dropped are written; for one start.

    Returns:
        (starts, 2^k).
    """
    starts, states = metric.shape
    for t, score in enumerate(table):
        arriving = (metric[:, :, None] + score.view(states, 2**b)).view(starts, 2**b, states)
        if b == 1:  # max() over two is slow
            if back is not None:
                back[t] = arriving[0, 1] > arriving[0, 0]
            metric = torch.maximum(arriving[:, 0], arriving[:, 1])
        else:
            metric, dropped = arriving.max(1)
            if back is not None:
                back[t] = dropped[0]
    return metric


def _trace(back: Tensor, state: int, b: int) -> list[int]:
    """The symbols of the path to a state at the end: back is (T, 2^k)."""
    states, symbols = back.shape[1], []
    for dropped in reversed(back.cpu().numpy()):
        number = int(dropped[state]) * states + state
        symbols.append(number % 2**b)
        state = number >> b
    return symbols[::-1]
