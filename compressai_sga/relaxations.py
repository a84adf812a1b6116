# SPDX-License-Identifier: Apache-2.0
"""Differentiable stand-ins for rounding, as pure functions.

In:  v, latents minus the centre of their quantiser, (B, ...); a temperature >= 0; a generator.
Out: v_hat of the same shape, with gradients to v that are finite everywhere, also at integers and
     half-integers. Noise is drawn once and shared by the batch, so that what becomes of an image does not
     depend on the others. At temperature 0 every annealed method gives floor or ceil of v, except soft
     rounding, whose noise has a schedule of its own.

Sources: stochastic Gumbel annealing (SGA), Yang, Bamler & Mandt, "Improving Inference for Neural
Image Compression", 2020; SGA+ (linear, cosine, SSL, two and three classes), Perugachi-Diaz et al.,
"Robustly overfitting latents for flexible neural image compression", 2024; soft rounding,
Agustsson & Theis, "Universally Quantized Neural Compression", 2020, around noise as in C3
(Kim et al. 2024) and Cool-Chic.

Two classes in one draw. SGA draws w = softmax((log-weights / T + Gumbel) / T) over {floor, ceil}
and returns w . (floor, ceil). The difference of two Gumbel variables is logistic, so only the
difference of the log-weights matters and

    v_hat = floor(v) + sigmoid((logit(u) / T + L) / T),    u = v - floor(v),  L ~ Logistic(0, 1)

(the binary concrete: the same distribution with half the noise and memory). Each method is then defined by
one function logit(u) = psi(ceil) - psi(floor):

    atanh     atanh(u) - atanh(1 - u)                 (SGA)
    linear    log u - log(1 - u)
    cosine    2 log tan(pi u / 2)
    ssl       a (log u - log(1 - u))                  (sigmoid scaled logit)

Linear is ssl with a = 1. In their slope at u = 1/2, atanh is ssl with a = 2/3 and cosine is ssl with
a = pi / 2. So SGA+ is one family, and its parameter a sets the temperature of the logits.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

__all__ = [
    "atanh_logit",
    "binary_concrete",
    "cosine3_log_weight",
    "cosine_logit",
    "deterministic_annealing",
    "gaussian_noise",
    "kumaraswamy_noise",
    "linear3_log_weight",
    "linear_logit",
    "soft_round",
    "soft_round_around_noise",
    "ssl3_log_weight",
    "ssl_logit",
    "ste",
    "ternary_concrete",
    "uniform_noise",
]

EPS = 1e-5  # distance that u keeps from 0 and 1; keeps every logit finite
TINY_TEMPERATURE = 1e-6  # below this, division by T overflows and the hard limit is taken


# --- Two classes -----------------------------------------------------------------------------


def atanh_logit(u: Tensor) -> Tensor:
    """SGA's log-odds of rounding up: atanh(u) - atanh(1 - u), u in [EPS, 1 - EPS]. Yang 2020."""
    return torch.atanh(u) - torch.atanh(1 - u)


def linear_logit(u: Tensor) -> Tensor:
    """Log-odds under P(ceil) = u: log u - log(1 - u). SGA+, "linear"."""
    return torch.logit(u)


def cosine_logit(u: Tensor) -> Tensor:
    """Log-odds under P(floor) ~ cos^2(pi u / 2): 2 log tan(pi u / 2). SGA+, "cosine"."""
    return 2 * torch.log(torch.tan(u * (math.pi / 2)))


def ssl_logit(u: Tensor, a: float) -> Tensor:
    """Sigmoid scaled logit: a (log u - log(1 - u)). SGA+, "SSL"; a = 2.3 in the paper."""
    return a * torch.logit(u)


def binary_concrete(
    v: Tensor,
    temperature: float,
    generator: torch.Generator,
    logit: Callable[[Tensor], Tensor],
    noise_temperature: float | None = None,
) -> Tensor:
    """Two-class SGA: floor(v) + sigmoid((logit(u) / T + L) / T_n), L ~ Logistic(0, 1).

    Args:
        v: centred latents, (B, ...).
        temperature: T, of the log-odds; 0 rounds to the likelier neighbour.
        generator: source of L, one draw for each element of an image.
        logit: log-odds of rounding up as a function of u = v - floor(v).
        noise_temperature: T_n, of the concrete distribution; the papers use T for both.

    Returns:
        A point between floor(v) and floor(v) + 1, shape of v.
    """
    floor = v.detach().floor()
    log_odds = logit((v - floor).clamp(EPS, 1 - EPS))
    if temperature < TINY_TEMPERATURE:
        return floor + _hard_with_gradient(log_odds)
    uniform = torch.rand(v.shape[1:], generator=generator, device=v.device, dtype=v.dtype)
    logistic = torch.logit(uniform, eps=1e-6)
    noise_temperature = temperature if noise_temperature is None else noise_temperature
    return floor + torch.sigmoid((log_odds / temperature + logistic) / noise_temperature)


def deterministic_annealing(v: Tensor, temperature: float, generator: torch.Generator) -> Tensor:
    """floor(v) + sigmoid(atanh-logit / T): the weights of SGA without its noise. Yang 2020."""
    floor = v.detach().floor()
    log_odds = atanh_logit((v - floor).clamp(EPS, 1 - EPS))
    if temperature < TINY_TEMPERATURE:
        return floor + _hard_with_gradient(log_odds)
    return floor + torch.sigmoid(log_odds / temperature)


def _hard_with_gradient(log_odds: Tensor) -> Tensor:
    """The step function, whose gradient is zero, as in the limit, and not None."""
    return (log_odds > 0).to(log_odds.dtype) + 0 * log_odds


# --- Three classes ---------------------------------------------------------------------------


def linear3_log_weight(d: Tensor, r: float, n: float) -> Tensor:
    """n log(1 - r |d|), floored at 1e-6; d is the distance to a class, |d| <= 1.5. SGA+."""
    return n * torch.log((1 - r * d.abs()).clamp_min(1e-6))


def cosine3_log_weight(d: Tensor, r: float, n: float) -> Tensor:
    """log(cos(pi/2 r d)^n + 1e-7), with r d clamped to [-1, 1]. SGA+."""
    return torch.log(torch.cos((r * d).clamp(-1, 1) * (math.pi / 2)).clamp_min(0) ** n + 1e-7)


def ssl3_log_weight(d: Tensor, r: float, n: float, a: float) -> Tensor:
    """n log sigmoid(-a logit(|r d| / 1.5)), floored at 1e-6 inside the logarithm. SGA+."""
    distance = (r * d.abs() / 1.5).clamp(1e-6, 1 - 1e-6)
    return n * torch.log(torch.sigmoid(-a * torch.logit(distance)).clamp_min(1e-6))


def ternary_concrete(
    v: Tensor,
    temperature: float,
    generator: torch.Generator,
    log_weight: Callable[[Tensor], Tensor],
) -> Tensor:
    """Three-class SGA+: a concrete mixture of round(v) - 1, round(v) and round(v) + 1.

    v_hat = round(v) + w_+ - w_-,   w = softmax((log_weight(v - class) / T + Gumbel) / T).

    Args:
        v: centred latents, (B, ...).
        temperature: T, used for the log-weights and for the concrete distribution; 0 is hard.
        generator: source of three Gumbel draws for each element of an image.
        log_weight: unnormalised log-probability of a class at a given signed distance.
    """
    nearest = v.detach().round()
    offset = v - nearest
    classes = torch.tensor([-1.0, 0.0, 1.0], device=v.device, dtype=v.dtype)
    classes = classes.view(-1, *[1] * v.ndim)
    weights = log_weight(offset - classes)
    if temperature < TINY_TEMPERATURE:
        chosen = classes.flatten()[weights.argmax(0)]
        return nearest + chosen + 0 * weights.sum(0)
    uniform = torch.rand((3, 1, *v.shape[1:]), generator=generator, device=v.device, dtype=v.dtype)
    gumbel = -torch.log(-torch.log(uniform.clamp(1e-9, 1 - 1e-7)))
    share = torch.softmax((weights / temperature + gumbel) / temperature, 0)
    return nearest + share[2] - share[0]


# --- Straight-through and additive noise -------------------------------------------------------


def ste(v: Tensor, temperature: float, generator: torch.Generator) -> Tensor:
    """round(v), with the gradient of the identity (straight-through estimator, Bengio 2013)."""
    return v + (v.round() - v).detach()


def uniform_noise(v: Tensor, temperature: float, generator: torch.Generator) -> Tensor:
    """v + U, U ~ Uniform(-1/2, 1/2): the proxy that the models were trained with (Balle 2017)."""
    return v + (torch.rand(v.shape[1:], generator=generator, device=v.device, dtype=v.dtype) - 0.5)


# --- Soft rounding around noise ----------------------------------------------------------------


def soft_round(v: Tensor, temperature: float) -> Tensor:
    """floor(v) + 1/2 + tanh((u - 1/2) / T) / (2 tanh(1 / (2 T))), u = v - floor(v).

    T -> infinity is the identity, T -> 0 is rounding. Agustsson & Theis 2020 (alpha = 1 / T).
    """
    floor = v.detach().floor()
    if temperature < TINY_TEMPERATURE:
        return v.detach().round() + 0 * v
    centred = v - floor - 0.5
    if temperature > 1e3:
        return v
    return floor + 0.5 + torch.tanh(centred / temperature) * (0.5 / math.tanh(0.5 / temperature))


def soft_round_around_noise(
    v: Tensor,
    temperature: float,
    generator: torch.Generator,
    noise: Callable[[Tensor, torch.Generator], Tensor],
) -> Tensor:
    """s_T(s_T(v) + noise): soft rounding twice around noise that shrinks. C3."""
    inner = soft_round(v, temperature)
    return soft_round(inner + noise(v[:1], generator), temperature)


def gaussian_noise(v: Tensor, generator: torch.Generator, std: float) -> Tensor:
    """Normal noise with standard deviation `std`, shape of v (Cool-Chic: 0.22 falling to 0.15)."""
    return std * torch.randn(v.shape, generator=generator, device=v.device, dtype=v.dtype)


def kumaraswamy_noise(v: Tensor, generator: torch.Generator, a: float) -> Tensor:
    """Kumaraswamy(a, b) - 1/2 with its mode at 0, b = (2^a (a - 1) + 1) / a; a = 1 is uniform. C3."""
    b = (2**a * (a - 1) + 1) / a
    uniform = torch.rand(v.shape, generator=generator, device=v.device, dtype=v.dtype)
    return (1 - (1 - uniform) ** (1 / b)) ** (1 / a) - 0.5
