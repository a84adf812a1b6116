# SPDX-License-Identifier: Apache-2.0
"""Metrics beyond PSNR and MS-SSIM, by the names that `eval_model --metrics` takes.

`METRICS` maps a name to a function (x, x_hat) -> float of one image pair; `SET_METRICS` maps a name
to a class whose instances take pairs with `update(x, x_hat)` and give one number for all of them
with `compute()`. Both take x, x_hat of shape (1, 3, H, W), 8-bit values scaled to [0, 1]. "critic" uses
x_hat alone and is in bits a pixel; `critic` has it for other models and codes too.

`bd_rate` and `bd_psnr` compare whole rate-distortion curves.

Fails with `SgaError` naming the optional package or the weight file that is missing.
"""

from __future__ import annotations

from collections.abc import Callable, MutableMapping
from typing import TYPE_CHECKING, Protocol

from .. import lazy
from .bd_rate import Delta, bd_psnr, bd_rate

if TYPE_CHECKING:
    from torch import Tensor

    from .critic import critic_bpp
    from .frechet import PatchFid, PatchKid
    from .perceptual import lpips
    from .sliced_wasserstein import SlicedWasserstein

__all__ = [
    "METRICS",
    "SET_METRICS",
    "Delta",
    "PatchFid",
    "PatchKid",
    "SetMetric",
    "SlicedWasserstein",
    "bd_psnr",
    "bd_rate",
    "critic_bpp",
    "lpips",
]


class SetMetric(Protocol):
    """A metric of a whole set of images."""

    def update(self, x: Tensor, x_hat: Tensor) -> None: ...

    def compute(self) -> float: ...


__getattr__ = lazy.attributes(
    __name__,
    {
        **{"critic_bpp": "critic", "lpips": "perceptual", "SlicedWasserstein": "sliced_wasserstein"},
        **dict.fromkeys(("PatchFid", "PatchKid"), "frechet"),
    },
)
METRICS: MutableMapping[str, Callable[[Tensor, Tensor], float]] = lazy.Table(
    __name__, {"critic": "critic:critic_bpp", "lpips": "perceptual:lpips"}
)
SET_METRICS: MutableMapping[str, Callable[[], SetMetric]] = lazy.Table(
    __name__,
    {"fid": "frechet:PatchFid", "kid": "frechet:PatchKid", "swd": "sliced_wasserstein:SlicedWasserstein"},
)
