# SPDX-License-Identifier: Apache-2.0
"""The commands `compress`, `decompress` and `info` of `python -m compressai_sga`.

In:  the arguments after the command's name. Out: one file, and lines on stdout that say what it holds;
a progress bar on stderr while latents are refined or, on a terminal, while a C3 model is fitted. An existing
output is replaced when the new one is complete. Until then OUT.csga.fit keeps C3's fit.
Exit codes: 0; 2 for wrong use; 130 when interrupted. Fails with ``SgaError``, whose message is one sentence.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ..coding.container import CODERS
from ..models.families import FAMILIES
from ..progress import Progress
from ..refine.presets import PRESETS
from ..zoo_records import DEFAULT_MODEL
from .kinds import DEFAULT_C3_QUALITY, DEFAULT_CODER, compressible

# What the commands do is imported when they do it: their --help needs no PyTorch.

__all__ = ["compress", "decompress", "info"]


def compress(argv: list[str]) -> int:
    """`compress IN OUT.csga`."""
    fitted_models = [name for family in FAMILIES if family.fitted for name in family.classes]
    models = ", ".join(compressible())
    parser = argparse.ArgumentParser(
        prog="python -m compressai_sga compress",
        description="Compress an image to a .csga file, which replaces an existing one.",
        epilog="The file keeps pixels (8 bits, grey or RGB) and colour profile, no other metadata. "
        f"{', '.join(fitted_models)} are fitted to the image, which takes minutes to hours; what is done is "
        "kept in OUT.csga.fit, and after an interrupt the same command goes on from there.",
    )
    parser.add_argument("source", metavar="IN", help="PNG, JPEG, WebP or TIFF")
    parser.add_argument("target", metavar="OUT.csga")
    parser.add_argument("--model", metavar="NAME", default=DEFAULT_MODEL, help=f"{models} (%(default)s)")
    parser.add_argument(
        "--quality",
        metavar="Q",
        type=int,
        help=f"higher is better and larger (3; C3: {DEFAULT_C3_QUALITY})",
    )
    parser.add_argument(
        "--coder", metavar="NAME", help=f"{', '.join(CODERS.values())} ({DEFAULT_CODER}; not for C3)"
    )
    parser.add_argument(
        "--refine", metavar="METHOD", help=f"refine the latents of the image: {', '.join(PRESETS)}"
    )
    parser.add_argument("--steps", metavar="N", type=int, help="of refinement or fit (as many as are usual)")
    parser.add_argument(
        "--lmbda",
        metavar="L",
        type=float,
        help="weight of the distortion in refinement (the model's); C3: of the rate, instead of a quality",
    )
    parser.add_argument("--bpp", metavar="B", type=float, help="DiffC: bits a pixel, instead of a quality")
    parser.add_argument("--seed", metavar="S", type=int, default=0, help="of the noise (0)")
    parser.add_argument("--max-seconds", metavar="T", type=float, help="of C3's fit (no limit)")
    args = parser.parse_args(argv)
    from .c3 import FitResult, checkpoint_of
    from .codec import compress_file, kind_of
    from .report import fitted, line, refined

    checkpoint = checkpoint_of(args.target) if "checkpoint" in kind_of(args.model).TAKES else None
    with _interruptible(checkpoint):
        if checkpoint is not None and checkpoint.is_file():
            print(f"going on from {checkpoint}", file=sys.stderr)
        with _Bar(args.model, Path(args.source).name) as on_step:
            description, result = compress_file(
                args.source,
                args.target,
                model=args.model,
                quality=args.quality,
                coder=args.coder,
                refine=args.refine,
                steps=args.steps,
                lmbda=args.lmbda,
                seed=args.seed,
                on_step=on_step,
                max_seconds=args.max_seconds,
                bpp=args.bpp,
            )
        if isinstance(result, FitResult):
            print(fitted(result))
        elif result is not None:
            print(refined(result))
        print(f"{args.target}: {line(description)}")
        return 0
    return 130


def decompress(argv: list[str]) -> int:
    """`decompress IN.csga OUT.png`."""
    parser = argparse.ArgumentParser(
        prog="python -m compressai_sga decompress",
        description="Write the image of a .csga file; an existing one is replaced.",
    )
    parser.add_argument("source", metavar="IN.csga")
    parser.add_argument("target", metavar="OUT.png", help="ends in .png, .tif or .tiff")
    parser.add_argument(
        "--max-bytes", metavar="N", type=int, help="DiffC: decode what the first N bytes of the file hold"
    )
    parser.add_argument("--steps", metavar="N", type=int, help="HFD, DiffC: of the sampler (the model's)")
    parser.add_argument("--seed", metavar="S", type=int, help="HFD: of the noise (from the strings)")
    parser.add_argument(
        "--realism", metavar="R", type=float, help="HFD: 0 is the first stage's image, 1 a full sample (1)"
    )
    args = parser.parse_args(argv)
    names = ("steps", "seed", "realism")
    options = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    from .codec import decompress_file

    with _interruptible():
        container = decompress_file(args.source, args.target, max_bytes=args.max_bytes, **options)
        print(f"{args.target}: {container.width}x{container.height} pixels, {container.mode}")
        return 0
    return 130


def info(argv: list[str]) -> int:
    """`info FILE.csga`."""
    parser = argparse.ArgumentParser(
        prog="python -m compressai_sga info",
        description="Tell what a .csga file holds. Its CRC is checked, its symbols are not decoded.",
    )
    parser.add_argument("source", metavar="FILE.csga")
    args = parser.parse_args(argv)
    from .description import describe_file
    from .report import table

    with _interruptible():
        print(table(describe_file(args.source)))
        return 0
    return 130


class _Bar:
    """The progress bar of one refinement; it appears with the first step."""

    def __init__(self, model: str, image: str) -> None:
        self._model, self._image = model, image
        self._progress: Progress | None = None

    def __enter__(self) -> Callable[[int, int, float], None]:
        return self._step

    def __exit__(self, *_: object) -> None:
        if self._progress is not None:
            self._progress.close()

    def _step(self, step: int, steps: int, loss: float) -> None:
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
        if checkpoint is not None and checkpoint.is_file():
            how = f", the fit so far is in {checkpoint}: the same command goes on from there"
        print(f"interrupted; the output is what it was before{how}", file=sys.stderr)
