# SPDX-License-Identifier: Apache-2.0
"""Gaussian sources: denoiser, flow and marginals in closed form, as a reference for tests.

For x ~ N(m, diag(lam)) and z = alpha x + sigma eps, with v = alpha^2 lam + sigma^2,

    z ~ N(alpha m, diag(v))
    E[x | z] = m + alpha lam / v (z - alpha m),   Var[x | z] = lam sigma^2 / v
    flow:  x = m + sqrt(lam / v) (z - alpha m),   the end of the probability flow from z (Theis et al. 2022)

The flow keeps each coordinate's rank, so x has the source's distribution at every noise level. A full
covariance is treated as a diagonal one in the basis of its eigenvectors.

In:  mean and variance, numbers or tensors that broadcast to x; for a full covariance, x is (B, n).
     z (B, ...), log_snr () or (B,), as `parametrisations.Denoiser` asks. Out: tensors of z's shape and type.
Fails with ``ValueError`` for a negative variance or a covariance that is not symmetric and positive.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .schedules import alpha_sigma

__all__ = ["DiagonalGaussian", "FullGaussian"]


@dataclass(frozen=True)
class DiagonalGaussian:
    """N(mean, diag(variance)); a `Denoiser` when called.

    Args:
        mean, variance: broadcast to one image, or to the batch; float64 is kept.
    """

    mean: float | Tensor = 0.0
    variance: float | Tensor = 1.0

    def __post_init__(self) -> None:
        smallest = float(torch.as_tensor(self.variance).min())
        if not smallest >= 0:
            raise ValueError(f"variance is {smallest} somewhere; variances are at least 0")

    def __call__(self, z: Tensor, log_snr: float | Tensor) -> Tensor:
        mean, variance, alpha, sigma = self._at(z, log_snr)
        return mean + alpha * _ratio(variance, alpha**2 * variance + sigma**2) * (z - alpha * mean)

    def posterior_variance(self, z: Tensor, log_snr: float | Tensor) -> Tensor:
        """Var[x | z] of each coordinate, broadcast to z; it does not depend on z's values."""
        _, variance, alpha, sigma = self._at(z, log_snr)
        return (_ratio(variance, alpha**2 * variance + sigma**2) * sigma**2).expand_as(z)

    def flow(self, z: Tensor, log_snr: float | Tensor, to: float | Tensor = torch.inf) -> Tensor:
        """Moves z along the probability flow from `log_snr` to the log-SNR `to`; its end is an image."""
        mean, variance, alpha, sigma = self._at(z, log_snr)
        alpha_to, sigma_to = alpha_sigma(to, z)
        scale = _ratio(alpha_to**2 * variance + sigma_to**2, alpha**2 * variance + sigma**2).sqrt()
        return alpha_to * mean + scale * (z - alpha * mean)

    def draw(self, eps: Tensor) -> Tensor:
        """Images from standard normal numbers (B, ...)."""
        mean, variance, _, _ = self._at(eps, 0.0)
        return mean + variance.sqrt() * eps

    def _at(self, z: Tensor, log_snr: float | Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return (
            torch.as_tensor(self.mean).to(z),
            torch.as_tensor(self.variance).to(z),
            *alpha_sigma(log_snr, z),
        )


class FullGaussian:
    """N(mean, covariance) of vectors; a `Denoiser` when called.

    Args:
        mean: (n,).
        covariance: (n, n), symmetric, positive semi-definite.

    Attributes:
        basis: (n, n), eigenvectors in its columns.
        variances: (n,), eigenvalues, rising.
    """

    def __init__(self, mean: Tensor, covariance: Tensor) -> None:
        if covariance.shape != (len(mean), len(mean)) or not torch.allclose(covariance, covariance.mT):
            raise ValueError(
                f"covariance has the shape {tuple(covariance.shape)} for a mean of {len(mean)}, or is not "
                "symmetric; it must be a symmetric matrix of the mean's size"
            )
        variances, self.basis = torch.linalg.eigh(covariance.double())
        floor = -1e-10 * float(variances.abs().max())
        if float(variances.min()) < floor:
            raise ValueError(
                f"covariance has the eigenvalue {float(variances.min())}; it must be positive semi-definite"
            )
        self.variances = variances.clamp_min(0)
        self._rotated = DiagonalGaussian(mean.double() @ self.basis, self.variances)

    def __call__(self, z: Tensor, log_snr: float | Tensor) -> Tensor:
        return self._back(self._rotated(self._rotate(z), log_snr))

    def posterior_covariance(self, log_snr: float | Tensor) -> Tensor:
        """Cov[x | z], (n, n) float64."""
        variances = self._rotated.posterior_variance(self.variances[None], log_snr)
        return (self.basis * variances) @ self.basis.mT

    def flow(self, z: Tensor, log_snr: float | Tensor, to: float | Tensor = torch.inf) -> Tensor:
        """As `DiagonalGaussian.flow`."""
        return self._back(self._rotated.flow(self._rotate(z), log_snr, to))

    def draw(self, eps: Tensor) -> Tensor:
        """Vectors from standard normal numbers (B, n)."""
        return self._back(self._rotated.draw(eps))

    def _rotate(self, z: Tensor) -> Tensor:
        return z @ self.basis.to(z)

    def _back(self, z: Tensor) -> Tensor:
        return z @ self.basis.mT.to(z)


def _ratio(numerator: Tensor, denominator: Tensor) -> Tensor:
    """The quotient, or 0 where both are 0, as for a constant coordinate without noise."""
    return torch.where(denominator > 0, numerator / denominator, torch.zeros_like(numerator))
