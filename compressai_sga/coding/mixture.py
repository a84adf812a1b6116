# SPDX-License-Identifier: Apache-2.0
"""CompressAI's Gaussian mixture model (Cheng et al. 2020) with our coders: a table for every symbol.

`compress` and `decompress` do what the methods of `GaussianMixtureConditional` do. The counts are those
of its `_build_cdf`; they go to `constriction` as one array of probabilities, not as nested lists.
Symbols lie within the table by its construction, so that there are no escapes. Channels that are zero
throughout are left out, as in stock.

In:  y (1, C, H, W); scales, means, weights (1, K C, H, W). Out: as stock's.
Fails with ``ShapeError`` on more than one image, where the stock code mixes the images up; ``InputError`` on
values that are not finite;
``BitstreamError`` on a string that was not made for these parameters, or on an impossible `abs_max`.
"""

from __future__ import annotations

import constriction
import numpy as np
import torch
from torch import Tensor, nn

from ..errors import BitstreamError, ShapeError
from ..inputs import check_latents
from .entropy_models import coder_of

__all__ = ["compress", "decompress"]

_family = constriction.stream.model.Categorical(perfect=False)
MOST_COUNTS = 1 << 28  # counts that one table may have: 1 GiB, checked before they are made


@torch.no_grad()
def compress(
    mixture: nn.Module, y: Tensor, scales: Tensor, means: Tensor, weights: Tensor
) -> tuple[tuple[bytes, int, Tensor], Tensor]:
    """GaussianMixtureConditional.compress: ((string, abs_max, zero_bitmap), y rounded)."""
    _require_one(y)
    for part in (y, scales, means, weights):
        check_latents(part)
    y_quantized = torch.round(y)
    largest = int(y_quantized.abs().max()) if y.numel() else 0
    # Stock's own bound, which it takes before rounding: 1 more than the largest integer part.
    abs_max = max(int(y.abs().max()) + 1 if y.numel() else 1, largest, 1)
    zero_bitmap = (y_quantized.abs().sum((3, 2)).squeeze(0) != 0).long()
    kept = torch.nonzero(zero_bitmap).flatten().tolist()
    probabilities = _probabilities(mixture, scales, means, weights, kept, abs_max)
    symbols = (y_quantized[:, kept] + abs_max).reshape(-1).int().cpu().numpy()
    string = coder_of(mixture).encode_each(symbols, _family, probabilities)
    return (string, abs_max, zero_bitmap), y_quantized


@torch.no_grad()
def decompress(
    mixture: nn.Module,
    strings: bytes,
    abs_max: int,
    zero_bitmap: Tensor,
    scales: Tensor,
    means: Tensor,
    weights: Tensor,
) -> Tensor:
    """GaussianMixtureConditional.decompress: y_hat (1, C, H, W).

    Raises:
        BitstreamError: the string was not made for these parameters.
    """
    _require_one(scales)
    kept = torch.nonzero(zero_bitmap).flatten().tolist()
    probabilities = _probabilities(mixture, scales, means, weights, kept, int(abs_max))
    decoder = coder_of(mixture).decoder(strings)
    values = decoder.decode_each(_family, probabilities)
    decoder.finish()
    height, width = scales.shape[2:]
    y_hat = torch.zeros(1, zero_bitmap.size(0), height, width)
    symbols = torch.from_numpy(values.astype(np.int64)) - int(abs_max)
    y_hat[:, kept] = symbols.reshape(1, -1, height, width).float()
    return y_hat


def _probabilities(
    mixture: nn.Module, scales: Tensor, means: Tensor, weights: Tensor, kept: list[int], abs_max: int
) -> np.ndarray:
    """(symbols, 2 abs_max + 1) float32, of CompressAI's integer counts."""
    count = len(kept) * scales.size(2) * scales.size(3)
    if not 1 <= abs_max or count * (2 * abs_max + 1) > MOST_COUNTS:
        raise BitstreamError(
            f"a mixture table for {count} symbols from {-abs_max} to {abs_max} has more than {MOST_COUNTS} "
            "counts, or none: the stream is damaged, get it again; a latent that large needs a Gaussian model"
        )
    if not count:
        return np.zeros((0, 2 * abs_max + 1), np.float32)
    parameters = mixture.reshape_entropy_parameters(scales, means, weights, kept)
    cdf = mixture._build_cdf(*(part.clone() for part in parameters), abs_max)
    counts = np.diff(cdf.cpu().numpy()[:, :-1], axis=1)
    return np.maximum(counts, 1).astype(np.float32)


def _require_one(tensor: Tensor) -> None:
    if tensor.ndim != 4 or tensor.size(0) != 1:
        raise ShapeError(
            f"the mixture model codes one image (1, C, H, W) at a time, got {tuple(tensor.shape)}: loop "
            "over the images"
        )
