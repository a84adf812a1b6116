# SPDX-License-Identifier: Apache-2.0
"""Names for the stock command line: models of this package, and three that CompressAI leaves out.

CompressAI 1.2.8 registers three architectures in `compressai.registry.MODELS` only, so that
`eval_model checkpoint -a elic2022-official -p FILE` is refused. `register` adds them and the models of
this package, in place, to the dictionaries that the command line and `compressai.zoo` read;
`unregister` takes them out.

In:  nothing. Out: entries of `image_models`, `models`, `model_architectures` and `registry.MODELS`.
Fails: an entry point asked for pretrained weights raises `SgaError`, for there are none.
"""

from __future__ import annotations

from typing import Any

from compressai.registry import MODELS
from torch import nn

from .. import zoo
from ..errors import SgaError
from ..models import c3, elic, rda, universal

__all__ = ["UNLISTED", "register", "unregister"]

UNLISTED = ("cheng2020-anchor-checkerboard", "elic2022-official", "elic2022-chandelier")


class _EntryPoint:
    """What CompressAI's dictionaries of models hold: a callable of (quality, metric, ...)."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.__name__ = name.replace("-", "_")
        self.__doc__ = f"Untrained {name}; there are no published weights of it."

    def __call__(
        self,
        quality: int = 1,
        metric: str = "mse",
        pretrained: bool = False,
        progress: bool = True,
        **kwargs: Any,
    ) -> nn.Module:
        if pretrained:
            small = sorted({r.name for r in zoo.list_models() if r.architecture == self.name})
            there = f" of full size ({', '.join(small)} in the zoo has some)" if small else ""
            raise SgaError(
                f"there are no published weights for {self.name}{there}; evaluate a checkpoint of your "
                f"own with `checkpoint DATASET -a {self.name} -p FILE`"
            )
        return self.make(quality, kwargs)

    def make(self, quality: int, kwargs: dict[str, Any]) -> nn.Module:
        return MODELS[self.name](**kwargs)


class _UniversalEntryPoint(_EntryPoint):
    """The same for universally quantised models: as wide as the stock model of that quality."""

    def make(self, quality: int, kwargs: dict[str, Any]) -> nn.Module:
        from compressai.zoo.image import cfgs

        widths = cfgs[self.name.removesuffix("-uq")][quality]
        return universal.ARCHITECTURES[self.name](*widths, **kwargs)


class _AutoencoderEntryPoint(_EntryPoint):
    """The same for rate-distortion autoencoders: as wide as CompressAI's factorised prior of that quality."""

    def make(self, quality: int, kwargs: dict[str, Any]) -> nn.Module:
        from compressai.zoo.image import cfgs

        return rda.ARCHITECTURES[self.name](*cfgs["bmshj2018-factorized"][quality], **kwargs)


class _C3EntryPoint(_EntryPoint):
    """C3 is fitted to each image, so that there are no weights to ask for; quality 1 to 8."""

    def __call__(
        self,
        quality: int = 4,
        metric: str = "mse",
        pretrained: bool = False,
        progress: bool = True,
        **kwargs: Any,
    ) -> nn.Module:
        if metric != "mse":
            raise SgaError(f"{self.name} is fitted for the metric 'mse', not {metric!r}; leave it out")
        if not progress:  # CompressAI's default, True, means its download's: here the terminal decides
            kwargs["progress"] = False
        return c3.ARCHITECTURES[self.name](quality, **kwargs)


class _DiffusionEntryPoint(_EntryPoint):
    """HFD and DiffC of the default size; those with trained weights are the zoo's."""

    def __call__(
        self,
        quality: int = 1,
        metric: str = "mse",
        pretrained: bool = False,
        progress: bool = True,
        **kwargs: Any,
    ) -> nn.Module:
        if pretrained:
            raise SgaError(
                f"there are no weights for {self.name} of full size; {self.name}-small has some, and "
                f"your own are evaluated with `checkpoint DATASET -a {self.name} -p FILE`"
            )
        return self.make(quality, kwargs)

    def make(self, quality: int, kwargs: dict[str, Any]) -> nn.Module:
        return zoo.DIFFUSION[self.name].untrained(quality, **kwargs)


_entries: list[tuple[dict[str, Any], str, Any]] = []


def register() -> None:
    """Add the unlisted names where they are missing; again is harmless."""
    # Not as attributes: while CompressAI is being imported it has no `zoo` yet.
    from compressai.zoo import image_models, models
    from compressai.zoo.image import model_architectures

    stock = {name: (MODELS[name], _EntryPoint(name)) for name in UNLISTED if name in MODELS}
    dithered = {name: (cls, _UniversalEntryPoint(name)) for name, cls in universal.ARCHITECTURES.items()}
    trained = {name: (cls, _AutoencoderEntryPoint(name)) for name, cls in rda.ARCHITECTURES.items()}
    contextual = {name: (cls, _EntryPoint(name)) for name, cls in elic.ARCHITECTURES.items()}
    fitted = {name: (cls, _C3EntryPoint(name)) for name, cls in c3.ARCHITECTURES.items()}
    drawn = {name: (cls, _DiffusionEntryPoint(name)) for name, cls in zoo.DIFFUSION.items()}
    added = stock | dithered | trained | contextual | fitted | drawn
    for name, (architecture, entry_point) in added.items():
        for dictionary, value in (
            (MODELS, architecture),
            (image_models, entry_point),
            (models, entry_point),
            (model_architectures, architecture),
        ):
            if name not in dictionary:
                dictionary[name] = value
                _entries.append((dictionary, name, value))


def unregister() -> None:
    """Take out what `register` added, unless somebody else has replaced it."""
    while _entries:
        dictionary, name, value = _entries.pop()
        if dictionary.get(name) is value:
            del dictionary[name]
