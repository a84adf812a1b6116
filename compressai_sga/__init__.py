# SPDX-License-Identifier: Apache-2.0
"""compressai-sga: latent refinement and new models for stock CompressAI.

    import compressai_sga
    result = compressai_sga.refine(model, x, method="ssl", lmbda=0.013)
    out = model.decompress(result.strings, result.shape)          # stock decodes it

Importing registers models and entropy coders with CompressAI, by mutating its dictionaries in place,
and extends its command line (`python -m compressai.utils.eval_model --refine ssl`); see `hooks`.
COMPRESSAI_SGA_DISABLE=1 leaves CompressAI alone; `compressai_sga.hooks.disable()` undoes it.

In:  an installed CompressAI. An unknown version gets one warning and stays stock.
"""

import compressai_sga_startup

from . import errors, hooks, zoo
from .refine import METHODS, PRESETS, RefineConfig, RefineResult, refine, refined
from .version import __version__

__all__ = [
    "METHODS",
    "PRESETS",
    "RefineConfig",
    "RefineResult",
    "__version__",
    "errors",
    "hooks",
    "refine",
    "refined",
    "zoo",
]

if not compressai_sga_startup.is_disabled():
    hooks.enable()
