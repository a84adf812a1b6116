# SPDX-License-Identifier: Apache-2.0
"""Sizes that follow from the image's size: its padding, and the `shape` that a decoder is given.

A codec of n halvings sees the image padded to multiples of 2^n pixels. CompressAI's models return as `shape`
the sizes of their latents, which are that padded size halved a number of times. A file keeps only these
numbers of halvings, so no file can ask for latents that are too large for its image.

In:  width and height in pixels; a model's `shape`. Out: padding and sizes in pixels; the `shape` in
halvings, and back. Fails with ``ValueError`` on a `shape` that is something else.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["expand_shape", "padded_size", "padding", "reduce_shape"]


def padding(width: int, height: int, stride: int) -> tuple[int, int, int, int]:
    """(left, right, top, bottom) that makes the sides multiples of 2^stride, in pixels."""
    columns, rows = -width % (1 << stride), -height % (1 << stride)
    return columns // 2, columns - columns // 2, rows // 2, rows - rows // 2


def padded_size(width: int, height: int, stride: int) -> tuple[int, int]:
    """(height, width) of the padded image in pixels."""
    left, right, top, bottom = padding(width, height, stride)
    return height + top + bottom, width + left + right


def reduce_shape(shape: Any, padded: tuple[int, int], stride: int) -> Any:
    """A model's `shape` with each size replaced by its number of halvings, as a container keeps it.

    Args:
        shape: (h, w) or (c, h, w), or lists and dicts of such.
        padded: (H, W) in pixels.
        stride: log2 of what H and W are multiples of; no more halvings than that.

    Returns:
        k for (H >> k, W >> k), (c, k) for three numbers; lists and dicts of such.

    Raises:
        ValueError: a size that is not the image's halved a number of times.
    """
    if isinstance(shape, Mapping):
        return {str(name): reduce_shape(part, padded, stride) for name, part in shape.items()}
    if not all(isinstance(part, int) for part in shape):
        return [reduce_shape(part, padded, stride) for part in shape]
    *channels, height, width = (int(part) for part in shape)
    for k in range(stride + 1):
        if (height, width) == (padded[0] >> k, padded[1] >> k) and len(channels) < 2:
            return (channels[0], k) if channels else k
    raise ValueError(
        f"shape {tuple(shape)} is not the size {padded[0]}x{padded[1]} of the padded image halved 0 to "
        f"{stride} times; a model with such latents cannot be stored in a .csga file"
    )


def expand_shape(shape: Any, padded: tuple[int, int]) -> Any:
    """The `shape` that the model's decompress takes, from a container's `shape` and the padded (H, W)."""
    if isinstance(shape, int):
        return padded[0] >> shape, padded[1] >> shape
    if isinstance(shape, tuple):
        return shape[0], padded[0] >> shape[1], padded[1] >> shape[1]
    if isinstance(shape, Mapping):
        return {name: expand_shape(part, padded) for name, part in shape.items()}
    return [expand_shape(part, padded) for part in shape]
