# SPDX-License-Identifier: Apache-2.0
"""float32 that is float32 on a GPU too.

torch lets cuDNN read float32 inputs of convolutions as TF32, with 10 bits of mantissa instead of 23, unless it
is told otherwise, and users often allow the same for matrix products. That is an error of 1e-3 where a CPU has
one of 1e-7: images are measured wrongly, and networks that predict coding tables predict other ones.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

__all__ = ["full_float32"]


@contextmanager
def full_float32() -> Iterator[None]:
    """A context in which GPUs multiply float32 in full; afterwards torch's settings are as before.

    The settings are those of the process, so other threads see them too. The CPU's do not change.
    """
    before = [(owner, name, getattr(owner, name)) for owner, name, _ in _settings()]
    try:
        for owner, name, full in _settings():
            setattr(owner, name, full)
        yield
    finally:
        for owner, name, value in before:
            setattr(owner, name, value)


def _settings() -> list[tuple[Any, str, Any]]:
    """Owner, name and value without TF32 of torch's settings."""
    products, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    if hasattr(cudnn, "conv"):  # torch >= 2.9, where the older names raise once these were used
        return [(products, "fp32_precision", "ieee"), (cudnn.conv, "fp32_precision", "ieee")]
    return [(products, "allow_tf32", False), (cudnn, "allow_tf32", False)]
