# SPDX-License-Identifier: Apache-2.0
"""Muon on the convolution kernels of a model and Adam on everything else, as one optimiser.

Muon (Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks") replaces the momentum
of a matrix by the nearest matrix with orthonormal rows, found by five Newton-Schulz steps. A kernel becomes
the matrix (first dimension, all the rest). It is cut into blocks of at most 64 rows, and each block is made
orthonormal by itself. This is cheaper, because the cost of a product falls with the rows: a whole kernel of
384 rows would cost as much as the rest of a training step. Blocks of equal shape, also of different kernels,
go through one batched product.

In:  a model in channels-last memory (``model.to(memory_format=torch.channels_last)``) whose gradients are
     there when `step` is called. `quantiles` of entropy bottlenecks are frozen: training finds them by
     bisection.
Out: the model's parameters, changed in place. The caller must skip a step whose gradient is not finite.

Masked convolutions go to Adam: Muon would mix the gradients of masked taps into the others.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from compressai.layers import CheckerboardMaskedConv2d, MaskedConv2d
from torch import Tensor, nn

__all__ = ["BLOCK_ROWS", "MuonAdam", "orthonormal_rows"]

BLOCK_ROWS = 64
MOMENTUM = 0.95
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # Jordan et al.: the steepest at 0 that keeps [0, 1] near 1
ITERATIONS = 5
LEAST_NORM = 1e-12  # below, squares underflow: a kernel without gradients keeps still instead of exploding
RMS = 0.2  # of an update of learning rate 1, as large as one of Adam (Liu et al. 2025, "Muon is scalable")


def orthonormal_rows(matrices: Tensor) -> Tensor:
    """Approximately the nearest matrices with orthonormal rows (or columns, if fewer), shape (n, r, c).

    Every Newton-Schulz step multiplies X by a polynomial of X X^T. All of these commute, so the steps run on
    the small square matrix in float32, and X is multiplied once, in bf16. The singular values of the result
    lie between about 0.7 and 1.2, which works as well as 1.
    """
    if matrices.shape[1] > matrices.shape[2]:
        return orthonormal_rows(matrices.mT).mT
    x = matrices / matrices.flatten(1).norm(dim=1).clamp_min(LEAST_NORM)[:, None, None]
    gram = x @ x.mT
    eye = torch.eye(x.shape[1], device=x.device, dtype=x.dtype).expand_as(gram)
    product = eye
    a, b, c = NEWTON_SCHULZ
    for _ in range(ITERATIONS):
        factor = torch.baddbmm(a * eye + b * gram, gram, gram, alpha=c)
        product = factor @ product
        gram = factor @ gram @ factor
    return product.bfloat16() @ x.bfloat16()


def _split(model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Kernels for Muon, and the parameters for Adam; freezes the quantiles."""
    masked = {
        id(m.weight) for m in model.modules() if isinstance(m, (MaskedConv2d, CheckerboardMaskedConv2d))
    }
    kernels, rest = [], []
    for name, parameter in model.named_parameters():
        if name.endswith("quantiles"):
            parameter.requires_grad_(False)
        elif parameter.ndim == 4 and id(parameter) not in masked:
            kernels.append(parameter)
        else:
            rest.append(parameter)
    return kernels, rest


def _blocks(kernel: Tensor) -> list[Tensor]:
    """(O, I, h, w) as matrices (at most 64, h*w*I), views where the memory is channels-last."""
    return list(kernel.permute(0, 2, 3, 1).flatten(1).split(BLOCK_ROWS))


class MuonAdam:
    """`step`, `set_factor` (of both learning rates) and the state of the two optimisers.

    Args:
        model: in channels-last memory, on its device.
        muon_lr: for the kernels, in units of Adam's (updates are scaled to the same size).
        adam_lr: for the rest.
        weight_decay: of the kernels; a step subtracts its product with `muon_lr`. Without it kernels would
            grow without limit where the gradient is only noise, because updates have the same size there.
    """

    def __init__(self, model: nn.Module, muon_lr: float, adam_lr: float, weight_decay: float = 0.0):
        self.kernels, rest = _split(model)
        for kernel in self.kernels:
            if not kernel.is_contiguous(memory_format=torch.channels_last):
                raise ValueError(
                    f"a kernel of shape {tuple(kernel.shape)} is not in channels-last memory; call "
                    "model.to(memory_format=torch.channels_last) first"
                )
        self.momenta = [torch.zeros_like(kernel) for kernel in self.kernels]
        self.groups: dict[tuple[int, ...], list[tuple[int, int]]] = {}
        for index, kernel in enumerate(self.kernels):
            for part, block in enumerate(_blocks(kernel)):
                self.groups.setdefault(tuple(block.shape), []).append((index, part))
        self.adam = torch.optim.Adam(rest, lr=adam_lr)
        self.base_lrs = (muon_lr, adam_lr)
        self.weight_decay = weight_decay
        self.set_factor(1.0)

    def set_factor(self, factor: float) -> None:
        """Set the learning rates to `factor` times those given at the start."""
        self.muon_lr = self.base_lrs[0] * factor
        self.adam.param_groups[0]["lr"] = self.base_lrs[1] * factor

    @torch.no_grad()
    def step(self) -> None:
        """Nesterov's momentum, made orthonormal block by block, on the kernels; Adam on the rest."""
        grads = [torch.zeros_like(k) if k.grad is None else k.grad for k in self.kernels]
        torch._foreach_lerp_(self.momenta, grads, 1 - MOMENTUM)
        ahead = torch._foreach_lerp(grads, self.momenta, MOMENTUM)
        blocks = [_blocks(kernel) for kernel in ahead]
        torch._foreach_mul_([kernel.data for kernel in self.kernels], 1 - self.muon_lr * self.weight_decay)
        targets = [_blocks(kernel.data) for kernel in self.kernels]
        for shape, members in self.groups.items():
            updates = orthonormal_rows(torch.stack([blocks[i][part] for i, part in members]))
            scale = self.muon_lr * RMS * math.sqrt(max(shape))
            for (i, part), update in zip(members, updates, strict=True):
                targets[i][part].sub_(update, alpha=scale)
        self.adam.step()

    def state_dict(self) -> dict[str, Any]:
        return {"momenta": self.momenta, "adam": self.adam.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for mine, theirs in zip(self.momenta, state["momenta"], strict=True):
            mine.copy_(theirs)
        self.adam.load_state_dict(state["adam"])
