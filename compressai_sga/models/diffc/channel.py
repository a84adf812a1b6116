# SPDX-License-Identifier: Apache-2.0
"""The channels of DiffC: how a step's Gaussian is sent when both sides know its divergence approximately.

    trellis   one long message of 0.85 KL bits (`channels.trellis`): the fewest bits for the same image
    orc, pfr  blocks of bounded divergence by reverse channel coding (Theis & Yosri 2022), with the
              candidates of `channels.circulant` and Zipf's code of their numbers

A step's divergence is announced in half octaves, relative to what the ladder expects, for a bit or less. It
determines the message's length, or the blocks and their candidates. Nothing else is sent. For less than half
a bit nothing at all is sent, and the step takes a draw of p.

Neither channel delivers the full shift. A block uses 2^(KL + 2) candidates, as in Vonderfecht & Liu 2025, and
falls short by some 15 %; a message of R bits reaches about sqrt(2 ln 2 R). The closed loop of `process`
corrects for this in later steps, so only the shift per bit matters. It is the same for messages of 0.8 to 1
KL bits; longer ones overshoot.

In:  shift (D,) in units of p's std, announced divergence in thousandths of a bit, seed and step.
Out: parts (numbers, `IndexModel`) for the stream; normal numbers (D,) from them, the same on any machine.
Fails with ``ValueError`` for an unknown method or size.
"""

from __future__ import annotations

import dataclasses
from typing import Literal, get_args

import torch
from torch import Tensor

from ...channels import circulant, index_code, trellis
from ...channels.index_code import IndexModel

__all__ = ["CODES", "Channel", "ChannelName", "announced_millibits"]

ChannelName = Literal["trellis", "orc", "pfr"]

CODES = ("trellis", "blocks")
"""What a decoder must tell apart."""

SIZES = {"trellis": (6, 8, 10, 12), "blocks": (6, 8, 10, 12)}
"""Bits of a trellis' state, divergence of a block: those that a header can name."""

_PADDING_BITS = 2
_ROOTS = (65536, 92682)  # 2^(i / 2) in units of 2^-16
_MESSAGE_PERCENT = 85  # of the divergence, see the head of the file
_MOST_BITS_A_NUMBER = 8  # of a message; the loop sends the rest, if there is one
_WORD_BITS = 16  # of a message, in the stream


def announced_millibits(expected_millibits: int, halves: int) -> int:
    """The announced divergence: expected 2^(halves / 2), the same integer on every machine."""
    scaled = expected_millibits * _ROOTS[halves % 2]
    octaves = halves // 2 - 16
    return scaled << octaves if octaves >= 0 else scaled >> -octaves


@dataclasses.dataclass(frozen=True)
class Channel:
    """A code and its size.

    Args:
        method: "trellis", or "orc" / "pfr", which differ for the encoder only.
        size: in `SIZES`.
    """

    method: ChannelName = "trellis"
    size: int = 10

    def __post_init__(self) -> None:
        if self.method not in get_args(ChannelName):
            raise ValueError(
                f"method is {self.method!r}; it must be one of {', '.join(get_args(ChannelName))}"
            )
        if self.size not in SIZES[self.code]:
            raise ValueError(f"size is {self.size}; for {self.code} it must be one of {SIZES[self.code]}")

    @property
    def code(self) -> str:
        """The name of the code, one of `CODES`."""
        return "trellis" if self.method == "trellis" else "blocks"

    def models(self, dims: int, kl_millibits: int) -> list[tuple[int, IndexModel]]:
        """The numbers of a step in the stream: how many, and of which models."""
        if kl_millibits < 500:
            return []
        if self.method == "trellis":
            whole, rest = divmod(self._message(dims, kl_millibits).sent_bits, _WORD_BITS)
            parts = [(whole, index_code.uniform_model(2**_WORD_BITS))] if whole else []
            return parts + ([(1, index_code.uniform_model(2**rest))] if rest else [])
        split = self._split(dims, kl_millibits)
        zipf = index_code.zipf_model(kl_millibits / 1000 / split.blocks, 2**split.log2_candidates)
        return [(split.blocks, zipf)]

    def send(self, shift: Tensor, kl_millibits: int, *, seed: int, step: int) -> list[Tensor]:
        """The numbers, as `models` has them."""
        dims = shift.numel()
        if kl_millibits < 500:
            return []
        if self.method == "trellis":
            message = self._message(dims, kl_millibits)
            symbols = trellis.encode_message(shift, message, seed=seed, step=step)
            return _words_of(symbols, message)
        split = self._split(dims, kl_millibits)
        return [circulant.choose(shift, split, order=self.method, seed=seed, step=step).cpu()]

    def receive(self, numbers: list[Tensor], dims: int, kl_millibits: int, *, seed: int, step: int) -> Tensor:
        """(D,) float64 normal numbers."""
        if kl_millibits < 500:
            nothing = torch.zeros(1, dtype=torch.int64)
            return circulant.deliver(nothing, circulant.Split(dims, 1, 0), seed=seed, step=step)
        if self.method == "trellis":
            message = self._message(dims, kl_millibits)
            return trellis.decode_message(_symbols_of(numbers, message), message, seed=seed, step=step)
        return circulant.deliver(numbers[0], self._split(dims, kl_millibits), seed=seed, step=step)

    def _message(self, dims: int, kl_millibits: int) -> trellis.Message:
        bits = (_MESSAGE_PERCENT * kl_millibits + 50_000) // 100_000
        return trellis.Message(dims, min(max(1, bits), _MOST_BITS_A_NUMBER * dims), self.size)

    def _split(self, dims: int, kl_millibits: int) -> circulant.Split:
        unit = 1000 * self.size
        blocks = min(dims, max(1, (kl_millibits + unit // 2) // unit))
        log2_candidates = -(-kl_millibits // (1000 * blocks)) + _PADDING_BITS
        return circulant.Split(dims, blocks, min(log2_candidates, self.size * 3 // 2 + _PADDING_BITS))


def _words_of(symbols: Tensor, message: trellis.Message) -> list[Tensor]:
    """Packs symbols into words of 16 bits, the last one with fewer; the first bit is the highest."""
    b = message.symbol_bits
    bits = (symbols.cpu()[:, None] >> torch.arange(b - 1, -1, -1)) & 1
    bits = bits.reshape(-1)
    whole = len(bits) // _WORD_BITS * _WORD_BITS
    parts = [bits[:whole].reshape(-1, _WORD_BITS), bits[whole:][None]]
    return [(part << torch.arange(part.shape[1] - 1, -1, -1)).sum(1) for part in parts if part.numel()]


def _symbols_of(words: list[Tensor], message: trellis.Message) -> Tensor:
    whole, rest = divmod(message.sent_bits, _WORD_BITS)
    widths = [_WORD_BITS] * (whole > 0) + [rest] * (rest > 0)
    bits = torch.cat(
        [((w[:, None] >> torch.arange(n - 1, -1, -1)) & 1).reshape(-1) for w, n in zip(words, widths)]
    )
    b = message.symbol_bits
    return (bits.reshape(-1, b) << torch.arange(b - 1, -1, -1)).sum(1)
