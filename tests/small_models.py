# SPDX-License-Identifier: Apache-2.0
"""Small random models of every latent structure, with latents wide enough for escapes; images, a clip."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Mapping
from typing import Any

import compressai
import torch
from compressai.registry import MODELS
from torch import Tensor, nn

from compressai_sga.models import elic, universal
from compressai_sga.models.ssf import SmallScaleSpaceFlow

__all__ = ["SIZES", "build", "clip", "once", "picture", "rate_point", "video_model"]

SIZES: dict[str, tuple] = {
    "bmshj2018-factorized": (16, 24),
    "bmshj2018-factorized-relu": (16, 24),
    "bmshj2018-hyperprior": (16, 24),
    "mbt2018-mean": (16, 24),
    "mbt2018": (16, 24),
    "cheng2020-anchor": (16,),
    "cheng2020-attn": (16,),
    "bmshj2018-hyperprior-vbr": (16, 24),
    "mbt2018-mean-vbr": (16, 24),
    "mbt2018-vbr": (16, 24),
    "cheng2020-anchor-checkerboard": (16,),
    "elic2022-official": (16, 160),
    "elic2022-chandelier": (16, 160),
    "elic2022-gdn": (16, 24, [4, 4, 16]),
}


def once(build: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    """Builds a model at the first call, since coding tables take long, and copies it at each."""
    built: dict[str, nn.Module] = {}

    @functools.wraps(build)
    def copied(*arguments: Any, **named: Any) -> nn.Module:
        key = repr((arguments, named, compressai.get_entropy_coder()))
        if key not in built:
            with torch.random.fork_rng():
                built[key] = build(*arguments, **named)
        return copy.deepcopy(built[key])

    return copied


@once
def build(name: str, sizes: Mapping[str, tuple] = SIZES) -> nn.Module:
    """The model of this name."""
    torch.manual_seed(1)
    kinds = {**MODELS, **elic.ARCHITECTURES, **universal.ARCHITECTURES}
    model = kinds[name](*sizes[name]).eval()
    for parameter in model.g_a.parameters():
        if parameter.ndim == 4:
            parameter.data.mul_(2.2)
    model.update(force=True)
    return model


def rate_point(name: str) -> dict[str, Any]:
    """What `compress` of a variable-rate model takes."""
    return {"stage": 2, "s": 0, "inputscale": torch.tensor(0.7)} if name.endswith("-vbr") else {}


def picture(height: int = 64, width: int = 64, batch: int = 1, seed: int = 0) -> Tensor:
    """Smooth images (batch, 3, height, width)."""
    coarse = torch.rand(batch, 3, 10, 14, generator=torch.Generator().manual_seed(seed))
    return nn.functional.interpolate(coarse, size=(height, width), mode="bicubic").clamp(0, 1)


def video_model() -> SmallScaleSpaceFlow:
    """A scale-space flow model of 8 channels, with tables, whose images leave [0, 1]."""
    torch.manual_seed(1)
    model = SmallScaleSpaceFlow(8, 8).eval()
    for name in ("img_encoder", "img_decoder", "motion_encoder", "res_encoder", "res_decoder"):
        for parameter in getattr(model, name).parameters():
            if parameter.ndim == 4:
                parameter.data.mul_(2.5)
    for name in ("img_hyperprior", "motion_hyperprior", "res_hyperprior"):
        getattr(model, name).hyper_decoder_scale.deconv3.bias.data.add_(0.8)
    model.update(force=True)
    return model


def clip(height: int = 100, width: int = 120, frames: int = 3) -> list[Tensor]:
    """A smooth picture that moves by two pixels a frame, as frames (1, 3, height, width)."""
    wide = picture(height, width + 2 * frames)
    return [wide[..., 2 * t : 2 * t + width].clone() for t in range(frames)]
