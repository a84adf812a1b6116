# SPDX-License-Identifier: Apache-2.0
"""Scale-space flow with few channels: CompressAI's video model `ssf2020`, small enough to train on a CPU.

Agustsson et al. 2020, "Scale-space flow for end-to-end optimized video compression". A key frame is coded
like an image. Any other frame is predicted from the decoded frame before it by a flow into a stack of blurred
copies, and the residual of the prediction is coded. Stock `ScaleSpaceFlow` has 128 channels inside its
transforms and 192 in its latents, whatever its arguments; here they are N and M. All parts are built from
stock's own classes, so strings, files and methods are those of stock.

In:  frames (B, 3, H, W) in [0, 1], H and W multiples of 128.
Out: a CompressAI video model, registered as `ssf2020-small`; `zoo/train/video.py` trains it.
Fails with nothing of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from compressai.models.video.google import ScaleSpaceFlow
from torch import Tensor

__all__ = ["ARCHITECTURES", "SmallScaleSpaceFlow"]


class SmallScaleSpaceFlow(ScaleSpaceFlow):
    """Scale-space flow with N channels inside the transforms and M in the latents.

    Args:
        N: channels between the layers of encoders and decoders.
        M: channels of every latent and inside the hyperpriors.
        options: of stock's class: num_levels, sigma0, scale_field_shift.
    """

    def __init__(self, N: int = 32, M: int = 48, **options: Any) -> None:
        with torch.device("meta"):  # stock's widths, of which only the classes are needed
            super().__init__(**options)
        self._build(N, M)

    def _build(self, N: int, M: int) -> None:
        encoder, decoder, hyperprior = map(type, (self.img_encoder, self.img_decoder, self.img_hyperprior))
        self.img_encoder = encoder(3, N, M)
        self.img_decoder = decoder(3, M, N)
        self.motion_encoder = encoder(2 * 3, N, M)
        self.motion_decoder = decoder(2 + 1, M, N)
        self.res_encoder = encoder(3, N, M)
        self.res_decoder = decoder(3, 2 * M, N)
        for name in ("img", "motion", "res"):
            setattr(self, f"{name}_hyperprior", hyperprior(M, M))

    def load_state_dict(self, state_dict: Mapping[str, Tensor], *args: Any, **options: Any) -> Any:
        """As stock's, for weights of any N and M: where they are others than the model's, its layers are
        replaced by new ones."""
        last = state_dict.get("img_encoder.6.weight")
        if last is not None and last.shape[:2] != self.img_encoder[6].weight.shape[:2]:
            M, N = last.shape[:2]
            self._build(N, M)
        return super().load_state_dict(state_dict, *args, **options)


ARCHITECTURES = {"ssf2020-small": SmallScaleSpaceFlow}
