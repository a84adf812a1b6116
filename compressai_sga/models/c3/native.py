# SPDX-License-Identifier: Apache-2.0
"""C3's decoder in C++, where it was built: the latents exactly as in Python, the image to the last bits.

The extension is optional. `pip install .` builds it where a C++17 compiler works; without it everything
runs in Python, and this module says so (`AVAILABLE`). In a checkout, whose package hides an installed
one, the installed one's extension is taken, if it has this version's interface.

In:  nets, contexts and tables of `integer`, `contexts`, `tables`. Out: grids; or the image in float32.
Fails with ``Damaged`` (a ValueError) on streams that no encoder writes, ``ValueError`` on arguments that
do not fit; checks in C++ do not rely on those in Python.
"""

from __future__ import annotations

import functools
import importlib.machinery
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import numpy as np

from .contexts import Context
from .integer import Activation, IntegerNet, gelu_rest
from .tables import rows

__all__ = ["AVAILABLE", "Damaged", "decode_grids", "encode_grids", "synthesise"]

_VERSION = 1
_ACTIVATIONS = ("none", "relu", "gelu")
_SOURCES = ("none", "coarser", "finer")


def _load() -> ModuleType | None:
    """The extension: this package's, else an installed package's of the same interface."""
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


class _Never(ValueError):
    """What an extension that is not there raises."""


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
    layers: Sequence[tuple[np.ndarray, np.ndarray, Activation, bool]],
    size: tuple[int, int],
) -> np.ndarray:
    """The image, float32 (outputs, height, width), not clipped.

    Each channel is upsampled to the image's size as by torch's interpolate(mode="bilinear",
    align_corners=False); then y = act(W * x + b [+ x]) layer by layer.

    Args:
        channels: float32 (h, w) each.
        layers: (weight (outputs, inputs, k, k), bias (outputs,), activation, residual) each, float32;
            k = 1, then k = 3 with the border repeated outwards.
        size: (height, width) of the image.
    """
    made = [(w, b, _ACTIVATIONS.index(activation), residual) for w, b, activation, residual in layers]
    return _native.synthesise(list(channels), made, (int(size[0]), int(size[1])))


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
