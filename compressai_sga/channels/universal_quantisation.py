# SPDX-License-Identifier: Apache-2.0
"""Universal (dithered) quantisation: rounding that behaves like additive uniform noise.

Ziv 1985; Agustsson & Theis, "Universally quantized neural compression", 2020. Encoder and decoder
share u ~ U[-1/2, 1/2). With lattice step D the encoder sends the integer K and the decoder adds u:

    K = round(y / D - u),   y_hat = (K + u) D,   given y, y_hat is distributed as y + D U,

and the rate is H[K | u] = h(y + D U) - log2 D bits. So the codec does exactly what training with uniform
noise optimises. Soft rounding s_T moves y towards the integers before the channel, and the conditional mean
r_T(v) = E[y | s_T(y) + U = v], for a locally uniform y, undoes it afterwards:

    K = round(s_T(y / D) - u),   y_hat = r_T(K + u) D = (K + r_T(u)) D,
    r_T(v) = s_T^-1(v - 1/2) + 1/2.

The remaining dither, r_T(u), shrinks with the temperature T = 1 / alpha: T = inf is universal quantisation,
T = 0 hard rounding. So at every temperature, if y has the distribution function F, the entropy model of K is
P(K = k | u) = F((k + r_T(u) + 1/2) D) - F((k + r_T(u) - 1/2) D).

In:  real tensors; a step > 0, a number or a tensor that broadcasts (one for each channel); dither of
     the same shape, from `dither` (shared, channels/prng.py) or from anywhere.
Out: integers as floats, or reconstructions, of the input's shape.
Fails with ``ValueError`` for a step that is not positive or a negative temperature.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..relaxations import TINY_TEMPERATURE, soft_round
from . import prng

__all__ = [
    "conditional_mean",
    "dequantise",
    "dither",
    "noisy",
    "quantise",
    "soft_round_inverse",
]

_LINEAR_TEMPERATURE = 1e3  # from here on soft rounding is the identity


def soft_round_inverse(v: Tensor, temperature: float) -> Tensor:
    """s_T^-1(v) = m + T atanh(2 t (v - m)), m = floor(v) + 1/2, t = tanh(1 / (2 T)).

    Written with 1 - 2 |v - m| and 1 - t, which keep their digits where atanh has its pole; T = 0 gives
    the half-integer m, from which every v between two integers comes.
    """
    _check_temperature(temperature)
    if temperature > _LINEAR_TEMPERATURE:
        return v
    middle = v.detach().floor() + 0.5
    if temperature < TINY_TEMPERATURE:
        return middle + 0 * v
    offset = v - middle
    size = 2 * offset.abs()
    one_minus_t = 2 / (math.exp(min(1 / temperature, 700.0)) + 1)
    rest = ((1 - size) + size * one_minus_t).clamp_min(torch.finfo(v.dtype).tiny)
    inverse = 0.5 * temperature * (torch.log1p(size * (1 - one_minus_t)) - torch.log(rest))
    return middle + torch.copysign(inverse.clamp_max(0.5), offset)


def conditional_mean(v: Tensor, temperature: float) -> Tensor:
    """r_T(v) = E[y | s_T(y) + U = v] for a locally uniform y: s_T^-1(v - 1/2) + 1/2.

    Agustsson & Theis 2020, section 4. T -> infinity is the identity, T -> 0 rounds.
    """
    return soft_round_inverse(v - 0.5, temperature) + 0.5


def dither(
    seed: int,
    shape: tuple[int, ...],
    *,
    step: int = 0,
    block: int = 0,
    device: torch.device | str | None = None,
) -> Tensor:
    """Shared uniform noise on [-1/2, 1/2), the same at encoder and decoder.

    Args:
        seed: in [0, 2^64).
        shape: of the latent of one image, at most 2^26 elements.
        step, block: address of this latent, so that several have independent dither.
        device: of the result.

    Returns:
        float64, `shape`; multiples of 2^-33, so that no machine rounds it differently.
    """
    lanes = math.prod(shape)
    drawn = prng.uniform(seed, lanes=lanes, step=step, block=block, purpose="dither", device=device)
    return (drawn - 0.5).reshape(shape)


def quantise(y: Tensor, u: Tensor, step: float | Tensor = 1.0, temperature: float = math.inf) -> Tensor:
    """The integers K = round(s_T(y / D) - u) that are sent.

    Args:
        y: any shape.
        u: dither in [-1/2, 1/2), shape of y.
        step: D > 0, a number or a tensor that broadcasts to y.
        temperature: of soft rounding; infinite without, 0 for hard rounding.
    """
    y = _floating(y, u)
    return torch.floor(_soften(y / _positive(step, y), temperature) - u + 0.5)


def dequantise(k: Tensor, u: Tensor, step: float | Tensor = 1.0, temperature: float = math.inf) -> Tensor:
    """The reconstruction y_hat = (K + r_T(u)) D; arguments as `quantise`."""
    k = _floating(k, u)
    return (k + conditional_mean(u, temperature)) * _positive(step, k)


def noisy(y: Tensor, u: Tensor, step: float | Tensor = 1.0, temperature: float = math.inf) -> Tensor:
    """The training output r_T(s_T(y / D) + u) D: distributed as `dequantise(quantise(y))`, with gradient.

    In the gradient, the slope of r_T is replaced by its mean over u, which is 1: at T = 0.1 single slopes
    reach 170, and training with them fails (Agustsson & Theis 2020 also integrate the noise out there).

    Args as `quantise`, except that u is fresh noise, independent of everything.
    """
    step = _positive(step, y)
    v = _soften(y / step, temperature) + u
    return (v + (conditional_mean(v.detach(), temperature) - v.detach())) * step


def _soften(v: Tensor, temperature: float) -> Tensor:
    _check_temperature(temperature)
    return v if temperature > _LINEAR_TEMPERATURE else soft_round(v, temperature)


def _check_temperature(temperature: float) -> None:
    if not temperature >= 0:
        raise ValueError(
            f"temperature is {temperature}; it must be at least 0 (hard), and math.inf is without "
            "soft rounding"
        )


def _floating(values: Tensor, u: Tensor) -> Tensor:
    """Integers converted to the dither's type, so that a non-integer step is not truncated."""
    return values if values.is_floating_point() else values.to(u.dtype)


def _positive(step: float | Tensor, like: Tensor) -> Tensor:
    tensor = torch.as_tensor(step, dtype=like.dtype, device=like.device)
    if not bool((tensor > 0).all()):
        raise ValueError(f"step has the minimum {float(tensor.min())}; every step must be positive")
    return tensor
