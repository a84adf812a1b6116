# SPDX-License-Identifier: Apache-2.0
"""The sampler of HFD: draws the residual of the first stage, for one image of any size.

    r ~ p(r | x_1),   x_hat = x_1 + realism tau r,   z and r as in `network`

from noise to r in a fixed number of steps (diffusion/samplers.py), each of which removes the same noise in
dB. The cosine schedule of the training, cut into steps of equal time, needs four times as many steps for the
same detail (32 instead of 8, measured with the sliced Wasserstein distance and a second-order sampler). In
every step the network sees overlapping windows of one noisy image (diffusion/tiling.py): no seams, and only a
few windows in memory. r is clamped so that x_1 + tau r stays in [0, 1], where the mean of x lies.

The noise is a function of (seed, step, channel, row, column) by channels/prng.py, the same on every device.
Windows share it, and an image that is cut at its right or lower end keeps its noise. The seed is a hash of
the image's strings: the decoder knows it, and it takes no bits.

In:  x_1 (1, 3, H, W) in [0, 1], a seed in [0, 2^64). Out: tau r, the same shape.
Fails with ``ShapeError`` for images under 64 px, ``ValueError`` for numbers out of range.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, get_args

import torch
from torch import Tensor

from ...channels import prng
from ...diffusion.parametrisations import convert
from ...diffusion.samplers import SamplerName, sample
from ...diffusion.schedules import LinearLogSnr, grid
from ...diffusion.tiling import blend
from ...errors import ShapeError
from ...refine.synthesis import Precision, bfloat16_is_fast

__all__ = ["LEVELS", "SMALLEST_PX", "Sampling", "draw_residual", "pixel_noise", "seed_of"]

LEVELS = LinearLogSnr(lowest=-8.0, highest=8.0)
"""Log-SNRs of r at which the network is asked; the last step, from below the highest, ends without noise."""

SMALLEST_PX = 64
"""The side of an image must have as much: the smallest crops in training."""

_ROWS = 64  # of noise made at a time, which takes some 100 bytes a number


class Denoiser(Protocol):
    """The part of `network.ResidualDenoiser` that the sampler uses."""

    deviations: Tensor
    multiple: int

    def label_of(self, quality: int) -> int: ...

    def __call__(self, z: Tensor, log_snr: Tensor, x_first: Tensor, label: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class Sampling:
    """How to draw.

    Args:
        steps: of the sampler, at least 1.
        method: of the steps, see diffusion/samplers.py.
        window: largest side of the network's windows, px.
        overlap: of neighbouring windows, px, at most half of `window`.
        batch: windows that the network sees at a time.
        precision: of the network; "auto" takes bfloat16 where the device multiplies it fast.
    """

    steps: int
    method: SamplerName
    window: int
    overlap: int
    batch: int
    precision: Precision

    def __post_init__(self) -> None:
        for name, value, known in (
            ("method", self.method, SamplerName),
            ("precision", self.precision, Precision),
        ):
            if value not in get_args(known):
                raise ValueError(f"{name} is {value!r}; choose one of {', '.join(get_args(known))}")
        if min(self.steps, self.batch, self.window) < 1 or not 0 <= self.overlap <= self.window // 2:
            raise ValueError(
                f"steps is {self.steps}, batch {self.batch}, window {self.window} px and overlap "
                f"{self.overlap} px; the overlap goes from 0 to half the window, the others start at 1"
            )

    def windows_of(self, height: int, width: int, multiple: int) -> tuple[tuple[int, int], int]:
        """(height, width) of the windows on an image, and their overlap, px.

        There are as few windows as `window` and `overlap` allow, and each is as small as this number allows.

        Args:
            height, width: of the image, px.
            multiple: what sides of windows are multiples of.

        Raises:
            ShapeError: the image is too small.
            ValueError: the window is smaller than the network takes.
        """
        smallest = max(SMALLEST_PX, multiple)
        if min(height, width) < smallest:
            raise ShapeError(
                f"the first stage's image has {height}x{width} px; drawing needs {smallest} px a side: "
                "pad the image before it is compressed, or take the first stage's image with realism=0"
            )
        largest = self.window // multiple * multiple
        if largest == 0:
            raise ValueError(
                f"window is {self.window} px; it must be at least {multiple} px for this network"
            )
        overlap = min(self.overlap, largest // 2)

        def side(size: int) -> int:
            fits = size // multiple * multiple
            count = -(-(size - overlap) // (largest - overlap))
            if count <= 1:
                return fits
            return min(fits, -(-(size - overlap + count * overlap) // (count * multiple)) * multiple)

        window = side(height), side(width)
        return window, min(overlap, min(window) // 2)


def draw_residual(
    denoiser: Denoiser,
    x_first: Tensor,
    *,
    quality: int,
    seed: int,
    sampling: Sampling,
    on_step: Callable[[], None] | None = None,
) -> Tensor:
    """A draw of tau r for one image.

    Args:
        denoiser: the network; called with its own type of numbers.
        x_first: x_1, (1, 3, H, W) in [0, 1].
        quality: of the first stage.
        seed: of the noise, in [0, 2^64).
        sampling: how.
        on_step: told after every step; an exception in it ends the sampling.

    Returns:
        tau r, (1, 3, H, W), float32.
    """
    x_first = x_first.float()
    window, overlap = sampling.windows_of(*x_first.shape[2:], denoiser.multiple)
    label = denoiser.label_of(quality)
    tau = float(denoiser.deviations[label])
    own, device = denoiser.deviations.dtype, x_first.device
    known = torch.tensor(label, device=device)
    bfloat16 = own == torch.float32 and (
        sampling.precision == "bfloat16" or (sampling.precision == "auto" and bfloat16_is_fast(device))
    )

    def predict(z: Tensor, log_snr: Tensor) -> Tensor:
        def network(*windows: Tensor) -> Tensor:
            z, x_first = (w.to(own).contiguous(memory_format=torch.channels_last) for w in windows)
            with torch.autocast(device.type, torch.bfloat16, enabled=bfloat16):
                return denoiser(z, log_snr, x_first, known).float()

        v = blend(network, [z, x_first], window=window, overlap=overlap, batch=sampling.batch)
        return convert(v, z, log_snr, source="v", to="x").clamp(-x_first / tau, (1 - x_first) / tau)

    def noise(step: int, z: Tensor) -> Tensor:
        return pixel_noise(seed, step + 1, z)

    r = sample(
        predict,
        pixel_noise(seed, 0, x_first),
        grid(LEVELS, sampling.steps),
        method=sampling.method,
        noise=noise,
        progress=None if on_step is None else lambda *_: on_step(),
    )
    return tau * r


def pixel_noise(seed: int, step: int, like: Tensor) -> Tensor:
    """Standard normal numbers of the shape (1, C, H, W) and on the device of `like`, float32.

    The number of a pixel depends on (seed, step, channel, row, column) alone: it is lane `column` of block
    `row` and candidate `channel` in `prng.normal`.
    """
    _, channels, height, width = like.shape
    channel = torch.arange(channels, device=like.device)[:, None]
    noise = torch.empty(like.shape, device=like.device)
    for top in range(0, height, _ROWS):
        row = torch.arange(top, min(top + _ROWS, height), device=like.device)
        noise[0, :, top : top + _ROWS] = prng.normal(
            seed, lanes=width, step=step, block=row, candidate=channel, dtype=torch.float32
        )
    return noise


def seed_of(strings: Sequence[bytes]) -> int:
    """A seed of 64 bits: a hash of one image's strings and of their lengths."""
    digest = hashlib.sha256()
    for string in strings:
        digest.update(len(string).to_bytes(8, "little") + string)
    return int.from_bytes(digest.digest()[:8], "little")
