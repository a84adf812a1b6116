# SPDX-License-Identifier: Apache-2.0
"""The commands `compress`, `decompress` and `info` of `python -m compressai_sga`.

In:  the arguments after the command's name. Out: files, and lines on stdout that say what they hold (on
stderr, where the file goes to stdout). On stderr, a bar while latents are refined; a bar on a terminal, and
else a line a minute, while a C3 model is fitted, a large image is coded, or a folder is done. An existing
output is refused without --force, and replaced when the new one is complete. Until then OUT.csga.fit keeps
C3's fit.
Exit codes: 0; 2 for wrong use and where a file of a folder failed; 130 when interrupted. Fails with
``SgaError``, whose message is one sentence.
"""

from __future__ import annotations

import argparse
import glob
import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..coding.container import CODERS
from ..endings import refusals
from ..errors import SgaError
from ..models.families import FAMILIES
from ..progress import Progress
from ..refine.presets import PRESETS
from ..zoo_files import folder
from ..zoo_records import DEFAULT_MODEL, records
from . import arguments
from .folders import each, outputs
from .images import INPUT_SUFFIXES, png_of, read_picture
from .jobs import Jobs
from .kinds import DEFAULT_C3_QUALITY, DEFAULT_CODER, Request, compressible

if TYPE_CHECKING:
    from .description import Description

# What the commands do is imported when they do it: their --help needs no PyTorch.

__all__ = ["compress", "decompress", "info"]

_STREAM = "-"


def compress(argv: list[str]) -> int:
    """`compress IN [OUT.csga]`."""
    own = [name for family in FAMILIES if family.fitted for name in family.classes]
    args = arguments.compress_parser(
        compressible(), DEFAULT_MODEL, own, CODERS.values(), DEFAULT_CODER, PRESETS, DEFAULT_C3_QUALITY
    ).parse_args(argv)
    from .c3 import checkpoint_of
    from .codec import kind_of

    with _interruptible():
        options = {
            "model": _model(args),
            "weights": args.checkpoint,
            "target_psnr_db": args.target_psnr,
            **{name: getattr(args, name) for name in _OPTIONS},
        }
        keeps_fits = "checkpoint" in kind_of(options["model"]).TAKES
        if not os.path.isdir(args.source):
            target = _target(args, ".csga")
            checkpoint = checkpoint_of(target) if keeps_fits and target != _STREAM else None
            with _interruptible(checkpoint):
                _compress(args.source, target, options, checkpoint)
                return 0
            return 130

        def work(source: Path, target: Path) -> str:
            with refusals():
                return _compress(
                    source, target, options, checkpoint_of(target) if keeps_fits else None, quiet=True
                )

        pairs = outputs(args.source, args.target or args.source, INPUT_SUFFIXES, ".csga")
        at_once = min(args.jobs, len(pairs))
        with Jobs(["compress", *_again(args)], at_once) as jobs:
            return each(
                pairs,
                work if at_once == 1 else jobs,
                lambda path: _is_same(path, options),
                force=args.force,
                title="compress",
                at_once=at_once,
            )
    return 130


_OPTIONS = "quality coder refine steps lmbda seed max_seconds bpp device target_bpp target_bytes".split()
_TARGETS = ("target_bpp", "target_bytes", "target_psnr_db")


def _again(args: argparse.Namespace) -> list[str]:
    """The options of `compress` as arguments."""
    names = ("model", "checkpoint", "target_psnr", *_OPTIONS)
    given = {name: getattr(args, name) for name in names}
    return [f"--{name.replace('_', '-')}={value}" for name, value in given.items() if value is not None] + [
        "--force"
    ] * args.force


def _model(args: argparse.Namespace) -> str:
    """The model's name; for a checkpoint, its architecture's."""
    if args.checkpoint is None:
        return args.model or DEFAULT_MODEL
    if args.model is None:
        raise SgaError(f"--checkpoint {args.checkpoint}: name its architecture too, with -a")
    return next((r.architecture for r in records(folder()) if r.name == args.model), args.model)


def _target(args: argparse.Namespace, ending: str) -> str:
    """The output of a single input, which must not exist."""
    target = args.target
    if not args.source:
        raise SgaError("the input has an empty name; give that of a file or folder, or -")
    if target is None:
        target = _STREAM if args.source == _STREAM else os.path.splitext(args.source)[0] + ending
    if target == _STREAM and sys.stdout.isatty():
        raise SgaError("stdout is a terminal, which cannot show the file; redirect it, or name an output")
    if target != _STREAM and os.path.isfile(target) and not args.force:
        raise SgaError(f"{target} is there already; --force replaces it, or name another output")
    return target


def _compress(
    source: str | Path,
    target: str | Path,
    options: dict[str, Any],
    checkpoint: Path | None,
    quiet: bool = False,
) -> str:
    """Compress one image; prints what came out, or gives the last line of it and a missed target."""
    from .codec import compress_described, compress_file
    from .report import line

    out = sys.stderr if target == _STREAM else sys.stdout
    for path in _fits(checkpoint):
        print(f"going on from {path}", file=sys.stderr)
    with _Bar(options["model"], Path(source).name) as on_step:
        options = {**options, "on_step": on_step}
        if target == _STREAM:
            data, description, result = compress_described(read_picture(_content(source)), **options)
            _write(data)
        else:
            description, result = compress_file(_content(source), target, **options)
    last = f"{'stdout' if target == _STREAM else target}: {line(description)}"
    if quiet:
        missed = description.found is not None and not description.found.reached
        return f"{last}; {description.found.text}" if missed else last
    for text in (*_told(description, result), last):
        print(text, file=out)
    return last


def _fits(checkpoint: Path | None) -> list[Path]:
    """Unfinished fits: the checkpoint, or those of the attempts at a target."""
    if checkpoint is None:
        return []
    found = checkpoint.parent.glob(f"{glob.escape(checkpoint.name)}*")
    return sorted(path for path in found if path.suffix != ".part")


def _told(description: Description, result: Any) -> Iterator[str]:
    from .c3 import FitResult
    from .report import fitted, refined

    if description.found is not None:
        yield description.found.text
    if isinstance(result, FitResult):
        yield fitted(result)
    elif result is not None:
        yield refined(result, description)


def _is_same(path: Path, options: dict[str, Any]) -> bool:
    """Whether a file is what the options would make, as far as it says so."""
    from .codec import kind_of
    from .description import describe_file, fingerprint
    from .models import chosen

    try:
        found = describe_file(path).container
    except SgaError:
        return False
    asked = Request(**{name: options[name] for name in ("model", "quality", "lmbda", "bpp", "weights")})
    searched = any(options[name] is not None for name in _TARGETS)
    wanted = {"model": asked.model, "coder": options["coder"]}
    if "checkpoint" in kind_of(asked.model).TAKES:
        given = searched or asked.lmbda is not None
        wanted["quality"] = 0 if given else asked.quality or DEFAULT_C3_QUALITY
        wanted["lmbda"] = asked.lmbda
    elif asked.bpp is not None:
        wanted["quality"] = 0
    elif not searched or asked.quality is not None or asked.weights is not None:
        record = chosen(asked)
        wanted |= {"quality": record.quality, "weights": fingerprint(record)}
    return all(value in (None, getattr(found, name)) for name, value in wanted.items())


def _content(source: str | Path) -> str | Path | bytes:
    """The input, or the bytes of stdin."""
    return sys.stdin.buffer.read() if source == _STREAM else source


def _write(data: bytes) -> None:
    """A file to stdout."""
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()


def decompress(argv: list[str]) -> int:
    """`decompress IN.csga [OUT.png]`."""
    args = arguments.decompress_parser().parse_args(argv)
    from .codec import decompress_file, decompress_picture, read_file

    given = {"weights": args.checkpoint, **{name: getattr(args, name) for name in _DECODING}}
    options = {name: value for name, value in given.items() if value is not None}

    def work(source: str | Path, target: str | Path) -> str:
        content = _content(source)
        if target == _STREAM:
            picture = decompress_picture(
                content if isinstance(content, bytes) else read_file(content), **options
            )
            _write(png_of(picture))
            (height, width), mode = picture.pixels.shape[:2], picture.mode
        else:
            container = decompress_file(content, target, **options)
            height, width, mode = container.height, container.width, container.mode
        return f"{'stdout' if target == _STREAM else target}: {width}x{height} pixels, {mode}"

    def work_in_folder(source: Path, target: Path) -> str:
        with refusals():
            return work(source, target)

    with _interruptible():
        if os.path.isdir(args.source):
            pairs = outputs(args.source, args.target or args.source, frozenset({".csga"}), ".png")
            return each(pairs, work_in_folder, lambda _: True, force=args.force, title="decompress")
        target = _target(args, ".png")
        print(work(args.source, target), file=sys.stderr if target == _STREAM else sys.stdout)
        return 0
    return 130


_DECODING = ("max_bytes", "steps", "seed", "realism", "device")


def info(argv: list[str]) -> int:
    """`info FILE.csga`."""
    args = arguments.info_parser().parse_args(argv)
    from .description import describe, describe_file
    from .report import facts, table

    with _interruptible():
        stream = args.source == _STREAM
        description = describe(sys.stdin.buffer.read()) if stream else describe_file(args.source)
        print(json.dumps(facts(description), indent=2) if args.json else table(description))
        return 0
    return 130


class _Bar:
    """The progress bars of an image's refinements, one after the other; each appears with its first step."""

    def __init__(self, model: str, image: str) -> None:
        self._model, self._image = model, image
        self._progress: Progress | None = None

    def __enter__(self) -> Callable[[int, int, float], None]:
        return self._step

    def __exit__(self, *_: object) -> None:
        if self._progress is not None:
            self._progress.close()

    def _step(self, step: int, steps: int, loss: float) -> None:
        if step == 0 and self._progress is not None:  # the next attempt at a target
            self._progress.close()
            self._progress = None
        if self._progress is None:
            self._progress = Progress(self._model, 1, steps, None)
            self._progress.start(self._image)
        self._progress.step(step, steps, loss)


@contextmanager
def _interruptible(checkpoint: Path | None = None) -> Iterator[None]:
    """An interrupt ends the block with one sentence; `endings` sees to everything else.

    Args:
        checkpoint: file from which the same command goes on, if it exists.
    """
    try:
        yield
    except KeyboardInterrupt:
        how = ""
        if _fits(checkpoint):
            how = f", the fit so far is in {checkpoint}: the same command goes on from there"
        print(f"interrupted; the output is what it was before{how}", file=sys.stderr)
