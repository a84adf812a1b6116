# SPDX-License-Identifier: Apache-2.0
"""Claims of models/c3/network.py: the float nets are the decoder's but for rounding; learned upsampling is
what its formula says."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from compressai_sga.models.c3 import network
from compressai_sga.models.c3.config import KNOWN
from compressai_sga.models.c3.contexts import grid_sizes
from compressai_sga.models.c3.fit.grid_plane import GridPlane
from compressai_sga.models.c3.image_codec import reconstruct
from compressai_sga.models.c3.latent_codec import bits_of, predict
from compressai_sga.models.c3.tables import rows
from tests.models.c3.c3_random import LEARNED, SMALL, random_grids, random_nets, tensors


@pytest.mark.parametrize("architecture", [*KNOWN, SMALL], ids=["paper", "clic", "ours", "small"])
def test_float_entropy_net_is_the_integer_one_but_for_rounding(architecture):
    size = (21, 34)
    nets, grids = random_nets(architecture, size), random_grids(architecture, size)
    grid_plane = GridPlane(size, architecture.grids, architecture.first, architecture.taps)
    plane = grid_plane.place(grids)
    outputs = network.entropy_net(tensors(nets), network.context_of(plane, grid_plane), architecture)
    bits = network.latent_bits(grid_plane.latents(plane), outputs) * grid_plane.mask
    whole = torch.zeros(2, plane[0].numel())
    start = grid_plane.top * grid_plane.width
    whole[:, start : start + grid_plane.positions] = outputs[0]
    parts = grid_plane.grids(whole.reshape(2, *plane.shape[1:]))
    for index, part in enumerate(parts):
        location, scale = predict(grids, nets.entropy(), architecture.taps, index)
        # Hidden values have steps of 2^-8, the location of 2^-6, the scale of an eighth of an octave.
        np.testing.assert_allclose(location / 64, part[0].flatten().numpy(), atol=1 / 128 + 0.02)
        log2_scale = part[1].flatten().numpy().clip(-5, 7.5)
        np.testing.assert_allclose((scale - 40) / 8, log2_scale, atol=1 / 16 + 0.02)
    assert float(bits.sum()) == pytest.approx(
        sum(bits_of(grids, nets.entropy(), architecture.taps)), rel=5e-3
    )


@pytest.mark.parametrize("backend", ["native", "portable"])
@pytest.mark.parametrize("size", [(21, 34), (1, 1), (64, 130)])
@pytest.mark.parametrize(
    "architecture", [*KNOWN, SMALL, LEARNED], ids=["paper", "clic", "ours", "small", "learned"]
)
def test_synthesis_is_the_decoders(architecture, size, backend):
    """To 1e-5 of the values, which lie around 1; no level of an 8-bit image is off by more than 1."""
    nets, grids = random_nets(architecture, size), random_grids(architecture, size)
    found, python = (reconstruct(nets, grids, backend=name) for name in (backend, "python"))
    torch.testing.assert_close(found, python, atol=1e-5, rtol=0)
    levels, others = ((255 * image).round() for image in (found, python))
    assert float((levels - others).abs().max()) <= 1
    if size != (1, 1):
        assert 0.01 < float(((found > 0) & (found < 1)).float().mean())


def test_bits_are_those_of_the_tables():
    table = rows()
    for scale in (8, 24, 40, 56, 80):
        row, first = table.locate(np.array([0]), np.array([scale]))
        values = np.arange(table.counts[row[0]] - 1)
        k = torch.from_numpy(values + first[0]).float()
        exact = network.laplace_bits(k, torch.full_like(k, (scale - 40) / 8)).numpy()
        coded = table.bits[table.start[row[0]] + values]
        likely = exact < 12
        np.testing.assert_allclose(coded[likely], exact[likely], atol=0.02)


def test_probabilities_sum_to_one_and_nothing_is_infinite():
    k = torch.arange(-3000.0, 3001.0)
    for log2_scale in (-5.0, -2.0, 0.0, 3.0, 7.5):
        for location in (0.0, 0.3, 0.5):
            bits = network.laplace_bits(k - location, torch.full_like(k, log2_scale))
            assert torch.isfinite(bits).all()
            assert float(torch.exp2(-bits.double()).sum()) == pytest.approx(1, abs=1e-4)


def test_gradients_are_finite_and_right_also_at_the_seams():
    at = torch.tensor([0.0, 0.5, -0.5, 0.49999, 1.0, 100.0], dtype=torch.float64)
    for log2_scale in (-5.0, 0.0, 7.5):
        d = at.clone().requires_grad_()
        s = torch.full_like(at, log2_scale).requires_grad_()
        bits = network.laplace_bits(d, s)
        by_d, by_s = torch.autograd.grad(bits.sum(), (d, s))
        assert torch.isfinite(by_d).all() and torch.isfinite(by_s).all()
        step = 1e-6
        with torch.no_grad():
            slope = (network.laplace_bits(d + step, s) - network.laplace_bits(d - step, s)) / (2 * step)
        smooth = (at.abs() - 0.5).abs() > 1e-3
        smooth[0] = True
        torch.testing.assert_close(by_d[smooth], slope[smooth], rtol=1e-3, atol=1e-3)


def test_a_scale_out_of_range_can_come_back():
    """A clamp would give it no gradient."""
    outputs = torch.tensor([[[0.0], [-9.0]]], requires_grad=True)
    network.latent_bits(torch.tensor([[3.0]]), outputs).sum().backward()
    assert float(outputs.grad[0, 1, 0]) < -10  # bits fall as the scale rises


def test_chunks_change_nothing(monkeypatch):
    architecture, size = KNOWN[2], (20, 26)
    nets, grids = random_nets(architecture, size), random_grids(architecture, size)
    grid_plane = GridPlane(size, 7, 0, architecture.taps)
    results = []
    for limit in (1 << 20, 100):
        monkeypatch.setattr(network, "_CHUNK", limit)
        plane = grid_plane.place(grids).requires_grad_()
        arrays = tensors(nets)
        outputs = network.entropy_net(arrays, network.context_of(plane, grid_plane), architecture)
        channels = network.upsample(arrays, grid_plane.grids(plane), size, architecture)
        image = network.synthesise(arrays, channels, architecture)
        loss = network.latent_bits(grid_plane.latents(plane), outputs).sum() + 1e3 * image.square().sum()
        results.append((loss.detach(), torch.autograd.grad(loss, plane)[0]))
    torch.testing.assert_close(results[0], results[1], rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize("architecture", [KNOWN[0], KNOWN[2], LEARNED], ids=["paper", "ours", "learned"])
def test_images_of_a_batch_do_not_mix(architecture):
    size = (12, 10)
    both = [random_nets(architecture, size, seed) for seed in (0, 1)]
    arrays = {name: torch.cat([tensors(nets)[name] for nets in both]) for name in tensors(both[0])}
    generator = torch.Generator().manual_seed(0)
    sizes = grid_sizes(*size, architecture.grids, architecture.first)
    grids = [torch.randn(2, *s, generator=generator) for s in sizes]
    found = network.synthesise(arrays, network.upsample(arrays, grids, size, architecture), architecture)
    for i, nets in enumerate(both):
        channels = network.upsample(tensors(nets), [g[i : i + 1] for g in grids], size, architecture)
        alone = network.synthesise(tensors(nets), channels, architecture)
        torch.testing.assert_close(found[i], alone[0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("size", [(1, 1), (13, 22), (64, 33)])
def test_matrix_products_upsample_as_interpolation(size):
    generator = torch.Generator().manual_seed(0)
    grids = [torch.randn(2, *s, generator=generator) for s in grid_sizes(*size)]
    found = torch.stack([network._stretched(grid, size) for grid in grids], 1)
    torch.testing.assert_close(found, network.upsample({}, grids, size, KNOWN[0]), atol=1e-5, rtol=1e-5)


def by_the_formula(x: np.ndarray, taps: np.ndarray, length: int) -> np.ndarray:
    """Rows doubled, one by one: y_2i = sum_j p_j x_(i+j), y_(2i+1) = sum_j p_j x_(i-j)."""
    made = []
    for y in range(length):
        way, i = 1 - 2 * (y % 2), y // 2
        made.append(sum(taps[j + 2] * x[min(max(i + way * j, 0), len(x) - 1)] for j in range(-2, 2)))
    return np.stack(made)


@pytest.mark.parametrize("size", [(1, 1), (1, 2), (3, 1), (7, 12), (8, 5)])
def test_doubling_is_its_formula(size):
    rng = np.random.default_rng(0)
    planes, taps = rng.normal(size=(2, 3, *(-(-side // 2) for side in size))), rng.normal(size=(2, 4))
    found = network.double_size(torch.tensor(planes), torch.tensor(taps), *size)
    for image in range(2):
        for channel in range(3):
            rows = by_the_formula(planes[image, channel], taps[image], size[0])
            exact = by_the_formula(rows.T, taps[image], size[1]).T
            np.testing.assert_allclose(found[image, channel].numpy(), exact, rtol=1e-12, atol=1e-12)


def test_the_first_taps_interpolate():
    planes = torch.randn(1, 2, 5, 7, generator=torch.Generator().manual_seed(0))
    found = network.double_size(planes, torch.tensor([[0, 0.25, 0.75, 0]]), 10, 14)
    torch.testing.assert_close(found, F.interpolate(planes, scale_factor=2, mode="bilinear"))


@pytest.mark.parametrize("first", [0, 1, 3])
def test_grids_are_doubled_again_and_again(first):
    """Each by the taps of all sizes from its own down to the image's, the last row of them first."""
    rng, size = np.random.default_rng(1), (21, 34)
    architecture = dataclasses.replace(LEARNED, first=first)
    grids = [rng.normal(size=s) for s in grid_sizes(*size, 3, first)]
    taps = rng.normal(size=(architecture.doublings, 4))
    arrays = {"upsampling.weight": torch.tensor(taps)[None]}
    found = network.upsample(arrays, [torch.tensor(g)[None] for g in grids], size, architecture)
    assert found.shape == (1, 3, *size)
    for i, plane in enumerate(grids):
        for exponent in range(first + i - 1, -1, -1):
            height, width = (-(-side >> exponent) for side in size)
            plane = by_the_formula(plane, taps[exponent], height)
            plane = by_the_formula(plane.T, taps[exponent], width).T
        np.testing.assert_allclose(found[0, i].numpy(), plane, rtol=1e-9, atol=1e-9)


def test_gradients_of_the_taps_are_right():
    generator = torch.Generator().manual_seed(0)
    planes = torch.randn(2, 2, 3, 2, generator=generator, dtype=torch.float64).requires_grad_()
    taps = torch.randn(2, 4, generator=generator, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda x, p: network.double_size(x, p, 5, 4), (planes, taps))
