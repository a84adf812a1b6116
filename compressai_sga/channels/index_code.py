# SPDX-License-Identifier: Apache-2.0
"""The code of a candidate's number: Zipf's law when both sides know the KL divergence, else Elias-delta.

Li & El Gamal, "Strong functional representation lemma", 2018, and Theis & Yosri, "Algorithms for the
communication of samples", 2022: the number m = n + 1 >= 1 of a Poisson functional representation has
E[log2 m] <= KL + e^-1 log2 e + 1 =: L, and with the distribution

    P(m) ~ m^-lambda,  lambda = 1 + 1 / L,       it costs less than KL + log2(KL + 1) + 4 bits,

while Elias-delta, |m| + 2 |1 + |m|| + 1 bits with |m| = floor(log2 m), needs no KL.

Numbers reach 2^32, so the table has bins instead of single numbers: a bin for each m < 32, then 16 bins an
octave, with equal probabilities inside a bin (0.0001 bits lost). The masses of the bins are computed with
Python's `decimal`, whose ln and exp are correctly rounded by specification, at a KL divergence rounded to
eighths of a bit, and then rounded to multiples of 2^-20. So all machines get the same table, whatever their
libm. They must agree on the rounded divergence: where each side would compute it in floating point, send
`kl_eighths`. `constriction` (pinned by its major version) codes with the table.

In:  0-based int64 numbers and the model of each group of them.
Out: bytes, 32-bit little-endian words of a range coder; the length in bits of each number.
Fails with ``ValueError`` for a number outside its support, ``BitstreamError`` for bytes that no encoder
     wrote: what is decoded is encoded again and compared. A checksum is the container's task.
"""

from __future__ import annotations

import dataclasses
import decimal
import functools
import math
from collections.abc import Sequence

import constriction
import numpy as np
import torch
from torch import Tensor

from ..errors import BitstreamError

models, queue = constriction.stream.model, constriction.stream.queue

__all__ = [
    "MAX_KL_EIGHTHS",
    "MAX_SUPPORT",
    "IndexModel",
    "decode_numbers",
    "elias_delta_bits",
    "elias_delta_model",
    "encode_numbers",
    "kl_eighths",
    "put_numbers",
    "take_numbers",
    "uniform_model",
    "zipf_bits",
    "zipf_exponent",
    "zipf_model",
]

MAX_SUPPORT = 2**32  # of a candidate's number, as in `prng`

_E_INV_LOG2_E = math.log2(math.e) / math.e
_SINGLES_BITS = 5  # m below 2^5 has a bin of its own
_BINS_BITS = 4  # bins an octave above
_MASS_BITS = 20
_DIGITS = 24  # of the decimal arithmetic
_RAW_BITS = 16  # of a position, coded at once; constriction's limit is 24
MAX_KL_EIGHTHS = 8 * 1024


def zipf_exponent(kl_bits: float | Tensor) -> float | Tensor:
    """lambda = 1 + 1 / (KL + e^-1 log2 e + 1), KL in bits. Li & El Gamal 2018, theorem 1."""
    return 1 + 1 / (kl_bits + _E_INV_LOG2_E + 1)


def kl_eighths(kl_bits: float) -> int:
    """A KL divergence in eighths of a bit, at most 1024 bits; encoder and decoder must agree on it."""
    if not kl_bits > -1e-3:  # KL of equal distributions may come out as -1e-17
        raise ValueError(f"kl_bits is {kl_bits}; a divergence is not negative")
    return min(max(0, round(8 * kl_bits)) if math.isfinite(kl_bits) else MAX_KL_EIGHTHS, MAX_KL_EIGHTHS)


def zipf_bits(index: Tensor, kl_bits: float | Tensor, support: int | None = None) -> Tensor:
    """Ideal length lambda log2(n + 1) + log2 sum_m m^-lambda, without rounding the divergence.

    Args:
        index: 0-based numbers, any shape.
        kl_bits: divergence in bits, a number or of the shape of `index`.
        support: how many numbers there are; None for infinitely many.

    Returns:
        Bits, float64, shape of `index`.
    """
    kl_bits = torch.as_tensor(kl_bits, dtype=torch.float64, device=index.device)
    exponent = zipf_exponent(kl_bits)
    return exponent * torch.log2(index.to(torch.float64) + 1) + torch.log2(_zeta(exponent, support))


def elias_delta_bits(index: Tensor) -> Tensor:
    """Length of the Elias-delta code of n + 1: |m| + 2 |1 + |m|| + 1, |m| = floor(log2 m); int64."""
    octave = _floor_log2(index + 1)
    return octave + 2 * _floor_log2(octave + 1) + 1


@dataclasses.dataclass(frozen=True)
class IndexModel:
    """A distribution on 0, ..., support - 1: a mass for every bin, equal probabilities inside.

    Args:
        edges: first number of every bin, and the support at the end; ascending from 0.
        masses: of the bins, in units of 2^-20, each at least 1.
    """

    edges: tuple[int, ...]
    masses: tuple[int, ...]

    @property
    def support(self) -> int:
        return self.edges[-1]

    @property
    def bin_bits(self) -> np.ndarray:
        """Length of a number in each bin, float64."""
        masses = np.asarray(self.masses, dtype=np.float64)
        return np.log2(np.diff(np.asarray(self.edges, dtype=np.int64))) - np.log2(masses / masses.sum())

    def bits(self, index: Tensor) -> Tensor:
        """Length of every number, float64; the shape of `index`."""
        flat = _checked_numbers(index, self)
        chosen = np.searchsorted(np.asarray(self.edges, dtype=np.int64), flat, side="right") - 1
        return torch.from_numpy(self.bin_bits[chosen]).reshape(index.shape).to(index.device)


@functools.lru_cache(maxsize=256)
def _zipf_table(eighths: int, support: int) -> IndexModel:
    """Bins and masses of Zipf's law in decimal arithmetic.

    The mass of a bin [a, b) is the sum of f(m) = m^-lambda, by Euler-Maclaurin
    (a^(1-lambda) - b^(1-lambda)) / (lambda - 1) + (f(a) - f(b)) / 2 + (f'(b) - f'(a)) / 12.
    """
    edges = _octave_edges(support, _SINGLES_BITS, _BINS_BITS)
    with decimal.localcontext(decimal.Context(prec=_DIGITS, rounding=decimal.ROUND_HALF_EVEN)):
        one, two = decimal.Decimal(1), decimal.Decimal(2)
        offset = one / (decimal.Decimal(eighths) / 8 + one + one / (one.exp() * two.ln()))
        exponent = one + offset
        values = [decimal.Decimal(edge + 1) for edge in edges]
        tails = [(-offset * value.ln()).exp() for value in values]  # a^(1 - lambda)
        masses = []
        for a, b, tail_a, tail_b in zip(values, values[1:], tails, tails[1:]):
            f_a, f_b = tail_a / a, tail_b / b
            if b - a == 1:
                masses.append(f_a)
                continue
            slopes = exponent * (f_a / a - f_b / b)
            masses.append((tail_a - tail_b) / offset + (f_a - f_b) / 2 + slopes / 12)
        total = sum(masses)
        counts = [max(1, int((mass / total * 2**_MASS_BITS).to_integral_value())) for mass in masses]
    return IndexModel(tuple(edges), tuple(counts))


def zipf_model(kl_bits: float, support: int = MAX_SUPPORT) -> IndexModel:
    """Zipf's law for a divergence that both sides know, rounded to eighths of a bit.

    Args:
        kl_bits: of target and proposal, in bits, >= 0.
        support: how many numbers there are, at most 2^32: the candidates of a truncated method.
    """
    return _zipf_table(kl_eighths(kl_bits), _checked_support(support))


@functools.lru_cache(maxsize=256)
def elias_delta_model(support: int = MAX_SUPPORT) -> IndexModel:
    """The distribution 2^-length of the Elias-delta code: one bin an octave, renormalised to the support."""
    edges = _octave_edges(_checked_support(support), 0, 0)
    octaves = torch.arange(len(edges) - 1)
    lengths = 2 * _floor_log2(octaves + 1) + 1
    return IndexModel(tuple(edges), tuple((2 ** (_MASS_BITS - lengths)).tolist()))


@functools.lru_cache(maxsize=256)
def uniform_model(support: int) -> IndexModel:
    """Equal probabilities: log2(support) bits, for MRC's number and the hybrid's cells."""
    return IndexModel((0, _checked_support(support)), (2**_MASS_BITS,))


Part = tuple[Tensor, IndexModel]


def encode_numbers(parts: Sequence[Part]) -> bytes:
    """Encodes numbers as one stream.

    Args:
        parts: (numbers, model) pairs; the numbers an int64 tensor of any shape, in [0, model.support).

    Returns:
        Whole 32-bit words, at most 5 bytes more than the sum of the lengths.

    Raises:
        ValueError: a number is outside its support.
    """
    encoder = queue.RangeEncoder()
    put_numbers(encoder, parts)
    return encoder.get_compressed().astype("<u4").tobytes()


def put_numbers(encoder: queue.RangeEncoder, parts: Sequence[Part]) -> None:
    """Appends numbers to what a constriction encoder holds; arguments as in `encode_numbers`."""
    for numbers, model in parts:
        flat = _checked_numbers(numbers, model)
        edges = np.asarray(model.edges, dtype=np.int64)
        chosen = np.searchsorted(edges, flat, side="right") - 1
        if len(model.masses) > 1 and len(flat):
            encoder.encode(chosen.astype(np.int32), _categorical(model.masses))
        position, sizes = flat - edges[chosen], np.diff(edges)[chosen]
        high, low = _digit_sizes(sizes)
        for digit, radix in ((position // low, high), (position % low, low)):
            several = radix > 1
            if several.any():
                encoder.encode(digit[several].astype(np.int32), models.Uniform(), radix[several])


def decode_numbers(data: bytes, parts: Sequence[tuple[int, IndexModel]]) -> list[Tensor]:
    """The numbers back, from the bytes and the same models.

    Args:
        data: what `encode_numbers` gave.
        parts: (how many numbers, model) pairs, in the encoder's order.

    Returns:
        For each part int64, shape (how many,).

    Raises:
        BitstreamError: the bytes are not what an encoder writes for any numbers of these models.
    """
    if len(data) % 4:
        raise BitstreamError(f"a stream of numbers has {len(data)} bytes; it must consist of 4-byte words")
    least_bits = sum(count * float(model.bin_bits.min()) for count, model in parts)
    if least_bits * (1 - 2.0**-10) > 8 * len(data):
        raise BitstreamError(
            f"a stream of numbers has {len(data)} bytes; its numbers take at least {least_bits:.1f} bits"
        )
    decoder = queue.RangeDecoder(np.frombuffer(data, dtype="<u4").astype(np.uint32))
    decoded = []
    try:
        for count, model in parts:
            decoded.append(take_numbers(decoder, count, model))
    except (AssertionError, ValueError) as error:  # constriction's way to refuse
        raise BitstreamError(f"a stream of numbers is damaged: {error}") from error
    if encode_numbers([(numbers, model) for numbers, (_, model) in zip(decoded, parts)]) != data:
        raise BitstreamError(
            "a stream of numbers decodes, but no encoder writes these bytes: they are damaged, cut, or coded "
            "with other models"
        )
    return decoded


def take_numbers(decoder: queue.RangeDecoder, count: int, model: IndexModel) -> Tensor:
    """The next `count` numbers of a constriction decoder, int64 (count,): the inverse of `put_numbers`.

    Raises:
        AssertionError, ValueError: constriction's, or a position outside its bin: no encoder wrote this.
    """
    edges = np.asarray(model.edges, dtype=np.int64)
    chosen = np.zeros(count, dtype=np.int64)
    if len(model.masses) > 1 and count:
        chosen = decoder.decode(_categorical(model.masses), count).astype(np.int64)
    sizes = np.diff(edges)[chosen]
    high, low = _digit_sizes(sizes)
    digits = [np.zeros(count, dtype=np.int64) for _ in range(2)]
    for digit, radix in zip(digits, (high, low)):
        several = radix > 1
        if several.any():
            digit[several] = decoder.decode(models.Uniform(), radix[several])
    position = digits[0] * low + digits[1]
    if (position >= sizes).any():
        raise ValueError(f"a position of {int(position.max())} lies outside its bin")
    return torch.from_numpy(edges[chosen] + position)


def _digit_sizes(sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Radices of the two digits, high and low, in which a position below `sizes` <= 2^32 is coded.

    The low digit is a power of two, and 1 below 2^16; the high one then has at least 2^15 values, so
    that a last one which is only partly used costs less than 2^-15 of the rest.
    """
    exponent = np.frexp((sizes - 1).astype(np.float64))[1]
    low = np.left_shift(1, np.maximum(exponent - _RAW_BITS, 0)).astype(np.int32)
    return ((sizes - 1) // low + 1).astype(np.int32), low


@functools.lru_cache(maxsize=256)
def _categorical(masses: tuple[int, ...]) -> models.Categorical:
    """Masses as a model; float64 holds them exactly, the rest is constriction's fixed-point arithmetic."""
    return models.Categorical(np.asarray(masses, dtype=np.float64) * 2.0**-_MASS_BITS, perfect=False)


def _octave_edges(support: int, singles_bits: int, bins_bits: int) -> list[int]:
    """0-based first numbers of the bins of m = n + 1: singles, then 2^bins_bits bins an octave."""
    edges = [m - 1 for m in range(1, 2**singles_bits)]
    octave = singles_bits
    while 2**octave - 1 < support:
        width = 2 ** (octave - bins_bits) if octave > bins_bits else 1
        edges += [m - 1 for m in range(2**octave, 2 ** (octave + 1), width)]
        octave += 1
    return [edge for edge in edges if edge < support] + [support]


def _zeta(exponent: Tensor, support: int | None) -> Tensor:
    """sum_m m^-exponent over 1 <= m <= support, by Euler-Maclaurin after the first 64 terms."""
    terms = 64 if support is None else min(64, support)
    first = torch.arange(1, terms + 1, dtype=torch.float64, device=exponent.device)
    head = (first ** -exponent[..., None]).sum(-1)

    def tail(a: int) -> Tensor:
        """Sum over m >= a."""
        power = a**-exponent
        return a * power / (exponent - 1) + power / 2 + exponent * power / a / 12

    if support is None:
        return head + tail(terms + 1)
    return head if support == terms else head + tail(terms + 1) - tail(support + 1)


def _floor_log2(values: Tensor) -> Tensor:
    """floor(log2 m) of positive integers below 2^53, from the exponent of their float64."""
    return torch.frexp(values.to(torch.float64)).exponent.to(torch.int64) - 1


def _checked_support(support: int) -> int:
    if not 1 <= support <= MAX_SUPPORT:
        raise ValueError(f"support is {support}; numbers are coded up to 2^32")
    return int(support)


def _checked_numbers(numbers: Tensor, model: IndexModel) -> np.ndarray:
    if numbers.is_floating_point():
        raise ValueError(f"numbers have the type {numbers.dtype}; they are integers")
    flat = numbers.detach().reshape(-1).cpu().numpy().astype(np.int64)
    if len(flat) and not (flat.min() >= 0 and flat.max() < model.support):
        raise ValueError(
            f"numbers span {flat.min()} to {flat.max()}; the model holds 0 to {model.support - 1}: "
            "raise its support"
        )
    return flat
