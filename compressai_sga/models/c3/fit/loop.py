# SPDX-License-Identifier: Apache-2.0
"""The fit of C3 (Kim et al. 2024): latents and nets of B images by gradient descent on MSE + lmbda bits / px.

    fit = Fit(x, PRESETS["c3-fast"], lmbda=1e-3, steps=500)
    fit.run(report=print)
    fit.plane_hat(), fit.arrays()             # rounded latents (`grid_plane`), float nets

In most steps the latents are softly rounded, noise is added, and they are softly rounded again; noise and
softness shrink from step to step (paper, section 3.1). In the last steps (stage 2, "finish" in the settings)
they are rounded, and the best result of each image is kept. The loss is that of the real bitstream, with the
bits of the nets if `weight_bits` is set; nothing in it is clamped (see `config`).

Gradients are clipped, learning rates lowered and best results kept for each image separately. All images of a
batch get the same noise and the same random first weights. So the other images of a batch do not change an
image's fit, except in the last bits of its sums. SOAP's first steps make these differences larger: the loss
stays the same, and the bytes differ by some per cent.

Schedules follow the share of the budget that is spent, the greater of step / steps and seconds / max_seconds.
So a fit with little time anneals faster and ends in time. (It is then not reproducible; with steps alone, the
same seed and machine give the same bytes.)

In:  x (B, 3, H, W) float32 in [0, 1]; lmbda > 0, one or one for each image.
State: `Fit.state_dict` holds all of it, so that a killed fit can go on.
Fails with ``ValueError`` on images, steps, times or lmbda out of range.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ....channels.universal_quantisation import conditional_mean
from ....precision import fixed_algorithms, full_float32
from ....relaxations import gaussian_noise, kumaraswamy_noise, soft_round
from ..config import Preset, layout
from ..defaults import nearest
from ..network import context_of, entropy_net, latent_bits, synthesise, upsample
from ..tables import MAX_LATENT
from . import memory
from .adam import Adam
from .fused import Backend, fused_loss
from .grid_plane import GridPlane
from .initialisation import first_parameters, origin_of, parameter_scale, warm_parameters
from .soap import Soap
from .stage2 import Stage2

__all__ = ["Fit", "Progress"]

_STE_TEMPERATURE = 1e-4
_FINEST_STEP = 2.0**-9  # of a weight that matters: smaller differences cost nothing
_SMALLEST_RATE = 1e-8
# What the search for the weights' steps and the coding may take: a part of a second for each image, and on a
# CPU as long as so many steps; on a GPU, where a step is as slow as its pixels are many and the search is
# not, so many seconds.
_RESERVED_STEPS = 150
_RESERVED_SECONDS, _RESERVED_SECONDS_AN_IMAGE = 2.0, 0.4


@dataclass(frozen=True)
class Progress:
    """The progress of a fit: values of the last step, averaged over the images.

    Args:
        step, steps: done, and the budget.
        loss: mse + lmbda * bpp.
        bpp: bits of the latents for a pixel.
        psnr_db: of the mean mse, before rounding to 8 bits.
        seconds_left: by the pace so far, or by max_seconds.
    """

    step: int
    steps: int
    loss: float
    bpp: float
    psnr_db: float
    seconds_left: float


class Fit:
    """The fit of B images of one size; see the file's head.

    Args:
        x: (B, 3, H, W) in [0, 1].
        preset: architecture and settings.
        lmbda: > 0, a number or one for each image.
        steps: the preset's by default.
        seed: of the first weights and of the noise.
        max_seconds: of wall time, for all of it; unlimited by default.
        warm: whether to start from the default nets of the zoo, where they fit the architecture.
        backend: what computes loss and gradients, see `fused`; the fastest by default.

    Raises:
        ValueError: an argument out of range.
    """

    def __init__(
        self,
        x: Tensor,
        preset: Preset,
        lmbda: float | Tensor,
        *,
        steps: int | None = None,
        seed: int = 0,
        max_seconds: float | None = None,
        warm: bool = True,
        backend: Backend = "auto",
    ) -> None:
        steps = preset.steps if steps is None else steps
        _check(x, lmbda, steps, seed, max_seconds, preset)
        self.preset, self.steps, self.max_seconds = preset, steps, max_seconds
        self.x, self.architecture, self.settings = x, preset.architecture, preset.fit
        batch, device = len(x), x.device
        self.size = (int(x.shape[2]), int(x.shape[3]))
        self.lmbda = torch.as_tensor(lmbda, dtype=torch.float32, device=device).expand(batch)
        a = self.architecture
        self.grid_plane = GridPlane(self.size, a.grids, a.first, a.taps, device)
        self._gain = self.grid_plane.spread(self.settings.gains, device)
        self._inside = self.grid_plane.spread([1.0] * a.grids, device)
        self._specs = layout(a)
        self._lengths = [math.prod(spec.shape) for spec in self._specs]
        self._scale = parameter_scale(preset).to(device)
        # Which array a parameter belongs to, (parameters, arrays).
        self._members = torch.block_diag(*(torch.ones(n, 1) for n in self._lengths)).to(device)
        self.plane = torch.zeros(batch, self.grid_plane.height, self.grid_plane.width, device=device)
        self.starts = [nearest(a, value) if warm else None for value in self.lmbda.tolist()]
        if None in self.starts:
            self.nets = first_parameters(preset, x, seed).to(device)
            self._origin = torch.zeros_like(self.nets)
        else:
            self.nets = warm_parameters(preset, x, self.starts).to(device)
            self._origin = origin_of(preset, self.starts).to(device)
        for parameter in (self.plane, self.nets):
            parameter.requires_grad_()
        self.fused = fused_loss(a, self.grid_plane, x, backend)
        self._generator = torch.Generator(device=device).manual_seed(seed)
        self._optimisers = [self._of_latents(), self._of_nets()]
        self.step_count, self.seconds = 0, 0.0
        self._finish: Stage2 | None = None
        self._cache: tuple[Any, Tensor] | None = None
        self._last: tuple[Tensor, Tensor] | None = None

    # --- What is fitted ------------------------------------------------------------------------------

    def arrays(self, nets: Tensor | None = None) -> dict[str, Tensor]:
        """The nets' arrays by name, (B, ...), for latents in quantisation steps."""
        return self.split((self.nets if nets is None else nets) * self._scale)

    def split(self, flat: Tensor) -> dict[str, Tensor]:
        """Arrays by name, (B, ...), of the flat ones (B, parameters)."""
        return {
            spec.name: part.unflatten(1, spec.shape)
            for spec, part in zip(self._specs, flat.split(self._lengths, 1))
        }

    @torch.no_grad()
    def plane_hat(self) -> Tensor:
        """The rounded latents, a plane of `grid_plane`."""
        return (self.plane * self._gain).round().clamp(-MAX_LATENT, MAX_LATENT)

    # --- Steps ---------------------------------------------------------------------------------------

    @property
    def share(self) -> float:
        """Share of the budget that is spent, 0 to 1."""
        spent = self.step_count / self.steps
        if self.max_seconds is not None:
            pace = self.seconds / max(1, self.step_count)
            reserved = _RESERVED_SECONDS if self.x.is_cuda else _RESERVED_STEPS * pace
            reserved += _RESERVED_SECONDS_AN_IMAGE * len(self.x)
            for_fit = self.max_seconds - min(0.4 * self.max_seconds, reserved)
            spent = max(spent, self.seconds / for_fit)
        return min(1.0, spent)

    @property
    def done(self) -> bool:
        finished = self._finish is not None and bool((self._finish.rate < _SMALLEST_RATE).all())
        return finished or (self.step_count > 0 and self.share >= 1.0)

    def run(self, report: Callable[[Progress], None] | None = None, every: int = 20) -> None:
        """Runs all remaining steps; `report` is called every so many of them, and at the end.

        After an interrupt the state is that of the last complete step or of the interrupted one.
        """
        keep = nullcontext() if self.x.is_cuda else memory.kept()
        with torch.enable_grad(), keep, full_float32(), fixed_algorithms():
            while not self.done:
                self.step()
                if report is not None and (self.step_count % every == 0 or self.done):
                    report(self.progress())

    def progress(self) -> Progress:
        """The fit's progress so far."""
        mse, bpp = (float(t.mean()) for t in self._last)
        loss = float((self._last[0] + self.lmbda * self._last[1]).mean())
        share = max(self.share, 1e-9)
        left = self.seconds * (1 - share) / share
        psnr_db = -10 * math.log10(max(mse, 1e-12))
        return Progress(self.step_count, self.steps, loss, bpp, psnr_db, left)

    def step(self) -> None:
        """One step of the optimiser."""
        start = time.monotonic()
        self._drop_gradients()  # of a step that was interrupted
        share, main = self.share, 1.0 - self.settings.finish_share
        if share < main:
            self._main_step(share / main)
        else:
            self._finish_step((share - main) / self.settings.finish_share)
        self.step_count += 1
        self.seconds += time.monotonic() - start

    def _main_step(self, part: float) -> None:
        self._loss(self._soft(part)).sum().backward()
        self._clip()
        self._update(self.settings.learning_rate * _half_cosine(part))

    def _soft(self, part: float) -> Tensor:
        """Latents, softly rounded before and after noise is added."""
        settings = self.settings
        temperature, size = (a + (b - a) * part for a, b in (settings.temperature, settings.noise_range))
        draw = gaussian_noise if settings.noise == "gaussian" else kumaraswamy_noise
        noise = draw(self._inside, self._generator, size) * self._inside
        if self.fused is not None and settings.after_noise == "soft_round":
            return self.fused.soften(self.plane, self._gain, noise, temperature)
        noisy = soft_round(self.plane * self._gain, temperature) + noise
        if settings.after_noise == "conditional_mean":
            return conditional_mean(noisy, temperature)
        return soft_round(noisy, temperature)

    def _loss(self, plane: Tensor, cached: bool = False) -> Tensor:
        """mse + lmbda * bpp of each image, (B,)."""
        loss, *parts = self.loss_of(plane, self.nets * self._scale, cached)
        self._last = tuple(part.detach() for part in parts)
        return loss + self.lmbda * self._weight_bpp() if self.settings.weight_bits else loss

    def loss_of(self, plane: Tensor, flat: Tensor, cached: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        """mse + lmbda * bpp, mse, bpp of latents and nets' arrays (B, parameters); each (B,)."""
        if self.fused is not None:
            return self.fused(plane, flat, self.lmbda)
        arrays = self.split(flat)
        if cached:
            inputs, latents = self._cache
        else:
            inputs, latents = context_of(plane, self.grid_plane), self.grid_plane.latents(plane)
        channels = upsample(arrays, self.grid_plane.grids(plane), self.size, self.architecture)
        bits = latent_bits(latents, entropy_net(arrays, inputs, self.architecture)) @ self.grid_plane.mask
        mse = (synthesise(arrays, channels, self.architecture) - self.x).square().mean((1, 2, 3))
        bpp = bits / (self.size[0] * self.size[1])
        return mse + self.lmbda * bpp, mse, bpp

    def _weight_bpp(self) -> Tensor:
        """Bits of the nets up to a constant, (B,): N log2 of the mean magnitude for an array of N weights.

        That is the code length of a Laplace distribution whose scale is fitted to the array, or to its
        differences from the default nets.
        """
        size = ((self.nets - self._origin) * self._scale).abs()
        counts = self._members.sum(0)
        bits = torch.log2(size @ self._members / counts + _FINEST_STEP) @ counts
        return bits / (self.size[0] * self.size[1])

    def _clip(self) -> None:
        """Bound the norm of each image's gradient."""
        norm = self.nets.grad.square().sum(1)
        clipped = [self.nets]
        if self.settings.clip_latents and self.plane.grad is not None:
            norm = norm + self.plane.grad.square().sum((1, 2))
            clipped.append(self.plane)
        factor = (self.settings.clip_norm / norm.sqrt().clamp_min(1e-12)).clamp_max(1.0)
        for parameter in clipped:
            parameter.grad.mul_(factor.reshape(-1, *[1] * (parameter.ndim - 1)))

    def _of_latents(self) -> Adam:
        """A new optimiser of the latents."""
        kernels = None if self.fused is None else self.fused.backend
        return Adam([self.plane], self.settings.betas, kernels)

    def _of_nets(self) -> Adam | Soap:
        """A new optimiser of the nets."""
        betas = self.settings.net_betas
        if self.settings.net_optimiser == "adam":
            return Adam([self.nets], betas)
        kernels = None if self.fused is None else self.fused.backend
        return Soap(self.nets, self._specs, betas, kernels=kernels)

    def _update(self, rate: Tensor | float) -> None:
        for optimiser in self._optimisers:
            optimiser.step(rate)
        self._drop_gradients()

    def _drop_gradients(self) -> None:
        self.plane.grad = self.nets.grad = None

    # --- Stage 2 -------------------------------------------------------------------------------------

    def _finish_step(self, part: float) -> None:
        if self._finish is None:
            self._start_finish()
        finish, settings = self._finish, self.settings
        nets_only = settings.finish == "nets"
        if nets_only:
            plane = self.plane_hat()
            if self._cache is None and self.fused is None:
                self._cache = (context_of(plane, self.grid_plane), self.grid_plane.latents(plane))
            loss = self._loss(plane, cached=True)
        else:
            soft = soft_round(self.plane * self._gain, _STE_TEMPERATURE)
            loss = self._loss(soft + (self.plane_hat() - soft).detach())
        loss.sum().backward()
        finish.keep_best(loss.detach())
        if settings.finish_decay is None:
            rate = finish.rate * _half_cosine(part)
        else:
            finish.decay(settings.finish_decay, settings.finish_patience)
            rate = finish.rate
        self._clip()
        self._update(rate)

    def _start_finish(self) -> None:
        """Rounded latents, a new optimiser, nothing better known yet."""
        nets_only = self.settings.finish == "nets"
        self.plane.requires_grad_(not nets_only)
        of_latents = [] if nets_only else [self._of_latents()]
        self._optimisers = [*of_latents, self._of_nets()]
        moving = [p.detach() for optimiser in self._optimisers for p in optimiser.parameters]
        moving += [tensor for optimiser in self._optimisers for tensor in optimiser.state]
        self._finish = Stage2(moving, len(self.x), self.settings.finish_rate)

    @torch.no_grad()
    def take_best(self) -> None:
        """Restores each image's best result of stage 2; before stage 2 there is only the current one."""
        if self._finish is None:
            return
        with torch.enable_grad():
            loss = self._loss(self.plane_hat())
        self._finish.keep_best(loss.detach())
        self._finish.take_best()

    # --- State ---------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """All that changes; `load_state_dict` of a Fit with the same arguments goes on from there."""
        return {
            "step_count": self.step_count,
            "seconds": self.seconds,
            "plane": self.plane.detach().clone(),
            "nets": self.nets.detach().clone(),
            "generator": self._generator.get_state(),
            "optimisers": [
                (optimiser.count, [tensor.clone() for tensor in optimiser.state])
                for optimiser in self._optimisers
            ],
            "finish": None if self._finish is None else self._finish.state_dict(),
        }

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where `state_dict` was taken."""
        if state["plane"].shape != self.plane.shape or state["nets"].shape != self.nets.shape:
            raise ValueError(
                f"the state is of planes {tuple(state['plane'].shape)}, nets {tuple(state['nets'].shape)}; "
                f"this fit's are {tuple(self.plane.shape)} and {tuple(self.nets.shape)}: make the fit with "
                "the arguments of the saved fit"
            )
        self.plane.requires_grad_()
        self._optimisers = [self._of_latents(), self._of_nets()]
        self.step_count, self.seconds = state["step_count"], state["seconds"]
        self.plane.copy_(state["plane"])
        self.nets.copy_(state["nets"])
        self._generator.set_state(state["generator"].cpu())
        self._finish, self._cache = None, None
        if state["finish"] is not None:
            self._start_finish()
            self._finish.load_state_dict(state["finish"])
        for optimiser, (count, tensors) in zip(self._optimisers, state["optimisers"]):
            optimiser.count = count
            for tensor, saved in zip(optimiser.state, tensors):
                tensor.copy_(saved)


def _half_cosine(part: float) -> float:
    return 0.5 * (1 + math.cos(math.pi * part))


def _check(
    x: Tensor, lmbda: float | Tensor, steps: int, seed: int, max_seconds: float | None, preset: Preset
) -> None:
    if x.ndim != 4 or x.shape[1] != 3 or not len(x) or x.dtype != torch.float32:
        raise ValueError(f"x has shape {tuple(x.shape)} and {x.dtype}; give (B, 3, H, W) in float32")
    if not (bool(torch.isfinite(x).all()) and float(x.min()) >= 0 and float(x.max()) <= 1):
        raise ValueError(
            f"x lies in [{float(x.min())}, {float(x.max())}]; images must be finite and in [0, 1]"
        )
    lmbdas = torch.as_tensor(lmbda, dtype=torch.float32)
    if lmbdas.ndim > 1 or (lmbdas.ndim == 1 and len(lmbdas) not in (1, len(x))):
        raise ValueError(f"lmbda has shape {tuple(lmbdas.shape)}; give a number, or one for each image")
    if not (bool(torch.isfinite(lmbdas).all()) and float(lmbdas.min()) > 0):
        raise ValueError(f"lmbda is {lmbda}; it must be finite and > 0, also in float32")
    if not isinstance(steps, int) or steps < 1:
        raise ValueError(f"steps is {steps!r}; choose a whole number from 1")
    if not isinstance(seed, int) or not 0 <= seed < 2**63:
        raise ValueError(f"seed is {seed!r}; choose a whole number from 0 to 2^63 - 1")
    if max_seconds is not None and not max_seconds > 0:
        raise ValueError(f"max_seconds is {max_seconds}; it must be > 0")
    if len(preset.fit.gains) != preset.architecture.grids:
        raise ValueError(
            f"{len(preset.fit.gains)} gains for {preset.architecture.grids} grids; give one for each"
        )
