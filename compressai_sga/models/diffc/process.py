# SPDX-License-Identifier: Apache-2.0
"""The process of DiffC, for any denoiser: sending a noisy image step by step, and denoising it at the end.

Theis, Salimans, Hoffman & Mentzer, "Lossy compression with Gaussian diffusion", 2022. Levels are rising
log-SNRs. Both sides hold z at level t and x_hat = denoiser(z, t). The encoder knows x, and z at the next
level s should be a draw from q(z_s | z_t, x). The decoder expects the same distribution with x_hat in place
of x:

    q = N(keep z + pull x, std^2),   p = N(keep z + pull x_hat, std^2)        (`samplers.ancestral_step`)

In units of std around p's mean, these are N(shift, I) against N(0, I), with

    shift = sqrt(SNR_s - SNR_t) (x - x_hat),   KL = |shift|^2 / 2 nats.

The loop is closed: the next step starts from the z that the decoder really has. So later steps correct the
errors of an imperfect channel, for some more bits, and errors do not accumulate. The start is noise that both
sides share, at a level where z says almost nothing about x. From any level there are two ways to an image:

    DiffC-A    "ancestral"    the diffusion goes on with p and noise of its own: a draw from the model
    DiffC-F    "flow"         the probability flow: deterministic, up to 3 dB nearer

In:  x, z (B, ...) in the units of the denoiser; log-SNRs in nats. Out: z or x_hat of that shape, bits (B,).
Fails with ``ValueError`` for levels that do not rise and unknown methods.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import Literal, get_args

import torch
from torch import Tensor

from ...diffusion.parametrisations import Denoiser, diffuse
from ...diffusion.samplers import Noise, SampleProgress, SamplerName, ancestral_step, sample

__all__ = [
    "IdealRun",
    "Level",
    "Reconstruction",
    "Start",
    "advance",
    "ideal_levels",
    "kl_bits",
    "reconstruct",
    "send_ideal",
    "shift",
]

Reconstruction = Literal["ancestral", "flow"]
Start = Literal["shared", "sent"]

_LN2 = math.log(2)


@dataclasses.dataclass(frozen=True)
class Level:
    """The state of both sides after a step, or at the start.

    Args:
        log_snr: of z.
        z: (B, ...).
        bits: (B,) float64, KL divergence of the step from the level before to z.
    """

    log_snr: float
    z: Tensor
    bits: Tensor


@dataclasses.dataclass(frozen=True)
class IdealRun:
    """The result of `send_ideal`.

    Args:
        z: (B, ...) at the last level.
        kl_bits: (levels, B) float64; the first row is the start, 0 if it is shared.
    """

    z: Tensor
    kl_bits: Tensor


def shift(x: Tensor, x_hat: Tensor, log_snr_t: float, log_snr_s: float) -> Tensor:
    """Mean of q in units of p's std around p's mean: sqrt(SNR_s - SNR_t) (x - x_hat)."""
    step = ancestral_step(log_snr_t, log_snr_s)
    return (step.pull / step.std) * (x - x_hat)


def kl_bits(shift: Tensor) -> Tensor:
    """KL(N(shift, I) || N(0, I)) = |shift|^2 / (2 ln 2) bits of each image, (B,) float64."""
    return shift.double().square().flatten(1).sum(1) / (2 * _LN2)


def advance(z: Tensor, x_hat: Tensor, normal: Tensor, log_snr_t: float, log_snr_s: float) -> Tensor:
    """z at the next level, keep z + pull x_hat + std normal, with `normal` from the channel.

    If `normal` is a draw of N(0, I), the result is a draw of p; if of N(shift, I), a draw of q.
    """
    step = ancestral_step(log_snr_t, log_snr_s)
    return step.keep * z + step.pull * x_hat + step.std * normal


@torch.no_grad()
def ideal_levels(
    denoiser: Denoiser, x: Tensor, log_snrs: Tensor, generator: torch.Generator, *, start: Start = "shared"
) -> Iterator[Level]:
    """Yields level after level over an ideal channel: draws of q, each at the price of its KL divergence.

    Args:
        denoiser: x_hat from z and its level.
        x: (B, ...).
        log_snrs: (levels,), finite, rising.
        generator: of the noise.
        start: "shared": noise independent of x, without bits, as in the codec; "sent": z at log_snrs[0],
            sent against N(0, I), as in the closed forms.
    """
    levels = [float(level) for level in log_snrs]
    if len(levels) < 1 or not all(map(math.isfinite, levels)):
        raise ValueError(f"log_snrs are {levels}; give at least one, all finite")
    eps = _normal(x, generator)
    if start == "shared":
        z, bits = eps, torch.zeros(len(x), dtype=torch.float64)
    elif start == "sent":
        z, bits = diffuse(x, eps, levels[0]), _start_bits(x, levels[0])
    else:
        raise ValueError(f"start is {start!r}; it must be one of {', '.join(get_args(Start))}")
    yield Level(levels[0], z, bits)
    for low, high in zip(levels, levels[1:]):
        x_hat = denoiser(z, torch.tensor(low, dtype=torch.float64))
        mean = shift(x, x_hat, low, high)
        z = advance(z, x_hat, mean + _normal(x, generator), low, high)
        yield Level(high, z, kl_bits(mean).cpu())


def send_ideal(
    denoiser: Denoiser, x: Tensor, log_snrs: Tensor, generator: torch.Generator, *, start: Start = "shared"
) -> IdealRun:
    """The last of `ideal_levels`, and the bits of all."""
    bits = []
    for level in ideal_levels(denoiser, x, log_snrs, generator, start=start):
        bits.append(level.bits)
    return IdealRun(level.z, torch.stack(bits))


@torch.no_grad()
def reconstruct(
    denoiser: Denoiser,
    z: Tensor,
    log_snr: float,
    *,
    method: Reconstruction = "flow",
    steps: int = 32,
    highest: float = 9.5,
    sampler: SamplerName = "dpm2m",
    noise: Noise | None = None,
    progress: SampleProgress | None = None,
) -> Tensor:
    """An image from z: steps equally spaced in log-SNR up to `highest`, and a last one to the clean image.

    Args:
        denoiser: x_hat from z and its level.
        z: (B, ...) at `log_snr`.
        log_snr: finite.
        method: "flow" (DiffC-F) or "ancestral" (DiffC-A).
        steps: at least 1, the last one included; a single one is x_hat itself.
        highest: the last level that the denoiser is asked about; a z beyond it is only denoised.
        sampler: of the flow: "ddim", "dpm2m" or "heun".
        noise: of "ancestral".
        progress: told after every step.

    Returns:
        x_hat (B, ...), in the denoiser's units.
    """
    if method not in get_args(Reconstruction):
        raise ValueError(f"method is {method!r}; it must be one of {', '.join(get_args(Reconstruction))}")
    if method == "flow" and sampler == "ancestral":
        raise ValueError("sampler is 'ancestral', which is no flow; take 'ddim', 'dpm2m' or 'heun'")
    if steps < 1:
        raise ValueError(f"steps is {steps}; it must be at least 1")
    between = torch.linspace(log_snr, highest, steps, dtype=torch.float64) if log_snr < highest else []
    grid = torch.tensor([log_snr, *between[1:], math.inf], dtype=torch.float64)
    how = "ancestral" if method == "ancestral" else sampler
    return sample(denoiser, z, grid, method=how, noise=noise, progress=progress)


def _start_bits(x: Tensor, log_snr: float) -> Tensor:
    """KL(N(alpha x, sigma^2) || N(0, 1)), bits of each image."""
    alpha2 = torch.sigmoid(torch.tensor(log_snr, dtype=torch.float64))
    sigma2 = 1 - alpha2
    power = x.double().square().flatten(1)
    return (0.5 * (alpha2 * power + sigma2 - 1 - sigma2.log()).sum(1) / _LN2).cpu()


def _normal(like: Tensor, generator: torch.Generator) -> Tensor:
    drawn = torch.randn(like.shape, generator=generator, device=generator.device, dtype=like.dtype)
    return drawn.to(like.device)
