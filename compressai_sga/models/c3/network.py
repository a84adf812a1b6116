# SPDX-License-Identifier: Apache-2.0
"""The float nets of C3 for fitting, B images at once: rate of the latents, and synthesis.

The nets' arrays have the images as first dimension, (B, outputs, inputs), so that a layer is one batched
matrix product; 3x3 layers are convolutions in B groups. The float entropy net is `integer.IntegerNet` without
rounding: hidden values stay within +-128, latents within +-127, a residual layer adds its input before the
activation, and a skip adds the inputs to the outputs. The two outputs are the location and log2 of the scale
of a Laplace distribution (C3, Kim et al. 2024, eq. 3),
    P(v) = F(v + 1/2) - F(v - 1/2).
Only these values and the scales (to the range of the tables) are clamped; in the loss, the image is not.

In:  arrays by name as `config.layout` lists them; planes of `grid_plane`.
Out: bits of each latent, (B, positions); the image, (B, 3, H, W), not clipped.
     Memory: for more than 2^20 positions the nets run in chunks, which are computed again for the gradient.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from .config import Architecture
from .fit.grid_plane import GridPlane, shifted
from .integer import MAX_CLAMP, Activation
from .tables import SCALE_ZERO, SCALES, SCALES_PER_OCTAVE

__all__ = [
    "Inputs",
    "context_of",
    "double_size",
    "entropy_net",
    "laplace_bits",
    "latent_bits",
    "refine",
    "synthesise",
    "upsample",
]

Arrays = Mapping[str, Tensor]
Inputs = tuple[Tensor, Tensor | None]

_HIDDEN = 32767 / 256  # what the integer net's 16 bits hold
_LOG2_SCALES = (-SCALE_ZERO / SCALES_PER_OCTAVE, (SCALES - 1 - SCALE_ZERO) / SCALES_PER_OCTAVE)
_CHUNK = 1 << 20


def context_of(plane: Tensor, grid_plane: GridPlane) -> Inputs:
    """The entropy net's inputs, from the same grid and from another one, (B, taps, positions)."""
    seen = F.hardtanh(plane, -MAX_CLAMP, MAX_CLAMP)  # whose gradient is faster than clamp's
    return grid_plane.own_inputs(seen), grid_plane.other_inputs(seen)


def entropy_net(arrays: Arrays, inputs: Inputs, architecture: Architecture) -> Tensor:
    """Location and log2 of the scale at each position, (B, 2, positions).

    Args:
        arrays: the nets'.
        inputs: from `context_of`.
        architecture: which layers there are.
    """
    return _chunked(lambda own, other: _entropy_net(arrays, own, other, architecture), *inputs)


def _entropy_net(arrays: Arrays, own: Tensor, other: Tensor | None, architecture: Architecture) -> Tensor:
    count, width = len(architecture.entropy_hidden), own.shape[1]
    weight, bias = arrays["entropy.0.weight"], arrays["entropy.0.bias"]
    if architecture.entropy_skip:  # one pass over the inputs, which are wider than anything else
        skip = arrays["entropy.skip"]
        weight = torch.cat([weight, skip], 1)
        bias = torch.cat([bias, arrays[f"entropy.{count}.bias"]], 1)
    out = torch.baddbmm(bias[..., None], weight[..., :width], own)
    if other is not None:
        out = torch.baddbmm(out, weight[..., width:], other)
    if architecture.entropy_skip:
        out, linear = out[:, :-2], out[:, -2:]
    else:
        linear = arrays[f"entropy.{count}.bias"][..., None]
    if architecture.residual[0]:
        out = out + (own if other is None else torch.cat([own, other], 1))
    # In place on a slice would make autograd copy the whole.
    hidden = _hidden(out, architecture.entropy_activation, inplace=not architecture.entropy_skip)
    for i in range(1, count):
        weight, bias = arrays[f"entropy.{i}.weight"], arrays[f"entropy.{i}.bias"][..., None]
        out = torch.baddbmm(bias, weight, hidden)
        if architecture.residual[i]:
            out = out + hidden
        hidden = _hidden(out, architecture.entropy_activation)
    return torch.baddbmm(linear, arrays[f"entropy.{count}.weight"], hidden)


def _hidden(values: Tensor, activation: Activation, inplace: bool = True) -> Tensor:
    low = 0.0 if activation == "relu" else -_HIDDEN
    values = F.hardtanh(values, low, _HIDDEN, inplace=inplace)
    return F.gelu(values) if activation == "gelu" else values


def latent_bits(latents: Tensor, outputs: Tensor) -> Tensor:
    """Code length of each latent under the entropy net's outputs, bits.

    Args:
        latents: (B, positions), in quantisation steps, integers or not.
        outputs: (B, 2, positions) from `entropy_net`.
    """
    log2_scale = outputs[:, 1]
    # The table's range; with the identity's gradient, or a latent outside could not come back.
    log2_scale = log2_scale + (log2_scale.clamp(*_LOG2_SCALES) - log2_scale).detach()
    return laplace_bits(latents - outputs[:, 0], log2_scale)


def laplace_bits(distance: Tensor, log2_scale: Tensor) -> Tensor:
    """-log2 of (F(d + 1/2) - F(d - 1/2)) for a Laplace distribution around 0, finite everywhere.

    With a = 1 / scale: exp(-|d| a) sinh(a / 2) beyond 1/2, 1 - exp(-a / 2) cosh(d a) within.

    Args:
        distance: d, any shape.
        log2_scale: log2 of the scale, same shape, within the table's range.
    """
    rate = torch.exp2(-log2_scale)
    size = distance.abs()
    beyond = F.relu(size - 0.5)
    inner = size - beyond  # at most 1/2
    # log P of the point `inner`, which is the whole of it where beyond = 0; farther out every step of
    # d costs 1 / scale nats.
    near = torch.exp((inner - 0.5) * rate) + torch.exp((inner + 0.5) * -rate)
    log_p = torch.log1p(-0.5 * near) - beyond * rate
    return log_p * (-1 / math.log(2))


def upsample(
    arrays: Arrays, grids: list[Tensor], size: tuple[int, int], architecture: Architecture
) -> Tensor:
    """The grids at the image's size, (B, grids, H, W).

    If learned, grids are doubled again and again, first along the rows, then along the columns. With taps
    p_-2 ... p_1 of `upsampling.weight` (the row for the resulting size) and the border repeated,
        y_2i = sum_j p_j x_(i+j),  y_(2i+1) = sum_j p_j x_(i-j),
    of which (0, 1/4, 3/4, 0) is bilinear interpolation.

    Args:
        arrays: the nets'.
        grids: (B, h, w) each, the finest first.
        size: (height, width), pixels.
        architecture: which upsampling.
    """
    if architecture.upsampling == "bilinear":
        return _bilinear(grids, size)
    stack: Tensor | None = None
    for exponent in range(architecture.doublings, -1, -1):
        if stack is not None:
            height, width = (-(-side >> exponent) for side in size)
            stack = double_size(stack, arrays["upsampling.weight"][:, exponent], height, width)
        if exponent >= architecture.first:
            grid = grids[exponent - architecture.first][:, None]
            stack = grid if stack is None else torch.cat([grid, stack], 1)
    return stack


def double_size(planes: Tensor, taps: Tensor, height: int, width: int) -> Tensor:
    """Planes (B, C, h, w) at twice the size, cut to (height, width); taps (B, 4); see `upsample`."""

    def grow(planes: Tensor) -> Tensor:
        rows = _double_rows(planes, taps)[:, :, :height]
        return _double_rows(rows.mT, taps)[:, :, :width].mT

    if planes.numel() <= _CHUNK or not torch.is_grad_enabled():
        return grow(planes)
    return checkpoint(grow, planes, use_reentrant=False)


def _double_rows(planes: Tensor, taps: Tensor) -> Tensor:
    batch, channels, height, width = planes.shape
    none = torch.zeros_like(taps[:, :1])
    phases = torch.stack([torch.cat([taps, none], 1), torch.cat([none, taps.flip(1)], 1)], 1)
    # In planes with a border of two rows the taps are runs, as in `grid_plane`; the last rows are no result.
    flat = F.pad(planes, (0, 0, 2, 2), mode="replicate").reshape(batch, -1)
    runs = shifted(flat, tuple(tap * width for tap in range(5)), 0, flat.shape[1] - 4 * width)
    made = F.pad(phases @ runs, (0, 4 * width)).unflatten(2, (channels, height + 4, width))[:, :, :, :height]
    return made.permute(0, 2, 3, 1, 4).reshape(batch, channels, 2 * height, width)


def _bilinear(grids: list[Tensor], size: tuple[int, int]) -> Tensor:
    found = []
    for grid in grids:
        if grid.shape[1:] == tuple(size):
            found.append(grid)
        elif grid.is_cuda:
            found.append(_stretched(grid, size))
        else:
            plane = F.interpolate(grid[:, None], size=size, mode="bilinear", align_corners=False)
            found.append(plane[:, 0])
    return torch.stack(found, 1)


def _stretched(grid: Tensor, size: tuple[int, int]) -> Tensor:
    """The same as two matrix products; unlike interpolate, reproducible in its gradient on a GPU."""
    rows = _linear(grid.shape[1], size[0], grid.device)
    columns = _linear(grid.shape[2], size[1], grid.device)
    return rows.T @ (grid @ columns)


@functools.lru_cache(maxsize=64)
def _linear(length: int, wanted: int, device: torch.device) -> Tensor:
    """Linear interpolation as a matrix (length, wanted)."""
    unit = torch.eye(length, device=device)[None]
    return F.interpolate(unit, size=wanted, mode="linear", align_corners=False)[0]


def synthesise(arrays: Arrays, channels: Tensor, architecture: Architecture) -> Tensor:
    """The image from upsampled latents: pointwise layers, then `refine`.

    Args:
        arrays: the nets'.
        channels: (B, grids, H, W), latents in quantisation steps.
        architecture: which layers there are.

    Returns:
        (B, 3, H, W), not clipped.
    """
    made = _chunked(lambda flat, _: _pointwise(arrays, flat, architecture), channels.flatten(2), None)
    return refine(arrays, made.unflatten(2, channels.shape[2:]), architecture)


def _pointwise(arrays: Arrays, channels: Tensor, architecture: Architecture) -> Tensor:
    hidden = channels
    last = len(architecture.synthesis_hidden)
    for i in range(last + 1):
        bias = arrays[f"synthesis.{i}.bias"][..., None]
        hidden = torch.baddbmm(bias, arrays[f"synthesis.{i}.weight"], hidden)
        if i < last:
            hidden = _activate(hidden, architecture.synthesis_activation)
    if architecture.synthesis_skip:
        hidden = torch.baddbmm(hidden, arrays["synthesis.skip"], channels)
    return hidden


def refine(arrays: Arrays, image: Tensor, architecture: Architecture) -> Tensor:
    """Residual 3x3 layers with the border repeated, (B, 3, H, W).

    On a CPU a matrix product with the nine neighbours is faster than a convolution of three channels.
    """
    batch, _, height, width = image.shape
    as_product = not image.is_cuda and height * width <= _CHUNK
    offsets = tuple(dy * (width + 2) + dx for dy in range(3) for dx in range(3))
    for i in range(architecture.refinements):
        weight, bias = arrays[f"refinement.{i}.weight"], arrays[f"refinement.{i}.bias"]
        if as_product:  # one row more below, for the last run
            flat = F.pad(image, (1, 1, 1, 2), mode="replicate").reshape(3 * batch, -1)
            near = shifted(flat, offsets, 0, height * (width + 2)).reshape(batch, 27, -1)
            out = torch.baddbmm(bias[..., None], weight.flatten(2), near)
            out = out.reshape(batch, 3, height, width + 2)[..., :width]
        else:
            flat = F.pad(image.reshape(1, 3 * batch, height, width), (1, 1, 1, 1), mode="replicate")
            out = F.conv2d(flat, weight.flatten(0, 1), bias.flatten(), groups=batch).reshape(image.shape)
        image = image + out
        if i < architecture.refinements - 1:
            image = _activate(image, architecture.refinement_activation)
    return image


def _activate(values: Tensor, activation: Activation) -> Tensor:
    if activation == "gelu":
        return F.gelu(values)
    return F.relu(values, inplace=True) if activation == "relu" else values


def _chunked(function: Callable[[Tensor, Tensor | None], Tensor], a: Tensor, b: Tensor | None) -> Tensor:
    """function(a, b), positions being the last dimension, in chunks if there are many."""
    count = a.shape[2]
    if count <= _CHUNK:
        return function(a, b)
    parts = []
    for start in range(0, count, _CHUNK):
        some = slice(start, start + _CHUNK)
        part = a[..., some], None if b is None else b[..., some]
        parts.append(
            checkpoint(function, *part, use_reentrant=False) if torch.is_grad_enabled() else function(*part)
        )
    return torch.cat(parts, 2)
