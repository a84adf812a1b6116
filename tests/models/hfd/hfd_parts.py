# SPDX-License-Identifier: Apache-2.0
"""Small parts for the tests of HFD: random first stages, a random network, a Gaussian one, images."""

from __future__ import annotations

import torch
from compressai.registry import MODELS
from torch import Tensor, nn

from compressai_sga.diffusion.gaussian import DiagonalGaussian
from compressai_sga.diffusion.schedules import alpha_sigma
from compressai_sga.diffusion.unet import UNetConfig
from compressai_sga.models.hfd import HFD, ResidualDenoiser

TAUS = (0.05, 0.02)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(count: int = 1, height: int = 64, width: int = 64, seed: int = 3) -> Tensor:
    """Smooth pictures (count, 3, height, width) within [0.1, 0.9]."""
    coarse = torch.rand(count, 3, height // 16 + 2, width // 16 + 2, generator=generator(seed))
    return 0.1 + 0.8 * nn.functional.interpolate(coarse, (height, width), mode="bilinear")


def first_stage(name: str = "bmshj2018-factorized", *, seed: int = 1) -> nn.Module:
    """A random model whose latents round to more than zero and whose images are greyish, with tables."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = MODELS[name](*((16, 160) if name.startswith("elic") else (16, 24))).eval()
    kinds = (nn.Conv2d, nn.ConvTranspose2d)
    ends = [
        [part for part in side.modules() if isinstance(part, kinds)][-1] for side in (model.g_a, model.g_s)
    ]
    with torch.no_grad():
        ends[0].weight *= 20
        ends[1].weight *= 3
        ends[1].bias.fill_(0.5)
    model.update()
    return model


def random_network(*, seed: int = 2) -> ResidualDenoiser:
    """A network of two qualities, 1 and 3, without the zeros that training starts from."""
    config = UNetConfig(in_channels=6, widths=(8, 16), blocks=1, labels=2, groups=4)
    network, drawing = ResidualDenoiser(config, (1, 3), TAUS, "random").eval(), generator(seed)
    with torch.no_grad():
        for parameter in network.unet.parameters():
            drawn = torch.randn(parameter.shape, generator=drawing)
            parameter.copy_(drawn * (0.15 if parameter.dim() > 1 else 0.3))
    return network


class GaussianNetwork(nn.Module):
    """Knows that r is N(mean, variance) at every pixel, and says so as v."""

    multiple = 4

    def __init__(self, variance: float, mean: float = 0.0, tau: float = 0.02) -> None:
        super().__init__()
        self.register_buffer("deviations", torch.tensor([tau]))
        self.source = DiagonalGaussian(mean, variance)

    def label_of(self, quality: int) -> int:
        return 0

    def forward(self, z: Tensor, log_snr: Tensor, x_first: Tensor, label: Tensor) -> Tensor:
        alpha, sigma = alpha_sigma(log_snr, z)
        return (alpha * z - self.source(z, log_snr)) / sigma


def hfd(name: str = "bmshj2018-factorized", **knobs) -> HFD:
    """A random model that is quick: 4 steps, windows of 48 px."""
    quick = {"quality": 1, "steps": 4, "window": 48, "overlap": 16, "batch": 3, "progress": False}
    return HFD(first_stage(name), random_network(), **(quick | knobs)).eval()
