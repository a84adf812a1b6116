# SPDX-License-Identifier: Apache-2.0
"""The universal critic, approximated by real codes: is there a shorter code than the model's?

Theis, "What makes an image realistic?", 2024 (arXiv:2403.04493). With a model P of real images,

    U(x) = -log2 P(x) - K(x)              bits; large means unrealistic
    U(x_1, ..., x_n) = -sum_i log2 P(x_i) - K(x_1, ..., x_n)

where K is the Kolmogorov complexity, -log2 of a mixture S of all computable distributions. -log2 P alone
calls a likely image realistic, so it prefers a blurred image to its original, and it cannot see that all
images of a batch are equal. K cannot be computed. Here it is replaced by the length of a code: of a
compressor, an explicit model, or a finite mixture S = sum_i w_i Q_i of them, Q_i = 2^-bits. The two
properties of a critic remain true:

    sum_x P(x) 2^U(x) = sum_x S(x) <= 1, so P(U >= t) <= 2^-t               real images seldom have large U
    U(x) >= log2 w_i + log2 Q_i(x) / P(x)                         it sees whatever one part of S sees

The critic misses every structure that no part of S can compress. If P is a poor model of real images, U is
large for them too.

In:  images, or what the codes take. Out: bits, float64, (B,) or () for the batch; `critic_bpp` bits a pixel.
Fails with ``SgaError`` for a format that Pillow cannot write, ``ShapeError`` for other images.
"""

from __future__ import annotations

import functools
import importlib
import io
import math
from collections.abc import Sequence
from typing import Any, Literal, Protocol, get_args

import torch
from PIL import Image
from torch import Tensor

from ..errors import SgaError, ShapeError
from .photographs import PHOTOGRAPHS
from .pixel_model import FittedPixelModel, check_images

__all__ = ["Code", "Compressor", "Mixture", "batch_critic", "critic", "critic_bpp", "default_reference"]

Format = Literal["png", "webp", "jxl"]
_LOSSLESS: dict[str, dict[str, Any]] = {
    "png": {"optimize": True},
    "webp": {"lossless": True, "quality": 100, "method": 4, "exact": True},
    "jxl": {"lossless": True, "effort": 7},
}
_MOST_PX = {"png": 2**31 - 1, "webp": 16383, "jxl": 2**30}


class Code(Protocol):
    """Code lengths, or -log2 of probabilities: sum_x 2^-bits(x) <= 1, over single items and over batches."""

    def bits(self, x: Tensor) -> Tensor:
        """Bits of each item of the batch, coded alone, (B,)."""

    def joint_bits(self, x: Tensor) -> Tensor:
        """Bits of the whole batch, coded together, ()."""


class Compressor:
    """The size of real lossless files, as Pillow writes them.

    A batch is one file: a picture of all images below each other. WebP finds what is repeated within 2^20
    pixels, PNG within 32 kB; JPEG XL at this effort looks for no repetitions.

    Args:
        format: "png", "webp" or "jxl"; the last needs the package pillow-jxl-plugin.

    Raises:
        SgaError: Pillow cannot write the format.
    """

    def __init__(self, format: Format) -> None:
        if format not in get_args(Format):
            raise ValueError(f"format is {format!r}; it must be one of {', '.join(get_args(Format))}")
        if format == "jxl":
            try:
                importlib.import_module("pillow_jxl")
            except ImportError as error:
                raise SgaError(
                    f"Pillow cannot write jxl without a plug-in ({error}); pip install pillow-jxl-plugin"
                ) from error
        Image.init()
        if format.upper() not in Image.SAVE:
            raise SgaError(f"this Pillow cannot write {format}; install one with {format}, or take png")
        self.format = format

    def bits(self, x: Tensor) -> Tensor:
        """File sizes in bits, (B,), of the images (B, 3, H, W), uint8."""
        return torch.stack([self.joint_bits(image[None]) for image in x])

    def joint_bits(self, x: Tensor) -> Tensor:
        """Size in bits, (), of one file with all images."""
        check_images(x)
        rows = x.permute(0, 2, 3, 1).flatten(0, 1)
        if max(rows.shape[:2]) > _MOST_PX[self.format]:
            raise ShapeError(
                f"one {self.format} file of all images would have {rows.size(1)}x{rows.size(0)} px, but its "
                f"sides have at most {_MOST_PX[self.format]} px; take smaller batches"
            )
        data = io.BytesIO()
        image = Image.fromarray(rows.contiguous().cpu().numpy())
        image.save(data, format=self.format, **_LOSSLESS[self.format])
        return torch.tensor(8.0 * len(data.getvalue()), dtype=torch.float64)


class Mixture:
    """S = sum_i w_i Q_i of several codes; of a batch sum_i w_i Q_i(x_1, ..., x_n).

    Args:
        parts: the codes.
        weights: positive, with a sum of at most 1; equal by default.
    """

    def __init__(self, parts: Sequence[Code], weights: Sequence[float] | None = None) -> None:
        weights = [1 / max(1, len(parts))] * len(parts) if weights is None else list(weights)
        if not parts or len(weights) != len(parts):
            raise ValueError(
                f"there are {len(parts)} parts and {len(weights)} weights; give one weight a part"
            )
        if min(weights) <= 0 or sum(weights) > 1 + 1e-9:
            raise ValueError(f"the weights are {weights}; they must be positive with a sum of at most 1")
        self.parts = tuple(parts)
        self._log_weights = torch.tensor(weights, dtype=torch.float64).log()

    def _mixed(self, bits: list[Tensor]) -> Tensor:
        logs = torch.stack([b.double() for b in bits]) * -math.log(2)
        weights = self._log_weights.view(-1, *[1] * (logs.ndim - 1))
        return -(weights + logs).logsumexp(0) / math.log(2)

    def bits(self, x: Tensor) -> Tensor:
        """-log2 S of each item, (B,)."""
        return self._mixed([part.bits(x) for part in self.parts])

    def joint_bits(self, x: Tensor) -> Tensor:
        """-log2 S of the batch, ()."""
        return self._mixed([part.joint_bits(x) for part in self.parts])


def critic(x: Tensor, model: Code, reference: Code) -> Tensor:
    """U(x) = bits under the model - bits under the reference, of each item.

    Args:
        x: items, batch first.
        model: the P of real items; any bound on -log2 P makes U too large by as much.
        reference: stands for K.

    Returns:
        (B,), bits.
    """
    return model.bits(x) - reference.bits(x)


def batch_critic(x: Tensor, model: Code, reference: Code) -> Tensor:
    """U(x_1, ..., x_n): the model treats the items as independent, the reference may use what they share.

    Args:
        x: the batch.
        model: as for `critic`.
        reference: as for `critic`.

    Returns:
        (), bits.
    """
    return model.bits(x).sum() - reference.joint_bits(x)


@functools.lru_cache(maxsize=1)
def default_reference() -> Mixture:
    """The codes that replace K in `critic_bpp`: the two-part code of the pixel model, and lossless WebP."""
    return Mixture((FittedPixelModel(), Compressor("webp")))


def critic_bpp(x: Tensor, x_hat: Tensor) -> float:
    """U of the reconstruction alone, bits a pixel: `PHOTOGRAPHS` against `default_reference`.

    The value of a real photograph is not 0, as no photograph follows the model exactly; compare with the
    originals' values, `critic_bpp(x, x)`.

    Args:
        x: the original; not looked at.
        x_hat: the reconstruction, (1, 3, H, W) in [0, 1].
    """
    pixels = (x_hat * 255).round().clamp(0, 255).to(torch.uint8).cpu()
    u = critic(pixels, PHOTOGRAPHS, default_reference())
    return float(u.sum()) / (x_hat.size(0) * x_hat.size(2) * x_hat.size(3))
