# SPDX-License-Identifier: Apache-2.0
"""Claims of models/c3/canvas.py: the plane of all grids gives the entropy net what the decoder sees."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from compressai_sga.models.c3.config import CONTEXTS
from compressai_sga.models.c3.contexts import Context, grid_sizes, nearest_taps
from compressai_sga.models.c3.fit.grid_plane import Canvas

SIZES = [(1, 1), (1, 9), (17, 1), (13, 22), (32, 64), (37, 20)]


def random_grids(size: tuple[int, int], count: int = 7, first: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(size[0] * 100 + size[1])
    return [rng.integers(-40, 41, s).astype(np.int32) for s in grid_sizes(*size, count, first)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("context", range(len(CONTEXTS)))
def test_inputs_are_the_decoders(context, size):
    context = CONTEXTS[context]
    grids = random_grids(size)
    canvas = Canvas(size, 7, 0, context)
    plane = canvas.place(grids)
    own, other = canvas.own_inputs(plane), canvas.other_inputs(plane)
    found = own if other is None else torch.cat([own, other], 1)
    # As grids again: a plane for each input.
    for tap in range(context.width):
        column = torch.zeros_like(plane)
        canvas.latents(column)[:] = found[:, tap]
        whole = torch.zeros_like(plane).flatten(1)
        start = canvas.top * canvas.width
        whole[:, start : start + canvas.positions] = found[:, tap]
        for index, part in enumerate(canvas.grids(whole.reshape(plane.shape))):
            expected = context.inputs(grids, index, 127)[tap].reshape(grids[index].shape) / 256
            np.testing.assert_allclose(part[0].numpy(), expected, atol=1e-5)


@pytest.mark.parametrize("size", SIZES)
def test_grids_keep_their_place(size):
    grids = random_grids(size)
    canvas = Canvas(size, 7, 0, CONTEXTS[0])
    plane = canvas.place(grids)
    for grid, part in zip(grids, canvas.grids(plane)):
        np.testing.assert_array_equal(part[0].numpy(), grid)
    assert int(canvas.mask.sum()) == sum(grid.size for grid in grids)
    np.testing.assert_array_equal((canvas.latents(plane)[0] * (1 - canvas.mask)).numpy(), 0)
    assert float(canvas.latents(plane).sum()) == sum(int(grid.sum()) for grid in grids)


@pytest.mark.parametrize("context", range(len(CONTEXTS)))
def test_gradients_are_exact(context):
    """The inputs are linear, so that the gradient of <inputs, w> is the transpose: <A x, w> = <x, A^T w>."""
    canvas = Canvas((9, 14), 4, 0, CONTEXTS[context])
    generator = torch.Generator().manual_seed(0)
    inside = canvas.spread([1.0] * 4)
    x = torch.randn(2, canvas.height, canvas.width, generator=generator) * inside
    x.requires_grad_()
    other = canvas.other_inputs(x)
    found = canvas.own_inputs(x) if other is None else torch.cat([canvas.own_inputs(x), other], 1)
    w = torch.randn(found.shape, generator=generator)
    product = (found * w).sum()
    (gradient,) = torch.autograd.grad(product, x)
    assert float((gradient * x).sum()) == pytest.approx(float(product), rel=1e-4)
    direction = torch.randn(x.shape, generator=generator) * inside
    moved = x.detach() + direction
    other = canvas.other_inputs(moved)
    found = canvas.own_inputs(moved) if other is None else torch.cat([canvas.own_inputs(moved), other], 1)
    assert float((found * w).sum() - product) == pytest.approx(float((gradient * direction).sum()), abs=1e-2)


def test_most_of_the_plane_is_latents():
    canvas = Canvas((512, 768), 7, 0, CONTEXTS[3])
    assert float(canvas.mask.mean()) > 0.85


def test_far_taps_of_a_coarser_grid_are_refused():
    context = Context(own=nearest_taps(4), other=((-1, 0),), source="coarser")
    with pytest.raises(ValueError, match="offsets 0 or 1"):
        Canvas((8, 8), 3, 0, context)
