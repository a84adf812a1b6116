# SPDX-License-Identifier: Apache-2.0
"""Sliced Wasserstein distance between patches of the originals and of the reconstructions, scale by scale.

Karras, Aila, Laine and Lehtinen, "Progressive growing of GANs", 2018 (arXiv:1710.10196), section 5. Patches
of 7 x 7 px and 3 colours are taken from every level of an image's Laplacian pyramid. Two sets of patches are
projected on random directions; the distance is the mean of the one-dimensional Wasserstein distances of the
projections, times 1000. No network is involved. Level 0 is the finest; the coarsest level, the low-pass rest,
has at least 16 px a side. Three things differ from the authors' code, because codecs are compared here:

- Normalisation, a mean and a standard deviation for each colour and level: the authors' code gives each set
  its own, which hides a loss of energy in a level, that is, blur. Here both sets get the originals' by
  default, and 1000 is about one standard deviation of the originals. `normalise="each"` is the authors'.
- Positions: the authors' code draws them for each set alone, so equal sets have a distance above 0. Here both
  sets have the same positions by default. The projections are sorted in either case, so no patch is compared
  with its own original. `positions="independent"` is the authors'.
- 1024 patches a level and image, not 128, as a set has few images. Images may differ in size, and sides may
  be odd.

In:  pairs x, x_hat: (1, 3, H, W) in [0, 1], H, W >= 32. Out: a float a level and their mean.
Memory: 145 MB for 24 images of 512 x 768 (6 MB an image), at most 400 MB for any number of them.
Fails with ``ShapeError`` for other shapes, ``SgaError`` without images or with flat ones.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import SgaError, ShapeError

__all__ = ["SlicedWasserstein", "expand", "gaussian_pyramid", "laplacian_pyramid", "sliced_wasserstein"]

Normalise = Literal["original", "each"]
Positions = Literal["same", "independent"]

_PATCH_PX = 7
_COARSEST_PX = 16
_FLAT = 1e-4  # standard deviation below which a level is rounding noise; 8 bits have steps of 4e-3
_AT_ONCE = 128  # directions
_MOST = 2**16  # patches of one level kept in all


def _smooth(x: Tensor) -> Tensor:
    """x (B, C, H, W) under the binomial kernel (1, 4, 6, 4, 1) / 16 both ways; edges mirrored."""
    x = F.pad(x, (2, 2, 2, 2), mode="reflect")
    for dim in (2, 3):
        a, b, c, d, e = (x.narrow(dim, k, x.size(dim) - 4) for k in range(5))
        x = (a + e + 4 * (b + d) + 6 * c) / 16
    return x


def expand(x: Tensor, height: int, width: int) -> Tensor:
    """The next finer size: zeros between the pixels, then the kernel (Burt & Adelson 1983)."""
    sparse = x.new_zeros(*x.shape[:2], height, width)
    sparse[..., ::2, ::2] = x
    return 4 * _smooth(sparse)


def gaussian_pyramid(x: Tensor, levels: int) -> list[Tensor]:
    """x (B, C, H, W) and its smoothed halves, finest first; sizes are rounded up."""
    pyramid = [x]
    while len(pyramid) < levels:
        pyramid.append(_smooth(pyramid[-1])[..., ::2, ::2])
    return pyramid


def laplacian_pyramid(x: Tensor, levels: int) -> list[Tensor]:
    """g_k - expand(g_k+1) of the Gaussian pyramid g, finest first; the last level is g's last.

    Args:
        x: (B, C, H, W).
        levels: at least 1; all but the last have sides of at least 3 px.
    """
    return _bands(gaussian_pyramid(x, levels))


def _bands(pyramid: list[Tensor]) -> list[Tensor]:
    return [fine - expand(coarse, *fine.shape[-2:]) for fine, coarse in pairwise(pyramid)] + pyramid[-1:]


def sliced_wasserstein(a: Tensor, b: Tensor, directions: Tensor) -> Tensor:
    """Mean over the directions d of W_1(a d, b d) = mean_i |sort(a d)_i - sort(b d)_i|.

    Args:
        a: (n, D), one set of points.
        b: (n, D), the other.
        directions: (D, m), columns of length 1.

    Returns:
        (), in the points' units.

    Raises:
        ShapeError: the sets differ in size, or the directions have another D.
    """
    if a.ndim != 2 or a.shape != b.shape or directions.ndim != 2 or directions.size(0) != a.size(1):
        raise ShapeError(
            f"the sets are {tuple(a.shape)} and {tuple(b.shape)}, the directions {tuple(directions.shape)}; "
            "they must be (n, D), (n, D) and (D, m)"
        )
    distances = [
        (_sorted(some.T @ a.T) - _sorted(some.T @ b.T)).abs().mean(1)
        for some in directions.split(_AT_ONCE, 1)
    ]
    return torch.cat(distances).mean()


def _sorted(rows: Tensor) -> Tensor:
    """Each row sorted, by numpy, which is several times faster than torch on a CPU."""
    return torch.from_numpy(np.sort(rows.cpu().numpy(), axis=1))


class SlicedWasserstein:
    """The distance between all originals and all reconstructions; see the head of the file.

    The levels are those of the smallest image. Results with different numbers of levels, patches or settings
    cannot be compared. The order of the images does not matter, up to rounding.

    Args:
        patches: of each image and level. Beyond 2^16 patches a level, all images keep only half as many.
        directions: random directions of the projections.
        normalise: "original": both sets by the statistics of the originals; "each": each by its own.
        positions: "same" of both sets' patches, or "independent".
        seed: of positions and directions. The places in an image depend on its size alone.
    """

    def __init__(
        self,
        patches: int = 1024,
        directions: int = 512,
        normalise: Normalise = "original",
        positions: Positions = "same",
        seed: int = 0,
    ) -> None:
        _check("normalise", normalise, get_args(Normalise))
        _check("positions", positions, get_args(Positions))
        if patches < 1 or directions < 1:
            raise ValueError(f"patches is {patches} and directions {directions}; both must be at least 1")
        self._patches, self._kept = patches, patches
        self._directions, self._seed = directions, seed
        self._normalise, self._positions = normalise, positions
        # An image's levels: its patches in the band-pass and in the low-pass image, (2, n, 3, 49).
        self._images: list[list[tuple[Tensor | None, ...]]] = []

    @torch.no_grad()
    def update(self, x: Tensor, x_hat: Tensor) -> None:
        """Take the patches of one pair, (1, 3, H, W) in [0, 1] each.

        Raises:
            ShapeError: shapes differ, or a side is below 32 px.
        """
        if x.shape != x_hat.shape or x.ndim != 4 or tuple(x.shape[:2]) != (1, 3):
            raise ShapeError(
                f"the metric swd got images of {tuple(x.shape)} and {tuple(x_hat.shape)}; "
                "it takes two of (1, 3, H, W)"
            )
        if min(x.shape[2:]) < 2 * _COARSEST_PX:
            raise ShapeError(
                f"the metric swd needs two levels, so sides of at least {2 * _COARSEST_PX} px, an image has "
                f"{x.size(3)}x{x.size(2)}; leave swd or that image out"
            )
        # The same draws for every image: then the order of the images does not matter.
        generator = torch.Generator().manual_seed(self._seed)
        lows = gaussian_pyramid(torch.cat([x, x_hat]).float(), _depth(*x.shape[2:]))
        bands = _bands(lows)
        image = []
        for k, (band, low) in enumerate(zip(bands, lows)):
            places = self._places(band, generator)
            # A smaller image may make any level but the finest the coarsest one; then its low-pass counts.
            image.append(
                (
                    self._taken(band, places) if k + 1 < len(bands) else None,
                    self._taken(low - 0.5, places) if k > 0 else None,
                )
            )
        self._images.append([_first(level, self._kept) for level in image])
        if len(self._images) * self._kept > _MOST and self._kept > 1:
            self._kept //= 2
            self._images = [[_first(level, self._kept) for level in image] for image in self._images]

    def _places(self, level: Tensor, generator: torch.Generator) -> list[Tensor]:
        """Rows and columns of the patches' first pixels, (2, n), of x and of x_hat."""
        ends = [side - _PATCH_PX + 1 for side in level.shape[2:]]

        def draw() -> Tensor:
            return torch.stack([torch.randint(end, (self._patches,), generator=generator) for end in ends])

        first = draw()
        return [first, first if self._positions == "same" else draw()]

    @staticmethod
    def _taken(level: Tensor, places: list[Tensor]) -> Tensor:
        windows = level.unfold(2, _PATCH_PX, 1).unfold(3, _PATCH_PX, 1).cpu()
        taken = [windows[i][:, rows, columns].transpose(0, 1) for i, (rows, columns) in enumerate(places)]
        return torch.stack(taken).flatten(3).half()  # values around 0: errors far below a step of 8 bits

    @torch.no_grad()
    def levels(self, normalise: Normalise | None = None) -> list[float]:
        """The distance at every level of the pyramid, finest first, times 1000.

        Args:
            normalise: instead of the metric's own.

        Raises:
            SgaError: there were no images, or a level of the originals is flat.
        """
        if not self._images:
            raise SgaError("the metric swd has seen no image; call update(x, x_hat) first")
        normalise = self._normalise if normalise is None else normalise
        _check("normalise", normalise, get_args(Normalise))
        generator = torch.Generator().manual_seed(self._seed)
        directions = torch.randn(3 * _PATCH_PX**2, self._directions, generator=generator)
        directions /= directions.norm(dim=0)
        depth = min(len(image) for image in self._images)
        distances = []
        for k in range(depth):
            part = 0 if k + 1 < depth else 1
            patches = torch.cat([image[k][part] for image in self._images], 1).float()
            # In float64: sums over a million values.
            std, mean = torch.std_mean(patches.double(), (1, 3), correction=0, keepdim=True)
            if std[0].min() < _FLAT:
                raise SgaError(
                    f"level {k} of the originals is flat in a colour (standard deviation "
                    f"{float(std[0].min()):.2g}), so the metric swd has no unit there; "
                    "evaluate images with structure or leave swd out"
                )
            if normalise == "original":
                std, mean = std[:1], mean[:1]
            points = ((patches - mean) / std.clamp_min(_FLAT)).float().flatten(2)
            distances.append(1e3 * float(sliced_wasserstein(*points, directions)))
        return distances

    def compute(self) -> float:
        """The mean over the levels, times 1000.

        Raises:
            SgaError: there were no images, or a level of the originals is flat.
        """
        levels = self.levels()
        return sum(levels) / len(levels)


def _check(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} is {value!r}; it must be one of {', '.join(allowed)}")


def _depth(height: int, width: int) -> int:
    """Levels whose shorter side is at least 16 px."""
    side, depth = min(height, width), 0
    while side >= _COARSEST_PX:
        side, depth = (side + 1) // 2, depth + 1
    return depth


def _first(level: tuple[Tensor | None, ...], count: int) -> tuple[Tensor | None, ...]:
    """The first `count` patches of a level, copied so that the others' memory is free."""
    return tuple(None if patches is None else patches[:, :count].clone() for patches in level)
