# SPDX-License-Identifier: Apache-2.0
"""Registers names with CompressAI: the zoo's models, this package's architectures, three of CompressAI's own.

CompressAI 1.2.8 registers three architectures in `compressai.registry.MODELS` only, so that
`eval_model checkpoint -a elic2022-official -p FILE` is refused. `register` adds them, the families of
`models.families` and the zoo's models, in place, to the dictionaries that the command line and
`compressai.zoo` read; `unregister` removes them. The architectures for video go to `video_models` instead of
`image_models`, and by `register_video` to the dictionary of the command for video.

In:  nothing. Out: entries of `image_models`, `video_models`, `models`, `model_architectures` and
`registry.MODELS`.
Fails with ``SgaError`` when pretrained weights are asked of an architecture that has none.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from compressai.registry import MODELS
from torch import nn

from .. import zoo
from ..errors import SgaError
from ..models import ssf
from ..models.families import FAMILIES, UNLISTED, architecture, family_of

__all__ = ["register", "register_video", "unregister"]

_entries: list[tuple[dict[str, Any], str, Any]] = []


def register() -> None:
    """Add the names where they are missing; a second call changes nothing."""
    # Not as attributes: while CompressAI is being imported it has no `zoo` yet.
    from compressai.zoo import image_models, models, video_models
    from compressai.zoo.image import model_architectures

    ours = [name for family in FAMILIES for name in family.classes]
    added = {name: _of_architecture(name) for name in (*(n for n in UNLISTED if n in MODELS), *ours)}
    added |= {name: _of_zoo(name) for name in dict.fromkeys(record.name for record in zoo.list_models())}
    architectures = {record.name: record.architecture for record in zoo.list_models()}
    for name, make in added.items():
        cls = architecture(architectures.get(name, name))
        for dictionary, value in (
            (MODELS, cls),
            (image_models, make),
            (models, make),
            (model_architectures, cls),
        ):
            _add(dictionary, name, value)
    for name, cls in ssf.ARCHITECTURES.items():
        for dictionary, value in (
            (MODELS, cls),
            (video_models, _of_video(name, cls)),
            (models, _of_video(name, cls)),
        ):
            _add(dictionary, name, value)


def register_video(architectures: dict[str, Any]) -> None:
    """Add the architectures for video to the dictionary of stock's command; as `register`."""
    for name, cls in ssf.ARCHITECTURES.items():
        _add(architectures, name, cls)


def _add(dictionary: dict[str, Any], name: str, value: Any) -> None:
    if name not in dictionary:
        dictionary[name] = value
        _entries.append((dictionary, name, value))


def unregister() -> None:
    """Remove the names that `register` added and nobody has replaced since."""
    while _entries:
        dictionary, name, value = _entries.pop()
        if dictionary.get(name) is value:
            del dictionary[name]


def _of_architecture(name: str) -> Callable[..., nn.Module]:
    """Entry of CompressAI's dictionaries for an architecture without weights."""
    cls, family = architecture(name), family_of(name)
    # The stock classes have no default for the quality; those of ours with a constructor by quality do.
    by_quality = getattr(cls, "untrained", None)
    default = 1 if by_quality is None else inspect.signature(by_quality).parameters["quality"].default

    def model(
        quality: int = default,
        metric: str = "mse",
        pretrained: bool = False,
        progress: bool = True,
        **kwargs: Any,
    ) -> nn.Module:
        if family.fitted:
            if metric != "mse":
                raise SgaError(f"{name} is fitted for the metric 'mse', not {metric!r}; leave it out")
            if not progress:  # CompressAI's default, True, means its download's: here the terminal decides
                kwargs["progress"] = False
        elif pretrained:
            small = sorted({r.name for r in zoo.list_models() if r.architecture == name})
            there = f" of full size ({', '.join(small)} in the zoo has some)" if small else ""
            raise SgaError(
                f"there are no published weights for {name}{there}; evaluate a checkpoint of your "
                f"own with `checkpoint DATASET -a {name} -p FILE`"
            )
        return family.untrained(name, quality, **kwargs)

    what = "Fitted to each image" if family.fitted else "Untrained; there are no published weights of it"
    return _named(model, name, f"{what}.\n\n    {family.title}: {family.purpose}.")


def _of_video(name: str, cls: type[nn.Module]) -> Callable[..., nn.Module]:
    """Entry of CompressAI's dictionaries for an architecture for video, all of which have no weights."""

    def model(
        quality: int = 1, metric: str = "mse", pretrained: bool = False, progress: bool = True, **kwargs: Any
    ) -> nn.Module:
        if pretrained:
            raise SgaError(
                f"there are no published weights for {name}; train some (zoo/train/video.py) and evaluate "
                f"them with `checkpoint DATASET OUTPUT -a {name} -p FILE -d OUTDIR`"
            )
        return cls(**kwargs)

    return _named(model, name, "Untrained scale-space flow with few channels (`models.ssf`).")


def _of_zoo(name: str) -> Callable[..., nn.Module]:
    """Entry of CompressAI's dictionaries for a model of the zoo."""
    records = zoo.list_models(name)

    def model(
        quality: int,
        metric: str = "mse",
        pretrained: bool = False,
        progress: bool = True,
        **kwargs: Any,
    ) -> nn.Module:
        if pretrained:
            return zoo.load(name, quality, metric, **kwargs)
        record = zoo.find(name, quality, metric)
        if "lmbda" in kwargs:
            raise ValueError(f"lmbda {kwargs['lmbda']} needs trained weights; add pretrained=True")
        widths = None if record.N is None else (record.N, record.M)
        return family_of(record.architecture).untrained(record.architecture, quality, widths, **kwargs)

    return _named(
        model,
        name,
        f"""{name} of the compressai-sga zoo.

    Args:
        quality: one of {[record.quality for record in records]}.
        metric: "mse".
        pretrained: trained weights with coding tables; else the untrained class.
        progress: ignored, there is no download.
        kwargs: with trained weights, lmbda and options as for `compressai_sga.zoo.load`.
    """,
    )


def _named(function: Callable[..., nn.Module], name: str, doc: str) -> Callable[..., nn.Module]:
    function.__name__ = function.__qualname__ = name.replace("-", "_")
    function.__doc__ = doc
    return function
