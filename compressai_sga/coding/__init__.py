# SPDX-License-Identifier: Apache-2.0
"""Entropy coders built on `constriction`: in place of CompressAI's own, and as functions of arrays.

    coding.set_coder(model, "constriction-range")        # one model, nothing else changes; or
    compressai.set_entropy_coder("constriction-ans")     # all models built from now on (see `hooks`), or
    python -m compressai.utils.eval_model -c constriction-exact ...

constriction-ans and constriction-range code with CompressAI's own tables; constriction-exact codes with the
continuous scales that the network gives, which saves 0.3 to 0.5 % of the bits on Kodak
(eval/experiments/coding/coders.py). A single image whose scales the model predicts too small can be 0.2 %
longer. See `coders` (the bytes), `tables`, `escapes`, `autoregressive` (fronts instead of single pixels),
`binding` (`set_coder`), `checksum`, `on_cpu` (models on a GPU whose strings a CPU decodes).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .. import lazy

if TYPE_CHECKING:
    from . import checksum
    from .binding import set_coder
    from .coders import CODERS, ConstrictionANS, ConstrictionExact, ConstrictionRange
    from .on_cpu import coded_on_cpu
    from .tables import Tables

__all__ = [
    "CODERS",
    "ConstrictionANS",
    "ConstrictionExact",
    "ConstrictionRange",
    "Tables",
    "checksum",
    "coded_on_cpu",
    "set_coder",
]

_CODERS = ("CODERS", "ConstrictionANS", "ConstrictionExact", "ConstrictionRange")
__getattr__ = lazy.attributes(
    __name__,
    {
        **dict.fromkeys(_CODERS, "coders"),
        "Tables": "tables",
        "checksum": "",
        "coded_on_cpu": "on_cpu",
        "set_coder": "binding",
    },
)
