# SPDX-License-Identifier: Apache-2.0
"""compressai-sga: latent refinement and new models for stock CompressAI.

    import compressai_sga
    result = compressai_sga.refine(model, x, method="ssl", lmbda=0.013)
    out = model.decompress(result.strings, result.shape)          # stock decodes it

Importing registers models and entropy coders with CompressAI, by mutating its dictionaries in place,
and extends its command line (`python -m compressai.utils.eval_model --refine ssl`); see `hooks`.
COMPRESSAI_SGA_DISABLE=1 leaves CompressAI alone; `compressai_sga.hooks.disable()` undoes it.

In:  an installed CompressAI. An unknown version gets one warning and stays stock.

`python -m compressai_sga` loads itself only for commands that need it, because PyTorch and CompressAI take
seconds.
"""

import sys
from typing import TYPE_CHECKING

import compressai_sga_startup

from . import errors
from .version import __version__

if TYPE_CHECKING:
    from . import hooks, zoo
    from .refine import METHODS, PRESETS, RefineConfig, RefineResult, refine, refined

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


def _load() -> None:
    """Import the public names, and register with CompressAI."""
    global METHODS, PRESETS, RefineConfig, RefineResult, hooks, refine, refined, zoo
    from . import hooks, zoo
    from .refine import METHODS, PRESETS, RefineConfig, RefineResult, refine, refined

    if not compressai_sga_startup.is_disabled():
        hooks.enable()


def _is_the_command() -> bool:
    """Whether this import is the first step of `python -m compressai_sga`, which loads what it needs."""
    command = sys.orig_argv
    return sys.argv[:1] == ["-m"] and "-m" in command and command[command.index("-m") + 1] == __name__


if not _is_the_command():
    _load()
