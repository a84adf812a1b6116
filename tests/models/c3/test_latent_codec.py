# SPDX-License-Identifier: Apache-2.0
"""Claims of models/c3/latent_codec.py: what is encoded is decoded, in a fresh process too; the bytes
are those that the estimate says and those of every version; other bytes are refused."""

from __future__ import annotations

import json
import time
import zlib

import numpy as np
import pytest

from compressai_sga.coding import checksum
from compressai_sga.errors import BitstreamError
from compressai_sga.models.c3.contexts import C3, Context, grid_sizes
from compressai_sga.models.c3.integer import IntegerNet
from compressai_sga.models.c3.latent_codec import bits_of, decode_latents, encode_latents, predict
from tests.models.c3.random_nets import CONTEXTS, NETS, laplace, random_net

SIZES = [(1, 1), (1, 2), (2, 1), (3, 5), (16, 16), (45, 70)]


def same(a: list[np.ndarray], b: list[np.ndarray]) -> bool:
    return len(a) == len(b) and all(x.dtype == y.dtype and np.array_equal(x, y) for x, y in zip(a, b))


@pytest.mark.parametrize("name", CONTEXTS)
@pytest.mark.parametrize("size", SIZES)
def test_round_trip_in_python(name, size):
    context = CONTEXTS[name]
    sizes = grid_sizes(*size)
    grids = laplace(size[0], sizes)
    net = random_net(1, context.width)
    data = encode_latents(grids, net, context, backend="python")
    assert same(decode_latents(data, sizes, net, context, backend="python"), grids)
    bits = sum(bits_of(grids, net, context))
    assert bits < 8 * len(data) < bits + 16 + 32


@pytest.mark.parametrize("name", NETS)
def test_every_kind_of_net(name):
    sizes = grid_sizes(21, 34)
    grids = laplace(8, sizes)
    nets = [random_net(i, 24, **NETS[name]) for i in range(7)]  # one for each grid
    data = encode_latents(grids, nets, C3, backend="python")
    assert same(decode_latents(data, sizes, nets, C3, backend="python"), grids)
    assert sum(bits_of(grids, nets, C3)) < 8 * len(data) < sum(bits_of(grids, nets, C3)) + 48


def test_size_is_that_of_the_probabilities():
    """Against probabilities computed from the net's outputs in floating point: 0.2 % at 100 x 150."""
    sizes = grid_sizes(100, 150)
    grids = laplace(4, sizes, 0.9)
    net = random_net(3, 24, scale=1.0)
    total = 0.0
    for index, grid in enumerate(grids):
        location, scale = predict(grids, net, C3, index)
        b = 2.0 ** ((scale - 40) / 8)

        def below(x: np.ndarray, b: np.ndarray = b) -> np.ndarray:
            side = 0.5 * np.exp(-np.abs(x) / b)
            return np.where(x < 0, side, 1 - side)

        x = grid.ravel() - location / 64
        total -= np.log2(below(x + 0.5) - below(x - 0.5)).sum()
    real = 8 * len(encode_latents(grids, net, C3))
    assert abs(real / total - 1) < 0.002


@pytest.mark.parametrize("extreme", [32767, -32767, 40, -40])
def test_escapes(extreme):
    """Latents far from everything, several in a front, in every grid: exact, and at a price near log2."""
    sizes = grid_sizes(12, 18)
    grids = laplace(0, sizes, 0.4)
    for grid in grids:
        grid[:: max(1, len(grid) // 3), -1] = extreme
        grid[0, 0] = -extreme
    net = random_net(2, 24, scale=0.4)
    data = encode_latents(grids, net, C3)
    assert same(decode_latents(data, sizes, net, C3, backend="python"), grids)
    bits = sum(bits_of(grids, net, C3))
    assert bits < 8 * len(data) < bits + 48


def test_constant_latents_are_almost_free():
    sizes = grid_sizes(64, 96)
    grids = [np.zeros(size, np.int32) for size in sizes]
    net = random_net(0, 24, scale=2.0**-5, spread=0.0)
    assert len(encode_latents(grids, net, C3)) <= 6


GOLDEN_BYTES = (91, 0xAC72708D)
GOLDEN_START = "da4c979bcd2a75c1fb83d6fed77db447"


def golden() -> tuple[list[np.ndarray], IntegerNet, Context]:
    """Integers by rule: no generator of random numbers, no float."""
    context = CONTEXTS["coarser"]
    sizes = grid_sizes(9, 14, 3)
    grids = []
    for i, (height, width) in enumerate(sizes):
        y, x = np.mgrid[:height, :width]
        grids.append(((y * y * 3 + x * 5 + y * x + i) % 7 - 3).astype(np.int32) * (1 + i))
    grids[0][4, 7] = 3000
    row = np.arange(context.width)
    first = (row * 7919 + np.arange(6)[:, None] * 104729) % 401 - 200
    last = (np.arange(6) * 31 + np.array([[3], [8]])) % 300 - 150
    net = IntegerNet.from_integers(
        [first, last],
        [np.arange(6) * 50 - 100, np.array([20, 300])],
        weight_shifts=[11, 10],
        bias_shifts=[9, 8],
        skip=(row * 37 + np.array([[0], [11]])) % 50 - 25,
        skip_shift=9,
        clamp=40,
    )
    return grids, net, context


def test_golden_bytes():
    grids, net, context = golden()
    data = encode_latents(grids, net, context)
    assert (len(data), zlib.crc32(data)) == GOLDEN_BYTES, data.hex()
    assert data[:16].hex() == GOLDEN_START
    assert same(decode_latents(data, [grid.shape for grid in grids], net, context), grids)


def test_fresh_process_with_other_threads(python):
    """From bytes and the net's integers alone, with four threads."""
    net = random_net(9, 24)
    sizes = grid_sizes(45, 70)
    grids = laplace(9, sizes)
    layers = [(la.weight.tolist(), la.bias.tolist(), la.shift, la.activation) for la in net.layers]
    message = json.dumps([encode_latents(grids, net, C3).hex(), sizes, layers, net.clamp])
    program = """
import json, sys, zlib
import numpy as np
from compressai_sga.models.c3.contexts import C3
from compressai_sga.models.c3.integer import IntegerLayer, IntegerNet
from compressai_sga.models.c3.latent_codec import decode_latents
data, sizes, layers, clamp = json.load(sys.stdin)
made = [IntegerLayer(np.array(w, np.int32), np.array(b, np.int32), p, a) for w, b, p, a in layers]
for backend in ("auto", "python"):
    grids = decode_latents(bytes.fromhex(data), sizes, IntegerNet(made, clamp), C3, backend=backend)
    print(zlib.crc32(b"".join(grid.tobytes() for grid in grids)))
"""
    done = python("-c", program, input=message, OMP_NUM_THREADS="4")
    expected = zlib.crc32(b"".join(grid.tobytes() for grid in grids))
    assert done.stdout.split() == [str(expected)] * 2, done.stderr


def test_checksum_of_the_symbols():
    net, sizes = random_net(0, 24), grid_sizes(5, 6)
    grids = laplace(1, sizes)
    with checksum.record() as written:
        data = encode_latents(grids, net, C3)
    with checksum.record() as read:
        decode_latents(data, sizes, net, C3)
    assert written.crc32 == read.crc32 and written.symbols == read.symbols == sum(g.size for g in grids)


# --- Hostile input -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stream() -> tuple:
    net, sizes = random_net(6, 24), grid_sizes(13, 17)
    grids = laplace(6, sizes)
    return encode_latents(grids, net, C3), sizes, net, grids


BACKENDS = ["auto", "python"]


@pytest.mark.parametrize("backend", BACKENDS)
def test_truncated(stream, backend):
    data, sizes, net, _ = stream
    for length in range(len(data)):
        with pytest.raises(BitstreamError, match="latents"):
            decode_latents(data[:length], sizes, net, C3, backend=backend)
    for more in (b"\0", b"\1", b"\0\0\0\1", bytes(range(1, 40))):
        with pytest.raises(BitstreamError):
            decode_latents(data + more, sizes, net, C3, backend=backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_damaged(stream, backend):
    """A change passes with a probability of 2^-16; one of these 60, with 0.001."""
    data, sizes, net, _ = stream
    rng = np.random.default_rng(0)
    for _ in range(60):
        changed = bytearray(data)
        changed[rng.integers(len(data))] ^= int(rng.integers(1, 256))
        with pytest.raises(BitstreamError):
            decode_latents(bytes(changed), sizes, net, C3, backend=backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_garbage(stream, backend):
    _, sizes, net, _ = stream
    rng = np.random.default_rng(1)
    for length in [0, 1, 2, 3, 4, 5, 8, 12, 100, 5000] * 5:
        with pytest.raises(BitstreamError):
            decode_latents(rng.bytes(length), sizes, net, C3, backend=backend)
    for byte in (0, 1, 255):
        with pytest.raises(BitstreamError):
            decode_latents(bytes([byte]) * 400, sizes, net, C3, backend=backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_other_net_size_or_context(stream, backend):
    data, sizes, net, _ = stream
    with pytest.raises(BitstreamError):
        decode_latents(data, sizes, random_net(7, 24), C3, backend=backend)
    with pytest.raises(BitstreamError):
        decode_latents(data, sizes[:-1], net, C3, backend=backend)
    with pytest.raises(BitstreamError):
        decode_latents(data, grid_sizes(14, 17), net, C3, backend=backend)


def test_a_short_stream_of_a_large_image_is_found_early():
    """By its length, before anything is allocated; or where it ends, before the large grids."""
    net = random_net(6, 24)
    start = time.thread_time()
    for backend in BACKENDS:
        with pytest.raises(BitstreamError, match="too few for"):
            decode_latents(b"\xff" * 1000, grid_sizes(32768, 32768), net, C3, backend=backend)
        with pytest.raises(BitstreamError, match="ends too early"):
            decode_latents(bytes(range(1, 201)), grid_sizes(2048, 4096), net, C3, backend=backend)
    assert time.thread_time() - start < 2


def test_no_honest_stream_is_too_short():
    """The surest values that there are, as many as leave the state free and more."""
    net = random_net(0, 24, scale=2.0**-5, spread=0.0)
    for side in (1, 200, 700):
        grids = [np.zeros((side, side), np.int32)]
        data = encode_latents(grids, net, C3)
        assert same(decode_latents(data, [(side, side)], net, C3), grids)


def test_wrong_arguments(stream):
    data, sizes, net, grids = stream
    with pytest.raises(ValueError, match="int64"):
        encode_latents([grid.astype(np.int64) for grid in grids], net, C3)
    with pytest.raises(ValueError, match="32768"):
        encode_latents([np.full((2, 2), -32768, np.int32)], net, C3)
    with pytest.raises(ValueError, match="33"):
        encode_latents(grids, net, CONTEXTS["c3-finer"])
    with pytest.raises(ValueError, match="half"):
        decode_latents(data, [(4, 4), (3, 2)], random_net(0, 33), CONTEXTS["c3-finer"])
    with pytest.raises(ValueError, match="2 nets"):
        decode_latents(data, sizes, [net, net], C3)
    with pytest.raises(ValueError, match="backend"):
        decode_latents(data, sizes, net, C3, backend="gpu")
    with pytest.raises(ValueError, match="bytes"):
        decode_latents("latents", sizes, net, C3)
    for size in ((0, 5), (5, 40000), (5,)):
        with pytest.raises(ValueError):
            decode_latents(data, [size], net, C3)
