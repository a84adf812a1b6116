# SPDX-License-Identifier: Apache-2.0
"""Imports that wait until something is used, so that `--help` and `info` need no PyTorch.

    __getattr__ = attributes(__name__, {"refine": "loop", "PRESETS": "presets"})   # of a package
    ARCHITECTURES = Table(__name__, {"c3": "model:C3", "c3-fast": "model:C3Fast"})  # with names known at once

In:  names, and the modules below a package that define them. Out: the objects, imported at the first use.
Fails with ``AttributeError`` or ``KeyError`` for other names.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from typing import Any

__all__ = ["Table", "attributes"]


def attributes(package: str, modules: Mapping[str, str]) -> Callable[[str], Any]:
    """The `__getattr__` (PEP 562) of a package.

    Args:
        package: its name.
        modules: by each public name, the module of the package that defines it (".name": beside the package);
            "" if it is a module itself.
    """

    def __getattr__(name: str) -> Any:
        if name not in modules:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        if not modules[name]:
            return importlib.import_module(f".{name}", package)
        return getattr(importlib.import_module(f".{modules[name]}", package), name)

    return __getattr__


class Table(MutableMapping[str, Any]):
    """A dictionary whose keys are known and whose values are imported when they are asked for.

    Args:
        package: name of the package below which the modules are.
        places: by key, "module:attribute"; where the attribute is a dictionary, its value for the key.
    """

    def __init__(self, package: str, places: Mapping[str, str]) -> None:
        self._package = package
        self._places: dict[str, str | None] = dict(places)  # None: the value was set
        self._values: dict[str, Any] = {}

    def __getitem__(self, key: str) -> Any:
        place = self._places[key]
        if place is None:
            return self._values[key]
        module, _, attribute = place.partition(":")
        value = getattr(importlib.import_module(f".{module}", self._package), attribute)
        return value[key] if isinstance(value, Mapping) else value

    def __setitem__(self, key: str, value: Any) -> None:
        self._places[key], self._values[key] = None, value

    def __delitem__(self, key: str) -> None:
        del self._places[key]
        self._values.pop(key, None)

    def __contains__(self, key: object) -> bool:
        return key in self._places

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)
