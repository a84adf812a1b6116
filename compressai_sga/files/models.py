# SPDX-License-Identifier: Apache-2.0
"""The model of the zoo that codes a file, and the check that the file was made with it.

A file names its model and the first bytes of the weights' sha256; both must be the zoo's. Where one file of
weights serves all qualities, lmbda is hashed too, so that a file of one rate is refused at another.

In:  a request (name, quality, metric), or a container. Out: the zoo's record; the model, with a coder of this
package bound to it (`coding.set_coder`) and with tables that are the same on every machine (`float64`); the
layout of its files. Models are kept for the next file. Threads get different models that share their weights.
Fails with ``ValueError`` on a request that the zoo cannot meet.
"""

from __future__ import annotations

import contextvars
import copy
import functools
import threading
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from .. import zoo
from ..coding import set_coder
from ..coding.container import Container
from ..coding.sizes import reduce_shape
from ..errors import BitstreamError
from .description import fingerprint, record_among
from .float64 import make_portable

__all__ = ["STRIDE", "borrowed", "choose", "fingerprint", "layout_of", "record_of", "required"]

STRIDE = 6  # log2 of 64
_loading = threading.Lock()  # of the cache of models: threads that want the same one load it once


def choose(model: str, quality: int | None, metric: str) -> zoo.ModelRecord:
    """The zoo's record for a request; raises ValueError as `zoo.load` does."""
    records = [r for r in zoo.list_models() if (r.name, r.metric) == (model, metric)]
    if quality is None and records:
        qualities = [r.quality for r in records]
        quality = zoo.DEFAULT_QUALITY if zoo.DEFAULT_QUALITY in qualities else qualities[len(records) // 2]
    for record in records:
        if record.quality == quality:
            return record
    zoo.load(model, zoo.DEFAULT_QUALITY if quality is None else quality, metric)
    raise ValueError(f"{model}, quality {quality}, metric {metric} is not in the zoo")


def record_of(container: Container) -> zoo.ModelRecord | None:
    """The zoo's record of the weights of a file; quality 0, for a given rate, matches any quality."""
    return record_among(zoo.list_models(), container)


def required(container: Container) -> zoo.ModelRecord:
    """As `record_of`, but raises ``BitstreamError`` when the zoo does not have the weights of the file."""
    record = record_of(container)
    if record is None:
        raise BitstreamError(_refusal_of(container))
    return record


def _refusal_of(container: Container) -> str:
    """Why a file whose record is None cannot be decoded, with its model and the zoo's."""
    made = f"{container.model}, quality {container.quality}, {container.metric}"
    same = [
        record
        for record in zoo.list_models()
        if (record.name, record.quality, record.metric)
        == (container.model, container.quality, container.metric)
    ]
    if same:
        return (
            f"made with {made}, weights {container.weights.hex()}; the weights of that name in this zoo are "
            f"{fingerprint(same[0]).hex()} ({same[0].file}), which decode other images; install the "
            "compressai-sga that made the file"
        )
    names = ", ".join(sorted({record.name for record in zoo.list_models()}))
    return (
        f"made with {made}, weights {container.weights.hex()}, which this zoo does not have; it has {names}; "
        "install the compressai-sga that made the file"
    )


@contextmanager
def borrowed(
    record: zoo.ModelRecord, coder: str | None, options: Mapping[str, Any] | None = None
) -> Iterator[nn.Module]:
    """A model for one file, with its coder and options; no other file uses it inside the block.

    Args:
        record: of the model.
        coder: one of `coding.container.CODERS`; None for a model that has its own coder.
        options: values of the attributes that the model's class lists in `OPTIONS`.

    Raises:
        ValueError: the model has no such option, or refuses the value.
    """
    with _loading:
        loaded = _load(record.name, record.quality, record.metric, fingerprint(record))
    if not loaded.portable and coder not in (None, "constriction-exact"):
        warnings.warn(
            f"the Gaussian coding tables of {record.name} differ on this machine, so that files of {coder} "
            "cannot be exchanged with other machines; use constriction-exact, which does not need them",
            stacklevel=4,
        )
    net = loaded.take()
    try:
        if coder is not None:
            set_coder(net, coder)
        with _options(net, record.name, options or {}):
            yield net
    finally:
        loaded.idle.append(net)


@contextmanager
def _options(net: nn.Module, name: str, options: Mapping[str, Any]) -> Iterator[None]:
    """The model with these options; the old ones are put back at the end of the block."""
    own = getattr(net, "OPTIONS", ())
    for option in options:
        if option not in own:
            raise ValueError(f"{name} has no option {option}; it has {', '.join(own) or 'none'}")
    before = {option: getattr(net, option) for option in options}
    try:
        for option, value in options.items():
            setattr(net, option, value)
        if options:
            net.check_options()
        yield
    finally:
        for option, value in before.items():
            setattr(net, option, value)


@dataclass
class _Loaded:
    """A model of the zoo and copies of it that share its weights, one for each file that is open at once.

    Args:
        net: the original, never lent, so that a new copy has no coder and options of another file.
        portable: whether its Gaussian tables are those of the machine that published it.
        idle: the copies that no file uses now.
    """

    net: nn.Module
    portable: bool
    idle: list[nn.Module] = field(default_factory=list)

    def take(self) -> nn.Module:
        """The copy that was given back last, or a new one."""
        try:
            return self.idle.pop()
        except IndexError:
            tensors = (*self.net.parameters(), *self.net.buffers())
            return copy.deepcopy(self.net, {id(tensor): tensor for tensor in tensors})


@functools.lru_cache(maxsize=4)
def _load(name: str, quality: int, metric: str, weights: bytes) -> _Loaded:
    """The model that the zoo has under this name.

    `weights`, the fingerprint, keeps models apart that had the same name in different manifests.
    """
    record = choose(name, quality, metric)
    net = make_portable(zoo.load_record(record)).requires_grad_(False)
    return _Loaded(net, zoo.has_published_tables(net, record))


def layout_of(net: nn.Module) -> tuple[int, Any]:
    """(number of strings, reduced shape) of the files of a model; computed once and kept on the model."""
    if not hasattr(net, "_csga_layout"):
        side = 1 << STRIDE
        with torch.no_grad():  # in a context of its own: no symbols of the caller's (`coding.checksum`)
            out = contextvars.Context().run(net.compress, torch.zeros(1, 3, side, side))
        net._csga_layout = len(out["strings"]), reduce_shape(out["shape"], (side, side), STRIDE)
    return net._csga_layout
