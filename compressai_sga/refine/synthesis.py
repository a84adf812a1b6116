# SPDX-License-Identifier: Apache-2.0
"""A fast frozen copy of a synthesis transform (`LatentAdapter.synthesis`), for the refinement loop alone.

In:  y_hat (B, C, h, w) with gradient. Out: the image (B, 3, H, W), unclamped, float32.

The loop runs it forward and backward hundreds of times with weights that never change. So the copy is
channels-last, its GDN layers compute their constrained parameters once, and it runs under bfloat16 autocast
where the hardware multiplies bfloat16 fast. Entropy models, hard evaluations and the bitstream do not use
this copy: they use the model's own modules in the model's own precision.
"""

from __future__ import annotations

import itertools
from typing import Literal

import torch
import torch.nn.functional as F
from compressai.layers import GDN
from torch import Tensor, nn

from ..copies import copied

__all__ = ["FastSynthesis", "Precision", "bfloat16_is_fast"]

# Rounding to bfloat16 adds about 3e-6 to the MSE of an image in [0, 1] at any quality; images that are
# better than this (38 dB) are refined in float32, so that it stays below 2 % of the error.
BFLOAT16_MSE = 1.6e-4

Precision = Literal["auto", "float32", "bfloat16"]


def bfloat16_is_fast(device: torch.device) -> bool:
    """Whether the device has native bfloat16 matrix products."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        capabilities = getattr(torch.cpu, "get_capabilities", dict)()  # torch >= 2.9
        return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
    return False


class FrozenGDN(nn.Module):
    """GDN with beta and gamma already constrained: y = x (beta + gamma x^2)^(-1/2), or its inverse."""

    def __init__(self, gdn: GDN):
        super().__init__()
        channels = gdn.beta.numel()
        gamma = gdn.gamma_reparam(gdn.gamma).detach().reshape(channels, channels, 1, 1)
        self.register_buffer("beta", gdn.beta_reparam(gdn.beta).detach().clone())
        self.register_buffer("gamma", gamma.clone())
        self.inverse = bool(gdn.inverse)

    def forward(self, x: Tensor) -> Tensor:
        norm = F.conv2d(x * x, self.gamma, self.beta)
        return x * (norm.sqrt() if self.inverse else norm.rsqrt())


def _freeze_gdn(module: nn.Module) -> None:
    for name, child in module.named_children():
        if type(child) is GDN:
            setattr(module, name, FrozenGDN(child))
        else:
            _freeze_gdn(child)


class FastSynthesis:
    """Callable copy of a transform; see the module.

    Args:
        synthesis: the model's, y_hat -> x_hat; not changed.
        precision: "auto" takes bfloat16 where it is fast, for images whose PSNR is not too high for it.
        mse: of the unrefined images in [0, 1], (B,).

    Attributes:
        bfloat16: for each image, whether it is computed in bfloat16; the others of a batch do not matter.
    """

    def __init__(self, synthesis: nn.Module, precision: Precision, mse: Tensor):
        self.device = mse.device
        fast = precision == "auto" and bfloat16_is_fast(self.device)
        self.bfloat16 = [precision == "bfloat16" or (fast and error > BFLOAT16_MSE) for error in mse.tolist()]
        wrapped = nn.ModuleDict({"synthesis": copied(synthesis)})
        _freeze_gdn(wrapped)
        self.network = wrapped["synthesis"].requires_grad_(False)
        self.network = self.network.to(memory_format=torch.channels_last)
        runs = [(bfloat16, len(list(run))) for bfloat16, run in itertools.groupby(self.bfloat16)]
        self.kinds, self.lengths = zip(*runs)

    def __call__(self, y_hat: Tensor) -> Tensor:
        y_hat = y_hat.contiguous(memory_format=torch.channels_last)
        images = [self._run(part, kind) for part, kind in zip(y_hat.split(self.lengths), self.kinds)]
        return images[0] if len(images) == 1 else torch.cat(images)

    def _run(self, y_hat: Tensor, bfloat16: bool) -> Tensor:
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=bfloat16):
            return self.network(y_hat).float()
