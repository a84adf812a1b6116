# SPDX-License-Identifier: Apache-2.0
"""The text that the file commands print: about a file (`table`, `line`), its fit or its refinement.

In:  a `Description`, or the result of a refinement or fit. Out: text.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..models.c3.config import Architecture
from ..models.c3.macs import macs_per_pixel
from ..models.c3.weights import Nets
from .c3 import FitResult
from .description import Description

if TYPE_CHECKING:
    from ..refine import RefineResult

__all__ = ["fitted", "line", "refined", "table"]


def table(description: Description) -> str:
    """The lines that `info` prints."""
    c, parts = description.container, description.part_bytes
    pixels, total = c.width * c.height, description.file_bytes
    whose = "the zoo's" if description.weights_known else "not in this zoo: it cannot be decoded here"
    weights = f"{c.weights.hex()} ({whose})"
    if description.nets is not None:
        weights = "none needed: the nets are in the file"
        if description.nets.start is not None:
            weights = f"the zoo's default nets of C3, number {description.nets.start.number}"
    facts = [
        ("model", f"{c.model}, {_quality(description)}, {c.metric}"),
        ("weights", weights),
        ("coder", c.coder),
        ("image", f"{c.width}x{c.height} pixels, {c.mode}"),
        ("profile", "none" if c.profile is None else f"ICC, {len(c.profile)} bytes"),
        ("symbols", f"{c.symbols}, CRC-32 {c.checksum:08x}"),
        ("file", f"{total} bytes, {description.bpp:.4f} bpp, CRC-32 correct"),
    ]
    if description.nets is not None:
        facts += _facts(description.nets, parts)
    width = max(8, *(len(name) for name, _ in facts))
    lines = [f"{name:<{width}} {text}" for name, text in facts]
    lines += ["", f"{'part':<8} {'bits':>10} {'bpp':>8} {'share':>7}"]
    for name, count in [*parts.items(), ("total", total)]:
        lines.append(f"{name:<8} {8 * count:>10} {8 * count / pixels:>8.4f} {count / total:>7.1%}")
    return "\n".join(lines)


def line(description: Description) -> str:
    c = description.container
    return (
        f"{description.file_bytes} bytes, {description.bpp:.4f} bpp, {c.width}x{c.height} pixels, {c.mode}, "
        f"{c.model}, {_quality(description)}, {c.coder}"
    )


def fitted(result: FitResult) -> str:
    """One line about a fit."""
    return f"fitted with lmbda {result.lmbda:g}, {result.steps} steps: {result.psnr_db:.2f} dB"


def refined(result: RefineResult) -> str:
    before, after = result.before, result.after
    return (
        f"refined by {result.config.method}, lmbda {result.lmbda:g}: "
        f"{before.bpp.item():.4f} -> {after.bpp.item():.4f} bpp, "
        f"{before.psnr_db.item():.2f} -> {after.psnr_db.item():.2f} dB"
    )


def _quality(description: Description) -> str:
    quality = description.container.quality
    return "lmbda given" if description.nets is not None and not quality else f"quality {quality}"


def _facts(nets: Nets, parts: dict[str, int]) -> list[tuple[str, str]]:
    """Architecture and cost of a C3 decoder."""
    a, macs = nets.architecture, macs_per_pixel(nets.architecture, nets.size)
    grids = f"{a.grids} grid{'s' * (a.grids > 1)}, the finest at 1/{2**a.first}"
    return [
        ("bytes", ", ".join(f"{name} {count}" for name, count in parts.items())),
        ("latents", grids),
        ("entropy", _entropy(a)),
        ("upsampling", _upsampling(a)),
        ("synthesis", _synthesis(a)),
        (
            "decoder",
            f"{macs.total:.1f} multiplications a pixel: entropy net {macs.entropy:.1f}, upsampling "
            f"{macs.upsampling:.1f}, synthesis {macs.synthesis:.1f}",
        ),
    ]


def _entropy(a: Architecture) -> str:
    seen = f"{len(a.taps.own)} neighbours"
    if a.taps.source != "none":
        seen += f" and {len(a.taps.other)} of the next {a.taps.source} grid"
    extras = [a.entropy_activation, *(["residual"] if any(a.residual) else [])]
    extras += ["with a linear skip"] if a.entropy_skip else []
    return f"net {_widths(a.taps.width, *a.entropy_hidden, 2)} ({', '.join(extras)}) of {seen}"


def _upsampling(a: Architecture) -> str:
    return "bilinear" if a.upsampling == "bilinear" else f"{a.doublings} times by two, 4 taps of its own each"


def _synthesis(a: Architecture) -> str:
    skip = ", with a linear skip" if a.synthesis_skip else ""
    text = f"net {_widths(a.grids, *a.synthesis_hidden, 3)} ({a.synthesis_activation}{skip})"
    layers = f"{a.refinements} residual 3x3 layer{'s' * (a.refinements > 1)}"
    return f"{text}, {layers} ({a.refinement_activation})" if a.refinements else text


def _widths(*widths: int) -> str:
    return "-".join(map(str, widths))
