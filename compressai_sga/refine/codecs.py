# SPDX-License-Identifier: Apache-2.0
"""Latents behind a tree of ``compressai.latent_codecs`` (cheng2020-anchor-checkerboard, ELIC).

One function a node type: (codec, y, params, rounding) -> (y_hat, likelihoods, grid), all of y's shape.
A node is coded as its `compress` codes it, not as its `forward` estimates it: the second half of a
checkerboard has the first half's y_hat as context, and channel groups see the y_hat of earlier groups. A
subclass is coded as the class whose `compress` and `decompress` it inherits.

Fails with ``UnsupportedModelError`` on a node type that is not listed in CODERS.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from compressai.latent_codecs import (
    ChannelGroupsLatentCodec,
    CheckerboardLatentCodec,
    EntropyBottleneckLatentCodec,
    GaussianConditionalLatentCodec,
    HyperLatentCodec,
    HyperpriorLatentCodec,
    LatentCodec,
    RasterScanLatentCodec,
)
from torch import Tensor, nn

from ..coding.binding import stock_class
from ..errors import UnsupportedModelError
from .latents import CausalContext, Coded, LatentAdapter, Latents, Rounding, code_bottleneck, code_gaussian

__all__ = ["CodecTreeLatents"]

Triple = tuple[Tensor, Tensor, Tensor]


class CodecTreeLatents(LatentAdapter):
    """A model with g_a, g_s and a `latent_codec`: a hyperprior, or an entropy bottleneck alone."""

    def __init__(self, model: nn.Module, compress_kwargs: Mapping[str, Any]):
        super().__init__(model, compress_kwargs)
        root = model.latent_codec
        for node in root.modules():
            if isinstance(node, LatentCodec) and _known(type(node)) is None:
                raise UnsupportedModelError(
                    f"latent codec {type(node).__name__} is not one of "
                    f"{', '.join(sorted(t.__name__ for t in SUPPORTED))}; add a function for it to "
                    "compressai_sga/refine/codecs.py"
                )
        self.reset()

    @staticmethod
    def matches(model: nn.Module) -> bool:
        root = getattr(model, "latent_codec", None)
        return isinstance(root, EntropyBottleneckLatentCodec) or (
            isinstance(root, HyperpriorLatentCodec)
            and isinstance(root.latent_codec["hyper"], HyperLatentCodec)
        )

    @staticmethod
    def find_sources(model: nn.Module) -> dict[str, nn.Module]:
        root = model.latent_codec
        if isinstance(root, EntropyBottleneckLatentCodec):
            return {"y": model.g_a}
        return {"y": model.g_a, "z": root.latent_codec["hyper"].h_a}

    def reset(self) -> None:
        self.contexts: dict[nn.Module, CausalContext] = {}

    def code(self, latents: Latents, rounding: Rounding) -> Coded:
        root, y = self.model.latent_codec, latents["y"]
        if isinstance(root, EntropyBottleneckLatentCodec):
            y_hat, likelihoods = code_bottleneck(y, root.entropy_bottleneck, rounding, "y")
            return Coded(y_hat, {"y": likelihoods}, {"y": y_hat})
        hyper = root.latent_codec["hyper"]
        z_hat, z_likelihoods = code_bottleneck(latents["z"], hyper.entropy_bottleneck, rounding, "z")
        y_hat, likelihoods, grid = self.code_node(root.latent_codec["y"], y, hyper.h_s(z_hat), rounding)
        return Coded(y_hat, {"y": likelihoods, "z": z_likelihoods}, {"y": grid, "z": z_hat})

    def code_node(self, codec: nn.Module, y: Tensor, params: Tensor, rounding: Rounding) -> Triple:
        """Code y under any supported node."""
        return CODERS[_known(type(codec))](self, codec, y, params, rounding)

    def code_conditional(
        self, codec: GaussianConditionalLatentCodec, y: Tensor, params: Tensor, rounding: Rounding
    ) -> Triple:
        scales, means = codec._chunk(codec.entropy_parameters(params))
        return code_gaussian(y, scales, means, codec.gaussian_conditional, rounding)

    def code_checkerboard(
        self, codec: CheckerboardLatentCodec, y: Tensor, params: Tensor, rounding: Rounding
    ) -> Triple:
        inner = codec.latent_codec["y"]
        anchor = codec._keep_only(torch.ones_like(y), "anchor") > 0
        context = y.new_zeros(y.shape[0], codec.context_prediction.out_channels, *y.shape[2:])
        first = self.code_node(inner, y, codec.entropy_parameters(codec.merge(context, params)), rounding)
        context = codec.context_prediction(torch.where(anchor, first[0], 0.0))
        second = self.code_node(inner, y, codec.entropy_parameters(codec.merge(context, params)), rounding)
        y_hat, likelihoods, grid = (torch.where(anchor, a, b) for a, b in zip(first, second))
        return y_hat, likelihoods, grid

    def code_groups(
        self, codec: ChannelGroupsLatentCodec, y: Tensor, params: Tensor, rounding: Rounding
    ) -> Triple:
        coded: list[Triple] = []
        for k, group in enumerate(torch.split(y, codec.groups, dim=1)):
            context = codec._get_ctx_params(k, params, [done[0] for done in coded])
            coded.append(self.code_node(codec.latent_codec[f"y{k}"], group, context, rounding))
        y_hat, likelihoods, grid = (torch.cat(parts, 1) for parts in zip(*coded))
        return y_hat, likelihoods, grid

    def code_raster_scan(
        self, codec: RasterScanLatentCodec, y: Tensor, params: Tensor, rounding: Rounding
    ) -> Triple:
        def code_in_context(y_hat: Tensor) -> Triple:
            mixed = codec.merge(params, codec.context_prediction(y_hat))
            scales, means = codec.entropy_parameters(mixed).chunk(2, 1)
            return code_gaussian(y, scales, means, codec.gaussian_conditional, rounding)

        context = self.contexts.setdefault(codec, CausalContext())
        return context.code(y, rounding, code_in_context)


CODERS: dict[type, Callable[..., Triple]] = {
    ChannelGroupsLatentCodec: CodecTreeLatents.code_groups,
    CheckerboardLatentCodec: CodecTreeLatents.code_checkerboard,
    GaussianConditionalLatentCodec: CodecTreeLatents.code_conditional,
    RasterScanLatentCodec: CodecTreeLatents.code_raster_scan,
}
SUPPORTED = {*CODERS, EntropyBottleneckLatentCodec, HyperLatentCodec, HyperpriorLatentCodec}


def _known(kind: type) -> type | None:
    """The supported class of a node, or the one whose `compress` and `decompress` it inherits."""
    kind = stock_class(kind)
    for base in kind.__mro__:
        if base in SUPPORTED:
            same = (kind.compress, kind.decompress) == (base.compress, base.decompress)
            return base if same else None
    return None
