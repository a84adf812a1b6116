# SPDX-License-Identifier: Apache-2.0
"""CompressAI's entropy models with our coders: arrays go straight to `constriction`, and tables are cached.

`compress`, `decompress` and `build_indexes` do what the methods of `EntropyModel`, `EntropyModelVbr` and
`GaussianConditional` do, with the same quantisation and the same floats; `binding` and `hooks` put them in
their place for models whose coder is ours. A model's tables are converted once, and again after its buffers
were replaced or written to. (torch counts the writes; where it does not, the contents are compared.)

Under a coder with `continuous` scales, `build_indexes` gives the bounded scales themselves, float32,
and `compress` and `decompress` take them as `indexes`.

In:  an updated entropy model, tensors (N, C, ...). Out: N strings, or the tensor.
Fails with ``ValueError`` like stock (no tables, wrong sizes), ``InputError`` on latents that are not finite,
``BitstreamError`` on a bad string.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..inputs import check_latents
from .coders import CODERS, AnyTables, Coder
from .tables import ScaleTable, Tables, gaussian_tables

__all__ = ["build_indexes", "coder_name", "coder_of", "compress", "decompress", "symbol_indexes", "tables_of"]


def coder_name(module: nn.Module) -> str:
    """The name of an entropy model's coder; for an autoregressive model, of the coder of y."""
    return getattr(module, "gaussian_conditional", module).entropy_coder.name


def coder_of(module: nn.Module) -> Coder | None:
    """The coder of that name, if it is one of ours."""
    return CODERS.get(coder_name(module))


def compress(
    entropy_model: nn.Module,
    inputs: Tensor,
    indexes: Tensor,
    means: Tensor | None = None,
    qs: Tensor | None = None,
) -> list[bytes]:
    """One string for each (C, ...) of `inputs`: EntropyModel.compress.

    Args:
        inputs: (N, C, ...).
        indexes: what `build_indexes` gave, same size.
        means: subtracted before rounding; broadcast.
        qs: the quantisation step of VBR bottlenecks.

    Raises:
        InputError: a latent that has no symbol, such as NaN.
    """
    if inputs.ndim < 2 or inputs.size() != indexes.size():
        raise ValueError(
            f"inputs {tuple(inputs.shape)}, indexes {tuple(indexes.shape)}: expected one size, (N, C, ...)"
        )
    _check(entropy_model)
    check_latents(inputs, means, qs)
    if qs is None:
        symbols = entropy_model.quantize(inputs, "symbols", means)
    else:
        symbols = entropy_model.quantize_variable(inputs, "symbols", means=means, qs=qs)
    coder, tables = coder_of(entropy_model), tables_of(entropy_model, indexes)
    flat, rows = _array(symbols), _array(indexes)
    return [coder.encode(flat[i], rows[i], tables) for i in range(len(flat))]


def decompress(
    entropy_model: nn.Module,
    strings: list[bytes],
    indexes: Tensor,
    dtype: torch.dtype = torch.float,
    means: Tensor | None = None,
    qs: Tensor | None = None,
) -> Tensor:
    """The tensor of N strings: EntropyModel.decompress.

    Raises:
        BitstreamError: a string that was not made for these indexes.
    """
    if not isinstance(strings, (tuple, list)) or len(strings) != indexes.size(0) or indexes.ndim < 2:
        raise ValueError(
            f"strings must be a list of N bytes and indexes (N, C, ...); indexes are {tuple(indexes.shape)}"
        )
    if means is not None and (
        means.size()[:2] != indexes.size()[:2]
        or (means.size() != indexes.size() and any(size != 1 for size in means.size()[2:]))
    ):
        raise ValueError(f"means {tuple(means.shape)} do not fit indexes {tuple(indexes.shape)}")
    _check(entropy_model)
    coder, tables, rows = coder_of(entropy_model), tables_of(entropy_model, indexes), _array(indexes)
    symbols = np.empty(rows.shape, np.int32)
    for i, string in enumerate(strings):
        symbols[i] = coder.decode(string, rows[i], tables)
    outputs = torch.from_numpy(symbols).reshape(indexes.size()).to(entropy_model._quantized_cdf.device)
    if qs is None:
        return entropy_model.dequantize(outputs, means, dtype)
    return entropy_model.dequantize_variable(outputs, means=means, dtype=dtype, qs=qs)


def build_indexes(conditional: nn.Module, scales: Tensor) -> Tensor:
    """The table of every scale, int32, as GaussianConditional.build_indexes; or the bounded scales."""
    found = symbol_indexes(conditional, scales)
    return torch.from_numpy(found).reshape(scales.size()).to(scales.device)


def symbol_indexes(conditional: nn.Module, scales: Tensor) -> np.ndarray:
    """`build_indexes` as an array for the coder, (n,)."""
    bounded = conditional.lower_bound_scale(scales.detach())
    flat = np.ascontiguousarray(bounded.float().reshape(-1).cpu().numpy())
    if coder_of(conditional).continuous:
        return flat
    return _cached(conditional, ("scale_table",), ScaleTable).indexes(flat)


def tables_of(entropy_model: nn.Module, indexes: Tensor | np.ndarray) -> AnyTables:
    """The tables that these indexes are for."""
    floats = indexes.is_floating_point() if isinstance(indexes, Tensor) else indexes.dtype.kind == "f"
    if floats:
        return gaussian_tables()
    return _cached(entropy_model, ("_quantized_cdf", "_cdf_length", "_offset"), Tables)


def _check(entropy_model: nn.Module) -> None:
    entropy_model._check_cdf_size()
    entropy_model._check_cdf_length()
    entropy_model._check_offsets_size()


def _array(tensor: Tensor) -> np.ndarray:
    """(N, n) int32 or float32, without a copy where it is one already."""
    tensor = tensor.detach().float() if tensor.is_floating_point() else tensor.int()
    return np.ascontiguousarray(tensor.flatten(1).cpu().numpy())


# --- What was made of a model's buffers ----------------------------------------------------------


@dataclass(frozen=True)
class _Made:
    """A value computed from buffers, with what is needed to see whether they have changed."""

    buffers: tuple[Tensor, ...]  # kept alive, so that no other tensor can take an address
    versions: tuple[int | None, ...]
    arrays: tuple[np.ndarray, ...]
    value: Any

    def holds(self, buffers: tuple[Tensor, ...]) -> bool:
        if any(a is not b for a, b in zip(self.buffers, buffers)):
            return False
        versions = tuple(map(_version, buffers))
        if None not in versions:
            return versions == self.versions
        return all(np.array_equal(a, b.cpu().numpy()) for a, b in zip(self.arrays, buffers))


_made: weakref.WeakKeyDictionary[nn.Module, dict[Any, _Made]] = weakref.WeakKeyDictionary()


def _version(tensor: Tensor) -> int | None:
    return None if tensor.is_inference() else tensor._version


def _cached(entropy_model: nn.Module, names: tuple[str, ...], make: Callable[..., Any]) -> Any:
    """make(*arrays of the named buffers), made again only when they changed."""
    buffers = tuple(getattr(entropy_model, name) for name in names)
    made = _made.setdefault(entropy_model, {})
    known = made.get(names)
    if known is None or not known.holds(buffers):
        arrays = tuple(buffer.detach().cpu().numpy().copy() for buffer in buffers)
        known = made[names] = _Made(buffers, tuple(map(_version, buffers)), arrays, make(*arrays))
    return known.value
