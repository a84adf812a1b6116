# SPDX-License-Identifier: Apache-2.0
"""Puts the coders of `compressai_sga.coding` into CompressAI's place; see the table in `hooks/__init__.py`.

Each `wrap_...(module, stock)` returns a method that looks at the coder's name of its own entropy model
(`entropy_coder.name`, which CompressAI fixes at construction and pickles): one of ours goes to
`coding`, any other to `stock` with the same arguments. `register` adds the names to the list behind
`compressai.available_entropy_coders()`, in place.

A stock coder reads strings of another length than a multiple of four bytes beyond their end; all of its
own are multiples. Such strings are refused, so that a string of another coder does no harm.

In:  the stock module and its function. Out: the wrapper.
Fails with ``BitstreamError`` on a string that is not the coder's.
"""

from __future__ import annotations

import copy
import functools
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..coding import autoregressive, entropy_models, mixture
from ..coding.coders import CODERS
from ..errors import BitstreamError, ShapeError

__all__ = [
    "register",
    "unregister",
    "wrap_build_indexes",
    "wrap_coder",
    "wrap_compress",
    "wrap_compress_ar",
    "wrap_compress_ar_vbr",
    "wrap_compress_mixture",
    "wrap_compress_raster_scan",
    "wrap_decompress",
    "wrap_decompress_ar",
    "wrap_decompress_ar_vbr",
    "wrap_decompress_mixture",
    "wrap_decompress_raster_scan",
]

Function = Callable[..., Any]


# --- Names -------------------------------------------------------------------------------------


class _Probe:
    """Waits for CompressAI's list; its import ends by looking for `range_coder`, when the list exists.

    Where that module was imported before, the next import of any other does.
    """

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if hasattr(sys.modules.get("compressai"), "_available_entropy_coders"):
            sys.meta_path[:] = [finder for finder in sys.meta_path if finder is not self]
            register()
        return None


_added: list[str] = []


def register() -> None:
    """Add the names to CompressAI's list, or do so as soon as it exists; again is harmless."""
    import compressai

    names = getattr(compressai, "_available_entropy_coders", None)
    if names is None:
        if not any(isinstance(finder, _Probe) for finder in sys.meta_path):
            sys.meta_path.insert(0, _Probe())
        return
    for name in CODERS:
        if name not in names:
            names.append(name)
            _added.append(name)


def unregister() -> None:
    """Take the names out again; a default that was one of them becomes stock's first."""
    import compressai

    sys.meta_path[:] = [finder for finder in sys.meta_path if not isinstance(finder, _Probe)]
    names = getattr(compressai, "_available_entropy_coders", [])
    while _added:
        name = _added.pop()
        if name in names:
            names.remove(name)
    if names and compressai.get_entropy_coder() not in names:
        compressai.set_entropy_coder(names[0])


def wrap_coder(module: ModuleType, stock: Function) -> Function:
    """`_EntropyCoder.__init__`, which knows our names."""

    @functools.wraps(stock)
    def __init__(self: Any, method: str) -> None:
        if isinstance(method, str) and method in CODERS:
            self.name = method
            self._encoder = self._decoder = CODERS[method]
        else:
            stock(self, method)

    return __init__


# --- Entropy models ----------------------------------------------------------------------------


def wrap_compress(module: ModuleType, stock: Function) -> Function:
    """`EntropyModel.compress` and `EntropyModelVbr.compress`."""

    @functools.wraps(stock)
    def compress(self: nn.Module, inputs: Tensor, indexes: Tensor, *args: Any, **kwargs: Any) -> list[bytes]:
        if entropy_models.coder_of(self) is None:
            return stock(self, inputs, indexes, *args, **kwargs)
        return entropy_models.compress(self, inputs, indexes, *args, **kwargs)

    return compress


def wrap_decompress(module: ModuleType, stock: Function) -> Function:
    """`EntropyModel.decompress` and `EntropyModelVbr.decompress`."""

    @functools.wraps(stock)
    def decompress(self: nn.Module, strings: list[bytes], *args: Any, **kwargs: Any) -> Tensor:
        if entropy_models.coder_of(self) is None:
            _refuse_foreign(self, strings)
            return stock(self, strings, *args, **kwargs)
        return entropy_models.decompress(self, strings, *args, **kwargs)

    return decompress


def wrap_build_indexes(module: ModuleType, stock: Function) -> Function:
    """`GaussianConditional.build_indexes`."""

    @functools.wraps(stock)
    def build_indexes(self: nn.Module, scales: Tensor) -> Tensor:
        if entropy_models.coder_of(self) is None:
            return stock(self, scales)
        return entropy_models.build_indexes(self, scales)

    return build_indexes


def wrap_compress_mixture(module: ModuleType, stock: Function) -> Function:
    """`GaussianMixtureConditional.compress`."""

    @functools.wraps(stock)
    def compress(self: nn.Module, y: Tensor, scales: Tensor, means: Tensor, weights: Tensor) -> Any:
        if entropy_models.coder_of(self) is None:
            return stock(self, y, scales, means, weights)
        return mixture.compress(self, y, scales, means, weights)

    return compress


def wrap_decompress_mixture(module: ModuleType, stock: Function) -> Function:
    """`GaussianMixtureConditional.decompress`."""

    @functools.wraps(stock)
    def decompress(self: nn.Module, strings: bytes, *args: Any, **kwargs: Any) -> Tensor:
        if entropy_models.coder_of(self) is None:
            _refuse_foreign(self, [strings])
            return stock(self, strings, *args, **kwargs)
        return mixture.decompress(self, strings, *args, **kwargs)

    return decompress


def _refuse_foreign(entropy_model: nn.Module, strings: Any) -> None:
    if entropy_model.entropy_coder.name != "ans" or not isinstance(strings, (list, tuple)):
        return
    for string in strings:
        if isinstance(string, bytes) and len(string) % 4:
            raise BitstreamError(
                f"a string of {len(string)} bytes is not of CompressAI's coder `ans`, whose strings are "
                "multiples of 4 bytes: decode it with the coder that made it (coding.set_coder)"
            )


# --- Autoregressive models -----------------------------------------------------------------------


def wrap_compress_ar(module: ModuleType, stock: Function) -> Function:
    """`JointAutoregressiveHierarchicalPriors._compress_ar`; cheng2020 inherits it."""

    @functools.wraps(stock)
    def _compress_ar(
        self: nn.Module,
        y_hat: Tensor,
        params: Tensor,
        height: int,
        width: int,
        kernel_size: int,
        padding: int,
    ) -> bytes:
        if entropy_models.coder_of(self.gaussian_conditional) is None:
            return stock(self, y_hat, params, height, width, kernel_size, padding)
        return _encode(self, y_hat, params, padding, autoregressive.MEANS, None)

    return _compress_ar


def wrap_decompress_ar(module: ModuleType, stock: Function) -> Function:
    """`JointAutoregressiveHierarchicalPriors._decompress_ar`, which fills `y_hat`."""

    @functools.wraps(stock)
    def _decompress_ar(
        self: nn.Module,
        y_string: bytes,
        y_hat: Tensor,
        params: Tensor,
        height: int,
        width: int,
        kernel_size: int,
        padding: int,
    ) -> None:
        if entropy_models.coder_of(self.gaussian_conditional) is None:
            _refuse_foreign(self.gaussian_conditional, [y_string])
            return stock(self, y_string, y_hat, params, height, width, kernel_size, padding)
        return _decode(self, y_string, y_hat, params, padding, autoregressive.MEANS, None)

    return _decompress_ar


def wrap_compress_ar_vbr(module: ModuleType, stock: Function) -> Function:
    """`JointAutoregressiveHierarchicalPriorsVbr._compress_ar`."""

    @functools.wraps(stock)
    def _compress_ar(
        self: nn.Module,
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
        if entropy_models.coder_of(self.gaussian_conditional) is None:
            return stock(self, y_hat, params, height, width, kernel_size, padding, scale, rescale, stage)
        return _encode(self, y_hat, params, padding, *_variable(self, scale, rescale, stage))

    return _compress_ar


def wrap_decompress_ar_vbr(module: ModuleType, stock: Function) -> Function:
    """`JointAutoregressiveHierarchicalPriorsVbr._decompress_ar`."""

    @functools.wraps(stock)
    def _decompress_ar(
        self: nn.Module,
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
        if entropy_models.coder_of(self.gaussian_conditional) is None:
            _refuse_foreign(self.gaussian_conditional, [y_string])
            rest = (height, width, kernel_size, padding, scale, rescale, stage)
            return stock(self, y_string, y_hat, params, *rest)
        return _decode(self, y_string, y_hat, params, padding, *_variable(self, scale, rescale, stage))

    return _decompress_ar


def wrap_compress_raster_scan(module: ModuleType, stock: Function) -> Function:
    """`RasterScanLatentCodec.compress`; its strings are [[one of each image]], which `decompress` takes."""

    @functools.wraps(stock)
    def compress(self: nn.Module, y: Tensor, ctx_params: Tensor) -> dict[str, Any]:
        if entropy_models.coder_of(self.gaussian_conditional) is None:
            return stock(self, y, ctx_params)
        strings, coded = [], []
        for i in range(len(y)):
            string, y_hat = autoregressive.scan_compress(
                y[i : i + 1], ctx_params[i : i + 1], *_parts(self), merge=_merge(self, module)
            )
            strings.append(string)
            coded.append(y_hat)
        return {"strings": [strings], "y_hat": torch.cat(coded), "shape": y.shape[2:4]}

    return compress


def wrap_decompress_raster_scan(module: ModuleType, stock: Function) -> Function:
    """`RasterScanLatentCodec.decompress`."""

    @functools.wraps(stock)
    def decompress(
        self: nn.Module, strings: list[list[bytes]], shape: Any, ctx_params: Tensor, **kwargs: Any
    ) -> dict[str, Any]:
        (y_strings,) = strings
        if entropy_models.coder_of(self.gaussian_conditional) is None:
            _refuse_foreign(self.gaussian_conditional, y_strings)
            return stock(self, strings, shape, ctx_params, **kwargs)
        _require_size(tuple(shape), ctx_params)
        decoded = [
            autoregressive.scan_decompress(
                string, ctx_params[i : i + 1], *_parts(self), merge=_merge(self, module)
            )
            for i, string in enumerate(y_strings)
        ]
        return {"y_hat": torch.cat(decoded)}

    return decompress


def _encode(
    model: nn.Module, padded: Tensor, params: Tensor, padding: int, rounding: Any, shift: Tensor | None
) -> bytes:
    y = F.pad(padded, (-padding,) * 4)
    _require_size(y.shape[2:], params)
    string, y_hat = autoregressive.scan_compress(y, params, *_parts(model), rounding=rounding, shift=shift)
    _inner(padded, padding).copy_(y_hat)
    return string


def _decode(
    model: nn.Module,
    string: bytes,
    padded: Tensor,
    params: Tensor,
    padding: int,
    rounding: Any,
    shift: Tensor | None,
) -> None:
    decoded = autoregressive.scan_decompress(string, params, *_parts(model), rounding=rounding, shift=shift)
    _inner(padded, padding).copy_(decoded)


def _parts(model: nn.Module) -> tuple[nn.Module, nn.Module, nn.Module]:
    return model.gaussian_conditional, model.entropy_parameters, model.context_prediction


def _inner(padded: Tensor, padding: int) -> Tensor:
    height, width = padded.shape[2] - 2 * padding, padded.shape[3] - 2 * padding
    return padded[:, :, padding : padding + height, padding : padding + width]


def _merge(codec: nn.Module, module: ModuleType) -> Function | None:
    """The codec's own way to put parameters and context together, None where it is stock's."""
    same = type(codec).merge is module.RasterScanLatentCodec.merge and "merge" not in vars(codec)
    return None if same else codec.merge


def _variable(
    model: nn.Module, scale: Tensor, rescale: Tensor, stage: int
) -> tuple[autoregressive.Rounding, Tensor | None]:
    """Rounding and context shift of the variable-rate model at one rate."""
    if stage == 1:
        return autoregressive.Rounding(scale.double()), None
    plain = model.no_quantoffset or not model.ste_recursive
    rounding = autoregressive.VariableRounding(
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
