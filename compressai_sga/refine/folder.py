# SPDX-License-Identifier: Apache-2.0
"""Refinement of a folder of images: batches of one size, results as they come, resumable.

    for path, result in refine_folder(model, "photos", preset="fast", out="refined"):
        print(path, result.after.bpp.item())

In:  a model, a folder of images, which are read as stock `eval_model` reads them, when their turn comes.
Out: the result of each image alone. With `out`, each result is also a line of a journal there (`journal`),
     and a call with the same model, options and versions leaves out the images in it. `stored` reads it.
Fails with ``SgaError`` where there is nothing to refine or no place for the journal, and as `refine`. Images
that cannot be read are named in a warning, and the others are refined.
"""

from __future__ import annotations

import base64
import os
import warnings
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import compressai
import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from ..errors import SgaError, ShapeError
from ..journal import Journal, weights_sha256
from ..json_lines import JsonLines
from ..lmbda import trained_lmbda
from ..progress import Meter
from ..version import __version__
from .loop import RefineResult, refine
from .presets import RefineConfig

__all__ = ["Stored", "refine_folder", "stored"]

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp"})
_NUMBERS = ("bpp", "mse", "psnr_db", "loss")


@dataclass(frozen=True)
class Stored:
    """What a journal holds of a refined image.

    Attributes:
        strings, shape: for `model.decompress`.
        pad: (left, right, top, bottom) padding of what the strings decode to.
        lmbda: with which it was refined.
        before, after: bpp, mse, psnr_db and loss of the unrefined and the refined strings.
        notes: as of `RefineResult`.
    """

    strings: list[list[bytes]]
    shape: Any
    pad: tuple[int, int, int, int]
    lmbda: float
    before: dict[str, float]
    after: dict[str, float]
    notes: tuple[str, ...]


def refine_folder(
    model: nn.Module,
    folder: str | os.PathLike[str],
    method: str | None = None,
    *,
    batch: int = 8,
    out: str | os.PathLike[str] | None = None,
    compress_kwargs: Mapping[str, Any] | None = None,
    **options: Any,
) -> Iterator[tuple[Path, RefineResult]]:
    """Refine all images of a folder, those in folders below it included.

    Args:
        model: as in `refine`; images are put on its device.
        folder: its images may differ in size; those of one size are refined together.
        method, options: as in `RefineConfig.make`.
        batch: images at once, at most.
        out: a folder, made where it is missing, for the journal. None keeps nothing.
        compress_kwargs: as in `refine`.

    Yields:
        Path and result of each image, as soon as its batch is done; images that the journal has are left out.

    Raises:
        SgaError: the folder has no image, or `out` cannot be written.
        ValueError: an option is out of range.
    """
    config = RefineConfig.make(method, **options)
    if batch < 1:
        raise ValueError(f"batch must be at least 1, not {batch}")
    paths = sorted(path for path in Path(folder).rglob("*") if path.suffix.lower() in SUFFIXES)
    if not paths:
        raise SgaError(f"{folder} holds no image ({', '.join(sorted(SUFFIXES))}); name another folder")
    return _Folder(model, paths, config, batch, out, dict(compress_kwargs or {})).results()


def stored(out: str | os.PathLike[str]) -> Iterator[tuple[Path, Stored]]:
    """What `refine_folder` has kept: path and result of each image.

    Args:
        out: its folder, with one journal for each model and configuration, or one journal of it.
    """
    out = Path(out)
    for file in [out] if out.is_file() else sorted(out.glob("compressai-sga-*.jsonl")):
        for entry in JsonLines(file).read():
            record = entry.get("record", {})
            if "strings" in record:
                yield Path(entry["image"]), _stored(record)


class _Folder:
    def __init__(
        self,
        model: nn.Module,
        paths: list[Path],
        config: RefineConfig,
        batch: int,
        out: str | os.PathLike[str] | None,
        compress_kwargs: dict[str, Any],
    ) -> None:
        self.model, self.paths, self.config, self.batch, self.out = model, paths, config, batch, out
        self.compress_kwargs = compress_kwargs
        self.device = next(model.parameters()).device

    def results(self) -> Iterator[tuple[Path, RefineResult]]:
        journal = None if self.out is None else self._journal(Path(self.out))
        left = [path for path in self.paths if journal is None or journal.find(path) is None]
        done = len(self.paths) - len(left)
        try:
            with Meter("refine", len(self.paths), unit=None, done=done) as meter:
                for paths in self._batches(left):
                    for path, result in self._refined(paths, meter, done):
                        if journal is not None:
                            journal.add(path, _record(result))
                        yield path, result
                    done += len(paths)
        finally:
            if journal is not None:
                journal.close()

    def _batches(self, paths: list[Path]) -> Iterator[list[Path]]:
        """Images of one size; full batches first, as their last image is found."""
        waiting: defaultdict[tuple[int, int], list[Path]] = defaultdict(list)
        for path in paths:
            try:
                with Image.open(path) as image:
                    size = image.size
            except Exception as error:  # Pillow raises almost anything on damaged files
                _warn(path, error)
                continue
            waiting[size].append(path)
            if len(waiting[size]) == self.batch:
                yield waiting.pop(size)
        yield from waiting.values()

    def _refined(self, paths: list[Path], meter: Meter, done: int) -> Iterator[tuple[Path, RefineResult]]:
        images, read = [], []
        for path in paths:
            try:
                images.append(_read(path))
                read.append(path)
            except Exception as error:
                _warn(path, error)
        if not read:
            return

        def on_step(step: int, steps: int, loss: float) -> None:
            meter.at(done + len(paths) * (step + 1) / steps, f"{read[0].name}, loss {loss:.4f}")

        meter.at(done, read[0].name)
        x = torch.stack(images).to(self.device)
        try:
            result = refine(
                self.model, x, config=self.config, on_step=on_step, compress_kwargs=self.compress_kwargs
            )
        except ShapeError as error:  # too small for MS-SSIM
            for path in read:
                _warn(path, error)
            return
        for index, path in enumerate(read):
            yield path, result.of(index)

    def _journal(self, folder: Path) -> Journal:
        config = self.config
        if config.lmbda is None and trained_lmbda(self.model, config.metric) is None:
            self._note_lmbda()
        facts = {
            "compressai_sga": __version__,
            "compressai": compressai.__version__,
            "torch": torch.__version__,
            "weights": weights_sha256(self.model),
            "config": repr(config),
            "trained_lmbda": trained_lmbda(self.model, config.metric),
            "device": self.device.type,
            "compress_kwargs": repr(self.compress_kwargs),
        }
        try:
            return Journal(folder, facts)
        except OSError as error:
            raise SgaError(f"{folder} cannot be written ({error.strerror}); name another folder") from error

    def _note_lmbda(self) -> None:
        """Have the trade-off estimated by the first image, whether or not that is refined already."""
        for path in self.paths:
            with suppress(OSError, ShapeError):
                x = _read(path)[None].to(self.device)
                zero = RefineConfig.make(steps=0, metric=self.config.metric)
                refine(self.model, x, config=zero, compress_kwargs=self.compress_kwargs)
                return


def _read(path: Path) -> Tensor:
    """An image (3, H, W) in [0, 1]."""
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("RGB"), dtype=np.float32) / 255
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


def _warn(path: Path, error: Exception) -> None:
    warnings.warn(f"{path} is left out: {error}", stacklevel=2)


def _record(result: RefineResult) -> dict[str, Any]:
    return {
        "strings": [[base64.b64encode(string).decode() for string in part] for part in result.strings],
        "shape": _plain(result.shape),
        "pad": list(result.pad),
        "lmbda": result.lmbda,
        "before": {name: float(getattr(result.before, name)) for name in _NUMBERS},
        "after": {name: float(getattr(result.after, name)) for name in _NUMBERS},
        "notes": list(result.notes),
    }


def _plain(shape: Any) -> Any:
    """A shape, or a tree of shapes, in JSON."""
    if isinstance(shape, Mapping):
        return {name: _plain(part) for name, part in shape.items()}
    return [_plain(part) for part in shape] if isinstance(shape, Sequence) else int(shape)


def _stored(record: Mapping[str, Any]) -> Stored:
    strings = [[base64.b64decode(string) for string in part] for part in record["strings"]]
    pad, notes = tuple(record["pad"]), tuple(record["notes"])
    return Stored(**{**record, "strings": strings, "pad": pad, "notes": notes})
