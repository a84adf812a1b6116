# SPDX-License-Identifier: Apache-2.0
"""Rate-distortion optimised quantisation: changes single symbols of y by one where the loss falls.

After annealing, every latent is an integer, and no gradient shows that a neighbouring integer would be
better. For symbol i and a change of d = +-1 the bits of loss change by about

    bits_i(s_i + d) - bits_i(s_i)  +  d g_i  +  h_i / 2

The first difference is exact, from the coder's own likelihoods. g is the gradient, at the rounded latents, of
all else: the weighted distortion and, in models with a context, the bits of the symbols that are coded later.
h is the distortion's Gauss-Newton curvature, the diagonal of 2 * 255^2 * lmbda * J'J / 3, estimated with
random signs r over the image: E (J'r)_i^2 = (J'J)_ii. h is never taken below its channel's mean in the
image, because too small a curvature leads to changes that increase the loss.

Changes near each other see one another's effect, which this sum leaves out. The first sweeps change, at every
position, the channel that promises most. From the first sweep on that brings less than half of what it
promised, an image changes only where no neighbouring position promises more; and the next sweep, which
computes the loss anyway, takes back those changes around which it did not fall. No symbol is changed twice.

In:  latents of an adapter whose symbols can be changed one by one (`Coded.moved`), distortion MSE.
Out: the latents of each image's best sweep. The loss is measured with the loop's fast synthesis, so the
     caller must check the result with the exact one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .latents import Coded, LatentAdapter, Latents, hard_rounding

__all__ = ["polish"]

PROBES = 8


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
        adapter: where its `Coded.moved` is None, nothing is changed.
        latents: to round and then change.
        image: y_hat -> x_hat without padding, differentiable.
        costs: x_hat -> weighted distortion in bits around each position of y, (B, 1, h, w).
        curvature_scale: 2 * 255^2 * lmbda / 3.
        sweeps: at most this many; it ends early when no change promises a gain.
        generator: of the random signs.
    """
    with torch.no_grad():
        rounded = adapter.code(latents, hard_rounding)
    if rounded.moved is None:
        return rounded.grid

    def code(change: Tensor) -> Coded:
        return adapter.code(rounded.grid | {"y": rounded.grid["y"] + change * rounded.step}, hard_rounding)

    change = torch.zeros_like(rounded.grid["y"])
    closed = torch.zeros_like(change, dtype=torch.bool)
    curvature: Tensor | None = None
    best, best_loss = change, change.new_full(change.shape[:1], torch.inf)
    apart = torch.zeros_like(best_loss, dtype=torch.bool).view(-1, 1, 1, 1)
    last: _Sweep | None = None
    for _ in range(sweeps + 1):
        shift = change.clone().requires_grad_()
        coded = code(shift)
        x_hat = image(coded.y_hat)
        distortion = costs(x_hat)
        if curvature is None:
            curvature = curvature_scale * _diagonal(x_hat, shift, generator)
        gradient = _gradient_of_others(coded, distortion, shift)
        with torch.no_grad():
            bits = -torch.log2(coded.likelihoods["y"])
            loss = coded.bits() + distortion.flatten(1).sum(1)
            best = torch.where((loss < best_loss).view(-1, 1, 1, 1), change, best)
            best_loss = torch.minimum(loss, best_loss)
            here = bits.sum(1, keepdim=True) + distortion
            if last is not None:
                failed = apart & (last.step != 0).any(1, keepdim=True) & (_around(here - last.here) >= 0)
                change = torch.where(failed, change - last.step, change)
                here = torch.where(_around(failed.float()) > 0, last.here, here)
                apart = apart | (last.loss - loss < last.promised / 2).view(-1, 1, 1, 1)
            gain, direction = _promised_gain(coded, bits, gradient, curvature)
            gain = gain.masked_fill(closed, 0.0)
            most = gain.amax(1, keepdim=True)
            chosen = (gain > 0) & (gain >= torch.where(apart, F.max_pool2d(most, 3, 1, 1), most))
            step = torch.where(chosen, direction, 0.0)
            last = _Sweep(loss, here, step, torch.where(chosen, gain, 0.0).flatten(1).sum(1))
            closed = closed | chosen
            change = change + step
            if torch.equal(change, shift):
                break
    with torch.no_grad():
        return code(best).grid


@dataclass(frozen=True)
class _Sweep:
    """Loss, (B,), and that at each position, (B, 1, h, w), before its changes of y; their promise, (B,)."""

    loss: Tensor
    here: Tensor
    step: Tensor
    promised: Tensor


def _around(values: Tensor) -> Tensor:
    """Sums over each position and its eight neighbours."""
    return F.avg_pool2d(values, 3, 1, 1, divisor_override=1)


def _gradient_of_others(coded: Coded, distortion: Tensor, shift: Tensor) -> Tensor:
    """Gradient by the symbols of y of distortion and bits, without each symbol's own bits."""
    (gradient,) = torch.autograd.grad(coded.bits().sum() + distortion.sum(), shift, retain_graph=True)
    move = torch.zeros_like(shift, requires_grad=True)
    (own,) = torch.autograd.grad(-torch.log2(coded.moved(move)).sum(), move)
    return gradient - own


def _diagonal(x_hat: Tensor, shift: Tensor, generator: torch.Generator) -> Tensor:
    """(J'J)_ii of x_hat by shift, at least its mean over each channel; shape of shift."""
    total = torch.zeros_like(shift)
    for _ in range(PROBES):
        signs = torch.randint(0, 2, x_hat.shape[1:], generator=generator, device=x_hat.device) * 2.0 - 1
        (product,) = torch.autograd.grad(x_hat, shift, signs.expand_as(x_hat), retain_graph=True)
        total += product.square() / PROBES
    return torch.maximum(total, total.mean((2, 3), keepdim=True))


def _promised_gain(coded: Coded, bits: Tensor, gradient: Tensor, curvature: Tensor) -> tuple[Tensor, Tensor]:
    """(fall of the loss by the better of +1 and -1, that direction), shape of y."""
    up, down = (
        -torch.log2(coded.moved(direction)) - bits + direction * gradient + curvature / 2
        for direction in (1.0, -1.0)
    )
    return -torch.minimum(up, down), torch.where(up < down, 1.0, -1.0)
