# SPDX-License-Identifier: Apache-2.0
"""The quantisation steps of the nets' weights: a search on mse + lmbda * (latent + weight bits) / px.

C3 (Kim et al. 2024, section 3.3) tries 7 x 7 steps, one for all weights and one for all biases, with 49
runs of the whole codec (`shared`; here powers of two). The mode `each` is better and not slower: every array
has its own step, found by coordinate descent in moves of two octaves, then of one. Then it tries a dead zone,
inside which weights are rounded to the value that costs least (0, or the default nets' value), and last the
whole array at those values. At the end single weights move by one step where that pays, as in
Cool-Chic 5.0.1; only those are tried whose gradient promises it. An array of the entropy net changes only the
rate, any other only the mse. The latents are fixed, so what depends on them alone is computed once.

In:  a finished `Fit`. Out: for each image, `Nets` whose entropy net is known to stay within 32 bits.
Fails with RuntimeError if no step achieves that, which happens only with weights beyond 2^15.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from ..config import ArraySpec, layout
from ..integer import MAX_CLAMP, AccumulationError
from ..integer import MAX_SHIFT as MAX_ENTROPY_SHIFT
from ..network import context_of, entropy_net, latent_bits, refine, synthesise, upsample
from ..weights import MAX_SHIFT, Nets, array_bits, neighbour_bits
from .fused import Since
from .loop import Fit

__all__ = ["round_nets"]

_SHARED = (14, 13, 11, 10, 8, 7, 6)  # the paper's 5e-5 ... 1e-2
_FIRST_SHIFT = {"entropy": 8, "upsampling": 8, "synthesis": 8, "refinement": 9}
_SINCE: dict[str, Since] = {"upsampling": "latents", "synthesis": "channels", "refinement": "refinement"}
_BIAS_OVER_WEIGHT = 8  # how much finer a bias's step may be, see `integer`
_SWEEPS = 3
_ZONE = 0.1  # by how much of a step the dead zone grows
_LARGEST_ZONE = 0.4
_PATIENCE = 16  # moves of an array's single weights that may fail one after another


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
        search.singles()
    plane = fit.plane_hat()
    return [_that_fits(search.nets(i, plane)) for i in range(len(fit.x))]


class _Search:
    """Shifts of all arrays of all images, and their costs."""

    def __init__(self, fit: Fit) -> None:
        self.fit, self.specs = fit, layout(fit.architecture)
        self.px = fit.size[0] * fit.size[1]
        self.exact = fit.arrays()
        self.plane = plane = fit.plane_hat()
        if fit.fused is not None:
            fit.fused.load(plane)
        else:
            self.inputs = context_of(plane, fit.grid_plane)
            self.latents = fit.grid_plane.latents(plane)
        self.grids = fit.grid_plane.grids(plane)
        batch = len(fit.x)
        self.shifts = {spec.name: torch.full((batch,), _FIRST_SHIFT[spec.part]) for spec in self.specs}
        self.zones = {spec.name: torch.zeros(batch) for spec in self.specs}
        self.rounded = {
            spec.name: self._round(i, self.shifts[spec.name], self.zones[spec.name])
            for i, spec in enumerate(self.specs)
        }

    # --- Costs: each (B,), in the loss's unit -------------------------------------------------------

    def rate(self, arrays: dict[str, Tensor]) -> Tensor:
        """lmbda * bits of the latents / px."""
        if self.fit.fused is not None:
            bits = self.fit.fused.bits(self._flat(arrays))
        else:
            outputs = entropy_net(arrays, self.inputs, self.fit.architecture)
            bits = latent_bits(self.latents, outputs) @ self.fit.grid_plane.mask
        return self.fit.lmbda * bits / self.px

    def error(self, arrays: dict[str, Tensor], channels: Tensor | None = None) -> Tensor:
        """mse of the decoded image, clamped to [0, 1]; from the upsampled grids if they are known."""
        if self.fit.fused is not None:
            return self.fit.fused.error(self.plane, self._flat(arrays))
        if channels is None:
            channels = upsample(arrays, self.grids, self.fit.size, self.fit.architecture)
        return self._distance(synthesise(arrays, channels, self.fit.architecture))

    def _flat(self, arrays: dict[str, Tensor]) -> Tensor:
        return torch.cat([arrays[spec.name].flatten(1) for spec in self.specs], 1)

    def _distance(self, image: Tensor) -> Tensor:
        return (image.clamp(0, 1) - self.fit.x).square().mean((1, 2, 3))

    def weight_cost(self, index: int, rounded: Tensor, shifts: Tensor) -> Tensor:
        """lmbda * bits of an array of the layout / px."""
        integers = _integers(rounded, shifts)
        bits = [array_bits(k, self._base(index, i, shifts)) for i, k in enumerate(integers)]
        return self.fit.lmbda * torch.tensor(bits, device=self.fit.x.device).float() / self.px

    def _base(self, index: int, image: int, shifts: Tensor) -> np.ndarray | None:
        """An array of an image's default nets, in its steps."""
        start = self.fit.starts[image]
        return None if start is None else start.at(index, int(shifts[image]))

    def _round(self, index: int, shifts: Tensor, zones: Tensor, bare: bool = False) -> Tensor:
        """An array of all images in multiples of their steps; `bare`: only 0 or the default nets' values."""
        spec = self.specs[index]
        exact = self.exact[spec.name]
        column = (-1, *[1] * len(spec.shape))
        bases = [self._base(index, i, shifts) for i in range(len(shifts))]
        base = torch.from_numpy(np.stack([np.zeros(spec.shape) if k is None else k for k in bases])).to(exact)
        step = torch.exp2(-shifts.float()).to(exact.device).reshape(column)
        if bare:
            return base * step
        distance = exact / step - base
        inside = 0.5 - zones.to(exact).reshape(column)
        return (base + distance.sign() * (distance.abs() + inside).floor()) * step

    def _part_cost(self, part: str) -> Callable[[dict[str, Tensor]], Tensor]:
        if part == "entropy":
            return self.rate
        if self.fit.fused is not None:
            self.error(self.rounded)  # of which the parts before this one are kept
            since = _SINCE[part]
            return lambda arrays: self.fit.fused.error(self.plane, self._flat(arrays), since)
        if part == "upsampling":
            return self.error
        channels = upsample(self.rounded, self.grids, self.fit.size, self.fit.architecture)
        if part == "synthesis":
            return lambda arrays: self.error(arrays, channels)
        bare = replace(self.fit.architecture, refinements=0)
        unrefined = synthesise(self.rounded, channels, bare)
        return lambda arrays: self._distance(refine(arrays, unrefined, self.fit.architecture))

    # --- Searches -----------------------------------------------------------------------------------

    def each(self) -> None:
        """Coordinate descent: every array tries coarser and finer steps, for every image separately."""
        for _ in range(_SWEEPS):
            for index, cost in self._arrays():
                self._descend(index, cost)

    def singles(self) -> None:
        """Rate-distortion optimised quantisation of single weights, array after array."""
        for index, cost in self._arrays():
            self._move(index, cost)

    def _arrays(self) -> Iterator[tuple[int, Callable[[dict[str, Tensor]], Tensor]]]:
        """Every array of the layout and the cost of its part."""
        cost, part = None, ""
        for index, spec in enumerate(self.specs):
            if spec.part != part:
                part, cost = spec.part, self._part_cost(spec.part)
            yield index, cost

    def _descend(self, index: int, cost: Callable[[dict], Tensor]) -> None:
        name = self.specs[index].name
        best = cost(self.rounded) + self.weight_cost(index, self.rounded[name], self.shifts[name])
        for octaves, zone in ((2, 0.0), (-2, 0.0), (1, 0.0), (-1, 0.0), (0, _ZONE)):
            moving = torch.ones(len(best), dtype=torch.bool)
            while moving.any():
                moving, best = self._try(index, octaves, zone, moving, best, cost)
                if abs(octaves) == 1:
                    break
        _, best = self._try(index, 0, 0.0, torch.ones(len(best), dtype=torch.bool), best, cost, bare=True)

    def _try(
        self,
        index: int,
        octaves: int,
        zone: float,
        moving: Tensor,
        best: Tensor,
        cost: Callable[[dict], Tensor],
        bare: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """Tries other shifts and zones for some images; returns which images gained, and the costs after."""
        spec = self.specs[index]
        old, old_zones = self.shifts[spec.name], self.zones[spec.name]
        allowed = moving & self._allowed(spec, old + octaves) & (old_zones + zone <= _LARGEST_ZONE)
        if not allowed.any():
            return allowed, best
        shifts = torch.where(allowed, old + octaves, old)
        zones = torch.where(allowed, old_zones + zone, old_zones)
        rounded = self._round(index, shifts, zones, bare)
        now = cost({**self.rounded, spec.name: rounded}) + self.weight_cost(index, rounded, shifts)
        better = allowed & (now < best).cpu()
        on_device = better.to(best.device)
        self.shifts[spec.name] = torch.where(better, shifts, old)
        self.zones[spec.name] = torch.where(better, zones, old_zones)
        keep = on_device.reshape(-1, *[1] * len(spec.shape))
        self.rounded[spec.name] = torch.where(keep, rounded, self.rounded[spec.name])
        return better, torch.where(on_device, now, best)

    def _move(self, index: int, cost: Callable[[dict], Tensor]) -> None:
        """Moves single weights of an array by one step where that lowers the cost, the most promising first.

        The promise of a move is its first-order change of the loss. Most often the loss is convex in it, so
        a move without promise is not tried.
        """
        name = self.specs[index].name
        rounded, shifts = self.rounded[name], self.shifts[name]
        promise = self._promise(index)
        order = promise.argsort(1)
        best = cost(self.rounded) + self.weight_cost(index, rounded, shifts)
        waited = torch.zeros(len(best), dtype=torch.long)
        for move in order.T:
            trying = (promise.gather(1, move[:, None])[:, 0] < 0) & (waited < _PATIENCE)
            if not trying.any():
                break
            count = promise.shape[1] // 2
            step = torch.where(move < count, -1.0, 1.0) * trying * torch.exp2(-shifts.float())
            moved = rounded.clone()
            places = (move % count)[:, None].to(moved.device)
            moved.flatten(1).scatter_add_(1, places, step[:, None].to(moved))
            now = cost({**self.rounded, name: moved}) + self.weight_cost(index, moved, shifts)
            better = trying & (now < best).cpu()
            waited = torch.where(better, 0, waited + 1)
            keep = better.to(best.device)
            best = torch.where(keep, now, best)
            rounded = torch.where(keep.reshape(-1, *[1] * (rounded.ndim - 1)), moved, rounded)
            self.rounded[name] = rounded

    def _promise(self, index: int) -> Tensor:
        """First-order changes of the loss for a step down, then up, of each weight; (B, 2 weights), CPU."""
        name, shifts = self.specs[index].name, self.shifts[self.specs[index].name]
        with torch.enable_grad():
            flat = self._flat(self.rounded).requires_grad_()
            (slopes,) = torch.autograd.grad(self.fit.loss_of(self.plane, flat)[0].sum(), flat)
        slope = self.fit.split(slopes)[name].flatten(1).cpu() * torch.exp2(-shifts.float())[:, None]
        bits = [
            neighbour_bits(k, self._base(index, i, shifts)).ravel()
            for i, k in enumerate(_integers(self.rounded[name], shifts))
        ]
        rate = self.fit.lmbda.cpu()[:, None] / self.px * torch.from_numpy(np.stack(bits)).float()
        return torch.cat([-slope, slope], 1) + rate

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
                rounded = {
                    spec.name: self._round(i, shifts[spec.name], self.zones[spec.name])
                    for i, spec in enumerate(self.specs)
                }
                now = self.rate(rounded) + self.error(rounded)
                for index, s in enumerate(self.specs):
                    now = now + self.weight_cost(index, rounded[s.name], shifts[s.name])
                better = now < best
                best = torch.where(better, now, best)
                for spec in self.specs:
                    keep = better.reshape(-1, *[1] * len(spec.shape))
                    chosen[0][spec.name] = torch.where(better.cpu(), shifts[spec.name], chosen[0][spec.name])
                    chosen[1][spec.name] = torch.where(keep, rounded[spec.name], chosen[1][spec.name])
        self.shifts, self.rounded = chosen

    # --- Results ------------------------------------------------------------------------------------

    def nets(self, image: int, plane: Tensor) -> Nets:
        """The nets found for an image; the clamp is the smallest that changes nothing."""
        shifts = tuple(int(self.shifts[spec.name][image]) for spec in self.specs)
        integers = tuple(
            np.rint(self.rounded[spec.name][image].cpu().double().numpy() * 2.0**shift).astype(np.int64)
            for spec, shift in zip(self.specs, shifts)
        )
        clamp = int(max(1, min(MAX_CLAMP, float(plane[image].abs().max()))))
        return Nets(self.fit.architecture, self.fit.size, clamp, integers, shifts, self.fit.starts[image])


def _integers(rounded: Tensor, shifts: Tensor) -> np.ndarray:
    """An array of all images in units of their steps, int64."""
    scale = torch.exp2(shifts.double()).reshape(-1, *[1] * (rounded.ndim - 1))
    return (rounded.cpu().double() * scale).round().long().numpy()


def _that_fits(nets: Nets) -> Nets:
    """The nets, with coarser steps of the entropy net where 32 bits require it, which is rare."""
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
