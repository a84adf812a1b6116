# SPDX-License-Identifier: Apache-2.0
"""Arithmetic that depends neither on what the caller has switched on nor on a GPU's shortcuts.

Encoder and decoder must compute the same numbers. Autocast, another default dtype and a default device would
change those of one of them, so everything that codes, refines or fits runs within `full_precision`:

    @full_precision()
    def compress(self, x): ...

By default torch lets cuDNN read float32 inputs of convolutions as TF32, with 10 bits of mantissa instead of
23, and users often allow the same for matrix products. That is an error of 1e-3 where a CPU has one of 1e-7:
images are measured wrongly, and networks that predict coding tables predict other ones. Some algorithms of
cuDNN, those of gradients above all, add numbers in an order that changes from call to call. `full_float32`
and `fixed_algorithms` are against these.

In:  nothing. Out: contexts, or decorators of functions. Fails with nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

__all__ = ["fixed_algorithms", "full_float32", "full_precision", "tf32_is_allowed"]

_KINDS = ("cpu", "cuda", "mps", "xpu")


@contextmanager
def full_precision() -> Iterator[None]:
    """No autocast; new tensors are float32 on the CPU unless the code says otherwise."""
    with ExitStack() as stack:
        for kind in _KINDS:
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        if torch.get_default_dtype() != torch.float32:
            stack.callback(torch.set_default_dtype, torch.get_default_dtype())
            torch.set_default_dtype(torch.float32)
        if torch.empty(0).device.type != "cpu":
            stack.enter_context(torch.device("cpu"))
        yield


@contextmanager
def full_float32() -> Iterator[None]:
    """A context in which GPUs multiply float32 in full; afterwards torch's settings are as before.

    The settings are those of the process, so other threads see them too. The CPU's do not change.
    """
    with _set(_float32_settings()):
        yield


def tf32_is_allowed() -> bool:
    """Whether a GPU may multiply float32 in less than full precision now."""
    lowest = ("tf32", "bf16", True)
    return any(getattr(owner, name) in lowest for owner, name, _ in _float32_settings())


def _float32_settings() -> list[tuple[Any, str, Any]]:
    """Owner, name and value in full precision of torch's settings."""
    products, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    if hasattr(cudnn, "conv"):  # torch >= 2.9, where the older names raise once these were used
        return [(products, "fp32_precision", "ieee"), (cudnn.conv, "fp32_precision", "ieee")]
    return [(products, "allow_tf32", False), (cudnn, "allow_tf32", False)]


@contextmanager
def fixed_algorithms() -> Iterator[None]:
    """A context in which cuDNN takes only algorithms with a fixed order of sums; else as `full_float32`."""
    with _set([(torch.backends.cudnn, "deterministic", True), (torch.backends.cudnn, "benchmark", False)]):
        yield


@contextmanager
def _set(settings: list[tuple[Any, str, Any]]) -> Iterator[None]:
    """Gives attributes of (owner, name) these values, and their own again at the end."""
    before = [(owner, name, getattr(owner, name)) for owner, name, _ in settings]
    try:
        for owner, name, value in settings:
            setattr(owner, name, value)
        yield
    finally:
        for owner, name, value in before:
            setattr(owner, name, value)
