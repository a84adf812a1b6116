# SPDX-License-Identifier: Apache-2.0
"""Claims of models/c3/network.py: the float nets are the decoder's but for rounding."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from c3_nets import SMALL, random_grids, random_nets, tensors

from compressai_sga.models.c3 import network
from compressai_sga.models.c3.canvas import Canvas
from compressai_sga.models.c3.config import KNOWN
from compressai_sga.models.c3.contexts import grid_sizes
from compressai_sga.models.c3.image_codec import reconstruct
from compressai_sga.models.c3.latent_codec import bits_of, predict
from compressai_sga.models.c3.tables import rows


@pytest.mark.parametrize("architecture", [*KNOWN, SMALL], ids=["paper", "clic", "ours", "small"])
def test_float_entropy_net_is_the_integer_one_but_for_rounding(architecture):
    size = (21, 34)
    nets, grids = random_nets(architecture, size), random_grids(architecture, size)
    canvas = Canvas(size, architecture.grids, architecture.first, architecture.taps)
    plane = canvas.place(grids)
    outputs = network.entropy_net(tensors(nets), network.context_of(plane, canvas), architecture)
    bits = network.latent_bits(canvas.latents(plane), outputs) * canvas.mask
    whole = torch.zeros(2, plane[0].numel())
    start = canvas.top * canvas.width
    whole[:, start : start + canvas.positions] = outputs[0]
    parts = canvas.grids(whole.reshape(2, *plane.shape[1:]))
    for index, part in enumerate(parts):
        location, scale = predict(grids, nets.entropy(), architecture.taps, index)
        # Hidden values have steps of 2^-8, the location of 2^-6, the scale of an eighth of an octave.
        np.testing.assert_allclose(location / 64, part[0].flatten().numpy(), atol=1 / 128 + 0.02)
        log2_scale = part[1].flatten().numpy().clip(-5, 7.5)
        np.testing.assert_allclose((scale - 40) / 8, log2_scale, atol=1 / 16 + 0.02)
    assert float(bits.sum()) == pytest.approx(
        sum(bits_of(grids, nets.entropy(), architecture.taps)), rel=5e-3
    )


@pytest.mark.parametrize("architecture", [*KNOWN, SMALL], ids=["paper", "clic", "ours", "small"])
def test_synthesis_is_the_decoders(architecture):
    size = (21, 34)
    nets, grids = random_nets(architecture, size), random_grids(architecture, size)
    found = reconstruct(nets, grids)
    torch.testing.assert_close(found, reconstruct(nets, grids, backend="python"), atol=2e-6, rtol=0)
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
    canvas = Canvas(size, 7, 0, architecture.taps)
    results = []
    for limit in (1 << 20, 100):
        monkeypatch.setattr(network, "_CHUNK", limit)
        plane = canvas.place(grids).requires_grad_()
        arrays = tensors(nets)
        outputs = network.entropy_net(arrays, network.context_of(plane, canvas), architecture)
        image = network.synthesise(arrays, network.upsample(canvas.grids(plane), size), architecture)
        loss = network.latent_bits(canvas.latents(plane), outputs).sum() + 1e3 * image.square().sum()
        results.append((loss.detach(), torch.autograd.grad(loss, plane)[0]))
    torch.testing.assert_close(results[0], results[1], rtol=1e-4, atol=1e-2)


def test_images_of_a_batch_do_not_mix():
    architecture = dataclasses.replace(KNOWN[0], refinements=2)
    one, two = random_nets(architecture, (12, 10), 0), random_nets(architecture, (12, 10), 1)
    both = {name: torch.cat([tensors(one)[name], tensors(two)[name]]) for name in tensors(one)}
    channels = torch.randn(2, 7, 12, 10, generator=torch.Generator().manual_seed(0))
    found = network.synthesise(both, channels, architecture)
    for i, nets in enumerate((one, two)):
        alone = network.synthesise(tensors(nets), channels[i : i + 1], architecture)
        torch.testing.assert_close(found[i], alone[0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("size", [(1, 1), (13, 22), (64, 33)])
def test_matrix_products_upsample_as_interpolation(size):
    generator = torch.Generator().manual_seed(0)
    grids = [torch.randn(2, *s, generator=generator) for s in grid_sizes(*size)]
    found = torch.stack([network._stretched(grid, size) for grid in grids], 1)
    torch.testing.assert_close(found, network.upsample(grids, size), atol=1e-5, rtol=1e-5)
