# SPDX-License-Identifier: Apache-2.0
"""What a denoising network predicts, and how one prediction turns into another.

Given z = alpha x + sigma eps, alpha^2 + sigma^2 = 1, these predictions are equivalent:

    "x"      the clean signal
    "eps"    the noise                                        (Ho et al. 2020)
    "v"      v = alpha eps - sigma x                          (Salimans & Ho 2022)
    "flow"   u = eps - x, the velocity of a rectified flow    (Liu et al. 2022), where dz_RF/ds = u

All conversions go through v: from v every other prediction follows without a division, at every noise level,

    x = alpha z - sigma v,   eps = sigma z + alpha v,   u = (alpha + sigma) v - (alpha - sigma) z,

while x alone does not determine eps where sigma = 0, nor eps alone x where alpha = 0.

In:  tensors (B, ...) of one shape; log_snr () or (B,). z is always variance preserving; call a network
     that was trained on a flow's z_RF with z / (alpha + sigma).
Out: tensors of that shape and type. Fails with ``ValueError`` where the conversion divides by 0.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol, get_args

import torch
from torch import Tensor

from .schedules import alpha_sigma

__all__ = ["Denoiser", "NetworkDenoiser", "Prediction", "convert", "diffuse", "loss_weight", "target"]

Prediction = Literal["x", "eps", "v", "flow"]


class Denoiser(Protocol):
    """(z, log_snr) -> x_hat, an estimate of E[x | z]; z (B, ...), log_snr () or (B,), float64."""

    def __call__(self, z: Tensor, log_snr: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class NetworkDenoiser:
    """A network and what it predicts, as a `Denoiser`.

    Args:
        network: (z, log_snr) -> prediction, both of z's shape; wrap it for conditions and labels.
        prediction: what it predicts.
        limit: x_hat is clamped to [-limit, limit]; None for a signal without bounds.
    """

    network: Callable[[Tensor, Tensor], Tensor]
    prediction: Prediction
    limit: float | None = None

    def __call__(self, z: Tensor, log_snr: Tensor) -> Tensor:
        x_hat = convert(self.network(z, log_snr), z, log_snr, source=self.prediction, to="x")
        return x_hat if self.limit is None else x_hat.clamp(-self.limit, self.limit)


def diffuse(x: Tensor, eps: Tensor, log_snr: float | Tensor) -> Tensor:
    """z = alpha x + sigma eps."""
    alpha, sigma = alpha_sigma(log_snr, x)
    return alpha * x + sigma * eps


def target(x: Tensor, eps: Tensor, log_snr: float | Tensor, prediction: Prediction) -> Tensor:
    """The training target of a network with this prediction, given z = `diffuse(x, eps, log_snr)`."""
    alpha, sigma = alpha_sigma(log_snr, x)
    if prediction == "x":
        return x
    if prediction == "eps":
        return eps
    if prediction == "v":
        return alpha * eps - sigma * x
    if prediction == "flow":
        return eps - x
    raise _unknown(prediction)


def convert(
    value: Tensor, z: Tensor, log_snr: float | Tensor, *, source: Prediction, to: Prediction
) -> Tensor:
    """Turns one kind of prediction into another.

    Args:
        value: what the network said, in terms of `source`.
        z: what it saw.
        log_snr: of z, () or (B,).
        source, to: the prediction that `value` is, and the one that is wanted.

    Raises:
        ValueError: `source` does not determine `to`: "x" at sigma = 0, or "eps" at alpha = 0.
    """
    for prediction in (source, to):
        if prediction not in get_args(Prediction):
            raise _unknown(prediction)
    if source == to:
        return value
    alpha, sigma = alpha_sigma(log_snr, z)
    if source == "v":
        v = value
    elif source == "x":
        v = (alpha * z - value) / _not_zero(sigma, "sigma", "x", log_snr)
    elif source == "eps":
        v = (value - sigma * z) / _not_zero(alpha, "alpha", "eps", log_snr)
    else:
        v = (value + (alpha - sigma) * z) / (alpha + sigma)
    if to == "v":
        return v
    if to == "x":
        return alpha * z - sigma * v
    if to == "eps":
        return sigma * z + alpha * v
    return (alpha + sigma) * v - (alpha - sigma) * z


def loss_weight(log_snr: float | Tensor, prediction: Prediction) -> Tensor:
    """w with |error of the prediction|^2 = w |error of x_hat|^2, z being given.

    1 for x; alpha^2 / sigma^2 for eps; 1 / sigma^2 for v; (alpha + sigma)^2 / sigma^2 for flow. To train a
    network of one kind with the loss of another, multiply its loss by the ratio of the two weights.
    """
    alpha, sigma = alpha_sigma(log_snr)
    if prediction == "x":
        return torch.ones_like(alpha)
    if prediction == "eps":
        return (alpha / sigma) ** 2
    if prediction == "v":
        return sigma**-2
    if prediction == "flow":
        return ((alpha + sigma) / sigma) ** 2
    raise _unknown(prediction)


def _not_zero(coefficient: Tensor, name: str, source: str, log_snr: float | Tensor) -> Tensor:
    if not bool((coefficient != 0).all()):
        raise ValueError(
            f"{name} is 0 at a log-SNR of {torch.as_tensor(log_snr).tolist()}, where {source!r} does not "
            "determine the other predictions; use a finite log-SNR or a network that predicts 'v'"
        )
    return coefficient


def _unknown(prediction: object) -> ValueError:
    return ValueError(f"prediction is {prediction!r}; it must be one of {', '.join(get_args(Prediction))}")
