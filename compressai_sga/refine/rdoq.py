# SPDX-License-Identifier: Apache-2.0
"""Rate-distortion optimised quantisation: changes single symbols of y by one where the loss falls.

After annealing, every latent is an integer, and no gradient shows that a neighbouring integer would be
better. For symbol i and a change of d = +-1 the loss changes by

    bits_i(s_i + d) - bits_i(s_i)  +  d g_i  +  h_i / 2        (per pixel)

The first difference is exact, from the coder's own likelihoods; g is the gradient of the weighted
distortion at the rounded latents and h its Gauss-Newton curvature, the diagonal of
2 * 255^2 * lmbda * J'J / (3 pixels), estimated with random signs r over the image: E (J'r)_i^2 = (J'J)_ii.
A sweep changes, at each position of the latent, the channel whose loss falls most, and then computes the
gradient again; no symbol is changed twice. h is never taken below its channel's mean in the image, because
too small a curvature leads to changes that increase the loss.

In:  latents whose symbols do not depend on each other (adapter.independent_symbols), distortion MSE.
Out: the latents of each image's best sweep. The loss is measured with the loop's fast synthesis, so the
     caller must check the result with the exact one.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .latents import LatentAdapter, Latents

__all__ = ["polish"]

PROBES = 8


def polish(
    adapter: LatentAdapter,
    latents: Latents,
    image: Callable[[Tensor], Tensor],
    cost: Callable[[Tensor], Tensor],
    curvature_scale: float,
    sweeps: int,
    pixels: int,
    generator: torch.Generator,
) -> Latents:
    """Returns latents whose y is improved symbol by symbol, on the quantiser's grid.

    Args:
        adapter: with independent symbols.
        latents: to round and then change.
        image: y_hat -> x_hat without padding, differentiable.
        cost: x_hat -> weighted distortion, shape (B,).
        curvature_scale: 2 * 255^2 * lmbda / (3 * pixels).
        sweeps: at most this many; it ends early when no change promises a gain.
        pixels: of one image.
        generator: of the random signs.
    """
    change = torch.zeros_like(latents["y"])
    closed = torch.zeros_like(change, dtype=torch.bool)
    curvature: Tensor | None = None
    best_loss: Tensor | None = None
    best = change
    for _ in range(sweeps + 1):
        shift = change.clone().requires_grad_()
        coded = adapter.code(latents, _rounding_plus(shift))
        x_hat = image(coded.y_hat)
        distortion = cost(x_hat)
        if curvature is None:
            curvature = curvature_scale * _diagonal(x_hat, shift, generator)
        (gradient,) = torch.autograd.grad(distortion.sum(), shift)
        with torch.no_grad():
            loss = coded.bits() / pixels + distortion
            better = torch.ones_like(loss, dtype=torch.bool) if best_loss is None else loss < best_loss
            best_loss = loss if best_loss is None else torch.minimum(loss, best_loss)
            best = torch.where(better.view(-1, 1, 1, 1), change, best)
            gain, direction = _promised_gain(
                adapter, latents, change, coded.likelihoods["y"], gradient, curvature, pixels
            )
            gain = gain.masked_fill(closed, 0.0)
            chosen = (gain > 0) & (gain >= gain.amax(1, keepdim=True))
            if not chosen.any():
                break
            closed |= chosen
            change = change + torch.where(chosen, direction, 0.0)
    with torch.no_grad():
        return adapter.code(latents, _rounding_plus(best)).grid


def _rounding_plus(change: Tensor) -> Callable[[Tensor, str], Tensor]:
    def rounding(v: Tensor, name: str) -> Tensor:
        return torch.round(v) + change if name == "y" else torch.round(v)

    return rounding


def _diagonal(x_hat: Tensor, shift: Tensor, generator: torch.Generator) -> Tensor:
    """(J'J)_ii of x_hat by shift, at least its mean over each channel; shape of shift."""
    total = torch.zeros_like(shift)
    for _ in range(PROBES):
        signs = torch.randint(0, 2, x_hat.shape[1:], generator=generator, device=x_hat.device) * 2.0 - 1
        (product,) = torch.autograd.grad(x_hat, shift, signs.expand_as(x_hat), retain_graph=True)
        total += product.square() / PROBES
    return torch.maximum(total, total.mean((2, 3), keepdim=True))


def _promised_gain(
    adapter: LatentAdapter,
    latents: Latents,
    change: Tensor,
    likelihoods: Tensor,
    gradient: Tensor,
    curvature: Tensor,
    pixels: int,
) -> tuple[Tensor, Tensor]:
    """(fall of the loss by the better of +1 and -1, that direction), shape of y."""
    bits = -torch.log2(likelihoods)
    rise = []
    for direction in (1.0, -1.0):
        moved = adapter.code(latents, _rounding_plus(change + direction)).likelihoods["y"]
        rate = (-torch.log2(moved) - bits) / pixels
        rise.append(rate + direction * gradient + curvature / 2)
    up, down = rise
    return -torch.minimum(up, down), torch.where(up < down, 1.0, -1.0)
