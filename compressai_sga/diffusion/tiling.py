# SPDX-License-Identifier: Apache-2.0
"""Applies a network for small images to large ones, by overlapping windows whose results are blended.

A sampler that cuts an image into tiles and draws each on its own leaves seams, because two draws need not
agree. In Bar-Tal et al., "MultiDiffusion", 2023, there is one noisy image instead. The network sees windows
of it, and every step uses the weighted mean of their predictions:

    result(p) = sum_k w_k(p) f(window_k)(p) / sum_k w_k(p)

with the sums over the windows that hold the pixel p. w is a product over rows and columns and falls to the
window's edge as the polynomial 3 t^2 - 2 t^3, over `overlap` pixels. The mean is updated window by window,

    total += w_k,   mean += (w_k / total) (f_k - mean),

so that it equals f exactly where the windows agree, and only `batch` windows are in memory at a time. Windows
are processed row by row, image after image, and a batch never holds windows of two images. So with the same
`batch` an image's result is the same, bit for bit, alone and among others. The order of the sums does not
depend on `batch` either; whether the function's own results do depends on the function (see `exact`).

In:  images (B, C_i, H, W) that the function sees together. Out: (B, C', H, W) of its type.
Fails with ``ShapeError`` for images that are smaller than the window or of different sizes, ``ValueError``
for numbers out of range.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from ..errors import ShapeError

__all__ = ["blend", "window_positions"]


def blend(
    function: Callable[..., Tensor],
    images: Sequence[Tensor],
    *,
    window: int | tuple[int, int],
    overlap: int,
    batch: int = 4,
) -> Tensor:
    """The weighted mean of a function's results on overlapping windows; see the head of the file.

    Args:
        function: (b, C_i, h, w) of each image, at the same places -> (b, C', h, w).
        images: (B, C_i, H, W) each, on one device.
        window: height h and width w of the windows, px; one number for squares.
        overlap: pixels that neighbours share at least, in [0, min(h, w)); 0 for hard edges.
        batch: windows that the function gets at a time, at most.

    Returns:
        (B, C', H, W), of the type and on the device of the function's results.

    Raises:
        ShapeError: H or W is less than the window, images differ in B, H or W, or the function's result does
            not lie on its window.
        ValueError: overlap or batch is out of range.
    """
    h, w = window if isinstance(window, tuple) else (window, window)
    count, height, width = _size(images, h, w)
    if not 0 <= overlap < min(h, w) or batch < 1:
        raise ValueError(
            f"overlap is {overlap} and batch {batch}, with windows of {h}x{w} px; the overlap lies in "
            f"[0, {min(h, w)}) and batch is at least 1"
        )
    places = [
        (slice(top, top + h), slice(left, left + w))
        for top in window_positions(height, h, overlap)
        for left in window_positions(width, w, overlap)
    ]
    # Sums and products alone, so that every machine has the same.
    weight = (_side(h, overlap)[:, None] * _side(w, overlap)).to(images[0].device, torch.float32)
    result: Tensor | None = None
    for index in range(count):
        total = weight.new_zeros(height, width)
        for place, value in _values(function, [image[index] for image in images], places, batch):
            if result is None:
                result = value.new_zeros(count, value.shape[0], height, width)
            total[place] += weight
            mean = result[index][:, place[0], place[1]]
            mean += (weight / total[place]).to(value) * (value - mean)
    return result


def window_positions(size: int, window: int, overlap: int) -> list[int]:
    """The windows' first pixels along a side: evenly spaced, as few as the overlap allows."""
    gaps = -(-(size - window) // (window - overlap))
    return [i * (size - window) // gaps for i in range(gaps)] + [size - window]


def _values(
    function: Callable[..., Tensor], images: list[Tensor], places: list[tuple[slice, slice]], batch: int
) -> Iterator[tuple[tuple[slice, slice], Tensor]]:
    """Every place of one image with the function's result there, (C', h, w)."""
    for start in range(0, len(places), batch):
        some = places[start : start + batch]
        windows = [torch.stack([image[:, rows, columns] for rows, columns in some]) for image in images]
        values = function(*windows)
        if values.dim() != 4 or len(values) != len(some) or values.shape[2:] != windows[0].shape[2:]:
            raise ShapeError(
                f"the function made {tuple(values.shape)} of windows {tuple(windows[0].shape)}; its result "
                "must have as many windows, of the same size"
            )
        yield from zip(some, values)


def _side(size: int, overlap: int) -> Tensor:
    """(size,) in (0, 1], float64: 3 t^2 - 2 t^3 on the way to the edge."""
    middle = torch.arange(size, dtype=torch.float64) + 0.5
    edge = torch.minimum(middle, size - middle)
    t = (edge / max(overlap, 0.5)).clamp(max=1.0)
    return t * t * (3 - 2 * t)


def _size(images: Sequence[Tensor], h: int, w: int) -> tuple[int, int, int]:
    """B, H and W of all the images."""
    sizes = {(image.shape[0], *image.shape[2:]) if image.dim() == 4 else () for image in images}
    if len(sizes) != 1 or () in sizes or 0 in next(iter(sizes)):
        raise ShapeError(
            f"images have the shapes {[tuple(image.shape) for image in images]}; give at least one image, "
            "each (B, C, H, W) with the same B, H and W, none of them 0"
        )
    count, height, width = next(iter(sizes))
    if not (1 <= h <= height and 1 <= w <= width):
        raise ShapeError(
            f"an image of {height}x{width} px has no window of {h}x{w} px; windows have sides from 1 px to "
            "the image's: pad the image, or take smaller windows"
        )
    return count, height, width
