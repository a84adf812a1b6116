# SPDX-License-Identifier: Apache-2.0
"""Small parts for the tests of DiffC: images, a random network with a cost table, a Gaussian source."""

from __future__ import annotations

import functools

import torch
from torch import Tensor, nn

from compressai_sga.diffusion.gaussian import DiagonalGaussian
from compressai_sga.diffusion.unet import UNetConfig
from compressai_sga.models.diffc import DiffC, DiffCFlow, PixelDenoiser
from compressai_sga.models.diffc.codec import Coder
from compressai_sga.models.diffc.costs import Ladder, measure_errors

WINDOW = 16


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(count: int = 1, height: int = WINDOW, width: int = WINDOW, seed: int = 3) -> Tensor:
    """Smooth pictures (count, 3, height, width) within [0, 1]."""
    coarse = torch.rand(count, 3, height // 8 + 2, width // 8 + 2, generator=generator(seed))
    return nn.functional.interpolate(coarse, (height, width), mode="bilinear")


def random_denoiser(seed: int = 2) -> PixelDenoiser:
    """A network without the zeros that training starts from, for windows of 16 px in multiples of 4."""
    net = PixelDenoiser(UNetConfig(widths=(8, 16), blocks=1, groups=4), WINDOW).eval()
    drawing = generator(seed)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(0.05 * torch.randn(parameter.shape, generator=drawing))
    return net


@functools.cache
def costs() -> Tensor:
    model = DiffC(random_denoiser())
    model.measure_costs(images(8, seed=9))
    return model.costs


def random_model(cls: type[DiffC] = DiffCFlow, **knobs: object) -> DiffC:
    """Small and fast: 4 bits of state, 4 steps to the image, 0.5 bpp."""
    knobs = {"size": 6, "steps": 4, "progress": False, "bpp": 0.5, "steps_limit": None} | knobs
    return cls(random_denoiser(), costs=costs().clone(), **knobs)


class GaussianSource:
    """Vectors in the shape of images, independent coordinates whose variances fall; and a coder for them."""

    shape = (3, 8, 8)

    def __init__(self) -> None:
        numbers = torch.arange(1, 193, dtype=torch.float64).reshape(self.shape)
        self.variance = 20 / numbers**1.2
        self.gaussian = DiagonalGaussian(0.0, self.variance)

    def draw(self, count: int, seed: int) -> Tensor:
        return self.gaussian.draw(
            torch.randn(count, *self.shape, generator=generator(seed), dtype=torch.float64)
        )

    def denoiser(self, z: Tensor, log_snr: Tensor) -> Tensor:
        """Rounded, as the codec's is."""
        return torch.round(self.gaussian(z, log_snr) * 1024) / 1024

    def coder(self, **more: object) -> Coder:
        ladder = Ladder(-8.0, 6.0, (1,) * 65)
        levels = [ladder.log_snr(i) for i in range(65)]
        errors = measure_errors(self.denoiser, self.draw(50, 1), levels, generator(2))
        return Coder(self.denoiser, Ladder(-8.0, 6.0, tuple(errors.tolist())), **more)
