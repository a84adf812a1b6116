# SPDX-License-Identifier: Apache-2.0
"""The entropy net in integers: the same results on every machine, compiler, library and thread count.

Inputs and hidden values are 16-bit integers in units of 2^-8, weights 16-bit integers in units of 2^-p,
p chosen for each layer; hence sums are 32-bit integers in units of 2^-(p+8). A layer computes
    a_i = b_i + sum_j W_ij x_j
    h_i = act(min(max((a_i + 2^(p-1)) >> p, -32767), 32767))         >>: rounds down
where act is the identity, max(h, 0), or GELU as max(h, 0) - g(|h|), with g from a table of integers. (It is
|h| Phi(-|h|), even in h and below 1/512 from 3.5 on.) The last layer has two outputs and no act:
    location  (a_0 + 2^(p+1)) >> (p + 2)    in units of 1/64, within +-32767
    scale     ((a_1 + 2^(p+4)) >> (p + 5)) + 40, within 0 ... 100: an index of `tables`; so the output is
              log2 of the scale, and its unit an eighth of an octave.
Residual layers have the identity added to W. A linear skip from the inputs to the outputs adds columns to the
last layer. Neither needs new operations in a decoder. Steps are powers of two, so that one shift requantises:
C3's steps from 5e-5 to 1e-2 lie within a factor 1.6 of 2^-14 ... 2^-7, and steps below 2^-12 gain nothing,
since hidden values have steps of 2^-8.

Bounds (checked by the constructor, hence by encoder and decoder): let X_j bound |x_j|, which for inputs
is clamp * 2^8. Then |any partial sum, in any order| + 2^(p-1) <= |b_i| + sum_j |W_ij| X_j + 2^(p+4) =: A_i,
and A_i < 2^31 is required, so no sum can exceed 32 bits. The next layer has X_i = min(32767, (A_i >> p) + 1).
Sums of two products of 16-bit integers within +-32767, as x86's pmaddwd forms them, stay below 2^31 too.
Python computes in float64, which is exact below 2^53.

In:  weights as floats with their steps, or as the integers of a bitstream; x (width, n) from `contexts`.
Out: `forward(x)`: location and scale index, (n,) int64.
Fails with an ``AccumulationError`` that names the layer whose bound is broken: take coarser steps or a
smaller clamp.
"""

from __future__ import annotations

import functools
import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from ...errors import SgaError
from .contexts import FEATURE_BITS, MAX_CLAMP
from .tables import LOCATION_BITS, MAX_LATENT, SCALE_ZERO, SCALES, SCALES_PER_OCTAVE

__all__ = [
    "Activation",
    "AccumulationError",
    "IntegerLayer",
    "IntegerNet",
    "MAX_SHIFT",
    "MAX_WIDTH",
    "gelu_rest",
    "quantise",
]

Activation = Literal["none", "relu", "gelu"]

MAX_SHIFT = 14  # finest step of a weight: 2^-14
MAX_WIDTH = 128
MAX_LAYERS = 8
_LARGEST = 32767
_LOCATION_SHIFT = FEATURE_BITS - LOCATION_BITS
_SCALE_SHIFT = FEATURE_BITS - int(math.log2(SCALES_PER_OCTAVE))
_GELU_CRC32 = 0x259018F0


class AccumulationError(SgaError, ValueError):
    """A layer's sums could exceed 32 bits, or a weight 16 bits; the message names the layer."""


@dataclass(frozen=True)
class IntegerLayer:
    """One layer as the decoder computes it.

    Args:
        weight: (outputs, inputs) int32, within +-32767, in units of 2^-shift.
        bias: (outputs,) int32, in units of 2^-(shift + 8).
        shift: p, 0 to 14.
        activation: none in the last layer.
    """

    weight: np.ndarray
    bias: np.ndarray
    shift: int
    activation: Activation

    def bound(self, inputs: np.ndarray) -> np.ndarray:
        """A_i of the file's head, int64, from the bounds X_j on the inputs."""
        worst = np.abs(self.weight.astype(np.int64)) @ inputs
        return worst + np.abs(self.bias.astype(np.int64)) + (1 << (self.shift + _SCALE_SHIFT - 1))


class IntegerNet:
    """The net; see the file's head.

    Args:
        layers: the last one with two outputs; its inputs are the hidden values and, if `skip`, the
            net's inputs after them.
        clamp: bound on the latents that the net sees, 1 to 127.
        skip: whether the net's inputs enter the last layer too.

    Raises:
        AccumulationError: a layer that could overflow.
        ValueError: layers that do not fit together.
    """

    def __init__(self, layers: Sequence[IntegerLayer], clamp: int, skip: bool = False) -> None:
        self.layers, self.clamp, self.skip = tuple(layers), clamp, skip
        if not 1 <= len(self.layers) <= MAX_LAYERS or (skip and len(self.layers) == 1):
            raise ValueError(f"{len(self.layers)} layers; give 1 to {MAX_LAYERS}, and at least 2 with a skip")
        if not 1 <= clamp <= MAX_CLAMP:
            raise ValueError(
                f"clamp is {clamp}; choose 1 to {MAX_CLAMP}, which fit into 16 bits with the fraction"
            )
        self._check_shapes()
        self._check_bounds()
        # For forward: exact, and BLAS knows float64 only.
        self._float = [(np.asarray(la.weight, np.float64), la.bias[:, None] * 1.0) for la in self.layers]

    @property
    def width(self) -> int:
        """Number of inputs."""
        return self.layers[0].weight.shape[1]

    @classmethod
    def from_float(
        cls,
        weights: Sequence[np.ndarray],
        biases: Sequence[np.ndarray],
        *,
        weight_shifts: Sequence[int],
        bias_shifts: Sequence[int],
        activation: Activation = "gelu",
        residual: Sequence[bool] = (),
        skip: np.ndarray | None = None,
        skip_shift: int = 8,
        clamp: int = MAX_CLAMP,
    ) -> IntegerNet:
        """The net of float weights, with each array rounded to its step 2^-shift.

        The floats take latents as they are (no scaling), and give (location, log2 of the scale).
        Args are those of `from_integers`, with floats for integers.
        """
        return cls.from_integers(
            [quantise(w, p) for w, p in zip(weights, weight_shifts)],
            [quantise(b, p) for b, p in zip(biases, bias_shifts)],
            weight_shifts=weight_shifts,
            bias_shifts=bias_shifts,
            activation=activation,
            residual=residual,
            skip=None if skip is None else quantise(skip, skip_shift),
            skip_shift=skip_shift,
            clamp=clamp,
        )

    @classmethod
    def from_integers(
        cls,
        weights: Sequence[np.ndarray],
        biases: Sequence[np.ndarray],
        *,
        weight_shifts: Sequence[int],
        bias_shifts: Sequence[int],
        activation: Activation = "gelu",
        residual: Sequence[bool] = (),
        skip: np.ndarray | None = None,
        skip_shift: int = 8,
        clamp: int = MAX_CLAMP,
    ) -> IntegerNet:
        """The net of a bitstream's integers.

        Args:
            weights: (outputs, inputs) integers for each layer, in units of 2^-weight_shift.
            biases: (outputs,) integers for each layer, in units of 2^-bias_shift, where
                bias_shift <= weight_shift + 8.
            weight_shifts: 0 to 14 for each layer.
            bias_shifts: 0 to 22 for each layer.
            activation: of all layers but the last.
            residual: for each layer whether its input is added before the activation; none by default.
            skip: (2, inputs) integers, added to the output; in units of 2^-skip_shift.
            skip_shift: 0 to 14.
            clamp: bound on the latents that the net sees, 1 to 127.

        Raises:
            AccumulationError: the net could leave 32 bits, or a weight 16.
            ValueError: arrays that do not fit together.
        """
        count = len(weights)
        residual = tuple(residual) or (False,) * count
        if not count == len(biases) == len(weight_shifts) == len(bias_shifts) == len(residual):
            raise ValueError(
                f"{count} weights, {len(biases)} biases, {len(weight_shifts)} and {len(bias_shifts)} "
                f"shifts, {len(residual)} residual flags: give one of each for a layer"
            )
        layers = []
        for i, (w, b) in enumerate(zip(weights, biases)):
            for array in (w, b) if skip is None else (w, b, skip):
                if np.abs(array).max(initial=0) >= 2**31:  # so that nothing below wraps around
                    raise AccumulationError(f"layer {i}: an integer of 2^31 or more; take a coarser step")
            weight, shift = np.asarray(w).astype(np.int64), int(weight_shifts[i])
            _require_shift(i, "weight", shift, MAX_SHIFT)
            if residual[i]:
                if weight.shape[0] != weight.shape[1]:
                    raise ValueError(f"layer {i} has shape {weight.shape}: a residual one must be square")
                weight = weight + (np.eye(len(weight), dtype=np.int64) << shift)
            if skip is not None and i == count - 1:
                _require_shift(i, "skip", skip_shift, MAX_SHIFT)
                common = max(shift, skip_shift)
                columns = np.asarray(skip).astype(np.int64) << (common - skip_shift)
                weight = np.concatenate([weight << (common - shift), columns], axis=1)
                shift = common
            _require_shift(i, "bias", int(bias_shifts[i]), shift + FEATURE_BITS)
            bias = np.asarray(b).astype(np.int64) << (shift + FEATURE_BITS - int(bias_shifts[i]))
            if np.abs(weight).max(initial=0) > _LARGEST or np.abs(bias).max(initial=0) >= 2**31:
                raise AccumulationError(
                    f"layer {i}: a weight of {np.abs(weight).max(initial=0)} or a bias of "
                    f"{np.abs(bias).max(initial=0)} steps; at most {_LARGEST} and 2^31 - 1 fit: take "
                    f"a coarser step than 2^-{shift}"
                )
            last = i == count - 1
            layers.append(
                IntegerLayer(
                    weight.astype(np.int32), bias.astype(np.int32), shift, "none" if last else activation
                )
            )
        return cls(layers, clamp, skip is not None)

    def forward(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Location (units of 1/64) and scale index, (n,) int64 each.

        Args:
            x: (width, n) float64, integers within +-clamp * 2^8, from `contexts`.
        """
        h = x
        for layer, (weight, bias) in zip(self.layers[:-1], self._float):
            a = weight @ h
            a += bias + (1 << layer.shift >> 1)
            a *= 2.0**-layer.shift
            np.floor(a, out=a)
            np.minimum(a, _LARGEST, out=a)
            np.maximum(a, -_LARGEST, out=a)
            if layer.activation == "relu":
                np.maximum(a, 0, out=a)
            elif layer.activation == "gelu":
                rest = gelu_rest()
                size = np.minimum(np.abs(a), len(rest) - 1).astype(np.int64)
                a = np.maximum(a, 0) - rest.take(size)
            h = a
        weight, bias = self._float[-1]
        if self.skip:
            h = np.concatenate([h, x])
        a = (weight @ h + bias).astype(np.int64)
        shift = self.layers[-1].shift
        location = _round_shift(a[0], shift + _LOCATION_SHIFT)
        limit = MAX_LATENT << LOCATION_BITS
        scale = _round_shift(a[1], shift + _SCALE_SHIFT) + SCALE_ZERO
        return np.clip(location, -limit, limit), np.clip(scale, 0, SCALES - 1)

    def _check_shapes(self) -> None:
        width = self.layers[0].weight.shape[1] if self.layers[0].weight.ndim == 2 else 0
        inputs = self.width if width else 0
        for i, layer in enumerate(self.layers):
            last = i == len(self.layers) - 1
            expected = inputs + (width if last and self.skip else 0)
            shape = layer.weight.shape
            if layer.weight.ndim != 2 or shape[1] != expected or layer.bias.shape != shape[:1]:
                raise ValueError(
                    f"layer {i}: weight {shape}, bias {layer.bias.shape}, {expected} inputs: they must fit"
                )
            if not (1 <= shape[0] <= MAX_WIDTH and 1 <= inputs <= MAX_WIDTH):
                raise ValueError(f"layer {i} has shape {shape}; at most {MAX_WIDTH} values fit a decoder")
            if layer.activation not in get_args(Activation) or (last and layer.activation != "none"):
                raise ValueError(
                    f"layer {i} has activation {layer.activation!r}; the last one must have none"
                )
            _require_shift(i, "weight", layer.shift, MAX_SHIFT)
            inputs = shape[0]
        if inputs != 2:
            raise ValueError(f"the last layer has {inputs} outputs; it must have 2: location and scale")

    def _check_bounds(self) -> None:
        first = np.full(self.width, self.clamp << FEATURE_BITS, np.int64)
        inputs = first
        for i, layer in enumerate(self.layers):
            if self.skip and i == len(self.layers) - 1:
                inputs = np.concatenate([inputs, first])
            if np.abs(layer.weight.astype(np.int64)).max(initial=0) > _LARGEST:
                raise AccumulationError(f"layer {i}: a weight beyond 16 bits; take a coarser step")
            worst = layer.bound(inputs)
            if worst.max() >= 2**31:
                raise AccumulationError(
                    f"layer {i} of {len(self.layers)}: its sums could reach {worst.max()}, and must stay "
                    f"below 2^31; take a coarser weight step than 2^-{layer.shift}, or a smaller clamp "
                    f"than {self.clamp}"
                )
            inputs = np.minimum(_LARGEST, (worst >> layer.shift) + 1)


def quantise(values: np.ndarray, shift: int) -> np.ndarray:
    """The values in units of 2^-shift, rounded half to even, as int64."""
    return np.rint(np.asarray(values, np.float64) * 2.0**shift).astype(np.int64)


@functools.cache
def gelu_rest() -> np.ndarray:
    """max(h, 0) - GELU(h) = |h| Phi(-|h|) in units of 2^-8 at |h| = 0, 1, ...; ends in 0. float64.

    Raises:
        RuntimeError: this machine's erfc is less accurate than any known one.
    """
    unit = 2.0**FEATURE_BITS
    # No entry is within 1e-6 units of being rounded otherwise.
    rest = [round(n * math.erfc(n / unit / math.sqrt(2)) / 2) for n in range(1024)]
    table = np.array(rest, np.float64)[: max(n for n, r in enumerate(rest) if r) + 2]
    crc32 = zlib.crc32(table.astype("<i4").tobytes())
    if crc32 != _GELU_CRC32:
        raise RuntimeError(
            f"the table of GELU has crc32 {crc32:#x}, not {_GELU_CRC32:#x}: this machine's erfc is "
            "wrong, and what it writes others cannot decode"
        )
    table.setflags(write=False)
    return table


def _round_shift(values: np.ndarray, shift: int) -> np.ndarray:
    return (values + (1 << shift >> 1)) >> shift


def _require_shift(layer: int, name: str, shift: int, largest: int) -> None:
    if not 0 <= shift <= largest:
        raise ValueError(f"layer {layer}: the {name}'s step is 2^-{shift}; choose 2^0 to 2^-{largest}")
