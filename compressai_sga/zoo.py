# SPDX-License-Identifier: Apache-2.0
"""Small trained models that ship with the package, loaded by name and quality as CompressAI's own models are.

    net = compressai_sga.zoo.load("mbt2018-mean-small", quality=3)   # a stock class, ready to use
    python -m compressai.utils.eval_model pretrained DIR -a mbt2018-mean-small -q 1,2,3

In:  a name and a quality of `manifest.json`. The manifest gives for every weight file its sha256, licence,
     training data and command, and the bits and PSNR that it must reach on the sample images. A jointly
     trained model (the list `joint`) has one file for all qualities, and also takes a `lmbda=0.01`
     instead of a quality.
Out: an instance of the stock CompressAI class, float32, in eval mode, its coding tables ready. Diffusion
     models are instances of this package's classes, and their qualities share one file: `hfd-small` puts
     its network behind the zoo's first stage of that quality.

`zoo_files` finds the files. They are safetensors and are checked against their sha256 before use. The
transforms are in fp16; the entropy bottleneck and its integer tables are exactly as trained, so that streams
decode alike everywhere. `zoo_joint` describes the file of a joint model. The Gaussian tables, equal for all
models, are built by `update()` and compared with the manifest's checksum.

Fails with ``ValueError`` (unknown name, quality or metric: the message lists the known ones; a lmbda that the
model does not serve; a file that differs from the manifest's) and ``FileNotFoundError`` (a weight file that
was not installed).
"""

from __future__ import annotations

import functools
import math
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.error import URLError

import torch
from compressai.entropy_models import GaussianConditional
from safetensors.torch import load_file
from torch import nn

from .lmbda import set_trained_lmbda
from .models import rda
from .models.families import architecture
from .models.gains import gain_of
from .zoo_files import checked
from .zoo_files import folder as _folder
from .zoo_joint import folded, makes_same_tables
from .zoo_records import DEFAULT_MODEL, DEFAULT_QUALITY, ModelRecord, installed, records

__all__ = [
    "DEFAULT_MODEL",
    "DEFAULT_QUALITY",
    "LMBDA_MARGIN",
    "ModelRecord",
    "find",
    "gain_at",
    "has_published_tables",
    "is_installed",
    "list_models",
    "load",
    "load_record",
    "load_weights",
    "sample_images",
    "tables_checksum",
    "with_download_advice",
]

LMBDA_MARGIN = 2.0
"""How far beyond its trained rates, as a factor of lmbda (about a quality), a joint model is given out."""


def list_models(name: str | None = None) -> list[ModelRecord]:
    """Every weight of the manifest, sorted by name and quality.

    Args:
        name: of the model whose weights are wanted; all by default.

    Raises:
        ValueError: no model has this name, or a record of the manifest lacks a key or has one that this
            version does not know.
        FileNotFoundError: the zoo's folder is missing.
    """
    return records(_folder(), name)


def is_installed(record: ModelRecord) -> bool:
    """Whether the file of a weight is there; the wheel leaves some to the repository."""
    return installed(_folder(), record)


def sample_images() -> list[Path]:
    """The PNG images that ship with the zoo, sorted by name; SOURCE.md there has the terms."""
    return sorted((_folder() / "samples").glob("*.png"))


def _named(name: str, metric: str) -> list[ModelRecord]:
    """The records of this name and metric, sorted by quality."""
    named = list_models(name)
    if metric not in {r.metric for r in named}:
        raise ValueError(
            f"{name} was not trained for metric {metric!r}, only for "
            f"{', '.join(sorted({r.metric for r in named}))}; leave the metric out"
        )
    return [r for r in named if r.metric == metric]


def find(name: str, quality: int, metric: str = "mse") -> ModelRecord:
    """The record of one model and quality; the ValueError for an unknown one lists what the zoo has."""
    named = _named(name, metric)
    for record in named:
        if record.quality == quality:
            return record
    raise ValueError(f"{name} has no quality {quality!r}; there are {_qualities(named)}")


def _find_nearest(name: str, lmbda: float, metric: str) -> ModelRecord:
    """The record of the quality that is nearest to a lmbda that the model can serve."""
    named = _named(name, metric)
    if named[0].lmbda_range is None:
        raise ValueError(
            f"lmbda {lmbda}: {name} has weights only for the rates of its qualities; leave it out and take "
            f"quality {_qualities(named)}"
        )
    low, high = named[0].lmbda_range
    if not low / LMBDA_MARGIN <= lmbda <= high * LMBDA_MARGIN:
        raise ValueError(
            f"lmbda {lmbda}: {name} was trained for {low:g} to {high:g}; it must lie between "
            f"{low / LMBDA_MARGIN:g} and {high * LMBDA_MARGIN:g}"
        )
    if not low <= lmbda <= high:
        warnings.warn(
            f"lmbda {lmbda}: {name} was trained for {low:g} to {high:g}; outside of that it needs more bits "
            "than a model of such a rate",
            stacklevel=3,
        )
    return min(named, key=lambda record: abs(math.log(record.lmbda / lmbda)))


def _qualities(records: list[ModelRecord]) -> str:
    return ", ".join(str(r.quality) for r in records)


def load(
    name: str = DEFAULT_MODEL,
    quality: int = DEFAULT_QUALITY,
    metric: str = "mse",
    *,
    lmbda: float | None = None,
    **options: Any,
) -> nn.Module:
    """A trained model of the zoo on the CPU, in eval mode, ready to compress and decompress.

    Args:
        name: as in `list_models`.
        quality: one that the zoo has for this name.
        metric: what it was trained for.
        lmbda: of a jointly trained model, instead of a quality: the trade-off in the units of the records'
            `lmbda`. Any within its `lmbda_range`; up to LMBDA_MARGIN times beyond there is a warning.
        options: values of the model's attributes that its class lists in `OPTIONS`; stock classes have none.

    Returns:
        The stock CompressAI class; `refine` finds the training lmbda with it. Or this package's class.

    Raises:
        ValueError: no such model or option, a lmbda that the model does not serve, or its file is not the one
            that the manifest names.
        FileNotFoundError: the manifest names a file that is not installed.
    """
    record = find(name, quality, metric) if lmbda is None else _find_nearest(name, lmbda, metric)
    own = getattr(architecture(record.architecture), "OPTIONS", ())
    unknown = sorted(options.keys() - set(own))
    if unknown:
        raise ValueError(f"{name} has no option {', '.join(unknown)}; it has {', '.join(own) or 'none'}")
    net = load_record(record, lmbda)
    if not has_published_tables(net, record):
        warnings.warn(
            f"the Gaussian coding tables of {name} come out differently on this machine (crc32 "
            f"{tables_checksum(net)}) than where they were published: it decodes its own streams, but not "
            "those of other machines",
            stacklevel=2,
        )
    if options:
        for option, value in options.items():
            setattr(net, option, value)
        net.check_options()
    return net


def load_record(record: ModelRecord, lmbda: float | None = None) -> nn.Module:
    """The model of a record, as `load` gives it, without the check of its tables (`has_published_tables`).

    Args:
        record: of `list_models`.
        lmbda: of a jointly trained model; the record must be the one nearest to it.
    """
    path = checked(_folder() / record.file, record.sha256)
    cls = architecture(record.architecture)
    if hasattr(cls, "from_zoo"):
        below = None if record.first_stage is None else load_record(find(record.first_stage, record.quality))
        return cls.from_zoo(load_file(path), record.quality, below).eval()
    lmbda = record.lmbda if lmbda is None else lmbda
    if record.lmbda_range is None:
        net = load_weights(path, record.architecture)
    else:
        net = _load_joint(record, path, lmbda)
    set_trained_lmbda(net, lmbda, record.metric)
    return net


def _load_joint(record: ModelRecord, path: Path, lmbda: float) -> nn.Module:
    """A joint model at a lmbda, from the record of the quality that is nearest to it."""
    cls, tensors = architecture(record.architecture), load_file(path)
    if lmbda == record.lmbda:
        return folded(tensors, cls, gain_at(lmbda, record.metric), record.quality)
    if not makes_same_tables(tensors, cls, gain_at(record.lmbda, record.metric), record.quality):
        warnings.warn(
            f"the coding tables of {record.name} come out differently on this machine than where it was "
            f"published: with lmbda {lmbda:g} it decodes its own streams, but perhaps not those of other "
            f"machines; those of quality {record.quality} (lmbda {record.lmbda:g}) decode everywhere",
            stacklevel=4,
        )
    return folded(tensors, cls, gain_at(lmbda, record.metric))


def gain_at(lmbda: float, metric: str) -> float:
    """The gain on the latent with which a joint model serves a trade-off.

    Args:
        lmbda: as in `ModelRecord`, of this metric.
        metric: "mse" or "ms-ssim".
    """
    return gain_of(rda.mse_lmbda(lmbda, "ms-ssim") if metric == "ms-ssim" else lmbda)


def load_weights(path: Path, name: str) -> nn.Module:
    """A weight file of the zoo as a stock model; the manifest is not read.

    The file holds the stock state dict with empty Gaussian tables; stock `load_state_dict` widens
    fp16 to float32, and `update()`, not forced, fills only what is empty.

    Args:
        path: a .safetensors file.
        name: of the architecture.

    Raises:
        ValueError: there is no such architecture.
    """
    net = architecture(name).from_state_dict(load_file(path))
    net.update()
    return net.eval()


def tables_checksum(net: nn.Module) -> str | None:
    """crc32 (8 hex digits) of the Gaussian coding tables and their scales; None without any.

    Encoder and decoder must hold the same tables. They are computed with erfc, whose last bit may
    depend on the machine, so the manifest keeps what the publisher's machine got.
    """
    crc = None
    for module in net.modules():
        if isinstance(module, GaussianConditional):
            for table in (module._quantized_cdf, module._offset, module._cdf_length):
                crc = zlib.crc32(table.cpu().to(torch.int32).numpy().tobytes(), crc or 0)
            crc = zlib.crc32(module.scale_table.cpu().float().numpy().tobytes(), crc)
    return None if crc is None else f"{crc:08x}"


def has_published_tables(net: nn.Module, record: ModelRecord) -> bool:
    """Whether this model's Gaussian coding tables equal those that the publisher's machine computed."""
    if record.first_stage is not None:
        record = find(record.first_stage, record.quality, "mse")
    return tables_checksum(net) == record.gaussian_tables_crc32


def with_download_advice(download: Callable[..., Any]) -> Callable[..., Any]:
    """`download` (CompressAI's load_state_dict_from_url), with an error that says what to do.

    Raises:
        URLError: when the download fails; it names the models that need none.
    """

    @functools.wraps(download)
    def load_state_dict_from_url(url: str, *args: Any, **kwargs: Any) -> Any:
        try:
            return download(url, *args, **kwargs)
        except URLError as error:
            small: dict[str, list[str]] = {}
            for record in list_models():
                if is_installed(record):
                    small.setdefault(record.name, []).append(str(record.quality))
            names = "; ".join(f"{name} (quality {', '.join(q)})" for name, q in small.items())
            raise URLError(
                f"CompressAI's weights could not be downloaded from {url}: {error.reason}. "
                "Check the network connection, or use a small model that is installed already: "
                f"{names}"
            ) from error

    return load_state_dict_from_url
