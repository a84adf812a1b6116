# SPDX-License-Identifier: Apache-2.0
"""A zoo of a test's own: a record of weights for all rates, and the zoo in the place of the shipped one."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import save_file
from torch import Tensor

from compressai_sga import zoo
from compressai_sga.files import description
from compressai_sga.hooks import registration

__all__ = ["joint_record", "used"]


def joint_record(
    folder: Path, name: str, tensors: Mapping[str, Tensor], lmbdas: Mapping[int, float], **facts: Any
) -> dict[str, Any]:
    """Write weights/NAME.safetensors into the folder of the zoo; the record for its manifest.

    Args:
        folder: of the zoo.
        name: of the model.
        tensors: of `zoo_joint.stored`.
        lmbdas: of each quality.
        facts: architecture, N, M, gaussian_tables_crc32.
    """
    path = folder / "weights" / f"{name}.safetensors"
    save_file(dict(tensors), path)
    made = {"name": name, "metric": "mse", "file": f"weights/{path.name}", "bytes": path.stat().st_size}
    made["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
    return {
        **facts,
        **made,
        **{"wheel": False, "licence": "Apache-2.0", "training_data": [], "command": "none"},
        **{"training": {}, "tolerance": {}},
        "lmbda_range": [min(lmbdas.values()), max(lmbdas.values())],
        "qualities": {str(q): {"lmbda": lmbda, "golden": {}, "kodak": None} for q, lmbda in lmbdas.items()},
    }


@contextlib.contextmanager
def used(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """CompressAI knows the names of the zoo in this folder, and no others."""
    registration.unregister()
    monkeypatch.setattr(zoo, "_folder", lambda: folder)
    monkeypatch.setattr(description, "folder", lambda: folder)
    registration.register()
    yield folder
    registration.unregister()
    monkeypatch.undo()
    registration.register()
