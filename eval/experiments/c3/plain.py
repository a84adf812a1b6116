# SPDX-License-Identifier: Apache-2.0
"""A step of C3's fit (Kim et al. 2024), written plainly as a reference: one image, masked convolutions.

    plain_loss(grids, arrays, x, lmbda, architecture)         # equals the loss of Fit, up to rounding
    PlainFit(fit).step()                                      # the same as Fit.step in its main phase

It is written from the formulas and shares only soft rounding with the package. Entropy net and synthesis are
2-d convolutions, P(v) = F(v + 1/2) - F(v - 1/2) with the Laplace distribution function F, upsampling uses
transposed convolutions, gradients come from autograd, Adam and clipping from torch. (The package's fit also
runs SOAP for the nets and has their bits in its loss, which takes time.) The reference is not slowed down on
purpose: the linear skip shares the convolution of the first layer, and the taps of the coarser grid are
slices.

In:  latents in quantisation steps; arrays as `Fit.arrays` names them. Out: a loss; steps.
Fails with ``ValueError`` for contexts that use a finer grid.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from compressai_sga.models.c3.config import Architecture
from compressai_sga.models.c3.fit.loop import Fit
from compressai_sga.models.c3.integer import MAX_CLAMP
from compressai_sga.models.c3.tables import SCALE_ZERO, SCALES, SCALES_PER_OCTAVE
from compressai_sga.relaxations import soft_round

__all__ = ["PlainFit", "plain_loss"]


def plain_loss(
    grids: list[Tensor], arrays: dict[str, Tensor], x: Tensor, lmbda: float, a: Architecture
) -> Tensor:
    """mse + lmbda * bpp by a masked convolution of every grid; what `Fit` computes in another way.

    Args:
        grids: (1, 1, h, w) latents in quantisation steps, the finest first.
        arrays: the nets' by name, (outputs, inputs), without an image's dimension.
        x: (1, 3, H, W).
        lmbda: trade-off.
        a: architecture whose context is its own grid and, perhaps, the coarser one.
    """
    if a.taps.source == "finer":
        raise ValueError("the context's source is 'finer'; the plain step knows 'none' and 'coarser'")
    bits = torch.zeros((), dtype=x.dtype)
    for grid, coarser in zip(grids, [*grids[1:], None], strict=True):
        location, log2_scale = plain_entropy_net(grid, coarser, arrays, a).split(1, 1)
        low, high = -SCALE_ZERO, SCALES - 1 - SCALE_ZERO
        scale = torch.exp2(log2_scale.clamp(low / SCALES_PER_OCTAVE, high / SCALES_PER_OCTAVE))
        distance = grid - location
        p = laplace_cdf(distance + 0.5, scale) - laplace_cdf(distance - 0.5, scale)
        bits = bits - torch.log2(p.clamp_min(torch.finfo(x.dtype).tiny)).sum()
    size = x.shape[2:]
    channels = plain_upsampling(grids, arrays, size, a)
    image, last = channels, len(a.synthesis_hidden)
    for i in range(last + 1):
        image = plain_layer(image, arrays, f"synthesis.{i}", a.synthesis_activation if i < last else "none")
    if a.synthesis_skip:
        image = image + F.conv2d(channels, arrays["synthesis.skip"][:, :, None, None])
    for i in range(a.refinements):
        padded = F.pad(image, (1, 1, 1, 1), mode="replicate")
        image = image + F.conv2d(padded, arrays[f"refinement.{i}.weight"], arrays[f"refinement.{i}.bias"])
        image = activate(image, a.refinement_activation if i < a.refinements - 1 else "none")
    return (image - x).square().mean() + lmbda * bits / (size[0] * size[1])


def plain_upsampling(
    grids: list[Tensor], arrays: dict[str, Tensor], size: torch.Size, a: Architecture
) -> Tensor:
    """The grids at the image's size, (1, grids, H, W); learned: transposed convolutions, rows first."""
    if a.upsampling == "bilinear":
        return torch.cat([F.interpolate(g, size, mode="bilinear", align_corners=False) for g in grids], 1)
    stack = grids[-1]
    for exponent in range(a.doublings - 1, -1, -1):
        far, near, own, next_ = arrays["upsampling.weight"][exponent]
        kernel = torch.stack([far, next_, near, own, own, near, next_, far])
        height, width = (-(-side >> exponent) for side in size)
        channels = stack.shape[1]
        weight = kernel.expand(channels, 1, 1, 8)
        rows = F.pad(stack, (0, 0, 2, 2), mode="replicate")
        rows = F.conv_transpose2d(rows, weight.mT, stride=(2, 1), groups=channels)[:, :, 7 : 7 + height]
        columns = F.pad(rows, (2, 2, 0, 0), mode="replicate")
        columns = F.conv_transpose2d(columns, weight, stride=(1, 2), groups=channels)
        stack = columns[:, :, :, 7 : 7 + width]
        if exponent >= a.first:
            stack = torch.cat([grids[exponent - a.first], stack], 1)
    return stack


def plain_entropy_net(
    grid: Tensor, coarser: Tensor | None, arrays: dict[str, Tensor], a: Architecture
) -> Tensor:
    """Location and log2 of the scale, (1, 2, h, w)."""
    taps, last, bound = a.taps, len(a.entropy_hidden), 32767 / 256
    weight, bias = arrays["entropy.0.weight"], arrays["entropy.0.bias"]
    if a.residual[0]:
        weight = weight + torch.eye(len(weight), dtype=weight.dtype)
    if a.entropy_skip:  # linear outputs of the same inputs
        weight = torch.cat([weight, arrays["entropy.skip"]])
        bias = F.pad(bias, (0, 2))
    reach = max([1, *(max(abs(dy), abs(dx)) for dy, dx in taps.own)])
    side, count = 2 * reach + 1, len(taps.own)
    where = torch.tensor([(dy + reach) * side + dx + reach for dy, dx in taps.own])
    kernel = weight.new_zeros(len(weight), side**2).index_copy(1, where, weight[:, :count])
    seen = grid.clamp(-MAX_CLAMP, MAX_CLAMP)
    out = F.conv2d(seen, kernel.reshape(-1, 1, side, side), bias, padding=reach)
    if taps.source == "coarser" and coarser is not None:
        other = parent_taps(coarser.clamp(-MAX_CLAMP, MAX_CLAMP), taps.other, grid.shape[2:])
        out = out + F.conv2d(other, weight[:, count:, None, None])
    linear = 0.0
    if a.entropy_skip:
        out, linear = out[:, :-2], out[:, -2:]
    for i in range(last):
        if i:
            out = plain_layer(out, arrays, f"entropy.{i}", residual=a.residual[i])
        out = activate(out.clamp(-bound, bound), a.entropy_activation)
    return plain_layer(out, arrays, f"entropy.{last}") + linear


def parent_taps(coarser: Tensor, taps: tuple[tuple[int, int], ...], size: torch.Size) -> Tensor:
    """Latents of the coarser grid, counted from a latent's parent towards its own side, (1, taps, h, w)."""
    reach = max(max(abs(dy), abs(dx)) for dy, dx in taps)
    padded, (h, w) = F.pad(coarser, (reach,) * 4), coarser.shape[2:]
    found = []
    for dy, dx in taps:
        for y_side in (-1, 1):
            for x_side in (-1, 1):
                y, x = reach + y_side * dy, reach + x_side * dx
                found.append(padded[:, :, y : y + h, x : x + w])
    return F.pixel_shuffle(torch.cat(found, 1), 2)[:, :, : size[0], : size[1]]


def plain_layer(
    inputs: Tensor, arrays: dict[str, Tensor], name: str, activation: str = "none", *, residual: bool = False
) -> Tensor:
    out = F.conv2d(inputs, arrays[f"{name}.weight"][:, :, None, None], arrays[f"{name}.bias"])
    return activate(out + inputs if residual else out, activation)


def activate(values: Tensor, kind: str) -> Tensor:
    return {"relu": F.relu, "gelu": F.gelu, "none": lambda v: v}[kind](values)


def laplace_cdf(distance: Tensor, scale: Tensor) -> Tensor:
    return 0.5 - 0.5 * distance.sign() * torch.expm1(-distance.abs() / scale)


class PlainFit:
    """Steps of the main phase with `plain_loss`, torch's Adam and a leaf for every grid and array."""

    def __init__(self, fit: Fit) -> None:
        self.fit, (self.lmbda,) = fit, fit.lmbda.tolist()
        self.grids = [g.detach()[None].clone().requires_grad_() for g in fit.grid_plane.grids(fit.plane)]
        self.arrays = {name: v[0].detach().clone().requires_grad_() for name, v in fit.arrays().items()}
        settings = fit.settings
        leaves = [*self.grids, *self.arrays.values()]
        self.adam = torch.optim.Adam(leaves, settings.learning_rate, settings.betas)

    def step(self) -> None:
        settings = self.fit.settings
        temperature, std = settings.temperature[0], settings.noise_range[0]
        soft = []
        for grid, gain in zip(self.grids, settings.gains, strict=True):
            noisy = soft_round(grid * gain, temperature) + std * torch.randn(grid.shape)
            soft.append(soft_round(noisy, temperature))
        self.adam.zero_grad()
        plain_loss(soft, self.arrays, self.fit.x, self.lmbda, self.fit.architecture).backward()
        torch.nn.utils.clip_grad_norm_(list(self.arrays.values()), settings.clip_norm)
        self.adam.step()
