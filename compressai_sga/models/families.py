# SPDX-License-Identifier: Apache-2.0
"""The families of models, one row each, and what a model may offer beyond CompressAI's interface.

    FAMILIES                        # the rows
    family_of("c3-fast").file       # of an architecture; `STOCK` where none of ours has it

Registration, the zoo, files, the evaluation, the comparison and the recipes read these rows; none of them has
code for a family's name. To add a model: a class (`Model` says what it may offer), a row here, a card.

In:  names of architectures, as in CompressAI's dictionaries and the zoo's manifest. Out: rows, models.
Fails with ``ValueError`` for an unknown architecture.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

from .. import zoo_files
from ..lazy import Table

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["FAMILIES", "STOCK", "UNLISTED", "Family", "Filing", "Model", "architecture", "family_of"]

UNLISTED = ("cheng2020-anchor-checkerboard", "elic2022-official", "elic2022-chandelier")
"""Architectures that CompressAI 1.2.8 has in `registry.MODELS` only, where its command line does not look."""
Filing = Literal["transform", "c3", "diffc"]


class Model(Protocol):
    """What a class may offer; only the first four, CompressAI's own, are required.

    `forward` gives {"x_hat", "likelihoods"}; `compress` gives {"strings", "shape"}; `decompress` takes both
    and gives {"x_hat"}. All side information is inside the strings, which are all that is counted.
    """

    OPTIONS: ClassVar[tuple[str, ...]]
    """Attributes, and keywords of the constructor, that a command line may set (`evaluation.options`)."""
    UNREFINABLE: ClassVar[str]
    """Why its latents cannot be refined, as the rest of a sentence that its name begins. Absent: they can."""

    def forward(self, x: Tensor) -> dict[str, Any]: ...

    def compress(self, x: Tensor) -> dict[str, Any]: ...

    def decompress(self, strings: list[list[bytes]], shape: Any) -> dict[str, Tensor]: ...

    @classmethod
    def from_state_dict(cls, state_dict: Mapping[str, Tensor]) -> nn.Module: ...

    @classmethod
    def untrained(cls, quality: int, **options: Any) -> nn.Module:
        """A model of the size for that quality; classes without this method are made from N and M."""

    @classmethod
    def from_zoo(
        cls, state_dict: Mapping[str, Tensor], quality: int, first_stage: nn.Module | None
    ) -> nn.Module:
        """The model of one quality from a file of the zoo that serves all; without it, `from_state_dict`."""

    def check_options(self) -> None:
        """Raises ValueError where an attribute of OPTIONS has an invalid value."""

    @property
    def settings(self) -> dict[str, Any]:
        """The settings that affect the result, beside weights and image; JSON."""

    @property
    def first_stage(self) -> nn.Module:
        """The model that codes, where this one only restores its images; refinement moves its latents."""

    @property
    def downsampling_factor(self) -> int:
        """The sides of an image must be multiples of this, px; with 1, evaluation does not pad."""

    @property
    def macs(self) -> Any:
        """`total`: the decoder's multiplications a pixel, where they cannot be counted while it runs."""


@dataclass(frozen=True)
class Family:
    """The properties that all architectures of one kind share.

    Args:
        title: for people.
        purpose: what it is for, in one line.
        classes: by the names under which CompressAI knows them.
        file: how a `.csga` file holds an image: symbols and transforms ("transform"), or as C3, or as DiffC.
        fitted: whether the model is made for each image, so that it has no weights and no checkpoints.
        like: from its own name, the stock architecture whose N and M it takes at a quality; None: the class
            has `untrained`, or widths of its own.
        data: files that coding needs beside weights.
        card: the description on the card of a zoo model; {name} and {stock} (`like`) stand for the names.
    """

    title: str
    purpose: str
    classes: Mapping[str, type[nn.Module]]
    file: Filing = "transform"
    fitted: bool = False
    like: Callable[[str], str] | None = None
    data: Callable[[], list[Path]] = field(default=lambda: [])
    card: str = "CompressAI's stock `{name}`"

    def untrained(
        self, name: str, quality: int, widths: tuple[int, int] | None = None, **options: Any
    ) -> nn.Module:
        """A model without weights.

        Args:
            name: one of `classes`.
            quality: CompressAI's 1..8.
            widths: N and M; by default those of the quality.
            options: of the constructor.
        """
        cls = architecture(name)
        if hasattr(cls, "untrained"):
            return cls.untrained(quality, **options)
        if widths is None and self.like is not None:
            from compressai.zoo.image import (
                cfgs,
            )  # late: while CompressAI is being imported it has no zoo yet

            widths = cfgs[self.stock_name(name)][quality]
        return cls(*(widths or ()), **options)

    def stock_name(self, name: str) -> str:
        """The stock architecture that one of ours is like (`Family.like`); else its own name."""
        own = next((each for each, cls in self.classes.items() if cls is architecture(name)), name)
        return own if self.like is None else self.like(own)


def _classes(module: str, *names: str) -> Table:
    """Rows of `ARCHITECTURES` in a module beside this one, which is imported when a class is asked for."""
    return Table(__name__.rpartition(".")[0], {name: f"{module}:ARCHITECTURES" for name in names})


FAMILIES: list[Family] = [
    Family(
        "Universal quantisation",
        "files that behave as the noise of training did",
        _classes("universal", "bmshj2018-factorized-uq", "bmshj2018-hyperprior-uq", "mbt2018-mean-uq"),
        like=lambda name: name.removesuffix("-uq"),
        card="CompressAI's `{stock}` with universal quantisation (`compressai_sga.models.universal`)",
    ),
    Family(
        "Rate-distortion autoencoders",
        "other distortions than MSE; what a training loss believes",
        _classes("rda", "rda-l2", "rda-l1", "rda-ms-ssim"),
        like=lambda name: "bmshj2018-factorized",
        card="Rate-distortion autoencoder `{name}` (`compressai_sga.models.rda`)",
    ),
    Family(
        "Space-channel context",
        "the fewest bits of the models that are not fitted",
        _classes("elic", "elic2022-gdn"),
        card="The space-channel context model `{name}` (`compressai_sga.models.elic`)",
    ),
    Family(
        "C3",
        "a tiny decoder, fitted to each image in minutes",
        _classes("c3", "c3", "c3-fast", "c3-paper"),
        file="c3",
        fitted=True,
        data=lambda: [zoo_files.c3_nets()],
    ),
    Family("HFD", "realistic detail from the same bits", _classes("hfd", "hfd")),
    Family(
        "DiffC",
        "any rate, and any prefix, of one stream",
        _classes("diffc", "diffc-a", "diffc-f"),
        file="diffc",
    ),
]
STOCK = Family("CompressAI", "CompressAI's own architectures: fast to decode, and refinable", {})
"""CompressAI's own architectures, and whatever else is registered with it."""


def family_of(name: str) -> Family:
    """The family of an architecture, by any name under which it is registered.

    Raises:
        ValueError: there is no such architecture.
    """
    cls = architecture(name)
    return next((family for family in FAMILIES if cls in family.classes.values()), STOCK)


def architecture(name: str) -> type[nn.Module]:
    """The class of an architecture: of this package, whether registered or not, or of CompressAI.

    Raises:
        ValueError: there is no such architecture.
    """
    from compressai.registry import MODELS
    from compressai.zoo.image import model_architectures  # late, as above

    own = {each: cls for family in FAMILIES for each, cls in family.classes.items()}
    for classes in (own, model_architectures, MODELS):
        if name in classes:
            return classes[name]
    there = sorted({*own, *model_architectures})
    raise ValueError(f"no architecture is called {name!r}; there are {', '.join(there)}")
