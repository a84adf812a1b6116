# SPDX-License-Identifier: Apache-2.0
"""What a `.csga` file holds, told without decoding its symbols and without PyTorch: the command `info`.

In:  a file, or its bytes. Out: a `Description`; the record of the zoo whose weights made the file.
Fails with ``BitstreamError`` on damaged files and files of another kind, ``SgaError`` on files that cannot be
read.
"""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from ..coding.container import MAGIC, MAX_BYTES, WEIGHTS_BYTES, Container, part_bytes, unpack
from ..errors import BitstreamError, SgaError
from ..models.c3.weights import Nets
from ..models.families import FAMILIES, Filing
from ..zoo_files import folder
from ..zoo_records import ModelRecord, records
from . import c3
from .target import Found

__all__ = [
    "Description",
    "describe",
    "describe_file",
    "filing_of",
    "fingerprint",
    "is_own",
    "read_file",
    "record_among",
]

_HEAD_BYTES = 64
_PARTS: dict[Filing, tuple[str, str]] = {"c3": ("nets", "latents")}  # where there are no more than two


@dataclass(frozen=True)
class Description:
    """What `info` tells about a file.

    Args:
        container: its fields.
        part_bytes: bytes by part, in the order of the file: y, z, ... (C3: nets, latents), profile, header.
        weights_known: whether the zoo has the weights of the file, or the file needs none.
        nets: of a C3 image; None for other models.
        psnr_db: of the decoded image in 8 bits, where the file was just made and the encoder knows it.
        found: the outcome of the search for a target, where the file was just made by one.
    """

    container: Container
    part_bytes: dict[str, int]
    weights_known: bool
    nets: Nets | None = None
    psnr_db: float | None = None
    found: Found | None = None

    @property
    def header_share(self) -> float:
        """Of the file: what is neither strings nor colour profile."""
        own = sum(self.part_bytes.get(name, 0) for name in ("header", "filling", "other"))
        return own / self.file_bytes

    @property
    def file_bytes(self) -> int:
        """Size of the whole file."""
        return sum(self.part_bytes.values())

    @property
    def bpp(self) -> float:
        """Bits of the whole file per pixel of the image."""
        return 8 * self.file_bytes / (self.container.width * self.container.height)


def describe_file(source: str | os.PathLike[str]) -> Description:
    """What a `.csga` file holds, without decoding its symbols.

    Raises:
        BitstreamError: the file is damaged or no `.csga` file.
        SgaError: it cannot be opened.
    """
    data = read_file(source)
    try:
        return describe(data)
    except BitstreamError as error:
        raise BitstreamError(f"{source}: {error}") from error


def read_file(source: str | os.PathLike[str]) -> bytes:
    """The bytes of a `.csga` file; of any other file, the first few. Raises as `describe_file`."""
    try:
        with open(source, "rb") as file:
            head = file.read(_HEAD_BYTES)
            if not head.startswith(MAGIC):
                return head  # whatever it is, the rest of it is not needed to refuse it
            size = os.fstat(file.fileno()).st_size
            if size > MAX_BYTES:
                raise BitstreamError(f"{source} has {size} bytes, a .csga file has at most {MAX_BYTES}")
            return head + file.read()
    except OSError as error:
        raise SgaError(f"{source} cannot be read: {error.strerror or error}") from error


def describe(data: bytes) -> Description:
    """What the bytes of a `.csga` file hold; raises ``BitstreamError``."""
    container = unpack(data)
    filing = filing_of(container.model, lambda: records(folder()))
    fitted = filing == "c3"
    nets = c3.nets_of(container) if fitted else None
    known = fitted or record_among(records(folder()), container) is not None
    sizes, names = part_bytes(data), _PARTS.get(filing, ("y", "z"))
    parts = {}
    for i in range(len(container.strings)):
        name = f"string {i}"
        parts[names[i] if len(container.strings) <= 2 else name] = sizes.pop(name)
    parts.update(sizes)
    return Description(container, parts, known, nets)


def filing_of(model: str, zoo: Callable[[], Sequence[ModelRecord]]) -> Filing:
    """How images of a model are filed.

    Args:
        model: of the zoo, or an architecture of this package; any other name is filed as "transform".
        zoo: gives the records; not called for fitted models, whose files need no zoo.
    """
    own = _filing_of_architecture(model)
    if own is None:
        architectures = {record.name: record.architecture for record in zoo()}
        own = _filing_of_architecture(architectures.get(model, model))
    return own or "transform"


def _filing_of_architecture(name: str) -> Filing | None:
    return next((family.file for family in FAMILIES if name in family.classes), None)


def is_own(container: Container) -> bool:
    """Whether a file was made with a checkpoint that is not the zoo's."""
    c = container
    if c.quality or c.lmbda is not None or filing_of(c.model, lambda: ()) != "transform":
        return False
    return all(record.name != c.model for record in records(folder()))


def fingerprint(record: ModelRecord) -> bytes:
    """The part of the weights' sha256 that a file keeps; `coding.container` specifies it."""
    weights = bytes.fromhex(record.sha256)
    if record.lmbda_range is not None:
        weights = hashlib.sha256(weights + struct.pack("<d", record.lmbda)).digest()
    return weights[:WEIGHTS_BYTES]


def record_among(records: Sequence[ModelRecord], container: Container) -> ModelRecord | None:
    """The record of the weights of a file; quality 0, for a given rate of DiffC, matches any quality."""
    c = container
    for record in records:
        if c.lmbda is not None and record.lmbda_range is not None:
            record = replace(record, quality=0, lmbda=c.lmbda)
        same = (record.name, record.metric, fingerprint(record)) == (c.model, c.metric, c.weights)
        any_rate = c.quality == 0 and _filing_of_architecture(record.architecture) == "diffc"
        if same and (any_rate or c.quality == record.quality):
            return record
    return None
