# SPDX-License-Identifier: Apache-2.0
"""Small random models of the architectures that CompressAI has since 1.2.9.dev0, and why not, if not."""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

import torch
from torch import nn

__all__ = ["MODELS", "REASON", "build"]

_DICTIONARY = dict(
    N=32,
    M=40,
    hyper_channels=16,
    feature_dims=(16, 32, 64),
    block_num=(1, 1, 1),
    dict_num=16,
    dict_head_num=2,
)
MODELS: dict[str, tuple[str, str, dict[str, Any]]] = {  # module, class, arguments
    "cca": (
        "cca",
        "CCAModel",
        dict(
            latent_channels=40,
            hyper_channels=16,
            encoder_dims=(16, 16, 16),
            encoder_layers=(1, 1, 1),
            em_hidden_channels=16,
            em_num_layers=1,
        ),
    ),
    "dcae": ("dcae", "DCAE", _DICTIONARY),
    "mlic": ("mlic", "MLIC", dict(N=16, M=16, slice_num=2)),
    "mlicplus": ("mlic", "MLICPlus", dict(N=16, M=16, slice_num=2)),
    "mlicpp": ("mlic", "MLICPlusPlus", dict(N=16, M=16, slice_num=2)),
    "mlicv2": ("mlic", "MLICv2", dict(N=16, M=32, slice_num=2)),
    "saaf": ("saaf", "SAAF", _DICTIONARY),
    "stf": ("stf", "SymmetricalTransFormer", dict(embed_dim=8, num_heads=[1, 2, 4, 8], num_slices=4)),
    "stf-wacnn": ("stf", "WACNN", dict(N=16, M=40, num_slices=5)),
    "tcm": ("tcm", "TCM", dict(N=32, M=40, hyper_channels=16, head_dim=[8] * 6)),
}


def _reason() -> str:
    if importlib.util.find_spec("compressai.models.mlic") is None:
        return "this CompressAI has no such models; .ci/development installs one that has"
    if importlib.util.find_spec("timm") is None:
        return "these models need timm"
    return ""


REASON = _reason()
"""Why they cannot be built here; empty: they can."""


def build(name: str) -> nn.Module:
    """The model of this name, with latents that take bits."""
    module, kind, arguments = MODELS[name]
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = getattr(importlib.import_module(f"compressai.models.{module}"), kind)(**arguments).eval()
        _widen(model)
    if name == "mlicv2":  # at first it codes no symbol, now it codes some
        for leaf in model.latent_codec.latent_codec["y"].latent_codec.values():
            leaf.selective_predictor.scale_slope.data.fill_(0.0)
            leaf.selective_predictor.predictor[-1].weight.data.mul_(30)
            leaf.selective_predictor.predictor[-1].bias.data.zero_()
    model.update(force=True)
    return model


@torch.no_grad()
def _widen(model: nn.Module) -> None:
    """Scale the last layers in front of the latent codec, as many as it takes."""
    ran: list[nn.Module] = []
    y: list[torch.Tensor] = []

    def noted(v: torch.Tensor) -> dict[str, Any]:
        y[:], layers[:] = [v], ran[:]
        return {"y_hat": v, "likelihoods": {}}

    layers: list[nn.Module] = []
    inside = {*model.latent_codec.modules()}
    handles = [
        layer.register_forward_pre_hook(lambda layer, _: ran.append(layer))
        for layer in model.modules()
        if isinstance(layer, nn.Conv2d | nn.Linear) and layer not in inside
    ]
    model.latent_codec.forward = noted
    model(torch.rand(1, 3, 64, 64))
    for handle in handles:
        handle.remove()
    for layer in layers[::-1]:
        if y[0].std() > 1:
            break
        for parameter in layer.parameters():
            parameter.mul_(3 / y[0].std())
        model(torch.rand(1, 3, 64, 64))
    del model.latent_codec.forward
