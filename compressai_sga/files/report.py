# SPDX-License-Identifier: Apache-2.0
"""The text that the file commands print: about a file (`table`, `facts`, `line`), its fit or its refinement.

In:  a `Description`, or the result of a refinement or fit. Out: text.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..models.c3.config import QUALITIES, Architecture
from ..models.c3.macs import macs_per_pixel
from ..models.c3.weights import Nets
from .c3 import FitResult
from .description import Description, is_own

if TYPE_CHECKING:
    from ..refine import RefineResult

__all__ = ["facts", "fitted", "line", "refined", "table"]


def facts(description: Description) -> dict[str, Any]:
    """What `info --json` prints: names, numbers and strings only.

    `bpp` is that of the whole file; `header_share` is the part of it that is neither strings nor profile.
    """
    c, parts = description.container, description.part_bytes
    nets = description.nets
    found = {
        "model": c.model,
        "quality": c.quality or None,
        "lmbda": _lmbda(description),
        "steps": c.steps,
        "metric": c.metric,
        "weights": c.weights.hex(),
        "weights_known": description.weights_known,
        "coder": c.coder,
        "width": c.width,
        "height": c.height,
        "mode": c.mode,
        "profile_bytes": 0 if c.profile is None else len(c.profile),
        "symbols": c.symbols,
        "checksum": f"{c.checksum:08x}",
        "bytes": description.file_bytes,
        "bpp": description.bpp,
        "header_share": description.header_share,
        "part_bytes": dict(parts),
    }
    if nets is not None:
        found["default_nets"] = None if nets.start is None else nets.start.number
        found["decoder_macs_px"] = macs_per_pixel(nets.architecture, nets.size).total
    return found


def table(description: Description) -> str:
    """The lines that `info` prints."""
    c, parts = description.container, description.part_bytes
    pixels, total = c.width * c.height, description.file_bytes
    whose = "the zoo's" if description.weights_known else "not in this zoo: it cannot be decoded here"
    if is_own(c):
        whose = "of a checkpoint that is not the zoo's, for decompress --checkpoint"
    weights = f"{c.weights.hex()} ({whose})"
    if description.nets is not None:
        weights = "none needed: the nets are in the file"
        if description.nets.start is not None:
            weights = f"the zoo's default nets of C3, number {description.nets.start.number}"
    found = [
        ("model", f"{c.model}, {_rate(description)}, {c.metric}"),
        ("weights", weights),
        ("coder", c.coder),
        ("image", f"{c.width}x{c.height} pixels, {c.mode}"),
        ("profile", "none" if c.profile is None else f"ICC, {len(c.profile)} bytes"),
        ("symbols", f"{c.symbols}, checksum {c.checksum:08x}"),
        ("file", f"{_size(description)}, CRC-32 correct"),
    ]
    if description.nets is not None:
        found += _facts(description.nets, parts)
    width = max(8, *(len(name) for name, _ in found))
    lines = [f"{name:<{width}} {text}" for name, text in found]
    lines += ["", f"{'part':<8} {'bits':>10} {'bpp':>8} {'share':>7}"]
    for name, count in [*parts.items(), ("total", total)]:
        lines.append(f"{name:<8} {8 * count:>10} {8 * count / pixels:>8.4f} {count / total:>7.1%}")
    return "\n".join(lines)


def line(description: Description) -> str:
    """One line about a file, as `compress` prints it."""
    c, psnr_db = description.container, description.psnr_db
    quality = "" if psnr_db is None else f", {psnr_db:.2f} dB"
    return (
        f"{_size(description)}{quality}, {c.width}x{c.height} pixels, {c.mode}, {c.model}, "
        f"{_rate(description)}, {c.coder}"
    )


def fitted(result: FitResult) -> str:
    """One line about a fit."""
    return f"fitted with lmbda {result.lmbda:g}, {result.steps} steps"


def refined(result: RefineResult, description: Description) -> str:
    """One line about a refinement; its rates are those of whole files, as everywhere."""
    rest = description.bpp - result.after.bpp.item()
    before, after = result.before, result.after
    return (
        f"refined by {result.config.method}, lmbda {result.lmbda:g}: "
        f"{before.bpp.item() + rest:.4f} -> {after.bpp.item() + rest:.4f} bpp, "
        f"{before.psnr_db.item():.2f} -> {after.psnr_db.item():.2f} dB before "
        "rounding to 8 bits"
    )


def _size(description: Description) -> str:
    return (
        f"{description.file_bytes} bytes, {description.bpp:.4f} bpp (header {description.header_share:.1%})"
    )


def _lmbda(description: Description) -> float | None:
    """The rate that a file says, or that its quality stands for, where that is certain."""
    c = description.container
    if description.nets is not None and c.lmbda is None and c.quality:
        return QUALITIES[c.quality]
    return c.lmbda


def _rate(description: Description) -> str:
    c, lmbda = description.container, _lmbda(description)
    if is_own(c) and description.nets is None:
        return "a checkpoint"
    if description.nets is None:
        if lmbda is not None:
            return f"lmbda {lmbda:g}"
        return f"quality {c.quality}" if c.quality else "rate given"
    rate = "lmbda not noted" if lmbda is None else f"lmbda {lmbda:g}"
    rate = f"quality {c.quality} ({rate})" if c.quality else rate
    return rate if c.steps is None else f"{rate}, {c.steps} steps"


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
