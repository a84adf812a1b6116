# SPDX-License-Identifier: Apache-2.0
"""The command lines of `compress`, `decompress` and `info`; nothing of PyTorch is imported for them.

In:  names of models, coders and presets, for the help. Out: parsers.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable

__all__ = ["compress_parser", "decompress_parser", "info_parser"]

_FOLDER = "a folder: all that is in it is done, and what is there already is kept"


def compress_parser(
    models: Iterable[str],
    default: str,
    fitted: Iterable[str],
    coders: Iterable[str],
    default_coder: str,
    presets: Iterable[str],
    c3_quality: int,
) -> argparse.ArgumentParser:
    """Of `compress IN [OUT.csga]`.

    Args:
        models: with weights or without.
        default: one of them.
        fitted: those of them that are fitted to the image.
        coders: of files.
        default_coder: one of them.
        presets: of refinement.
        c3_quality: the default quality of the fitted ones.
    """
    parser = argparse.ArgumentParser(
        prog="python -m compressai_sga compress",
        description="Compress an image to a .csga file, or the images of a folder.",
        epilog="The file keeps pixels (8 bits, grey or RGB) and colour profile, no other metadata. "
        f"{', '.join(fitted)} are fitted to the image, which takes minutes to hours; what is done is "
        "kept in OUT.csga.fit, and after an interrupt the same command goes on from there. A target is "
        "searched for: over lmbda of these, of a model for all rates or of refinement, over DiffC's bits, or "
        "over qualities.",
    )
    parser.add_argument(
        "source",
        metavar="IN",
        help="PNG, JPEG, WebP, TIFF, BMP, PPM, GIF, AVIF; HEIF and JPEG XL with Pillow's plug-ins; - for "
        f"stdin; or {_FOLDER}",
    )
    parser.add_argument(
        "target",
        metavar="OUT.csga",
        nargs="?",
        help="(IN with this ending); - for stdout, messages go to stderr then; for a folder, a folder",
    )
    parser.add_argument("--force", action="store_true", help="replace outputs that exist")
    parser.add_argument(
        "-a",
        "--model",
        metavar="NAME",
        help=f"{', '.join(models)} ({default}); of --checkpoint: its architecture",
    )
    parser.add_argument(
        "--quality", metavar="Q", type=int, help=f"higher is better and larger (3; C3: {c3_quality})"
    )
    parser.add_argument(
        "--checkpoint", metavar="FILE", help="weights of one's own, which decompress must be given too"
    )
    parser.add_argument("--coder", metavar="NAME", help=f"{', '.join(coders)} ({default_coder}; not for C3)")
    parser.add_argument(
        "--refine", metavar="METHOD", help=f"refine the latents of the image: {', '.join(presets)}"
    )
    parser.add_argument("--steps", metavar="N", type=int, help="of refinement or fit (as many as are usual)")
    parser.add_argument(
        "--lmbda",
        metavar="L",
        type=float,
        help="weight of the distortion in refinement (the model's); C3: of the rate; C3 and models for all "
        "rates take it instead of a quality",
    )
    parser.add_argument("--bpp", metavar="B", type=float, help="DiffC: bits a pixel, instead of a quality")
    parser.add_argument("--seed", metavar="S", type=int, default=0, help="of the noise (0)")
    parser.add_argument("--max-seconds", metavar="T", type=float, help="of C3's fit (no limit)")
    target = parser.add_mutually_exclusive_group()
    target.add_argument(
        "--target-bpp", metavar="B", type=float, help="bits a pixel of the whole file, within 2 %%"
    )
    target.add_argument(
        "--target-bytes", metavar="N", type=float, help="bytes of the whole file, within 2 %%"
    )
    target.add_argument("--target-psnr", metavar="DB", type=float, help="PSNR of the image, within 0.09 dB")
    parser.add_argument(
        "--device", metavar="D", default="cpu", help="of the encoder: cpu, cuda, cuda:1, ... (cpu)"
    )
    parser.add_argument(
        "--jobs",
        metavar="N",
        type=_at_least_one,
        default=1,
        help="images of a folder at once, each in a process (1)",
    )
    return parser


def _at_least_one(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of images; give a whole one from 1 on")
    return int(text)


def decompress_parser() -> argparse.ArgumentParser:
    """Of `decompress IN.csga [OUT.png]`."""
    parser = argparse.ArgumentParser(
        prog="python -m compressai_sga decompress",
        description="Write the image of a .csga file, or of those in a folder.",
    )
    parser.add_argument("source", metavar="IN.csga", help=f"- for stdin; or {_FOLDER}")
    parser.add_argument(
        "target",
        metavar="OUT.png",
        nargs="?",
        help="ends in .png, .tif or .tiff (IN with .png); - for a PNG on stdout; for a folder, a folder",
    )
    parser.add_argument("--force", action="store_true", help="replace outputs that exist")
    parser.add_argument("--checkpoint", metavar="FILE", help="weights of one's own that made the file")
    parser.add_argument(
        "--max-bytes", metavar="N", type=int, help="DiffC: decode what the first N bytes of the file hold"
    )
    parser.add_argument("--steps", metavar="N", type=int, help="HFD, DiffC: of the sampler (the model's)")
    parser.add_argument("--seed", metavar="S", type=int, help="HFD: of the noise (from the strings)")
    parser.add_argument(
        "--realism", metavar="R", type=float, help="HFD: 0 is the first stage's image, 1 a full sample (1)"
    )
    parser.add_argument("--device", metavar="D", help="cpu, cuda, cuda:1, ... (cpu); not for C3 and DiffC")
    return parser


def info_parser() -> argparse.ArgumentParser:
    """Of `info FILE.csga`."""
    parser = argparse.ArgumentParser(
        prog="python -m compressai_sga info",
        description="Tell what a .csga file holds. Its CRC is checked, its symbols are not decoded.",
    )
    parser.add_argument("source", metavar="FILE.csga", help="- for stdin")
    parser.add_argument("--json", action="store_true", help="as JSON")
    return parser
