# SPDX-License-Identifier: Apache-2.0
"""Latents behind a tree of ``compressai.latent_codecs``: cheng2020-anchor-checkerboard, ELIC, and since
CompressAI 1.2.9.dev0 MLIC, TCM, DCAE, STF, CCA, SAAF.

y enters the tree by the argument of ``latent_codec.compress`` and y_hat leaves it by the result of
``latent_codec.decompress``. So nothing is asked of the transforms: STF has no g_a, and SAAF runs parts of it.

One function a node type: (codec, y, params, rounding) -> `Quantised`, of y's shape.
A node is coded as its `compress` codes it, not as its `forward` estimates it: the second half of a
checkerboard has the first half's y_hat as context, and channel groups see the y_hat of earlier groups. Latent
residual prediction (LRP, Minnen & Singh 2020) adds to y_hat what a network sees in the symbols, so that y_hat
does not lie on the grid.

A node is known by its structure (`Node`): a subclass is coded as the class whose `compress` and `decompress`
it inherits.

Fails with ``UnsupportedModelError`` on a node that is not in NODES.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from compressai.entropy_models import GaussianConditional
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
from .latents import (
    CausalContext,
    Coded,
    LatentAdapter,
    Latents,
    Quantised,
    Rounding,
    code_bottleneck,
    code_gaussian,
    coded_with_hyperprior,
    moved_in_bottleneck,
)

__all__ = ["NODES", "CodecTreeLatents", "Node", "hyper_parts", "is_multi_context", "is_residual"]


def hyper_parts(root: nn.Module) -> tuple[nn.Module, nn.Module, nn.Module] | None:
    """(h_a, h_s, entropy bottleneck) of the root of a tree; None where it has no such parts.

    CompressAI 1.2.8 has all three in a `HyperLatentCodec`; later h_a and h_s are the root's own.
    """
    if not isinstance(root, HyperpriorLatentCodec):
        return None
    hyper = root.latent_codec["hyper"] if "hyper" in root.latent_codec else None
    if isinstance(hyper, HyperLatentCodec):
        return hyper.h_a, hyper.h_s, hyper.entropy_bottleneck
    z = root.latent_codec["z"] if "z" in root.latent_codec else None
    if isinstance(z, EntropyBottleneckLatentCodec) and hasattr(root, "h_a"):
        return root.h_a, root.h_s, z.entropy_bottleneck
    return None


class CodecTreeLatents(LatentAdapter):
    """A model with a `latent_codec`: a hyperprior, or an entropy bottleneck alone."""

    def __init__(self, model: nn.Module, compress_kwargs: Mapping[str, Any]):
        super().__init__(model, compress_kwargs)
        root = model.latent_codec
        for node in root.modules():
            if isinstance(node, LatentCodec) and not _is_known(type(node)):
                known = sorted(kind.__name__ for kind in {*ROOTS, *(row.base for row in NODES)})
                raise UnsupportedModelError(
                    f"latent codec {type(node).__name__} is not one of {', '.join(known)}; add a function "
                    "for it to NODES of compressai_sga/refine/codecs.py"
                )
        self.reset()

    @staticmethod
    def lacks(model: nn.Module) -> list[str]:
        root = getattr(model, "latent_codec", None)
        if isinstance(root, EntropyBottleneckLatentCodec) or hyper_parts(root) is not None:
            return []
        if isinstance(root, HyperpriorLatentCodec):
            return ["h_a, h_s and an entropy bottleneck of z in its latent_codec (HyperpriorLatentCodec)"]
        return ["latent_codec (HyperpriorLatentCodec or EntropyBottleneckLatentCodec)"]

    @staticmethod
    def find_sources(model: nn.Module) -> dict[str, nn.Module]:
        parts = hyper_parts(model.latent_codec)
        return {} if parts is None else {"z": parts[0]}  # y is what the tree is given

    @staticmethod
    def find_synthesis(model: nn.Module) -> nn.Module:
        return _TreeSynthesis(model)

    @torch.no_grad()
    def latents_of(self, x: Tensor) -> tuple[Latents, dict[str, Any]]:
        tree, seen = self.codec.latent_codec, {}
        stock = tree.compress

        def compress(y: Tensor, *args: Any, **kwargs: Any) -> dict[str, Any]:
            seen["y"] = y.clone()
            return stock(y, *args, **kwargs)

        tree.compress = compress
        try:
            hyper, out = super().latents_of(x)
        finally:
            del tree.compress
        if seen["y"].ndim != 4:
            raise UnsupportedModelError(
                f"the latent y of {type(self.model).__name__} has the shape {tuple(seen['y'].shape)}; "
                "refinement is for models of images, whose y is (B, C, h, w)"
            )
        return seen | hyper, out

    @torch.no_grad()
    def compress(self, grid: Latents, x: Tensor) -> dict[str, Any]:
        tree = self.codec.latent_codec
        stock = tree.compress
        tree.compress = lambda _, *args, **kwargs: stock(grid["y"].contiguous().clone(), *args, **kwargs)
        try:
            return super().compress({name: grid[name] for name in self.sources}, x)
        finally:
            del tree.compress

    def reset(self) -> None:
        self.contexts: dict[nn.Module, CausalContext] = {}

    def code(self, latents: Latents, rounding: Rounding) -> Coded:
        root, y = self.model.latent_codec, latents["y"]
        if isinstance(root, EntropyBottleneckLatentCodec):
            y_hat, likelihoods = code_bottleneck(y, root.entropy_bottleneck, rounding, "y")
            moved = moved_in_bottleneck(y_hat, root.entropy_bottleneck)
            return Coded(y_hat, {"y": likelihoods}, {"y": y_hat}, moved)
        _, h_s, bottleneck = hyper_parts(root)
        z_hat, z_likelihoods = code_bottleneck(latents["z"], bottleneck, rounding, "z")
        coded = self.code_node(root.latent_codec["y"], y, h_s(z_hat), rounding)
        conditional = next(m for m in root.modules() if isinstance(m, GaussianConditional))
        return coded_with_hyperprior(coded, conditional, z_hat, z_likelihoods)

    def code_node(self, codec: nn.Module, y: Tensor, params: Tensor, rounding: Rounding) -> Quantised:
        """Code y under any supported node."""
        row = next(row for row in NODES if row.matches(type(codec)))
        return row.code(self, codec, y, params, rounding)

    def code_conditional(
        self, codec: GaussianConditionalLatentCodec, y: Tensor, params: Tensor, rounding: Rounding
    ) -> Quantised:
        scales, means = codec._chunk(codec.entropy_parameters(params))
        return code_gaussian(y, scales, means, codec.gaussian_conditional, rounding)

    def code_conditional_with_residual(
        self, codec: GaussianConditionalLatentCodec, y: Tensor, params: Tensor, rounding: Rounding
    ) -> Quantised:
        """LRP: y_hat gets a residual that a network predicts from the context and y_hat."""
        params, support = codec._split_ctx_params(params)
        coded = self.code_conditional(codec, y, params, rounding)
        return replace(coded, y_hat=codec._apply_lrp(support, coded.y_hat))

    def code_checkerboard(
        self, codec: CheckerboardLatentCodec, y: Tensor, params: Tensor, rounding: Rounding
    ) -> Quantised:
        inner = codec.latent_codec["y"]
        anchor = checkerboard(y, codec.anchor_parity)
        context = y.new_zeros(y.shape[0], codec.context_prediction.out_channels, *y.shape[2:])
        first = self.code_node(inner, y, codec.entropy_parameters(codec.merge(context, params)), rounding)
        context = codec.context_prediction(torch.where(anchor, first.y_hat, 0.0))
        second = self.code_node(inner, y, codec.entropy_parameters(codec.merge(context, params)), rounding)
        return first.where(anchor, second)

    def code_multi_context(
        self, codec: nn.Module, y: Tensor, params: Tensor, rounding: Rounding
    ) -> Quantised:
        """MLIC's checkerboard: a network for each half, several contexts, LRP, in MLICv2 symbols left out.

        A symbol that is left out takes no bits: y_hat is the mean there.
        """
        halves: list[Quantised] = []  # zero in the other half
        for step, parity in (("anchor", codec.anchor_parity), ("non_anchor", codec.non_anchor_parity)):
            here = checkerboard(y, parity)
            context = codec._ctx_params(step, y, params, [done.y_hat for done in halves])
            predicted = torch.where(here, codec._entropy_parameters(step)(context), 0.0)
            scales, means = codec.y._chunk(predicted)
            coded = here & _selected(codec, step, params, scales, means)
            all_of_it = code_gaussian(y, scales, means, codec.y.gaussian_conditional, rounding)
            left = torch.where(here, means, 0.0)
            half = all_of_it.where(coded, Quantised(left, 0.0 * y, 0.0 * y, left))
            so_far = sum(done.y_hat for done in halves) + half.grid
            y_hat = codec._apply_lrp(step, params, predicted, half.grid, so_far)
            halves.append(replace(half, y_hat=torch.where(coded, y_hat, half.grid)))
        anchors, others = halves
        return anchors.where(checkerboard(y, codec.anchor_parity), others)

    def code_groups(
        self, codec: ChannelGroupsLatentCodec, y: Tensor, params: Tensor, rounding: Rounding
    ) -> Quantised:
        coded: list[Quantised] = []
        for k, group in enumerate(torch.split(y, codec.groups, dim=1)):
            context = codec._get_ctx_params(k, params, [done.y_hat for done in coded])
            coded.append(self.code_node(codec.latent_codec[f"y{k}"], group, context, rounding))
        return Quantised.cat(coded)

    def code_raster_scan(
        self, codec: RasterScanLatentCodec, y: Tensor, params: Tensor, rounding: Rounding
    ) -> Quantised:
        def code_in_context(y_hat: Tensor) -> Quantised:
            mixed = codec.merge(params, codec.context_prediction(y_hat))
            scales, means = codec.entropy_parameters(mixed).chunk(2, 1)
            return code_gaussian(y, scales, means, codec.gaussian_conditional, rounding)

        context = self.contexts.setdefault(codec, CausalContext())
        return context.code(y, rounding, code_in_context)


def checkerboard(y: Tensor, parity: str) -> Tensor:
    """The places of y (..., h, w) whose row and column add up to an "even" or "odd" number, bool (h, w)."""
    rows, columns = (torch.arange(side, device=y.device) for side in y.shape[-2:])
    return (rows[:, None] + columns) % 2 == ("even", "odd").index(parity)


def _selected(codec: nn.Module, step: str, params: Tensor, scales: Tensor, means: Tensor) -> Tensor:
    """Which symbols of a half MLICv2 codes, bool; all of them in models without a predictor of that."""
    if codec.selective_predictor is None:
        return torch.ones_like(means, dtype=torch.bool)
    from compressai.latent_codecs import _selective_checkerboard  # absent from CompressAI 1.2.8

    return _selective_checkerboard.selective_mask(
        codec.selective_predictor, step, params, scales, means, anchor_parity=codec.anchor_parity
    )


class _TreeSynthesis(nn.Module):
    """What the model makes of a y_hat of its latent codec; y_hat -> x_hat."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = copy.copy(model)
        self.model._modules = {**model._modules, "latent_codec": _Given()}

    def forward(self, y_hat: Tensor) -> Tensor:
        self.model.latent_codec.y_hat = y_hat
        try:  # without a decorator such as no_grad
            return inspect.unwrap(type(self.model).decompress)(self.model, [], {})["x_hat"]
        finally:
            self.model.latent_codec.y_hat = None


class _Given(nn.Module):
    """Stands for a latent codec that has decoded `y_hat`."""

    y_hat: Tensor | None = None

    def decompress(self, *_: Any, **__: Any) -> dict[str, Tensor | None]:
        return {"y_hat": self.y_hat}


@dataclass(frozen=True)
class Node:
    """A kind of latent codec, and how it is coded.

    Args:
        base: the class that it is, or is derived from.
        code: a method of `CodecTreeLatents`, see the file's head.
        methods: those that its `compress` is made of, where that is not the one of `base`. They stand in the
            class that has `compress`, so a class that changes `compress` alone is another kind.
    """

    base: type
    code: Callable[..., Quantised]
    methods: tuple[str, ...] = ()

    def matches(self, kind: type) -> bool:
        """Whether latent codecs of this class are of this kind."""
        kind = stock_class(kind)
        if not issubclass(kind, self.base):
            return False
        owner = _owner(kind, "compress")
        if owner is not _owner(kind, "decompress"):
            return False
        if self.methods:
            return set(self.methods) <= set(vars(owner))
        return owner is _owner(self.base, "compress")


def _owner(kind: type, method: str) -> type:
    """The class in which a method of this class is written."""
    return next(base for base in kind.__mro__ if method in vars(base))


_RESIDUAL = Node(
    GaussianConditionalLatentCodec,
    CodecTreeLatents.code_conditional_with_residual,
    ("_split_ctx_params", "_apply_lrp"),
)
_MULTI_CONTEXT = Node(
    LatentCodec,
    CodecTreeLatents.code_multi_context,
    ("_ctx_params", "_entropy_parameters", "_apply_lrp"),
)
NODES: tuple[Node, ...] = (
    Node(ChannelGroupsLatentCodec, CodecTreeLatents.code_groups),
    Node(CheckerboardLatentCodec, CodecTreeLatents.code_checkerboard),
    Node(GaussianConditionalLatentCodec, CodecTreeLatents.code_conditional),
    Node(RasterScanLatentCodec, CodecTreeLatents.code_raster_scan),
    _RESIDUAL,  # a class of its own in each model that uses it
    _MULTI_CONTEXT,
)
"""The latent codecs of y that can be refined."""


def is_residual(kind: type) -> bool:
    """Whether latent codecs of this class add a residual to y_hat, by `_apply_lrp(support, y_hat)`."""
    return _RESIDUAL.matches(kind)


def is_multi_context(kind: type) -> bool:
    """Whether latent codecs of this class are MLIC's checkerboards of several contexts."""
    return _MULTI_CONTEXT.matches(kind)


ROOTS = (EntropyBottleneckLatentCodec, HyperLatentCodec, HyperpriorLatentCodec)


def _is_known(kind: type) -> bool:
    return any(row.matches(kind) for row in (*(Node(root, CodecTreeLatents.code) for root in ROOTS), *NODES))
