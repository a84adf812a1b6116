# SPDX-License-Identifier: Apache-2.0
"""The networks that predict the coder's tables, computed identically on every machine.

Encoder and decoder must pick the same coding table for every symbol. The tables follow from scales that
networks compute: h_s, and in models of latent codecs also the channel context, the checkerboard context and
the network that joins them. In float32 the two sides can disagree, because another instruction set sums in
another order: on most Kodak images one to three of 150,000 table indexes differ (mbt2018-mean-small, AVX-512
against AVX2 or SSE), and everything that is decoded after such an index is lost.

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

import copy
import functools
import math
from collections.abc import Callable, Iterator
from types import MethodType

import torch
from compressai.latent_codecs import (
    ChannelGroupsLatentCodec,
    CheckerboardLatentCodec,
    GaussianConditionalLatentCodec,
)
from torch import Tensor, nn

__all__ = ["make_portable"]

BLOCK = 12  # columns and rows of z
BLOCK_OF_Y = 4 * BLOCK


def make_portable(model: nn.Module) -> nn.Module:
    """Run the networks that predict tables in float64 where no gradient is wanted; returns the same model."""
    for network, block in list(_predictors(model)):
        network.forward = MethodType(_in_double(copy.deepcopy(network).double(), block), network)
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


def _in_double(network: nn.Module, block: int) -> Callable[[nn.Module, Tensor], Tensor]:
    """The method `forward` of a network of which `network` is the copy in float64.

    It keeps a copy for each device. As a method it goes along where its owner is copied.
    """
    reach = _reach(network)

    @functools.cache
    def on(device: torch.device) -> nn.Module:
        return copy.deepcopy(network).to(device)

    def forward(self: nn.Module, v: Tensor) -> Tensor:
        if v.requires_grad:
            return type(self).forward(self, v)
        module = on(v.device)
        if reach is None or max(v.shape[-2:]) <= block + 2 * reach:
            return module(v.to(torch.float64)).to(v.dtype)
        return _by_blocks(module, v, reach, block)

    return forward


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
