# SPDX-License-Identifier: Apache-2.0
"""The records of the zoo's manifest: what each weight is, where it came from, and what it must reach.

The manifest gives for every weight file its sha256, licence, training data and command, and the bits and PSNR
that it must reach on the sample images. A jointly trained model (the list `joint`) has one file for all
qualities, and so has a diffusion network (`denoisers`). `zoo` loads the models; this file needs no PyTorch.

In:  the zoo's folder (`zoo_files`). Out: records.
Fails with ``ValueError`` for an unknown name and for a manifest of another version.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

__all__ = ["DEFAULT_MODEL", "DEFAULT_QUALITY", "ModelRecord", "installed", "records"]

DEFAULT_MODEL = "mbt2018-mean-small"
DEFAULT_QUALITY = 3


@dataclass(frozen=True)
class ModelRecord:
    """One model of the zoo at one quality: a record of the manifest; hashable, shown without its long fields.

    Args:
        name: what `load` and `eval_model -a` take.
        quality: CompressAI's 1..8.
        architecture: CompressAI's name of the stock class, or this package's.
        N, M: channels of the transforms and of the latent; None for models of diffusion.
        metric: what it was trained for, "mse".
        lmbda: of the training loss, bpp + lmbda * 255^2 * MSE (`metric` "ms-ssim": * (1 - MS-SSIM)); None for
            models of diffusion.
        file: path below the zoo folder.
        sha256, bytes: of the file.
        wheel: whether the file is part of the installed package.
        licence: of the weights, an SPDX name.
        training_data: the image sets with their terms.
        command: makes the weight again.
        training: minutes, steps and the machine of the run.
        gaussian_tables_crc32: `tables_checksum` where it was published; None without such tables.
        golden: by sample image, bpp and psnr-rgb of real bitstreams, by stock evaluation.
        tolerance: how far a result may be from the golden one: bpp (relative) and psnr-rgb (dB).
        kodak: mean bpp, psnr-rgb and ms-ssim-rgb over the 24 Kodak images, where measured.
        first_stage: name of the zoo's model of the same quality whose images this one restores.
        decoder_kmacs_px: thousands of multiplications a pixel of the decoder (`models.macs`).
        lmbda_range: smallest and largest lmbda of the training of a joint model, whose qualities share a
            file; None of others.
    """

    name: str
    quality: int
    architecture: str
    N: int | None
    M: int | None
    metric: str
    lmbda: float | None
    file: str
    sha256: str = field(repr=False)
    bytes: int = field(repr=False)
    wheel: bool = field(repr=False)
    licence: str = field(repr=False)
    training_data: list[str] = field(repr=False, hash=False)
    command: str = field(repr=False)
    training: dict[str, Any] = field(repr=False, hash=False)
    gaussian_tables_crc32: str | None = field(repr=False)
    golden: dict[str, dict[str, float]] = field(repr=False, hash=False)
    tolerance: dict[str, float] = field(repr=False, hash=False)
    decoder_kmacs_px: float | None = field(default=None, repr=False)
    kodak: dict[str, Any] | None = field(default=None, repr=False, hash=False)
    first_stage: str | None = field(default=None, repr=False)
    lmbda_range: list[float] | None = field(default=None, repr=False, hash=False)


def records(folder: Path, name: str | None = None) -> list[ModelRecord]:
    """Every weight of the manifest, sorted by name and quality.

    Args:
        folder: of the zoo.
        name: of the model whose weights are wanted; all by default.

    Raises:
        ValueError: no model has this name, or a record of the manifest lacks a key or has one that this
            version does not know.
        FileNotFoundError: the zoo's folder is missing.
    """
    path = folder / "manifest.json"
    known = {f.name for f in fields(ModelRecord)}
    required = known - {"kodak", "first_stage", "lmbda_range", "decoder_kmacs_px"}
    content = json.loads(path.read_text(encoding="utf-8"))
    rows = list(content["weights"])
    for shared in content["denoisers"]:
        rows += _of_each_name(shared)
    for shared in content.get("joint", []):
        rows += _of_each_quality(shared)
    for record in rows:
        if not required <= record.keys() <= known:
            raise ValueError(
                f"{path}: the record {record.get('name')!r}, quality {record.get('quality')!r} "
                f"lacks {sorted(required - record.keys())} and has unknown keys "
                f"{sorted(record.keys() - known)}; publish it again with zoo/train/publish.py"
            )
    names = sorted({record["name"] for record in rows})
    if name is not None and name not in names:
        raise ValueError(f"no zoo model is called {name!r}; there are {', '.join(names)}")
    found = (ModelRecord(**record) for record in rows if name in (None, record["name"]))
    return sorted(found, key=lambda record: (record.name, record.quality))


def _of_each_quality(shared: dict[str, Any]) -> list[dict[str, Any]]:
    """The records of a model whose qualities share a file; `qualities` has the fields that differ."""
    same = {key: value for key, value in shared.items() if key != "qualities"}
    return [{**same, "quality": int(quality), **own} for quality, own in shared["qualities"].items()]


def _of_each_name(shared: dict[str, Any]) -> list[dict[str, Any]]:
    """The same for a diffusion network, which also serves several names."""
    shared = dict(shared)
    models, golden, kmacs = shared.pop("models"), shared.pop("golden"), shared.pop("decoder_kmacs_px", {})
    same = {**shared, "metric": "mse", **dict.fromkeys(("N", "M", "lmbda", "gaussian_tables_crc32"))}
    records = []
    for name, model in models.items():
        results, counted = golden.get(name, {}), kmacs.get(name, {})
        qualities = {
            quality: {
                "golden": results.get(str(quality), {}),
                "decoder_kmacs_px": counted.get(str(quality)),
            }
            for quality in model["qualities"]
        }
        own = {"name": name, "architecture": model["architecture"], "qualities": qualities}
        records += _of_each_quality({**same, **own})
    return records


def installed(folder: Path, record: ModelRecord) -> bool:
    """Whether the file of a weight is there; the wheel leaves some to the repository."""
    return (folder / record.file).is_file()
