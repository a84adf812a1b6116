# SPDX-License-Identifier: Apache-2.0
"""DiffC's network: an unconditional denoiser of patches of images.

Theis et al., "Lossy compression with Gaussian diffusion", 2022: the model of the images is a diffusion model,

    x = (image - 1/2) / scale,   z = alpha x + sigma eps,   v = alpha eps - sigma x,

with pixels of variance about 1, so that v also has variance about 1 at every level of noise. The levels of
the training, from `lowest` to `highest` log-SNR, are the first and the last that a codec can send; at the
highest the noise is about half a grey level.

In:  z (B, 3, H, W); log_snr () or (B,). Out: v (B, 3, H, W).
Fails with ``ShapeError`` as the U-Net does.
"""

from __future__ import annotations

from dataclasses import asdict

from torch import Tensor, nn

from ...diffusion.unet import UNet, UNetConfig
from ..settings import from_buffer, to_buffer

__all__ = ["SCALE", "PixelDenoiser"]

SCALE = 0.25
"""Deviation of pixels in [0, 1], about."""


class PixelDenoiser(nn.Module):
    """The network; see the head of the file.

    Args:
        config: of the U-Net, with 3 channels in and out and no labels.
        window: side of the patches that it was trained on, px.
        lowest, highest: log-SNRs between which it was trained.
    """

    def __init__(self, config: UNetConfig, window: int, lowest: float = -8.0, highest: float = 9.5) -> None:
        super().__init__()
        if window % config.multiple or not lowest < highest:
            raise ValueError(
                f"window is {window} and the log-SNRs reach from {lowest} to {highest}; the window must be a "
                f"multiple of {config.multiple} and the log-SNRs must rise"
            )
        self.unet = UNet(config)
        self.window, self.lowest, self.highest = window, lowest, highest
        settings = {"unet": asdict(config), "window": window, "lowest": lowest, "highest": highest}
        self.register_buffer("settings", to_buffer(settings))

    @classmethod
    def from_state_dict(cls, state: dict[str, Tensor], prefix: str = "") -> PixelDenoiser:
        """A network with the weights and settings of a state dict; fp16 is widened."""
        mine = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
        settings = from_buffer(mine["settings"])
        unet = settings.pop("unet")
        net = cls(UNetConfig(**unet | {"widths": tuple(unet["widths"])}), **settings)
        net.load_state_dict(mine)
        return net

    def forward(self, z: Tensor, log_snr: Tensor) -> Tensor:
        return self.unet(z, log_snr)
