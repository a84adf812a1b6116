# SPDX-License-Identifier: Apache-2.0
"""What the kinds of `.csga` files have in common: `transform`, `c3` and `diffc` are modules of this form.

In:  a `Request`. Out: see `Kind`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from ..coding.container import Container
from ..typing import StepCallback
from .images import Picture

__all__ = ["Kind", "Request"]


@dataclass(frozen=True)
class Request:
    """How an image is to be coded; the arguments of `codec.compress_picture`, None where nothing was said."""

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
    """How images of one kind of model are filed."""

    TAKES: frozenset[str]
    """Fields of a request, beside model, quality and metric, that mean something to it."""
    PARTS: tuple[str, str]
    """Names of the strings, where there are no more than two."""

    def compress(self, picture: Picture, request: Request) -> tuple[Container, Any]:
        """What is to be written, and how it came about; ``ValueError``, ``SgaError``."""

    def decompress(self, container: Container, options: Mapping[str, Any], *, cut: bool = False) -> Picture:
        """The image; of the first bytes of a file where it was `cut`. ``BitstreamError``, ``ValueError``."""

    def is_known(self, container: Container) -> bool:
        """Whether everything is there that decodes it."""
