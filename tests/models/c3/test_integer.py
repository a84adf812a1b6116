# SPDX-License-Identifier: Apache-2.0
"""Claims of models/c3/integer.py: the integer net computes what its definition says, that is what the float
net computes up to rounding, and no weights that pass its checks can leave 32 bits."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from compressai_sga.errors import SgaError
from compressai_sga.models.c3.integer import (
    AccumulationError,
    IntegerLayer,
    IntegerNet,
    gelu_rest,
    quantise,
)
from tests.models.c3.random_nets import NETS, random_net


def inputs(net: IntegerNet, count: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    limit = net.clamp * 256
    small = np.rint(rng.laplace(size=(net.width, count)) * 300)
    small[:, ::7] = rng.integers(-limit, limit + 1, small[:, ::7].shape)
    return np.clip(small, -limit, limit)


def by_definition(net: IntegerNet, column: list[int]) -> tuple[int, int]:
    """Plain Python integers, and the check that no partial sum leaves 32 bits."""
    rest = [int(r) for r in gelu_rest()]
    h = column
    for i, layer in enumerate(net.layers):
        last = i == len(net.layers) - 1
        if last and net.skip:
            h = h + column
        sums = []
        for weights, bias in zip(layer.weight.tolist(), layer.bias.tolist()):
            total = bias
            for w, x in zip(weights, h):
                total += w * x
                assert -(2**31) <= total < 2**31 and abs(w) < 2**15 and abs(x) < 2**15
            sums.append(total)
        if last:
            break
        p = layer.shift
        h = [min(max((a + (1 << p >> 1)) >> p, -32767), 32767) for a in sums]
        if layer.activation == "relu":
            h = [max(a, 0) for a in h]
        elif layer.activation == "gelu":
            h = [max(a, 0) - rest[min(abs(a), len(rest) - 1)] for a in h]
    p = net.layers[-1].shift
    location = (sums[0] + (1 << (p + 2) >> 1)) >> (p + 2)
    scale = ((sums[1] + (1 << (p + 5) >> 1)) >> (p + 5)) + 40
    return min(max(location, -32767 * 64), 32767 * 64), min(max(scale, 0), 100)


@pytest.mark.parametrize("name", NETS)
def test_forward_is_the_definition(name):
    net = random_net(5, 24, **NETS[name])
    x = inputs(net, 60)
    location, scale = net.forward(x)
    expected = [by_definition(net, [int(v) for v in column]) for column in x.T]
    assert list(zip(location.tolist(), scale.tolist())) == expected


@pytest.mark.parametrize("activation", ["gelu", "relu"])
@pytest.mark.parametrize("skip", [False, True])
def test_close_to_the_float_net(activation, skip):
    """Hidden values have steps of 1/256, outputs of 1/64 pixel and 1/8 octave."""
    rng = np.random.default_rng(2)
    weights = [rng.normal(size=s) / np.sqrt(s[1]) for s in ((18, 24), (18, 18), (2, 18))]
    biases = [rng.normal(size=n) / 4 for n in (18, 18, 2)]
    extra = rng.normal(size=(2, 24)) / 10
    shifts = {"weight_shifts": [10, 11, 12], "bias_shifts": [12, 12, 12]}
    net = IntegerNet.from_float(
        weights,
        biases,
        **shifts,
        activation=activation,
        residual=[False, True, False],
        skip=extra if skip else None,
        skip_shift=12,
        clamp=15,
    )
    x = np.clip(np.rint(rng.laplace(size=(24, 2000))), -15, 15)
    act = torch.nn.functional.gelu if activation == "gelu" else torch.relu
    w = [torch.tensor(quantise(a, p) / 2.0**p) for a, p in zip(weights, shifts["weight_shifts"])]
    b = [torch.tensor(quantise(a, 12) / 2.0**12)[:, None] for a in biases]
    h = act(w[0] @ torch.tensor(x) + b[0])
    h = act(w[1] @ h + b[1] + h)
    out = (w[2] @ h + b[2]).numpy()
    if skip:
        out += quantise(extra, 12) / 2.0**12 @ x
    location, scale = net.forward(x * 256)
    assert np.abs(location / 64 - out[0]).max() < 0.5 / 64 + 0.03
    assert np.abs((scale - 40) / 8 - out[1])[np.abs(out[1]) < 5].max() < 0.5 / 8 + 0.03


def test_gelu_rest():
    rest = gelu_rest()
    h = torch.arange(-2000, 2000, dtype=torch.float64) / 256
    exact = torch.nn.functional.gelu(h).numpy() * 256
    at = np.minimum(np.abs(np.arange(-2000, 2000)), len(rest) - 1)
    assert np.abs(np.maximum(h.numpy() * 256, 0) - rest[at] - exact).max() <= 0.5 + 1e-9
    assert rest[0] == 0 and rest[-1] == 0 and rest[-2] == 1 and len(rest) == 830


def test_residual_and_skip_are_folded_weights():
    rng = np.random.default_rng(0)
    w = [quantise(rng.normal(size=s) / 5, 9) for s in ((4, 6), (4, 4), (2, 4))]
    b = [quantise(rng.normal(size=n), 9) for n in (4, 4, 2)]
    skip = quantise(rng.normal(size=(2, 6)), 11)
    common = {"bias_shifts": [9, 9, 9], "activation": "relu", "clamp": 20}
    net = IntegerNet.from_integers(
        w, b, weight_shifts=[9, 9, 9], residual=[False, True, False], skip=skip, skip_shift=11, **common
    )
    assert np.array_equal(net.layers[1].weight, w[1] + 512 * np.eye(4))
    assert net.layers[2].shift == 11  # the finer one, so that both are whole
    assert np.array_equal(net.layers[2].weight, np.concatenate([4 * w[2], skip], axis=1))
    assert np.array_equal(net.layers[2].bias, b[2] << (11 + 8 - 9))


def test_sums_that_could_leave_32_bits_are_refused():
    """The largest weight that passes, with the worst inputs, stays below 2^31; one more is refused."""

    def layer(weight: int) -> IntegerLayer:
        matrix = np.full((2, 9), 7281)  # 9 * 7281 * 32512 = 2130446848
        matrix[1, 0] = weight
        return IntegerLayer(matrix.astype(np.int32), np.array([0, -1000], np.int32), 4, "none")

    fits = (2**31 - 1 - 1000 - 128 - 8 * 7281 * 127 * 256) // (127 * 256)
    net = IntegerNet([layer(fits)], clamp=127)
    worst = np.full((9, 1), -127.0 * 256)
    assert by_definition(net, [int(v) for v in worst[:, 0]]) == tuple(int(v[0]) for v in net.forward(worst))
    with pytest.raises(AccumulationError, match=r"layer 0 of 1: .* below 2\^31; take a coarser"):
        IntegerNet([layer(fits + 1)], clamp=127)
    IntegerNet([layer(fits + 1)], clamp=126)  # the cure
    assert issubclass(AccumulationError, SgaError) and issubclass(AccumulationError, ValueError)


def test_every_layer_is_checked():
    rng = np.random.default_rng(0)
    shapes = ((18, 24), (18, 18), (2, 18))
    for bad in range(3):
        weights = [rng.normal(size=s) / 10 for s in shapes]
        weights[bad] *= 40
        with pytest.raises(AccumulationError, match=f"layer {bad}"):
            IntegerNet.from_float(
                weights, [np.zeros(s[0]) for s in shapes], weight_shifts=[12] * 3, bias_shifts=[12] * 3
            )
    with pytest.raises(AccumulationError, match="layer 0: a weight of 40000"):
        IntegerNet.from_integers(
            [np.full((2, 1), 40000)], [np.zeros(2)], weight_shifts=[3], bias_shifts=[3], clamp=1
        )
    with pytest.raises(AccumulationError, match="a bias of"):
        IntegerNet.from_integers(
            [np.ones((2, 1))], [np.full(2, 1 << 30)], weight_shifts=[3], bias_shifts=[3], clamp=1
        )


def test_wrong_arguments():
    w, b = [np.ones((2, 3))], [np.zeros(2)]
    good = {"weight_shifts": [8], "bias_shifts": [8]}
    IntegerNet.from_integers(w, b, **good)
    for weights, biases, changes in (
        (w, b, {"weight_shifts": [15]}),
        (w, b, {"bias_shifts": [17]}),
        (w, b, {"weight_shifts": []}),
        (w, b, {"clamp": 128}),
        (w, b, {"clamp": 0}),
        (w, b, {"residual": [True]}),
        (w, b, {"skip": np.ones((2, 3))}),
        (w, [np.zeros(3)], {}),
        ([np.ones((3, 3))], [np.zeros(3)], {}),
        ([np.ones((2, 129))], b, {}),
        (
            [np.ones((4, 3)), np.ones((2, 3))],
            [np.zeros(4), b[0]],
            {"weight_shifts": [8] * 2, "bias_shifts": [8] * 2},
        ),
    ):
        with pytest.raises(ValueError) as error:
            IntegerNet.from_integers(weights, biases, **{**good, **changes})
        assert not isinstance(error.value, AccumulationError)
