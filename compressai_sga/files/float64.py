# SPDX-License-Identifier: Apache-2.0
"""The networks that predict the coder's tables, computed identically on every machine.

Encoder and decoder must pick the same coding table for every symbol. The tables follow from scales that
networks compute: h_s, and in models of latent codecs also the channel context, the checkerboard context, the
network that joins them, and what predicts residuals of the symbols that they see. In float32 both sides can
disagree, because another instruction set sums in another order: on most Kodak images one to three of 150,000
table indexes differ (mbt2018-mean-small, AVX-512 against AVX2 or SSE), and everything that is decoded after
such an index is lost.

Here these networks run in float64 and their results are rounded to float32. The bits are then equal, with
the exception of about one value in 10^8 that lies next to a rounding boundary. Such a value matters only if
it is a scale at the border of two tables, or a mean that moves such a scale through a context; the checksum
of the symbols detects this. (The context of raster scans: `coding.autoregressive`.)

float64 convolutions unfold their input, which takes 40 bytes or more for each pixel of the image. So a large
input is computed in blocks, each with as much margin as the layers see.

In:  a model of CompressAI's classes. Out: the same model with these networks in float64; it may be moved to
another device. Its parameters stay float32; the float64 copies are of the weights that it has now. A pass for
gradients (refinement) stays float32 too, because it selects no table.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from types import MethodType
from typing import Any

import torch
from compressai.latent_codecs import (
    ChannelGroupsLatentCodec,
    CheckerboardLatentCodec,
    GaussianConditionalLatentCodec,
    LatentCodec,
)
from torch import Tensor, nn

from ..copies import copied, modules_of_closures
from ..refine.codecs import is_multi_context, is_residual

__all__ = ["make_portable"]

BLOCK = 12  # columns and rows of z
BLOCK_OF_Y = 4 * BLOCK


def make_portable(model: nn.Module) -> nn.Module:
    """Run the networks that predict tables in float64 where no gradient is wanted; returns the same model."""
    for network, block in list(_predictors(model)):
        network.forward = MethodType(_in_double(_converted(network, torch.float64), block), network)
    for codec in model.modules():
        if is_residual(type(codec)):
            codec._apply_lrp = MethodType(_residual_in_double(_converted(codec, torch.float64)), codec)
    return model


def _predictors(model: nn.Module) -> Iterator[tuple[nn.Module, int]]:
    """The networks whose results decide tables, and the side of the blocks of their input."""
    for name, module in model.named_modules():
        if name.split(".")[-1] == "h_s":
            yield module, BLOCK
        elif isinstance(module, ChannelGroupsLatentCodec):
            yield from ((context, BLOCK_OF_Y) for context in module.channel_context.values())
        elif isinstance(module, CheckerboardLatentCodec):
            yield module.context_prediction, BLOCK_OF_Y
            yield module.entropy_parameters, BLOCK_OF_Y
        elif isinstance(module, GaussianConditionalLatentCodec):
            if not isinstance(module.entropy_parameters, nn.Identity):
                yield module.entropy_parameters, BLOCK_OF_Y
        elif is_multi_context(type(module)):
            yield from ((part, BLOCK_OF_Y) for part in module.children() if not isinstance(part, LatentCodec))


def _converted(network: nn.Module, to: torch.dtype | torch.device) -> nn.Module:
    """A copy, with the modules to which its functions refer."""
    twin = copied(network).to(to)
    for module in modules_of_closures(twin):
        module.to(to)
    return twin


def _in_double(network: nn.Module, block: int) -> Callable[..., Any]:
    """The method `forward` of a network of which `network` is the copy in float64.

    It keeps a copy for each device. As a method it goes along where its owner is copied.
    """
    reach = _reach(network)

    @functools.cache
    def on(device: torch.device) -> nn.Module:
        return _converted(network, device)

    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        tensors = [v for v in (*args, *kwargs.values()) if isinstance(v, Tensor)]
        if any(v.requires_grad for v in tensors):
            return type(self).forward(self, *args, **kwargs)
        module, v = on(tensors[0].device), tensors[0]
        if len(tensors) == 1 and reach is not None and max(v.shape[-2:]) > block + 2 * reach:
            return _by_blocks(module, v, reach, block)
        kwargs = {name: _cast(value, torch.float64) for name, value in kwargs.items()}
        return _cast(module(*(_cast(value, torch.float64) for value in args), **kwargs), v.dtype)

    return forward


def _cast(value: Any, dtype: torch.dtype) -> Any:
    """A tensor of floats, or a dict with such, in another type; anything else as it is."""
    if isinstance(value, dict):
        return {name: _cast(part, dtype) for name, part in value.items()}
    return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value


def _residual_in_double(twin: nn.Module) -> Callable[..., Tensor]:
    """The method `_apply_lrp` of a codec of which `twin` is the copy in float64; its tanh decides tables."""

    @functools.cache
    def on(device: torch.device) -> nn.Module:
        return _converted(twin, device)

    def apply_lrp(self: nn.Module, support: Tensor, y_hat: Tensor) -> Tensor:
        if support.requires_grad or y_hat.requires_grad:
            return type(self)._apply_lrp(self, support, y_hat)
        codec = on(y_hat.device)
        return type(codec)._apply_lrp(codec, support.double(), y_hat.double()).to(y_hat.dtype)

    return apply_lrp


def _by_blocks(module: nn.Module, v: Tensor, reach: int, block: int) -> Tensor:
    rows, columns = v.shape[-2:]
    out = None
    for i in range(0, rows, block):
        for j in range(0, columns, block):
            top, left = max(0, i - reach), max(0, j - reach)
            end, right = min(rows, i + block), min(columns, j + block)
            seen = v[..., top : end + reach, left : right + reach]
            part = module(seen.to(torch.float64))
            k = part.shape[-1] // seen.shape[-1]
            if out is None:
                out = v.new_empty(*part.shape[:-2], k * rows, k * columns)
            inner = part[..., k * (i - top) : k * (end - top), k * (j - left) : k * (right - left)]
            out[..., k * i : k * end, k * j : k * right] = inner
    return out


def _reach(module: nn.Module) -> int | None:
    """How far around itself an element of v is seen; None for layers that are not known to be local."""
    reach, scale = 0.0, 1
    for layer in module.modules():
        if isinstance(layer, nn.ConvTranspose2d):
            reach += (max(layer.kernel_size) // 2) / (layer.stride[0] * scale)
            scale *= layer.stride[0]
        elif isinstance(layer, nn.Conv2d) and layer.stride == (1, 1) == layer.dilation:
            reach += (max(layer.kernel_size) // 2) / scale
        elif isinstance(layer, nn.PixelShuffle):
            scale *= layer.upscale_factor
        elif not isinstance(layer, (nn.Sequential, nn.ReLU, nn.LeakyReLU)):
            return None
    return math.ceil(reach)
