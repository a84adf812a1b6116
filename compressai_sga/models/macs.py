# SPDX-License-Identifier: Apache-2.0
"""The cost of decoding in multiplications a pixel, as `python -m compressai_sga models` shows it.

In:  a model that codes; an image. Out: multiplications of convolutions and matrix products, as PyTorch
dispatches them while the model decompresses the image. A decoder outside PyTorch (C3) gives its own number
(`macs`).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

__all__ = ["decoder_macs_px"]


@torch.no_grad()
def decoder_macs_px(model: nn.Module, x: Tensor) -> float:
    """Multiplications of the decoder for each pixel of an image.

    Args:
        model: in eval mode, with coding tables.
        x: (1, 3, H, W) in [0, 1], sides that the model takes without padding.
    """
    if hasattr(model, "macs"):
        return float(model.macs.total)
    coded = model.compress(x)
    with FlopCounterMode(display=False) as counter:
        model.decompress(coded["strings"], coded["shape"])
    return counter.get_total_flops() / 2 / (x.shape[2] * x.shape[3])
