# SPDX-License-Identifier: Apache-2.0
"""Claims of models/c3/{weights,steps}.py: nets are coded exactly, at their estimated length; steps are a
good choice; damage is found."""

from __future__ import annotations

import dataclasses
import zlib

import numpy as np
import pytest
import torch

from compressai_sga.errors import BitstreamError
from compressai_sga.models.c3.config import KNOWN, PRESETS, Architecture, layout
from compressai_sga.models.c3.fit import weight_quantisation as steps
from compressai_sga.models.c3.fit.loop import Fit
from compressai_sga.models.c3.weights import Nets, array_bits, decode_nets, encode_nets
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
