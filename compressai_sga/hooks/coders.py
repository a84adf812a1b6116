# SPDX-License-Identifier: Apache-2.0
"""Makes CompressAI use the coders of `compressai_sga.coding`; see the table in `hooks/__init__.py`.

`wrap_method` wraps each method of `coding.binding.METHODS`. The wrapper reads the name of the coder from the
entropy model (`entropy_coder.name`, which CompressAI sets at construction and pickles). For a coder of this
package it calls `coding`; for any other coder it calls stock with the same arguments. `register` adds the
names to the list behind `compressai.available_entropy_coders()`, in place. A model with a coder of its own
(`coding.set_coder`) needs none of this.

Strings of the stock coder have a length that is a multiple of four bytes; on any other length it reads beyond
the end of the string. Such strings are refused, so that a string of another coder does no harm.

In:  the stock module and its function. Out: the wrapper.
Fails with ``BitstreamError`` on a string that another coder made.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import torch  # by this name: TorchScript looks here for what stock's `quantize` uses
from torch import nn

from ..coding.binding import METHODS, CoderProxy, by_coder
from ..coding.coders import CODERS
from ..coding.entropy_models import coder_name
from ..errors import BitstreamError
from ..inputs import check_latents, check_weights

__all__ = ["register", "unregister", "wrap_coder", "wrap_method", "wrap_quantize"]

Function = Callable[..., Any]


# --- Names -------------------------------------------------------------------------------------


class _Probe:
    """Finder that waits until CompressAI's list of coders exists.

    CompressAI imports `range_coder` when the list exists. If that module was imported before, the next import
    of any other module triggers the finder.
    """

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if hasattr(sys.modules.get("compressai"), "_available_entropy_coders"):
            sys.meta_path[:] = [finder for finder in sys.meta_path if finder is not self]
            register()
        return None


_added: list[str] = []


def register() -> None:
    """Add the names to CompressAI's list, now or as soon as it exists; a second call changes nothing."""
    import compressai

    names = getattr(compressai, "_available_entropy_coders", None)
    if names is None:
        if not any(isinstance(finder, _Probe) for finder in sys.meta_path):
            sys.meta_path.insert(0, _Probe())
        return
    for name in CODERS:
        if name not in names:
            names.append(name)
            _added.append(name)


def unregister() -> None:
    """Remove the names; if the default coder was one of them, stock's first coder becomes the default."""
    import compressai

    sys.meta_path[:] = [finder for finder in sys.meta_path if not isinstance(finder, _Probe)]
    names = getattr(compressai, "_available_entropy_coders", [])
    while _added:
        name = _added.pop()
        if name in names:
            names.remove(name)
    if names and compressai.get_entropy_coder() not in names:
        compressai.set_entropy_coder(names[0])


def wrap_coder(module: ModuleType, stock: Function) -> Function:
    """`_EntropyCoder.__init__` that also accepts the names of this package's coders."""

    @functools.wraps(stock)
    def __init__(self: Any, method: str) -> None:
        if isinstance(method, str) and method in CODERS:
            CoderProxy.__init__(self, method)
        else:
            stock(self, method)

    return __init__


# --- Methods -----------------------------------------------------------------------------------

_OURS = {
    f"{kind.__qualname__}.{name}": ours for kind, named in METHODS.items() for name, ours in named.items()
}


def wrap_method(module: ModuleType, stock: Function) -> Function:
    """Wrapper of a method of `METHODS`; before stock decodes, strings of other coders are refused."""
    check = _refuse_foreign if "decompress" in stock.__name__ else _ROUNDS_ITSELF.get(stock.__qualname__)
    return by_coder(stock, _OURS[stock.__qualname__], check)


def wrap_quantize(module: ModuleType, stock: Function) -> Function:
    """Wrapper of a `quantize`: before latents become symbols, those that have none are refused.

    Stock's coder never ends on the symbol that NaN becomes.
    """

    @functools.wraps(stock)
    def quantize(self: Any, inputs: Any, mode: str, means: Any = None, *rest: Any, **more: Any) -> Any:
        if mode == "symbols":
            check_latents(inputs, means, more.get("qs", rest[0] if rest else None))
        return stock(self, inputs, mode, means, *rest, **more)

    return quantize


def _refuse_foreign(self: nn.Module, *args: Any, **kwargs: Any) -> None:
    if coder_name(self) != "ans":
        return
    for string in _strings(args[0] if args else kwargs.get("strings", kwargs.get("y_string"))):
        if len(string) % 4:
            raise BitstreamError(
                f"a string of {len(string)} bytes is not of CompressAI's coder `ans`, whose strings are "
                "multiples of 4 bytes: decode it with the coder that made it (coding.set_coder)"
            )


def _refuse_latents(self: nn.Module, *args: Any, **kwargs: Any) -> None:
    for part in (*args, *kwargs.values()):
        if torch.is_tensor(part):
            check_latents(part)


def _refuse_latents_and_weights(self: nn.Module, *args: Any, **kwargs: Any) -> None:
    _refuse_latents(self, *args, **kwargs)
    check_weights(self)  # the means are computed pixel by pixel, within stock's loop


_ROUNDS_ITSELF = {  # without `quantize`
    "GaussianMixtureConditional.compress": _refuse_latents,
    "JointAutoregressiveHierarchicalPriorsVbr._compress_ar": _refuse_latents_and_weights,
}


def _strings(given: Any) -> Iterator[bytes]:
    if isinstance(given, bytes):
        yield given
    elif isinstance(given, (list, tuple)):
        for part in given:
            yield from _strings(part)
