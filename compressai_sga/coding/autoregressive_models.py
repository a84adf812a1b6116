# SPDX-License-Identifier: Apache-2.0
"""The methods of CompressAI's autoregressive models and of its raster-scan codec, coded front by front.

Each function replaces the stock method of the same name, with the same arguments, where the coder is one of
ours: the stock methods ignore the coder's name. `binding` and `hooks` put these functions in their place.

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
from compressai.latent_codecs.rasterscan import RasterScanLatentCodec
from torch import Tensor, nn

from ..errors import ShapeError
from .autoregressive import MEANS, Rounding, VariableRounding, scan_compress, scan_decompress

__all__ = [
    "compress_ar",
    "compress_ar_vbr",
    "compress_raster_scan",
    "decompress_ar",
    "decompress_ar_vbr",
    "decompress_raster_scan",
]


def compress_ar(
    model: nn.Module, y_hat: Tensor, params: Tensor, height: int, width: int, kernel_size: int, padding: int
) -> bytes:
    """`JointAutoregressiveHierarchicalPriors._compress_ar`; cheng2020 inherits it."""
    return _encode(model, y_hat, params, padding, MEANS, None)


def decompress_ar(
    model: nn.Module,
    y_string: bytes,
    y_hat: Tensor,
    params: Tensor,
    height: int,
    width: int,
    kernel_size: int,
    padding: int,
) -> None:
    """`JointAutoregressiveHierarchicalPriors._decompress_ar`, which fills `y_hat`."""
    _decode(model, y_string, y_hat, params, padding, MEANS, None)


def compress_ar_vbr(
    model: nn.Module,
    y_hat: Tensor,
    params: Tensor,
    height: int,
    width: int,
    kernel_size: int,
    padding: int,
    scale: Tensor,
    rescale: Tensor,
    stage: int,
) -> bytes:
    """`JointAutoregressiveHierarchicalPriorsVbr._compress_ar`."""
    return _encode(model, y_hat, params, padding, *_variable(model, scale, rescale, stage))


def decompress_ar_vbr(
    model: nn.Module,
    y_string: bytes,
    y_hat: Tensor,
    params: Tensor,
    height: int,
    width: int,
    kernel_size: int,
    padding: int,
    scale: Tensor,
    rescale: Tensor,
    stage: int,
) -> None:
    """`JointAutoregressiveHierarchicalPriorsVbr._decompress_ar`, which fills `y_hat`."""
    _decode(model, y_string, y_hat, params, padding, *_variable(model, scale, rescale, stage))


def compress_raster_scan(codec: nn.Module, y: Tensor, ctx_params: Tensor) -> dict[str, Any]:
    """`RasterScanLatentCodec.compress`; its strings are [[one of each image]], which `decompress` takes."""
    strings, coded = [], []
    for i in range(len(y)):
        string, y_hat = scan_compress(
            y[i : i + 1], ctx_params[i : i + 1], *_parts(codec), merge=_merge(codec)
        )
        strings.append(string)
        coded.append(y_hat)
    return {"strings": [strings], "y_hat": torch.cat(coded), "shape": y.shape[2:4]}


def decompress_raster_scan(
    codec: nn.Module, strings: list[list[bytes]], shape: Any, ctx_params: Tensor, **kwargs: Any
) -> dict[str, Any]:
    """`RasterScanLatentCodec.decompress`."""
    (y_strings,) = strings
    _require_size(tuple(shape), ctx_params)
    decoded = [
        scan_decompress(string, ctx_params[i : i + 1], *_parts(codec), merge=_merge(codec))
        for i, string in enumerate(y_strings)
    ]
    return {"y_hat": torch.cat(decoded)}


def _encode(
    model: nn.Module, padded: Tensor, params: Tensor, padding: int, rounding: Rounding, shift: Tensor | None
) -> bytes:
    y = F.pad(padded, (-padding,) * 4)
    _require_size(y.shape[2:], params)
    string, y_hat = scan_compress(y, params, *_parts(model), rounding=rounding, shift=shift)
    _inner(padded, padding).copy_(y_hat)
    return string


def _decode(
    model: nn.Module,
    string: bytes,
    padded: Tensor,
    params: Tensor,
    padding: int,
    rounding: Rounding,
    shift: Tensor | None,
) -> None:
    decoded = scan_decompress(string, params, *_parts(model), rounding=rounding, shift=shift)
    _inner(padded, padding).copy_(decoded)


def _parts(model: nn.Module) -> tuple[nn.Module, nn.Module, nn.Module]:
    return model.gaussian_conditional, model.entropy_parameters, model.context_prediction


def _inner(padded: Tensor, padding: int) -> Tensor:
    height, width = padded.shape[2] - 2 * padding, padded.shape[3] - 2 * padding
    return padded[:, :, padding : padding + height, padding : padding + width]


def _merge(codec: nn.Module) -> Callable[..., Tensor] | None:
    """The codec's own function that joins parameters and context; None where it is the stock one."""
    same = type(codec).merge is RasterScanLatentCodec.merge and "merge" not in vars(codec)
    return None if same else codec.merge


def _variable(model: nn.Module, scale: Tensor, rescale: Tensor, stage: int) -> tuple[Rounding, Tensor | None]:
    """Rounding and context shift of the variable-rate model at one rate."""
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
