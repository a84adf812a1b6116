# SPDX-License-Identifier: Apache-2.0
"""Rate-distortion optimised quantisation: changes single symbols of y by one where the loss falls.

After annealing, every latent is an integer, and no gradient shows that a neighbouring integer would be
better. For symbol i and a change of d = +-1 the bits of loss change by about

    bits_i(s_i + d) - bits_i(s_i)  +  d g_i  +  h_i / 2

The first difference is exact, from the coder's own likelihoods; g is the gradient of the weighted
distortion at the rounded latents and h its Gauss-Newton curvature, the diagonal of
2 * 255^2 * lmbda * J'J / 3, estimated with random signs r over the image: E (J'r)_i^2 = (J'J)_ii. h is never
taken below its channel's mean in the image, because too small a curvature leads to changes that increase the
loss.

Changes near each other see one another's effect on the image, which this sum leaves out. So a sweep changes
only every second position of every second row, at each the channel that promises most; and the next sweep,
which computes the image anyway, takes back those around which the loss did not fall. No symbol is changed
twice.

In:  latents whose symbols do not depend on each other (adapter.independent_symbols), distortion MSE.
Out: the latents of each image's best sweep. The loss is measured with the loop's fast synthesis, so the
     caller must check the result with the exact one.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from .latents import LatentAdapter, Latents

__all__ = ["polish"]

PROBES = 8
APART = 2  # positions from one change of a sweep to the next
OFFSETS = ((0, 0), (1, 1), (0, 1), (1, 0))  # of the sweeps


def polish(
    adapter: LatentAdapter,
    latents: Latents,
    image: Callable[[Tensor], Tensor],
    costs: Callable[[Tensor], Tensor],
    curvature_scale: float,
    sweeps: int,
    generator: torch.Generator,
) -> Latents:
    """Returns latents whose y is improved symbol by symbol, on the quantiser's grid.

    Args:
        adapter: with independent symbols.
        latents: to round and then change.
        image: y_hat -> x_hat without padding, differentiable.
        costs: x_hat -> weighted distortion in bits around each position of y, (B, 1, h, w).
        curvature_scale: 2 * 255^2 * lmbda / 3.
        sweeps: at most this many; it ends early when no change promises a gain.
        generator: of the random signs.
    """
    change = torch.zeros_like(latents["y"])
    closed = torch.zeros_like(change, dtype=torch.bool)
    chosen, direction = torch.zeros_like(closed), torch.zeros_like(change)
    curvature: Tensor | None = None
    best, best_loss, before = change, change.new_full(change.shape[:1], torch.inf), None
    idle = 0
    for offset in itertools.islice(itertools.cycle(OFFSETS), sweeps + 1):
        shift = change.clone().requires_grad_()
        coded = adapter.code(latents, _rounding_plus(shift))
        x_hat = image(coded.y_hat)
        distortion = costs(x_hat)
        if curvature is None:
            curvature = curvature_scale * _diagonal(x_hat, shift, generator)
        (gradient,) = torch.autograd.grad(distortion.sum(), shift)
        with torch.no_grad():
            bits = -torch.log2(coded.likelihoods["y"])
            loss = coded.bits() + distortion.flatten(1).sum(1)
            best = torch.where((loss < best_loss).view(-1, 1, 1, 1), change, best)
            best_loss = torch.minimum(loss, best_loss)
            here = bits.sum(1, keepdim=True) + distortion
            if before is not None:
                failed = chosen.any(1, keepdim=True) & (_around(here - before) >= 0)
                change = torch.where(failed & chosen, change - direction, change)
                here = torch.where(_around(failed.float()) > 0, before, here)
            before = here
            gain, direction = _promised_gain(adapter, latents, change, bits, gradient, curvature)
            gain = _every_second(gain, offset).masked_fill(closed, 0.0)
            chosen = (gain > 0) & (gain >= gain.amax(1, keepdim=True))
            closed |= chosen
            change = change + torch.where(chosen, direction, 0.0)
            idle = 0 if chosen.any() else idle + 1
            if idle == len(OFFSETS):
                break
    with torch.no_grad():
        return adapter.code(latents, _rounding_plus(best)).grid


def _around(values: Tensor) -> Tensor:
    """Sums over each position and its eight neighbours."""
    return F.avg_pool2d(values, 3, 1, 1, divisor_override=1)


def _every_second(values: Tensor, offset: tuple[int, int]) -> Tensor:
    """Zero but at every second position of every second row."""
    kept = torch.zeros_like(values)
    at = (..., slice(offset[0], None, APART), slice(offset[1], None, APART))
    kept[at] = values[at]
    return kept


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
    bits: Tensor,
    gradient: Tensor,
    curvature: Tensor,
) -> tuple[Tensor, Tensor]:
    """(fall of the loss by the better of +1 and -1, that direction), shape of y."""
    rise = []
    for direction in (1.0, -1.0):
        moved = adapter.code(latents, _rounding_plus(change + direction)).likelihoods["y"]
        rise.append(-torch.log2(moved) - bits + direction * gradient + curvature / 2)
    up, down = rise
    return -torch.minimum(up, down), torch.where(up < down, 1.0, -1.0)
