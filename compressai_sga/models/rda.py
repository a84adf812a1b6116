# SPDX-License-Identifier: Apache-2.0
"""Rate-distortion autoencoders: round the latent of an autoencoder, train bits + lmbda * distortion.

McAllester, TTIC 31230 "Fundamentals of Deep Learning", lecture on rate-distortion autoencoders; Balle,
Laparra and Simoncelli 2017, "End-to-end optimized image compression".

    y = g_a(x),   x_hat = g_s(y_hat),   each channel of y under its own learned density p, median m
    the file:    y_hat = floor(y - m + 1/2) + m        H = -log2 P(y_hat)          discrete
    training:    y_hat = y + u, u ~ U[-1/2, 1/2)       h = -log2 p~(y + u)         differential

P(v) is the integral of p from v - 1/2 to v + 1/2. The density p~ of y + u is p * U[-1/2, 1/2], which is the
same function: one formula, taken at two places, never negative. With u everything has gradients. Training
with u works because H is near h, and the image of rounded y as good as that of noisy y
(`eval/experiments/realism/rda.py` plots both). E h is the mean cost of dithered rounding over all dithers, H
the cost of plain rounding, which is mostly smaller.

In:  images x (B, 3, H, W), RGB in [0, 1], sides multiples of 16; a model with g_a, g_s and an
     `entropy_bottleneck` over y: those here, or CompressAI's FactorizedPrior.
Out: classes that can be used like CompressAI's own, one for each distortion; bits and distortions (B,).
Fails with ``UnsupportedModelError`` where y has no bottleneck of its own, ``ValueError`` on an unknown
distortion.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal, get_args

import torch
from compressai.entropy_models import EntropyBottleneck
from compressai.models import FactorizedPrior
from pytorch_msssim import ms_ssim
from torch import Tensor, nn

from ..errors import UnsupportedModelError
from ..inputs import check_images, check_latents
from ..precision import full_precision

__all__ = [
    "ARCHITECTURES",
    "LMBDA",
    "LOSSES",
    "Kind",
    "L1Autoencoder",
    "MsSsimAutoencoder",
    "RateDistortionAutoencoder",
    "RoundingBottleneck",
    "differential_bits",
    "discrete_bits",
    "distortion",
    "latent_bits",
    "mse_lmbda",
    "noise_distortion",
    "round_half_up",
    "rounding_distortion",
    "with_noise",
    "with_rounding",
]

Kind = Literal["l2", "l1", "ms-ssim"]

LOSSES: dict[Kind, str] = {
    "l2": "bpp + λ·255²·MSE",
    "l1": "bpp + λ·255·MAE",
    "ms-ssim": "bpp + λ·(1 − MS-SSIM)",
}
"""What each kind is trained for, in words."""

# At equal quality all kinds shall spend about as many bits, so a step of distortion must cost as many. Let
# the errors of a model trained for MSE all grow by a factor: relatively, MSE grows twice as fast as MAE. So
# lmbda_l1 = 2 lmbda_l2 * 255 MSE / MAE; the power law below is fitted to bmshj2018-factorized-small,
# qualities 1, 3 and 5, on crops of its training images. CompressAI's two tables have a ratio near 1300.
_L1_SCALE, _L1_EXPONENT = 8.87, 0.796
_MS_SSIM_SCALE = 1300


def mse_lmbda(lmbda: float, kind: Kind) -> float:
    """CompressAI's trade-off for MSE at which a model spends about the same bits as with `lmbda` for `kind`.

    Args:
        lmbda: of the kind's own loss, see `LOSSES`.
        kind: "l2" gives `lmbda` itself, "l1" and "ms-ssim" the inverses of the rules of `LMBDA`.

    Raises:
        ValueError: another kind.
    """
    if kind == "l2":
        return lmbda
    if kind == "l1":
        return _digits((lmbda / _L1_SCALE) ** (1 / _L1_EXPONENT), 2)
    if kind == "ms-ssim":
        return _digits(lmbda / _MS_SSIM_SCALE, 2)
    raise ValueError(_unknown(kind))


def _digits(value: float, digits: int) -> float:
    return float(f"{value:.{digits}g}")


# CompressAI's published values, from one step below its quality 1: the lecture shows images near 0.12 bpp.
_L2 = (0.0009, 0.0018, 0.0035, 0.0067, 0.0130, 0.0250, 0.0483, 0.0932)
LMBDA: dict[Kind, tuple[float, ...]] = {
    "l2": _L2,
    "l1": tuple(_digits(_L1_SCALE * lmbda**_L1_EXPONENT, 3) for lmbda in _L2),
    "ms-ssim": (1.26, 2.40, 4.58, 8.73, 16.64, 31.73, 60.50, 115.37),
}
"""Trade-offs of training, qualities 1 to 8."""


# --- The models --------------------------------------------------------------------------------


def round_half_up(v: Tensor) -> Tensor:
    """floor(v + 1/2): the nearest integer, at a tie the upper one; torch.round takes the even one."""
    lower = torch.floor(v)
    return lower + (v - lower >= 0.5)  # v + 1/2 itself would be rounded: up to 1 from just below 1/2


class RoundingBottleneck(EntropyBottleneck):
    """CompressAI's bottleneck with the lecture's rounding; the same parameters, tables and strings."""

    def quantize(self, inputs: Tensor, mode: str, means: Tensor | None = None) -> Tensor:
        """As stock, except for values half-way between two symbols."""
        if mode == "noise":
            return super().quantize(inputs, mode, means)
        if mode not in ("dequantize", "symbols"):
            raise ValueError(f"quantisation mode {mode!r}; it must be noise, dequantize or symbols")
        symbols = round_half_up(inputs if means is None else inputs - means)
        if mode == "symbols":
            check_latents(symbols)
            return symbols.int()
        return symbols if means is None else symbols + means


class RateDistortionAutoencoder(FactorizedPrior):
    """Convolutions and GDN around a rounded latent: CompressAI's FactorizedPrior, trained for `distortion`.

    Args:
        N: channels of the transforms.
        M: channels of the latent.
    """

    distortion: ClassVar[Kind] = "l2"

    def __init__(self, N: int, M: int, **kwargs: Any) -> None:
        super().__init__(N, M, **kwargs)
        self.entropy_bottleneck = RoundingBottleneck(M)

    @full_precision()
    def compress(self, x: Tensor) -> dict[str, Any]:
        """As stock; raises ShapeError and InputError as `inputs.check_images`."""
        check_images(x, dtypes=(next(self.parameters()).dtype,))
        return super().compress(x)

    @full_precision()
    def decompress(self, strings: list[list[bytes]], shape: Any) -> dict[str, Tensor]:
        """As stock."""
        return super().decompress(strings, shape)


class L1Autoencoder(RateDistortionAutoencoder):
    """The same, trained for absolute errors."""

    distortion: ClassVar[Kind] = "l1"


class MsSsimAutoencoder(RateDistortionAutoencoder):
    """The same, trained for MS-SSIM."""

    distortion: ClassVar[Kind] = "ms-ssim"


ARCHITECTURES: dict[str, type[RateDistortionAutoencoder]] = {
    "rda-l2": RateDistortionAutoencoder,
    "rda-l1": L1Autoencoder,
    "rda-ms-ssim": MsSsimAutoencoder,
}
"""Names under which CompressAI knows the classes."""


# --- Rate: one formula at two places -----------------------------------------------------------


def with_noise(y: Tensor, generator: torch.Generator) -> Tensor:
    """y + u with u uniform on [-1/2, 1/2), shape (B, C, h, w): what training decodes.

    Args:
        y: real-valued latent, g_a(x).
        generator: of u, on the device of y.
    """
    return y + torch.rand(y.shape, generator=generator, device=y.device, dtype=y.dtype) - 0.5


def with_rounding(model: nn.Module, y: Tensor) -> Tensor:
    """floor(y - m + 1/2) + m, shape (B, C, h, w): what the file holds."""
    medians = _with_own_prior(model).entropy_bottleneck._get_medians().reshape(1, -1, 1, 1)
    return round_half_up(y - medians) + medians


def latent_bits(model: nn.Module, y_hat: Tensor) -> Tensor:
    """Sum of -log2 p~(y_hat) over an image's latent, shape (B,); p~ is p * U[-1/2, 1/2], see the module."""
    bottleneck = _with_own_prior(model).entropy_bottleneck
    values = y_hat.transpose(0, 1).flatten(1).unsqueeze(1)  # (C, 1, B h w)
    likelihoods = bottleneck.likelihood_lower_bound(bottleneck._likelihood(values)[0])
    return -torch.log2(likelihoods).reshape(y_hat.transpose(0, 1).shape).transpose(0, 1).flatten(1).sum(1)


def differential_bits(model: nn.Module, x: Tensor, generator: torch.Generator) -> Tensor:
    """h: code length that training sees, -log2 p~(y + u) with one draw of u, in bits an image, shape (B,).

    Args:
        model: see the module.
        x: images (B, 3, H, W) in [0, 1].
        generator: of u, on the device of x.

    Raises:
        UnsupportedModelError: the model has no density of y alone.
    """
    return latent_bits(model, with_noise(_latent(model, x), generator))


def discrete_bits(model: nn.Module, x: Tensor) -> Tensor:
    """H: ideal code length of the file, -log2 P(round(y)), in bits an image, shape (B,)."""
    return latent_bits(model, with_rounding(model, _latent(model, x)))


# --- Distortion: with noise and with rounding --------------------------------------------------


def distortion(x: Tensor, x_hat: Tensor, kind: Kind) -> Tensor:
    """255^2 MSE, 255 MAE or 1 - MS-SSIM of every image, shape (B,): the second term of `LOSSES`, without λ.

    Args:
        x, x_hat: shape (B, 3, H, W), in [0, 1]; MS-SSIM needs sides of more than 160 pixels.
        kind: "l2", "l1" or "ms-ssim".

    Raises:
        ValueError: another kind.
    """
    if kind == "l2":
        return 255**2 * (x - x_hat).square().flatten(1).mean(1)
    if kind == "l1":
        return 255 * (x - x_hat).abs().flatten(1).mean(1)
    if kind == "ms-ssim":
        return 1 - ms_ssim(x_hat, x, data_range=1.0, size_average=False)
    raise ValueError(_unknown(kind))


def noise_distortion(
    model: nn.Module, x: Tensor, generator: torch.Generator, kind: Kind | None = None
) -> Tensor:
    """Distortion of the image that the noisy latent decodes to, clamped to [0, 1], shape (B,).

    Args:
        model, x, generator: as for `differential_bits`.
        kind: None takes what the model is trained for ("l2" for a class that does not say).
    """
    x_hat = model.g_s(with_noise(_latent(model, x), generator)).clamp(0, 1)
    return distortion(x, x_hat, kind or getattr(model, "distortion", "l2"))


def rounding_distortion(model: nn.Module, x: Tensor, kind: Kind | None = None) -> Tensor:
    """Distortion of the image that the file decodes to, shape (B,); arguments as for `noise_distortion`."""
    x_hat = model.g_s(with_rounding(model, _latent(model, x))).clamp(0, 1)
    return distortion(x, x_hat, kind or getattr(model, "distortion", "l2"))


def _latent(model: nn.Module, x: Tensor) -> Tensor:
    return _with_own_prior(model).g_a(x)


def _with_own_prior(model: nn.Module) -> nn.Module:
    """The model, if its bottleneck is over y."""
    missing = [part for part in ("g_a", "g_s", "entropy_bottleneck") if not hasattr(model, part)]
    if missing or hasattr(model, "h_a"):
        why = f"has no {', '.join(missing)}" if missing else "codes y given a hyperprior, h_a"
        raise UnsupportedModelError(
            f"{type(model).__name__} {why}; take a model whose entropy bottleneck is over y, such as rda-l2 "
            "or bmshj2018-factorized"
        )
    return model


def _unknown(kind: object) -> str:
    return f"no distortion is called {kind!r}; there are {', '.join(get_args(Kind))}"
