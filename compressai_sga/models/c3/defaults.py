# SPDX-License-Identifier: Apache-2.0
"""Default nets: weights that suit most photographs, so that a file codes only its differences from them.

They were fitted to many photographs at once (`zoo/train/c3_nets.py`), one set for each of a few trade-offs,
and ship in the zoo as integers in units of 2^-12. A fit may start from the set nearest to its lmbda, and
an array may be coded as the difference from it (`weights`). A bitstream names its set by a number, so a
shipped set never changes; the checksum of the nets detects a set that has changed.

In:  a number from 1, or an architecture and lmbda. Out: integers or floats of `config.layout`.
Fails with ``FileNotFoundError`` without the zoo's file, ``ValueError`` where that file has changed.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

from ...zoo_files import c3_nets
from .config import KNOWN, PRESETS, Architecture, layout

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["SHIFT", "DefaultNets", "defaults", "nearest", "read_defaults", "save_defaults"]

SHIFT = 12
"""Default weights are integers times 2^-12."""


@dataclass(frozen=True)
class DefaultNets:
    """One set.

    Args:
        number: its number in a bitstream, from 1.
        architecture: the one that it fits.
        lmbda: the trade-off that it was fitted for.
        integers: for each array of `config.layout`, int64, in units of 2^-12.
    """

    number: int
    architecture: Architecture
    lmbda: float
    integers: tuple[np.ndarray, ...]

    def at(self, index: int, shift: int) -> np.ndarray:
        """An array of the layout in units of 2^-shift, rounded half up."""
        if shift >= SHIFT:
            return self.integers[index] << (shift - SHIFT)
        return (self.integers[index] + (1 << (SHIFT - shift) >> 1)) >> (SHIFT - shift)

    def arrays(self) -> dict[str, np.ndarray]:
        """All arrays as float32."""
        return {
            spec.name: np.ldexp(k.astype(np.float64), -SHIFT).astype(np.float32)
            for spec, k in zip(layout(self.architecture), self.integers)
        }


@functools.cache
def defaults() -> tuple[DefaultNets, ...]:
    """All sets that ship, in the order of their numbers."""
    return read_defaults(c3_nets())


def read_defaults(path: Path) -> tuple[DefaultNets, ...]:
    """The sets of a file of `save_defaults`."""
    found = []
    with safe_open(path, framework="np") as file:
        sets = json.loads(file.metadata()["sets"])
        for number, (known, lmbda) in enumerate(sets, 1):
            architecture = KNOWN[known]
            arrays = tuple(
                file.get_tensor(f"{number}.{spec.name}").astype(np.int64) for spec in layout(architecture)
            )
            found.append(DefaultNets(number, architecture, lmbda, arrays))
    return tuple(found)


def nearest(architecture: Architecture, lmbda: float) -> DefaultNets | None:
    """The set of an architecture whose trade-off is nearest, by its logarithm; None if there is none."""
    if architecture != PRESETS["c3"].architecture:  # no others have been fitted: no need for the file
        return None
    fitting = [d for d in defaults() if d.architecture == architecture]
    return min(fitting, key=lambda d: abs(math.log(d.lmbda / lmbda)), default=None)


def save_defaults(
    path: Path, architecture: Architecture, found: Mapping[float, Mapping[str, Tensor]]
) -> None:
    """Writes sets, given as float arrays by name for each lmbda, and numbers them in that order."""
    tensors = {
        f"{number}.{name}": np.rint(array.detach().cpu().double().numpy() * 2.0**SHIFT).astype(np.int32)
        for number, arrays in enumerate(found.values(), 1)
        for name, array in arrays.items()
    }
    sets = [(KNOWN.index(architecture), lmbda) for lmbda in found]
    save_file(tensors, path, metadata={"sets": json.dumps(sets)})
