# SPDX-License-Identifier: Apache-2.0
"""The rate-distortion loss of the real bitstream, and an estimate of a model's training trade-off.

    loss = bpp + lmbda * 255^2 * MSE            (metric "mse")
    loss = bpp + lmbda * (1 - MS-SSIM)          (metric "ms-ssim")

per image, as in CompressAI's ``RateDistortionLoss``. The rate in bpp and the distortion are those of the
image without its padding, and x_hat is clamped to [0, 1] as the decoder clamps it. The PSNR is that of the
float image (stock `eval_model` rounds to 8 bits first).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields

import torch
from compressai.entropy_models import EntropyBottleneck, GaussianConditional
from pytorch_msssim import ms_ssim
from torch import Tensor

from ..typing import Distortion
from .latents import LatentAdapter, Latents

__all__ = [
    "RateDistortion",
    "distortion",
    "estimate_lmbda",
]


@dataclass(frozen=True)
class RateDistortion:
    """Measured results, one value an image: tensors of shape (B,).

    Attributes:
        bpp: bits a pixel, from the length of the strings.
        mse: of x_hat against x in [0, 1], padding left out.
        psnr_db: -10 log10(mse).
        loss: bpp plus the weighted distortion, see the module.
    """

    bpp: Tensor
    mse: Tensor
    psnr_db: Tensor
    loss: Tensor

    @classmethod
    def measure(
        cls, x: Tensor, x_hat: Tensor, bits: Tensor, lmbda: float, metric: Distortion
    ) -> RateDistortion:
        """From images (B, 3, H, W) without padding and the bits of each, shape (B,)."""
        bpp = bits / (x.shape[2] * x.shape[3])
        mse = (x - x_hat).pow(2).flatten(1).mean(1)
        loss = bpp + lmbda * distortion(x, x_hat, metric)
        return cls(bpp, mse, -10 * torch.log10(mse), loss)

    def of(self, index: int) -> RateDistortion:
        """That of one image, as of a batch of one."""
        return RateDistortion(*(getattr(self, field.name)[index : index + 1] for field in fields(self)))


def distortion(x: Tensor, x_hat: Tensor, metric: Distortion) -> Tensor:
    """255^2 MSE or 1 - MS-SSIM of the clamped x_hat, shape (B,)."""
    x_hat = x_hat.clamp(0, 1)
    if metric == "mse":
        return (x - x_hat).pow(2).flatten(1).mean(1) * 255**2
    return 1 - ms_ssim(x, x_hat, data_range=1.0, size_average=False)


def estimate_lmbda(
    adapter: LatentAdapter,
    latents: Latents,
    x: Tensor,
    crop: tuple[slice, slice],
    metric: Distortion,
    generator: torch.Generator,
    samples: int = 4,
) -> float:
    """The trade-off lmbda for which the model's quantisation step of y is optimal.

    Joint training of encoder, decoder and entropy model could have scaled y, its prior and the decoder's
    input by a common s, which only changes the quantiser's step to 1/s. At the end of training
    d/ds (R + lmbda D) = 0, so lmbda = -R'/D' at s = 1. R' is computed with uniform noise for the rounding, as
    in training, D' with the actual rounding error. Both depend more on the quantisation than on how well the
    encoder does on this image. For models that are not trained to the end the estimate is too small; see
    `lmbda.nearest_published`.

    Raises:
        ValueError: rate and distortion do not oppose each other, as in an untrained model.
    """
    pixels = x.shape[2] * x.shape[3]
    s = torch.ones((), device=x.device, requires_grad=True)

    def noisy(v: Tensor, name: str) -> Tensor:
        noise = torch.rand(v.shape, generator=generator, device=v.device) - 0.5
        return v + (noise / s if name == "y" else noise)

    def rounded(v: Tensor, name: str) -> Tensor:
        error = (torch.round(v) - v).detach()
        return v + (error / s if name == "y" else error)

    rate_slope = 0.0
    with _quantised_with_step(adapter, 1 / s):
        for _ in range(samples):
            rate = adapter.code(latents, noisy).bits().sum() / pixels
            rate_slope += torch.autograd.grad(rate, s, retain_graph=True)[0].item() / samples
    adapter.reset()
    x_hat = adapter.synthesise(adapter.code(latents, rounded).y_hat)[..., crop[0], crop[1]]
    cost = distortion(x, x_hat, metric).sum()
    distortion_slope = torch.autograd.grad(cost, s)[0].item()
    adapter.reset()
    if not (rate_slope > 0 > distortion_slope):
        raise ValueError(
            "the model's rate-distortion trade-off could not be found from its quantisation noise (is "
            "it trained?); name it: lmbda=0.013, or --refine-lmbda 0.013"
        )
    return -rate_slope / distortion_slope


@contextmanager
def _quantised_with_step(adapter: LatentAdapter, step: Tensor) -> Iterator[None]:
    """A context in which symbols of y have the probability of an interval of width `step`."""
    patched = []
    for module in adapter.model.modules():
        if isinstance(module, GaussianConditional):

            def likelihood(v, scales, module=module):
                return type(module)._likelihood(module, v / step, scales / step)

        elif isinstance(module, EntropyBottleneck) and "z" not in adapter.sources:

            def likelihood(v, module=module):
                lower = module._logits_cumulative(v - step / 2, stop_gradient=False)
                upper = module._logits_cumulative(v + step / 2, stop_gradient=False)
                return torch.sigmoid(upper) - torch.sigmoid(lower), lower, upper

        else:
            continue
        module._likelihood = likelihood
        patched.append(module)
    try:
        yield
    finally:
        for module in patched:
            del module._likelihood
