# SPDX-License-Identifier: Apache-2.0
"""One training for all rates: a gain on the latent that folds exactly into the stock model of any rate.

Quantising y with step 1 after multiplying it by a gain g is quantising it with step 1/g, and high-rate theory
wants a step in proportion to 1/sqrt(lmbda). So one set of weights serves every trade-off

    g = sqrt(lmbda / lmbda_0),     code round(g y) given g means, g scales;     x_hat = g_s(y_hat / g)

(one scalar of Cui et al. 2021, "Asymmetric gained deep image compression with continuous rate adaptation", known
in advance instead of learned). All that meets y is linear where it does so: g is a factor of the layers that
give y, means and scales, and a divisor of those that take y_hat or y. `PLACES` lists these layers once;
`Gained` multiplies their activations, a gain an image, to train; `fold` multiplies their weights, to use.

In:  models of CompressAI whose latent structure is in `PLACES`, or of this package.
Out: the same class with other numbers: stock compresses and decompresses with it.
Fails with ``UnsupportedModelError`` on another structure, ``ValueError`` on a gain that is not positive.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from compressai.entropy_models import EntropyBottleneck
from compressai.latent_codecs import ChannelGroupsLatentCodec, CheckerboardLatentCodec, HyperLatentCodec
from torch import Tensor, nn
from torch.nn.functional import softplus

from ..errors import UnsupportedModelError

__all__ = ["LMBDA_0", "Gained", "fold", "gain_of", "places"]

LMBDA_0 = 0.018
"""Where the gain is 1: the geometric mean of CompressAI's lmbda of qualities 1 to 8."""


def gain_of(lmbda: float) -> float:
    """g = sqrt(lmbda / LMBDA_0).

    Args:
        lmbda: of bpp + lmbda * 255^2 * MSE.

    Raises:
        ValueError: it is not positive, or not finite.
    """
    if not (lmbda > 0 and math.isfinite(lmbda)):
        raise ValueError(f"lmbda is {lmbda}; it must be positive and finite")
    return math.sqrt(lmbda / LMBDA_0)


@dataclass(frozen=True)
class Places:
    """Where y meets a model.

    Args:
        outputs: layers that give y, its means and scales.
        inputs: layers that take y or y_hat.
        prior: the factorised prior of y itself, if that is what codes it.
    """

    outputs: tuple[nn.Module, ...]
    inputs: tuple[nn.Module, ...]
    prior: EntropyBottleneck | None = None


_CONVOLUTIONS = (nn.Conv2d, nn.ConvTranspose2d)


def _first(module: nn.Module) -> nn.Module:
    return next(m for m in module.modules() if isinstance(m, _CONVOLUTIONS))


def _last(module: nn.Module) -> nn.Module:
    """The last convolution; after it only what commutes with a positive factor, ReLU, may stand."""
    layers = [m for m in module.modules() if not list(m.children()) and not isinstance(m, nn.ReLU)]
    if not isinstance(layers[-1], _CONVOLUTIONS):
        raise UnsupportedModelError(
            f"the last layer of {type(module).__name__} is {type(layers[-1]).__name__}; a gain needs a convolution "
            "there"
        )
    return layers[-1]


def places(model: nn.Module) -> Places:
    """The layers of a model at which y is scaled.

    Raises:
        UnsupportedModelError: what codes its y is not known here.
    """
    ends = _last(model.g_a), _first(model.g_s)
    if hasattr(model, "entropy_parameters"):  # autoregressive (Minnen et al. 2018)
        inputs = (ends[1], _first(model.h_a), model.context_prediction)
        return Places((ends[0], _last(model.entropy_parameters)), inputs)
    if hasattr(model, "h_a"):  # scale and mean-scale hyperprior
        return Places((ends[0], _last(model.h_s)), (ends[1], _first(model.h_a)))
    if hasattr(model, "latent_codec"):
        return _places_of_codecs(model, ends)
    if hasattr(model, "entropy_bottleneck"):
        return Places((ends[0],), (ends[1],), model.entropy_bottleneck)
    raise UnsupportedModelError(
        f"{type(model).__name__} has neither a hyperprior nor a bottleneck over y; a gain on y is known for "
        "CompressAI's factorised, hyperprior, mean-scale, autoregressive and space-channel models"
    )


def _places_of_codecs(model: nn.Module, ends: tuple[nn.Module, nn.Module]) -> Places:
    outputs, inputs = [ends[0]], [ends[1]]
    for module in model.latent_codec.modules():
        if isinstance(module, HyperLatentCodec):
            inputs.append(_first(module.h_a))
        elif isinstance(module, ChannelGroupsLatentCodec):
            inputs += [_first(context) for context in module.channel_context.values()]
        elif isinstance(module, CheckerboardLatentCodec):
            inputs.append(_first(module.context_prediction))
            outputs.append(_last(module.entropy_parameters))
    if len(outputs) == 1:
        raise UnsupportedModelError(
            f"{type(model).__name__} codes y by {type(model.latent_codec).__name__} without a checkerboard; a gain "
            "is known for CheckerboardLatentCodec, alone or in channel groups"
        )
    return Places(tuple(outputs), tuple(inputs))


class Gained:
    """A model whose every image has a gain of its own, for training; the model itself stays what it is.

    with Gained(model).at(gains):
        out = model(x)

    Args:
        model: see `places`; hooks are registered on its layers.
    """

    def __init__(self, model: nn.Module) -> None:
        self._gains: Tensor | None = None
        found = places(model)
        for layer in found.outputs:
            layer.register_forward_hook(self._multiply)
        for layer in found.inputs:
            layer.register_forward_pre_hook(self._divide)
        self.prior = found.prior
        if found.prior is not None:
            self._cumulative = found.prior._logits_cumulative
            found.prior._logits_cumulative = self._logits_cumulative

    @contextmanager
    def at(self, gains: Tensor) -> Iterator[None]:
        """Within, image b of every batch has the gain `gains[b]`; outside, all have 1.

        Args:
            gains: shape (B,), positive.
        """
        self._gains = gains.reshape(-1, 1, 1, 1)
        try:
            yield
        finally:
            self._gains = None

    def medians(self) -> Tensor | float:
        """Medians of the prior of y under the present gains, (B, M, 1, 1), or (1, M, 1, 1) where all are 1."""
        medians = self.prior.quantiles[:, 0, 1].reshape(1, -1, 1, 1)
        return medians if self._gains is None else medians * self._gains

    def _multiply(self, layer: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        return output if self._gains is None else output * self._gains.to(output.dtype)

    def _divide(self, layer: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor] | None:
        return None if self._gains is None else (inputs[0] / self._gains.to(inputs[0].dtype),)

    def _logits_cumulative(self, inputs: Tensor, stop_gradient: bool) -> Tensor:
        """Of g y under the density of y; EntropyBottleneck's layout is (C, 1, B * h * w)."""
        if self._gains is not None:
            inputs = inputs / self._gains.flatten().repeat_interleave(inputs.shape[2] // len(self._gains))
        return self._cumulative(inputs, stop_gradient)


@torch.no_grad()
def fold(model: nn.Module, gain: float) -> nn.Module:
    """Put a gain into the weights, in place; coding tables that depend on it are cleared: `update` the model.

    Args:
        model: jointly trained; see `places`.
        gain: see `gain_of`; folding 1 / gain takes it back, up to rounding.

    Returns:
        `model`.

    Raises:
        ValueError: the gain is not positive, or not finite.
    """
    if not (gain > 0 and math.isfinite(gain)):
        raise ValueError(f"the gain is {gain}; it must be positive and finite")
    found = places(model)
    for layer in found.outputs:
        layer.weight.mul_(gain)
        if layer.bias is not None:
            layer.bias.mul_(gain)
    for layer in found.inputs:
        layer.weight.div_(gain)
    if found.prior is not None:
        matrix = found.prior.matrices[0]  # acts by its softplus on y
        scaled = softplus(matrix.double()) / gain
        matrix.copy_(scaled + torch.log(-torch.expm1(-scaled)))
        found.prior.quantiles.mul_(gain)
        for name in ("_quantized_cdf", "_offset", "_cdf_length"):
            setattr(found.prior, name, getattr(found.prior, name).new_empty(0))
    return model
