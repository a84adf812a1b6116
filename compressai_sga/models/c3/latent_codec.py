# SPDX-License-Identifier: Apache-2.0
"""Latent grids to bytes and back, exactly; C3 (Kim et al. 2024) only estimates the size of such a code.

    data = encode_latents(grids, net, context)                   # bytes; decoded once before it returns
    decode_latents(data, sizes, net, context)                    # the same grids, on any machine
    bits_of(grids, net, context)                                 # their code length, without coding

The net (`integer`) sees a latent's context (`contexts`) and selects a row of probabilities (`tables`).
constriction's ANS coder (stack of 32-bit words, 64-bit state, 24-bit probabilities) codes the values with
these rows, in decoding order
    for each grid, in `Context.order`; for each front t = x + slope * y:
        the values of its latents, by y
        for each escaped one: side (coin_row; 1 above), class c (escape_row), c bits (coin_row), high first,
            of d + 1 = 2^c + bits, where d counts latents from the row's end: first - 1 - d or last + 1 + d.
Bytes as `constriction-ans` in `coding.coders`: little-endian words without the zero bytes at their end;
the encoder's first state is the guard, 1 + CRC-32(latents, grid 0 first, raster) mod 65535, so damage passes
unnoticed with a probability of 2^-16 only. The length is the content plus at most 3 bytes.

Decoding runs in C++ where the extension was built (`native.AVAILABLE`), else front by front in Python.

In:  grids: int32 (h, w) each, within +-32767, sizes as `contexts.grid_sizes` if grids see one another;
     one net for all grids or one for each.
Fails with ``BitstreamError`` on bytes that no encoder wrote for these sizes, net and context, after work and
memory in proportion to the sizes. A stream that passes has at most about 200 000 latents a byte, since the
most likely value costs 4e-5 bits. ``ValueError`` on wrong arguments.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import constriction
import numpy as np

from ...coding import checksum
from ...coding.coders import guard_of
from ...errors import BitstreamError
from . import native
from .contexts import FEATURE_BITS, MAX_REACH, MAX_SIDE_PX, Context
from .integer import IntegerNet
from .tables import MAX_LATENT, rows

__all__ = ["Backend", "bits_of", "decode_latents", "encode_latents", "predict"]

Backend = Literal["auto", "native", "portable", "python"]
Nets = IntegerNet | Sequence[IntegerNet]

_CHUNK = 1 << 16  # positions that the encoder's net sees at a time
# What a stream may have less than its values' code lengths: with a state below 2^24 some values are free.
_SLACK_BITS = 64
_AnsCoder = constriction.stream.stack.AnsCoder


def encode_latents(
    grids: Sequence[np.ndarray], net: Nets, context: Context, *, backend: Backend = "auto"
) -> bytes:
    """Encodes the grids as bytes; see the file's head.

    Args:
        grids: int32 (h, w) each, the finest first.
        net: for all grids, or one for each.
        context: what the net sees.
        backend: of the coder and of the decoder that checks the bytes.

    Raises:
        ValueError: grids of another type or size, latents beyond +-32767, nets that do not fit.
        RuntimeError: the decoder does not return the same grids, so this machine computes wrongly.
    """
    sizes = [grid.shape for grid in grids]
    nets = _nets(net, sizes, context)
    for index, grid in enumerate(grids):
        _require_latents(index, grid)
    chosen = _choose(backend)
    if chosen == "python":
        words = _encode_python(grids, nets, context)
    else:
        words, _ = native.encode_grids(grids, nets, context, guard_of(grids), portable=chosen == "portable")
    data = words.astype("<u4").tobytes().rstrip(b"\0")
    decoded = _decode(data, sizes, nets, context, chosen)
    if any((a != b).any() for a, b in zip(grids, decoded)):
        raise RuntimeError(
            f"the latents do not decode with backend {chosen!r}: this machine computes wrongly; "
            "compare with another backend and report it"
        )
    checksum.note_encoded(np.concatenate([grid.ravel() for grid in grids]))
    return data


def decode_latents(
    data: bytes,
    sizes: Sequence[tuple[int, int]],
    net: Nets,
    context: Context,
    *,
    backend: Backend = "auto",
) -> list[np.ndarray]:
    """The grids, int32, from `encode_latents`' bytes.

    Args:
        data: the bytes.
        sizes: (h, w) of each grid, the finest first.
        net, context: the encoder's.
        backend: "native" C++, "portable" C++ without AVX2, "python"; "auto": the fastest there is.

    Raises:
        BitstreamError: no encoder wrote this.
        ValueError: sizes or nets that do not fit.
    """
    grids = _decode(data, sizes, _nets(net, sizes, context), context, _choose(backend))
    checksum.note_decoded(np.concatenate([grid.ravel() for grid in grids]))
    return grids


def bits_of(
    grids: Sequence[np.ndarray], net: Nets, context: Context, *, backend: Backend = "auto"
) -> list[float]:
    """The code length of each grid in bits; the stream has their sum and 16 to 48 bits more.

    Args as `encode_latents`.
    """
    nets = _nets(net, [grid.shape for grid in grids], context)
    for index, grid in enumerate(grids):
        _require_latents(index, grid)
    chosen = _choose(backend)
    if chosen != "python":
        return native.encode_grids(grids, nets, context, None, portable=chosen == "portable")[1]
    table = rows()
    total = []
    for index, grid in enumerate(grids):
        row, first = _rows_of(grids, nets[index], context, index)
        counts = table.counts[row]
        value = grid.ravel() - first
        far = (value < 0) | (value >= counts - 1)
        bits = table.bits[table.start[row] + np.where(far, counts - 1, value)].sum()
        below, above = -value[far], value[far] - counts[far] + 2  # d + 1, on the side where it is > 0
        classes = np.frexp(np.where(below > 0, below, above).astype(np.float64))[1] - 1
        total.append(float(bits + (table.bits[table.start[table.escape_row] + classes] + classes + 1).sum()))
    return total


def predict(
    grids: Sequence[np.ndarray], net: IntegerNet, context: Context, index: int
) -> tuple[np.ndarray, np.ndarray]:
    """The net's location (units of 1/64) and scale index for each latent of grid `index`, raster order."""
    height, width = grids[index].shape
    lines = max(1, _CHUNK // width)
    parts = [
        net.forward(context.inputs(grids, index, net.clamp, slice(y, min(y + lines, height))))
        for y in range(0, height, lines)
    ]
    location, scale = (np.concatenate(part) for part in zip(*parts))
    return location, scale


# --- Encoding ------------------------------------------------------------------------------------


def _encode_python(grids: Sequence[np.ndarray], nets: Sequence[IntegerNet], context: Context) -> np.ndarray:
    """The coder's words, uint32."""
    events: list[tuple[np.ndarray, np.ndarray]] = []
    for index in context.order(len(grids)):
        row, first = _rows_of(grids, nets[index], context, index)
        order, fronts = context.front_order(*grids[index].shape)
        events.append(_with_escapes(grids[index].ravel()[order] - first[order], row[order], fronts))
    row, value = (np.concatenate(part) for part in zip(*events))
    stack, models = _AnsCoder(np.array([guard_of(grids)], np.uint32)), rows().models
    for r, v in zip(row[::-1].tolist(), value[::-1].tolist()):
        stack.encode_reverse(v, models[r])
    return stack.get_compressed()


def _rows_of(
    grids: Sequence[np.ndarray], net: IntegerNet, context: Context, index: int
) -> tuple[np.ndarray, np.ndarray]:
    return rows().locate(*predict(grids, net, context, index))


def _with_escapes(value: np.ndarray, row: np.ndarray, fronts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows and values of a grid as they are coded.

    Args:
        value: (n,) latents minus their row's first one, in decoding order.
        row: (n,).
        fronts: where the fronts begin and the last one ends.
    """
    table = rows()
    last = table.counts[row] - 1
    far = np.flatnonzero((value < 0) | (value >= last))
    where, more_rows, more_values = [], [], []
    for at in far.tolist():
        above = value[at] >= last[at]
        number = int(value[at] - last[at] + 1 if above else -value[at])
        bits = number.bit_length() - 1
        digits = [number >> i & 1 for i in range(bits - 1, -1, -1)]
        more_rows += [table.coin_row, table.escape_row, *[table.coin_row] * bits]
        more_values += [int(above), bits, *digits]
        where += [fronts[np.searchsorted(fronts, at, side="right")]] * (bits + 2)
    value = value.copy()
    value[far] = last[far]
    return np.insert(row, where, more_rows), np.insert(value, where, more_values)


# --- Decoding ------------------------------------------------------------------------------------


def _decode(
    data: bytes,
    sizes: Sequence[tuple[int, int]],
    nets: Sequence[IntegerNet],
    context: Context,
    backend: str,
) -> list[np.ndarray]:
    if not isinstance(data, bytes):
        raise ValueError(f"the latents are {type(data).__name__}; they must be bytes")
    if not data or data[-1] == 0:
        raise BitstreamError(
            f"latents: {len(data)} bytes are empty or end in a zero byte, which no encoder writes: the file "
            "is damaged or truncated; get it again"
        )
    count = sum(int(height) * int(width) for height, width in sizes)
    if count * float(rows().bits.min()) > 8 * len(data) + _SLACK_BITS:
        raise BitstreamError(
            f"latents: {len(data)} bytes are too few for {count} latents of sizes {list(sizes)}: the file is "
            "damaged or truncated; get it again"
        )
    if backend == "python":
        grids, state = _decode_python(data, sizes, nets, context)
    else:
        try:
            grids, state = native.decode_grids(data, sizes, nets, context, portable=backend == "portable")
        except native.Damaged as error:
            raise _damaged(str(error)) from None
    if state != guard_of(grids):
        raise _damaged("the decoded values do not match their checksum")
    return grids


def _decode_python(
    data: bytes, sizes: Sequence[tuple[int, int]], nets: Sequence[IntegerNet], context: Context
) -> tuple[list[np.ndarray], int]:
    """All grids and the coder's last state."""
    ans = _AnsCoder(np.frombuffer(data + bytes(-len(data) % 4), "<u4").astype(np.uint32))
    grids: list[np.ndarray | None] = [None] * len(sizes)
    for index in context.order(len(sizes)):
        grids[index] = _decode_grid(ans, grids, index, sizes[index], nets[index], context)
    if ans.num_words() > 2:
        raise _damaged("the stream goes on after the last latent")
    return grids, sum(int(word) << 32 * i for i, word in enumerate(ans.get_compressed()))


def _decode_grid(
    ans: _AnsCoder,
    grids: Sequence[np.ndarray | None],
    index: int,
    size: tuple[int, int],
    net: IntegerNet,
    context: Context,
) -> np.ndarray:
    """One grid, front by front.

    A front lies in a row of memory, entry y for the latent at row y, so that a tap (dy, dx) of a
    whole front is a run: dx + slope * dy rows earlier, dy entries to the left.
    """
    height, width = size
    table, models = rows(), rows().models
    order, fronts = context.front_order(height, width)
    plane = context.other_plane(grids, index, net.clamp)
    others = context.other_inputs(plane, size, slice(0, height))[:, order] if context.other else None
    stride = height + MAX_REACH
    steps = np.array([dx + context.slope * dy for dy, dx in context.own], np.int64)
    before = int(-steps.min(initial=0))
    memory = np.zeros((before + len(fronts) - 1) * stride)
    taps = (steps * stride + np.array([dy for dy, _ in context.own], np.int64))[:, None]
    places = np.arange(height)
    latents = np.empty(height * width, np.int64)
    decode = ans.decode
    scale_up = float(1 << FEATURE_BITS)
    bounds = fronts.tolist()
    for t, (start, stop) in enumerate(zip(bounds, bounds[1:])):
        if start == stop:
            continue
        y = int(order[start]) // width
        at = (before + t) * stride + MAX_REACH + y
        x = memory.take(taps + (places[: stop - start] + at))
        if others is not None:
            x = np.concatenate([x, others[:, start:stop]])
        row, first = table.locate(*net.forward(x))
        chosen = row.tolist()
        value = np.array([decode(models[r]) for r in chosen])
        found = first + value
        for i in np.flatnonzero(value == table.counts[row] - 1).tolist():
            found[i] = _read_escape(decode, models, int(first[i]), int(value[i]))
        if ans.is_empty() or np.abs(found).max() > MAX_LATENT:
            raise _damaged("the stream ends too early or a latent exceeds its range")
        latents[start:stop] = found
        memory[at : at + stop - start] = np.clip(found, -net.clamp, net.clamp) * scale_up
    grid = np.empty(height * width, np.int32)
    grid[order] = latents
    return grid.reshape(height, width)


def _read_escape(decode: object, models: Sequence[object], first: int, escape: int) -> int:
    coin = models[rows().coin_row]
    above = decode(coin)
    number = 1
    for _ in range(decode(models[rows().escape_row])):
        number = 2 * number + decode(coin)
    return first + escape + number - 1 if above else first - number


# --- Checks --------------------------------------------------------------------------------------


def _choose(backend: Backend) -> str:
    if backend == "auto":
        return "native" if native.AVAILABLE else "python"
    if backend not in ("native", "portable", "python"):
        raise ValueError(f"backend is {backend!r}; choose auto, native, portable or python")
    if backend != "python" and not native.AVAILABLE:
        raise ValueError(
            f"backend {backend!r} needs the C++ extension, which was not built: install a C++ compiler and "
            "this package again, or take 'python'"
        )
    return backend


def _nets(net: Nets, sizes: Sequence[tuple[int, int]], context: Context) -> list[IntegerNet]:
    """A net for each grid; checks sizes and widths."""
    nets = [net] * len(sizes) if isinstance(net, IntegerNet) else list(net)
    if not sizes or len(nets) != len(sizes):
        raise ValueError(f"{len(nets)} nets for {len(sizes)} grids; give one for all or one for each")
    for i, size in enumerate(sizes):
        if len(size) != 2 or not all(1 <= side <= MAX_SIDE_PX for side in size):
            raise ValueError(f"grid {i} has size {tuple(size)}; sides from 1 to {MAX_SIDE_PX} can be coded")
        half = tuple(-(-side // 2) for side in sizes[i - 1])
        if context.source != "none" and i > 0 and tuple(size) != half:
            raise ValueError(f"grid {i} has size {tuple(size)}; half of grid {i - 1} is {half}")
        if nets[i].width != context.width:
            raise ValueError(f"net {i} takes {nets[i].width} inputs, the context has {context.width}")
    return nets


def _require_latents(index: int, grid: np.ndarray) -> None:
    if grid.dtype != np.int32:
        raise ValueError(f"grid {index} is {grid.dtype}; latents are int32")
    if grid.size and (grid.min() < -MAX_LATENT or grid.max() > MAX_LATENT):
        raise ValueError(
            f"grid {index} has latents from {grid.min()} to {grid.max()}; at most +-{MAX_LATENT} can be "
            "coded: take a coarser step"
        )


def _damaged(what: str) -> BitstreamError:
    return BitstreamError(f"latents: {what}; the file is damaged or of another image's nets: get it again")
