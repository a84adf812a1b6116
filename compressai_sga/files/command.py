# SPDX-License-Identifier: Apache-2.0
"""The commands `compress`, `decompress` and `info` of `python -m compressai_sga`.

In:  the arguments after the command's name. Out: one file, and lines on stdout that say what it holds;
a progress bar on stderr while latents are refined. An existing output is replaced, as `cp` does, once
the new one is complete.
Exit codes: 0; 2 for wrong use; 130 when interrupted. Fails with ``SgaError`` of one sentence.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from .. import zoo
from ..coding.container import CODERS
from ..errors import SgaError
from ..hooks.progress import Progress
from ..refine import PRESETS, RefineResult
from .codec import DEFAULT_CODER, Description, compress_file, decompress_file, describe_file

__all__ = ["compress", "decompress", "info"]


def compress(argv: list[str]) -> int:
    """`compress IN OUT.csga`."""
    models = ", ".join(sorted({record.name for record in zoo.list_models()}))
    parser = argparse.ArgumentParser(
        prog="python -m compressai_sga compress",
        description="Compress an image to a .csga file, which replaces an existing one.",
        epilog="The file keeps pixels (8 bits, grey or RGB) and colour profile, no other metadata.",
    )
    parser.add_argument("source", metavar="IN", help="PNG, JPEG, WebP or TIFF")
    parser.add_argument("target", metavar="OUT.csga")
    parser.add_argument("--model", metavar="NAME", default=zoo.DEFAULT_MODEL, help=f"{models} (%(default)s)")
    parser.add_argument("--quality", metavar="Q", type=int, help="higher is better and larger (3)")
    parser.add_argument(
        "--coder", metavar="NAME", default=DEFAULT_CODER, help=f"{', '.join(CODERS.values())} (%(default)s)"
    )
    parser.add_argument(
        "--refine", metavar="METHOD", help=f"refine the latents of the image: {', '.join(PRESETS)}"
    )
    parser.add_argument("--steps", metavar="N", type=int, help="refinement steps (the method's)")
    parser.add_argument(
        "--lmbda", metavar="L", type=float, help="weight of the distortion in refinement (the model's)"
    )
    parser.add_argument("--seed", metavar="S", type=int, default=0, help="of the refinement's noise (0)")
    args = parser.parse_args(argv)
    with _one_sentence():
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
            )
        if result is not None:
            print(_refined(result))
        print(f"{args.target}: {_line(description)}")
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
    args = parser.parse_args(argv)
    with _one_sentence():
        container = decompress_file(args.source, args.target).container
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
    with _one_sentence():
        print(table(describe_file(args.source)))
        return 0
    return 130


def table(description: Description) -> str:
    """The lines that `info` prints."""
    c, parts = description.container, description.part_bytes
    pixels, total = c.width * c.height, description.file_bytes
    whose = "the zoo's" if description.weights_known else "not in this zoo: it cannot be decoded here"
    facts = [
        ("model", f"{c.model}, quality {c.quality}, {c.metric}"),
        ("weights", f"{c.weights.hex()} ({whose})"),
        ("coder", c.coder),
        ("image", f"{c.width}x{c.height} pixels, {c.mode}"),
        ("profile", "none" if c.profile is None else f"ICC, {len(c.profile)} bytes"),
        ("symbols", f"{c.symbols}, CRC-32 {c.checksum:08x}"),
        ("file", f"{total} bytes, {description.bpp:.4f} bpp, CRC-32 correct"),
    ]
    lines = [f"{name:<8} {text}" for name, text in facts]
    lines += ["", f"{'part':<8} {'bits':>10} {'bpp':>8} {'share':>7}"]
    for name, count in [*parts.items(), ("total", total)]:
        lines.append(f"{name:<8} {8 * count:>10} {8 * count / pixels:>8.4f} {count / total:>7.1%}")
    return "\n".join(lines)


def _line(description: Description) -> str:
    c = description.container
    return (
        f"{description.file_bytes} bytes, {description.bpp:.4f} bpp, {c.width}x{c.height} pixels, {c.mode}, "
        f"{c.model}, quality {c.quality}, {c.coder}"
    )


def _refined(result: RefineResult) -> str:
    before, after = result.before, result.after
    return (
        f"refined by {result.config.method}, lmbda {result.lmbda:g}: "
        f"{before.bpp.item():.4f} -> {after.bpp.item():.4f} bpp, "
        f"{before.psnr_db.item():.2f} -> {after.psnr_db.item():.2f} dB"
    )


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
def _one_sentence() -> Iterator[None]:
    """Wrong options and too little memory as ``SgaError``; an interrupt ends the block."""
    try:
        yield
    except SgaError:
        raise
    except ValueError as error:
        raise SgaError(str(error)) from error
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "allocate memory" not in str(error):
            raise
        raise SgaError("the image needs more memory than there is; cut it into parts") from error
    except FileNotFoundError as error:  # weights that are not installed
        raise SgaError(str(error)) from error
    except KeyboardInterrupt:
        print("interrupted; the output is what it was before", file=sys.stderr)
