# SPDX-License-Identifier: Apache-2.0
"""Steps to which the nets' weights are rounded: a search on mse + lmbda * (latent + weight bits) / px.

C3 (Kim et al. 2024, section 3.3) tries 7 x 7 steps, one for all weights and one for all biases, with 49
runs of the whole codec (`shared`; here powers of two). Better and not slower: every array has its own
(`each`), found by coordinate descent, two octaves a move, then one, then nothing but zeros, where an array
of the entropy net changes only the rate and one of the synthesis only the mse. The latents are what they
are, so what the nets see is computed once.

In:  a `Fit` that is done. Out: for each image, `Nets` whose entropy net is known to stay in 32 bits.
Fails with RuntimeError if there is no step with which it does, which takes weights beyond 2^15.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from .config import ArraySpec, layout
from .fit import Fit
from .integer import MAX_CLAMP, AccumulationError
from .integer import MAX_SHIFT as MAX_ENTROPY_SHIFT
from .network import context_of, entropy_net, latent_bits, refine, synthesise, upsample
from .weights import MAX_SHIFT, Nets, array_bits

__all__ = ["round_nets"]

_SHARED = (14, 13, 11, 10, 8, 7, 6)  # the paper's 5e-5 ... 1e-2
_FIRST_SHIFT = {"entropy": 8, "synthesis": 8, "refinement": 9}
_BIAS_OVER_WEIGHT = 8  # how much finer a bias's step may be, see `integer`


@torch.no_grad()
def round_nets(fit: Fit) -> list[Nets]:
    """The nets of each image, rounded.

    Args:
        fit: done; its best is taken.
    """
    search = _Search(fit)
    if fit.settings.step_search == "shared":
        search.shared()
    else:
        search.each()
    plane = fit.plane_hat()
    return [_that_fits(search.nets(i, plane)) for i in range(len(fit.x))]


class _Search:
    """Shifts of all arrays of all images, and what they cost."""

    def __init__(self, fit: Fit) -> None:
        self.fit, self.specs = fit, layout(fit.architecture)
        self.px = fit.size[0] * fit.size[1]
        self.exact = fit.arrays()
        plane = fit.plane_hat()
        self.inputs = context_of(plane, fit.canvas)
        self.latents = fit.canvas.latents(plane)
        self.channels = upsample(fit.canvas.grids(plane), fit.size)
        self.shifts = {spec.name: torch.full((len(fit.x),), _FIRST_SHIFT[spec.part]) for spec in self.specs}
        self.rounded = {spec.name: self._round(spec, self.shifts[spec.name]) for spec in self.specs}
        self._unrefined: Tensor | None = None

    # --- Costs: each (B,), in the loss's unit -------------------------------------------------------

    def rate(self, arrays: dict[str, Tensor]) -> Tensor:
        """lmbda * bits of the latents / px."""
        outputs = entropy_net(arrays, self.inputs, self.fit.architecture)
        bits = latent_bits(self.latents, outputs) @ self.fit.canvas.mask
        return self.fit.lmbda * bits / self.px

    def error(self, arrays: dict[str, Tensor], unrefined: Tensor | None = None) -> Tensor:
        """mse of the image that a user sees, within [0, 1]."""
        if unrefined is None:
            image = synthesise(arrays, self.channels, self.fit.architecture)
        else:
            image = refine(arrays, unrefined, self.fit.architecture)
        return (image.clamp(0, 1) - self.fit.x).square().mean((1, 2, 3))

    def weight_cost(self, rounded: Tensor, shifts: Tensor) -> Tensor:
        """lmbda * bits of an array / px."""
        scale = torch.exp2(shifts.double()).reshape(-1, *[1] * (rounded.ndim - 1))
        integers = (rounded.cpu().double() * scale).round().long().numpy()
        bits = torch.tensor([array_bits(k) for k in integers], device=self.fit.x.device)
        return self.fit.lmbda * bits.float() / self.px

    def _round(self, spec: ArraySpec, shifts: Tensor) -> Tensor:
        exact = self.exact[spec.name]
        step = torch.exp2(-shifts.float()).to(exact.device).reshape(-1, *[1] * len(spec.shape))
        return (exact / step).round() * step

    def _part_cost(self, part: str) -> Callable[[dict[str, Tensor]], Tensor]:
        if part == "entropy":
            return self.rate
        if part == "synthesis":
            return self.error
        bare = replace(self.fit.architecture, refinements=0)
        unrefined = synthesise(self.rounded, self.channels, bare)
        return lambda arrays: self.error(arrays, unrefined)

    # --- Searches -----------------------------------------------------------------------------------

    def each(self) -> None:
        """Coordinate descent: for every array from coarser or finer, for every image by itself."""
        cost, part = None, ""
        for spec in self.specs:
            if spec.part != part:
                part, cost = spec.part, self._part_cost(spec.part)
            best = cost(self.rounded) + self.weight_cost(self.rounded[spec.name], self.shifts[spec.name])
            for move in (2, -2, 1, -1, None):
                moving = torch.ones(len(best), dtype=torch.bool)
                while moving.any():
                    moving, best = self._try(spec, move, moving, best, cost)
                    if move is None or abs(move) == 1:
                        break

    def _try(
        self, spec: ArraySpec, move: int | None, moving: Tensor, best: Tensor, cost: Callable[[dict], Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Move the shift of some images, or (None) take nothing but zeros; which it served, costs after."""
        old = self.shifts[spec.name]
        shifts = torch.where(moving, old + (move or 0), old)
        allowed = moving & self._allowed(spec, shifts)
        if not allowed.any():
            return allowed, best
        shifts = torch.where(allowed, shifts, old)
        rounded = self._round(spec, shifts) * (move is not None)
        now = cost({**self.rounded, spec.name: rounded}) + self.weight_cost(rounded, shifts)
        better = allowed & (now < best).cpu()
        on_device = better.to(best.device)
        self.shifts[spec.name] = torch.where(better, shifts, old)
        keep = on_device.reshape(-1, *[1] * len(spec.shape))
        self.rounded[spec.name] = torch.where(keep, rounded, self.rounded[spec.name])
        return better, torch.where(on_device, now, best)

    def _allowed(self, spec: ArraySpec, shifts: Tensor) -> Tensor:
        highest = MAX_SHIFT
        if spec.part == "entropy":
            highest = MAX_ENTROPY_SHIFT
            weight = spec.name.replace("bias", "weight")
            if spec.is_bias:
                return (shifts >= 0) & (shifts <= self.shifts[weight] + _BIAS_OVER_WEIGHT)
            bias = self.shifts.get(spec.name.replace("weight", "bias"))
            if bias is not None and spec.name.endswith("weight"):
                return (shifts >= 0) & (shifts <= highest) & (shifts >= bias - _BIAS_OVER_WEIGHT)
        return (shifts >= 0) & (shifts <= highest)

    def shared(self) -> None:
        """The paper's: the best pair of steps."""
        best = torch.full((len(self.fit.x),), torch.inf, device=self.fit.x.device)
        chosen = [dict(self.shifts), dict(self.rounded)]
        for weight in _SHARED:
            for bias in _SHARED:
                shifts = {
                    s.name: torch.full((len(best),), min(bias, weight + 8) if s.is_bias else weight)
                    for s in self.specs
                }
                rounded = {spec.name: self._round(spec, shifts[spec.name]) for spec in self.specs}
                now = self.rate(rounded) + self.error(rounded)
                now = now + sum(self.weight_cost(rounded[s.name], shifts[s.name]) for s in self.specs)
                better = now < best
                best = torch.where(better, now, best)
                for spec in self.specs:
                    keep = better.reshape(-1, *[1] * len(spec.shape))
                    chosen[0][spec.name] = torch.where(better.cpu(), shifts[spec.name], chosen[0][spec.name])
                    chosen[1][spec.name] = torch.where(keep, rounded[spec.name], chosen[1][spec.name])
        self.shifts, self.rounded = chosen

    # --- Results ------------------------------------------------------------------------------------

    def nets(self, image: int, plane: Tensor) -> Nets:
        """What was found for an image; the clamp is the smallest that changes nothing."""
        shifts = tuple(int(self.shifts[spec.name][image]) for spec in self.specs)
        integers = tuple(
            np.rint(self.rounded[spec.name][image].cpu().double().numpy() * 2.0**shift).astype(np.int64)
            for spec, shift in zip(self.specs, shifts)
        )
        clamp = int(max(1, min(MAX_CLAMP, float(plane[image].abs().max()))))
        return Nets(self.fit.architecture, self.fit.size, clamp, integers, shifts)


def _that_fits(nets: Nets) -> Nets:
    """The nets with steps of the entropy net as coarse as 32 bits demand; mostly they are already."""
    specs = layout(nets.architecture)
    for _ in range(MAX_ENTROPY_SHIFT):
        try:
            nets.entropy()
            return nets
        except AccumulationError:
            integers, shifts = list(nets.integers), list(nets.shifts)
            for i, spec in enumerate(specs):
                if spec.part == "entropy" and shifts[i] > 0:
                    integers[i] = np.rint(integers[i] / 2).astype(np.int64)
                    shifts[i] -= 1
            nets = replace(nets, integers=tuple(integers), shifts=tuple(shifts))
    raise RuntimeError(
        "the entropy net's weights are so large that no step keeps it within 32 bits: the fit has diverged; "
        "take a smaller learning rate"
    )
