# SPDX-License-Identifier: Apache-2.0
"""Claims of models/c3/{weights,steps}.py: nets are coded exactly, at their estimated length; steps are a
good choice; damage is found."""

from __future__ import annotations

import dataclasses
import math
import zlib

import numpy as np
import pytest
import torch

from compressai_sga.errors import BitstreamError
from compressai_sga.models.c3.config import KNOWN, PRESETS, Architecture, layout
from compressai_sga.models.c3.fit import weight_quantisation as steps
from compressai_sga.models.c3.fit.loop import Fit
from compressai_sga.models.c3.weights import (
    Nets,
    _best_scale,
    _value_bits,
    array_bits,
    decode_nets,
    encode_nets,
    neighbour_bits,
)
from tests.models.c3.c3_pictures import natural

OTHER = Architecture(
    grids=16,
    first=15,
    context=4,
    entropy_hidden=(5, 128, 5),
    entropy_activation="relu",
    entropy_residual=True,
    upsampling="learned",
    synthesis_hidden=(),
    synthesis_skip=True,
    refinements=0,
    refinement_activation="none",
)


def random_nets(architecture: Architecture = KNOWN[2], *, spread: float = 3.0, seed: int = 0) -> Nets:
    rng = np.random.default_rng(seed)
    specs = layout(architecture)
    integers = tuple(np.rint(rng.laplace(size=s.shape) * spread).astype(np.int64) for s in specs)
    shifts = tuple(int(i) for i in rng.integers(0, 15, len(specs)))
    return Nets(architecture, (300, 70000 % 32768), 127, integers, shifts)


def same(a: Nets, b: Nets) -> bool:
    return (a.architecture, a.size, a.clamp, a.shifts) == (b.architecture, b.size, b.clamp, b.shifts) and all(
        np.array_equal(x, y) for x, y in zip(a.integers, b.integers, strict=True)
    )


@pytest.mark.parametrize("spread", [0.0, 0.1, 3.0, 300.0, 1e5, 3e7])
@pytest.mark.parametrize("architecture", [*KNOWN, OTHER], ids=["paper", "clic", "ours", "other"])
def test_nets_come_back(architecture, spread):
    nets = random_nets(architecture, spread=spread)
    data = encode_nets(nets)
    assert same(decode_nets(data), nets)
    estimate = sum(array_bits(k) for k in nets.integers)
    assert -1 <= 8 * len(data) - estimate - 8 * len(header(data)) <= 16 + 24


def header(data: bytes) -> bytes:
    from compressai_sga.models.c3.weights import _read_header

    return data[: _read_header(data)[4]]


def test_outliers_are_coded():
    nets = random_nets()
    arrays = [k.copy() for k in nets.integers]
    arrays[0][0, 0], arrays[0][1, 1], arrays[1][0] = 200000, -200001, -7000
    nets = dataclasses.replace(nets, integers=tuple(arrays))
    assert same(decode_nets(encode_nets(nets)), nets)


def test_length_is_the_entropy_of_laplace_laws():
    """0.5 % above -log2 of the best Laplace law on 20 000 values, at any scale."""
    rng = np.random.default_rng(0)
    for scale in (0.3, 1.0, 7.0, 200.0, 5000.0):
        values = np.rint(rng.laplace(size=20000) * scale).astype(np.int64)
        counts = np.unique(values, return_counts=True)[1] / len(values)
        if scale < 10:
            entropy = -(counts * np.log2(counts)).sum() * len(values)
        else:
            entropy = len(values) * np.log2(2 * np.e * scale)
        assert array_bits(values) == pytest.approx(entropy, rel=0.01)


def test_known_architecture_takes_two_bytes_and_the_header_eight_or_so():
    assert len(header(encode_nets(random_nets(KNOWN[0])))) == 1 + 2 + 2 + 1 + 2
    assert len(header(encode_nets(random_nets(OTHER)))) == 1 + 2 + 2 + 1 + 6 + 3


def test_golden_bytes():
    data = encode_nets(random_nets())
    assert (len(data), zlib.crc32(data)) == GOLDEN


GOLDEN = (689, 3848385823)


def test_damage_is_found():
    data = encode_nets(random_nets())
    rng = np.random.default_rng(0)
    for _ in range(150):
        damaged = bytearray(data)
        for at in rng.integers(0, len(data), rng.integers(1, 4)):
            damaged[at] ^= int(rng.integers(1, 256))
        if bytes(damaged) != data:
            with pytest.raises(BitstreamError):
                decode_nets(bytes(damaged))
    for length in range(0, len(data), 13):
        with pytest.raises(BitstreamError):
            decode_nets(data[:length])
    with pytest.raises(BitstreamError):
        decode_nets(data + b"\1")
    for _ in range(150):
        with pytest.raises(BitstreamError):
            decode_nets(data[: len(header(data))] + rng.bytes(int(rng.integers(0, 400))))
        with pytest.raises(BitstreamError):
            decode_nets(b"\1" + rng.bytes(int(rng.integers(0, 60))))


def test_what_cannot_be_coded_is_refused():
    nets = random_nets()
    for wrong in (
        {"size": (0, 5)},
        {"size": (5, 40000)},
        {"clamp": 128},
        {"shifts": (21,) * len(nets.shifts)},
    ):
        with pytest.raises(ValueError):
            encode_nets(dataclasses.replace(nets, **wrong))
    with pytest.raises(ValueError):
        encode_nets(dataclasses.replace(nets, integers=(nets.integers[1], *nets.integers[1:])))


# --- Steps ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def fitted() -> Fit:
    fit = Fit(natural(40, 56, batch=2), PRESETS["c3-fast"], torch.tensor([4e-3, 4e-4]), steps=60)
    fit.run()
    fit.take_best()
    return fit


@torch.no_grad()
def cost(fit: Fit, nets: list[Nets]) -> np.ndarray:
    """mse + lmbda * all bits / px with the rounded nets, without the search's shortcuts."""
    search, found = steps._Search(fit), []
    for i, n in enumerate(nets):
        arrays = {k: torch.from_numpy(v)[None].repeat_interleave(2, 0) for k, v in n.arrays().items()}
        loss = search.error(arrays) + search.rate(arrays)
        bases = [None if n.start is None else n.start.at(j, shift) for j, shift in enumerate(n.shifts)]
        bits = sum(array_bits(k, base) for k, base in zip(n.integers, bases))
        found.append(float(loss[i] + fit.lmbda[i] * bits / search.px))
    return np.array(found)


@torch.no_grad()
def uniform(fit: Fit, shift: int) -> list[Nets]:
    """The nets with one step for all arrays."""
    search = steps._Search(fit)
    for i, spec in enumerate(search.specs):
        search.shifts[spec.name] = torch.full((2,), shift)
        search.rounded[spec.name] = search._round(i, search.shifts[spec.name], torch.zeros(2))
    return [search.nets(i, fit.plane_hat()) for i in range(2)]


def test_search_is_better_than_any_common_step(fitted):
    found = steps.round_nets(fitted)
    costs = cost(fitted, found)
    for shift in range(2, 13):
        assert (costs < cost(fitted, uniform(fitted, shift))).all(), shift
    for nets in found:
        nets.entropy()
    assert found[0].shifts != found[1].shifts  # ten times the lmbda: coarser


@pytest.mark.parametrize("backend", ["auto", "torch"])
def test_single_weights_move_by_one_step_and_only_for_the_better(fitted, backend):
    fit = fitted
    if backend == "torch":
        fit = Fit(fitted.x, fitted.preset, fitted.lmbda, steps=60, backend="torch")
        with torch.no_grad():
            fit.plane.copy_(fitted.plane)
            fit.nets.copy_(fitted.nets)
    with torch.no_grad():
        search = steps._Search(fit)
        search.each()
        plane = fit.plane_hat()
        before = [search.nets(i, plane) for i in range(2)]
        search.singles()
        after = [search.nets(i, plane) for i in range(2)]
    costs, gain = cost(fit, after), cost(fit, before) - cost(fit, after)
    assert (gain >= -1e-6 * costs).all() and (gain > 2e-3 * costs).any()
    for old, new in zip(before, after):
        moves = np.concatenate([(a - b).ravel() for a, b in zip(new.integers, old.integers)])
        assert old.shifts == new.shifts and np.abs(moves).max() <= 1
        assert np.abs(moves).sum() < len(moves) / 4


@torch.no_grad()
def test_the_promise_of_a_move_is_the_derivative_of_its_cost(fitted):
    """Central differences of the latents' and image's cost; the bits of a move are counted exactly."""
    search = steps._Search(fitted)
    index = next(i for i, spec in enumerate(search.specs) if spec.name == "entropy.skip")
    name = search.specs[index].name
    promise, count = search._promise(index), math.prod(search.specs[index].shape)
    bits = [
        neighbour_bits(k, search._base(index, i, search.shifts[name]))
        for i, k in enumerate(steps._integers(search.rounded[name], search.shifts[name]))
    ]
    for place in (0, 7, count - 1):
        ends = []
        for part in (1 / 16, -1 / 16):
            moved = search.rounded[name].clone()
            moved.flatten(1)[:, place] += part / 2**8
            ends.append(search.rate({**search.rounded, name: moved}).double())
        slope = ((ends[0] - ends[1]) * 8).tolist()
        for image in range(2):
            rate = float(fitted.lmbda[image]) / search.px * bits[image]
            assert float(promise[image, place]) == pytest.approx(
                rate[0, place] - slope[image], rel=0.05, abs=1e-7
            )
            assert float(promise[image, count + place]) == pytest.approx(
                rate[1, place] + slope[image], rel=0.05, abs=1e-7
            )


def test_bits_of_a_move_are_those_of_the_values():
    draws = np.random.default_rng(0)
    base = draws.integers(-9, 10, 40)
    for values in (base + draws.integers(-1, 2, 40), draws.integers(-300, 301, 40)):
        form = min((values, values - base), key=lambda f: _best_scale(f)[1])
        scale, bits = _best_scale(form)
        found = neighbour_bits(values, base)
        for place in (0, 17):
            for way, move in enumerate((-1, 1)):
                moved = form.copy()
                moved[place] += move
                assert found[way, place] == pytest.approx(_value_bits(moved, scale).sum() - bits)


def test_papers_search_is_the_best_of_its_pairs(fitted):
    shared = dataclasses.replace(fitted.settings, step_search="shared")
    settings, fitted.settings = fitted.settings, shared
    try:
        found = steps.round_nets(fitted)
    finally:
        fitted.settings = settings
    costs = cost(fitted, found)
    for shift in steps._SHARED:
        assert (costs <= cost(fitted, uniform(fitted, shift)) + 1e-9).all()
    assert (cost(fitted, steps.round_nets(fitted)) < costs).all()  # ours is better


def test_nets_that_would_overflow_get_coarser_steps(fitted):
    nets = steps.round_nets(fitted)[0]
    integers = [
        k * 64 if s.name == "entropy.1.weight" else k for s, k in zip(layout(KNOWN[2]), nets.integers)
    ]
    shifts = [14 if s.name == "entropy.1.weight" else k for s, k in zip(layout(KNOWN[2]), nets.shifts)]
    integers[0] = integers[0] + 2**22
    wide = dataclasses.replace(nets, integers=tuple(integers), shifts=tuple(shifts), clamp=127)
    with pytest.raises(ValueError):
        wide.entropy()
    with pytest.raises(RuntimeError, match="diverged"):
        steps._that_fits(wide)
    shifts[0], integers[0] = 14, integers[0] // 2**7
    wide = dataclasses.replace(nets, integers=tuple(integers), shifts=tuple(shifts), clamp=127)
    with pytest.raises(ValueError):
        wide.entropy()
    steps._that_fits(wide).entropy()
