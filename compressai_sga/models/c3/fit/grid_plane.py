# SPDX-License-Identifier: Apache-2.0
"""All latent grids of an image side by side in one plane, so that a step of the fit takes few operations.

    0000000000000
    0 aaaa 0 bb 0        a: the finest grid, b: the next, c, ... below it; 0: zeros, which are also what
    0 aaaa 0 bb 0        the entropy net sees outside of a grid
    0 aaaa 0 cc 0
    0000000000000

A tap (dy, dx) of all latents of all grids is then a run of the flattened plane, dy * width + dx elements
away: no gather, no convolution, no loop over grids. Each grid starts at an even row and column. So the
mirrored taps of a coarser grid (`contexts`) are found by exchanging neighbouring rows and columns of a plane
that holds every latent's parent.

In:  planes (B, height, width) float32. Out: the entropy net's inputs, (B, taps, positions), where
     positions are all elements of the rows that hold latents; `mask` says which of them are latents.
Source: the plane is ours; C3 (Kim et al. 2024) uses masked convolutions instead.
Fails with ``ValueError`` on contexts with taps of a coarser grid other than (0 or 1, 0 or 1).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..contexts import Context, grid_sizes

__all__ = ["GridPlane", "shifted"]

_MARGIN = 2  # rows for the taps below of another grid, kept even


class GridPlane:
    """The places of an image's grids in the plane; see the file's head.

    Args:
        size: (height, width) of the image, pixels.
        grids, first: as in `config.Architecture`.
        context: taps of the entropy net.
        device: of what is made.
    """

    def __init__(
        self,
        size: tuple[int, int],
        grids: int,
        first: int,
        context: Context,
        device: torch.device | str | None = None,
    ) -> None:
        if context.source == "coarser" and not set(context.other) <= {(0, 0), (0, 1), (1, 0), (1, 1)}:
            raise ValueError(
                f"other taps {context.other}; a fit supports offsets 0 or 1 in a coarser grid only"
            )
        self.context = context
        self.sizes = grid_sizes(*size, grids, first)
        reach = max([1, *(max(abs(dy), abs(dx)) for dy, dx in context.own + context.other)])
        gap = reach + reach % 2
        self.top = gap + _MARGIN
        (height, width), *coarser = self.sizes
        corners, right = [(self.top, gap)], gap + width + width % 2 + gap
        bottom = self.top
        for h, _ in coarser:
            corners.append((bottom, right))
            bottom += h + h % 2 + gap
        self.rows = max(height, bottom - gap - self.top)
        self.rows += self.rows % 2
        self.height = self.top + self.rows + _MARGIN
        widest = coarser[0][1] if coarser else -gap
        self.width = right + widest + widest % 2
        self._slices = [(slice(y, y + h), slice(x, x + w)) for (y, x), (h, w) in zip(corners, self.sizes)]
        self.offsets = tuple(dy * self.width + dx for dy, dx in context.own)
        self.positions = self.rows * self.width
        self.mask = self.spread([1.0] * grids, device)[:, self.top : self.top + self.rows].reshape(-1)

    @property
    def places(self) -> list[tuple[int, int, int, int]]:
        """(y, x, height, width) of each grid in the plane."""
        return [(y.start, x.start, y.stop - y.start, x.stop - x.start) for y, x in self._slices]

    def spread(self, values: Sequence[float], device: torch.device | str | None = None) -> Tensor:
        """A plane (1, height, width) with one value in each grid, zeros elsewhere."""
        plane = torch.zeros(1, self.height, self.width, device=device)
        for place, value in zip(self._slices, values):
            plane[0, place[0], place[1]] = value
        return plane

    def grids(self, plane: Tensor) -> list[Tensor]:
        """The grids (B, h, w) of a plane, as views."""
        return [plane[:, rows, columns] for rows, columns in self._slices]

    def place(self, grids: Sequence[np.ndarray | Tensor], device: torch.device | str | None = None) -> Tensor:
        """The plane (1, height, width) of an image's grids (h, w)."""
        plane = self.spread([0.0] * len(self.sizes), device)
        for place, grid in zip(self._slices, grids):
            plane[0, place[0], place[1]] = torch.as_tensor(grid, device=device)
        return plane

    def latents(self, plane: Tensor) -> Tensor:
        """The plane's positions, (B, positions)."""
        return plane[:, self.top : self.top + self.rows].flatten(1)

    def own_inputs(self, plane: Tensor) -> Tensor:
        """Inputs from the same grid, (B, own taps, positions)."""
        return shifted(plane.flatten(1), self.offsets, self.top * self.width, self.positions)

    def other_inputs(self, plane: Tensor) -> Tensor | None:
        """Inputs from another grid, (B, other taps, positions); None if the context has none."""
        context = self.context
        if context.source == "none":
            return None
        if context.source == "finer":
            offsets = tuple(dy * self.width + dx for dy, dx in context.other)
            reduced = self._reduced(plane).flatten(1)
            return shifted(reduced, offsets, self.top * self.width, self.positions)
        parent = self._parents(plane)
        down = _Swap.apply(parent, 1)
        found = {
            (0, 0): parent,
            (1, 0): down,
            (0, 1): _Swap.apply(parent, 2),
            (1, 1): _Swap.apply(down, 2),
        }
        return torch.stack([self.latents(found[tap]) for tap in context.other], 1)

    def _parents(self, plane: Tensor) -> Tensor:
        """At each latent of grid i the one of grid i + 1 above it."""
        grids, found = self.grids(plane), torch.zeros_like(plane)
        for place, (h, w), coarse in zip(self._slices, self.sizes, grids[1:]):
            batch, rows, columns = coarse.shape
            doubled = coarse[:, :, None, :, None].expand(batch, rows, 2, columns, 2)
            found[:, place[0], place[1]] = doubled.reshape(batch, 2 * rows, 2 * columns)[:, :h, :w]
        return found

    def _reduced(self, plane: Tensor) -> Tensor:
        """At each latent of grid i what `contexts.halve` makes of grid i - 1."""
        grids, found = self.grids(plane), torch.zeros_like(plane)
        taps = torch.tensor([1.0, 3.0, 3.0, 1.0], dtype=plane.dtype, device=plane.device) / 8
        kernel = (taps[:, None] * taps)[None, None]
        for place, fine in zip(self._slices[1:], grids):
            odd_y, odd_x = fine.shape[1] % 2, fine.shape[2] % 2
            padded = border_repeated(fine[:, None], (1, 1 + odd_x, 1, 1 + odd_y))
            reduced = F.conv2d(padded, kernel, stride=2)[:, 0]
            found[:, place[0], place[1]] = reduced
        return found


def border_repeated(planes: Tensor, pad: tuple[int, int, int, int]) -> Tensor:
    """Planes (B, C, h, w) with (left, right, top, bottom) more columns and rows, the outermost repeated.

    On a GPU torch adds the gradients of a repeated border in no fixed order; here the order is fixed.
    """
    return _Border.apply(planes, pad) if planes.is_cuda else F.pad(planes, pad, mode="replicate")


class _Border(torch.autograd.Function):
    """See `border_repeated`."""

    @staticmethod
    def forward(ctx, planes: Tensor, pad: tuple[int, int, int, int]) -> Tensor:
        ctx.pad = pad
        return F.pad(planes, pad, mode="replicate")

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        for dim, (before, after) in ((-1, ctx.pad[:2]), (-2, ctx.pad[2:])):
            inner = gradient.shape[dim] - before - after
            outside, gradient, beyond = gradient.split((before, inner, after), dim)
            gradient = gradient.clone()
            for end, border in ((0, outside), (inner - 1, beyond)):
                if border.shape[dim]:
                    gradient.select(dim, end).add_(border.sum(dim))
        return gradient, None


def shifted(flat: Tensor, offsets: tuple[int, ...], start: int, count: int) -> Tensor:
    """Runs flat[:, start + offset : start + offset + count] for each offset, (B, offsets, count).

    Args:
        flat: (B, n).
        offsets, start, count: such that all runs lie within n.
    """
    return _Shift.apply(flat, offsets, start, count)


class _Shift(torch.autograd.Function):
    """See `shifted`; the gradient adds the runs up again."""

    @staticmethod
    def forward(ctx, flat: Tensor, offsets: tuple[int, ...], start: int, count: int) -> Tensor:
        ctx.offsets, ctx.start, ctx.size = offsets, start, flat.shape[1]
        found = flat.new_empty(len(flat), len(offsets), count)
        for tap, offset in enumerate(offsets):
            found[:, tap] = flat[:, start + offset : start + offset + count]
        return found

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        found = gradient.new_zeros(len(gradient), ctx.size)
        count = gradient.shape[2]
        for tap, offset in enumerate(ctx.offsets):
            found[:, ctx.start + offset : ctx.start + offset + count] += gradient[:, tap]
        return found, None, None, None


class _Swap(torch.autograd.Function):
    """Exchanges rows (or columns) 2k - 1 and 2k; the first and the last become 0. It is its own transpose."""

    @staticmethod
    def forward(ctx, plane: Tensor, dim: int) -> Tensor:
        ctx.dim = dim
        return _swap(plane, dim)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        return _swap(gradient, ctx.dim), None


def _swap(plane: Tensor, dim: int) -> Tensor:
    found, last = torch.zeros_like(plane), plane.shape[dim] - 1
    odd, even = slice(1, last, 2), slice(2, last, 2)
    if dim == 1:
        found[:, odd], found[:, even] = plane[:, even], plane[:, odd]
    else:
        found[:, :, odd], found[:, :, even] = plane[:, :, even], plane[:, :, odd]
    return found
