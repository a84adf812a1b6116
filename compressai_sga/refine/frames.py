# SPDX-License-Identifier: Apache-2.0
"""The frames of a video as images of CompressAI image models, so that the one refinement loop serves them.

For a scale-space flow model (Agustsson et al. 2020; CompressAI's `ssf2020`), with the reference ref, the
decoder's image of the frame before:

    key frame     y, z                 x_hat = img_decoder(y)
    inter frame   y_motion, z_motion   x_pred = warp(blurred copies of ref, motion_decoder(y_motion))
                  y, z (residual)      x_hat = x_pred + res_decoder(y, y_motion)

Every pair of latents has a hyperprior of its own, which sees neither the other pair nor other frames. With
its reference held fixed, an inter frame is therefore an image with two pairs of latents: `InterFrame` has the
interface of an image model, and `InterLatents` is its adapter. `KeyFrame` has the parts of a mean-scale
hyperprior, for `HyperpriorLatents`.

In:  a video model; a frame (B, 3, H, W) as its encoder gets it, sides multiples of 128, not necessarily in
     [0, 1] (CompressAI's conversion from 4:2:0 leaves it); the reference, of the same shape.
Out: `compress` gives the strings of stock's encode_keyframe or encode_inter, `decompress` the image of
     decode_keyframe or decode_inter in [0, 1].
Fails with ``UnsupportedModelError``, naming the part that is missing.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UnsupportedModelError
from .latents import Coded, LatentAdapter, Latents, Quantised, Rounding, code_bottleneck, code_gaussian

__all__ = ["InterFrame", "InterLatents", "KeyFrame", "check_video_model"]

_METHODS = (
    *("encode_keyframe", "encode_inter", "decode_keyframe", "decode_inter"),
    *("forward_keyframe", "forward_inter", "gaussian_volume", "warp_volume"),
)
_TRANSFORMS = ("encoder", "decoder", "hyperprior")
_HYPERPRIOR = (
    *("hyper_encoder", "hyper_decoder_mean", "hyper_decoder_scale"),
    *("entropy_bottleneck", "gaussian_conditional"),
)
_PARTS = (
    *_METHODS,
    *(f"{kind}_{part}" for kind in ("img", "motion", "res") for part in _TRANSFORMS),
    *(f"{kind}_hyperprior.{part}" for kind in ("img", "motion", "res") for part in _HYPERPRIOR),
)


def check_video_model(model: nn.Module) -> None:
    """Refuse a model whose frames cannot be refined.

    Raises:
        UnsupportedModelError: a part of scale-space flow is missing.
    """
    for part in _PARTS:
        owner: Any = model
        for name in part.split("."):
            owner = getattr(owner, name, None)
        if owner is None:
            raise UnsupportedModelError(
                f"{type(model).__name__} has no `{part}`; frames are refined for scale-space flow models "
                "only, which have the parts of CompressAI's ssf2020. Images: compressai_sga.refine"
            )


class _ScalesAndMeans(nn.Module):
    """h_s of a mean-scale hyperprior, from a hyperprior of the video model."""

    def __init__(self, hyperprior: nn.Module) -> None:
        super().__init__()
        self.scale, self.mean = hyperprior.hyper_decoder_scale, hyperprior.hyper_decoder_mean

    def forward(self, z_hat: Tensor) -> Tensor:
        return torch.cat((self.scale(z_hat), self.mean(z_hat)), 1)


class _Frame(nn.Module):
    #: Stock's video models decode where they are, and so frames are coded there; see `coding.on_cpu`.
    CODED_IN_PLACE = True

    def __init__(self, net: nn.Module, frame: Tensor) -> None:
        super().__init__()
        self.net, self.frame = net, frame

    def decoded(self, strings: list[list[bytes]], shape: Any) -> Tensor:
        """The image of stock's decoder, not clamped, from the strings of `compress`."""
        raise NotImplementedError

    def decompress(self, strings: list[list[bytes]], shape: Any) -> dict[str, Tensor]:
        """The decoder's image in [0, 1]."""
        return {"x_hat": self.decoded(strings, shape).clamp(0, 1)}


class KeyFrame(_Frame):
    """A key frame as the image of a mean-scale hyperprior; strings [y, z].

    Args:
        net: the video model, which is shared.
        frame: as stock's encode_keyframe takes it.
    """

    def __init__(self, net: nn.Module, frame: Tensor) -> None:
        super().__init__(net, frame)
        hyperprior = net.img_hyperprior
        self.g_a, self.g_s = net.img_encoder, net.img_decoder
        self.h_a, self.h_s = hyperprior.hyper_encoder, _ScalesAndMeans(hyperprior)
        self.entropy_bottleneck = hyperprior.entropy_bottleneck
        self.gaussian_conditional = hyperprior.gaussian_conditional

    def compress(self, x: Tensor) -> dict[str, Any]:
        """What stock's encoder returns for the frame; x, the frame in [0, 1], is what it is compared with."""
        return self.net.encode_keyframe(self.frame)[1]

    def decoded(self, strings: list[list[bytes]], shape: Any) -> Tensor:
        return self.net.decode_keyframe(strings, shape)


class InterFrame(_Frame):
    """A frame, given its reference, as an image; strings [y_motion, z_motion, y, z].

    Args:
        net: the video model, which is shared.
        frame, reference: as stock's encode_inter takes them.
    """

    def __init__(self, net: nn.Module, frame: Tensor, reference: Tensor) -> None:
        super().__init__(net, frame)
        self.reference = reference
        self.g_a, self.g_s = net.res_encoder, _Synthesis(net, reference)

    def compress(self, x: Tensor) -> dict[str, Any]:
        """What stock's encoder returns for the frame; x, the frame in [0, 1], is what it is compared with."""
        out = self.net.encode_inter(self.frame, self.reference)[1]
        return {"strings": [*out["strings"]["motion"], *out["strings"]["residual"]], "shape": out["shape"]}

    def decoded(self, strings: list[list[bytes]], shape: Any) -> Tensor:
        return self.net.decode_inter(self.reference, by_part(strings), shape)


def by_part(strings: list[list[bytes]]) -> dict[str, list[list[bytes]]]:
    """The strings of `InterFrame` as stock's decode_inter takes them."""
    return {"motion": strings[:2], "residual": strings[2:]}


class _Synthesis(nn.Module):
    """g_s of an inter frame: the image from y_hat and y_motion_hat, stacked as res_decoder takes them."""

    def __init__(self, net: nn.Module, reference: Tensor) -> None:
        super().__init__()
        self.motion_decoder, self.res_decoder = net.motion_decoder, net.res_decoder
        self.warp = net.warp_volume
        self.motion_channels = net.motion_decoder[0].in_channels
        with torch.no_grad():  # the blurred copies, as in stock's forward_prediction, once for all steps
            self.volume = net.gaussian_volume(reference, net.sigma0, net.num_levels)

    def forward(self, y_hat: Tensor) -> Tensor:
        flow, scale = self.motion_decoder(y_hat[:, -self.motion_channels :]).chunk(2, 1)
        return self.warp(self.volume, flow, scale) + self.res_decoder(y_hat)


class InterLatents(LatentAdapter):
    """Latents of motion and residual, each y Gaussian given its z.

    The residual's are called y and z: the symbols of y are independent given z, and with the motion held
    fixed the image depends on them as it does for images. So rate-distortion optimised quantisation
    (`rdoq`) changes the residual's y, and never the motion.
    """

    @staticmethod
    def lacks(model: nn.Module) -> list[str]:
        return [] if isinstance(model, InterFrame) else ["a frame (`refine_frames` takes video models)"]

    @staticmethod
    def find_sources(model: nn.Module) -> dict[str, nn.Module]:
        net = model.net
        return {
            "y_motion": net.motion_encoder,
            "z_motion": net.motion_hyperprior.hyper_encoder,
            "y": net.res_encoder,
            "z": net.res_hyperprior.hyper_encoder,
        }

    def code(self, latents: Latents, rounding: Rounding) -> Coded:
        coded: dict[str, Quantised] = {}
        likelihoods, grid = {}, {}
        for suffix, hyperprior in (
            ("", self.model.net.res_hyperprior),
            ("_motion", self.model.net.motion_hyperprior),
        ):
            y, z = "y" + suffix, "z" + suffix
            grid[z], likelihoods[z] = code_bottleneck(latents[z], hyperprior.entropy_bottleneck, rounding, z)
            coded[y] = code_gaussian(
                latents[y],
                hyperprior.hyper_decoder_scale(grid[z]),
                hyperprior.hyper_decoder_mean(grid[z]),
                hyperprior.gaussian_conditional,
                rounding,
                name=y,
            )
            likelihoods[y] = coded[y].likelihoods(hyperprior.gaussian_conditional)
            grid[y] = coded[y].grid
        conditional = self.model.net.res_hyperprior.gaussian_conditional
        return Coded(
            torch.cat((coded["y"].y_hat, coded["y_motion"].y_hat), 1),
            likelihoods,
            grid,
            lambda move: coded["y"].likelihoods(conditional, move),
        )
