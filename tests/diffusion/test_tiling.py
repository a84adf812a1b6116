# SPDX-License-Identifier: Apache-2.0
"""Claims of diffusion/windows.py: a weighted mean that is exact where windows agree, smooth where they do
not, the same bits for every batch, and with a fixed number of windows at a time."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from compressai_sga.diffusion.tiling import blend, window_positions
from compressai_sga.errors import ShapeError

SIZES = [(16, 16), (17, 16), (40, 23), (33, 70), (64, 31)]


def pixels(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def window_mean(x: Tensor) -> Tensor:
    """A function that sees all of its window."""
    return x.mean((1, 2, 3), keepdim=True).expand_as(x).clone()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("overlap", [0, 4, 15])
def test_pointwise_functions_are_not_changed_at_all(size, overlap):
    x, y = pixels(2, 3, *size), pixels(2, 1, *size, seed=2)
    made = blend(lambda a, b: a * 0.7 + b * b, [x, y], window=16, overlap=overlap)
    assert torch.equal(made, x * 0.7 + y * y)


def test_constants_stay_what_they_are():
    for value in (0.1, -1e-7, 3e7):
        made = blend(
            lambda x, value=value: torch.full_like(x, value), [pixels(1, 2, 61, 47)], window=16, overlap=7
        )
        assert torch.equal(made, torch.full_like(made, value))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("overlap", [0, 5, 12])
def test_is_the_weighted_mean(size, overlap):
    """Against plain sums of weights and of weighted results in float64; so the weights sum to one."""
    x = pixels(2, 3, *size)
    above, below = torch.zeros(2, 3, *size).double(), torch.zeros(size).double()
    distance = torch.minimum(torch.arange(16), 15 - torch.arange(16)) + 0.5
    t = (distance.double() / overlap).clamp(max=1) if overlap else torch.ones(16).double()
    side = 3 * t**2 - 2 * t**3
    for top in window_positions(size[0], 16, overlap):
        for left in window_positions(size[1], 16, overlap):
            rows, columns = slice(top, top + 16), slice(left, left + 16)
            w = side[:, None] * side[None]
            above[..., rows, columns] += w * window_mean(x[..., rows, columns].double())
            below[rows, columns] += w
    made = blend(window_mean, [x], window=16, overlap=overlap)
    assert torch.allclose(made.double(), above / below, atol=1e-6)


def test_windows_cover_with_the_overlap_and_no_more_of_them_than_needed():
    for window, overlap in ((16, 0), (16, 4), (16, 15), (7, 3)):
        for size in range(window, 90):
            starts = window_positions(size, window, overlap)
            steps = [b - a for a, b in zip(starts, starts[1:])]
            assert starts[0] == 0 and starts[-1] == size - window
            assert all(0 < step <= window - overlap for step in steps)
            assert (len(starts) - 2) * (window - overlap) < size - window or len(starts) == 1
            assert not steps or max(steps) - min(steps) <= 1


def test_no_bit_depends_on_the_batch():
    x = pixels(3, 2, 50, 41)

    def function(window: Tensor) -> Tensor:
        return torch.stack([w.flip(-1) * w.mean() for w in window])  # one window at a time: no bit of others

    made = [blend(function, [x], window=16, overlap=6, batch=batch) for batch in (1, 3, 4, 100)]
    assert all(torch.equal(made[0], other) for other in made[1:])


def test_an_image_is_the_same_alone_and_among_others_whatever_the_function():
    x = pixels(3, 2, 50, 41)

    def mixing(window: Tensor) -> Tensor:
        return window + window.mean(0, keepdim=True)

    together = blend(mixing, [x], window=16, overlap=6, batch=3)
    for index in range(3):
        assert torch.equal(
            together[index : index + 1], blend(mixing, [x[index : index + 1]], window=16, overlap=6, batch=3)
        )


def test_windows_fade_into_each_other():
    """Windows that disagree by 1 in turn: no step from pixel to pixel is large, with hard edges one is 1."""
    for overlap, largest in ((16, 0.1), (0, 1.0)):
        turn = iter(range(10))

        def function(x: Tensor, turn=turn) -> Tensor:
            return torch.full_like(x, next(turn) % 2)

        made = blend(function, [torch.zeros(1, 1, 32, 128)], window=32, overlap=overlap, batch=1)
        steps = made.diff(dim=-1).abs().max()
        assert steps <= largest if overlap else steps == largest
        assert made.min() == 0 and made.max() > 0.99


@pytest.mark.parametrize("batch", [1, 4])
def test_few_windows_at_a_time_whatever_the_image(batch):
    seen = []

    def function(x: Tensor) -> Tensor:
        seen.append(len(x))
        return x

    blend(function, [pixels(2, 1, 100, 100)], window=16, overlap=8, batch=batch)
    assert max(seen) == batch and sum(seen) == 2 * len(window_positions(100, 16, 8)) ** 2


def test_windows_may_be_oblong():
    x = pixels(1, 2, 40, 61)
    seen = set()

    def function(window: Tensor) -> Tensor:
        seen.add(tuple(window.shape[2:]))
        return window * 2

    assert torch.equal(blend(function, [x], window=(16, 24), overlap=8), x * 2) and seen == {(16, 24)}


def test_result_has_the_functions_channels_and_type():
    made = blend(lambda x: x[:, :1].double(), [pixels(2, 3, 20, 20)], window=16, overlap=4)
    assert made.shape == (2, 1, 20, 20) and made.dtype == torch.float64


@pytest.mark.parametrize(
    "shapes, window",
    [
        ([], 16),
        ([(1, 3, 15, 40)], 16),
        ([(1, 3, 40, 15)], 16),
        ([(1, 3, 40, 40)], 0),
        ([(1, 3, 40, 40)], (16, 41)),
        ([(1, 3, 40, 40)], (41, 16)),
        ([(3, 40, 40)], 16),
        ([(0, 3, 40, 40)], 16),
        ([(1, 3, 40, 40), (1, 3, 40, 41)], 16),
        ([(1, 3, 40, 40), (2, 3, 40, 40)], 16),
    ],
)
def test_images_that_do_not_fit_are_refused(shapes, window):
    with pytest.raises(ShapeError, match="px|same B, H and W"):
        blend(lambda *x: x[0], [torch.zeros(shape) for shape in shapes], window=window, overlap=0)


def test_a_function_that_changes_the_size_is_refused():
    with pytest.raises(ShapeError, match="the function made"):
        blend(lambda x: x[..., ::2], [torch.zeros(1, 3, 40, 40)], window=16, overlap=4)
    with pytest.raises(ShapeError, match="the function made"):
        blend(lambda x: x[:1], [torch.zeros(1, 3, 40, 40)], window=16, overlap=4)


@pytest.mark.parametrize("overlap, batch", [(16, 4), (-1, 4), (4, 0)])
def test_numbers_out_of_range_are_refused(overlap, batch):
    with pytest.raises(ValueError, match="overlap is"):
        blend(lambda x: x, [torch.zeros(1, 3, 40, 40)], window=16, overlap=overlap, batch=batch)
