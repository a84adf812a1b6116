# SPDX-License-Identifier: Apache-2.0
"""The last part of a fit, with rounded latents: each image's best result so far and its learning rate.

As in C3 (Kim et al. 2024, section 3.1, "stage 2"): an image whose loss has not improved for some steps goes
back to its best state, including the optimiser's, and continues from there at a smaller rate.

In:  the tensors that change, with the image as first dimension; losses (B,). Out: the same tensors, restored
     for images that went back.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

__all__ = ["Stage2"]


class Stage2:
    """See the file's head.

    Args:
        moving: parameters and the optimisers' tensors, changed in place by whoever optimises.
        batch: number of images.
        rate: learning rate of all images at first.
    """

    def __init__(self, moving: list[Tensor], batch: int, rate: float) -> None:
        self.moving, device = moving, moving[0].device
        self.rate = torch.full((batch,), rate, device=device)
        self.loss = torch.full((batch,), math.inf, device=device)
        self.waited = torch.zeros(batch, device=device)
        self.best = [tensor.clone() for tensor in moving]

    def keep_best(self, loss: Tensor) -> None:
        """Called before an update, when the tensors are those of the loss (B,)."""
        better = loss < self.loss
        self.loss = torch.where(better, loss, self.loss)
        self.waited = torch.where(better, 0.0, self.waited + 1)
        _copy_where(better, self.moving, self.best)

    def decay(self, factor: float, patience: int) -> None:
        """Images without an improvement for long enough go back to their best state, at a smaller rate."""
        tired = self.waited >= patience
        self.rate = torch.where(tired, self.rate * factor, self.rate)
        self.waited = torch.where(tired, 0.0, self.waited)
        _copy_where(tired, self.best, self.moving)

    def take_best(self) -> None:
        """Restores the best state of every image."""
        _copy_where(torch.ones_like(self.loss, dtype=torch.bool), self.best, self.moving)

    def state_dict(self) -> dict[str, Any]:
        """All that changes."""
        found = {name: getattr(self, name).clone() for name in ("rate", "loss", "waited")}
        return {**found, "best": [tensor.clone() for tensor in self.best]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where `state_dict` was taken."""
        for name in ("rate", "loss", "waited"):
            setattr(self, name, state[name].clone())
        self.best = [tensor.clone() for tensor in state["best"]]


@torch.no_grad()
def _copy_where(chosen: Tensor, source: list[Tensor], target: list[Tensor]) -> None:
    """Copy the chosen images' tensors."""
    for a, b in zip(source, target):
        b.copy_(torch.where(chosen.reshape(-1, *[1] * (a.ndim - 1)), a, b))
