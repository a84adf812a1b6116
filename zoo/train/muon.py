# SPDX-License-Identifier: Apache-2.0
"""Muon on the convolution kernels of a model and Adam on everything else, as one optimiser.

Muon (Jordan et al. 2024; `torch.optim.Muon`, PyTorch 2.9 or later) orthogonalises the momentum of a
matrix. A kernel is taken as the matrix (first dimension, all the rest). `torch.optim.Muon` takes
matrices only, so each kernel gets a second parameter that is a matrix over the same memory: a step
on it is a step on the model.

In:  a model in channels-last memory (``model.to(memory_format=torch.channels_last)``) whose
     gradients are there when `step` is called. `quantiles` of entropy bottlenecks are frozen:
     training finds them by bisection.
Fails with ``ValueError`` when a kernel's memory cannot be seen as a matrix.

Masked convolutions go to Adam: CompressAI's replace their weight's memory in every forward pass
(``weight.data = weight.data * mask``), so a second view of it would no longer be the weight; and
Muon would mix the gradients of masked taps into the others.
"""

from __future__ import annotations

from typing import Any

import torch
from compressai.layers import MaskedConv2d
from torch import Tensor, nn

__all__ = ["MuonAdam"]


def _as_matrix(kernel: Tensor) -> Tensor:
    """(O, I, h, w) in channels-last memory as a matrix (O, h*w*I), without a copy."""
    return kernel.permute(0, 2, 3, 1).flatten(1)


def _split(model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Kernels for Muon, and the parameters for Adam; freezes the quantiles."""
    masked = {id(m.weight) for m in model.modules() if isinstance(m, MaskedConv2d)}
    kernels, rest = [], []
    for name, parameter in model.named_parameters():
        if name.endswith("quantiles"):
            parameter.requires_grad_(False)
        elif parameter.ndim == 4 and id(parameter) not in masked:
            kernels.append(parameter)
        else:
            rest.append(parameter)
    return kernels, rest


class MuonAdam:
    """`step`, `set_factor` (of both learning rates) and the state of the two optimisers.

    Args:
        model: in channels-last memory, on its device.
        muon_lr: for the kernels, in units of Adam's (updates are scaled to the same size).
        adam_lr: for the rest.
    """

    def __init__(self, model: nn.Module, muon_lr: float, adam_lr: float):
        self.kernels, rest = _split(model)
        matrices = [nn.Parameter(_as_matrix(kernel.data)) for kernel in self.kernels]
        for kernel, matrix in zip(self.kernels, matrices, strict=True):
            if kernel.data_ptr() != matrix.data_ptr():
                raise ValueError(
                    f"a kernel of shape {tuple(kernel.shape)} is not in channels-last memory; call "
                    "model.to(memory_format=torch.channels_last) first"
                )
        self.matrices = matrices
        self.muon = torch.optim.Muon(matrices, lr=muon_lr, weight_decay=0.0, adjust_lr_fn="match_rms_adamw")
        self.adam = torch.optim.Adam(rest, lr=adam_lr)
        self.base_lrs = (muon_lr, adam_lr)

    def set_factor(self, factor: float) -> None:
        """Learning rates are `factor` times those given at the start."""
        for optimizer, base in zip((self.muon, self.adam), self.base_lrs, strict=True):
            optimizer.param_groups[0]["lr"] = base * factor

    def step(self) -> None:
        for kernel, matrix in zip(self.kernels, self.matrices, strict=True):
            matrix.grad = None if kernel.grad is None else _as_matrix(kernel.grad)
        self.muon.step()
        self.adam.step()

    def state_dict(self) -> dict[str, Any]:
        return {"muon": self.muon.state_dict(), "adam": self.adam.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.muon.load_state_dict(state["muon"])
        self.adam.load_state_dict(state["adam"])
