# SPDX-License-Identifier: Apache-2.0
"""`.csga` files of C3 from any nets and latents, as no fit would make them."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from compressai_sga.coding.container import Container, checksum_of, pack
from compressai_sga.files import c3 as fitted
from compressai_sga.models.c3.config import KNOWN, Architecture, layout
from compressai_sga.models.c3.contexts import grid_sizes
from compressai_sga.models.c3.image_codec import encode_image
from compressai_sga.models.c3.weights import Nets

__all__ = ["blank", "container_of", "file_of"]


def blank(size: tuple[int, int], architecture: Architecture = KNOWN[0]) -> tuple[Nets, list[np.ndarray]]:
    """Latents that are all zero, and nets that are sure of it: an image of zeros in next to no bits."""
    specs = layout(architecture)
    integers = {spec.name: np.zeros(spec.shape, np.int64) for spec in specs}
    integers[f"entropy.{len(architecture.entropy_hidden)}.bias"][1] = -5 << 8  # log2 of the scale
    grids = [np.zeros(s, np.int32) for s in grid_sizes(*size, architecture.grids, architecture.first)]
    return Nets(architecture, size, 127, tuple(integers.values()), (8,) * len(specs)), grids


def container_of(nets: Nets, grids: list[np.ndarray], **changes: Any) -> Container:
    """What the file of these says, changed in places."""
    symbols, crc32 = fitted._checksum(nets, grids)
    strings = changes.pop("strings", None) or encode_image(nets, grids)
    fields = {
        **{"model": "c3", "quality": 3, "metric": "mse", "weights": bytes(8), "coder": "constriction-ans"},
        **{"width": nets.size[1], "height": nets.size[0], "mode": "RGB", "stride": 0, "shape": 0},
        **{"symbols": symbols, "checksum": 0, "strings": strings},
    }
    container = Container(**{**fields, **changes})
    return dataclasses.replace(container, checksum=changes.get("checksum", checksum_of(container, crc32)))


def file_of(nets: Nets, grids: list[np.ndarray], **changes: Any) -> bytes:
    """The bytes of that."""
    return pack(container_of(nets, grids, **changes))
