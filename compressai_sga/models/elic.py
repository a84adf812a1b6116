# SPDX-License-Identifier: Apache-2.0
"""A context model that decodes in eight parallel steps, with transforms that train in hours on a CPU.

He et al. 2022, "ELIC: Efficient learned image compression with unevenly grouped space-channel contextual
adaptive coding". The latent is cut into groups of channels, few first; each group is coded in two steps, the
white squares of a checkerboard and then the black ones, given the hyperprior, the groups before it and its
own white squares. Here the transforms are the convolutions and GDN of Minnen et al. 2018, without attention
and residual blocks, and the entropy nets are narrower.

Multiplications a pixel at N = 64, M = 192 and the default groups, as PyTorch dispatches them: 20.1k to
compress, 19.5k to decompress, of which 7.0k in the nets that see contexts (channel context, checkerboard,
and what joins them with the hyperprior). Those of `elic2022-official` with the same N, M and groups take
25.4k there: ours are 28 % of them.

In:  images (B, 3, H, W) in [0, 1], H and W multiples of 64, because the hyperprior halves the latent twice.
Out: a CompressAI model of its latent codecs (`HyperpriorLatentCodec`, `ChannelGroupsLatentCodec`,
     `CheckerboardLatentCodec`), with `forward`, `compress`, `decompress`, `update`, `from_state_dict`;
     2 strings a group, then one of z.
Fails with ``ValueError`` on groups that do not sum to M channels, ``ShapeError`` on other sides.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from compressai.entropy_models import EntropyBottleneck
from compressai.latent_codecs import (
    ChannelGroupsLatentCodec,
    CheckerboardLatentCodec,
    EntropyBottleneckLatentCodec,
    GaussianConditionalLatentCodec,
    HyperLatentCodec,
    HyperpriorLatentCodec,
)
from compressai.layers import GDN, CheckerboardMaskedConv2d
from compressai.models.base import SimpleVAECompressionModel
from compressai.models.utils import conv, deconv
from torch import Tensor, nn

from ..errors import ShapeError
from ..inputs import check_images
from ..precision import full_precision

__all__ = ["ARCHITECTURES", "SpaceChannelContext"]

CONTEXT = 96  # channels of what a group's own white squares, and the groups before it, say about it
AGGREGATION = 224  # channels between these and means and scales


class _Checkerboard(CheckerboardLatentCodec):
    """As stock, except that the context network is not run for the white squares, whose context is zero."""

    def _y_ctx_zero(self, y: Tensor) -> Tensor:
        return y.new_zeros(y.shape[0], self.context_prediction.out_channels, *y.shape[2:])


def _uneven(M: int) -> list[int]:
    return [16, 16, 32, M - 64]


class SpaceChannelContext(SimpleVAECompressionModel):
    """Minnen et al.'s transforms, He et al.'s space-channel context model.

    Args:
        N: channels of the transforms, and of z.
        M: channels of the latent.
        groups: channels of each group, in the order of coding; 16, 16, 32 and the rest by default.

    Raises:
        ValueError: the groups are not M channels.
    """

    def __init__(self, N: int = 64, M: int = 192, groups: Sequence[int] | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.N, self.M = N, M
        self.groups = [int(size) for size in (_uneven(M) if groups is None else groups)]
        if sum(self.groups) != M or min(self.groups, default=0) < 1:
            raise ValueError(
                f"groups {self.groups} have {sum(self.groups)} channels and M is {M}; they must be positive "
                "and sum to M (M above 64 where none are given)"
            )
        self.g_a = nn.Sequential(conv(3, N), GDN(N), conv(N, N), GDN(N), conv(N, N), GDN(N), conv(N, M))
        self.g_s = nn.Sequential(
            deconv(M, N), GDN(N, inverse=True), deconv(N, N), GDN(N, inverse=True),
            deconv(N, N), GDN(N, inverse=True), deconv(N, 3),
        )  # fmt: skip
        side = 2 * N
        h_a = nn.Sequential(conv(M, N, 3, 1), nn.LeakyReLU(), conv(N, N), nn.LeakyReLU(), conv(N, N))
        h_s = nn.Sequential(
            deconv(N, N), nn.LeakyReLU(), deconv(N, side), nn.LeakyReLU(), conv(side, side, 3, 1)
        )
        before = [sum(self.groups[:k]) for k in range(len(self.groups))]
        self.latent_codec = _hyperprior(
            ChannelGroupsLatentCodec(
                groups=self.groups,
                channel_context={
                    f"y{k}": nn.Sequential(
                        conv(before[k], CONTEXT, 5, 1), nn.LeakyReLU(), conv(CONTEXT, CONTEXT, 3, 1)
                    )
                    for k in range(1, len(self.groups))
                },
                latent_codec={
                    f"y{k}": _group(size, side + CONTEXT * (k > 0)) for k, size in enumerate(self.groups)
                },
            ),
            EntropyBottleneck(N),
            h_a,
            h_s,
        )

    @property
    def downsampling_factor(self) -> int:
        """What the sides of an image are multiples of, px."""
        return 2**6

    def forward(self, x: Tensor) -> dict[str, Any]:
        """As stock: x_hat and the likelihoods of y and z; for images that are padded.

        Raises:
            ShapeError: a side is no multiple of 64 px.
        """
        self._check(x)
        return super().forward(x)

    @full_precision()
    @torch.no_grad()
    def compress(self, x: Tensor) -> dict[str, Any]:
        """As stock: strings and shape.

        Raises:
            ShapeError: a side is no multiple of 64 px, or x is no batch of RGB images.
            InputError: as `inputs.check_images`.
        """
        check_images(x, dtypes=(next(self.parameters()).dtype,))
        self._check(x)
        return super().compress(x)

    @full_precision()
    @torch.no_grad()  # stock's channel groups write into views, which autograd refuses
    def decompress(self, strings: list[list[bytes]], shape: Any, **more: Any) -> dict[str, Any]:
        """As stock; of what `compress` returns, strings and shape are read."""
        return super().decompress(strings, shape, **more)

    def _check(self, x: Tensor) -> None:
        (height, width), factor = x.shape[-2:], self.downsampling_factor
        if height % factor or width % factor:
            raise ShapeError(
                f"an image of {width}x{height} px; both sides must be multiples of {factor}: pad it as "
                "compressai.ops.compute_padding says"
            )

    def load_state_dict(self, state_dict: Mapping[str, Tensor], *args: Any, **kwargs: Any) -> Any:
        """As stock; also of a model that another version of CompressAI has saved, whose hyperprior has other
        names."""
        here = set(self.state_dict())
        renamed = {}
        for key, tensor in state_dict.items():
            others = (key.replace(*names, 1) for pair in _RENAMED for names in (pair, pair[::-1]))
            other = next((name for name in others if name != key and name in here), key)
            renamed[key if key in here else other] = tensor
        return super().load_state_dict(renamed, *args, **kwargs)

    @classmethod
    def from_state_dict(cls, state_dict: dict[str, Tensor]) -> SpaceChannelContext:
        """A model of the widths and groups of a state dict, with its numbers."""
        M, N = state_dict["g_a.6.weight"].shape[:2]
        contexts = (key for key in state_dict if key.endswith("context_prediction.weight"))
        groups = {key.split(".y.latent_codec.y")[1]: state_dict[key].shape[1] for key in contexts}
        net = cls(N, M, [groups[key] for key in sorted(groups, key=lambda key: int(key.split(".")[0]))])
        net.load_state_dict(state_dict)
        return net


_RENAMED = (
    ("latent_codec.hyper.entropy_bottleneck.", "latent_codec.z.entropy_bottleneck."),
    ("latent_codec.hyper.h_a.", "latent_codec.h_a."),
    ("latent_codec.hyper.h_s.", "latent_codec.h_s."),
)
"""Names in a state dict with CompressAI 1.2.8 and since."""


def _hyperprior(
    y: nn.Module, bottleneck: EntropyBottleneck, h_a: nn.Module, h_s: nn.Module
) -> HyperpriorLatentCodec:
    """The root of the latent codecs, whose interface is another one since CompressAI 1.2.9.dev0."""
    if "h_a" in inspect.signature(HyperpriorLatentCodec).parameters:
        z = EntropyBottleneckLatentCodec(bottleneck, quantizer="ste")
        return HyperpriorLatentCodec({"y": y, "z": z}, h_a=h_a, h_s=h_s)
    return HyperpriorLatentCodec({"y": y, "hyper": HyperLatentCodec(bottleneck, h_a, h_s, quantizer="ste")})


def _group(size: int, side: int) -> CheckerboardLatentCodec:
    """The codec of a group of `size` channels, given `side` channels of other information."""
    return _Checkerboard(
        latent_codec={"y": GaussianConditionalLatentCodec(quantizer="ste")},
        context_prediction=CheckerboardMaskedConv2d(size, CONTEXT, 5, padding=2, stride=1),
        entropy_parameters=nn.Sequential(
            nn.Conv2d(CONTEXT + side, AGGREGATION, 1), nn.LeakyReLU(), nn.Conv2d(AGGREGATION, 2 * size, 1)
        ),
        forward_method="twopass_faster",
    )


ARCHITECTURES = {"elic2022-gdn": SpaceChannelContext}
"""Names under which CompressAI knows the classes."""
