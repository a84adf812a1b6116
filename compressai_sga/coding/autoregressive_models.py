# SPDX-License-Identifier: Apache-2.0
"""The methods of CompressAI's autoregressive models and of its raster-scan codec, coded front by front.

Each function replaces the stock method of the same name, with the same arguments, where the coder is one of
ours: the stock methods ignore the coder's name. Shapes are those of the installed CompressAI: the raster-scan
codec's is (h, w) in 1.2.8, and (C, h, w) since. `binding` and `hooks` put these functions in their place.

In:  the model or codec, whose `gaussian_conditional` has a coder of ours and tables. Out: as stock's.
Fails with ``ShapeError`` on a latent and parameters of different sizes, ``BitstreamError`` on a string that
was not made for these parameters.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from compressai.latent_codecs import rasterscan
from compressai.latent_codecs.rasterscan import RasterScanLatentCodec
from torch import Tensor, nn

from ..errors import ShapeError
from .autoregressive import MEANS, Rounding, VariableRounding, scan_compress, scan_decompress

__all__ = [
    "compress_ar",
    "compress_raster_scan",
    "decompress_ar",
    "decompress_raster_scan",
]


# Together with the shape, the functions that code one image became methods.
_SHAPE_HAS_CHANNELS = not hasattr(rasterscan, "raster_scan_compress_single_stream")


def compress_ar(
    model: nn.Module,
    y_hat: Tensor,
    params: Tensor,
    height: int,
    width: int,
    kernel_size: int,
    padding: int,
    *rate: Any,
) -> bytes:
    """`_compress_ar` of `JointAutoregressiveHierarchicalPriors`, which cheng2020 inherits, and of its Vbr.

    Args:
        rate: scale, rescale, stage of the variable-rate model.
    """
    y = F.pad(y_hat, (-padding,) * 4)
    _require_size(y.shape[2:], params)
    rounding, shift = _rounding(model, *rate)
    string, coded = scan_compress(y, params, *_parts(model), rounding=rounding, shift=shift)
    _inner(y_hat, padding).copy_(coded)
    return string


def decompress_ar(
    model: nn.Module,
    y_string: bytes,
    y_hat: Tensor,
    params: Tensor,
    height: int,
    width: int,
    kernel_size: int,
    padding: int,
    *rate: Any,
) -> None:
    """`_decompress_ar`, which fills `y_hat`; `rate` as in `compress_ar`."""
    rounding, shift = _rounding(model, *rate)
    decoded = scan_decompress(y_string, params, *_parts(model), rounding=rounding, shift=shift)
    _inner(y_hat, padding).copy_(decoded)


def compress_raster_scan(codec: nn.Module, y: Tensor, ctx_params: Tensor) -> dict[str, Any]:
    """`RasterScanLatentCodec.compress`; its strings are [[one of each image]], which `decompress` takes."""
    strings, coded = [], []
    for i in range(len(y)):
        string, y_hat = scan_compress(
            y[i : i + 1], ctx_params[i : i + 1], *_parts(codec), merge=_merge(codec)
        )
        strings.append(string)
        coded.append(y_hat)
    shape = y.shape[1:] if _SHAPE_HAS_CHANNELS else y.shape[2:4]
    return {"strings": [strings], "y_hat": torch.cat(coded), "shape": shape}


def decompress_raster_scan(
    codec: nn.Module, strings: list[list[bytes]], shape: Any, ctx_params: Tensor, **kwargs: Any
) -> dict[str, Any]:
    """`RasterScanLatentCodec.decompress`."""
    (y_strings,) = strings
    _require_size(tuple(shape)[-2:], ctx_params)
    decoded = [
        scan_decompress(string, ctx_params[i : i + 1], *_parts(codec), merge=_merge(codec))
        for i, string in enumerate(y_strings)
    ]
    return {"y_hat": torch.cat(decoded)}


def _parts(model: nn.Module) -> tuple[nn.Module, nn.Module, nn.Module]:
    return model.gaussian_conditional, model.entropy_parameters, model.context_prediction


def _inner(padded: Tensor, padding: int) -> Tensor:
    height, width = padded.shape[2] - 2 * padding, padded.shape[3] - 2 * padding
    return padded[:, :, padding : padding + height, padding : padding + width]


def _merge(codec: nn.Module) -> Callable[..., Tensor] | None:
    """The codec's own function that joins parameters and context; None where it is the stock one."""
    same = type(codec).merge is RasterScanLatentCodec.merge and "merge" not in vars(codec)
    return None if same else codec.merge


def _rounding(
    model: nn.Module, scale: Tensor | None = None, rescale: Tensor | None = None, stage: int = 1
) -> tuple[Rounding, Tensor | None]:
    """Rounding and context shift of a model, which depend on the rate if the model is of variable rate."""
    if scale is None:
        return MEANS, None
    if stage == 1:
        return Rounding(scale.double()), None
    plain = model.no_quantoffset or not model.ste_recursive
    rounding = VariableRounding(
        scale.double(),
        rescale.double(),
        None if plain else copy.deepcopy(model.QuantABCD).double(),
        model.gaussian_conditional.lower_bound_scale,
    )
    return rounding, model.scale_to_context(scale.view(1, 1)) if model.scl2ctx else None


def _require_size(size: Any, params: Tensor) -> None:
    if tuple(size) != tuple(params.shape[2:]):
        raise ShapeError(
            f"a latent of {tuple(size)} pixels with parameters for {tuple(params.shape[2:])}: pad the image "
            "to a multiple of model.downsampling_factor, as CompressAI's eval_model does"
        )
