# SPDX-License-Identifier: Apache-2.0
"""The pixel model of photographs: the P of the critic.

Its parameters are in photographs.json, which zoo/train/critic_model.py writes; "source" says from what.
"""

from __future__ import annotations

import json
from pathlib import Path

from .pixel_model import PixelModel, Plane

__all__ = ["PHOTOGRAPHS", "read"]


def read(path: Path) -> PixelModel:
    """The pixel model of a file that zoo/train/critic_model.py has written."""
    planes = json.loads(path.read_text(encoding="utf-8"))["planes"]
    return PixelModel(tuple(Plane(**{name: tuple(values) for name, values in p.items()}) for p in planes))


PHOTOGRAPHS = read(Path(__file__).with_suffix(".json"))
