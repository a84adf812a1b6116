# SPDX-License-Identifier: Apache-2.0
"""The entries of a comparison: a codec, its points and its options in one line of text.

    NAME[@POINTS][:KEY=VALUE]...        mbt2018-mean-small@1-6:refine=ssl:refine-steps=500

NAME    a model of CompressAI's dictionaries (its own, the zoo's, c3, diffc-f-small, ...), or a classical
        codec: jpeg, webp, avif, jxl, jpeg2000 through Pillow and its plug-ins; bpg, vtm, hm, av1, tfci
        through CompressAI's bench, which needs their programs.
POINTS  qualities, such as 1,2,5 or 1-6; for jpeg2000 compression ratios; for *-vbr models quantisation steps.
        Default: all qualities of the model, or a list that spans 0.1 to 2 bits a pixel.
KEY     for models: refine (a method or a preset); the options of `eval_model` without their dashes
        (refine-steps, refine-lmbda, refine-lr, refine-seed, steps, seed, realism, max-seconds); lmbda or bpp,
        which replaces the points; metric (which the model was trained for); coder (the entropy coder);
        checkpoint (files separated by commas, one for each point; NAME is then an architecture).
        For codecs of the bench: the bench's options (build-dir, encoder-path).

In:  such a line. Out: an `Entry`.
Fails with ``SgaError``, which names the entry, what is wrong with it, and the possible values.
"""

from __future__ import annotations

import argparse
import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

from compressai import available_entropy_coders
from compressai.utils.eval_model import __main__ as stock
from compressai.zoo.image import cfgs

from .. import zoo
from ..errors import SgaError
from ..evaluation import checks
from ..evaluation.options import Request, add_options, request_of
from ..refine import RefineConfig
from . import classical

__all__ = ["Entry", "parse", "slug"]

OWN_KEYS = ("metric", "coder", "checkpoint")
SLUG = 80  # characters
VBR_POINTS = ("0.5", "1", "2", "4", "8")  # quantisation step sizes


@dataclass(frozen=True)
class Entry:
    """A codec and its points.

    Args:
        label: of its curve: the line without the points. `parse` accepts it too.
        name: of the model or classical codec.
        points: of the curve, as text.
        options: values by key.
    """

    label: str
    name: str
    points: tuple[str, ...]
    options: tuple[tuple[str, str], ...] = ()

    @property
    def is_classical(self) -> bool:
        """Whether the codec is a classical one, not a model of CompressAI's dictionaries."""
        return self.name in classical.CODECS

    @property
    def slug(self) -> str:
        """The label as the name of a file."""
        return slug(self.label)

    def option(self, key: str, default: str = "") -> str:
        """The value of a key."""
        return dict(self.options).get(key, default)

    @property
    def request(self) -> Request:
        """The options that `eval_model` also has, parsed as on its command line."""
        pairs = [(k, v) for k, v in self.options if k not in OWN_KEYS]
        known = [word for key, value in pairs for word in (f"--{key}", value)]
        parser = _Parser(self.label)
        add_options(parser)
        args = parser.parse_args(known)
        return request_of(known, args) or Request((), args, None, {}, None, ())


def slug(text: str) -> str:
    """A text as the name of a file, another for every text.

    Colons become underscores. Where that cannot be undone, or the text is long, a hash of it ends the name.
    """
    name = re.sub(r"[^\w.+=-]+", "_", text)
    if len(name) <= SLUG and name.replace("_", ":") == text:
        return name
    return f"{name[: SLUG - 9]}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


class _Parser(argparse.ArgumentParser):
    """Parser whose errors are one sentence about the entry instead of a usage message."""

    def __init__(self, entry: str) -> None:
        super().__init__(add_help=False, allow_abbrev=False)
        self._entry = entry

    def error(self, message: str) -> NoReturn:
        raise SgaError(f"entry {self._entry!r}: {message}")


def parse(text: str) -> Entry:
    """An entry from its line, checked as far as possible without loading a model.

    Raises:
        SgaError: see the head of the file.
    """
    head, *rest = re.split(r":(?=[a-z][a-z-]*=)", text)
    name, at, points = head.partition("@")
    options = tuple((key, value) for key, _, value in (part.partition("=") for part in rest))
    if at and not points:
        raise SgaError(f"entry {text!r} has no points after its @; write {name}@1,2,3, or leave the @ out")
    label = ":".join([name, *(f"{key}={value}" for key, value in options)])
    entry = Entry(label, name, _points(text, points), options)
    if entry.is_classical:
        classical.check(name, dict(options), text)
        return entry if points else Entry(label, name, classical.CODECS[name].points, options)
    return _checked_model(entry)


def _points(text: str, listed: str) -> tuple[str, ...]:
    points: list[str] = []
    for part in filter(None, listed.split(",")):
        span = re.fullmatch(r"(\d+)-(\d+)", part)
        if span:
            points += [str(q) for q in range(int(span[1]), int(span[2]) + 1)]
        elif re.fullmatch(r"\d+(\.\d+)?", part):
            points.append(part)
        else:
            raise SgaError(f"entry {text!r}: {part!r} is no point; points are numbers or ranges such as 1-6")
    if len(set(points)) < len(points):
        raise SgaError(f"entry {text!r} names a point twice; name each once")
    return tuple(points)


def _checked_model(entry: Entry) -> Entry:
    files = tuple(filter(None, entry.option("checkpoint").split(",")))
    known = stock.architectures if files else stock.pretrained_models
    if entry.name not in known:
        what = "architecture" if files else "model or codec"
        there = sorted(known) if files else [*classical.CODECS, *sorted(known)]
        raise SgaError(
            f"entry {entry.label!r}: no {what} is called {entry.name!r}; there are {', '.join(there)}"
        )
    for file in files:
        if not Path(file).is_file():
            raise SgaError(f"entry {entry.label!r}: the checkpoint {file} does not exist")
    metric = entry.option("metric", "mse")
    if metric not in ("mse", "ms-ssim"):
        raise SgaError(f"entry {entry.label!r}: metric is {metric!r}; it must be mse or ms-ssim")
    coder = entry.option("coder")
    if coder and coder not in (coders := available_entropy_coders()):
        raise SgaError(f"entry {entry.label!r}: coder is {coder!r}; it must be one of {', '.join(coders)}")
    if len(files) > 1 and entry.name.endswith("-vbr"):
        raise SgaError(f"entry {entry.label!r}: a vbr model takes one checkpoint; give each an entry")
    request = entry.request
    if request.trace is not None or request.metrics:
        raise SgaError(f"entry {entry.label!r}: refine-trace and metrics are no options of an entry")
    if request.refine is not None:
        try:
            RefineConfig.make(metric=metric, **request.refine)
        except ValueError as error:
            raise SgaError(f"entry {entry.label!r}: {error}") from error
    replacing = [key for key in ("lmbda", "bpp") if key in request.model]
    vbr = entry.name.endswith("-vbr")
    points = entry.points
    source = "checkpoint" if files else "pretrained"
    args: Any = SimpleNamespace(architecture=entry.name, source=source, qualities="")
    try:
        checks.check_model_options(args, request.model, request.refine is not None, stock.architectures)
    except SgaError as error:
        raise SgaError(f"entry {entry.label!r}: {error}") from error
    if files and not vbr:
        if points:
            raise SgaError(f"entry {entry.label!r}: its points are its checkpoints; leave out the @")
        points = files
    elif replacing:
        if points:
            raise SgaError(f"entry {entry.label!r}: {replacing[0]} replaces the points; leave out the @")
        points = (str(request.model[replacing[0]]),)
    elif not points:
        points = VBR_POINTS if vbr else _qualities(entry.name)
    elif not vbr and not set(points) <= set(_qualities(entry.name)):
        there = ", ".join(_qualities(entry.name))
        raise SgaError(f"entry {entry.label!r}: the qualities of {entry.name} are {there}")
    return Entry(entry.label, entry.name, points, entry.options)


def _qualities(name: str) -> tuple[str, ...]:
    """All qualities of a model: the zoo's, CompressAI's, or 1 to 8."""
    of_zoo = [r.quality for r in zoo.list_models() if r.name == name]
    return tuple(str(quality) for quality in of_zoo or cfgs.get(name, range(1, 9)))
