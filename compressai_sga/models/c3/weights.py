# SPDX-License-Identifier: Apache-2.0
"""The first string of a C3 image: version, size, architecture, and all weights of its nets.

    bytes 1       version, 1
    varint x 2    height, width in pixels (LEB128: 7 bits a byte, low first)
    bytes 1       clamp of the entropy net's inputs, 1 to 127
    bytes 1       index into `config.KNOWN`, and then
        bytes 1   number of the default nets (`defaults`), 0 for none
                  or 255, and then
        bytes 5   grids - 1 | first << 4;  context;
                  activations (0 none, 1 relu, 2 gelu): entropy | synthesis << 2 | refinement << 4,
                  | residual << 6 | skip << 7;  hidden layers: entropy | learned upsampling << 3
                  | synthesis << 4 | skip of the synthesis << 7;  refinements
        bytes n   widths of the hidden layers, entropy first
    the rest      constriction's ANS code as in `latent_codec`: words without the zero bytes at their
                  end, started from a guard, 1 + CRC-32(bytes above, int32 integers) mod 65535

An array is integers k times 2^-shift. For each array in the order of `config.layout`:
    5 coins       shift, high bit first
    1 coin        only with default nets: whether k below is the difference from theirs at this shift
    7 coins       c: the scale is 2^(c/4 - 5); r = ceil((c - 50) / 4) if c > 50, else 0
    values        k >> r, in the row of `tables` with location 0 and scale 2^(c/4 - 5 - r)
    n r coins     the low r bits of each k, high first
    escapes       of values beyond their row, as in `latent_codec`
The zero-mean Laplace distribution is from C3 (Kim et al. 2024, section 3.3), which only estimates these bits
and does not count steps and scales.

In:  `Nets`. Out: bytes; beside the header, at most 3 of them are overhead.
Fails with ``BitstreamError`` on bytes that no encoder wrote.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

import constriction
import numpy as np

from ...coding.coders import guard_of
from ...errors import BitstreamError
from .config import CONTEXTS, KNOWN, Architecture, layout
from .contexts import MAX_SIDE_PX
from .defaults import DefaultNets, defaults
from .integer import Activation, IntegerNet
from .tables import rows

__all__ = ["MAX_SHIFT", "Nets", "array_bits", "decode_nets", "encode_nets", "neighbour_bits"]

MAX_SHIFT = 20
"""Finest step of a weight of the synthesis: 2^-20; those of the entropy net are bounded by `integer`."""

VERSION = 1
_EXPLICIT = 255
_SHIFT_COINS, _SCALE_COINS = 5, 7
_LAST_ROW = 50  # of the scales: 2^7.5, the table's last
_MAX_LOW_BITS = 16
_SCALES = _LAST_ROW + 1 + 4 * _MAX_LOW_BITS  # fits into 7 coins
_TABULATED = 4096  # largest value whose bits are looked up
_ACTIVATIONS: tuple[Activation, ...] = ("none", "relu", "gelu")
_AnsCoder = constriction.stream.stack.AnsCoder


@dataclass(frozen=True)
class Nets:
    """The content of the first string.

    Args:
        architecture: of the codec.
        size: (height, width), pixels, 1 to 32768.
        clamp: on the latents that the entropy net sees, 1 to 127.
        integers: for each array of `config.layout`, int64 of its shape, within +-(2^31 - 1).
        shifts: for each, its step is 2^-shift.
        start: default nets from which arrays may be coded as differences.
    """

    architecture: Architecture
    size: tuple[int, int]
    clamp: int
    integers: tuple[np.ndarray, ...]
    shifts: tuple[int, ...]
    start: DefaultNets | None = None

    def entropy(self) -> IntegerNet:
        """The entropy net in integers.

        Raises:
            AccumulationError: it could leave 32 bits.
            ValueError: steps that do not fit together.
        """
        a = self.architecture
        found = {spec.name: i for i, spec in enumerate(layout(a))}
        count = len(a.entropy_hidden) + 1
        weights = [found[f"entropy.{i}.weight"] for i in range(count)]
        biases = [found[f"entropy.{i}.bias"] for i in range(count)]
        skip = found.get("entropy.skip")
        return IntegerNet.from_integers(
            [self.integers[i] for i in weights],
            [self.integers[i] for i in biases],
            weight_shifts=[self.shifts[i] for i in weights],
            bias_shifts=[self.shifts[i] for i in biases],
            activation=a.entropy_activation,
            residual=a.residual,
            skip=None if skip is None else self.integers[skip],
            skip_shift=8 if skip is None else self.shifts[skip],
            clamp=self.clamp,
        )

    def arrays(self) -> dict[str, np.ndarray]:
        """All arrays as float32, without loss: the integers in use have at most 24 bits."""
        return {
            spec.name: np.ldexp(k.astype(np.float64), -shift).astype(np.float32)
            for spec, k, shift in zip(layout(self.architecture), self.integers, self.shifts)
        }


# --- Integers ------------------------------------------------------------------------------------


def array_bits(integers: np.ndarray, base: np.ndarray | None = None) -> float:
    """Code length of an array, bits, its step and scale included; see `_forms` for `base`."""
    costs = [_best_scale(form)[1] for form in _forms(integers, base)]
    return min(costs) + _SHIFT_COINS + _SCALE_COINS + (base is not None)


def neighbour_bits(integers: np.ndarray, base: np.ndarray | None = None) -> np.ndarray:
    """What a value's move by -1 or +1 adds to an array's code length, bits, (2, values).

    The array's form and scale stay; args as `array_bits`.
    """
    forms = _forms(integers, base)
    (scale, _), chosen = min(((_best_scale(form), i) for i, form in enumerate(forms)), key=lambda f: f[0][1])
    now = _value_bits(forms[chosen], scale)
    return np.stack([_value_bits(forms[chosen] + move, scale) - now for move in (-1, 1)])


def _forms(integers: np.ndarray, base: np.ndarray | None) -> list[np.ndarray]:
    """The two forms that may be coded: the integers, and their differences from the default ones."""
    return [integers.ravel()] + ([] if base is None else [(integers - base).ravel()])


def _low_bits(scale: int) -> int:
    return max(0, -(-(scale - _LAST_ROW) // 4))


def _row_of(scale: int) -> tuple[int, int]:
    """Row of `tables` and the number of low bits."""
    low = _low_bits(scale)
    return int(rows().base[2 * (scale - 4 * low)]), low


def _best_scale(integers: np.ndarray) -> tuple[int, float]:
    """The cheapest scale, and the bits of the values with it."""
    magnitudes = np.abs(integers)
    around = min(_SCALES - 1, round(4 * (math.log2(max(float(magnitudes.mean()), 2.0**-5)) + 5)))
    low, high = max(0, around - 5), min(_SCALES - 1, around + 5)
    if magnitudes.max() <= _TABULATED:
        tabulated = integers + _TABULATED
        costs = _bits_by_scale()[low : high + 1].take(tabulated, 1).sum(1)
        of_zeros = float(_bits_by_scale()[0].take(tabulated).sum())
    else:
        costs = np.array([_value_bits(integers, scale).sum() for scale in range(low, high + 1)])
        of_zeros = float(_value_bits(integers, 0).sum())
    best = int(costs.argmin())
    return (low + best, float(costs[best])) if costs[best] < of_zeros else (0, of_zeros)


@functools.cache
def _bits_by_scale() -> np.ndarray:
    """Of each scale and each value from -_TABULATED to _TABULATED."""
    values = np.arange(-_TABULATED, _TABULATED + 1)
    return np.stack([_value_bits(values, scale) for scale in range(_SCALES)])


def _value_bits(integers: np.ndarray, scale: int) -> np.ndarray:
    table = rows()
    row, low = _row_of(scale)
    value, last = (integers >> low) - table.first[row], int(table.counts[row]) - 1
    far = (value < 0) | (value >= last)
    bits = table.bits[table.start[row] + np.where(far, last, value)] + low
    distance = value[far]
    _, digits = np.frexp(np.where(distance < 0, -distance, distance - last + 1))
    bits[far] += table.bits[table.start[table.escape_row] + np.minimum(digits - 1, 17)] + digits
    return bits


def _escape(value: int, last: int) -> tuple[int, int]:
    """Side (1 above) and d + 1, the distance from the row's end."""
    return (1, value - last + 1) if value >= last else (0, -value)


def _events(integers: np.ndarray, shift: int, base: np.ndarray | None) -> list[tuple[int, int]]:
    """Rows and values of an array as they are decoded."""
    table, forms = rows(), _forms(integers, base)
    costs = [_best_scale(form)[1] for form in forms]
    chosen = costs.index(min(costs))

    def coins(number: int, count: int) -> list[tuple[int, int]]:
        return [(table.coin_row, number >> i & 1) for i in range(count - 1, -1, -1)]

    flat = forms[chosen]
    scale, _ = _best_scale(flat)
    row, low = _row_of(scale)
    last = int(table.counts[row]) - 1
    values = ((flat >> low) - table.first[row]).tolist()
    found = coins(shift, _SHIFT_COINS) + ([] if base is None else coins(chosen, 1))
    found += coins(scale, _SCALE_COINS)
    found += [(row, v if 0 <= v < last else last) for v in values]
    for k in (flat & ((1 << low) - 1)).tolist() if low else []:
        found += coins(k, low)
    for v in values:
        if not 0 <= v < last:
            side, number = _escape(v, last)
            classes = number.bit_length() - 1
            if classes > 17:
                raise ValueError(f"a weight of {v} steps is beyond 2^18 scales: take a coarser step")
            found += [(table.coin_row, side), (table.escape_row, classes)]
            found += coins(number - (1 << classes), classes)
    return found


# --- Bytes ---------------------------------------------------------------------------------------


def encode_nets(nets: Nets) -> bytes:
    """The string; decoded once before it returns.

    Raises:
        ValueError: integers that cannot be coded, or that do not fit the architecture.
        RuntimeError: it does not decode to the same.
    """
    header = _header(nets)
    events: list[tuple[int, int]] = []
    arrays = zip(layout(nets.architecture), nets.integers, nets.shifts, strict=True)
    for i, (spec, integers, shift) in enumerate(arrays):
        if integers.shape != spec.shape or not 0 <= shift <= MAX_SHIFT:
            raise ValueError(f"{spec.name} has shape {integers.shape}, shift {shift}: the layout says {spec}")
        if np.abs(integers).max() >= 2**31:
            raise ValueError(f"{spec.name} has integers beyond 2^31: take a coarser step than 2^-{shift}")
        base = None if nets.start is None else nets.start.at(i, shift)
        events += _events(integers.astype(np.int64), shift, base)
    coder, models = _AnsCoder(np.array([_guard(header, nets.integers)], np.uint32)), rows().models
    for row, value in reversed(events):
        coder.encode_reverse(value, models[row])
    data = header + coder.get_compressed().astype("<u4").tobytes().rstrip(b"\0")
    back = decode_nets(data)
    same = all((a == b).all() for a, b in zip(back.integers, nets.integers)) and back.shifts == nets.shifts
    if not same or (back.architecture, back.size, back.clamp) != (nets.architecture, nets.size, nets.clamp):
        raise RuntimeError("the nets do not decode to themselves: this machine computes wrongly; report it")
    return data


def decode_nets(data: bytes) -> Nets:
    """What `encode_nets` wrote.

    Raises:
        BitstreamError: no encoder wrote this.
    """
    if not isinstance(data, bytes):
        raise ValueError(f"the nets are {type(data).__name__}; they must be bytes")
    size, clamp, architecture, start, length = _read_header(data)
    body = data[length:]
    if not body or body[-1] == 0:
        raise _damaged("the code of the weights is empty or ends in a zero byte")
    coder = _AnsCoder(np.frombuffer(body + bytes(-len(body) % 4), "<u4").astype(np.uint32))
    integers, shifts = [], []
    for i, spec in enumerate(layout(architecture)):
        if coder.is_empty():
            raise _damaged("the code of the weights ends too early")
        array, shift = _read_array(
            coder, spec.shape, None if start is None else functools.partial(start.at, i)
        )
        integers.append(array)
        shifts.append(shift)
    state = coder.get_compressed()
    if len(state) != 1 or int(state[0]) != _guard(data[:length], integers):
        raise _damaged("the decoded weights do not match their checksum")
    return Nets(architecture, size, clamp, tuple(integers), tuple(shifts), start)


def _read_array(
    coder: object, shape: tuple[int, ...], base: Callable[[int], np.ndarray] | None
) -> tuple[np.ndarray, int]:
    table, models, count = rows(), rows().models, math.prod(shape)

    def coins(number_of: int) -> int:
        number = 0
        for _ in range(number_of):
            number = 2 * number + coder.decode(models[table.coin_row])
        return number

    shift, differs, scale = coins(_SHIFT_COINS), base is not None and coins(1), coins(_SCALE_COINS)
    if shift > MAX_SHIFT or scale >= _SCALES:
        raise _damaged(f"a step of 2^-{shift} with scale {scale}")
    row, low = _row_of(scale)
    last = int(table.counts[row]) - 1
    values = coder.decode(models[row], count).astype(np.int64)
    below = np.array([coins(low) for _ in range(count)], np.int64) if low else 0
    for i in np.flatnonzero(values == last).tolist():
        above = coins(1)
        classes = coder.decode(models[table.escape_row])
        number = (1 << classes) + coins(classes)
        values[i] = last + number - 1 if above else -number
    found = (((values + table.first[row]) << low) + below).reshape(shape)
    if differs:
        found = found + base(shift)
    if np.abs(found).max() >= 2**31:
        raise _damaged("a weight beyond 2^31 steps")
    return found, shift


def _guard(header: bytes, integers: object) -> int:
    arrays = [np.frombuffer(header, np.uint8).astype(np.int32)]
    return guard_of(arrays + [np.ascontiguousarray(array).ravel().astype(np.int32) for array in integers])


# --- Header --------------------------------------------------------------------------------------


def _header(nets: Nets) -> bytes:
    a = nets.architecture
    if not all(1 <= side <= MAX_SIDE_PX for side in nets.size) or not 1 <= nets.clamp <= 127:
        raise ValueError(
            f"size {nets.size}, clamp {nets.clamp}: 1 to {MAX_SIDE_PX} and 1 to 127 can be coded"
        )
    found = bytes([VERSION]) + _varint(nets.size[0]) + _varint(nets.size[1]) + bytes([nets.clamp])
    if a in KNOWN:
        return found + bytes([KNOWN.index(a), 0 if nets.start is None else nets.start.number])
    if nets.start is not None:
        raise ValueError("default nets exist for known architectures only; code these nets with start=None")
    kinds = (a.entropy_activation, a.synthesis_activation, a.refinement_activation)
    flags = sum(_ACTIVATIONS.index(kind) << 2 * i for i, kind in enumerate(kinds))
    flags |= a.entropy_residual << 6 | a.entropy_skip << 7
    layers = len(a.entropy_hidden) | len(a.synthesis_hidden) << 4
    layers |= (a.upsampling == "learned") << 3 | a.synthesis_skip << 7
    fields = [_EXPLICIT, (a.grids - 1) | a.first << 4, a.context, flags, layers, a.refinements]
    return found + bytes(fields) + bytes(a.entropy_hidden) + bytes(a.synthesis_hidden)


def _read_header(data: bytes) -> tuple[tuple[int, int], int, Architecture, DefaultNets | None, int]:
    """Size, clamp, architecture, default nets, and the number of bytes read."""
    position = 0

    def byte() -> int:
        nonlocal position
        position += 1
        if position > len(data):
            raise _damaged("the header is cut short")
        return data[position - 1]

    version = byte()
    if version != VERSION:
        raise _damaged(f"version {version}, this program knows {VERSION}")
    size = _read_varint(byte), _read_varint(byte)
    clamp, known = byte(), byte()
    if not all(1 <= side <= MAX_SIDE_PX for side in size) or not 1 <= clamp <= 127:
        raise _damaged(f"size {size[0]} x {size[1]}, clamp {clamp}")
    if known < len(KNOWN):
        number = byte()
        start = next((d for d in defaults() if d.number == number), None) if number else None
        if number and (start is None or start.architecture != KNOWN[known]):
            raise _damaged(f"default nets {number}, which this program does not have for this architecture")
        return size, clamp, KNOWN[known], start, position
    if known != _EXPLICIT:
        raise _damaged(f"architecture {known}, of which this program has {len(KNOWN)}")
    grids, context, flags, layers, refinements = (byte() for _ in range(5))
    kinds = [flags >> 2 * i & 3 for i in range(3)]
    if max(kinds) >= len(_ACTIVATIONS) or context >= len(CONTEXTS):
        raise _damaged("an activation or a context that does not exist")
    of_entropy, of_synthesis = layers & 7, layers >> 4 & 7
    widths = [byte() for _ in range(of_entropy + of_synthesis)]
    try:
        architecture = Architecture(
            grids=(grids & 15) + 1,
            first=grids >> 4,
            context=context,
            entropy_hidden=tuple(widths[:of_entropy]),
            entropy_activation=_ACTIVATIONS[kinds[0]],
            entropy_residual=bool(flags >> 6 & 1),
            entropy_skip=bool(flags >> 7),
            upsampling="learned" if layers >> 3 & 1 else "bilinear",
            synthesis_hidden=tuple(widths[of_entropy:]),
            synthesis_activation=_ACTIVATIONS[kinds[1]],
            synthesis_skip=bool(layers >> 7),
            refinements=refinements,
            refinement_activation=_ACTIVATIONS[kinds[2]],
        )
    except ValueError as error:
        raise _damaged(str(error)) from None
    if architecture in KNOWN:
        raise _damaged("a known architecture that is spelt out, as no encoder does")
    return size, clamp, architecture, None, position


def _varint(number: int) -> bytes:
    found = b""
    while number >= 128:
        found += bytes([number & 127 | 128])
        number >>= 7
    return found + bytes([number])


def _read_varint(byte: Callable[[], int]) -> int:
    number = 0
    for shift in (0, 7, 14):
        digit = byte()
        number |= (digit & 127) << shift
        if digit < 128:
            return number
    raise _damaged("a side of the image beyond 2^21")


def _damaged(what: str) -> BitstreamError:
    return BitstreamError(f"nets: {what}; the file is damaged or no C3 image: get it again")
