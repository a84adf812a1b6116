# SPDX-License-Identifier: Apache-2.0
"""compressai-sga: latent refinement and new models for stock CompressAI.

    import compressai_sga
    result = compressai_sga.refine(model, x, method="ssl", lmbda=0.013)
    out = model.decompress(result.strings, result.shape)          # stock decodes it

Importing registers models and entropy coders with CompressAI, by mutating its dictionaries in place,
and extends its command line (`python -m compressai.utils.eval_model --refine ssl`); see `hooks`.
COMPRESSAI_SGA_DISABLE=1 leaves CompressAI alone; `compressai_sga.hooks.disable()` undoes it.

In:  an installed CompressAI. An unknown version gets one warning and stays stock.

`python -m compressai_sga` imports PyTorch and CompressAI only for commands that need them: there, and nowhere
else, this happens at the first use of a public name.
"""

import sys
from typing import TYPE_CHECKING, Any

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
    from . import hooks, zoo
    from .refine import METHODS, PRESETS, RefineConfig, RefineResult, refine, refined

    globals().update({name: value for name, value in locals().items() if name in __all__})
    if not compressai_sga_startup.is_disabled():
        hooks.enable()


def _is_the_command() -> bool:
    """Whether this import is the first step of `python -m compressai_sga`."""
    command = sys.orig_argv
    return sys.argv[:1] == ["-m"] and "-m" in command and command[command.index("-m") + 1] == __name__


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    _load()
    return globals()[name]


if not _is_the_command():
    _load()
