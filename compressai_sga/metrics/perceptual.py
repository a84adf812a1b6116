# SPDX-License-Identifier: Apache-2.0
"""Perceptual distance of one image pair: LPIPS (Zhang et al. 2018, arXiv:1801.03924).

The authors' package `lpips` computes it, with version 0.1 of the linear weights on AlexNet, the variant
that papers on learned compression report. Lower is better, 0 for equal images.

In:  x, x_hat: (1, 3, H, W) in [0, 1]. Out: a float.
Fails with `SgaError` without the package (optional: the extra `metrics`) or AlexNet's weights,
which torchvision downloads on first use.
"""

from __future__ import annotations

import functools
import pickle
import warnings

import torch
from torch import Tensor, nn

from ..errors import SgaError

__all__ = ["lpips"]

_WEIGHTS = "alexnet-owt-7be5be79.pth"


@functools.lru_cache(maxsize=1)
def _network() -> nn.Module:
    try:
        from lpips import LPIPS
    except ImportError as error:
        raise SgaError(
            f"the metric lpips needs the package lpips ({error}); pip install 'compressai-sga[metrics]'"
        ) from error
    try:
        with warnings.catch_warnings():  # torchvision's notes about the package's old keywords
            warnings.simplefilter("ignore")
            return LPIPS(net="alex", version="0.1", verbose=False).eval().requires_grad_(False)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:  # absent, or damaged
        raise SgaError(
            f"the metric lpips needs AlexNet's weights, {_WEIGHTS}, which could not be loaded "
            f"({error}); put the file from https://download.pytorch.org/models/ into "
            f"{torch.hub.get_dir()}/checkpoints"
        ) from error


@torch.no_grad()
def lpips(x: Tensor, x_hat: Tensor) -> float:
    """LPIPS distance of one pair.

    Args:
        x: the original, (1, 3, H, W) in [0, 1].
        x_hat: the reconstruction, likewise.

    Raises:
        SgaError: the package or the weights are missing.
    """
    network = _network().to(x.device)
    return float(network(x, x_hat, normalize=True))
