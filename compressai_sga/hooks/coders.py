# SPDX-License-Identifier: Apache-2.0
"""Puts the coders of `compressai_sga.coding` into CompressAI's place; see the table in `hooks/__init__.py`.

`wrap_method` makes each method of `coding.binding.METHODS` look at the coder's name of its own entropy model
(`entropy_coder.name`, which CompressAI fixes at construction and pickles): one of ours goes to `coding`, any
other to stock with the same arguments. `register` adds the names to the list behind
`compressai.available_entropy_coders()`, in place. A model to which `coding.set_coder` bound a coder needs
none of this.

A stock coder reads strings of another length than a multiple of four bytes beyond their end; all of its
own are multiples. Such strings are refused, so that a string of another coder does no harm.

In:  the stock module and its function. Out: the wrapper.
Fails with ``BitstreamError`` on a string that is not the coder's.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

from torch import nn

from ..coding.binding import METHODS, CoderProxy, by_coder
from ..coding.coders import CODERS
from ..coding.entropy_models import coder_name
from ..errors import BitstreamError

__all__ = ["register", "unregister", "wrap_coder", "wrap_method"]

Function = Callable[..., Any]


# --- Names -------------------------------------------------------------------------------------


class _Probe:
    """Waits for CompressAI's list; its import ends by looking for `range_coder`, when the list exists.

    Where that module was imported before, the next import of any other does.
    """

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if hasattr(sys.modules.get("compressai"), "_available_entropy_coders"):
            sys.meta_path[:] = [finder for finder in sys.meta_path if finder is not self]
            register()
        return None


_added: list[str] = []


def register() -> None:
    """Add the names to CompressAI's list, or do so as soon as it exists; again is harmless."""
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
    """Take the names out again; a default that was one of them becomes stock's first."""
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
    """`_EntropyCoder.__init__`, which knows our names."""

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
    """A method of `METHODS`; where it decodes, stock's is kept from strings of other coders."""
    check = _refuse_foreign if "decompress" in stock.__name__ else None
    return by_coder(stock, _OURS[stock.__qualname__], check)


def _refuse_foreign(self: nn.Module, *args: Any, **kwargs: Any) -> None:
    if coder_name(self) != "ans":
        return
    for string in _strings(args[0] if args else kwargs.get("strings", kwargs.get("y_string"))):
        if len(string) % 4:
            raise BitstreamError(
                f"a string of {len(string)} bytes is not of CompressAI's coder `ans`, whose strings are "
                "multiples of 4 bytes: decode it with the coder that made it (coding.set_coder)"
            )


def _strings(given: Any) -> Iterator[bytes]:
    if isinstance(given, bytes):
        yield given
    elif isinstance(given, (list, tuple)):
        for part in given:
            yield from _strings(part)
