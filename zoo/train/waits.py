# SPDX-License-Identifier: Apache-2.0
"""Training without needless waits for a GPU, which is idle while the CPU waits for it.

`send`: a copy from ordinary memory waits until the GPU has done all that was asked of it before. From pinned
memory it takes its turn, while the CPU prepares the next batch.

`keep_axes_on_cpu`: CompressAI's EntropyBottleneck keeps the order of its axes on the GPU and reads it back 13
times in a forward pass.
"""

from __future__ import annotations

from types import MethodType

import torch
from compressai.entropy_models import EntropyBottleneck
from torch import Tensor, nn

__all__ = ["keep_axes_on_cpu", "send"]


def send(*tensors: Tensor, device: torch.device) -> tuple[Tensor, ...]:
    """Tensors of the CPU on the device; on a CPU the tensors themselves."""
    if device.type != "cuda":
        return tensors
    return tuple(tensor.pin_memory().to(device, non_blocking=True) for tensor in tensors)


def keep_axes_on_cpu(model: nn.Module) -> None:
    """Gives the entropy bottlenecks of stock's class in a model a forward pass with the same numbers."""
    for module in model.modules():
        if type(module).forward is EntropyBottleneck.forward:
            module.forward = MethodType(_forward, module)


def _forward(self: EntropyBottleneck, x: Tensor, training: bool | None = None) -> tuple[Tensor, Tensor]:
    training = self.training if training is None else training
    values = x.transpose(0, 1).contiguous()
    mode = "noise" if training else "dequantize"
    outputs = self.quantize(values.flatten(1)[:, None], mode, self._get_medians())
    likelihood, _, _ = self._likelihood(outputs)
    if self.use_likelihood_bound:
        likelihood = self.likelihood_lower_bound(likelihood)
    found = (t.reshape(values.shape).transpose(0, 1).contiguous() for t in (outputs, likelihood))
    return tuple(found)
