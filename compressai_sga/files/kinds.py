# SPDX-License-Identifier: Apache-2.0
"""The interface of the kinds of `.csga` files; the modules `transform`, `c3` and `diffc` implement it.

In:  a `Request`. Out: see `Kind`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from ..errors import BitstreamError, SgaError
from ..models.families import FAMILIES
from ..zoo_files import folder
from ..zoo_records import installed, records

if TYPE_CHECKING:
    import numpy as np

    from ..coding.container import Container
    from ..typing import StepCallback
    from .images import Picture

__all__ = [
    "DEFAULT_C3_QUALITY",
    "DEFAULT_CODER",
    "Coded",
    "Kind",
    "Range",
    "Request",
    "compressible",
    "decoding_here",
]

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
    weights: str | os.PathLike[str] | None = None
    device: str = "cpu"


@dataclass(frozen=True)
class Range:
    """A field of a request that moves the rate, and the values that it may have (`target`).

    Args:
        field: its name.
        start: the first value to try.
        low, high: limits; all between may be tried, if there are no `values`.
        slope: about the power of the value that the size is.
        values: the only ones that there are, rising.
        scout: changes of the request that make a cheaper attempt of nearly the same size, for a first search.
        only_scout: whether that search is all, because the next range goes on from its result.
        keep: whether each attempt has a checkpoint of its own.
        nearest: whether the values are bits a pixel, of which the model takes the nearest that it can send.
        advice: what to say of a wish between two results, of which none is near enough.
        beyond: what to say of one that is out of reach.
    """

    field: str
    start: float
    low: float
    high: float
    slope: float
    values: tuple[int, ...] = ()
    scout: Mapping[str, Any] = field(default_factory=dict)
    only_scout: bool = False
    keep: bool = False
    nearest: bool = False
    advice: str = ""
    beyond: str = ""


class Coded(NamedTuple):
    """One image, coded.

    Args:
        container: to write.
        result: of refinement or fit, where there was one.
        pixels: that the container decodes to, where the encoder knows them.
    """

    container: Container
    result: Any
    pixels: np.ndarray | None


class Kind(Protocol):
    """How the images of one kind of model become files and come back."""

    TAKES: frozenset[str]
    """Fields of a request, beside model, quality, metric and on_step, that mean something to it."""
    PROGRESSIVE: bool
    """Whether the first bytes of a file decode, to an image of fewer bits."""

    def compress(self, picture: Picture, request: Request) -> Coded:
        """Code an image; raises ``ValueError``, ``SgaError``."""

    def ranges(self, request: Request) -> Sequence[Range]:
        """Where a size or PSNR is searched for, one after the other; raises ``ValueError`` if nowhere."""

    def decompress(self, container: Container, options: Mapping[str, Any], *, cut: bool = False) -> Picture:
        """The image; `cut` says that the file may end early. Raises ``BitstreamError``, ``ValueError``.

        Options are those of the model, and `weights`, the path of a checkpoint, and `device`.
        """


def compressible() -> list[str]:
    """Names of the models that can make files here: those of the zoo that are installed, and fitted ones."""
    of_zoo = sorted({record.name for record in records(folder()) if installed(folder(), record)})
    return [*of_zoo, *(name for family in FAMILIES if family.fitted for name in family.classes)]


@contextmanager
def decoding_here(model: str) -> Iterator[None]:
    """Around the check that what `model` has just coded also decodes.

    Raises:
        SgaError: in place of a ``BitstreamError``, which would blame the file.
    """
    try:
        yield
    except BitstreamError as error:
        raise SgaError(
            f"the image that {model} coded here cannot be decoded here ({error}); please report the image"
        ) from error
