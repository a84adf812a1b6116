# SPDX-License-Identifier: Apache-2.0
"""Hostile `.csga` files, and a program that tries them; the tests run it in a process of its own.

    python tests/files/hostile.py 5000 [SEED]       # prints a JSON object

Each case is one of KINDS, drawn from the seed alone. Those that only break bytes end at the CRC; the
others carry a correct one. Out: by kind, how many were refused by ``BitstreamError`` and how many were
decoded (only such whose symbols have the number and CRC-32 that the file states); the slowest case in
seconds of computing; by how much memory grew at most during one of those that reach a network, and in
all (the allocator keeps some), in MiB. Anything else ends it with a traceback.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import json
import random
import resource
import struct
import sys
import time
import warnings
import zlib
from pathlib import Path

import numpy as np
import torch

from compressai_sga.coding.container import CODERS, MAGIC, PIXELS_PER_BYTE, Container, pack, unpack
from compressai_sga.coding.sizes import padded_size
from compressai_sga.errors import BitstreamError
from compressai_sga.files import Picture, compress_picture, decompress_picture
from compressai_sga.files.models import borrowed, record_of
from compressai_sga.models.c3 import ARCHITECTURES as FITTED
from compressai_sga.models.c3.config import KNOWN, Architecture
from tests.files.c3_files import blank, container_of

SOURCES = (  # model, quality, coder, height, width
    ("mbt2018-mean-small", 3, "constriction-exact", 40, 60),
    ("mbt2018-mean-small", 3, "constriction-ans", 70, 20),
    ("bmshj2018-factorized-small", 1, "constriction-range", 5, 5),
    ("mbt2018-small", 3, "constriction-range", 16, 64),
    ("mbt2018-mean-uq-small", 1, "constriction-exact", 33, 50),
    ("c3-fast", 4, None, 40, 44),
    ("c3-paper", 2, None, 9, 70),
)
ARCHITECTURES = (  # of C3: a preset's, what is just allowed, what is not
    *KNOWN,
    Architecture(entropy_hidden=(44, 24), synthesis_hidden=(24, 24)),
    Architecture(context=2, entropy_hidden=(8,), synthesis_hidden=(48, 48)),
    Architecture(grids=16, first=3, context=3, entropy_hidden=(128,) * 7, synthesis_hidden=()),
    Architecture(grids=16, first=15, upsampling="learned", entropy_hidden=(4,), synthesis_skip=True),
    Architecture(entropy_hidden=(128,) * 7, synthesis_hidden=(128,) * 7, refinements=15),
)


def sealed(body: bytes) -> bytes:
    """A file of any content, with correct length and CRC."""
    rest, length = len(body) + 4, bytearray()
    while rest > 127:
        length.append(rest & 127 | 128)
        rest >>= 7
    data = MAGIC + b"\x01" + bytes(length) + bytes([rest]) + body
    return data + struct.pack("<I", zlib.crc32(data))


def sources() -> list[bytes]:
    """Small valid files."""
    draw = np.random.default_rng(0)
    files = []
    for model, quality, coder, height, width in SOURCES:
        pixels = np.kron(draw.integers(0, 256, (height, width, 1)), np.ones((1, 1, 3))).astype(np.uint8)
        steps = 3 if model in FITTED else None
        options = {"model": model, "quality": quality, "coder": coder, "steps": steps}
        files.append(compress_picture(Picture(pixels), **options)[0])
    return files


def changed(draw: random.Random, original: bytes) -> bytes:
    """A few bytes changed, taken out or put in."""
    data = bytearray(original)
    while data == original:
        for _ in range(draw.randint(1, 4)):
            at = draw.randrange(len(data) + 1)
            what = draw.randrange(4)
            if what == 0:
                data[at : at + 1] = bytes([draw.randrange(256)])
            elif what == 1 and at < len(data):
                data[at] ^= 1 << draw.randrange(8)
            elif what == 2:
                del data[at : at + draw.randint(1, 9)]
            else:
                data[at:at] = draw.randbytes(draw.randint(1, 9))
    return bytes(data)


def _body(data: bytes) -> bytes:
    return data[7 if data[5] > 127 else 6 : -4]


def truncated(draw: random.Random, file: bytes) -> bytes:
    return file[: draw.randrange(len(file))]


def flipped(draw: random.Random, file: bytes) -> bytes:
    bit = draw.randrange(8 * len(file))
    return file[: bit // 8] + bytes([file[bit // 8] ^ 1 << bit % 8]) + file[bit // 8 + 1 :]


def edited(draw: random.Random, file: bytes) -> bytes:
    return changed(draw, file)


def noise(draw: random.Random, file: bytes) -> bytes:
    start = MAGIC + b"\x01" if draw.random() < 0.7 else b""
    return start + draw.randbytes(draw.randrange(400))


def sealed_noise(draw: random.Random, file: bytes) -> bytes:
    return sealed(draw.randbytes(draw.randrange(400)))


def sealed_edit(draw: random.Random, file: bytes) -> bytes:
    return sealed(changed(draw, _body(file)))


def sealed_head(draw: random.Random, file: bytes) -> bytes:
    body = bytearray(_body(file))
    for _ in range(draw.randint(1, 3)):
        body[draw.randrange(60)] = draw.randrange(256)
    return sealed(bytes(body))


def _repacked(container: Container, **changes) -> bytes:
    try:
        return pack(dataclasses.replace(container, **changes))
    except ValueError:
        return b""


def sealed_sizes(draw: random.Random, file: bytes) -> bytes:
    """Another size, as large as the file allows: the most expensive nonsense."""
    while True:
        width, height = (int(2 ** (11 * draw.random())) for _ in range(2))
        rows, columns = padded_size(width, height, 6)
        if rows * columns <= PIXELS_PER_BYTE * len(file):
            return _repacked(unpack(file), width=width, height=height)


def sealed_strings(draw: random.Random, file: bytes) -> bytes:
    """Symbols that nobody coded."""
    container = unpack(file)
    strings = list(container.strings)
    at, what = draw.randrange(len(strings)), draw.randrange(5)
    if what == 0:
        strings[at] = changed(draw, strings[at])
    elif what == 1:
        strings[at] = draw.randbytes(draw.randrange(300))
    elif what == 2:
        strings[at] = draw.choice((b"\0", b"\xff")) * draw.randrange(300)
    elif what == 3:
        strings = strings[::-1] if draw.random() < 0.5 else strings[1:]
    else:
        strings[at] = strings[at][: draw.randrange(len(strings[at]) + 1)]
    symbols = container.symbols if draw.random() < 0.9 else draw.randrange(2**20)
    return _repacked(container, strings=tuple(strings), symbols=symbols)


def sealed_extreme(draw: random.Random, file: bytes) -> bytes:
    """z of any size, correctly coded: the network's scales and means become infinite or worse."""
    container = unpack(file)
    if container.model in FITTED:
        return b""
    top = 2 ** draw.randint(4, 31)
    rows, columns = padded_size(container.width, container.height, 6)
    with borrowed(record_of(container), container.coder) as net:
        if not hasattr(net, "h_s"):
            return b""
        size = 1, net.entropy_bottleneck.channels, rows >> 6, columns >> 6
        noise = np.random.default_rng(draw.randrange(2**32)).integers(-top, top, size)
        z = net.entropy_bottleneck.compress(torch.from_numpy(noise).float())
    y = draw.choice((container.strings[0], draw.randbytes(draw.randrange(1, 400))))
    return _repacked(container, strings=(y, z[0]))


def sealed_large(draw: random.Random, file: bytes) -> bytes:
    """The most that 2 KiB can ask for: a large image whose z is right, so that the networks run."""
    container = unpack(file)
    if container.model in FITTED:
        return b""
    total = draw.randrange(300, 2048)
    side = 1 << 6
    rows = draw.randint(1, PIXELS_PER_BYTE * total // side**2)
    columns = PIXELS_PER_BYTE * total // side**2 // rows
    coder = draw.choice(list(CODERS.values()))
    strings: tuple[bytes, ...] = ()
    with borrowed(record_of(container), coder) as net:
        if hasattr(net, "h_s"):
            bottleneck = net.entropy_bottleneck
            medians = bottleneck.quantiles[:, 0, 1].detach()[None, :, None, None]
            strings = tuple(bottleneck.compress(medians.expand(1, -1, rows, columns)))
    y = draw.randbytes(max(9, total - 80 - sum(map(len, strings))))
    if coder == "constriction-exact":
        y = b"\xe5" + y[: len(y) // 4 * 4 + 1] + b"\1"
    sizes = {"width": side * columns, "height": side * rows}
    return _repacked(container, coder=coder, strings=(y, *strings), **sizes)


def sealed_work(draw: random.Random, file: bytes) -> bytes:
    """A large C3 image, correctly coded but for the checksum; its nets are as wide as any, or allowed."""
    architecture = draw.choice(ARCHITECTURES)
    total, rows = draw.randrange(300, 2048), int(2 ** (5 + 6 * draw.random()))
    columns = PIXELS_PER_BYTE * (total - 4) // rows
    nets, grids = blank((rows, columns), architecture)
    container = container_of(nets, grids)
    return _repacked(container, checksum=container.checksum ^ 1)


def sealed_identity(draw: random.Random, file: bytes) -> bytes:
    """The strings of one model or coder for another."""
    container, other = unpack(file), unpack(draw.choice(sources_of_run))
    changes = {"coder": draw.choice(list(CODERS.values()))}
    if draw.random() < 0.7:
        for field in ("model", "quality", "weights", "shape"):
            changes[field] = getattr(other, field)
    return _repacked(container, **changes)


def sealed_bomb(draw: random.Random, file: bytes) -> bytes:
    """A profile that unpacks to 100 MiB."""
    bomb, empty = zeros_deflated()[draw.randrange(2) :], zlib.compress(b"", 9)
    body = _body(pack(dataclasses.replace(unpack(file), profile=b"", lmbda=None, steps=None)))
    length = bytes([len(bomb) & 127 | 128, len(bomb) >> 7 & 127 | 128, len(bomb) >> 14])
    at = body.index(bytes([1, 1, len(empty)]))
    return sealed(body[: at + 2] + length + body[at + 3 : -len(empty)] + bomb)


@functools.lru_cache
def zeros_deflated() -> bytes:
    """100 MiB of zeros, made in little memory."""
    packer = zlib.compressobj(9)
    return b"".join(packer.compress(bytes(2**20)) for _ in range(100)) + packer.flush()


# How often each is drawn: decoding nonsense takes a thousand times as long as a look at the CRC.
KINDS = {
    truncated: 200, flipped: 200, edited: 200, noise: 200, sealed_noise: 100, sealed_edit: 50,
    sealed_head: 40, sealed_sizes: 2, sealed_strings: 6, sealed_extreme: 1, sealed_identity: 2,
    sealed_bomb: 0.3, sealed_large: 0.5, sealed_work: 0.5,
}  # fmt: skip


def attempt(data: bytes, originals: dict) -> str:
    """What becomes of a case: "refused" or "decoded"; raises on anything else."""
    try:
        picture = decompress_picture(data)
    except BitstreamError:
        return "refused"
    container = unpack(data)
    assert picture.pixels.shape[:2] == (container.height, container.width)
    assert picture.mode == container.mode
    # Whatever is decoded has the symbols of a valid file, so that it is that file's image.
    assert (container.symbols, container.checksum) in originals, "a wrong image"
    return "decoded"


def memory_mib(field: str) -> float:
    """VmRSS: what this process holds; VmHWM: the most since `reset_peak`, or ever where there is none."""
    try:
        return int(Path("/proc/self/status").read_text().split(f"{field}:")[1].split()[0]) / 1024
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def reset_peak() -> None:
    """Start VmHWM anew, where the system (Linux) has that."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pass


sources_of_run: list[bytes] = []


def main(count: int, seed: int = 0) -> None:
    warnings.simplefilter("ignore")
    sources_of_run[:] = sources()
    originals = {(unpack(file).symbols, unpack(file).checksum): file for file in sources_of_run}
    for file in sources_of_run:
        assert attempt(file, originals) == "decoded"
    draw = random.Random(seed)
    kinds, weights = list(KINDS), list(KINDS.values())
    counts: dict[str, dict[str, int]] = collections.defaultdict(lambda: collections.defaultdict(int))
    slowest, slowest_kind = 0.0, ""
    zeros_deflated()
    at_start = memory_mib("VmRSS")
    growth = 0.0
    start = time.perf_counter()
    for _ in range(count):
        kind = draw.choices(kinds, weights)[0]
        data = kind(draw, draw.choice(sources_of_run))
        expensive = KINDS[kind] < 10
        if expensive:
            reset_peak()
            before = memory_mib("VmRSS")
        began = time.process_time()  # not the time that other processes take
        outcome = attempt(data, originals)
        took = time.process_time() - began
        if expensive:
            growth = max(growth, memory_mib("VmHWM") - before)
        if took > slowest:
            slowest, slowest_kind = took, kind.__name__
        counts[kind.__name__][outcome] += 1
    print(
        json.dumps(
            {
                "cases": count,
                "seed": seed,
                "counts": counts,
                "slowest_sec": round(slowest, 3),
                "slowest_kind": slowest_kind,
                "growth_mib": round(growth, 1),
                "kept_mib": round(memory_mib("VmRSS") - at_start, 1),
                "seconds": round(time.perf_counter() - start, 1),
            }
        )
    )


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
