# SPDX-License-Identifier: Apache-2.0
"""A small U-Net for denoisers whose weights ship with the package: torch only, 1 to 10 M parameters.

Ho, Jain & Abbeel, "Denoising diffusion probabilistic models", 2020 (residual blocks of GroupNorm and 3x3
convolutions), with scale and shift from the log-SNR as in Dhariwal & Nichol 2021. Pixels go in and out as
`patch` x `patch` blocks, so that nothing runs at full resolution. The activation is x relu6(x + 3) / 6, not
SiLU, because the rounding of torch's exp depends on where a thread's share ends, and that of sums and
products does not. With one log-SNR and one label for the whole batch, the layers that compute features from
them see a single row: under `exact.exact_cpu()` an image's result then depends on neither threads nor batch.

The network is `network(z, log_snr, condition=None, label=None) -> out`; `parametrisations.NetworkDenoiser`
says what `out` means (x, eps, v or flow). Pretrained models of `diffusers` are loaded by `pretrained` and do
not use this file; the models that this package ships do not need `diffusers`.

In:  z (B, C, H, W) of variance about 1; log_snr () or (B,); condition (B, C', H, W), joined to z; label ()
     or (B,), integers, a quality for example.
Out: (B, out_channels, H, W), 0 everywhere before training, as the last convolution starts at 0.
Fails with ``ShapeError`` where H or W is not a multiple of `config.multiple`, or a channel count is wrong.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..errors import ShapeError

__all__ = ["UNet", "UNetConfig"]

_SLOWEST, _FASTEST = 2 * math.pi / 60, 8.0  # radians a unit of log-SNR: a turn in 60 units and in 0.8


@dataclass(frozen=True)
class UNetConfig:
    """Size of a `UNet`; JSON-friendly, so that a weight file can carry it.

    Args:
        in_channels: of z and condition together.
        out_channels: of the result.
        widths: channels at each resolution, the finest first; each is half as fine as the one before.
        blocks: residual blocks at each resolution on the way down; the way up has as many.
        patch: side of the pixel blocks that are joined into channels at the entrance, px.
        labels: number of labels, 0 for none.
        attention: self-attention between the two blocks of the coarsest resolution.
        groups: of GroupNorm; divides every width.
    """

    in_channels: int = 3
    out_channels: int = 3
    widths: tuple[int, ...] = (64, 96, 128)
    blocks: int = 2
    patch: int = 2
    labels: int = 0
    attention: bool = False
    groups: int = 8

    @property
    def multiple(self) -> int:
        """H and W are multiples of this, px."""
        return self.patch * 2 ** (len(self.widths) - 1)


class UNet(nn.Module):
    """The network; see the head of the file."""

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        wrong = [width for width in config.widths if width % config.groups]
        if wrong or not config.widths:
            raise ValueError(
                f"widths are {config.widths}; give at least one, each a multiple of groups = {config.groups}"
            )
        self.config = config
        widths, area = config.widths, config.patch**2
        features = 4 * widths[0]
        self.embed = nn.Sequential(nn.Linear(64, features), nn.Hardswish(), nn.Linear(features, features))
        self.label = nn.Embedding(config.labels, features) if config.labels else None
        self.entrance = nn.Conv2d(config.in_channels * area, widths[0], 3, padding=1)

        self.down, self.coarser = nn.ModuleList(), nn.ModuleList()
        for level, width in enumerate(widths):
            if level:
                self.coarser.append(nn.Conv2d(widths[level - 1], width, 3, stride=2, padding=1))
            self.down.append(_blocks(config.blocks * [width], width, features, config.groups))
        self.middle = nn.ModuleList(_Block(widths[-1], widths[-1], features, config.groups) for _ in "ab")
        self.attention = _Attention(widths[-1], config.groups) if config.attention else None
        self.up, self.finer = nn.ModuleList(), nn.ModuleList()
        for level in reversed(range(len(widths))):
            width = widths[level]
            self.up.append(_blocks(config.blocks * [2 * width], width, features, config.groups))
            if level:
                self.finer.append(nn.Conv2d(width, widths[level - 1], 3, padding=1))
        self.exit_norm = nn.GroupNorm(config.groups, widths[0])
        self.exit = _zero(nn.Conv2d(widths[0], config.out_channels * area, 3, padding=1))

    def forward(
        self, z: Tensor, log_snr: Tensor, condition: Tensor | None = None, label: Tensor | None = None
    ) -> Tensor:
        self._check(z, condition, label)
        features = self.embed(_fourier(log_snr).to(z))
        if self.label is not None:
            features = features + self.label(label.reshape(-1).to(z.device))
        features = functional.hardswish(features)

        joined = z if condition is None else torch.cat([z, condition], dim=1)
        h = self.entrance(functional.pixel_unshuffle(joined, self.config.patch))
        skips = []
        for level, blocks in enumerate(self.down):
            if level:
                h = self.coarser[level - 1](h)
            for block in blocks:
                h = block(h, features)
                skips.append(h)
        h = self.middle[0](h, features)
        if self.attention is not None:
            h = self.attention(h)
        h = self.middle[1](h, features)
        for level, blocks in enumerate(self.up):
            if level:
                h = self.finer[level - 1](functional.interpolate(h, scale_factor=2.0, mode="nearest"))
            for block in blocks:
                h = block(torch.cat([h, skips.pop()], dim=1), features)
        h = self.exit(functional.hardswish(self.exit_norm(h)))
        return functional.pixel_shuffle(h, self.config.patch)

    def _check(self, z: Tensor, condition: Tensor | None, label: Tensor | None) -> None:
        multiple = self.config.multiple
        if z.dim() != 4 or z.shape[-2] % multiple or z.shape[-1] % multiple:
            raise ShapeError(
                f"z has the shape {tuple(z.shape)}; it must be (B, C, H, W) with H and W multiples of "
                f"{multiple}: pad the image or cut it into tiles"
            )
        channels = z.shape[1] + (0 if condition is None else condition.shape[1])
        if channels != self.config.in_channels:
            raise ShapeError(
                f"z and condition have {channels} channels together; this network takes "
                f"{self.config.in_channels}"
            )
        if (label is None) != (self.label is None):
            raise ValueError(
                f"label is {'missing' if label is None else 'given'}; this network knows "
                f"{self.config.labels} labels"
            )


class _Block(nn.Module):
    """x + conv(act(scale * norm(conv(act(norm(x)))) + shift)), scale and shift from the features."""

    def __init__(self, inputs: int, outputs: int, features: int, groups: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(groups, inputs), nn.GroupNorm(groups, outputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.conv2 = _zero(nn.Conv2d(outputs, outputs, 3, padding=1))
        self.modulation = _zero(nn.Linear(features, 2 * outputs))
        self.skip = nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: Tensor, features: Tensor) -> Tensor:
        h = self.norm2(self.conv1(functional.hardswish(self.norm1(x))))
        scale, shift = self.modulation(features)[:, :, None, None].chunk(2, dim=1)
        return self.skip(x) + self.conv2(functional.hardswish(torch.addcmul(shift, h, 1 + scale)))


class _Attention(nn.Module):
    """x + attention over all positions, heads of 32 channels where they fit."""

    def __init__(self, width: int, groups: int) -> None:
        super().__init__()
        self.heads = max(1, width // 32) if width % 32 == 0 else 1
        self.norm = nn.GroupNorm(groups, width)
        self.qkv = nn.Conv2d(width, 3 * width, 1)
        self.out = _zero(nn.Conv2d(width, width, 1))

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.qkv(self.norm(x)).flatten(2).unflatten(1, (3, self.heads, -1)).transpose(-1, -2)
        h = functional.scaled_dot_product_attention(*(part.contiguous() for part in qkv.unbind(1)))
        return x + self.out(h.transpose(-1, -2).reshape(x.shape))


def _blocks(inputs: list[int], width: int, features: int, groups: int) -> nn.ModuleList:
    return nn.ModuleList(_Block(channels, width, features, groups) for channels in inputs)


def _fourier(log_snr: Tensor) -> Tensor:
    """(1, 64) or (B, 64) sines and cosines of the log-SNR, worked out in float64."""
    steps = torch.arange(32, dtype=torch.float64, device=log_snr.device) / 31
    frequencies = _SLOWEST * (_FASTEST / _SLOWEST) ** steps
    angles = log_snr.double().clamp(-30, 30).reshape(-1, 1) * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


def _zero(layer: nn.Module) -> nn.Module:
    """The layer with weights 0: a block that starts as the identity."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer
