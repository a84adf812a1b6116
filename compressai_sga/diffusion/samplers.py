# SPDX-License-Identifier: Apache-2.0
"""Samplers: from noise to an image in a fixed number of steps.

From z at log-SNR t to the larger log-SNR s, with d = s - t and x_hat = denoiser(z, t):

    ancestral   z_s = alpha_s/alpha_t e^-d z + alpha_s (1 - e^-d) x_hat + sigma_s sqrt(1 - e^-d) eps
                q(z_s | z, x = x_hat), Ho et al. 2020, eq. 6 and 7, in log-SNRs
    ddim        z_s = sigma_s/sigma_t z + alpha_s (1 - e^(-d/2)) x_hat
                Song et al. 2020: first order on the probability flow
    dpm2m       ddim with x_hat + (x_hat - x_hat_before) d / (2 d_before) for x_hat
                Lu et al. 2022, DPM-Solver++(2M): second order, one call of the denoiser a step
    heun        ddim with the mean of x_hat and of the denoiser's answer at ddim's z_s
                second order, two calls a step; Lu et al.'s singlestep rule (2S) with its r = 1

The last three are deterministic. An Euler step of a rectified flow is a ddim step in other units: for a flow,
take the log-SNRs from `schedules.RectifiedFlow`. All formulas hold at s = infinity, where ancestral and ddim
return x_hat; dpm2m and heun are first order in such a step. Coefficients are float64 numbers from the CPU.

In:  denoiser (z, log_snr) -> x_hat, log_snr a float64 scalar tensor on the CPU; z (B, ...) at log_snrs[0],
     standard normal for a sample from scratch; log_snrs (steps + 1,), rising, see `schedules.grid`.
Out: z at log_snrs[-1], of z's shape and type. Fails with ``ValueError`` for log-SNRs that do not rise.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, NamedTuple, Protocol, get_args

import torch
from torch import Tensor

from .parametrisations import Denoiser
from .schedules import alpha_sigma

__all__ = [
    "SamplerName",
    "Noise",
    "SampleProgress",
    "Step",
    "ancestral_step",
    "ddim_step",
    "sample",
    "torch_noise",
]

SamplerName = Literal["ancestral", "ddim", "dpm2m", "heun"]
Noise = Callable[[int, Tensor], Tensor]
"""(step, z) -> standard normal numbers of z's shape, type and device; step counts from 0."""


class SampleProgress(Protocol):
    """Called after every step with (step, steps, x_hat); x_hat is the denoiser's estimate in that step."""

    def __call__(self, step: int, steps: int, x_hat: Tensor) -> None: ...


class Step(NamedTuple):
    """z_s = keep z_t + pull x + std eps."""

    keep: float
    pull: float
    std: float


def ancestral_step(log_snr_t: float, log_snr_s: float) -> Step:
    """The posterior q(z_s | z_t, x) of the diffusion, log_snr_t < log_snr_s; its step adds fresh noise.

    With d = log_snr_s - log_snr_t: keep = alpha_s / alpha_t e^-d, pull = alpha_s (1 - e^-d),
    std = sigma_s sqrt(1 - e^-d). One KL of DiffC lies between two of these with x and with x_hat.
    """
    alpha_t, _, alpha_s, sigma_s, rise = _levels(log_snr_t, log_snr_s)
    gone = -math.expm1(-rise)
    if alpha_t == 0:  # alpha_s / alpha_t e^-d = alpha_t sigma_s^2 / (alpha_s sigma_t^2)
        return Step(0.0, alpha_s, sigma_s)
    return Step(alpha_s / alpha_t * math.exp(-rise), alpha_s * gone, sigma_s * math.sqrt(gone))


def ddim_step(log_snr_t: float, log_snr_s: float) -> Step:
    """First order on the probability flow: keep = sigma_s / sigma_t, pull = alpha_s (1 - e^(-d / 2))."""
    _, sigma_t, alpha_s, sigma_s, rise = _levels(log_snr_t, log_snr_s)
    return Step(sigma_s / sigma_t, -alpha_s * math.expm1(-rise / 2), 0.0)


def torch_noise(generator: torch.Generator) -> Noise:
    """Noise from a generator, for sampling images. A decoder that must draw what the encoder drew takes it
    from `channels.prng`, as generators differ between devices and versions."""

    def noise(step: int, z: Tensor) -> Tensor:
        drawn = torch.randn(z.shape, generator=generator, device=generator.device, dtype=z.dtype)
        return drawn.to(z.device)

    return noise


@torch.no_grad()
def sample(
    denoiser: Denoiser,
    z: Tensor,
    log_snrs: Tensor,
    *,
    method: SamplerName = "ancestral",
    noise: Noise | None = None,
    progress: SampleProgress | None = None,
) -> Tensor:
    """Runs a sampler over a grid of log-SNRs; see the head of the file.

    Args:
        denoiser: called once a step, "heun" twice.
        z: (B, ...), at log_snrs[0]; not changed.
        log_snrs: (steps + 1,), rising.
        method: of the steps.
        noise: needed by "ancestral" only, and not asked for in a step to infinity, which has none.
        progress: told after every step; an exception in it ends the sampling.

    Returns:
        z at log_snrs[-1]; the image, if that is infinite or large.
    """
    if method not in get_args(SamplerName):
        raise ValueError(f"method is {method!r}; it must be one of {', '.join(get_args(SamplerName))}")
    if method == "ancestral" and noise is None:
        raise ValueError("method is 'ancestral' and noise is missing; give noise=torch_noise(generator)")
    levels = [float(level) for level in log_snrs.double().cpu()]
    if len(levels) < 2:
        raise ValueError(f"log_snrs has {len(levels)} entries; a step needs two: where it starts and ends")
    steps = len(levels) - 1
    before: Tensor | None = None
    for i in range(steps):
        low, high = levels[i], levels[i + 1]
        x_hat = guess = denoiser(z, torch.tensor(low, dtype=torch.float64))
        if method == "ancestral":
            step = ancestral_step(low, high)
        else:
            step = ddim_step(low, high)
            if high < math.inf:
                if method == "dpm2m" and before is not None:
                    guess = x_hat + (x_hat - before) * ((high - low) / (2 * (low - levels[i - 1])))
                elif method == "heun":
                    ahead = step.keep * z + step.pull * x_hat
                    guess = (x_hat + denoiser(ahead, torch.tensor(high, dtype=torch.float64))) / 2
        z = step.keep * z + step.pull * guess
        if step.std > 0:
            z = z + step.std * noise(i, z)
        before = x_hat
        if progress is not None:
            progress(i, steps, x_hat)
    return z


def _levels(log_snr_t: float, log_snr_s: float) -> tuple[float, float, float, float, float]:
    """alpha_t, sigma_t, alpha_s, sigma_s and the rise of the log-SNR."""
    if not log_snr_s > log_snr_t or log_snr_t == math.inf:
        raise ValueError(
            f"a step leads from the log-SNR {log_snr_t} to {log_snr_s}; it must rise, from noise to image"
        )
    levels = alpha_sigma(torch.tensor([log_snr_t, log_snr_s], dtype=torch.float64))
    (alpha_t, alpha_s), (sigma_t, sigma_s) = (level.tolist() for level in levels)
    return alpha_t, sigma_t, alpha_s, sigma_s, log_snr_s - log_snr_t
