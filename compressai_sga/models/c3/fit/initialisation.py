# SPDX-License-Identifier: Apache-2.0
"""The start of a fit: the first weights of the nets, and the units in which they are optimised.

The optimiser's parameters are not the nets' arrays themselves: an array is its parameter times a factor. So
one learning rate suits all arrays, and presets stated in other units (the paper's latents in pixels, its
second output -log scale^2) take the same steps as in those units.

A warm start takes the default nets of the zoo (`defaults`), a cold start random weights. With both, latents
that are all zero give each image's mean colour.

In:  a `Preset`; images; a seed or default nets. Out: flat tensors of parameters in the order of
     `config.layout`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ..config import Architecture, Preset, layout
from ..defaults import DefaultNets
from ..network import synthesise

__all__ = ["first_parameters", "origin_of", "parameter_scale", "warm_parameters"]

_UPSAMPLING_SCALE = 0.3  # taps that move like other weights make the first steps wild
_BILINEAR = (0.0, 0.25, 0.75, 0.0)


def parameter_scale(preset: Preset) -> Tensor:
    """The factors from parameters to arrays, (parameters,)."""
    settings, last = preset.fit, len(preset.architecture.entropy_hidden)
    out = torch.tensor(settings.output_scale)
    scales = []
    for spec in layout(preset.architecture):
        scale = torch.ones(spec.shape)
        if spec.name in ("entropy.0.weight", "entropy.skip"):
            scale *= settings.entropy_scale
        if spec.name in (f"entropy.{last}.weight", "entropy.skip"):
            scale *= out[:, None]
        if spec.name == f"entropy.{last}.bias":
            scale *= out
        if spec.name in ("synthesis.0.weight", "synthesis.skip"):
            scale *= settings.synthesis_scale
        if spec.part == "upsampling":
            scale *= _UPSAMPLING_SCALE
        scales.append(scale.flatten())
    return torch.cat(scales)


def first_parameters(preset: Preset, x: Tensor, seed: int) -> Tensor:
    """Truncated normal weights with variance 1 / inputs, as in the paper's code; (B, parameters).

    Args:
        preset: architecture and settings.
        x: (B, 3, H, W).
        seed: of the weights, the same for all images.
    """
    generator = torch.Generator().manual_seed(seed)
    a, settings, last = preset.architecture, preset.fit, len(preset.architecture.entropy_hidden)
    final, found = _last_bias(a), []
    for spec in layout(a):
        value = torch.zeros(len(x), *spec.shape)
        if spec.name == f"entropy.{last}.bias":
            value[:, 1] = settings.log2_scale / settings.output_scale[1]
        elif spec.name == final:
            value[:] = x.mean((2, 3)).cpu()
        elif spec.part == "upsampling":
            value[:] = torch.tensor(_BILINEAR) / _UPSAMPLING_SCALE
        elif spec.part in ("entropy", "synthesis") and spec.name.endswith("weight"):
            draw = torch.empty(spec.shape)
            torch.nn.init.trunc_normal_(draw, 0.0, 1.0, -2.0, 2.0, generator=generator)
            scale = settings.last_scale if spec.name == f"entropy.{last}.weight" else 1.0
            value[:] = draw * (scale / math.sqrt(spec.fan_in))
        found.append(value.flatten(1))
    return torch.cat(found, 1)


def warm_parameters(preset: Preset, x: Tensor, starts: Sequence[DefaultNets]) -> Tensor:
    """Parameters of the default nets, (B, parameters).

    Args:
        preset: architecture and settings.
        x: (B, 3, H, W).
        starts: one set for each image.
    """
    found = []
    for image, start in zip(x.cpu(), starts):
        arrays = {name: torch.from_numpy(array)[None] for name, array in start.arrays().items()}
        nothing = torch.zeros(1, preset.architecture.grids, 1, 1)
        colour = synthesise(arrays, nothing, preset.architecture).flatten(1)
        name = _last_bias(preset.architecture)
        arrays[name] = arrays[name] + image.mean((1, 2)) - colour
        found.append(_flat(preset, arrays))
    return torch.stack(found)


def origin_of(preset: Preset, starts: Sequence[DefaultNets]) -> Tensor:
    """Parameters of the unchanged default nets, from which differences are coded, (B, parameters)."""
    return torch.stack(
        [
            _flat(preset, {name: torch.from_numpy(array) for name, array in start.arrays().items()})
            for start in starts
        ]
    )


def _flat(preset: Preset, arrays: Mapping[str, Tensor]) -> Tensor:
    flat = torch.cat([arrays[spec.name].flatten() for spec in layout(preset.architecture)])
    return flat / parameter_scale(preset)


def _last_bias(a: Architecture) -> str:
    return (
        f"refinement.{a.refinements - 1}.bias"
        if a.refinements
        else f"synthesis.{len(a.synthesis_hidden)}.bias"
    )
