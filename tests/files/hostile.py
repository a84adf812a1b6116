# SPDX-License-Identifier: Apache-2.0
"""Hostile files and strings, and a program that tries them; the tests run it in a process of its own.

    python -m tests.files.hostile 5000 [SEED [FILE]]     # prints a JSON object
    python -m tests.files.hostile 1000000 1 attack.json  # keeps it in FILE as well, and goes on from there

A case follows from the seed and its number alone. Its kind is one of KINDS: damaged `.csga` files, most of
which end at the CRC while the others carry a correct one; first bytes of DiffC's files; strings that are
given to the `decompress` of a model of each family; damaged checkpoints of a fit of C3. Each thousand runs in
a process of its own, so that a crash, a hang or a want of memory ends no more than that.

Out: by model and kind, how many were refused by ``BitstreamError`` (checkpoints: ``ValueError``) and how many
were decoded: of files, only such whose picture is that of a valid file. By model, the slowest case in seconds
of computing, and by how much memory grew at most during one of those that reach a network, in MiB; by kind,
all seconds of computing. `failures` names every case that ended otherwise; then the exit code is 1.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import mmap
import os
import pickle
import random
import resource
import struct
import sys
import tempfile
import time
import traceback
import warnings
import zlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from compressai.registry import MODELS
from torch import nn

import compressai_sga
from compressai_sga import zoo
from compressai_sga.coding.container import (
    CODERS,
    MAGIC,
    PIXELS_PER_BYTE,
    Container,
    checksum_of,
    pack,
    unpack,
)
from compressai_sga.coding.sizes import padded_size
from compressai_sga.errors import BitstreamError
from compressai_sga.files import Picture, compress_picture, decompress_picture, models
from compressai_sga.files.models import borrowed, record_of
from compressai_sga.models.c3 import ARCHITECTURES as FITTED
from compressai_sga.models.c3.config import KNOWN, PRESETS, Architecture
from compressai_sga.models.c3.fit.checkpoint import Checkpoint
from compressai_sga.models.c3.fit.loop import Fit
from compressai_sga.models.diffc import ARCHITECTURES as SENT
from tests.files.c3_files import blank, container_of

SOURCES = (  # model, quality, coder, height, width
    ("mbt2018-mean-small", 3, "constriction-exact", 40, 60),
    ("mbt2018-mean-small", 3, "constriction-ans", 70, 20),
    ("bmshj2018-factorized-small", 1, "constriction-range", 5, 5),
    ("mbt2018-small", 3, "constriction-range", 16, 64),
    ("mbt2018-mean-uq-small", 1, "constriction-exact", 33, 50),
    ("hfd-small", 1, "constriction-exact", 20, 30),
    ("c3-fast", 4, None, 40, 44),
    ("c3-paper", 2, None, 9, 70),
    ("diffc-f-small", None, None, 64, 72),
)
UNTRAINED = {"bmshj2018-hyperprior": (8, 12), "cheng2020-anchor": (8,), "elic2022-gdn": ()}
OTHER_KINDS = frozenset(FITTED) | {f"{name}-small" for name in SENT}  # their symbols are no latents
SLICE = 1000
HANG_SEC = 60  # of computing
MOST_MIB = 1024  # of memory, beyond what a process begins with
FAILURES = 20  # that are reported
ARCHITECTURES = (  # of C3: a preset's, what is just allowed, what is not
    *KNOWN,
    Architecture(entropy_hidden=(44, 24), synthesis_hidden=(24, 24)),
    Architecture(context=2, entropy_hidden=(8,), synthesis_hidden=(48, 48)),
    Architecture(grids=16, first=3, context=3, entropy_hidden=(128,) * 7, synthesis_hidden=()),
    Architecture(grids=16, first=15, upsampling="learned", entropy_hidden=(4,), synthesis_skip=True),
    Architecture(entropy_hidden=(128,) * 7, synthesis_hidden=(128,) * 7, refinements=15),
)


def sealed(body: bytes, version: int = 2) -> bytes:
    """A file of any content, with correct length and CRC."""
    rest, length = len(body) + 4, bytearray()
    while rest > 127:
        length.append(rest & 127 | 128)
        rest >>= 7
    data = MAGIC + bytes([version, *length, rest]) + body
    return data + struct.pack("<I", zlib.crc32(data))


def sources() -> list[bytes]:
    """Small valid files."""
    draw = np.random.default_rng(0)
    files = []
    for model, quality, coder, height, width in SOURCES:
        pixels = np.kron(draw.integers(0, 256, (height, width, 1)), np.ones((1, 1, 3))).astype(np.uint8)
        options = {"model": model, "quality": quality, "coder": coder}
        if model in FITTED:
            options["steps"] = 3
        if quality is None:
            options["bpp"] = 0.05
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
    start = MAGIC + bytes([draw.randint(1, 2)]) if draw.random() < 0.7 else b""
    return start + draw.randbytes(draw.randrange(400))


def sealed_noise(draw: random.Random, file: bytes) -> bytes:
    return sealed(draw.randbytes(draw.randrange(400)), draw.randint(1, 2))


def sealed_edit(draw: random.Random, file: bytes) -> bytes:
    return sealed(changed(draw, _body(file)), draw.choice((1, 2, 2, 2)))


def sealed_head(draw: random.Random, file: bytes) -> bytes:
    body = bytearray(_body(file))
    for _ in range(draw.randint(1, 3)):
        body[draw.randrange(min(60, len(body)))] = draw.randrange(256)
    return sealed(bytes(body))


def _repacked(container: Container, **changes) -> bytes:
    try:
        return pack(dataclasses.replace(container, **changes))
    except ValueError:
        return b""


def sealed_picture(draw: random.Random, file: bytes) -> bytes:
    """The same strings as another crop, in other colours, with another profile, in the older version."""
    container = unpack(file)
    size = {side: max(1, getattr(container, side) + draw.randint(-9, 9)) for side in ("width", "height")}
    profile = draw.choice((None, draw.randbytes(draw.randrange(99))))
    changes = {**size, "mode": draw.choice(("L", "RGB")), "profile": profile, "version": draw.randint(1, 2)}
    kept = draw.sample(sorted(changes), draw.randrange(1, len(changes) + 1))
    changed_file = _repacked(container, **{name: changes[name] for name in kept})
    return changed_file if changed_file != file else b""


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


def any_latents() -> AbstractContextManager[object]:
    """An encoder that codes latents of any size, which ours refuses."""
    return mock.patch("compressai_sga.inputs.LARGEST_SYMBOL", float("inf"))


def sealed_extreme(draw: random.Random, file: bytes) -> bytes:
    """z of any size, correctly coded: the network's scales and means become infinite or worse."""
    container = unpack(file)
    if container.model in OTHER_KINDS:
        return b""
    top = 2 ** draw.randint(4, 31)
    rows, columns = padded_size(container.width, container.height, 6)
    with borrowed(record_of(container), container.coder) as net:
        net = getattr(net, "first_stage", net)
        if not hasattr(net, "h_s"):
            return b""
        size = 1, net.entropy_bottleneck.channels, rows >> 6, columns >> 6
        noise = np.random.default_rng(draw.randrange(2**32)).integers(-top, top, size)
        with any_latents():
            z = net.entropy_bottleneck.compress(torch.from_numpy(noise).float())
    y = draw.choice((container.strings[0], draw.randbytes(draw.randrange(1, 400))))
    return _repacked(container, strings=(y, z[0]))


def sealed_large(draw: random.Random, file: bytes) -> bytes:
    """The most that 2 KiB can ask for: a large image whose z is right, so that the networks run."""
    container = unpack(file)
    if container.model in OTHER_KINDS:
        return b""
    total = draw.randrange(300, 2048)
    side = 1 << 6
    rows = draw.randint(1, PIXELS_PER_BYTE * total // side**2)
    columns = PIXELS_PER_BYTE * total // side**2 // rows
    coder = draw.choice(list(CODERS.values()))
    strings: tuple[bytes, ...] = ()
    with borrowed(record_of(container), coder) as net:
        net = getattr(net, "first_stage", net)
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
    container, other = unpack(file), unpack(draw.choice(files_of_run))
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


def sealed_empty(draw: random.Random, file: bytes) -> bytes:
    """A DiffC string with the right head and nothing but random bytes behind it, for the most pixels."""
    container = unpack(draw.choice([other for other in files_of_run if unpack(other).model in OTHER_KINDS]))
    total = draw.randrange(100, 2048)
    rows = int(2 ** (6 + 4 * draw.random()))
    columns = max(8, PIXELS_PER_BYTE * total // rows)
    string = container.strings[0][: draw.randint(3, 8)] + draw.randbytes(total - 70)
    other = dataclasses.replace(container, width=columns, height=rows, strings=(string,))
    with contextlib.suppress(ValueError):
        return pack(dataclasses.replace(other, checksum=checksum_of(other, 0)))
    return b""


# --- First bytes of DiffC's files, strings for models, checkpoints of fits -------------------------


@dataclasses.dataclass(frozen=True)
class Case:
    """What is tried: the name of its model, and a function that gives "decoded", or raises."""

    model: str
    attempt: Callable[[], str]
    refusal: type[Exception] = BitstreamError


def _picture(container: Container) -> Container:
    """What says which picture a file holds: neither its strings, nor how they were found."""
    return dataclasses.replace(container, strings=(), lmbda=None, steps=None)


def decode(data: bytes) -> str:
    """A whole file; whatever is decoded is the picture of a valid file."""
    picture = decompress_picture(data, **options_of(data))
    container = unpack(data)
    assert picture.pixels.shape[:2] == (container.height, container.width)
    assert (picture.mode, picture.profile) == (container.mode, container.profile)
    assert _picture(container) in pictures_of_run, "a wrong image"
    return "decoded"


def options_of(data: bytes) -> dict[str, int]:
    """Few steps, for models that take some to decode."""
    return {"steps": 2} if b"hfd-small" in data[:30] or b"diffc-" in data[:30] else {}


def decode_start(data: bytes) -> str:
    """The first bytes of a file."""
    decompress_picture(data, max_bytes=max(1, len(data)), steps=2)
    return "decoded"


def from_file(kind: Callable[[random.Random, bytes], bytes], draw: random.Random) -> Case:
    source = draw.choice(files_of_run)
    return Case(unpack(source).model, functools.partial(decode, kind(draw, source)))


def start(draw: random.Random) -> Case:
    """The first bytes of a file, whole, with a few bytes changed, or of any size with nothing behind it."""
    source = next(file for file in files_of_run if b"diffc-" in file[:30])
    what = draw.randrange(3)
    if what == 2:
        sizes = {side: int(2 ** (14 * draw.random())) + 1 for side in ("width", "height")}
        source = _repacked(unpack(source), **sizes) or source
    source = source[: draw.randrange(1, 120)]
    return Case("diffc-f-small", functools.partial(decode_start, changed(draw, source) if what else source))


def strings(draw: random.Random) -> Case:
    """Strings of a model, damaged, without a checksum: they decode to something or are refused."""
    name, (net, coded, shape) = draw.choice(list(models_of_run().items()))
    damaged = [[damaged_string(draw, string) for string in group] for group in coded]

    def attempt() -> str:
        with torch.no_grad():
            net.decompress(damaged, shape)
        return "decoded"

    return Case(name, attempt)


def damaged_string(draw: random.Random, string: bytes) -> bytes:
    what = draw.randrange(5)
    if what == 0:
        return string
    if what == 1:
        return changed(draw, string)
    if what == 2:
        return draw.randbytes(draw.randrange(300))
    if what == 3:
        return draw.choice((b"\0", b"\xff")) * draw.randrange(300)
    return string[: draw.randrange(len(string) + 1)]


@functools.lru_cache
def models_of_run() -> dict[str, tuple[nn.Module, list[list[bytes]], object]]:
    """By name: a model with a coder of ours, strings of a small image, their shape; one of every family."""
    found = {}
    x = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    named = {model: (quality, coder) for model, quality, coder, *_ in reversed(SOURCES)}
    names = [*named, "rda-l2-small", *UNTRAINED]
    for name, coder in zip(names, 4 * list(CODERS.values())):
        if name in UNTRAINED:
            net = MODELS[name](*UNTRAINED[name]).eval()
            net.update()
        elif name in FITTED:
            net = MODELS[name](4, steps=3)
        else:
            net = zoo.load(name, named.get(name, (1,))[0] or 1)
        if name not in OTHER_KINDS:
            compressai_sga.coding.set_coder(getattr(net, "first_stage", net), coder)
        if hasattr(net, "steps") and name not in FITTED:
            net.steps = 2
        with torch.no_grad():
            out = net.compress(x)
        found[name] = net, out["strings"], out["shape"]
    return found


def checkpoint(draw: random.Random) -> Case:
    """A damaged checkpoint of a fit, which has no checksum of its own."""
    fit, whole = fit_of_run()
    data = changed(draw, whole) if draw.random() < 0.7 else whole[: draw.randrange(len(whole))]
    path = Path(tempfile.gettempdir()) / f"hostile-{os.getpid()}.fit"
    path.write_bytes(data)

    def attempt() -> str:
        try:
            Checkpoint(path, fit, 0)
        finally:
            path.unlink()
        return "decoded"

    return Case("c3-fast (fit)", attempt, ValueError)


@functools.lru_cache
def fit_of_run() -> tuple[Fit, bytes]:
    """A fit and its checkpoint."""
    x = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    fit = Fit(x, PRESETS["c3-fast"], 1e-3, steps=10)
    fit.step()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "fit"
        Checkpoint(path, fit, 0).save()
        return fit, path.read_bytes()


# How often each is drawn: decoding nonsense takes a thousand times as long as a look at the CRC.
FILE_KINDS = {
    truncated: 200, flipped: 200, edited: 200, noise: 200, sealed_noise: 100, sealed_edit: 50,
    sealed_head: 40, sealed_picture: 10, sealed_sizes: 2, sealed_strings: 6, sealed_extreme: 1,
    sealed_identity: 2, sealed_bomb: 0.3, sealed_large: 0.5, sealed_work: 0.5, sealed_empty: 0.5,
}  # fmt: skip
KINDS = {**FILE_KINDS, start: 1, strings: 10, checkpoint: 5}

files_of_run: list[bytes] = []
pictures_of_run: list[Container] = []


# --- The run ---------------------------------------------------------------------------------------


def memory_mib(field: str) -> float:
    """VmRSS: what this process holds; VmHWM: the most since `reset_peak`, or ever where there is none."""
    try:
        return int(Path("/proc/self/status").read_text().split(f"{field}:")[1].split()[0]) / 1024
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def reset_peak() -> None:
    """Start VmHWM anew, where the system (Linux) has that."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def prepare() -> None:
    """Everything that the cases of a run share."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    models._load = functools.lru_cache(maxsize=None)(models._load.__wrapped__)
    files_of_run[:] = sources()
    pictures_of_run[:] = [_picture(unpack(file)) for file in files_of_run]
    for file in files_of_run:
        assert decode(file) == "decoded"
    zeros_deflated(), models_of_run(), fit_of_run()


def empty_report(seed: int) -> dict:
    return {"cases": 0, "seed": seed, "counts": {}, "slowest_sec": {}, "growth_mib": {}, "kept_mib": 0.0,
            "seconds": {}, "failures": []}  # fmt: skip


def add(report: dict, part: dict) -> None:
    """Take the cases of `part` into a report."""
    report["cases"] += part["cases"]
    report["failures"] = (report["failures"] + part["failures"])[:FAILURES]
    report["kept_mib"] = max(report["kept_mib"], part["kept_mib"])
    for name in ("slowest_sec", "growth_mib"):
        for model, value in part[name].items():
            report[name][model] = max(report[name].get(model, 0.0), value)
    for kind, value in part["seconds"].items():
        report["seconds"][kind] = report["seconds"].get(kind, 0.0) + value
    for model, kinds in part["counts"].items():
        for kind, outcomes in kinds.items():
            counts = report["counts"].setdefault(model, {}).setdefault(kind, {})
            for outcome, count in outcomes.items():
                counts[outcome] = counts.get(outcome, 0) + count


def run_case(seed: int, number: int, report: dict) -> None:
    """Try one case and take what became of it into a report."""
    draw = random.Random(f"{seed} {number}")
    kind = draw.choices(list(KINDS), list(KINDS.values()))[0]
    name = kind.__name__
    case = from_file(kind, draw) if kind in FILE_KINDS else kind(draw)
    expensive = KINDS[kind] <= 10
    if expensive:
        reset_peak()
        before = memory_mib("VmRSS")
    began = time.process_time()  # not the time that other processes take
    try:
        outcome = case.attempt()
    except case.refusal:
        outcome = "refused"
    except Exception as error:
        outcome = "failed"
        places = traceback.extract_tb(error.__traceback__)[-1]
        text = f"{type(error).__name__}: {error} ({places.filename}:{places.lineno})"
        report["failures"].append(f"case {number}, {name}, {case.model}: {text[:500]}")
    took = time.process_time() - began
    growth = memory_mib("VmHWM") - before if expensive else 0.0
    add(
        report,
        {
            **empty_report(seed),
            "cases": 1,
            "counts": {case.model: {name: {outcome: 1}}},
            "slowest_sec": {case.model: took},
            "growth_mib": {case.model: growth},
            "seconds": {name: took},
        },
    )


def run_slice(seed: int, numbers: range) -> dict:
    """The report of some cases, tried in a fork of this process; goes on behind one that ends it."""
    report = empty_report(seed)
    at = mmap.mmap(-1, 8)
    todo = numbers
    while todo:
        read, write = os.pipe()
        child = os.fork()
        if not child:
            os.close(read)
            try:
                with open(write, "wb") as pipe:
                    pickle.dump(_tried(seed, todo, at), pipe)
                os._exit(0)
            except BaseException:  # of this program, not of a case
                traceback.print_exc()
                os._exit(1)
        os.close(write)
        with open(read, "rb") as pipe:
            data = pipe.read()
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if status == 0:
            add(report, pickle.loads(data))
            break
        number = int.from_bytes(at[:8], "little")
        before = run_slice(seed, range(todo.start, number))  # once more, for their report is lost
        before["failures"].append(
            f"case {number} ended its process with {status} (-24: after {HANG_SEC} s of computing)"
        )
        before["cases"] += 1
        add(report, before)
        todo = range(number + 1, todo.stop)
    return report


def _tried(seed: int, numbers: range, at: mmap.mmap) -> dict:
    held = int(memory_mib("VmSize") * 2**20)
    resource.setrlimit(resource.RLIMIT_AS, (held + MOST_MIB * 2**20,) * 2)
    _, most = resource.getrlimit(resource.RLIMIT_CPU)
    at_start, report = memory_mib("VmRSS"), empty_report(seed)
    for number in numbers:
        at[:8] = number.to_bytes(8, "little")
        used = int(time.process_time())
        resource.setrlimit(resource.RLIMIT_CPU, (used + HANG_SEC, most))
        run_case(seed, number, report)
    report["kept_mib"] = memory_mib("VmRSS") - at_start
    return report


def rounded(values: object) -> object:
    if isinstance(values, dict):
        return {key: rounded(value) for key, value in values.items()}
    return round(values, 3) if isinstance(values, float) else values


def main(count: int, seed: int = 0, file: str = "") -> int:
    kept = Path(file) if file else None
    report = json.loads(kept.read_text()) if kept and kept.exists() else empty_report(seed)
    if report["seed"] != seed:
        raise SystemExit(f"{file} is of seed {report['seed']}; give another file, or that seed")
    if report["cases"] < count:
        prepare()
    while report["cases"] < count:
        begin = report["cases"]
        add(report, run_slice(seed, range(begin, min(begin + SLICE, count))))
        if kept:
            temporary = kept.with_suffix(".part")
            temporary.write_text(json.dumps(rounded(report), indent=1) + "\n")
            temporary.replace(kept)
    print(json.dumps(rounded(report)))
    return 1 if report["failures"] else 0


if __name__ == "__main__":
    count, *rest = sys.argv[1:]
    sys.exit(main(int(count), *map(int, rest[:1]), *rest[1:]))
