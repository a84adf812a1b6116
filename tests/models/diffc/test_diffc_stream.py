# SPDX-License-Identifier: Apache-2.0
"""The stream: every prefix gives a prefix of the numbers, and the end is as short as it can be."""

import torch

from compressai_sga.channels.index_code import IndexModel, uniform_model, zipf_model
from compressai_sga.models.diffc.stream import Reader, bits_of, to_bytes


def random_parts(seed: int) -> list:
    drawing = torch.Generator().manual_seed(seed)

    def integer(low: int, high: int) -> int:
        return int(torch.randint(low, high, (1,), generator=drawing))

    parts = []
    for _ in range(integer(1, 6)):
        bits = integer(1, 14)
        model = uniform_model(2**bits) if bits % 2 else zipf_model(bits, 2 ** (bits + 2))
        parts.append((torch.randint(0, model.support, (integer(1, 9),), generator=drawing), model))
    return parts


def read(data: bytes, parts: list) -> int:
    """How many parts the bytes determine; those are checked."""
    reader = Reader(data)
    for count, (numbers, model) in enumerate(parts):
        taken = reader.take(len(numbers), model)
        if taken is None:
            return count
        assert torch.equal(taken, numbers)
    return len(parts)


def test_prefixes_give_prefixes():
    for seed in range(30):
        parts = random_parts(seed)
        data = to_bytes(parts)
        counts = [read(data[:length], parts) for length in range(len(data) + 1)]
        assert counts == sorted(counts) and counts[-1] == len(parts)
        assert counts[-2] < len(parts)  # not a byte too many
        assert read(data + b"\x00\xff\x37", parts) == len(parts)


def test_the_end_costs_a_few_bits():
    excess = [8 * len(to_bytes(parts)) - bits_of(parts) for parts in map(random_parts, range(100))]
    assert min(excess) > -1e-3 and max(excess) < 16 and sum(excess) / len(excess) < 6


def test_a_part_is_determined_soon_after_its_last_bit():
    # The interval of a number may straddle the border of two bytes, one time in 256 of three.
    numbers = torch.randint(0, 256, (60, 1), generator=torch.Generator().manual_seed(1))
    parts = [(number, uniform_model(256)) for number in numbers]
    data = to_bytes(parts)
    late = [count - read(data[:count], parts) for count in range(60)]
    assert max(late) <= 2 and sum(late) / 60 <= 1.1


def test_parts_that_say_nothing_take_no_bytes():
    assert to_bytes([(torch.zeros(4, dtype=torch.int64), IndexModel((0, 1), (1,)))]) == b""
    assert Reader(b"").take(3, uniform_model(1)).tolist() == [0, 0, 0]
    assert Reader(b"").take(1, uniform_model(2)) is None


def test_bytes_that_are_no_stream_are_read_without_end_of_time():
    reader, model = Reader(b"\xff" * 50), zipf_model(8.0, 2**10)
    taken = 0
    while reader.take(1, model) is not None:
        taken += 1
    assert taken < 400
