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

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch

__all__ = ["fixed_algorithms", "full_float32", "full_precision", "tf32_is_allowed"]

_KINDS = ("cpu", "cuda", "mps", "xpu")
Setting = tuple[Callable[[], Any], Callable[[Any], Any], Any]
"""A setting of the process: what returns it, what sets it, and the value that is needed."""


class _Shared:
    """Settings of the process that hold while any thread is within; the last to leave restores them.

    Each thread by itself would save what another has set, and take away what another still needs.
    """

    def __init__(self, settings: Callable[[], list[Setting]]) -> None:
        self._settings, self._lock = settings, threading.Lock()
        self._threads = 0
        self._before: list[Any] = []

    @contextmanager
    def __call__(self) -> Iterator[None]:
        settings = self._settings()
        with self._lock:
            if self._threads == 0:
                self._before = [get() for get, _, _ in settings]
            self._threads += 1
        try:
            for _, change, value in settings:
                change(value)
            yield
        finally:
            with self._lock:
                self._threads -= 1
                if self._threads == 0:
                    for (_, change, _), value in zip(settings, self._before, strict=True):
                        change(value)


def _attribute(owner: Any, name: str, value: Any) -> Setting:
    return partial(getattr, owner, name), partial(setattr, owner, name), value


@contextmanager
def full_precision() -> Iterator[None]:
    """No autocast; new tensors are float32 on the CPU unless the code says otherwise.

    The default dtype is that of the process, so other threads see it too.
    """
    with ExitStack() as stack:
        for kind in _KINDS:
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        stack.enter_context(_float32_by_default())
        if torch.empty(0).device.type != "cpu":
            stack.enter_context(torch.device("cpu"))
        yield


@contextmanager
def full_float32() -> Iterator[None]:
    """A context in which GPUs multiply float32 in full; afterwards torch's settings are as before.

    The settings are those of the process, so other threads see them too. The CPU's do not change.
    """
    with _in_full():
        yield


@contextmanager
def fixed_algorithms() -> Iterator[None]:
    """A context in which cuDNN takes only algorithms with a fixed order of sums; else as `full_float32`."""
    with _in_order():
        yield


def tf32_is_allowed() -> bool:
    """Whether a GPU may multiply float32 in less than full precision now."""
    return any(get() in ("tf32", "bf16", True) for get, _, _ in _float32_settings())


def _float32_settings() -> list[Setting]:
    products, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    if hasattr(cudnn, "conv"):  # torch >= 2.9, where the older names raise once these were used
        return [_attribute(owner, "fp32_precision", "ieee") for owner in (products, cudnn.conv)]
    return [_attribute(owner, "allow_tf32", False) for owner in (products, cudnn)]


def _cudnn_settings() -> list[Setting]:
    cudnn = torch.backends.cudnn
    return [_attribute(cudnn, "deterministic", True), _attribute(cudnn, "benchmark", False)]


_in_full, _in_order = _Shared(_float32_settings), _Shared(_cudnn_settings)
_float32_by_default = _Shared(lambda: [(torch.get_default_dtype, torch.set_default_dtype, torch.float32)])
