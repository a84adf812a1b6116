# SPDX-License-Identifier: Apache-2.0
"""Arithmetic that does not depend on what the caller has switched on.

Encoder and decoder must compute the same numbers. Autocast, another default dtype and a default device would
change those of one of them, so everything that codes, refines or fits runs within `full_precision`:

    @full_precision()
    def compress(self, x): ...

In:  nothing. Out: a context, or a decorator of functions. Fails with nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch

__all__ = ["full_precision"]

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
