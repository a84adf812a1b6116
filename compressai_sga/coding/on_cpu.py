# SPDX-License-Identifier: Apache-2.0
"""Strings of a model on a GPU that stock CompressAI decodes on a CPU.

    codec = coded_on_cpu(model)                      # model itself where it is on the CPU
    out = codec.compress(x)                          # x and x_hat on the model's device
    x_hat = codec.decompress(**out)["x_hat"]

A decoder must find the encoder's coding table for every symbol, and everything after a wrong one is lost. The
tables follow from scales that networks compute (h_s, contexts). Errors of 1e-3, those of TF32 on GPUs, change
many tables of an image. Errors of 1e-7 change one in many images, be it that a GPU sums in another order or
that one side computes in float64. (Files of this package have float64 on both sides, see `files.float64`.)

So here the GPU runs only the transforms, whose results are not needed to the last bit: g_a and h_a make the
latents that are rounded, g_s the image. Everything between them runs on the CPU in float32, by the methods of
the model; the entropy coder is there in any case. Of a model with a `latent_codec`, the latent codec without
its h_a runs on the CPU, and all the rest on the GPU, whatever the transforms are called. The strings are then
those of a model on this CPU with the same rounded latents. The transforms run in full float32 (`precision`),
so that the image is the CPU's within float32's errors.

In:  a model with `compress` and `decompress`. Out: a module with these two methods; it has the weights and
tables of the moment when it was made.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any

import torch
from compressai.latent_codecs import LatentCodec
from torch import Tensor, nn

from ..copies import copied
from ..precision import full_float32

__all__ = ["TRANSFORMS", "coded_on_cpu"]

TRANSFORMS = ("g_a", "h_a", "g_s")
"""Names, in a model or its latent codecs, of the networks that stay on its device."""

_CPU = torch.device("cpu")


def coded_on_cpu(model: nn.Module) -> nn.Module:
    """A copy of the model that codes on the CPU and shares the transforms; see the file's head.

    Args:
        model: in evaluation mode, with its tables; unchanged. It is returned itself where it is on the CPU,
            where it says `CODED_IN_PLACE` (frames of video, which stock decodes where the model is), and
            where it has neither g_a and g_s nor a latent codec (C3, HFD and DiffC, whose own methods do what
            is needed).
    """
    device = next((p.device for p in model.parameters()), _CPU)
    if device.type == "cpu" or hasattr(model, "CODED_IN_PLACE"):
        return model
    if isinstance(getattr(model, "latent_codec", None), LatentCodec):
        return _with_latent_codec_on_cpu(model, device)
    if not (hasattr(model, "g_a") and hasattr(model, "g_s")):
        return model
    stay = {
        id(module): _OnDevice(module, device, device if name.endswith("g_s") else _CPU)
        for name, module in model.named_modules()
        if name.split(".")[-1] in TRANSFORMS
    }
    codec = copied(model, stay).cpu()
    for name in ("compress", "decompress"):
        setattr(codec, name, _with_arguments_on_cpu(getattr(type(codec), name).__get__(codec)))
    return codec


def _with_latent_codec_on_cpu(model: nn.Module, device: torch.device) -> nn.Module:
    stay: dict[int, nn.Module] = {
        id(module): _OnDevice(module, device, _CPU)
        for name, module in model.latent_codec.named_modules()
        if name.split(".")[-1] == "h_a"
    }
    unused = {id(getattr(model, name)): nn.Identity() for name in ("g_a", "g_s") if hasattr(model, name)}
    # The whole model, because a latent codec may refer to parts outside of it.
    latent_codec = copied(model, {**unused, **stay}).cpu().latent_codec
    codec = copy.copy(model)
    codec._modules = {**model._modules, "latent_codec": _LatentCodecOnCPU(latent_codec, device)}
    for name in ("compress", "decompress"):
        setattr(codec, name, full_float32()(getattr(type(model), name).__get__(codec)))
    return codec


class _LatentCodecOnCPU(nn.Module):
    """A latent codec on the CPU in a model on another device."""

    def __init__(self, latent_codec: nn.Module, device: torch.device) -> None:
        super().__init__()
        self.on_cpu, self._device = latent_codec, device

    def compress(self, y: Tensor) -> dict[str, Any]:
        return self.on_cpu.compress(y.cpu())

    def decompress(self, strings: list[list[bytes]], shape: Any, **kwargs: Any) -> dict[str, Any]:
        out = self.on_cpu.decompress(strings, shape, **kwargs)
        return {**out, "y_hat": out["y_hat"].to(self._device)}


class _OnDevice(nn.Module):
    """A transform of another model, which runs on that model's device."""

    def __init__(self, module: nn.Module, device: torch.device, output: torch.device) -> None:
        super().__init__()
        self._shared = (module,)  # in a tuple, so that it is not moved or saved with this module
        self._device, self._output = device, output

    def forward(self, v: Tensor) -> Tensor:
        with full_float32():
            return self._shared[0](v.to(self._device)).to(self._output)


def _with_arguments_on_cpu(method: Callable[..., Any]) -> Callable[..., Any]:
    """`method` with all tensors but the first argument on the CPU: the rates of variable-rate models."""

    def to_cpu(value: Any) -> Any:
        return value.cpu() if isinstance(value, Tensor) else value

    @functools.wraps(method)
    def call(*args: Any, **kwargs: Any) -> Any:
        kwargs = {name: to_cpu(value) for name, value in kwargs.items()}
        return method(*args[:1], *map(to_cpu, args[1:]), **kwargs)

    return call
