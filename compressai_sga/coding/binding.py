# SPDX-License-Identifier: Apache-2.0
"""Which methods of CompressAI use our coders, and how a single model is given one of them.

    set_coder(model, "constriction-exact")      # this model, whatever the process's default is
    set_coder(model, "ans")                     # stock again

Two routes lead to the functions in `METHODS`. `hooks` puts them into CompressAI's classes, so that
`compressai.set_entropy_coder(name)` works for all models built afterwards. `set_coder` changes one model and
nothing in CompressAI: the class of each of its entropy models becomes a subclass made for this purpose, and
so does the class of the model itself where it is autoregressive. On both routes, `by_coder` checks the name
of the coder at each call.

The subclass of a class X has, right before each class of `METHODS` among X's bases, a variant of it:

    EntropyBottleneck -> EntropyModel             X and its base
    (subclass) -> EntropyBottleneck -> (variant of EntropyModel) -> EntropyModel

so that `super().compress` of stock, or of a user's subclass, finds the variant. The subclass has X's name;
isinstance, `state_dict`, `update` and `to` work as before. Copies and pickles keep the coder. To read such
a pickle this package must be installed, but its hooks are not needed.

In:  a model with entropy models of CompressAI. Out: the same model.
Fails with ``ValueError`` on an unknown coder or a model without entropy models.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import compressai
from compressai.entropy_models import EntropyModel, GaussianConditional, GaussianMixtureConditional
from compressai.entropy_models.entropy_models import _EntropyCoder
from compressai.entropy_models.entropy_models_vbr import EntropyModelVbr
from compressai.latent_codecs.rasterscan import RasterScanLatentCodec
from compressai.models.google import JointAutoregressiveHierarchicalPriors
from compressai.models.vbr import JointAutoregressiveHierarchicalPriorsVbr
from torch import nn

from . import autoregressive_models, entropy_models, mixture
from .coders import CODERS
from .entropy_models import coder_of

__all__ = ["METHODS", "CoderProxy", "by_coder", "set_coder", "stock_class"]

Function = Callable[..., Any]

METHODS: dict[type, dict[str, Function]] = {
    EntropyModel: {"compress": entropy_models.compress, "decompress": entropy_models.decompress},
    EntropyModelVbr: {"compress": entropy_models.compress, "decompress": entropy_models.decompress},
    GaussianConditional: {"build_indexes": entropy_models.build_indexes},
    GaussianMixtureConditional: {"compress": mixture.compress, "decompress": mixture.decompress},
    JointAutoregressiveHierarchicalPriors: {
        "_compress_ar": autoregressive_models.compress_ar,
        "_decompress_ar": autoregressive_models.decompress_ar,
    },
    JointAutoregressiveHierarchicalPriorsVbr: {
        "_compress_ar": autoregressive_models.compress_ar,
        "_decompress_ar": autoregressive_models.decompress_ar,
    },
    RasterScanLatentCodec: {
        "compress": autoregressive_models.compress_raster_scan,
        "decompress": autoregressive_models.decompress_raster_scan,
    },
}
"""Class of CompressAI, name of its method, and what codes instead where the coder is ours."""

_ENTROPY_MODELS = (EntropyModel, EntropyModelVbr)


def by_coder(stock: Function, ours: Function, check: Function | None = None) -> Function:
    """A method that calls `ours` where the object's coder is one of ours, and else `check`, then `stock`."""

    @functools.wraps(stock)
    def method(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if coder_of(self) is not None:
            return ours(self, *args, **kwargs)
        if check is not None:
            check(self, *args, **kwargs)
        return stock(self, *args, **kwargs)

    return method


class CoderProxy(_EntropyCoder):
    """CompressAI's proxy of a coder, around one of ours; the stock proxy knows only the stock coders."""

    def __init__(self, method: str) -> None:
        self.name = method
        self._encoder = self._decoder = CODERS[method]


def set_coder(model: nn.Module, name: str | None) -> nn.Module:
    """Gives one model a coder: its entropy models code with it, and other models keep theirs.

    Args:
        model: any module of CompressAI, or one with its entropy models inside. Pass an autoregressive model
            as a whole, since it codes its latents itself.
        name: constriction-ans, -range or -exact; or one of `compressai.available_entropy_coders()`, which
            restores all the stock classes. None is the stock coder "ans".

    Returns:
        The model.

    Raises:
        ValueError: no coder has that name, or there is no entropy model.
    """
    name = "ans" if name is None else name
    known = dict.fromkeys((*compressai.available_entropy_coders(), *CODERS))
    if name not in known:
        raise ValueError(f"no entropy coder is called {name!r}; choose from {', '.join(known)}")
    modules = list(model.modules())
    if not any(isinstance(module, _ENTROPY_MODELS) for module in modules):
        raise ValueError(
            f"{type(model).__name__} has no entropy model whose coder could be set; give a model of "
            "CompressAI, or a module with an EntropyModel inside"
        )
    _proxy_of(name)  # where stock cannot make it, nothing has changed yet
    for module in modules:
        if isinstance(module, tuple(METHODS)):
            stock = stock_class(type(module))
            module.__class__ = _bound_class(stock) if name in CODERS else stock
        if isinstance(module, _ENTROPY_MODELS):
            module.entropy_coder = _proxy_of(name)
    return model


def stock_class(kind: type) -> type:
    """The class that a module had before `set_coder`; `kind` itself where it was not bound."""
    return vars(kind).get("_class_before", kind)


def _proxy_of(name: str) -> _EntropyCoder:
    return CoderProxy(name) if name in CODERS else _EntropyCoder(name)


# --- Classes -------------------------------------------------------------------------------------


def _variant_of(stock: type, methods: dict[str, Function]) -> type:
    """A subclass of a class of `METHODS` whose methods code by the coder's name."""

    def inherited(name: str) -> Function:
        def method(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
            return getattr(super(variant, self), name)(*args, **kwargs)

        return functools.wraps(getattr(stock, name))(method)

    def set_state(self: nn.Module, state: dict[str, Any]) -> None:
        # Stock's makes the coder by its name, of which it does not know ours without hooks.
        super(variant, self).__setstate__({**state, "entropy_coder": "ans"})
        self.entropy_coder = _proxy_of(state["entropy_coder"])

    body: dict[str, Any] = {name: by_coder(inherited(name), ours) for name, ours in methods.items()}
    if stock in _ENTROPY_MODELS:
        body["__setstate__"] = set_state
    variant = type(stock.__name__, (stock,), body)
    return variant


_VARIANTS = {stock: _variant_of(stock, methods) for stock, methods in METHODS.items()}
_bound: dict[type, type] = {}


def _bound_class(stock: type) -> type:
    """The class of modules of class `stock` to which a coder is bound, always the same one."""
    if stock not in _bound:

        def reduce(self: nn.Module, protocol: int) -> tuple[Any, ...]:
            # Copies and pickles name the class before, which alone can be imported.
            _, _, *state = super(made, self).__reduce_ex__(max(2, int(protocol)))
            return _new, (stock,), *state

        own = () if stock in _VARIANTS else (stock,)
        variants = (_VARIANTS[kind] for kind in stock.__mro__ if kind in _VARIANTS)
        body = {
            "__module__": stock.__module__,
            "__qualname__": stock.__qualname__,
            "__doc__": stock.__doc__,
            "__reduce_ex__": reduce,
            "_class_before": stock,
        }
        made = type(stock.__name__, (*own, *variants), body)
        _bound.setdefault(stock, made)  # another thread may have been faster
    return _bound[stock]


def _new(stock: type) -> nn.Module:
    kind = _bound_class(stock)
    return kind.__new__(kind)
