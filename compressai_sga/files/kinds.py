# SPDX-License-Identifier: Apache-2.0
"""The interface of the kinds of `.csga` files; the modules `transform`, `c3` and `diffc` implement it.

In:  a `Request`. Out: see `Kind`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from ..models.families import FAMILIES
from ..zoo_files import folder
from ..zoo_records import installed, records

if TYPE_CHECKING:
    from ..coding.container import Container
    from ..typing import StepCallback
    from .images import Picture

__all__ = ["DEFAULT_C3_QUALITY", "DEFAULT_CODER", "Kind", "Request", "compressible"]

DEFAULT_CODER = "constriction-exact"
DEFAULT_C3_QUALITY = 4


@dataclass(frozen=True)
class Request:
    """How an image is to be coded: the arguments of `codec.compress_picture`, None where none was given."""

    model: str
    quality: int | None = None
    metric: str = "mse"
    coder: str | None = None
    refine: str | None = None
    steps: int | None = None
    lmbda: float | None = None
    seed: int = 0
    on_step: StepCallback | None = None
    max_seconds: float | None = None
    checkpoint: str | os.PathLike[str] | None = None
    bpp: float | None = None


class Kind(Protocol):
    """How the images of one kind of model become files and come back."""

    TAKES: frozenset[str]
    """Fields of a request, beside model, quality, metric and on_step, that mean something to it."""
    PROGRESSIVE: bool
    """Whether the first bytes of a file decode, to an image of fewer bits."""

    def compress(self, picture: Picture, request: Request) -> tuple[Container, Any]:
        """The container to write and the result of refinement or fit; raises ``ValueError``, ``SgaError``."""

    def decompress(self, container: Container, options: Mapping[str, Any], *, cut: bool = False) -> Picture:
        """The image; `cut` says that the file may end early. Raises ``BitstreamError``, ``ValueError``."""


def compressible() -> list[str]:
    """Names of the models that can make files here: those of the zoo that are installed, and fitted ones."""
    of_zoo = sorted({record.name for record in records(folder()) if installed(folder(), record)})
    return [*of_zoo, *(name for family in FAMILIES if family.fitted for name in family.classes)]
