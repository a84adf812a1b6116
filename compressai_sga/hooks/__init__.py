# SPDX-License-Identifier: Apache-2.0
"""The only place that touches stock CompressAI: one table of patches, applied and taken back here.

E = compressai.utils.eval_model.__main__; every row was checked against CompressAI 1.2.8.

| where | what | why | when |
|---|---|---|---|
| zoo.image_models, zoo.models, zoo.image.model_architectures, registry.MODELS | more keys | the zoo's models and three that stock has but does not list work by name | enabled |
| zoo.image, zoo.image_vbr: load_state_dict_from_url | wrapped | a failed download names the models that need none | enabled |
| E.setup_args | wrapped | --refine..., --metrics in every parser and its --help | E loaded |
| E.main | wrapped | refinement when one of our options is given; else stock's main runs as it is | E loaded |
| E.eval_model | replaced | calls stock's image by image: journal, progress, broken images | in main |
| E.inference, E.inference_entropy_estimation | replaced | call stock's twice: plain and refined | in main |
| E.compute_metrics | replaced | calls stock's and takes the further metrics of the same images | in main |
| E.read_image, E.load_pretrained, E.load_checkpoint | replaced | call stock's; errors become one sentence; the published lmbda is noted | in main |
| E.json | replaced | adds the keys `refine` and `failed` to the result | in main |

"Enabled" means: as soon as this package is imported, which the start-up stub does when
`compressai.zoo` is. "In main" means: while `main` runs with one of our options; then stock's values
are put back.

In:  an installed CompressAI. Out: `enable` and `disable` do and undo all of the table, `patch` does
the rows of one module. An unknown version of CompressAI, or functions with other parameters than in
the checked version, get one warning and stay stock.
"""  # noqa: E501

from __future__ import annotations

import importlib
import inspect
import sys
import warnings
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import compressai_sga_startup

__all__ = ["CHECKED_VERSIONS", "PATCHES", "Patch", "disable", "enable", "is_enabled", "patch"]

CHECKED_VERSIONS = ("1.2.8",)


@dataclass(frozen=True)
class Patch:
    """One function of CompressAI that is wrapped for as long as this package is enabled.

    Args:
        module: its full name.
        attribute: the function's name there.
        wrap: "module:function" of this folder; called with (module, stock) it gives the wrapper.
    """

    module: str
    attribute: str
    wrap: str


_DICTIONARIES = "compressai.zoo"  # gets names, not wrappers
_EVAL_MODEL = "compressai.utils.eval_model.__main__"
PATCHES = (
    Patch(_EVAL_MODEL, "setup_args", "command:wrap_setup_args"),
    Patch(_EVAL_MODEL, "main", "command:wrap_main"),
    Patch("compressai.zoo.image", "load_state_dict_from_url", "command:wrap_download"),
    Patch("compressai.zoo.image_vbr", "load_state_dict_from_url", "command:wrap_download"),
)

# What the rows above and the replacements "in main" rely on, as in the checked versions.
_VBR = ("vbr_stage", "vbr_scale")
_PARAMETERS: dict[str, dict[str, tuple[str, ...]]] = {
    _EVAL_MODEL: {
        "setup_args": (),
        "main": ("argv",),
        "collect_images": ("rootpath",),
        "read_image": ("filepath",),
        "compute_metrics": ("org", "rec", "max_val"),
        "inference": ("model", "x", *_VBR),
        "inference_entropy_estimation": ("model", "x", *_VBR),
        "load_pretrained": ("model", "metric", "quality"),
        "load_checkpoint": ("arch", "no_update", "checkpoint_path"),
        "eval_model": (
            *("model", "outputdir", "inputdir", "filepaths", "entropy_estimation"),
            *("trained_net", "description", *_VBR, "args"),
        ),
    }
}

_MARK = "__compressai_sga__"
_applied: list[tuple[ModuleType, str, Any, Any]] = []
_warned: set[str] = set()
_enabled = False


def is_enabled() -> bool:
    """Whether the table of patches is in force."""
    return _enabled


def enable() -> bool:
    """Register the names and patch what is loaded, now, and the rest when it is imported.

    Returns:
        Whether it is in force; False, with a warning, for a CompressAI that was not checked.
    """
    global _enabled
    version = _compressai_version()
    if version not in CHECKED_VERSIONS:
        _warn(
            f"compressai-sga knows CompressAI {', '.join(CHECKED_VERSIONS)}, not {version}; its "
            "command line and registries stay stock. Install a known version, or a newer "
            "compressai-sga; compressai_sga.refine works all the same"
        )
        return False
    _enabled = True
    try:
        _register()
        for name in dict.fromkeys(row.module for row in PATCHES):
            module = sys.modules.get(name)
            # One that is being imported right now is patched by the start-up stub afterwards.
            if module is not None and not getattr(module.__spec__, "_initializing", False):
                patch(module)
        compressai_sga_startup.install(force=True)
    except Exception as error:
        disable()
        _warn(
            f"compressai-sga could not register with CompressAI ({type(error).__name__}: {error}); "
            "CompressAI stays stock. Install compressai-sga again"
        )
    return _enabled


def disable() -> None:
    """Take everything back: CompressAI is stock again, in this process."""
    global _enabled
    from .. import zoo
    from . import names

    compressai_sga_startup.uninstall()
    while _applied:
        module, attribute, stock, wrapper = _applied.pop()
        if getattr(module, attribute, None) is wrapper:
            setattr(module, attribute, stock)
    zoo.unregister()
    names.unregister()
    _enabled = False


def patch(module: ModuleType) -> bool:
    """Apply the rows of the table that are about this module; again is harmless.

    Returns:
        Whether the rows are in force; False, with a warning, where the module is not as checked.
    """
    if not _enabled:
        return False
    if module.__name__ == _DICTIONARIES:
        _register()  # again, in case that it was reloaded
    for name, parameters in _PARAMETERS.get(module.__name__, {}).items():
        function = getattr(module, name, None)
        found = None if function is None else tuple(inspect.signature(function).parameters)
        if found != parameters:
            _warn(
                f"{module.__name__}.{name} has the parameters {found}, not {parameters} as in "
                f"CompressAI {', '.join(CHECKED_VERSIONS)}: it stays stock. Another plugin or a "
                "changed CompressAI is the likely reason; `python -m compressai_sga` needs stock"
            )
            return False
    for row in PATCHES:
        stock = getattr(module, row.attribute, None)
        if row.module == module.__name__ and not hasattr(stock, _MARK):
            file, function = row.wrap.split(":")
            wrap = getattr(importlib.import_module(f"{__name__}.{file}"), function)
            wrapper = wrap(module, stock)
            setattr(wrapper, _MARK, True)
            setattr(module, row.attribute, wrapper)
            _applied.append((module, row.attribute, stock, wrapper))
    return True


def _register() -> None:
    from .. import zoo
    from . import names

    names.register()
    zoo.register()


def _compressai_version() -> str:
    try:
        # Not `compressai.__version__`, which is missing while CompressAI is being imported.
        from compressai.version import __version__ as version
    except ImportError:
        return "unknown"
    return version


def _warn(message: str) -> None:
    if message not in _warned:
        _warned.add(message)
        warnings.warn(message, stacklevel=3)
