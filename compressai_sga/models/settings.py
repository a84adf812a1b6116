# SPDX-License-Identifier: Apache-2.0
"""Settings inside a state dict, so that a module's architecture is stored with its weights in any file.

CompressAI passes only tensors to `from_state_dict`, which finds N and M in their shapes. Networks with more
settings keep them as JSON in a buffer, one byte an element.

In:  a dictionary that JSON can hold. Out: a uint8 tensor (n,), and the dictionary back from it.
Fails with ``ValueError`` where the tensor does not hold the JSON of a dictionary.
"""

from __future__ import annotations

import json
from typing import Any

import torch
from torch import Tensor

__all__ = ["from_buffer", "to_buffer"]


def to_buffer(settings: dict[str, Any]) -> Tensor:
    """The settings as bytes, with sorted keys, so that equal settings give equal tensors."""
    text = json.dumps(settings, sort_keys=True, separators=(",", ":"))
    return torch.tensor(list(text.encode("ascii")), dtype=torch.uint8)


def from_buffer(buffer: Tensor) -> dict[str, Any]:
    """The settings back.

    Raises:
        ValueError: the bytes are not the JSON of a dictionary.
    """
    try:
        settings = json.loads(bytes(buffer.to(torch.uint8).cpu().tolist()).decode("ascii"))
    except ValueError as error:
        raise ValueError(
            f"the settings in the state dict cannot be read ({error}); the file is damaged"
        ) from error
    if not isinstance(settings, dict):
        raise ValueError(f"the settings in the state dict are {settings!r}; they must be a dictionary")
    return settings
