# SPDX-License-Identifier: Apache-2.0
"""What images and latents must be, checked once where they enter: for refinement, for coding, for fitting.

A pixel or a weight that is not a number would become a symbol that no table has: CompressAI's coder `ans`
never ends on it, and other coders write bytes that mean nothing. So whatever takes images calls
`check_images`, and whatever rounds latents for a coder calls `check_latents`.

In:  images (B, 3, H, W); latents and their means, of any shape. Out: nothing.
Fails with ``ShapeError`` and ``InputError``: the value, the rule, and what to do.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .errors import InputError, ShapeError

__all__ = ["LARGEST_SYMBOL", "TOLERANCE", "check_images", "check_latents", "check_weights"]

TOLERANCE = 1 / 255
"""What pixels may lie outside [0, 1]: one level of 8 bits, as decoders and filters leave it."""
LARGEST_SYMBOL = 2**24
"""float32 holds every whole number up to this; CompressAI's `ans` never ends on one from 2^27."""


def check_images(x: Tensor, *, channels: int = 3, dtypes: tuple[torch.dtype, ...] = (torch.float32,)) -> None:
    """Refuse what is no batch of images.

    Args:
        x: images (B, channels, H, W) in [0, 1].
        channels: 3 but for grey diffusion models.
        dtypes: that the model takes; the first is what the caller is told to give.

    Raises:
        ShapeError: another number of dimensions or channels, or nothing to code.
        InputError: no tensor, another type, pixels that are no finite numbers, or outside [0, 1].
    """
    dtype = dtypes[0]
    if not isinstance(x, Tensor):
        raise InputError(
            f"x is {_described(x)}; give a tensor (B, {channels}, H, W) of {dtype} in [0, 1]: an array "
            "(H, W, 3) of 8 bits becomes one by torch.from_numpy(x).permute(2, 0, 1)[None].float() / 255"
        )
    if x.dtype not in dtypes:
        convert = f"x.to({dtype})" + (" / 255" if not x.is_floating_point() else "")
        raise InputError(f"x is of {x.dtype}; give {dtype} in [0, 1], as the model takes it: {convert}")
    if x.ndim != 4 or x.shape[1] != channels or 0 in x.shape:
        kind = "RGB images" if channels == 3 else "images"
        raise ShapeError(
            f"x must be a batch of {kind} (B, {channels}, H, W) with B, H and W above 0, not "
            f"{tuple(x.shape)}{_cure(x, channels)}"
        )
    low, high = torch.stack(torch.aminmax(x)).tolist()  # NaN if any pixel is
    if -TOLERANCE <= low and high <= 1 + TOLERANCE:
        return
    wrong = ~torch.isfinite(x)
    if wrong.any():
        raise InputError(f"x has {_places(wrong)}; pixels are numbers in [0, 1]: see what made them")
    cure = "x.clamp(0, 1)"
    if low >= 0 and 2 < high < 256:
        cure = "x / 255"
    elif -1.1 < low < -0.5 and high < 1.1:
        cure = "(x + 1) / 2"
    raise InputError(f"x lies in [{low:.6g}, {high:.6g}]; pixels must lie in [0, 1]: give {cure}")


def check_latents(v: Tensor, means: Tensor | None = None, step: Tensor | None = None) -> None:
    """Refuse values that cannot be rounded to symbols.

    Args:
        v: latents.
        means: subtracted before rounding; broadcast.
        step: of the quantiser; None is 1.

    Raises:
        InputError: a value is NaN, infinite, or too far from its mean for float32.
    """
    if not v.is_floating_point() or not v.numel():
        return
    v = v if means is None else v - means
    v = v if step is None else v / step
    if float(torch.linalg.vector_norm(v.detach(), float("inf"))) < LARGEST_SYMBOL:  # never true of NaN
        return
    wrong = ~torch.isfinite(v)
    found = _places(wrong) if wrong.any() else f"values up to {float(v.abs().max()):.6g}"
    raise InputError(
        f"a latent has {found}; the symbols of a coder are finite and below 2^24: check the image and the "
        "model's weights"
    )


def check_weights(model: nn.Module) -> None:
    """Refuse weights that are NaN or infinite.

    Raises:
        InputError: the first of them, by name.
    """
    finite = [torch.isfinite(parameter.detach()).all() for parameter in model.parameters()]
    if not finite or bool(torch.stack(finite).all()):  # waits for the device once
        return
    for name, parameter in model.named_parameters():
        wrong = ~torch.isfinite(parameter.detach())
        if wrong.any():
            raise InputError(
                f"the weight {name} of {type(model).__name__} has {_places(wrong)}; load a checkpoint whose "
                "weights are finite"
            )


def _cure(x: Tensor, channels: int) -> str:
    if x.ndim == 3 and x.shape[0] == channels:
        return ": give x[None]"
    if x.ndim == 4 and x.shape[3] == channels:
        return ": give x.permute(0, 3, 1, 2)"
    if x.ndim == 4 and x.shape[1] == 1 and channels == 3:
        return ": give x.expand(-1, 3, -1, -1)"
    if x.ndim == 4 and x.shape[1] == 4 and channels == 3:
        return ": give x[:, :3], if the image is opaque"
    return ""


def _places(wrong: Tensor) -> str:
    first = tuple(wrong.nonzero()[0].tolist())
    count = int(wrong.sum())
    verb = "value that is" if count == 1 else "values that are"
    return f"{count} {verb} NaN or infinite, the first at {first}"


def _described(x: Any) -> str:
    kind = f"{type(x).__module__}.{type(x).__qualname__}".removeprefix("builtins.")
    shape = f" {x.dtype} {tuple(x.shape)}" if hasattr(x, "dtype") and hasattr(x, "shape") else ""
    return f"a {kind}{shape}"
