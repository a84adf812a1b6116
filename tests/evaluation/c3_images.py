# SPDX-License-Identifier: Apache-2.0
"""A small image file for evaluations of C3."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

__all__ = ["save"]


def save(path: Path, height: int, width: int) -> None:
    """Write a smooth picture."""
    rows, columns = np.mgrid[:height, :width]
    pixels = np.stack([rows * 255 // height, columns * 255 // width, (rows + columns) % 256], 2)
    Image.fromarray(pixels.astype(np.uint8)).save(path)
