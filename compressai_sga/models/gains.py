# SPDX-License-Identifier: Apache-2.0
"""One training for all rates: a gain on the latent that folds exactly into the stock model of any rate.

Multiplying y by a gain g and quantising with step 1 is the same as quantising y with step 1/g. In high-rate
theory the best step is proportional to 1/sqrt(lmbda). So one set of weights serves every trade-off:

    g = sqrt(lmbda / lmbda_0),     code round(g y) given g means, g scales;     x_hat = g_s(y_hat / g)

(one scalar of Cui et al. 2021, "Asymmetric gained deep image compression with continuous rate adaptation",
known in advance instead of learned). All layers next to y are linear there: g is a factor in the layers that
give y, means and scales, and a divisor in those that take y_hat or y. `places` finds these layers. For
training, `Gained` multiplies their activations, with one gain an image; for use, `fold` multiplies their
weights. A residual block that takes y_hat passes it on: its branch is multiplied too, and the layers after it
divide.

One difference from models of a single rate remains: low rates need other filters than high ones. So each
convolution, except the first and the last of the codec, can have `rates` (`condition`): a scale and an offset
of each channel c that depend on t = 2 log10 g, which goes from -1 to 1 over CompressAI's qualities:

    convolution(x)_c * (1 + a_c t + b_c t^2) + c_c t + d_c t^2                    (a, b, c, d: its `rates`)

They fold into weight and bias just as exactly, and at gain 1 they do nothing.

In:  models of CompressAI whose latent structure `places` knows, or of this package.
Out: the same class with other weights; the stock code compresses and decompresses with it.
Fails with ``UnsupportedModelError`` on another structure, ``ValueError`` on a gain that is not positive.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from compressai.entropy_models import EntropyBottleneck
from compressai.latent_codecs import (
    ChannelGroupsLatentCodec,
    CheckerboardLatentCodec,
    HyperpriorLatentCodec,
    LatentCodec,
)
from compressai.layers import ResidualBlock, ResidualBlockUpsample
from torch import Tensor, nn
from torch.nn.functional import softplus

from ..errors import UnsupportedModelError
from ..refine.codecs import hyper_parts
from .universal import UniversalBottleneck

__all__ = [
    "LMBDA_0",
    "RATES",
    "Gained",
    "condition",
    "fold",
    "gain_of",
    "load_joint",
    "places",
    "scale_latent",
]

LMBDA_0 = 0.018
"""Where the gain is 1: the geometric mean of CompressAI's lmbda of qualities 1 to 8."""


RATES = "rates"
"""Of a convolution: what its channels make of the rate, shape (4, channels)."""
T_STEP = 2.0**-20
"""Of t in `fold`: machines may differ in the last bit of a logarithm, and must not in folded weights."""


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
    """The layers of a model that give or take y.

    Args:
        outputs: layers that give y, its means and scales.
        inputs: layers that take y or y_hat.
        prior: the factorised prior of y itself, if y is coded with one.
    """

    outputs: tuple[nn.Module, ...]
    inputs: tuple[nn.Module, ...]
    prior: EntropyBottleneck | None = None


_CONVOLUTIONS = (nn.Conv2d, nn.ConvTranspose2d)
_HOMOGENEOUS = (nn.ReLU, nn.LeakyReLU, nn.PixelShuffle, nn.Identity)
"""Layers that commute with a positive factor."""


def places(model: nn.Module) -> Places:
    """The layers of a model at which y is scaled.

    Raises:
        UnsupportedModelError: its latent structure is not known here, or a layer next to y is not linear.
    """
    name = type(model).__name__
    for part in ("g_a", "g_s"):
        if not hasattr(model, part):
            raise UnsupportedModelError(f"{name} has no {part}; a gain is for the latent between g_a and g_s")
    if hasattr(model, "Gain"):
        raise UnsupportedModelError(
            f"{name} has gains of its own, and offsets that depend on them; train it as CompressAI does"
        )
    found = _Places(name)
    found.end("g_a", model.g_a)
    found.start("g_s", model.g_s)
    prior = None
    if hasattr(model, "latent_codec"):
        found.codecs(model.latent_codec)
    elif hasattr(model, "h_a"):  # hyperprior, with an autoregressive context or without
        found.start("h_a", model.h_a)
        if hasattr(model, "entropy_parameters"):
            found.start("context_prediction", model.context_prediction)
            found.end("entropy_parameters", model.entropy_parameters)
        else:
            found.end("h_s", model.h_s)
    elif hasattr(model, "entropy_bottleneck"):
        prior = model.entropy_bottleneck
    else:
        raise UnsupportedModelError(
            f"{name} has neither a hyperprior nor a bottleneck over y; a gain on y is known for CompressAI's "
            "factorised, hyperprior, mean-scale, autoregressive and space-channel models"
        )
    return Places(tuple(found.outputs), tuple(found.inputs), prior)


class _Places:
    """Collects the layers of a model at which y is scaled, and raises where there is none."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.outputs: list[nn.Module] = []
        self.inputs: list[nn.Module] = []

    def end(self, part: str, module: nn.Module) -> None:
        """Makes the module give g times its result, by its last convolution; later layers commute with g."""
        while isinstance(module, nn.Sequential):
            module = next((layer for layer in reversed(module) if not isinstance(layer, _HOMOGENEOUS)), None)
        if not isinstance(module, _CONVOLUTIONS):
            self.refuse(part, "ends", module)
        self.outputs.append(module)

    def start(self, part: str, module: nn.Module) -> None:
        """Makes the module take g times its input: by the convolutions that it begins with."""
        layers = list(module) if isinstance(module, nn.Sequential) else [module]
        for layer in layers:
            if isinstance(layer, _CONVOLUTIONS):
                self.inputs.append(layer)
                return
            if isinstance(layer, ResidualBlockUpsample):
                self.inputs += [layer.subpel_conv[0], layer.upsample[0]]
                return
            if not isinstance(layer, ResidualBlock):
                self.refuse(part, "begins", layer)
            self.inputs.append(layer.conv1)
            if layer.skip is not None:
                self.inputs.append(layer.skip)
                return
            self.outputs.append(layer.conv2)  # the other way through the block is the identity
        self.refuse(part, "begins", None)

    def codecs(self, root: nn.Module) -> None:
        """A tree of `compressai.latent_codecs` whose leaves are checkerboards."""
        known = {id(m.latent_codec["y"]) for m in root.modules() if isinstance(m, CheckerboardLatentCodec)}
        for module in root.modules():
            if isinstance(module, HyperpriorLatentCodec) and (parts := hyper_parts(module)) is not None:
                self.start("h_a", parts[0])
                known |= {id(part) for part in module.latent_codec.values() if parts[2] in part.modules()}
            elif isinstance(module, ChannelGroupsLatentCodec):
                for context in module.channel_context.values():
                    self.start("channel_context", context)
            elif isinstance(module, CheckerboardLatentCodec):
                self.start("context_prediction", module.context_prediction)
                self.end("entropy_parameters", module.entropy_parameters)
            elif isinstance(module, LatentCodec) and id(module) not in known:
                if not isinstance(module, HyperpriorLatentCodec):
                    raise UnsupportedModelError(
                        f"{self.name} codes y by {type(module).__name__} without a checkerboard; a gain is "
                        "known for CheckerboardLatentCodec, alone or in channel groups"
                    )

    def refuse(self, part: str, how: str, layer: nn.Module | None) -> None:
        what = "no layer" if layer is None else type(layer).__name__
        raise UnsupportedModelError(
            f"{part} of {self.name} {how} with {what}; a gain needs a convolution there, which is linear, or "
            "to begin with residual blocks of CompressAI before one"
        )


def condition(model: nn.Module) -> nn.Module:
    """Adds `rates`, zeros, to the convolutions: a parameter that stock classes do not load.

    The first convolution of g_a and the last of g_s get none: their channels are largest, and a rate would
    only change the next layer's input, or the image's colours.

    Args:
        model: see `places`.

    Returns:
        `model`.

    Raises:
        UnsupportedModelError: `places` knows no gain for it, or a transposed convolution is in groups, whose
            channels are not along one axis.
    """
    places(model)  # what it refuses cannot be folded
    (first, *_), (*_, last) = _convolutions(model.g_a), _convolutions(model.g_s)
    for name, layer in _convolutions(model):
        if layer in (first[1], last[1]):
            continue
        if isinstance(layer, nn.ConvTranspose2d) and layer.groups > 1:
            raise UnsupportedModelError(
                f"{name} of {type(model).__name__} is a transposed convolution of {layer.groups} groups; "
                "rates are known for one"
            )
        if layer.bias is not None and not hasattr(layer, RATES):
            setattr(layer, RATES, nn.Parameter(layer.weight.new_zeros(4, layer.out_channels)))
    return model


def load_joint(architecture: type[nn.Module], state: Mapping[str, Tensor]) -> nn.Module:
    """A jointly trained model from its state dict, as `from_state_dict` gives models of one rate.

    Args:
        architecture: the class.
        state: with `rates`, or without: then it is `from_state_dict`.

    Raises:
        KeyError, RuntimeError: as `from_state_dict` of the class; or the rates are of other layers.
    """
    rates = {name: tensor for name, tensor in state.items() if name.endswith(f".{RATES}")}
    model = architecture.from_state_dict({name: t for name, t in state.items() if name not in rates})
    if rates:
        missing, unexpected = condition(model).load_state_dict(rates, strict=False)
        if unexpected or any(name.endswith(f".{RATES}") for name in missing):
            raise RuntimeError(
                f"the rates in the state dict do not match the layers of {architecture.__name__}; load it "
                "into the class that it was trained with"
            )
    return model


def _convolutions(model: nn.Module) -> list[tuple[str, nn.Module]]:
    return [(name, m) for name, m in model.named_modules() if isinstance(m, _CONVOLUTIONS)]


def _scale_and_offset(rates: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """Scale and offset of every channel at every t, two of (B, C), from `rates` (4, C) and t (B, 1)."""
    a, b, c, d = rates
    return 1 + t * (a + t * b), t * (c + t * d)


class Gained:
    """Gives every image of a batch its own gain, for training; the model itself is not changed.

    with Gained(model).at(gains):
        out = model(x)

    Args:
        model: see `places`; hooks are registered on its layers. Where it has `rates`, they follow the gain.
    """

    def __init__(self, model: nn.Module) -> None:
        self._gains: Tensor | None = None
        self._affine: dict[nn.Module, tuple[Tensor, Tensor]] = {}
        found = places(model)
        self._conditioned = [layer for _, layer in _convolutions(model) if hasattr(layer, RATES)]
        for layer in self._conditioned:
            layer.register_forward_hook(self._condition)
        for layer in found.outputs:
            layer.register_forward_hook(self._multiply)
        for layer in found.inputs:
            layer.register_forward_pre_hook(self._divide)
        self.prior = found.prior
        if found.prior is not None:
            self._cumulative, self._rounded = found.prior._logits_cumulative, found.prior.quantize
            found.prior._logits_cumulative, found.prior.quantize = self._logits_cumulative, self._quantize
            if isinstance(found.prior, UniversalBottleneck):
                found.prior._medians = lambda dimensions: self.medians()

    @contextmanager
    def at(self, gains: Tensor) -> Iterator[None]:
        """Within, image b of every batch has the gain `gains[b]`; outside, all have 1.

        It is for `forward`: coding tables are those of the gain 1, and `fold` is for coding.

        Args:
            gains: shape (B,), positive and finite.

        Raises:
            ValueError: they are not.
        """
        if gains.ndim != 1 or not bool(((gains > 0) & gains.isfinite()).all()):
            raise ValueError(
                f"gains of shape {tuple(gains.shape)}, {gains.flatten().tolist()[:8]}; they must be one "
                "positive and finite number an image"
            )
        self._gains = gains.reshape(-1, 1, 1, 1)
        if self._conditioned:
            rates = torch.cat([layer.rates for layer in self._conditioned], 1)
            both = torch.stack(_scale_and_offset(rates, 2 * gains.log10()[:, None]))[..., None, None]
            parts = both.split([layer.out_channels for layer in self._conditioned], 2)
            self._affine = dict(zip(self._conditioned, parts, strict=True))
        try:
            yield
        finally:
            self._gains, self._affine = None, {}

    def medians(self) -> Tensor:
        """Medians of the prior of y under the current gains, (B, M, 1, 1), or (1, M, 1, 1) where all are 1.

        Only for a model that codes y with a factorised prior: `prior` is not None.
        """
        medians = self.prior.quantiles[:, 0, 1].reshape(1, -1, 1, 1)
        return medians if self._gains is None else medians * self._gains

    def _condition(self, layer: nn.Module, inputs: Any, output: Tensor) -> Tensor | None:
        if self._gains is None:
            return None
        scale, offset = self._affine[layer].to(output.dtype)
        return torch.addcmul(offset, output, scale)

    def _multiply(self, layer: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        # The gain itself is not rounded to bfloat16, which would be another rate.
        return output if self._gains is None else (output * self._gains).to(output.dtype)

    def _divide(self, layer: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor] | None:
        return None if self._gains is None else ((inputs[0] / self._gains).to(inputs[0].dtype),)

    def _logits_cumulative(self, inputs: Tensor, stop_gradient: bool) -> Tensor:
        """Of g y under the density of y."""
        return self._cumulative(inputs if self._gains is None else inputs / self._of(inputs), stop_gradient)

    def _quantize(self, inputs: Tensor, mode: str, means: Tensor | None = None) -> Tensor:
        """Around the medians of g y."""
        scaled = self._gains is not None and means is not None and mode != "symbols"
        return self._rounded(inputs, mode, means * self._of(inputs) if scaled else means)

    def _of(self, values: Tensor) -> Tensor:
        """The gain of every column in EntropyBottleneck's layout, (C, 1, B h w)."""
        return self._gains.flatten().repeat_interleave(values.shape[2] // len(self._gains))


@torch.no_grad()
def fold(model: nn.Module, gain: float) -> nn.Module:
    """The model of one rate: folds rates and gain into the weights, in place; the result has the stock class.

    Args:
        model: jointly trained; see `places`. Coding tables that depend on the gain are cleared: `update` it.
        gain: see `gain_of`.

    Returns:
        `model`, without `rates`.

    Raises:
        ValueError: the gain is not positive, or not finite.
    """
    _check_gain(gain)
    places(model)  # what it refuses is to stay as it is
    t = torch.tensor([[round(2 * math.log10(gain) / T_STEP) * T_STEP]], dtype=torch.float64)
    for _, layer in _convolutions(model):
        if not hasattr(layer, RATES):
            continue
        scale, offset = _scale_and_offset(layer.rates.double(), t.to(layer.rates.device))
        delattr(layer, RATES)
        shape = (1, -1, 1, 1) if isinstance(layer, nn.ConvTranspose2d) else (-1, 1, 1, 1)
        layer.weight.copy_(layer.weight.double() * scale.reshape(shape))
        layer.bias.copy_(layer.bias.double() * scale[0] + offset[0])
    return scale_latent(model, gain)


@torch.no_grad()
def scale_latent(model: nn.Module, gain: float) -> nn.Module:
    """Multiplies the latent, its means and its scales by a gain: `fold` without the rates.

    Args:
        model: see `places`; coding tables that depend on the gain are cleared: `update` it.
        gain: scaling by 1 / gain takes it back, up to rounding.

    Returns:
        `model`.

    Raises:
        ValueError: the gain is not positive, or not finite.
    """
    _check_gain(gain)
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


def _check_gain(gain: float) -> None:
    if not (gain > 0 and math.isfinite(gain)):
        raise ValueError(f"the gain is {gain}; it must be positive and finite")
