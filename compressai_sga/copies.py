# SPDX-License-Identifier: Apache-2.0
"""Copies of models that share nothing with the original, not even through a function.

`copy.deepcopy` does not copy functions. The heads of CompressAI's DCAE and SAAF keep a function that refers
to their common dictionary, a module; after a deep copy they still use the original's dictionary, which does
not follow the copy to another device or type. Here such a function is made anew for the copy. Compiled parts
are copied without their compiled code.

In:  a module. Out: a module of the same class with the same numbers.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from types import CellType, FunctionType
from typing import Any

from torch import nn

from .wrappers import unwrapped

__all__ = ["copied", "modules_of_closures"]


def copied(module: nn.Module, memo: dict[int, Any] | None = None) -> nn.Module:
    """A deep copy.

    Args:
        module: it may be a part of a model.
        memo: by `id`, what stands for an object in the copy instead of a copy of it.
    """
    memo = {} if memo is None else memo
    twin = copy.deepcopy(unwrapped(module), memo)
    for part in list(twin.modules()):
        for name, child in part.named_children():
            if child is not unwrapped(child):
                setattr(part, name, unwrapped(child))
        for name, value in vars(part).items():
            if isinstance(value, FunctionType) and any(_modules_in(value)):
                part.__dict__[name] = _rebound(value, memo)
    return twin


def modules_of_closures(module: nn.Module) -> Iterator[nn.Module]:
    """The modules to which functions refer that are kept in the module or its parts."""
    for part in module.modules():
        for value in vars(part).values():
            if isinstance(value, FunctionType):
                yield from _modules_in(value)


def _modules_in(function: FunctionType) -> Iterator[nn.Module]:
    for cell in function.__closure__ or ():
        if isinstance(_content(cell), nn.Module):
            yield cell.cell_contents


def _content(cell: CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # empty, as in a function that is not yet complete
        return None


def _rebound(function: FunctionType, memo: dict[int, Any]) -> FunctionType:
    """The function over the copies of the modules to which it refers."""
    cells = tuple(
        CellType(copy.deepcopy(cell.cell_contents, memo)) if isinstance(_content(cell), nn.Module) else cell
        for cell in function.__closure__ or ()
    )
    twin = FunctionType(
        function.__code__, function.__globals__, function.__name__, function.__defaults__, cells
    )
    twin.__kwdefaults__ = function.__kwdefaults__
    twin.__dict__.update(function.__dict__)
    return twin
