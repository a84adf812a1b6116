# SPDX-License-Identifier: Apache-2.0
"""Frechet inception distance of a set of reconstructions, on patches: FID/256 of HiFiC.

Mentzer et al. 2020 (arXiv:2006.09965) cut every original and every reconstruction into 256-px
patches, on a grid that starts in the corner and again on one shifted by 128 px in both directions,
and compare the two sets of patches with one FID (Heusel et al. 2017, arXiv:1706.08500). Every whole
patch of either grid counts, as in NeuralCompression's `update_patch_fid`; the 2048 Inception
features and the distance are torchmetrics'.

In:  pairs x, x_hat: (1, 3, H, W) in [0, 1]. Out: a float, biased upwards for few patches.
Fails with `SgaError` without torchmetrics and torch-fidelity (the extra `metrics`), without the
Inception weights (downloaded on first use), for images without a patch, for fewer than two patches.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from ..errors import SgaError

__all__ = ["PATCH_PX", "PatchFid", "patches"]

PATCH_PX = 256
_WEIGHTS = "weights-inception-2015-12-05-6726825d.pth"


def patches(x: Tensor, size: int = PATCH_PX) -> Iterator[Tensor]:
    """The patches of both grids, (1, 3, size, size) each.

    Args:
        x: (1, 3, H, W).
        size: of a patch, px; the second grid is shifted by half of it.
    """
    for start in (0, size // 2):
        for top in range(start, x.size(2) - size + 1, size):
            for left in range(start, x.size(3) - size + 1, size):
                yield x[:, :, top : top + size, left : left + size]


class PatchFid:
    """FID between the patches of all originals and of all reconstructions.

    Args:
        features: torchmetrics' name of the Inception layer, or another network from uint8 images
            (N, 3, 256, 256) to features (N, D).

    Raises:
        SgaError: a package or the weights are missing.
    """

    def __init__(self, features: int | nn.Module = 2048) -> None:
        try:
            from torchmetrics.image.fid import FrechetInceptionDistance

            self._fid = FrechetInceptionDistance(feature=features, normalize=False)
        except ImportError as error:  # torchmetrics answers a missing torch-fidelity like this too
            raise SgaError(
                f"the metric fid needs the packages torchmetrics and torch-fidelity ({error}); "
                "pip install 'compressai-sga[metrics]'"
            ) from error
        except (OSError, RuntimeError) as error:
            raise SgaError(
                f"the metric fid needs the Inception weights, {_WEIGHTS}, which could not be "
                f"loaded ({error}); put the file from https://github.com/toshas/torch-fidelity/"
                f"releases into {torch.hub.get_dir()}/checkpoints"
            ) from error
        self._count = 0

    @torch.no_grad()
    def update(self, x: Tensor, x_hat: Tensor) -> None:
        """Take the patches of one pair, (1, 3, H, W) in [0, 1] each.

        Raises:
            SgaError: the image has no patch.
        """
        if min(x.size(2), x.size(3)) < PATCH_PX:
            raise SgaError(
                f"the metric fid takes patches of {PATCH_PX}x{PATCH_PX} px, an image has only "
                f"{x.size(3)}x{x.size(2)}; leave fid or that image out"
            )
        for image, real in ((x, True), (x_hat, False)):
            for patch in patches(image):
                self._fid.update((patch * 255).round().to(torch.uint8), real=real)
        self._count += sum(1 for _ in patches(x))

    @torch.no_grad()
    def compute(self) -> float:
        """FID over all pairs so far.

        Raises:
            SgaError: fewer than two patches were seen.
        """
        if self._count < 2:
            raise SgaError(
                f"the metric fid needs at least 2 patches, the images gave {self._count}; "
                "evaluate more or larger images"
            )
        return float(self._fid.compute())
