# SPDX-License-Identifier: Apache-2.0
"""One image to DiffC's bytes and back: the closed loop of `process` over a channel and a stream.

Both sides go through the same levels (`costs`). At each level the network predicts x_hat, the encoder sends
the step over the `channel`, and both continue from the z that the decoder gets. So the network's numbers must
be the same on both sides, to the last bit (`exact_denoiser`). Three measures help:

    x_hat  is rounded to multiples of 2^-10, z to 2^-16, before anything depends on them
    check  some bits of the CRC-32 of z follow each step; more after a long step, and 8 after the last
    tags   the header has 4 bits each of a CRC of the model and of what the network runs on

A decoder whose network gives other numbers stops at the first check that fails, and the tags tell why. With c
bits of checks after the first difference, it remains undetected with probability 2^-c. All steps are read
before the first of them is made: bytes that no encoder wrote are refused before they cost anything.

    code = encode_image(x, coder, target_bits=..., seed=0)     # x (C, H, W) in the denoiser's units
    got = decode_image(code.data, (C, H, W), coder)            # z at a level; `process.reconstruct` goes on

Fails with ``BitstreamError`` for bytes that are damaged, cut, or of another model or machine.
"""

from __future__ import annotations

import dataclasses
import math
import zlib
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from ...channels import prng
from ...channels.index_code import IndexModel, uniform_model
from ...diffusion.parametrisations import Denoiser
from ...errors import BitstreamError
from .channel import CODES, SIZES, Channel, announced_millibits
from .costs import Ladder, StepCost, shortest_path
from .process import advance, kl_bits, shift
from .stream import Part, Reader, bits_of, to_bytes

__all__ = [
    "Coder",
    "Decoded",
    "Encoded",
    "StepReport",
    "decode_image",
    "encode_image",
    "path_of",
]

VERSION = 0
_VERSIONS = 4
_TAGS = 16
_Z_UNIT = 2.0**-16
# Bits of a step beyond the divergence, by experiment: rate and check 2, the rest the trellis'.
_FIXED_MILLIBITS, _SHARE_PERMILLE = 5500, 60
_LARGE_DIMS = 2**15  # beyond it a step also costs 1 bit for 4096 numbers, for the time of the network

_WORDS = uniform_model(2**16)
_SPECIAL = IndexModel((0, 1, 2), (15, 1))
_MAX_STEPS_LIMIT = 255

# Of changes of the rate by 0, 1, 2 ... half octaves either way, in the first step and later.
_FIRST_MASSES = (16, 14, 12, 9, 7, 5, 4, 3, 2, 2, 1, 1, 1)
_NEXT_MASSES = (512, 64, 16, 4, 2, 1, 1)
_LEAST_HALVES, _MOST_HALVES = -32, 16  # of a step from what is expected
_FINAL_CHECK_BITS = 8


@dataclasses.dataclass(frozen=True)
class Coder:
    """What both sides share, except the image's size.

    Args:
        denoiser: x_hat (1, C, H, W) from z and its level, the same bits on both sides.
        ladder: of levels.
        channel: of the encoder; a decoder takes the stream's.
        model_tag, machine_tag: CRCs of the model, and of what the network runs on.
        seed: in [0, 2^64).
        steps_limit: of the path, from 1 to 255; None for the cheapest number of steps.
    """

    denoiser: Denoiser
    ladder: Ladder
    channel: Channel = Channel()
    model_tag: int = 0
    machine_tag: int = 0
    seed: int = 0
    steps_limit: int | None = None


@dataclasses.dataclass(frozen=True)
class StepReport:
    """The report of a finished step, for a progress bar or a curve.

    Args:
        step: from 1.
        steps: of the whole path.
        log_snr: the level that it reached.
        z: (C, H, W) float64.
        kl_bits: divergence of the step.
        bits: approximate length of the stream up to here.
    """

    step: int
    steps: int
    log_snr: float
    z: Tensor
    kl_bits: float
    bits: float


@dataclasses.dataclass(frozen=True)
class Encoded:
    """The result of `encode_image`: the bytes, the steps sent, and z (C, H, W) at their end."""

    data: bytes
    steps: int
    log_snr: float
    z: Tensor


@dataclasses.dataclass(frozen=True)
class Decoded:
    """The result of `decode_image`: z (C, H, W) float64, its level, and the number of decoded steps.

    `seed` is the stream's."""

    z: Tensor
    log_snr: float
    steps: int
    of_steps: int
    seed: int


def encode_image(
    x: Tensor,
    coder: Coder,
    *,
    target_bits: float | None = None,
    steps: int | None = None,
    progress: Callable[[StepReport], None] | None = None,
) -> Encoded:
    """Encodes an image, up to a number of bits or steps.

    Args:
        x: (C, H, W) in the denoiser's units.
        coder: what is shared.
        target_bits: the stream ends after the step that brings it nearest to this number, at least one step.
        steps: or after this many steps, at most those of the path; without either, after all of them.
        progress: told after every step.
    """
    x = x.double()
    path = path_of(coder, x.numel())
    last = len(path) - 1 if steps is None else min(max(1, steps), len(path) - 1)
    z, records = _start(x.shape, coder.seed).to(x.device), []
    rates = _Rates()
    bits = bits_of(_header(coder, len(path) - 1, 1)) + _FINAL_CHECK_BITS
    for step, low, high, expected in _steps(coder.ladder, path, x.numel()):
        x_hat = _guess(coder.denoiser, z, low)
        mean = shift(x, x_hat, low, high).reshape(-1)
        kl = float(kl_bits(mean[None]))
        rate, announced = rates.announce(1000 * kl, expected)
        numbers = coder.channel.send(mean, announced, seed=coder.seed, step=step)
        parts = [rate, *zip(numbers, [model for _, model in coder.channel.models(x.numel(), announced)])]
        z = _next(coder.channel, numbers, announced, z, x_hat, low, high, coder.seed, step)
        before, spent = bits, bits_of(parts)
        bits += spent + _check_bits(announced)
        if target_bits is not None and step > 1 and bits - target_bits > target_bits - before:
            break
        records.append((parts, announced, z, high))
        if progress is not None:
            progress(StepReport(step, len(path) - 1, high, z, kl, bits))
        if step == last or (target_bits is not None and bits >= target_bits):
            break
    stream = _header(coder, len(path) - 1, len(records))
    for number, (parts, announced, after, _) in enumerate(records, 1):
        width = _FINAL_CHECK_BITS if number == len(records) else _check_bits(announced)
        stream += [*parts, _check(after, width)]
    _, _, z, log_snr = records[-1]
    return Encoded(to_bytes(stream), len(records), log_snr, z)


def decode_image(
    data: bytes,
    shape: Sequence[int],
    coder: Coder,
    *,
    whole: bool = True,
    progress: Callable[[StepReport], None] | None = None,
) -> Decoded:
    """The last z that the bytes determine.

    Args:
        data: a stream, or a prefix of one.
        shape: (C, H, W).
        coder: the encoder's, except channel, seed and steps_limit, which the stream says.
        whole: whether to refuse bytes that are not a whole stream.
        progress: told after every step.

    Raises:
        BitstreamError: the bytes are damaged, of another model or machine, hold no step, or are no whole
            stream.
    """
    reader = Reader(data)
    dims = math.prod(shape)
    coder, path, count, same_machine = _read_header(reader, coder, dims)
    parts = _header(coder, len(path) - 1, count)
    steps = _read_steps(reader, coder, path[: count + 1], dims)
    if not steps:
        raise BitstreamError(
            f"{len(data)} bytes of a DiffC stream hold none of its {count} steps; give more of its bytes"
        )
    done, everything = len(steps), parts + [part for step in steps for part in step.parts]
    if whole and (done < count or to_bytes(everything) != data):
        state = f"end after step {done} of {count}" if done < count else "go on after the last step"
        raise BitstreamError(
            f"{len(data)} bytes of a DiffC stream {state}: they are cut or damaged; to decode what there is, "
            f"pass max_bytes={len(data)}"
        )
    z, bits = _start(shape, coder.seed), bits_of(parts)
    for number, step in enumerate(steps, 1):
        x_hat = _guess(coder.denoiser, z, step.low)
        z = _next(
            coder.channel, step.numbers, step.announced, z, x_hat, step.low, step.high, coder.seed, number
        )
        if int(step.parts[-1][0]) != int(_check(z, step.check_bits)[0]):
            raise _wrong_numbers(number, same_machine)
        bits += bits_of(step.parts)
        if progress is not None:
            progress(StepReport(number, len(path) - 1, step.high, z, math.nan, bits))
    return Decoded(z, steps[-1].high, done, count, coder.seed)


@dataclasses.dataclass(frozen=True)
class _ReadStep:
    """What a stream says of a step: log-SNRs at both ends, announced millibits, rate, numbers and check."""

    low: float
    high: float
    announced: int
    check_bits: int
    parts: list[Part]

    @property
    def numbers(self) -> list[Tensor]:
        return [numbers for numbers, _ in self.parts[1:-1]]


def _read_steps(reader: Reader, coder: Coder, path: Sequence[int], dims: int) -> list[_ReadStep]:
    """The steps that the bytes determine. Nothing of the image's size is made for it."""
    rates, found = _Rates(), []
    for step, low, high, expected in _steps(coder.ladder, path, dims):
        rate_model = rates.model
        rate = reader.take(1, rate_model)
        if rate is None:
            break
        announced = rates.hear(int(rate), expected)
        width = _FINAL_CHECK_BITS if step == len(path) - 1 else _check_bits(announced)
        models = [*coder.channel.models(dims, announced), (1, uniform_model(2**width))]
        taken = [(reader.take(size, model), model) for size, model in models]
        if any(numbers is None for numbers, _ in taken):
            break
        found.append(_ReadStep(low, high, announced, width, [(rate, rate_model), *taken]))
    return found


# --- Header ----------------------------------------------------------------------------------------


def _header(coder: Coder, path_steps: int, steps: int) -> list[Part]:
    channel = coder.channel
    fields = [
        (VERSION, _VERSIONS),
        (coder.machine_tag % _TAGS, _TAGS),
        (coder.model_tag % _TAGS, _TAGS),
        (CODES.index(channel.code), len(CODES)),
        (SIZES[channel.code].index(channel.size), len(SIZES[channel.code])),
    ]
    special = coder.seed != 0 or coder.steps_limit is not None
    parts = [(_number(value), uniform_model(size)) for value, size in fields]
    parts.append((_number(int(special)), _SPECIAL))
    if special:
        seed = torch.tensor([coder.seed >> 16 * i & 0xFFFF for i in range(4)])
        parts += [(seed, _WORDS), (_number(coder.steps_limit or 0), uniform_model(_MAX_STEPS_LIMIT + 1))]
    parts.append((_number(steps - 1), uniform_model(path_steps)))
    return parts


def _read_header(reader: Reader, coder: Coder, dims: int) -> tuple[Coder, tuple[int, ...], int, bool]:
    """The stream's coder, path and number of steps, and whether the machine is the same."""

    def take(model: IndexModel, count: int = 1) -> list[int]:
        values = reader.take(count, model)
        if values is None:
            raise BitstreamError("a DiffC stream ends inside its header; give more of its bytes")
        return values.tolist()

    (version,) = take(uniform_model(_VERSIONS))
    if version != VERSION:
        raise BitstreamError(
            f"a DiffC stream has the format {version}, this package reads {VERSION}: the bytes are damaged, "
            "or a later version wrote them"
        )
    (machine,), (model,) = take(uniform_model(_TAGS)), take(uniform_model(_TAGS))
    if model != coder.model_tag % _TAGS:
        raise BitstreamError(
            f"a DiffC stream was written with another model (its tag is {model}, this one's "
            f"{coder.model_tag % _TAGS}), or is damaged; load the weights that wrote it"
        )
    code = CODES[take(uniform_model(len(CODES)))[0]]
    size = SIZES[code][take(uniform_model(len(SIZES[code])))[0]]
    seed, limit = 0, 0
    if take(_SPECIAL)[0]:
        seed = sum(word << 16 * i for i, word in enumerate(take(_WORDS, 4)))
        (limit,) = take(uniform_model(_MAX_STEPS_LIMIT + 1))
    channel = Channel("trellis" if code == "trellis" else "orc", size)
    found = dataclasses.replace(
        coder, channel=channel, machine_tag=machine, seed=seed, steps_limit=limit or None
    )
    path = path_of(found, dims)
    (steps,) = take(uniform_model(len(path) - 1))
    return found, path, steps + 1, machine == coder.machine_tag % _TAGS


def _wrong_numbers(step: int, same_machine: bool) -> BitstreamError:
    if same_machine:
        cause = "the bytes are damaged, or the network gives other numbers than the encoder's"
    else:
        cause = (
            "the stream comes from a machine or version of torch on which the network gives other numbers "
            "(their tags differ), or the bytes are damaged"
        )
    return BitstreamError(
        f"a DiffC stream fails its check after step {step}: {cause}; decode it with the version of torch and "
        "on the kind of CPU that wrote it, or decode a prefix that ends before this step"
    )


# --- Steps -----------------------------------------------------------------------------------------


class _Rates:
    """Announced divergences: each step's offset from the expected divergence, in half octaves.

    An image that is harder than the training images at one level is usually harder at the next too. So the
    offset is coded as a change from that of the step before.
    """

    def __init__(self) -> None:
        self._offset, self.model = 0, _symmetric(_FIRST_MASSES)

    def announce(self, kl_millibits: float, expected: int) -> tuple[Part, int]:
        """The number for the stream, and the announced divergence in thousandths of a bit."""
        reach = self.model.support // 2
        wanted = round(2 * math.log2(max(kl_millibits, 1e-3) / expected))
        wanted = min(max(wanted, _LEAST_HALVES), _MOST_HALVES)
        number = min(max(wanted - self._offset, -reach), reach) + reach
        part = (_number(number), self.model)
        return part, self.hear(number, expected)

    def hear(self, number: int, expected: int) -> int:
        """The announced divergence from the stream's number."""
        offset = self._offset + number - self.model.support // 2
        self._offset = min(max(offset, _LEAST_HALVES), _MOST_HALVES)
        self.model = _symmetric(_NEXT_MASSES)
        return announced_millibits(expected, self._offset)


def _symmetric(masses: Sequence[int]) -> IndexModel:
    return IndexModel(tuple(range(2 * len(masses))), (*masses[:0:-1], *masses))


def path_of(coder: Coder, dims: int) -> tuple[int, ...]:
    """The levels for an image with `dims` values."""
    fixed = _FIXED_MILLIBITS + 1000 * max(0, dims - _LARGE_DIMS) // 4096
    return shortest_path(coder.ladder, dims, StepCost(fixed, _SHARE_PERMILLE), coder.steps_limit)


def _steps(ladder: Ladder, path: Sequence[int], dims: int) -> Iterator[tuple[int, float, float, int]]:
    """Number from 1, log-SNRs at both ends, expected divergence in thousandths of a bit."""
    for step, (start, end) in enumerate(zip(path, path[1:]), 1):
        expected = max(1, ladder.kl_millibits(start, end, dims))
        yield step, ladder.log_snr(start), ladder.log_snr(end), expected


def _start(shape: Sequence[int], seed: int) -> Tensor:
    """Shared noise, (C, H, W) float64."""
    noise = prng.normal(seed, lanes=math.prod(shape), step=0)
    return _rounded(noise.reshape(tuple(shape)))


def _guess(denoiser: Denoiser, z: Tensor, log_snr: float) -> Tensor:
    return denoiser(z[None], torch.tensor(log_snr, dtype=torch.float64))[0]


def _next(
    channel: Channel, numbers: list[Tensor], announced: int, z: Tensor, x_hat: Tensor, low: float,
    high: float, seed: int, step: int,
) -> Tensor:  # fmt: skip
    """z at the next level, as both sides have it."""
    normal = channel.receive(numbers, z.numel(), announced, seed=seed, step=step)
    return _rounded(advance(z, x_hat, normal.to(z.device).reshape(z.shape), low, high))


def _rounded(z: Tensor) -> Tensor:
    """Rounds to multiples of 2^-16: this hides a libm's last bit in a coefficient, and float32 holds them."""
    return torch.round(z / _Z_UNIT) * _Z_UNIT


def _check_bits(announced_millibits: int) -> int:
    """Number of check bits: 1, and one more for every 128 bits, at most 8."""
    return min(_FINAL_CHECK_BITS, 1 + announced_millibits // 128_000)


def _check(z: Tensor, width: int) -> Part:
    integers = (z / _Z_UNIT).to(torch.int32).cpu().numpy().astype("<i4")
    return _number(zlib.crc32(integers.tobytes()) % 2**width), uniform_model(2**width)


def _number(value: int) -> Tensor:
    return torch.tensor([value])
