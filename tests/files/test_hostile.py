# SPDX-License-Identifier: Apache-2.0
"""Claims about hostile `.csga` files: whatever the bytes, decoding ends in ``BitstreamError`` or in the
image whose symbols the file states, within a second and 64 MiB for a small file."""

from __future__ import annotations

import collections
import dataclasses
import json
import os
import signal
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch

import compressai_sga
from compressai_sga.coding import checksum
from compressai_sga.coding.container import MAGIC, checksum_of, pack, unpack
from compressai_sga.errors import BitstreamError
from compressai_sga.files import (
    Picture,
    compress_picture,
    decompress_file,
    decompress_picture,
    describe_file,
)
from compressai_sga.files.models import borrowed, record_of
from tests.files import hostile
from tests.files.hostile import FILE_KINDS, KINDS, any_latents, sources

LIMIT_SEC, LIMIT_MIB = 1.0, 64
REFUSED = {"sealed_noise", "sealed_picture", "sealed_extreme", "sealed_bomb"}
REFUSED |= {"sealed_large", "sealed_work", "sealed_empty"}


def run(*arguments: object) -> dict:
    """What `hostile.py` reports."""
    program, root = Path(__file__).with_name("hostile.py"), Path(compressai_sga.__file__).parents[1]
    done = subprocess.run(
        [sys.executable, str(program), *map(str, arguments)],
        stdout=subprocess.PIPE,
        text=True,
        # The package under test, even where one is installed, which has fewer weights.
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(root)},
    )
    report = json.loads(done.stdout)
    assert done.returncode == 0 and not report["failures"], report["failures"]
    return report


def check(report: dict) -> None:
    found: dict[str, collections.Counter] = collections.defaultdict(collections.Counter)
    for kinds in report["counts"].values():
        for kind, outcomes in kinds.items():
            found[kind].update(outcomes)
    assert sum(outcomes.total() for outcomes in found.values()) == report["cases"]
    assert set(found) == {kind.__name__ for kind in KINDS}
    for kind in FILE_KINDS:
        if not kind.__name__.startswith("sealed") or kind.__name__ in REFUSED:
            assert set(found[kind.__name__]) == {"refused"}, kind
    assert max(report["slowest_sec"].values()) < LIMIT_SEC
    assert max(report["growth_mib"].values()) < LIMIT_MIB
    assert report["kept_mib"] < 3 * LIMIT_MIB


def test_thousands_of_cases(tmp_path):
    """In two goes, the second of which goes on behind the first."""
    run(1000, 0, tmp_path / "report.json")
    report = run(4500, 0, tmp_path / "report.json")
    check(report)
    assert json.loads((tmp_path / "report.json").read_text()) == report


def test_what_ends_otherwise_is_reported(monkeypatch):
    """An exception of another kind, a crash, a hang: by their numbers, and the other cases are tried."""

    def spin() -> str:
        while True:
            pass

    def case(draw):
        return hostile.Case("m", ends.get(current[-1], lambda: "decoded"))

    def numbered(seed, number, report):
        current.append(number)
        real(seed, number, report)

    ends = {3: lambda: [][0], 5: lambda: os.kill(os.getpid(), signal.SIGKILL), 6: spin}
    current, real = [], hostile.run_case
    monkeypatch.setattr(hostile, "KINDS", {case: 100})
    monkeypatch.setattr(hostile, "FILE_KINDS", {})
    monkeypatch.setattr(hostile, "HANG_SEC", 1)
    monkeypatch.setattr(hostile, "run_case", numbered)
    report = hostile.run_slice(0, range(2, 9))
    assert report["cases"] == 7 and report["counts"] == {"m": {"case": {"decoded": 4, "failed": 1}}}
    for failure, start in zip(
        report["failures"], ("case 3, case, m: IndexError", "case 5 ended its process with -9", "case 6")
    ):
        assert failure.startswith(start)
    assert len(report["failures"]) == 3 and "with -24" in report["failures"][2]


@pytest.mark.slow
def test_a_million_cases():
    check(run(1_000_000, 1))


@pytest.fixture(scope="module")
def small() -> bytes:
    return sources()[0]


def test_truncation_at_every_byte(small):
    for length in range(len(small)):
        with pytest.raises(BitstreamError):
            decompress_picture(small[:length])


def test_every_single_bit_flip(small):
    for bit in range(8 * len(small)):
        data = bytearray(small)
        data[bit // 8] ^= 1 << bit % 8
        with pytest.raises(BitstreamError):
            decompress_picture(bytes(data))


def test_every_single_bit_flip_of_the_symbols_under_a_correct_crc(small):
    """Damage that the file's CRC does not see; the few flips that give the same symbols may pass."""
    container = unpack(small)
    expected = decompress_picture(small)
    flips = passed = 0
    for i, string in enumerate(container.strings):
        for bit in range(0, 8 * len(string), 13):
            data = bytearray(string)
            data[bit // 8] ^= 1 << bit % 8
            strings = [*container.strings[:i], bytes(data), *container.strings[i + 1 :]]
            flips += 1
            try:
                picture = decompress_picture(pack(dataclasses.replace(container, strings=tuple(strings))))
            except BitstreamError:
                continue
            passed += 1
            assert np.array_equal(picture.pixels, expected.pixels)
    assert flips > 80 and passed <= 2


def test_symbols_are_checked_before_the_image_is_computed(small, monkeypatch):
    container = unpack(small)
    with borrowed(record_of(container), container.coder) as model:
        net = model  # the same for every file
    ran = []
    monkeypatch.setattr(net.g_s, "forward", lambda y_hat: ran.append(1))
    for change in (
        {"checksum": container.checksum ^ 1},
        {"symbols": container.symbols + 1},
        {"strings": container.strings[:1] * 2},
        {"strings": (b"\xe5abcd", container.strings[1])},
    ):
        with pytest.raises(BitstreamError):
            decompress_picture(pack(dataclasses.replace(container, **change)))
    assert not ran
    monkeypatch.undo()
    decompress_picture(small)
    assert not net.g_s._forward_pre_hooks


def test_latents_that_overflow_the_network_are_refused(small):
    """Correctly coded, with the right checksum, by somebody who means harm."""
    container = unpack(small)
    with borrowed(record_of(container), container.coder) as net, torch.no_grad():
        z = net.entropy_bottleneck.compress(torch.zeros(1, net.entropy_bottleneck.channels, 1, 1))
        scales, means = net.h_s(net.entropy_bottleneck.decompress(z, (1, 1))).chunk(2, 1)
        indexes = net.gaussian_conditional.build_indexes(scales)
        signs = torch.randn(means.shape, generator=torch.Generator().manual_seed(0)).sign()
        with any_latents():
            y = net.gaussian_conditional.compress(1e9 * signs, indexes, means=means)
        with checksum.record() as symbols, pytest.raises(BitstreamError):
            strings = (y[0], z[0])
            decompress_picture(pack(dataclasses.replace(container, strings=strings)))
    true = dataclasses.replace(container, strings=strings, symbols=symbols.symbols)
    true = dataclasses.replace(true, checksum=checksum_of(true, symbols.crc32))
    with pytest.raises(BitstreamError, match="not a number in places"):
        decompress_picture(pack(true))


def test_strings_of_another_layout_are_refused(small):
    container = unpack(small)
    for change in ({"strings": container.strings[:1]}, {"shape": 4}, {"shape": [6]}, {"shape": (64, 6)}):
        with pytest.raises(BitstreamError, match="are not what mbt2018-mean-small makes"):
            decompress_picture(pack(dataclasses.replace(container, **change)))
    with pytest.raises(BitstreamError, match="stride 7"):
        decompress_picture(pack(dataclasses.replace(container, stride=7, shape=6)))


def test_a_large_file_of_something_else_is_not_read(tmp_path):
    path = tmp_path / "film.csga"
    with open(path, "wb") as file:
        file.truncate(2**40)  # takes no space on the disk
    with pytest.raises(BitstreamError, match="starts with 00000000"):
        decompress_file(path, tmp_path / "out.png")
    with open(path, "r+b") as file:
        file.write(MAGIC)
    with pytest.raises(BitstreamError, match="has 1099511627776 bytes, a .csga file has at most"):
        decompress_file(path, tmp_path / "out.png")
    path.write_bytes(MAGIC)
    with pytest.raises(BitstreamError, match="film.csga: version needs 1 bytes"):
        decompress_file(path, tmp_path / "out.png")


def test_reading_a_small_file_takes_little_memory(small, tmp_path):
    path = tmp_path / "small.csga"
    path.write_bytes(small)
    tracemalloc.start()
    assert describe_file(path).file_bytes == len(small)
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()


def test_a_constant_image_needs_no_filling():
    pixels = np.full((512, 512, 3), 128, np.uint8)
    data, _ = compress_picture(Picture(pixels), quality=1)
    assert 512 * 512 / len(data) < 300
    big = dataclasses.replace(unpack(data), width=4096, height=4096)
    assert unpack(pack(big)) == big
