# SPDX-License-Identifier: Apache-2.0
"""C3's decoder and fit in C++, if they were built: the same latents as in Python, and the same image and
gradients up to rounding.

The extension is optional. `pip install .` builds it where a C++17 compiler works; without it everything runs
in Python, and `AVAILABLE` is False. A checkout, which hides the installed package, uses the extension of the
installed one, if that has this version's interface.

In:  nets, contexts and tables of `integer`, `contexts`, `tables`. Out: grids; the image in float32; a step of
     the fit (`fit.fused`).
Fails with ``Damaged`` (a ValueError) on streams that no encoder writes, ``ValueError`` on arguments that do
not fit. The checks in C++ do not rely on those in Python.
"""

from __future__ import annotations

import functools
import importlib.machinery
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import numpy as np

from .config import Architecture
from .contexts import Context
from .integer import Activation, IntegerNet, gelu_rest
from .tables import rows

__all__ = [
    "AVAILABLE",
    "KERNELS",
    "Damaged",
    "FloatLayer",
    "adam",
    "decode_grids",
    "encode_grids",
    "fit_step",
    "soap",
    "soften",
    "synthesise",
]

_VERSION = 3
_ACTIVATIONS = ("none", "relu", "gelu")
_SOURCES = ("none", "coarser", "finer")


class FloatLayer(NamedTuple):
    """y = act(W * x + b [+ x] [+ S c]), c being the upsampled channels; float32.

    Args:
        weight: W, (outputs, inputs, k, k) with k = 1, or 3 with the border repeated outwards.
        bias: b, (outputs,).
        activation: of the sum.
        residual: whether x is added.
        skip: S, (outputs, channels), for k = 1.
    """

    weight: np.ndarray
    bias: np.ndarray
    activation: Activation
    residual: bool = False
    skip: np.ndarray | None = None


def _load() -> ModuleType | None:
    """The extension of this package, else that of an installed package with the same interface."""
    folder = Path(__file__).resolve().parent
    for entry in [str(folder.parents[2]), *sys.path]:
        place = str(Path(entry or ".", *folder.parts[-3:]))
        spec = importlib.machinery.PathFinder.find_spec("_native", [place])
        if spec is None or spec.loader is None:
            continue
        try:
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
        except ImportError:  # built for another Python
            continue
        if getattr(module, "VERSION", None) == _VERSION:
            return module
    return None


_native = _load()
AVAILABLE = _native is not None
KERNELS: tuple[str, ...] = tuple(_native.KERNELS) if AVAILABLE else ()
"""Sets of instructions of the fit that this processor has, the fastest first."""


class _Never(ValueError):
    """Stands for `Damaged` where the extension was not built; never raised."""


Damaged: type[ValueError] = _native.Damaged if AVAILABLE else _Never


def decode_grids(
    data: bytes,
    sizes: Sequence[tuple[int, int]],
    nets: Sequence[IntegerNet],
    context: Context,
    *,
    portable: bool = False,
) -> tuple[list[np.ndarray], int]:
    """All grids, int32, and the coder's last state; see `latent_codec`.

    Args:
        portable: without the instructions that not every processor has.

    Raises:
        Damaged: no encoder wrote this.
    """
    return _native.decode(
        data,
        [(int(height), int(width)) for height, width in sizes],
        [_net(net) for net in nets],
        _context(context),
        _tables(),
        portable,
    )


def encode_grids(
    grids: Sequence[np.ndarray],
    nets: Sequence[IntegerNet],
    context: Context,
    guard: int | None,
    *,
    portable: bool = False,
) -> tuple[np.ndarray, list[float]]:
    """The coder's words, uint32 (none if guard is None), and the code length of each grid in bits.

    Args:
        guard: the coder's first state, 1 to 2^16 - 1.
    """
    write = guard is not None
    made = [_net(net) for net in nets]
    return _native.encode(list(grids), made, _context(context), _tables(), guard or 1, write, portable)


def synthesise(
    channels: Sequence[np.ndarray],
    layers: Sequence[FloatLayer],
    size: tuple[int, int],
    *,
    doublings: np.ndarray | None = None,
    first: int = 0,
    portable: bool = False,
) -> np.ndarray:
    """The image, float32 (outputs, height, width), not clipped.

    The channels are upsampled to the image's size, then go through layer after layer.

    Args:
        channels: float32 (h, w) each.
        layers: those with k = 1, then those with k = 3.
        size: (height, width) of the image.
        doublings: taps (n, 4) of the learned upsampling (`network.upsample`), row 0 for the last step; the
            channels are then grids, the finest first, n = first + grids - 1. None: each channel is
            interpolated as by torch's interpolate(mode="bilinear", align_corners=False).
        first: exponent of the finest grid, for learned upsampling.
        portable: without the instructions that not every processor has.
    """
    made = [(w, b, _ACTIVATIONS.index(kind), residual, skip) for w, b, kind, residual, skip in layers]
    return _native.synthesise(list(channels), doublings, first, made, (int(size[0]), int(size[1])), portable)


def fit_step(
    a: Architecture,
    size: tuple[int, int],
    plane: tuple[int, int],
    places: Sequence[tuple[int, int, int, int]],
    kernels: str,
) -> object:
    """The step of one image's fit, `Step` in _fit_step.hpp; its functions are those of `_fit_bindings.cpp`.

    Args:
        a: architecture.
        size: (height, width) of the image.
        plane: (height, width) of the plane that holds the grids.
        places: (y, x, height, width) of each grid in it, the finest first.
        kernels: one of `KERNELS`.
    """

    def net(widths: tuple[int, ...], residual: Sequence[bool], skip: bool, kind: Activation) -> tuple:
        return list(widths), list(residual), skip, _ACTIVATIONS.index(kind)

    hidden = a.synthesis_hidden
    return _native.Step(
        size,
        plane,
        list(places),
        a.first,
        list(a.taps.own),
        list(a.taps.other),
        _SOURCES.index(a.taps.source),
        net((a.taps.width, *a.entropy_hidden, 2), a.residual, a.entropy_skip, a.entropy_activation),
        net((a.grids, *hidden, 3), [False] * (len(hidden) + 1), a.synthesis_skip, a.synthesis_activation),
        a.upsampling == "learned",
        a.refinements,
        _ACTIVATIONS.index(a.refinement_activation),
        kernels,
    )


def soften(
    value: np.ndarray, gain: np.ndarray, noise: np.ndarray, temperature: float, kernels: str
) -> tuple[np.ndarray, np.ndarray]:
    """soft_round(soft_round(value * gain) + noise) and its derivative; float32 of one shape."""
    return _native.soften(value, gain, noise, temperature, kernels)


def adam(
    value: np.ndarray,
    gradient: np.ndarray,
    mean: np.ndarray,
    square: np.ndarray,
    rates: tuple[float, float, float, float],
    kernels: str,
) -> None:
    """A step of `fit.adam` in place; `rates` are `AdamRates` in _fit_kernels.hpp."""
    _native.adam(value, gradient, mean, square, *rates, kernels)


def soap(
    value: np.ndarray,
    gradient: np.ndarray,
    mean: np.ndarray,
    matrices: list[tuple[np.ndarray, ...]],
    rates: tuple[float, float, float, float],
    kernels: str,
) -> None:
    """A step of `fit.soap` in place, without moving the bases; flat parameters of one image.

    Args:
        matrices: of each, places (int32), mean squares, L, R, U, V.
        rates: as for `adam`.
    """
    _native.soap(value, gradient, mean, matrices, *rates, kernels)


@functools.lru_cache(maxsize=64)
def _net(net: IntegerNet) -> object:
    layers = [(la.weight, la.bias, la.shift, _ACTIVATIONS.index(la.activation)) for la in net.layers]
    return _native.Net(layers, net.clamp, net.skip)


@functools.lru_cache(maxsize=64)
def _context(context: Context) -> object:
    source = _SOURCES.index(context.source)
    return _native.Context(list(context.own), list(context.other), source, context.slope)


@functools.cache
def _tables() -> object:
    table = rows()
    return _native.Tables(
        table.cdf,
        table.start,
        table.counts,
        table.first,
        table.base,
        table.fraction_bits,
        table.escape_row,
        table.coin_row,
        gelu_rest().astype(np.int32),
    )
