# SPDX-License-Identifier: Apache-2.0
"""Claims of coding/container.py and sizes.py: the bytes are those of the specification, every field
comes back, everything else is refused by ``BitstreamError`` that names the place, in little memory."""

from __future__ import annotations

import dataclasses
import random
import struct
import tracemalloc
import zlib

import pytest
from compressai.ops import compute_padding

from compressai_sga.coding.container import (
    CODERS,
    MAGIC,
    MAX_PROFILE_BYTES,
    MAX_SIDE_PX,
    PIXELS_PER_BYTE,
    Container,
    checksum_of,
    pack,
    part_bytes,
    unpack,
    unpack_cut,
)
from compressai_sga.coding.sizes import expand_shape, padded_size, padding, reduce_shape
from compressai_sga.errors import BitstreamError

SMALL = Container(
    model="m-1",
    quality=3,
    metric="mse",
    weights=bytes(range(8)),
    coder="constriction-range",
    width=130,
    height=7,
    mode="RGB",
    stride=6,
    shape=6,
    symbols=300,
    checksum=0x01020304,
    strings=(b"yyyyy", b"z"),
)
# The same by hand, from the specification; the CRC-32 of everything before comes behind it.
SMALL_BYTES = bytes.fromhex(
    "ca534741 02 29"  # magic, version, rest
    "03 6d2d31 03 00 0001020304050607 02"  # model, quality, metric, weights, coder
    "8201 07 03 06 06"  # width, height, mode, stride, shape
    "ac02 04030201"  # symbols, checksum
    "02 05 01 00"  # strings, extras
    "7979797979 7a"
)
SHAPES = (0, 6, (96, 4), [6, (3, 2)], {"y": [(4, 4), (8, 4)], "hyper": 6}, [[[0]]])


def sealed(body: bytes, version: int = 2) -> bytes:
    """A file of any content, with correct length and CRC."""
    rest, length = len(body) + 4, bytearray()
    while rest > 127:
        length.append(rest & 127 | 128)
        rest >>= 7
    data = MAGIC + bytes([version, *length, rest]) + body
    return data + struct.pack("<I", zlib.crc32(data))


BODY = SMALL_BYTES[6:]  # between the length and the CRC


def refused(data: bytes, match: str) -> None:
    with pytest.raises(BitstreamError, match=match) as error:
        unpack(data)
    assert "byte " in str(error.value)


def test_bytes_are_those_of_the_specification():
    data = SMALL_BYTES + struct.pack("<I", zlib.crc32(SMALL_BYTES))
    assert pack(SMALL) == data == sealed(BODY)
    assert unpack(data) == SMALL
    assert part_bytes(data) == {"string 0": 5, "string 1": 1, "header": len(data) - 6}


@pytest.mark.parametrize(
    "change",
    [
        *({"shape": shape} for shape in SHAPES),
        *({"coder": coder} for coder in CODERS.values()),
        {"mode": "L", "metric": "ms-ssim", "quality": 255, "width": 1, "height": 1, "stride": 8},
        {"strings": (), "symbols": 0, "checksum": 2**32 - 1},
        {"strings": tuple(bytes([i % 251]) * (i % 3) for i in range(65535)), "symbols": 2**40},
        {"profile": b""},
        {"profile": random.Random(0).randbytes(MAX_PROFILE_BYTES)},
        {"strings": (bytes(200_000), b""), "width": 3000, "height": 5000},
    ],
    ids=lambda change: ",".join(change),
)
def test_every_field_comes_back(change):
    container = dataclasses.replace(SMALL, **change)
    assert unpack(pack(container)) == container


def test_overhead_of_the_default_model_is_60_bytes():
    container = dataclasses.replace(
        SMALL,
        model="mbt2018-mean-small",
        width=256,
        height=256,
        symbols=25_600,
        strings=(bytes(5000), bytes(50)),
    )
    assert len(pack(container)) == 5050 + 60


@pytest.mark.parametrize(
    "change",
    [
        {"model": ""},
        {"model": "a" * 65},
        {"model": "a/b"},
        {"model": "ü"},
        {"quality": 256},
        {"quality": -1},
        {"metric": "lpips"},
        {"weights": b"1234567"},
        {"coder": "ans"},
        {"width": 0},
        {"height": MAX_SIDE_PX + 1},
        {"mode": "RGBA"},
        {"stride": 9},
        {"shape": 7},
        {"shape": (0, 4)},
        {"shape": [[[[0]]]]},
        {"shape": {"name with spaces": 0}},
        {"symbols": 2**40 + 1},
        {"checksum": 2**32},
        {"strings": (b"",) * 65536},
        {"profile": bytes(MAX_PROFILE_BYTES + 1)},
    ],
    ids=str,
)
def test_beyond_its_limit_nothing_is_written(change):
    with pytest.raises((ValueError, struct.error)):
        pack(dataclasses.replace(SMALL, **change))


def test_truncation_at_every_byte():
    data = pack(dataclasses.replace(SMALL, strings=(bytes(200), bytes(30)), profile=bytes(99)))
    for length in range(len(data)):
        refused(data[:length], "cut off|starts with|needs 1 bytes")
    refused(data + b"\0", "1 bytes too many")


def test_every_single_bit_flip():
    data = pack(dataclasses.replace(SMALL, strings=(bytes(200), bytes(30)), profile=bytes(99)))
    for bit in range(8 * len(data)):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        refused(bytes(damaged), "")


@pytest.mark.parametrize(
    ("old", "new", "match"),
    [  # a part of BODY, what takes its place under a correct CRC, and the answer
        ("036d2d31", "00", "length of model is 0"),
        ("036d2d31", "416d2d31", "length of model is 65"),
        ("036d2d31", "036d0031", r"model is 'm\\x001'"),
        ("0300000102", "800200000102", "quality is 256"),
        ("0300000102", "0302000102", "metric is 2, which this version does not know"),
        ("060702", "060700", "coder is 0"),
        ("8201", "00", "width is 0"),
        ("8201", "82818001", "width is 2097282, beyond its limits 1 to 1048576"),
        ("8201", "ffffffffffffff7f", "width is a number of more than 7 bytes"),
        ("820107", "82010780", "mode is 128"),
        ("820107", "82018700", "height is a number that is not in its shortest form"),
        ("820107", "8201ffff3f", "image of 130x1048575 pixels, padded to 192x1048576, does not fit"),
        ("07030606", "07020606", "mode is 2"),
        ("07030606", "07030906", "stride is 9, beyond its limits 0 to 8"),
        ("07030606", "07030607", "halvings is 7, beyond its limits 0 to 6"),
        ("07030606", "0703061600", "channels is 0"),
        ("07030606", "070306168120", "channels is 4097"),
        ("07030606", "07030620", "starts with 0x20, which means nothing"),
        ("07030606", "07030640", "starts with 0x40, which means nothing"),
        ("07030606", "070306ff", "starts with 0xff, which means nothing"),
        ("07030606", "0703062121212100", "nested more than 3 times"),
        ("07030606", "070306420161000161 00", "a name twice"),
        ("07030606", "070306410000", "length of name in shape is 0"),
        ("ac0204030201", "ffffffffff7f04030201", "symbols is"),
        ("02050100", "80800402", "strings is 65536"),
        ("02050100", "ff0105", "strings: 255 are announced"),
        ("02050100", "02060100", "7 bytes are announced where there are 6"),
        ("02050100", "02040100", "5 bytes are announced where there are 6"),
        ("02050100", "02050111", "extras is 17"),
        ("02050100", "0204010105010078", "extra 5 is not one that this version can decode"),
        ("02050100", "020401020101000120", "extra is 0, beyond its limits 2"),
        ("02050100", "020401010001", "filling is not zero"),
        ("02050100", "020301010102", "ICC profile is no zlib stream"),
    ],
)  # fmt: skip
def test_a_correct_crc_does_not_help_a_wrong_field(old, new, match):
    assert BODY.hex().count(old) == 1
    refused(sealed(bytes.fromhex(BODY.hex().replace(old, new))), match)


def test_what_else_is_no_file_of_ours():
    refused(b"", "it starts with nothing")
    refused(b"\x89PNG\r\n\x1a\n", "it starts with 89504e47")
    refused(MAGIC, "version needs 1 bytes where 0 are left")
    for version in (0, 3):
        refused(sealed(BODY, version), f"version {version} of the format is not one of 1, 2")
    refused(MAGIC + b"\x01\xff\xff\xff\xff\x7f", "rest is 34359738367")
    refused(MAGIC + b"\x01\x03abc", "rest is 3")


def test_optional_extras_of_later_versions_are_skipped():
    body = BODY[: BODY.index(b"\x02\x05\x01\x00")] + b"\x02\x05\x01\x01\xc8\x03" + b"yyyyyzXYZ"
    assert unpack(sealed(body)) == SMALL
    assert part_bytes(sealed(body))["other"] == 3


def test_a_rate_and_how_an_image_was_fitted():
    """Decoding needs the rate, so that a reader that does not know it refuses the file; how C3 was fitted it
    does not need."""
    rate = dataclasses.replace(SMALL, lmbda=0.01)
    fit = dataclasses.replace(SMALL, lmbda=4e-3, steps=300)
    assert len(pack(rate)) == len(pack(SMALL)) + 10 and len(pack(fit)) == len(pack(SMALL)) + 12
    assert len(pack(dataclasses.replace(SMALL, steps=100))) == len(pack(SMALL)) + 3
    for container in (rate, fit, dataclasses.replace(SMALL, steps=300, profile=b"profile")):
        assert unpack(pack(container)) == container
        assert part_bytes(pack(container)).keys() <= {"string 0", "string 1", "profile", "header"}
    start = BODY[: BODY.index(b"\x02\x05\x01\x00")] + b"\x02\x05\x01\x01"
    number = struct.pack("<d", 0.01)
    for extra, match in (
        (b"\x02\x07yyyyyz" + number[:7], "lmbda needs 8 bytes where 7 are left"),
        (b"\x02\x09yyyyyz" + number + b"1", "extra 2 has 1 bytes too many"),
        (b"\x02\x08yyyyyz" + struct.pack("<d", -1), "lmbda is -1.0, it must be positive"),
        (b"\x02\x08yyyyyz" + struct.pack("<d", float("nan")), "lmbda is nan"),
        (b"\x80\x01yyyyyz\x00", "steps is 0, beyond its limits 1"),
        (b"\x80\x03yyyyyz\x01ab", "lmbda needs 8 bytes where 2 are left"),
    ):
        refused(sealed(start + extra), match)


def test_a_profile_that_unpacks_without_end_is_refused_in_little_memory():
    bomb = zlib.compress(bytes(200 * 2**20), 9)
    content = b"\x02\x05\x01\x01\x01" + bytes([len(bomb) & 127 | 128, len(bomb) >> 7 & 127 | 128])
    body = BODY[: BODY.index(b"\x02\x05\x01\x00")] + content + bytes([len(bomb) >> 14]) + b"yyyyyz" + bomb
    data = sealed(body)
    tracemalloc.start()
    refused(data, "ICC profile has more than its limit")
    assert tracemalloc.get_traced_memory()[1] < 8 * 2**20
    tracemalloc.stop()
    whole = zlib.compress(b"profile")
    for profile in (whole[:-1], whole + b"more"):
        head = BODY[: BODY.index(b"\x02\x05\x01\x00")] + b"\x02\x05\x01\x01\x01"
        refused(sealed(head + bytes([len(profile)]) + b"yyyyyz" + profile), "does not end where")


def test_pixels_are_bounded_by_bytes():
    sky = dataclasses.replace(SMALL, width=4096, height=4096, strings=(b"y", b"z"))
    data = pack(sky)
    assert len(data) in range(32768, 32768 + 8) and unpack(data) == sky
    assert part_bytes(data)["filling"] > 32_000
    strip = dataclasses.replace(SMALL, width=1, height=MAX_SIDE_PX)  # padded to 64 columns
    assert len(pack(strip)) * PIXELS_PER_BYTE >= 64 * MAX_SIDE_PX
    body = BODY.replace(b"\x82\x01\x07", b"\x80\x20\x80\x20")
    refused(sealed(body), "image of 4096x4096 pixels, padded to 4096x4096, does not fit a file of 4")


def test_a_cut_file_gives_what_is_there_of_its_strings():
    whole = dataclasses.replace(SMALL, strings=(bytes(range(1, 40)),), profile=b"p" * 50)
    data = pack(whole)
    start = data.index(whole.strings[0])
    for length in range(len(data)):
        if length < start:
            with pytest.raises(BitstreamError, match="byte "):
                unpack_cut(data[:length])
        else:
            string = whole.strings[0][: length - start]
            wanted = dataclasses.replace(whole, strings=(string,), profile=None)
            assert unpack_cut(data[:length]) == wanted
    assert unpack_cut(data) == whole
    with pytest.raises(BitstreamError, match="damaged"):
        unpack_cut(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(BitstreamError, match="do not make|announced where there are"):
        unpack_cut((data[: start - 1] + b"\x01" + data[start:])[:-1])


def test_the_pixels_of_a_cut_file_are_bounded_by_the_bytes_that_are_there():
    """Its length is what the file says of itself."""
    whole = dataclasses.replace(SMALL, width=1024, height=1024, strings=(bytes(4000),))
    data = pack(whole)
    assert unpack_cut(data[:128]).width == 1024
    with pytest.raises(BitstreamError, match="of whose file 127 bytes are there: at most 8192 pixels a byte"):
        unpack_cut(data[:127])


def test_the_checksum_of_version_2_knows_the_picture():
    """The specification's bytes, by hand; version 1 has the coded integers alone."""
    head = BODY[: BODY.index(bytes.fromhex("04030201"))]
    symbols = zlib.crc32(b"integers")
    assert checksum_of(SMALL, symbols) == zlib.crc32(b"integers" + head)
    with_profile = dataclasses.replace(SMALL, profile=b"icc")
    assert checksum_of(with_profile, symbols) == zlib.crc32(b"integers" + head + b"\x01icc")
    others = [{"width": 131}, {"height": 8}, {"mode": "L"}, {"profile": b""}, {"stride": 7}, {"symbols": 301}]
    others += [{"model": "m-2"}, {"quality": 4}, {"metric": "ms-ssim"}, {"weights": bytes(8)}, {"shape": 5}]
    made = [checksum_of(dataclasses.replace(SMALL, **change), symbols) for change in [{}, *others]]
    assert len(set(made)) == len(made)
    first = dataclasses.replace(SMALL, version=1)
    assert unpack(sealed(BODY, 1)) == first and pack(first) == sealed(BODY, 1)
    assert checksum_of(first, symbols) == symbols


def test_random_bytes_under_a_correct_crc_are_refused_or_have_one_meaning():
    draw = random.Random(1)
    accepted = 0
    for _ in range(20_000):
        body = bytearray(BODY)
        for _ in range(draw.randint(1, 3)):
            body[draw.randrange(len(body))] = draw.randrange(256)
        data = sealed(bytes(body))
        try:
            container = unpack(data)
        except BitstreamError:
            continue
        accepted += 1
        assert pack(container) == data
    assert 2000 < accepted < 18_000  # names, sizes, checksums and strings may be anything


@pytest.mark.parametrize("stride", [0, 4, 6])
def test_padding_is_that_of_compressai(stride):
    for width, height in ((1, 1), (63, 64), (65, 127), (500, 333)):
        pad, _ = compute_padding(height, width, min_div=2**stride)
        assert padding(width, height, stride) == tuple(pad)
        left, right, top, bottom = pad
        assert padded_size(width, height, stride) == (height + top + bottom, width + left + right)


def test_shapes_come_back_and_others_are_refused():
    padded = (192, 128)
    for shape in (
        (3, 2),
        (192, 128),
        {"y": [(96, 12, 8), (4, 12, 8)], "hyper": (3, 2)},
    ):
        assert expand_shape(reduce_shape(shape, padded, 6), padded) == shape
    for shape in ((3, 3), (1, 1), (2, 96, 12, 8)):
        with pytest.raises(ValueError, match="halved 0 to 6 times"):
            reduce_shape(shape, padded, 6)
