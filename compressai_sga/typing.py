# SPDX-License-Identifier: Apache-2.0
"""Shapes and call signatures that the package shares.

Shape legend, used in every docstring:
    B  images in the batch           C  channels of a latent
    H, W  height and width in pixels  h, w  height and width of a latent
    x, x_hat: (B, 3, H, W), RGB in [0, 1];  y, z: (B, C, h, w), real-valued latents.
"""

from __future__ import annotations

from typing import Literal, Protocol

__all__ = ["Distortion", "Schedule", "StepCallback"]

Distortion = Literal["mse", "ms-ssim"]


class Schedule(Protocol):
    """A value that depends on the step only: (step, steps) -> value, 0 <= step < steps."""

    def __call__(self, step: int, steps: int) -> float: ...


class StepCallback(Protocol):
    """Called after every step with (step, steps, loss); the loss is the mean over the images."""

    def __call__(self, step: int, steps: int, loss: float) -> None: ...
