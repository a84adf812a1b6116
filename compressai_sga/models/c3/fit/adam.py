# SPDX-License-Identifier: Apache-2.0
"""Adam (Kingma & Ba 2015) for B fits at once, each with its own learning rate.

torch.optim.Adam has one rate for a whole tensor. Here the first dimension is the image, and an image whose
fit has stalled gets a smaller rate than the others. With equal rates the results are the same as torch's.

With `kernels`, the same is done in C++ in one pass over the memory.

In:  parameters (B, ...) with gradients; rates. Out: parameters, updated in place.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from .. import native

__all__ = ["Adam"]


class Adam:
    """Adam (Kingma & Ba 2015) with a learning rate for each image, the first dimension of all tensors.

    Args:
        parameters: updated in place; all with the same number of images.
        betas: decay of the two moments.
        kernels: one of `native.KERNELS`, for parameters on the CPU; PyTorch by default.
    """

    def __init__(
        self, parameters: list[Tensor], betas: tuple[float, float], kernels: str | None = None
    ) -> None:
        self.parameters, self.betas, self.kernels, self.count = parameters, betas, kernels, 0
        self.moments = [(torch.zeros_like(p), torch.zeros_like(p)) for p in parameters]

    @property
    def state(self) -> list[Tensor]:
        """All tensors that change beside the parameters."""
        return [moment for pair in self.moments for moment in pair]

    @torch.no_grad()
    def step(self, rate: Tensor | float) -> None:
        """One update; `rate` is a number or (B,)."""
        self.count += 1
        first, second = self.betas
        correction = math.sqrt(1 - second**self.count)
        # A number stays on the CPU: a copy to a GPU would wait for it.
        rate = torch.as_tensor(rate) * correction / (1 - first**self.count)
        for parameter, (mean, square) in zip(self.parameters, self.moments):
            gradient = parameter.grad
            if self.kernels is not None:
                rates = rate.expand(len(parameter)).tolist()
                for *arrays, each in zip(*_arrays(parameter, gradient, mean, square), rates):
                    native.adam(*arrays, (1 - first, 1 - second, each, 1e-8 * correction), self.kernels)
                continue
            mean.lerp_(gradient, 1 - first)
            square.mul_(second).addcmul_(gradient, gradient, value=1 - second)
            change = mean / (square.sqrt() + 1e-8 * correction)
            parameter.sub_(change * (rate.reshape(-1, *[1] * (parameter.ndim - 1)) if rate.ndim else rate))


def _arrays(*tensors: Tensor) -> list[np.ndarray]:
    """The same memory; a gradient's may have to be put in order."""
    return [tensor.detach().contiguous().numpy() for tensor in tensors]
