# SPDX-License-Identifier: Apache-2.0
"""The only place that touches stock CompressAI: one table of patches, applied and taken back here.

E = compressai.utils.eval_model.__main__, V = compressai.utils.video.eval_model.__main__; every row was checked
against CompressAI 1.2.8 and the development version 1.2.9.dev0.

| where | what | why | when |
|---|---|---|---|
| zoo.image_models, zoo.models, zoo.image.model_architectures, registry.MODELS | more keys | the zoo's models, this package's architectures, and three that stock has but does not list, can be named | enabled |
| zoo.image, zoo.image_vbr: load_state_dict_from_url | wrapped | a failed download names the models that need none | enabled |
| compressai: _available_entropy_coders | more names | constriction-ans, -range, -exact by name | enabled, once it exists |
| entropy_models.entropy_models: _EntropyCoder.__init__ | wrapped | makes this package's coders; pickles keep the name | enabled |
| entropy_models.entropy_models: EntropyModel.compress EntropyModel.decompress GaussianConditional.build_indexes GaussianMixtureConditional.compress GaussianMixtureConditional.decompress | wrapped | arrays instead of lists, for this package's coders | enabled |
| entropy_models.entropy_models_vbr: EntropyModelVbr.compress EntropyModelVbr.decompress | wrapped | the same | enabled |
| models.google: JointAutoregressiveHierarchicalPriors._compress_ar JointAutoregressiveHierarchicalPriors._decompress_ar | wrapped | front by front, for this package's coders; stock ignores the coder | enabled |
| models.vbr: JointAutoregressiveHierarchicalPriorsVbr._compress_ar JointAutoregressiveHierarchicalPriorsVbr._decompress_ar | wrapped | the same | enabled |
| entropy_models.entropy_models: EntropyModel.quantize | wrapped | refuses latents that have no symbol, such as NaN, on which stock's coder never ends | enabled |
| entropy_models.entropy_models_vbr: EntropyModelVbr.quantize EntropyModelVbr.quantize_variable | wrapped | the same | enabled |
| latent_codecs.rasterscan: RasterScanLatentCodec.compress RasterScanLatentCodec.decompress | wrapped | the same | enabled |
| E.setup_args | wrapped | --refine..., --metrics and the options of this package's models in every parser and its --help | E loaded |
| E.main | wrapped | refinement when an option of this package is given; else stock's main runs as it is | E loaded |
| E.eval_model | replaced | calls stock's image by image: journal, progress, broken images | in main |
| E.inference | wrapped; replaced | no padding for a model whose downsampling_factor is 1; calls stock's twice: plain and refined | E loaded; in main |
| E.inference_entropy_estimation | replaced | calls stock's twice: plain and refined | in main |
| E.compute_metrics | replaced | calls stock's and takes the further metrics of the same images | in main |
| E.read_image, E.load_pretrained, E.load_checkpoint | replaced | call stock's; errors become one sentence; the published lmbda is stored on the model | in main |
| E.json | replaced | adds the keys `refine` and `failed` to the result | in main |
| zoo.video_models, V.models | more keys | this package's architectures for video can be named | enabled; V loaded |
| V.create_parser | wrapped | --refine... in every parser and its --help | V loaded |
| V.main | wrapped | refinement when an option of this package is given; the coder of -c, which stock ignores | V loaded |
| V.eval_model V.eval_model_entropy_estimation | replaced | call stock's twice: plain and refined | in main |
| V.run_inference | replaced | calls stock's; names of a clip's results tell the settings, so that no others are reused | in main |
| V.load_pretrained, V.load_checkpoint | replaced | call stock's; errors become one sentence | in main |
| V.tqdm | replaced | a bar of steps where frames are refined | in main |
| V.json | replaced | adds the key `refine` to the result | in main |

"Enabled" means: from the import of this package on; the start-up hook imports it together with
`compressai.zoo`. "In main" means: while `main` runs with an option of this package; afterwards stock's values
are put back. The rows from `_available_entropy_coders` to `RasterScanLatentCodec` select a coder of this
package for the whole process. A model with a coder of its own (`coding.set_coder`) does not need these rows.

In:  an installed CompressAI. Out: `enable` applies the whole table, `disable` takes it back, `patch` applies
the rows of one module. An unknown version of CompressAI, or a function whose parameters differ from the
checked version, gets one warning and stays stock.
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

CHECKED_VERSIONS = ("1.2.8", "1.2.9.dev0")


@dataclass(frozen=True)
class Patch:
    """One function of CompressAI that is wrapped for as long as this package is enabled.

    Args:
        module: its full name.
        attribute: the function's name there, or CLASS.METHOD.
        wrap: "module:function" of this folder; called with (module, stock) it gives the wrapper.
    """

    module: str
    attribute: str
    wrap: str


_DICTIONARIES = "compressai.zoo"  # gets names, not wrappers
_EVAL_MODEL = "compressai.utils.eval_model.__main__"
_VIDEO = "compressai.utils.video.eval_model.__main__"
_ENTROPY = "compressai.entropy_models.entropy_models"
_ENTROPY_VBR = "compressai.entropy_models.entropy_models_vbr"
_GOOGLE, _VBR_MODELS = "compressai.models.google", "compressai.models.vbr"
_RASTER_SCAN = "compressai.latent_codecs.rasterscan"
_AR, _AR_VBR = "JointAutoregressiveHierarchicalPriors", "JointAutoregressiveHierarchicalPriorsVbr"
_CODING = (_ENTROPY, _ENTROPY_VBR, _GOOGLE, _VBR_MODELS, _RASTER_SCAN)  # all, or our coders have no names
PATCHES = (
    Patch(_EVAL_MODEL, "setup_args", "eval_model:wrap_setup_args"),
    Patch(_EVAL_MODEL, "main", "eval_model:wrap_main"),
    Patch(_EVAL_MODEL, "inference", "eval_model:wrap_inference"),
    Patch(_VIDEO, "create_parser", "video_eval_model:wrap_create_parser"),
    Patch(_VIDEO, "main", "video_eval_model:wrap_main"),
    Patch("compressai.zoo.image", "load_state_dict_from_url", "eval_model:wrap_download"),
    Patch("compressai.zoo.image_vbr", "load_state_dict_from_url", "eval_model:wrap_download"),
    Patch(_ENTROPY, "_EntropyCoder.__init__", "coders:wrap_coder"),
    Patch(_ENTROPY, "EntropyModel.quantize", "coders:wrap_quantize"),
    Patch(_ENTROPY, "EntropyModel.compress", "coders:wrap_method"),
    Patch(_ENTROPY, "EntropyModel.decompress", "coders:wrap_method"),
    Patch(_ENTROPY, "GaussianConditional.build_indexes", "coders:wrap_method"),
    Patch(_ENTROPY, "GaussianMixtureConditional.compress", "coders:wrap_method"),
    Patch(_ENTROPY, "GaussianMixtureConditional.decompress", "coders:wrap_method"),
    Patch(_ENTROPY_VBR, "EntropyModelVbr.quantize", "coders:wrap_quantize"),
    Patch(_ENTROPY_VBR, "EntropyModelVbr.quantize_variable", "coders:wrap_quantize"),
    Patch(_ENTROPY_VBR, "EntropyModelVbr.compress", "coders:wrap_method"),
    Patch(_ENTROPY_VBR, "EntropyModelVbr.decompress", "coders:wrap_method"),
    Patch(_GOOGLE, f"{_AR}._compress_ar", "coders:wrap_method"),
    Patch(_GOOGLE, f"{_AR}._decompress_ar", "coders:wrap_method"),
    Patch(_VBR_MODELS, f"{_AR_VBR}._compress_ar", "coders:wrap_method"),
    Patch(_VBR_MODELS, f"{_AR_VBR}._decompress_ar", "coders:wrap_method"),
    Patch(_RASTER_SCAN, "RasterScanLatentCodec.compress", "coders:wrap_method"),
    Patch(_RASTER_SCAN, "RasterScanLatentCodec.decompress", "coders:wrap_method"),
)

# What the rows above and the replacements "in main" rely on, as in the checked versions.
_VBR = ("vbr_stage", "vbr_scale")
_SCAN = ("y_hat", "params", "height", "width", "kernel_size", "padding")
_RATE = ("scale", "rescale", "stage")
_MIXTURE = ("scales", "means", "weights")
Parameters = tuple[str, ...]
_PARAMETERS: dict[
    str, dict[str, Parameters | dict[str, Parameters]]
] = {  # of all checked versions, or of each
    _EVAL_MODEL: {
        "setup_args": (),
        "main": ("argv",),
        "collect_images": ("rootpath",),
        "compute_padding": ("in_h", "in_w", "out_h", "out_w", "min_div"),
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
    },
    _VIDEO: {
        "create_parser": (),
        "main": ("args",),
        "collect_videos": ("rootpath",),
        "compute_padding": ("in_h", "in_w", "out_h", "out_w", "min_div"),
        "load_pretrained": ("model", "metric", "quality"),
        "load_checkpoint": ("arch", "no_update", "checkpoint_path"),
        "eval_model": ("net", "sequence", "binpath", "keep_binaries"),
        "eval_model_entropy_estimation": ("net", "sequence"),
        "run_inference": (
            *("filepaths", "inputdir", "net", "outputdir", "force", "entropy_estimation"),
            *("trained_net", "description", "args"),
        ),
    },
    _ENTROPY: {
        "_EntropyCoder.__init__": ("self", "method"),
        "EntropyModel.quantize": ("self", "inputs", "mode", "means"),
        "EntropyModel.dequantize": ("inputs", "means", "dtype"),
        "EntropyModel.compress": ("self", "inputs", "indexes", "means"),
        "EntropyModel.decompress": ("self", "strings", "indexes", "dtype", "means"),
        "GaussianConditional.build_indexes": ("self", "scales"),
        "GaussianMixtureConditional._build_cdf": ("self", *_MIXTURE, "abs_max"),
        "GaussianMixtureConditional.compress": ("self", "y", *_MIXTURE),
        "GaussianMixtureConditional.decompress": ("self", "strings", "abs_max", "zero_bitmap", *_MIXTURE),
    },
    _ENTROPY_VBR: {
        "EntropyModelVbr.quantize": ("self", "inputs", "mode", "means"),
        "EntropyModelVbr.quantize_variable": ("self", "inputs", "mode", "means", "qs"),
        "EntropyModelVbr.dequantize_variable": ("inputs", "means", "dtype", "qs"),
        "EntropyModelVbr.compress": ("self", "inputs", "indexes", "means", "qs"),
        "EntropyModelVbr.decompress": ("self", "strings", "indexes", "dtype", "means", "qs"),
    },
    _GOOGLE: {
        f"{_AR}._compress_ar": ("self", *_SCAN),
        f"{_AR}._decompress_ar": ("self", "y_string", *_SCAN),
    },
    _VBR_MODELS: {
        f"{_AR_VBR}._compress_ar": ("self", *_SCAN, *_RATE),
        f"{_AR_VBR}._decompress_ar": ("self", "y_string", *_SCAN, *_RATE),
    },
    _RASTER_SCAN: {
        "RasterScanLatentCodec.compress": ("self", "y", "ctx_params"),
        "RasterScanLatentCodec.decompress": ("self", "strings", "shape", "ctx_params", "kwargs"),
        "RasterScanLatentCodec.merge": {"1.2.8": ("args",), "1.2.9.dev0": ("self", "args")},
    },
}

_MARK = "__compressai_sga__"
_applied: list[tuple[Any, str, Any, Any]] = []  # owner (module or class), name, stock, wrapper
_warned: set[str] = set()
_enabled = False


def is_enabled() -> bool:
    """Whether the table of patches is in force."""
    return _enabled


def enable() -> bool:
    """Register the names, patch the modules that are loaded now, and the others when they are imported.

    Returns:
        Whether the patches are in force; False, with a warning, for a CompressAI that was not checked.
    """
    global _enabled
    from . import coders

    version = _compressai_version()
    if version not in CHECKED_VERSIONS:
        loaded = [sys.modules[name] for name in _PARAMETERS if name in sys.modules]
        differing = [
            each for module in loaded if not _being_imported(module) for each in _differences(module)
        ]
        _warn(
            f"compressai-sga knows CompressAI {', '.join(CHECKED_VERSIONS)}, not {version}; its "
            f"command line and registries stay stock. {_sentences(differing)}Install a known version, or a "
            "newer compressai-sga; compressai_sga.refine works all the same"
        )
        return False
    _enabled = True
    try:
        _register()
        in_force = set()
        for name in dict.fromkeys(row.module for row in PATCHES):
            module = sys.modules.get(name)
            # One that is being imported right now is patched by the start-up stub afterwards.
            if module is not None and not _being_imported(module):
                if patch(module):
                    in_force.add(name)
        if in_force.issuperset(_CODING):
            coders.register()
        compressai_sga_startup.install(force=True)
    except Exception as error:
        disable()
        _warn(
            f"compressai-sga could not register with CompressAI ({type(error).__name__}: {error}); "
            "CompressAI stays stock. Install compressai-sga again"
        )
    return _enabled


def disable() -> None:
    """Take all patches and names back: CompressAI is stock again in this process."""
    global _enabled
    from . import coders, registration

    compressai_sga_startup.uninstall()
    while _applied:
        owner, name, stock, wrapper = _applied.pop()
        if getattr(owner, name, None) is wrapper:
            setattr(owner, name, stock)
    coders.unregister()
    registration.unregister()
    _enabled = False


def patch(module: ModuleType) -> bool:
    """Apply the rows of the table for this module; a second call changes nothing.

    Returns:
        Whether the rows are in force; False, with a warning, when the module is not as checked.
    """
    if not _enabled:
        return False
    if module.__name__ == _DICTIONARIES:
        _register()  # again, in case that it was reloaded
    differing = _differences(module)
    if differing:
        _warn(
            f"{_sentences(differing)}{module.__name__} stays stock. Another plugin or a changed CompressAI "
            "is the likely reason; `python -m compressai_sga` needs stock"
        )
        return False
    if module.__name__ == _VIDEO:
        from . import registration

        registration.register_video(module.models)
    for row in PATCHES:
        if row.module != module.__name__:
            continue
        owner, name, stock = _look_up(module, row.attribute)
        if not hasattr(stock, _MARK):
            file, function = row.wrap.split(":")
            wrap = getattr(importlib.import_module(f"{__name__}.{file}"), function)
            wrapper = wrap(module, stock)
            setattr(wrapper, _MARK, True)
            setattr(owner, name, wrapper)
            _applied.append((owner, name, stock, wrapper))
    return True


def _differences(module: ModuleType) -> list[str]:
    """The functions of a module whose parameters are not those of the checked version, with both."""
    version, found = _compressai_version(), []
    for name, parameters in _PARAMETERS.get(module.__name__, {}).items():
        by_version = (
            parameters if isinstance(parameters, dict) else dict.fromkeys(CHECKED_VERSIONS, parameters)
        )
        known = {v: by_version[v] for v in by_version if v == version} or by_version
        function = _look_up(module, name)[2]
        has = None if function is None else tuple(inspect.signature(function).parameters)
        if has not in known.values():
            expected = " or ".join(
                dict.fromkeys(f"{value} as in CompressAI {v}" for v, value in known.items())
            )
            what = "is missing" if has is None else f"has the parameters {has}"
            found.append(f"{module.__name__}.{name} {what}, not {expected}")
    return found


def _sentences(parts: list[str]) -> str:
    return "".join(f"{part}. " for part in parts)


def _being_imported(module: ModuleType) -> bool:
    return getattr(module.__spec__, "_initializing", False)


def _look_up(module: ModuleType, attribute: str) -> tuple[Any, str, Any]:
    """(module or class, name in it, value or None) for NAME or CLASS.METHOD."""
    *classes, name = attribute.split(".")
    owner: Any = module
    for part in classes:
        owner = getattr(owner, part, None)
    return owner, name, getattr(owner, name, None)


def _register() -> None:
    from . import registration

    registration.register()


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
