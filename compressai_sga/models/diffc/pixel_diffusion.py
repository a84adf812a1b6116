# SPDX-License-Identifier: Apache-2.0
"""What DiffC needs from a diffusion model of pixels, for our network and for those of `diffusers`.

A codec needs x_hat from z and its level, the levels that the network knows, the size of the images that it
was trained on, and the units of its signal. `PixelDenoiser` and `diffusion.pretrained.Pretrained` both have
these, under different names.

In:  one of the two modules. Out: a `PixelDiffusion`.
Fails with ``UnsupportedModelError`` for other modules and for latent models.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from ...diffusion.parametrisations import NetworkDenoiser
from ...diffusion.pretrained import Pretrained
from ...errors import SgaError, UnsupportedModelError
from .network import SCALE, PixelDenoiser

__all__ = ["PixelDiffusion", "module_of", "pixel_diffusion", "settings_of"]

_OURS, _THEIRS = "PixelDenoiser", "diffusers.UNet2DModel"
_PREDICTION_TYPES = {"eps": "epsilon", "v": "v_prediction", "x": "sample"}
_LIMIT = 10.0  # of |log-SNR|: beyond it 8-bit pixels have nothing to say, or everything is said


@dataclasses.dataclass(frozen=True)
class PixelDiffusion:
    """A diffusion model of pixels.

    Args:
        x_hat: (z, log_snr) -> x_hat, (b, C, w, w) float32.
        to_signal: image in [0, 1] to x, of variance about 1 or less.
        to_image: its inverse.
        channels: C.
        window: side of the images that it was trained on, px.
        multiple: sides are multiples of this, px.
        lowest, highest: log-SNRs that it was trained for.
    """

    x_hat: Callable[[Tensor, Tensor], Tensor]
    to_signal: Callable[[Tensor], Tensor]
    to_image: Callable[[Tensor], Tensor]
    channels: int
    window: int
    multiple: int
    lowest: float
    highest: float


def pixel_diffusion(module: nn.Module) -> PixelDiffusion:
    """The pixel model of a module.

    Raises:
        UnsupportedModelError: it is neither our network nor a pixel model of `diffusers`.
    """
    if isinstance(module, PixelDenoiser):
        return PixelDiffusion(
            x_hat=NetworkDenoiser(module, "v"),
            to_signal=lambda image: (image - 0.5) / SCALE,
            to_image=lambda x: x * SCALE + 0.5,
            channels=module.unet.config.in_channels,
            window=module.window,
            multiple=module.unet.config.multiple,
            lowest=module.lowest,
            highest=module.highest,
        )
    if isinstance(module, Pretrained):
        if module.vae is not None or type(module.unet).__name__ != "UNet2DModel":
            raise UnsupportedModelError(
                f"the model of diffusers is a {type(module.unet).__name__}"
                f"{'' if module.vae is None else ' with a vae'}; DiffC takes pixel models, a UNet2DModel "
                "with its scheduler"
            )
        side = module.unet.config.get("sample_size") or 64
        return PixelDiffusion(
            x_hat=module,
            to_signal=module.encode,
            to_image=lambda x: (x + 1) / 2,
            channels=module.channels,
            window=side if isinstance(side, int) else min(side),
            multiple=module.multiple,
            lowest=max(float(module.log_snrs[-1]), -_LIMIT),
            highest=min(float(module.log_snrs[0]), _LIMIT),
        )
    raise UnsupportedModelError(
        f"the denoiser is a {type(module).__name__}; DiffC takes a PixelDenoiser or a model of "
        "diffusion.pretrained.load"
    )


def settings_of(module: nn.Module) -> dict[str, Any]:
    """The settings that `module_of` needs beside the weights; JSON."""
    if isinstance(module, PixelDenoiser):
        return {"kind": _OURS}
    return {
        "kind": _THEIRS,
        "unet": {key: value for key, value in dict(module.unet.config).items() if not key.startswith("_")},
        "log_snrs": module.log_snrs.tolist(),
        "prediction": module.prediction,
        "limit": module.limit,
        "class_label": module.class_label,
    }


def module_of(settings: dict[str, Any], state: dict[str, Tensor]) -> nn.Module:
    """The module of these settings with the weights of a state dict; fp16 is widened.

    Raises:
        SgaError: it needs `diffusers`, which is missing.
        UnsupportedModelError: settings of another kind.
    """
    if settings.get("kind") == _OURS:
        return PixelDenoiser.from_state_dict(state)
    if settings.get("kind") == _THEIRS:
        module = _pretrained(settings)
        module.load_state_dict(state)
        return module
    raise UnsupportedModelError(
        f"the settings name a denoiser of kind {settings.get('kind')!r}; this package has {_OURS} and "
        f"{_THEIRS}"
    )


def _pretrained(settings: dict[str, Any]) -> Pretrained:
    """A model of diffusers without its weights."""
    try:
        from diffusers import UNet2DModel
    except ImportError as error:
        raise SgaError(
            f"this state dict's denoiser is a model of the package diffusers ({error}); install the extra: "
            'pip install ".[diffusion]"'
        ) from error
    log_snrs = torch.tensor(settings["log_snrs"], dtype=torch.float64)
    config = {"prediction_type": _PREDICTION_TYPES[settings["prediction"]]}
    if settings["limit"] is not None:
        config |= {"clip_sample": True, "clip_sample_range": settings["limit"]}
    scheduler = SimpleNamespace(alphas_cumprod=torch.sigmoid(log_snrs), config=config)
    module = Pretrained(
        UNet2DModel.from_config(settings["unet"]), None, scheduler, class_label=settings["class_label"]
    )
    module.log_snrs = log_snrs  # to the last bit
    return module
