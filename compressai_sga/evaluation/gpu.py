# SPDX-License-Identifier: Apache-2.0
"""What stock's `inference` gets instead of a model on a GPU, so that its times and strings are right.

Stock reads the clock when `decompress` has returned. A GPU is then still at work on the image, so the time is
too short; here `decompress` returns when the image is there. Refined strings are the CPU's
(`coding.on_cpu`), and are decoded as such.

In:  a model on its device. Out: an object with `compress`, `decompress` and `forward`, all that stock's code
asks of a model.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

__all__ = ["waiting"]


def waiting(model: nn.Module, encoder: nn.Module | None = None, decoder: nn.Module | None = None) -> Any:
    """The model for stock's functions; on a CPU it is the model itself.

    Args:
        model: its methods as they are now, those of the instance included.
        encoder, decoder: whose `compress` and `decompress` to take, by default the model's.
    """
    if next(model.parameters()).device.type != "cuda":
        return model
    return SimpleNamespace(
        compress=_waiting((encoder or model).compress),
        decompress=_waiting((decoder or model).decompress),
        forward=_waiting(model.forward),
    )


def _waiting(method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def call(*args: Any, **kwargs: Any) -> Any:
        result = method(*args, **kwargs)
        torch.cuda.synchronize()
        return result

    return call
