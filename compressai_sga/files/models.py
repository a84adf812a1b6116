# SPDX-License-Identifier: Apache-2.0
"""The model that codes a file, of the zoo or from a checkpoint, and the check that the file was made with it.

A file names its model and the first bytes of the weights' sha256; both must be the zoo's, or those of the
checkpoint that is given. Where one file of weights serves all qualities, lmbda is hashed too, so that a file
of one rate is refused at another.

In:  a request, or a container. Out: the zoo's record (with quality 0 at a rate between its qualities) or an
`OwnWeights`; the model, with a coder of this package bound to it (`coding.set_coder`) and with tables that
are the same on every machine (`float64`); the layout of its files. Models are kept for the next file. Threads
get different models that share their weights.
Fails with ``ValueError`` on a request that cannot be met, ``SgaError`` on checkpoints that do not load.
"""

from __future__ import annotations

import contextvars
import copy
import dataclasses
import functools
import hashlib
import io
import math
import os
import threading
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from compressai.zoo.pretrained import load_pretrained
from safetensors.torch import load
from torch import nn

from .. import zoo
from ..coding import set_coder
from ..coding.container import Container
from ..coding.sizes import reduce_shape
from ..endings import brief, is_lack_of_memory
from ..errors import BitstreamError, SgaError
from ..models.families import architecture
from .description import fingerprint, is_own, record_among
from .float64 import make_portable
from .kinds import Request

__all__ = [
    "STRIDE",
    "OwnWeights",
    "Weights",
    "borrowed",
    "choose",
    "chosen",
    "fingerprint",
    "layout_of",
    "qualities_of",
    "record_of",
    "required",
]

STRIDE = 6  # log2 of 64
_loading = threading.Lock()  # of the cache of models: threads that want the same one load it once


@dataclass(frozen=True)
class OwnWeights:
    """A checkpoint that is not the zoo's, with those fields of a record that files need.

    Args:
        name: of the architecture.
        path: of the file.
        sha256: of the file.
    """

    name: str
    path: str
    sha256: str
    quality: int = 0
    metric: str = "mse"
    lmbda: float | None = None
    lmbda_range: list[float] | None = None


Weights = zoo.ModelRecord | OwnWeights


def chosen(request: Request) -> Weights:
    """What codes an image: the zoo's record of the quality or rate, or the request's checkpoint.

    Raises:
        ValueError: there is no such model, quality or rate.
        SgaError: the checkpoint cannot be read.
    """
    if request.weights is not None:
        if request.quality is not None:
            raise ValueError(
                f"quality {request.quality}: a checkpoint has the one that it was trained for; leave it out"
            )
        return _own(request.model, request.weights)
    record = choose(request.model, request.quality, request.metric)
    if request.lmbda is None or request.quality is not None or record.lmbda_range is None:
        return record
    low, high = (edge * zoo.LMBDA_MARGIN**side for edge, side in zip(record.lmbda_range, (-1, 1)))
    if not low <= request.lmbda <= high:
        raise ValueError(
            f"lmbda {request.lmbda}: {record.name} serves {low:g} to {high:g}; choose one of these"
        )
    return next(
        (each for each in qualities_of(record.name, record.metric) if each.lmbda == request.lmbda),
        dataclasses.replace(record, quality=0, lmbda=request.lmbda),
    )


def qualities_of(name: str, metric: str) -> list[zoo.ModelRecord]:
    """The qualities of a model."""
    return [record for record in zoo.list_models() if (record.name, record.metric) == (name, metric)]


def _own(name: str, path: str | os.PathLike[str]) -> OwnWeights:
    architecture(name)  # known
    return OwnWeights(name, os.fspath(path), hashlib.sha256(_content(path)).hexdigest())


def _content(path: str | os.PathLike[str]) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise SgaError(f"{path} cannot be read: {error.strerror or error}") from error


def choose(model: str, quality: int | None, metric: str) -> zoo.ModelRecord:
    """The zoo's record for a request; raises ValueError as `zoo.load` does."""
    records = qualities_of(model, metric)
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


def required(container: Container, checkpoint: str | os.PathLike[str] | None = None) -> Weights:
    """What decodes a file: the zoo's record, or the checkpoint.

    Raises:
        BitstreamError: the zoo does not have the weights of the file, or the checkpoint has others.
        SgaError: the checkpoint cannot be read.
    """
    record = record_of(container)
    if checkpoint is not None:
        if record is not None:
            raise BitstreamError(f"made with {record.name} of the zoo, not with {checkpoint}; leave that out")
        own = OwnWeights(
            container.model, os.fspath(checkpoint), hashlib.sha256(_content(checkpoint)).hexdigest()
        )
        if fingerprint(own) != container.weights:
            raise BitstreamError(
                f"made with weights whose sha256 begins with {container.weights.hex()}, that of {checkpoint} "
                f"with {fingerprint(own).hex()}; give the checkpoint that made the file"
            )
        return own
    if record is None:
        raise BitstreamError(_refusal_of(container))
    return record


def _refusal_of(container: Container) -> str:
    """Why a file whose record is None cannot be decoded, with its model and the zoo's."""
    if is_own(container):
        return (
            f"made with a checkpoint of {container.model} whose sha256 begins with "
            f"{container.weights.hex()}, no model of this zoo; name that file (decompress --checkpoint FILE)"
        )
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
    record: Weights, coder: str | None, options: Mapping[str, Any] | None = None, device: str = "cpu"
) -> Iterator[nn.Module]:
    """A model for one file, with its coder and options; no other file uses it inside the block.

    Args:
        record: of the model.
        coder: one of `coding.container.CODERS`; None for a model that has its own coder.
        options: values of the attributes that the model's class lists in `OPTIONS`.
        device: of the model, as PyTorch names it.

    Raises:
        ValueError: the model has no such option, or refuses the value.
    """
    with _loading:
        if isinstance(record, OwnWeights):
            loaded = _load_own(record, device)
        else:
            rate = record.lmbda if record.quality == 0 else None
            loaded = _load(record.name, record.quality, record.metric, fingerprint(record), rate, device)
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
def _load(
    name: str, quality: int, metric: str, weights: bytes, lmbda: float | None = None, device: str = "cpu"
) -> _Loaded:
    """The model that the zoo has under this name, at a quality or at lmbda.

    `weights`, the fingerprint, keeps models apart that had the same name in different manifests.
    """
    if lmbda is None:
        record = choose(name, quality, metric)
    else:
        rates = qualities_of(name, metric)
        record = min(rates, key=lambda rate: abs(math.log(rate.lmbda / lmbda)))
    net = zoo.load_record(record, lmbda)
    portable = zoo.has_published_tables(net, record)
    return _Loaded(_ready(net, device), portable)


@functools.lru_cache(maxsize=2)
def _load_own(weights: OwnWeights, device: str) -> _Loaded:
    """The model of a checkpoint; its coding tables are those that the file has, or made now."""
    content = _content(weights.path)
    if hashlib.sha256(content).hexdigest() != weights.sha256:
        raise SgaError(f"{weights.path} is being changed; try again")
    try:
        if weights.path.endswith(".safetensors"):
            state = load(content)
        else:
            state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        for key in ("network", "state_dict", "model_state_dict"):
            state = state.get(key, state)
        kind = architecture(weights.name)
        try:
            net = kind.from_state_dict(state)
        except (KeyError, RuntimeError):  # an old checkpoint, with names that are no longer in use
            net = kind.from_state_dict(load_pretrained(state))
        net.update()
    except Exception as error:  # a file of any kind, read by code that trusts it
        if is_lack_of_memory(error):
            raise
        raise SgaError(f"{weights.path} is not a checkpoint of {weights.name}: {brief(error)}") from error
    return _Loaded(_ready(net, device), portable=True)


def _ready(net: nn.Module, device: str) -> nn.Module:
    """For files; on its device first, because `make_portable` copies networks."""
    return make_portable(net.to(device).eval()).requires_grad_(False)


def layout_of(net: nn.Module) -> tuple[int, Any]:
    """(number of strings, reduced shape) of the files of a model; computed once and kept on the model."""
    if not hasattr(net, "_csga_layout"):
        side = 1 << STRIDE
        with torch.no_grad():  # in a context of its own: no symbols of the caller's (`coding.checksum`)
            x = torch.zeros(1, 3, side, side, device=next(net.parameters()).device)
            out = contextvars.Context().run(net.compress, x)
        net._csga_layout = len(out["strings"]), reduce_shape(out["shape"], (side, side), STRIDE)
    return net._csga_layout
