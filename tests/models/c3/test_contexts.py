# SPDX-License-Identifier: Apache-2.0
"""Claims of models/c3/contexts.py: which latents a net sees, in which order they can be decoded, and the
filter of C3's CLIC variant."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from compressai_sga.models.c3.contexts import (
    C3,
    C3_FINER,
    Context,
    grid_sizes,
    halve,
    nearest_taps,
    square_taps,
)
from tests.models.c3.random_nets import CONTEXTS, laplace


def test_sizes_are_the_papers():
    assert grid_sizes(512, 768)[-1] == (8, 12)
    assert grid_sizes(1, 1) == ((1, 1),) * 7
    assert grid_sizes(5, 9, 3, first=1) == ((3, 5), (2, 3), (1, 2))
    for wrong in ((0, 5), (5, 1 << 16), (5, 5, 0), (5, 5, 17)):
        with pytest.raises(ValueError):
            grid_sizes(*wrong)


def test_taps():
    assert len(square_taps(3)) == 24 and len(square_taps(2)) == 12
    assert nearest_taps(4) == ((0, -1), (-1, 0), (-1, -1), (-1, 1))
    assert C3.width == 24 and C3_FINER.width == 33
    with pytest.raises(ValueError, match="41"):
        nearest_taps(41)


@pytest.mark.parametrize(
    "arguments",
    [
        {"own": ((0, 0),)},
        {"own": ((1, -1),)},
        {"own": ((0, 1),)},
        {"own": ((-1, 0), (-1, 0))},
        {"own": ((-8, 0),)},
        {"own": ()},
        {"own": ((0, -1),), "source": "finer"},
        {"own": ((0, -1),), "other": ((0, 0),)},
        {"own": ((0, -1),), "other": ((0, 0),), "source": "above"},
    ],
)
def test_taps_that_no_decoder_has(arguments):
    with pytest.raises(ValueError):
        Context(**arguments)


@pytest.mark.parametrize("name", CONTEXTS)
@pytest.mark.parametrize("size", [(1, 1), (1, 9), (9, 1), (11, 13), (4, 40)])
def test_the_slope_is_the_smallest_that_decodes(name, size):
    context = CONTEXTS[name]

    def decodable(slope: int) -> bool:
        front = slope * np.arange(40)[:, None] + np.arange(40)
        return all(front[20 + dy, 20 + dx] < front[20, 20] for dy, dx in context.own)

    assert decodable(context.slope) and (context.slope == 1 or not decodable(context.slope - 1))
    order, fronts = context.front_order(*size)
    assert sorted(order.tolist()) == list(range(size[0] * size[1]))
    front_of = np.empty(len(order), int)
    for t, (start, stop) in enumerate(zip(fronts, fronts[1:])):
        y, x = np.divmod(order[start:stop], size[1])
        assert (x + context.slope * y == t).all() and (np.diff(y) > 0).all()
        front_of[order[start:stop]] = t
    front_of = front_of.reshape(size)
    for y, x in np.ndindex(*size):
        for dy, dx in context.own:
            if 0 <= y + dy and 0 <= x + dx < size[1]:
                assert front_of[y + dy, x + dx] < front_of[y, x]


def test_slopes_of_known_masks():
    assert [Context(own=square_taps(r)).slope for r in (1, 2, 3)] == [2, 3, 4]
    assert Context(own=((-2, 3),)).slope == 2 and Context(own=((-1, -1), (0, -1))).slope == 1


@pytest.mark.parametrize("name", CONTEXTS)
def test_inputs_are_the_definition(name):
    """Against plain loops, for all positions and for some rows; sizes odd and even."""
    context, clamp = CONTEXTS[name], 3
    sizes = grid_sizes(11, 8, 3)
    grids = laplace(3, sizes, 2.0)
    for index, (height, width) in enumerate(sizes):
        kept = [np.clip(grid, -clamp, clamp) for grid in grids]
        expected = np.zeros((context.width, height, width))
        for y, x in np.ndindex(height, width):
            values = [at(kept[index], y + dy, x + dx) * 256 for dy, dx in context.own]
            for dy, dx in context.other:
                if context.source == "coarser" and index + 1 < 3:
                    dy, dx = (dy if y % 2 else -dy), (dx if x % 2 else -dx)
                    values.append(at(kept[index + 1], y // 2 + dy, x // 2 + dx) * 256)
                elif context.source == "finer" and index > 0:
                    values.append(at(filtered(kept[index - 1]), y + dy, x + dx) * 256)
                else:
                    values.append(0)
            expected[:, y, x] = values
        got = context.inputs(grids, index, clamp)
        assert np.array_equal(got.reshape(expected.shape), expected)
        middle = context.inputs(grids, index, clamp, slice(1, height))
        assert np.array_equal(middle.reshape(context.width, height - 1, width), expected[:, 1:])


def at(grid: np.ndarray, y: int, x: int) -> float:
    inside = 0 <= y < grid.shape[0] and 0 <= x < grid.shape[1]
    return float(grid[y, x]) if inside else 0.0


def filtered(grid: np.ndarray) -> np.ndarray:
    weights = np.array([1, 3, 3, 1]) / 8
    out = np.zeros([-(-side // 2) for side in grid.shape])
    for y, x in np.ndindex(*out.shape):
        ys = np.clip(np.arange(2 * y - 1, 2 * y + 3), 0, grid.shape[0] - 1)
        xs = np.clip(np.arange(2 * x - 1, 2 * x + 3), 0, grid.shape[1] - 1)
        out[y, x] = weights @ grid[np.ix_(ys, xs)] @ weights
    return out


def test_the_filter_is_bilinear_with_antialiasing():
    """As jax.image.resize and torch's interpolate, away from the border, where those renormalise."""
    grid = np.random.default_rng(0).integers(-127, 128, (24, 18))
    reference = torch.nn.functional.interpolate(
        torch.tensor(grid)[None, None].double(), scale_factor=0.5, mode="bilinear", antialias=True
    )[0, 0].numpy()
    assert np.allclose(halve(grid)[1:-1, 1:-1] / 256, reference[1:-1, 1:-1], atol=1e-12)
    extreme = halve(np.full((5, 4), 127))
    assert extreme.shape == (3, 2) and (extreme == 127 * 256).all()
