# SPDX-License-Identifier: Apache-2.0
"""The context of the entropy net: earlier latents of the same grid, and latents of a neighbouring grid.

Grid i has ceil(H / 2^i) x ceil(W / 2^i) latents, i = 0 the finest. The net's inputs for the latent at
(y, x) are, in this order,
    own taps     the latents at (y + dy, x + dx) of the same grid, all before it in raster order,
    other taps   of a grid that is already decoded, at the offsets (dy, dx) around its point (Y, X):
        source "coarser" (ours): grid i + 1, (Y, X) = (y // 2, x // 2), and the offsets are counted
            towards the nearest neighbours: (1, 0) is the parent's neighbour on the side where (y, x)
            lies in its parent, (-1, 0) the far one. So one set of weights fits all four children, and
            the four offsets (0 or 1, 0 or 1) are those of bilinear upsampling. Coarse to fine.
        source "finer" (C3's CLIC variant, Kim et al. 2024, section 3.2): grid i - 1, reduced to the size
            of grid i by the filter [1 3 3 1] / 8 in both directions, which is bilinear resizing with
            antialiasing by two; the border latents are repeated outwards. Fine to coarse.
Taps outside a grid are 0, and so are the other taps of the grid that is coded first. Latents are clamped to
+-clamp and enter in units of 2^-8, in which the filter is exact: |input| <= 127 * 2^8 < 2^15.

Wavefront: latents (y, x) with the same t = x + slope * y do not see one another. Here slope is the smallest
integer >= 1 with dx + slope * dy < 0 for every own tap, that is, max floor(dx / -dy) + 1 over the taps
above. Latents are coded grid by grid, then in the order of t, then of y. (3, 3) masks have slope 4.

In:  grids, a list of int32 (h, w) arrays. Out: float64 arrays of integers, (taps, positions).
Fails with ``ValueError`` on taps that are not causal, occur twice, or are too far away.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

__all__ = [
    "C3",
    "C3_FINER",
    "FEATURE_BITS",
    "MAX_CLAMP",
    "MAX_REACH",
    "MAX_SIDE_PX",
    "Context",
    "Source",
    "Taps",
    "grid_sizes",
    "halve",
    "nearest_taps",
    "square_taps",
]

Taps = tuple[tuple[int, int], ...]
Source = Literal["none", "coarser", "finer"]

FEATURE_BITS = 8  # fractional bits of the net's inputs
MAX_CLAMP = 127
MAX_REACH = 7  # of a tap, in either direction
MAX_SIDE_PX = 1 << 15


@dataclass(frozen=True)
class Context:
    """The taps of an entropy net; see the file's head.

    Args:
        own: (dy, dx) of the latents before the current one.
        other: (dy, dx) in the other grid.
        source: which grid that is; "none" exactly if there are no other taps.

    Raises:
        ValueError: taps that a decoder does not have, or no taps at all.
    """

    own: Taps
    other: Taps = ()
    source: Source = "none"

    def __post_init__(self) -> None:
        if self.source not in get_args(Source):
            raise ValueError(f"source is {self.source!r}; choose one of {', '.join(get_args(Source))}")
        if (self.source == "none") != (not self.other) or not (self.own or self.other):
            raise ValueError(
                f"{len(self.own)} own taps, {len(self.other)} other taps, source {self.source!r}: give at "
                "least one tap, and a source other than 'none' if and only if there are other taps"
            )
        for name, taps in (("own", self.own), ("other", self.other)):
            if len(set(taps)) != len(taps) or any(max(map(abs, tap)) > MAX_REACH for tap in taps):
                raise ValueError(f"{name} taps {taps}: give each once, at most {MAX_REACH} away")
        late = [(dy, dx) for dy, dx in self.own if dy > 0 or (dy == 0 and dx >= 0)]
        if late:
            raise ValueError(f"own taps {late} are not yet decoded; take dy < 0, or dy = 0 and dx < 0")

    @property
    def width(self) -> int:
        """Number of inputs of the net."""
        return len(self.own) + len(self.other)

    @property
    def slope(self) -> int:
        """Number of columns by which a row must be ahead of the row below it."""
        return max([1, *(dx // -dy + 1 for dy, dx in self.own if dy < 0)])

    def order(self, count: int) -> list[int]:
        """The grids' indexes in coding order: coarse to fine, unless the source is the finer grid."""
        return list(range(count)) if self.source == "finer" else list(range(count - 1, -1, -1))

    def front_order(self, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
        """The wavefront's order of a grid.

        Returns:
            (positions,) int64 raster positions as they are coded, and (fronts + 1,) int64 where in
            them each front begins.
        """
        front = (self.slope * np.arange(height)[:, None] + np.arange(width)).ravel()
        counts = np.bincount(front)
        return np.argsort(front, kind="stable"), np.concatenate([[0], np.cumsum(counts)])

    def other_plane(self, grids: Sequence[np.ndarray | None], index: int, clamp: int) -> np.ndarray | None:
        """The source grid of grid `index` in units of 2^-8, int32; None for the grid coded first."""
        if self.source == "coarser" and index + 1 < len(grids):
            return np.clip(grids[index + 1], -clamp, clamp) << FEATURE_BITS
        if self.source == "finer" and index > 0:
            return halve(np.clip(grids[index - 1], -clamp, clamp))
        return None

    def other_inputs(self, plane: np.ndarray | None, size: tuple[int, int], rows: slice) -> np.ndarray:
        """The other taps of all positions in some rows of a grid: (taps, positions) float64.

        Args:
            plane: from `other_plane`.
            size: (h, w) of the grid.
            rows: start and stop of the rows.
        """
        _, width = size
        y, x = np.arange(rows.start, rows.stop), np.arange(width)
        found = np.zeros((len(self.other), len(y), width))
        if plane is not None:
            padded = np.pad(plane.astype(np.float64), MAX_REACH)
            y_side, x_side = 1, 1
            if self.source == "coarser":
                y_side, x_side = 2 * (y & 1) - 1, 2 * (x & 1) - 1
                y, x = y >> 1, x >> 1
            for tap, (dy, dx) in enumerate(self.other):
                found[tap] = padded[np.ix_(y + y_side * dy + MAX_REACH, x + x_side * dx + MAX_REACH)]
        return found.reshape(len(self.other), (rows.stop - rows.start) * width)

    def inputs(
        self, grids: Sequence[np.ndarray], index: int, clamp: int, rows: slice | None = None
    ) -> np.ndarray:
        """The net's inputs at all positions of a grid, in raster order, for the encoder, who knows them all.

        Args:
            grids: all of them, int32.
            index: of the grid.
            clamp: on latents, 1 to 127.
            rows: start and stop of the rows wanted; all of them by default.

        Returns:
            (width, positions) float64, integers, in units of 2^-8.
        """
        height, width = grids[index].shape
        rows = rows or slice(0, height)
        lines = np.zeros((rows.stop - rows.start + MAX_REACH, width + 2 * MAX_REACH))
        first = max(0, rows.start - MAX_REACH)
        known = np.clip(grids[index][first : rows.stop], -clamp, clamp) << FEATURE_BITS
        lines[len(lines) - len(known) :, MAX_REACH : MAX_REACH + width] = known
        own = np.empty((len(self.own), rows.stop - rows.start, width))
        for tap, (dy, dx) in enumerate(self.own):
            top, left = MAX_REACH + dy, MAX_REACH + dx
            own[tap] = lines[top : top + own.shape[1], left : left + width]
        plane = self.other_plane(grids, index, clamp)
        return np.concatenate(
            [
                own.reshape(len(self.own), own.shape[1] * width),
                self.other_inputs(plane, (height, width), rows),
            ]
        )


def halve(grid: np.ndarray) -> np.ndarray:
    """A grid of (ceil(h/2), ceil(w/2)) from one of (h, w): [1 3 3 1] / 8 both ways, in units of 2^-8.

    Args:
        grid: (h, w) integers within +-127; the rows 2y - 1 ... 2y + 2 make row y.

    Returns:
        int32, exact: the filter's 64 times 4.
    """
    grid = grid.astype(np.int32)
    for axis in (0, 1):
        size = grid.shape[axis]
        at = 2 * np.arange((size + 1) // 2)
        near, far = ((0, 1), (-1, 2))
        grid = 3 * sum(grid.take(np.clip(at + d, 0, size - 1), axis) for d in near) + sum(
            grid.take(np.clip(at + d, 0, size - 1), axis) for d in far
        )
    return grid << (FEATURE_BITS - 6)


def square_taps(radius: int) -> Taps:
    """The causal half of a square mask: 24 taps for radius 3, 12 for radius 2."""
    side = range(-radius, radius + 1)
    return tuple((dy, dx) for dy in range(-radius, 1) for dx in side if (dy, dx) < (0, 0))


def nearest_taps(count: int) -> Taps:
    """The `count` nearest causal positions; at equal distances, the earlier side first."""
    taps = sorted(square_taps(MAX_REACH), key=lambda tap: (tap[0] ** 2 + tap[1] ** 2, tap[1], tap[0]))
    if not 0 <= count <= 40:
        raise ValueError(f"count is {count}; choose 0 to 40")
    return tuple(taps[:count])


@functools.cache
def grid_sizes(height: int, width: int, count: int = 7, first: int = 0) -> tuple[tuple[int, int], ...]:
    """(ceil(H / 2^i), ceil(W / 2^i)) for i = first ... first + count - 1.

    Raises:
        ValueError: a side or a count that no file holds.
    """
    if not (1 <= height <= MAX_SIDE_PX and 1 <= width <= MAX_SIDE_PX):
        raise ValueError(f"image of {height} x {width}: sides from 1 to {MAX_SIDE_PX} can be coded")
    if not (1 <= count <= 16 and 0 <= first <= 16):
        raise ValueError(f"{count} grids from {first} on: 1 to 16 grids, from 0 to 16")
    return tuple((-(-height // 2**i), -(-width // 2**i)) for i in range(first, first + count))


# The paper's contexts.
C3 = Context(own=square_taps(3))
C3_FINER = Context(
    own=square_taps(3),
    other=tuple((dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)),
    source="finer",
)
