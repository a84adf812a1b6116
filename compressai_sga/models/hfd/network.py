# SPDX-License-Identifier: Apache-2.0
"""HFD's network: a denoiser of the first stage's residual, given the first stage's image.

Hoogeboom et al., "High-fidelity image compression with score-based generative models", 2023, diffuse the
image x under a schedule with less noise than usual, as the first stage's x_1 already has the coarse
structure, and give x_1 to the network. Here the residual is diffused, in units of its standard deviation tau,

    r = (x - x_1) / tau,   z = alpha r + sigma eps,   v = alpha eps - sigma r,

which is the same process: z_x = alpha_x x + sigma_x eps determines alpha_x r tau + sigma_x eps, and with
alpha_x tau / sigma_x = alpha / sigma the log-SNR of r is that of x plus 2 log tau. The plain cosine schedule
of r is the cosine schedule of x shifted by tau (`schedules.Cosine(shift=tau)`), so the first stage's error
sets the shift. An untrained network, v = 0, is then the best linear denoiser around x_1.

In:  z (B, 3, H, W) of variance 1; log_snr of r, () or (B,); x_1 in [0, 1], the same shape; label, the
     number of the quality among `qualities`, () or (B,).
Out: v (B, 3, H, W). Fails with ``ShapeError`` as the U-Net does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from ...diffusion.unet import UNet, UNetConfig
from ..settings import from_buffer, to_buffer

__all__ = ["ResidualDenoiser"]

_MIDDLE, _SCALE = 0.5, 0.25  # of pixels in [0, 1], to a variance of about 1


class ResidualDenoiser(nn.Module):
    """The network; see the head of the file.

    Args:
        config: of the U-Net, with 6 channels in, 3 out and as many labels as there are qualities.
        qualities: of the first stages that it was trained on.
        deviations: tau of each, in units of [0, 1].
        first_stage: name of the first stage in the zoo, or its architecture; for the record.
    """

    def __init__(
        self, config: UNetConfig, qualities: Sequence[int], deviations: Sequence[float], first_stage: str
    ) -> None:
        super().__init__()
        if not len(qualities) == len(deviations) == config.labels or min(deviations, default=0.0) <= 0:
            raise ValueError(
                f"{len(qualities)} qualities, deviations {list(deviations)} and {config.labels} labels do "
                "not match; each quality needs a label and a positive deviation"
            )
        self.unet = UNet(config)
        self.qualities, self.first_stage = tuple(qualities), first_stage
        self.register_buffer("deviations", torch.tensor(deviations, dtype=torch.float32))
        settings = {"unet": asdict(config), "qualities": list(qualities), "first_stage": first_stage}
        self.register_buffer("settings", to_buffer(settings))

    @classmethod
    def from_state_dict(cls, state: dict[str, Tensor], prefix: str = "") -> ResidualDenoiser:
        """A network with the weights and settings of a state dict; fp16 is widened."""
        mine = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
        settings: dict[str, Any] = from_buffer(mine["settings"])
        unet = settings["unet"]
        config = UNetConfig(**unet | {"widths": tuple(unet["widths"])})
        net = cls(config, settings["qualities"], mine["deviations"].tolist(), settings["first_stage"])
        net.load_state_dict(mine)
        return net

    @property
    def multiple(self) -> int:
        """H and W are multiples of this, px."""
        return self.unet.config.multiple

    def forward(self, z: Tensor, log_snr: Tensor, x_first: Tensor, label: Tensor) -> Tensor:
        return self.unet(z, log_snr, condition=(x_first - _MIDDLE) / _SCALE, label=label)

    def label_of(self, quality: int) -> int:
        """Number of a quality, for `label`.

        Raises:
            ValueError: the network was not trained on it.
        """
        if quality not in self.qualities:
            raise ValueError(
                f"quality is {quality}; this network was trained on the first stages of quality "
                f"{', '.join(map(str, self.qualities))}"
            )
        return self.qualities.index(quality)
