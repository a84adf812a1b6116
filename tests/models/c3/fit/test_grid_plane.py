# SPDX-License-Identifier: Apache-2.0
"""Claims of models/c3/grid_plane.py: the plane of all grids gives the entropy net what the decoder sees."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from compressai_sga.models.c3.config import CONTEXTS
from compressai_sga.models.c3.contexts import Context, grid_sizes, nearest_taps
from compressai_sga.models.c3.fit.grid_plane import GridPlane

SIZES = [(1, 1), (1, 9), (17, 1), (13, 22), (32, 64), (37, 20)]


def random_grids(size: tuple[int, int], count: int = 7, first: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(size[0] * 100 + size[1])
    return [rng.integers(-40, 41, s).astype(np.int32) for s in grid_sizes(*size, count, first)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("context", range(len(CONTEXTS)))
def test_inputs_are_the_decoders(context, size):
    context = CONTEXTS[context]
    grids = random_grids(size)
    grid_plane = GridPlane(size, 7, 0, context)
    plane = grid_plane.place(grids)
    own, other = grid_plane.own_inputs(plane), grid_plane.other_inputs(plane)
    found = own if other is None else torch.cat([own, other], 1)
    # As grids again: a plane for each input.
    for tap in range(context.width):
        column = torch.zeros_like(plane)
        grid_plane.latents(column)[:] = found[:, tap]
        whole = torch.zeros_like(plane).flatten(1)
        start = grid_plane.top * grid_plane.width
        whole[:, start : start + grid_plane.positions] = found[:, tap]
        for index, part in enumerate(grid_plane.grids(whole.reshape(plane.shape))):
            expected = context.inputs(grids, index, 127)[tap].reshape(grids[index].shape) / 256
            np.testing.assert_allclose(part[0].numpy(), expected, atol=1e-5)


@pytest.mark.parametrize("size", SIZES)
def test_grids_keep_their_place(size):
    grids = random_grids(size)
    grid_plane = GridPlane(size, 7, 0, CONTEXTS[0])
    plane = grid_plane.place(grids)
    for grid, part in zip(grids, grid_plane.grids(plane)):
        np.testing.assert_array_equal(part[0].numpy(), grid)
    assert int(grid_plane.mask.sum()) == sum(grid.size for grid in grids)
    np.testing.assert_array_equal((grid_plane.latents(plane)[0] * (1 - grid_plane.mask)).numpy(), 0)
    assert float(grid_plane.latents(plane).sum()) == sum(int(grid.sum()) for grid in grids)


@pytest.mark.parametrize("context", range(len(CONTEXTS)))
def test_gradients_are_exact(context):
    """The inputs are linear, so that the gradient of <inputs, w> is the transpose: <A x, w> = <x, A^T w>."""
    grid_plane = GridPlane((9, 14), 4, 0, CONTEXTS[context])
    generator = torch.Generator().manual_seed(0)
    inside = grid_plane.spread([1.0] * 4)
    x = torch.randn(2, grid_plane.height, grid_plane.width, generator=generator) * inside
    x.requires_grad_()
    other = grid_plane.other_inputs(x)
    found = grid_plane.own_inputs(x) if other is None else torch.cat([grid_plane.own_inputs(x), other], 1)
    w = torch.randn(found.shape, generator=generator)
    product = (found * w).sum()
    (gradient,) = torch.autograd.grad(product, x)
    assert float((gradient * x).sum()) == pytest.approx(float(product), rel=1e-4)
    direction = torch.randn(x.shape, generator=generator) * inside
    moved = x.detach() + direction
    other = grid_plane.other_inputs(moved)
    found = (
        grid_plane.own_inputs(moved) if other is None else torch.cat([grid_plane.own_inputs(moved), other], 1)
    )
    assert float((found * w).sum() - product) == pytest.approx(float((gradient * direction).sum()), abs=1e-2)


def test_most_of_the_plane_is_latents():
    grid_plane = GridPlane((512, 768), 7, 0, CONTEXTS[3])
    assert float(grid_plane.mask.mean()) > 0.85


def test_far_taps_of_a_coarser_grid_are_refused():
    context = Context(own=nearest_taps(4), other=((-1, 0),), source="coarser")
    with pytest.raises(ValueError, match="offsets 0 or 1"):
        GridPlane((8, 8), 3, 0, context)
