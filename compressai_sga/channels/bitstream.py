# SPDX-License-Identifier: Apache-2.0
"""What reverse channel coding sends, as a value (`Code`) and as bytes (`pack`, `unpack`).

A stream holds the numbers of all batch entries, grouped by model; for the hybrid the cells follow, dimension
after dimension. Lengths and models are not in it: both sides know the method, the KL divergence (if any), the
support and the cells (`index_code` says to which precision).

In:  a `Code`, or the bytes and the shared settings.
Out: bytes of whole 32-bit words, or numbers and cells.
Fails with ``BitstreamError`` for damaged bytes (most of them: there is no checksum), ``ValueError`` for
settings that do not fit.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Literal, get_args

import torch
from torch import Tensor

from ..errors import ShapeError
from . import index_code

__all__ = ["Code", "CodingMethod", "check_method", "code_bits", "expanded", "index_model", "pack", "unpack"]

CodingMethod = Literal["mrc", "pfr", "orc", "hybrid"]


@dataclasses.dataclass(frozen=True)
class Code:
    """What `encode` chose, one entry a batch entry.

    Args:
        index: 0-based number n of the candidate, int64, (*batch).
        cell: k of the hybrid, int64, (*batch, D); None for the others.
        sample: what `decode` returns, (*batch, D) float64, or (*batch) int64 for an alphabet.
        bits: length under the model of `index_model` plus that of the cells, float64, (*batch).
        exact: whether the sample follows the target exactly, bool, (*batch).
        examined: candidates that a sequential encoder looks at, int64, (*batch).
        log_mass: log of the mean of q / p over them, nats; a truncated method needs it near 0.
        effective_size: (sum w)^2 / sum w^2, w = q / p; a truncated method needs it well above 1.
        method, support, cells: as both sides must know them.
    """

    index: Tensor
    cell: Tensor | None
    sample: Tensor
    bits: Tensor
    exact: Tensor
    examined: Tensor
    log_mass: Tensor
    effective_size: Tensor
    method: CodingMethod
    support: int
    cells: Tensor | None


def index_model(
    method: CodingMethod, kl_bits: float | None, support: int, cells: Tensor | None = None
) -> index_code.IndexModel:
    """The model of a number that both sides can build.

    Args:
        method: mrc's numbers are coded with equal probabilities, those of the others by Zipf's law.
        kl_bits: known on both sides; None takes Elias-delta.
        support: N, or 2^32 for exact sampling.
        cells: M of the hybrid, whose numbers then only carry KL - log2 prod M bits.
    """
    check_method(method)
    if method == "mrc":
        return index_code.uniform_model(support)
    if kl_bits is None:
        return index_code.elias_delta_model(support)
    if cells is not None:
        kl_bits = max(0.0, kl_bits - math.log2(math.prod(cells.tolist())))
    return index_code.zipf_model(kl_bits, support)


def pack(code: Code, *, kl_bits: float | Tensor | None = None) -> bytes:
    """All numbers and cells of a code as one stream; `kl_bits` as in `encode`."""
    parts = []
    for rows, model in _models(code.index.numel(), code.method, kl_bits, code.support, code.cells):
        parts.append((code.index.reshape(-1).cpu()[rows], model))
    if code.cells is not None:
        columns = code.cell.reshape(-1, len(code.cells)).cpu().unbind(-1)
        parts += [(k, index_code.uniform_model(m)) for k, m in zip(columns, code.cells.tolist())]
    return index_code.encode_numbers(parts)


def unpack(
    data: bytes,
    count: int,
    *,
    method: CodingMethod,
    kl_bits: float | Tensor | None = None,
    support: int = index_code.MAX_SUPPORT,
    cells: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Numbers (count,) and cells (count, D) or None from the bytes of `pack`.

    Raises:
        BitstreamError: the bytes are not those of `count` numbers under these models.
    """
    groups = _models(count, method, kl_bits, support, cells if method == "hybrid" else None)
    parts = [(len(rows), model) for rows, model in groups]
    if method == "hybrid":
        if cells is None:
            raise ValueError("method 'hybrid' needs cells, the M of every dimension")
        parts += [(count, index_code.uniform_model(m)) for m in cells.tolist()]
    decoded = index_code.decode_numbers(data, parts)
    index = torch.zeros(count, dtype=torch.int64)
    for (rows, _), numbers in zip(groups, decoded):
        index[rows] = numbers
    columns = decoded[len(groups) :]
    return index, torch.stack(columns, -1) if columns else None


def _models(
    count: int, method: CodingMethod, kl_bits: float | Tensor | None, support: int, cells: Tensor | None
) -> list[tuple[Tensor, index_code.IndexModel]]:
    """Entries (flat) that share a model, ascending in their divergence."""
    everything = torch.arange(count)
    if kl_bits is None or method == "mrc":
        return [(everything, index_model(method, None, support, cells))]
    if not isinstance(kl_bits, Tensor) or kl_bits.dim() == 0:
        return [(everything, index_model(method, float(kl_bits), support, cells))]
    eighths = torch.tensor([index_code.kl_eighths(kl) for kl in kl_bits.reshape(-1).tolist()])
    if len(eighths) != count:
        raise ShapeError(f"kl_bits has {len(eighths)} entries; there are {count} numbers")
    return [
        ((eighths == value).nonzero()[:, 0], index_model(method, value / 8, support, cells))
        for value in eighths.unique().tolist()
    ]


def code_bits(
    index: Tensor, method: CodingMethod, kl_bits: float | Tensor | None, support: int, cells: Tensor | None,
    batch_shape: torch.Size,
) -> Tensor:  # fmt: skip
    if isinstance(kl_bits, Tensor):
        kl_bits = expanded("kl_bits", kl_bits, batch_shape)
    bits = torch.zeros(len(index), dtype=torch.float64)
    numbers = index.cpu()
    for rows, model in _models(len(index), method, kl_bits, support, cells):
        bits[rows] = model.bits(numbers[rows])
    if cells is not None:
        bits += math.log2(math.prod(cells.tolist()))
    return bits.to(index.device)


def expanded(name: str, value: Tensor, batch_shape: torch.Size) -> Tensor:
    """A flat tensor with one value for every batch entry; `name` is the argument's, for the error."""
    try:
        return value.expand(batch_shape).reshape(-1)
    except RuntimeError as error:
        raise ShapeError(
            f"{name} has the shape {tuple(value.shape)}; it must broadcast to the batch {tuple(batch_shape)}"
        ) from error


def check_method(method: str) -> None:
    if method not in get_args(CodingMethod):
        raise ValueError(f"method is {method!r}; choose one of {', '.join(get_args(CodingMethod))}")
