# SPDX-License-Identifier: Apache-2.0
"""Entropy coders on `constriction`, in CompressAI's own place and as functions of arrays.

    compressai.set_entropy_coder("constriction-ans")     # for models built from now on, or
    coding.set_coder(model, "constriction-range")        # for one that exists, or
    python -m compressai.utils.eval_model -c constriction-exact ...

constriction-ans and constriction-range code CompressAI's own tables; constriction-exact codes with the
continuous scales that the network gives: 0.3 to 0.5 % less on Kodak (eval/experiments/coding/coders.py; of
single images, one that its model takes for too easy can be 0.2 % longer). See `coders` (the bytes),
`tables`, `escapes`, `autoregressive` (fronts instead of single pixels), `checksum`.
"""

from __future__ import annotations

from . import checksum
from .coders import CODERS, ConstrictionANS, ConstrictionExact, ConstrictionRange
from .entropy_models import set_coder
from .tables import Tables

__all__ = [
    "CODERS",
    "ConstrictionANS",
    "ConstrictionExact",
    "ConstrictionRange",
    "Tables",
    "checksum",
    "set_coder",
]
