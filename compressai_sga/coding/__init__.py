# SPDX-License-Identifier: Apache-2.0
"""Entropy coders on `constriction`, in CompressAI's own place and as functions of arrays.

    coding.set_coder(model, "constriction-range")        # one model, nothing else changes; or
    compressai.set_entropy_coder("constriction-ans")     # all models built from now on (see `hooks`), or
    python -m compressai.utils.eval_model -c constriction-exact ...

constriction-ans and constriction-range code CompressAI's own tables; constriction-exact codes with the
continuous scales that the network gives: 0.3 to 0.5 % less on Kodak (eval/experiments/coding/coders.py; of
single images, one that its model takes for too easy can be 0.2 % longer). See `coders` (the bytes),
`tables`, `escapes`, `autoregressive` (fronts instead of single pixels), `binding` (`set_coder`), `checksum`.
"""

from __future__ import annotations

from . import checksum
from .binding import set_coder
from .coders import CODERS, ConstrictionANS, ConstrictionExact, ConstrictionRange
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
