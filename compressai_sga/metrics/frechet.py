# SPDX-License-Identifier: Apache-2.0
"""Frechet and kernel inception distance of a set of reconstructions, on patches: FID/256 and KID/256.

Mentzer et al. 2020 (arXiv:2006.09965) cut every original and every reconstruction into 256-px
patches, on a grid that starts in the corner and again on one shifted by 128 px in both directions,
and compare the two sets of patches with one FID (Heusel et al. 2017, arXiv:1706.08500) or KID
(Binkowski et al. 2018, arXiv:1801.01401: the squared maximum mean discrepancy under a cubic kernel). Every
whole patch of either grid counts, as in NeuralCompression's `update_patch_fid`; the 2048 Inception
features and the distances are torchmetrics'.

In:  pairs x, x_hat: (1, 3, H, W) in [0, 1]. Out: a float. FID is biased upwards for few patches; KID is
     unbiased, so it may be negative for sets that hardly differ.
Fails with `SgaError` without torchmetrics and torch-fidelity (the extra `metrics`), without the
Inception weights (downloaded on first use), for images without a patch, for fewer than two patches.
"""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..errors import SgaError

__all__ = ["PATCH_PX", "PatchFid", "PatchKid", "patches"]

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


class _PatchMetric:
    """Feeds the patches of both grids to a metric of torchmetrics; `NAME` is that of `--metrics`."""

    NAME: ClassVar[str]

    def __init__(self, make: Callable[[], Any]) -> None:
        try:
            with warnings.catch_warnings():  # KID's note that it keeps all features
                warnings.simplefilter("ignore")
                self._metric = make()
        except ImportError as error:  # torchmetrics answers a missing torch-fidelity like this too
            raise SgaError(
                f"the metric {self.NAME} needs the packages torchmetrics and torch-fidelity ({error}); "
                "pip install 'compressai-sga[metrics]'"
            ) from error
        except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:  # absent, or damaged
            raise SgaError(
                f"the metric {self.NAME} needs the Inception weights, {_WEIGHTS}, which could not be "
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
                f"the metric {self.NAME} takes patches of {PATCH_PX}x{PATCH_PX} px, an image has only "
                f"{x.size(3)}x{x.size(2)}; leave {self.NAME} or that image out"
            )
        for image, real in ((x, True), (x_hat, False)):
            for patch in patches(image):
                self._metric.update((patch * 255).round().to(torch.uint8), real=real)
        self._count += sum(1 for _ in patches(x))

    def _enough(self) -> None:
        if self._count < 2:
            raise SgaError(
                f"the metric {self.NAME} needs at least 2 patches, the images gave {self._count}; "
                "evaluate more or larger images"
            )


class PatchFid(_PatchMetric):
    """FID between the patches of all originals and the patches of all reconstructions.

    Args:
        features: torchmetrics' name of the Inception layer, or another network from uint8 images
            (N, 3, 256, 256) to features (N, D).

    Raises:
        SgaError: a package or the weights are missing.
    """

    NAME = "fid"

    def __init__(self, features: int | nn.Module = 2048) -> None:
        def make() -> Any:
            from torchmetrics.image.fid import FrechetInceptionDistance

            return FrechetInceptionDistance(feature=features, normalize=False)

        super().__init__(make)

    @torch.no_grad()
    def compute(self) -> float:
        """FID over all pairs so far.

        Raises:
            SgaError: fewer than two patches were seen.
        """
        self._enough()
        return float(self._metric.compute())


class PatchKid(_PatchMetric):
    """KID between the patches of all originals and the patches of all reconstructions.

    Up to `subset_size` patches form a single subset, in which every pair of patches counts, and nothing is
    random. With more patches, it is the mean over 100 random subsets of that size, as in the paper.

    Args:
        features: as for `PatchFid`.
        subset_size: patches of a subset.
        seed: of the draw of the subsets.

    Raises:
        SgaError: a package or the weights are missing.
    """

    NAME = "kid"

    def __init__(self, features: int | nn.Module = 2048, subset_size: int = 1000, seed: int = 0) -> None:
        if subset_size < 2:
            raise ValueError(f"subset_size is {subset_size}; it must be at least 2")

        def make() -> Any:
            from torchmetrics.image.kid import KernelInceptionDistance

            return KernelInceptionDistance(feature=features, normalize=False)

        super().__init__(make)
        self._subset_size, self._seed = subset_size, seed

    @torch.no_grad()
    def compute(self) -> float:
        """KID over all pairs so far.

        Raises:
            SgaError: fewer than two patches were seen.
        """
        self._enough()
        self._metric.subset_size = min(self._count, self._subset_size)
        self._metric.subsets = 100 if self._count > self._subset_size else 1
        # torchmetrics draws from the global generator, which is the caller's.
        with torch.random.fork_rng(devices=[]):
            torch.set_rng_state(torch.Generator().manual_seed(self._seed).get_state())
            mean, _ = self._metric.compute()
        return float(mean)
