# SPDX-License-Identifier: Apache-2.0
"""The model inside the wrappers of PyTorch, which have no `compress` of their own, or only pass it on.

In:  a model, or `torch.compile(model)`, `DataParallel(model)`, `DistributedDataParallel(model)`, or these
around each other. Out: the model; changes of its weights are changes of the wrapped one's.
"""

from __future__ import annotations

from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

__all__ = ["unwrapped"]


def unwrapped(model: nn.Module) -> nn.Module:
    """The model itself, without `torch.compile`, `DataParallel` and `DistributedDataParallel` around it."""
    while True:
        if isinstance(model, DataParallel | DistributedDataParallel):
            model = model.module
        elif "_orig_mod" in model.__dict__.get("_modules", {}):  # OptimizedModule, of which torch has no name
            model = model._orig_mod
        else:
            return model
