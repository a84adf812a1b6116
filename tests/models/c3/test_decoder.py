# SPDX-License-Identifier: Apache-2.0
"""Claims of models/c3/_decoder.cpp: the symbols of the Python decoder, word for word, with and without AVX2;
no stream and no argument leads it astray. Skipped where the extension was not built."""

from __future__ import annotations

import time

import numpy as np
import pytest

from compressai_sga.errors import BitstreamError
from compressai_sga.models.c3 import native as module
from compressai_sga.models.c3.contexts import C3, grid_sizes
from compressai_sga.models.c3.latent_codec import bits_of, decode_latents, encode_latents
from tests.models.c3.random_nets import CONTEXTS, NETS, laplace, random_net

if not module.AVAILABLE:
    pytest.skip("the C++ extension was not built (no compiler?)", allow_module_level=True)
native = module._native


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("name", CONTEXTS)
def test_same_symbols_as_python(name, net):
    """Bytes of both encoders are equal; all decoders give the latents. Sizes with few and many fronts."""
    context = CONTEXTS[name]
    entropy = random_net(3, context.width, **NETS[net])
    for seed, size in enumerate([(1, 1), (1, 33), (33, 1), (70, 45), (9, 40)]):
        sizes = grid_sizes(*size)
        grids = laplace(seed, sizes)
        grids[0][-1, -1] = 500
        data = encode_latents(grids, entropy, context, backend="python")
        bits = bits_of(grids, entropy, context, backend="python")
        for backend in ("native", "portable"):
            assert encode_latents(grids, entropy, context, backend=backend) == data
            assert np.allclose(bits_of(grids, entropy, context, backend=backend), bits, rtol=1e-12)
        for backend in ("native", "portable"):
            decoded = decode_latents(data, sizes, entropy, context, backend=backend)
            assert all(np.array_equal(a, b) for a, b in zip(grids, decoded))


def test_same_verdict_on_damaged_streams():
    """Where bytes are damaged, all decoders go astray in the same way: the same last state or refusal."""
    context, sizes = CONTEXTS["coarser"], grid_sizes(11, 9, 4)
    net = random_net(0, context.width, **NETS["relu residual skip"])
    data = encode_latents(laplace(0, sizes), net, context)
    rng = np.random.default_rng(3)
    for _ in range(40):
        changed = bytearray(data)
        changed[rng.integers(len(data))] ^= int(rng.integers(1, 256))
        messages = set()
        for backend in ("native", "portable", "python"):
            with pytest.raises(BitstreamError) as error:
                decode_latents(bytes(changed), sizes, net, context, backend=backend)
            messages.add("checksum" in str(error.value) or "goes on" in str(error.value))
        assert len(messages) == 1


def test_hostile_streams_take_no_longer_than_others():
    """Work is bounded by the sizes: garbage that decodes to the end, at most 20 times an honest stream."""
    sizes = grid_sizes(128, 128)
    net = random_net(1, 24)
    grids = laplace(0, sizes)
    data = encode_latents(grids, net, C3)
    times = {}
    for name, candidate in {"honest": data, "garbage": np.random.default_rng(0).bytes(1 << 20)}.items():
        start = time.thread_time()
        try:
            decode_latents(candidate, sizes, net, C3)
        except BitstreamError:
            pass
        times[name] = time.thread_time() - start
    assert times["garbage"] < 20 * times["honest"] + 0.1


def layer(outputs: int, inputs: int, weight: int = 5, shift: int = 8, activation: int = 1) -> tuple:
    return np.full((outputs, inputs), weight, np.int32), np.zeros(outputs, np.int32), shift, activation


@pytest.mark.parametrize(
    "layers",
    [
        [],
        [layer(3, 24)],
        [layer(18, 24), layer(2, 17)],
        [layer(2, 24, weight=32768)],
        [layer(2, 24, weight=-32768)],
        [layer(2, 24, weight=32767)],  # the sums
        [layer(2, 24, shift=15)],
        [layer(2, 24, shift=-1)],
        [layer(2, 24, activation=3)],
        [layer(2, 129)],
        [layer(129, 24), layer(2, 129)],
        [layer(24, 24)] * 8 + [layer(2, 24)],
        [(np.zeros(24, np.int32), np.zeros(2, np.int32), 8, 1)],
        [(np.zeros((2, 24), np.int32), np.zeros(3, np.int32), 8, 1)],
        [(np.zeros((2, 24), np.int32), np.full(2, -(2**31)), 8, 1)],
        [(np.zeros((2, 0), np.int32), np.zeros(2, np.int32), 8, 1)],
    ],
)
def test_nets_that_it_refuses(layers):
    with pytest.raises(ValueError, match="net: "):
        native.Net(layers, 127, False)


def test_other_arguments_that_it_refuses():
    good = native.Net([layer(2, 24)], 127, False)
    context = native.Context(list(C3.own), [], 0, 4)
    tables = module._tables()
    native.Net([layer(8, 24), layer(2, 32)], 127, True)
    for arguments in (([layer(2, 24)], 128, False), ([layer(2, 24)], 0, False), ([layer(2, 24)], 5, True)):
        with pytest.raises(ValueError, match="net: "):
            native.Net(*arguments)
    for arguments in (
        (list(C3.own), [], 0, 3),  # the slope is too small
        (list(C3.own), [], 0, 9),
        ([(0, 0)], [], 0, 4),
        ([(0, 1)], [], 0, 4),
        ([(1, -7)], [], 0, 4),
        ([(-8, 0)], [], 0, 4),
        ([(-1, -8)], [], 0, 4),
        ([(0, -1)], [(0, 8)], 1, 4),
        ([(0, -1)], [(0, -(2**31))], 1, 4),  # whose absolute value is no int
        ([(0, -1)], [(-(2**31), 0)], 1, 4),
        ([(0, -(2**31))], [], 0, 4),
        ([(0, -1)], [(0, 0)], 0, 4),
        ([(0, -1)], [(0, 0)], 3, 4),
        ([], [], 0, 4),
    ):
        with pytest.raises(ValueError, match="context: "):
            native.Context(*arguments)
    for arguments in (
        (b"\1", [(0, 1)], [good], context),
        (b"\1", [(1, 40000)], [good], context),
        (b"\1", [(4, 4)], [good, good], context),
        (b"\1", [], [], context),
        (b"\1", [(4, 4)], [native.Net([layer(2, 23)], 127, False)], context),
        (
            b"\1",
            [(4, 4), (3, 2)],
            [native.Net([layer(2, 2)], 127, False)] * 2,
            native.Context([(0, -1)], [(0, 0)], 1, 1),
        ),
        (b"\1", [(4, 4)], [None], context),
    ):
        with pytest.raises((ValueError, TypeError)):
            native.decode(*arguments, tables, False)
    with pytest.raises(native.Damaged):
        native.decode(b"", [(4, 4)], [good], context, tables, False)
    for grids, nets in (
        ([np.full((2, 2), 32768)], [good]),
        ([np.zeros(4, np.int32)], [good]),
        ([np.zeros((2, 2), np.int32)], [good, good]),
        ([np.zeros((0, 2), np.int32)], [good]),
        ([np.zeros((2, 2), np.int32)], [None]),
        ([], []),
    ):
        with pytest.raises(ValueError):
            native.encode(grids, nets, context, tables, 1, True, False)


def test_tables_that_it_refuses():
    cdf = np.array([0, 5, 2**24, 0, 2**23, 2**24], np.uint32)

    def make(**changes):
        arguments = {
            "cdf": cdf,
            "start": [0, 3],
            "counts": [2, 2],
            "first": [0, 0],
            "base": np.zeros(101, np.int32),
            "fraction_bits": np.zeros(101, np.int32),
            "escape_row": 0,
            "coin_row": 1,
            "gelu_rest": [0],
        }
        return native.Tables(*{**arguments, **changes}.values())

    make()
    for changes in (
        {"start": [0, 4]},
        {"start": [-1, 3]},
        {"counts": [1, 2]},
        {"counts": [3, 2]},
        {"cdf": cdf[::-1].copy()},
        {"cdf": np.array([0, 0, 2**24, 0, 2**23, 2**24], np.uint32)},
        {"base": np.full(101, 2)},
        {"base": np.full(101, -1)},
        {"fraction_bits": np.full(101, 2)},
        {"fraction_bits": np.full(101, 7)},
        {"base": np.zeros(100, np.int32)},
        {"escape_row": 2},
        {"coin_row": -1},
        {"gelu_rest": []},
        {"first": [1 << 30, 0]},
    ):
        with pytest.raises(ValueError, match="tables: "):
            make(**changes)
