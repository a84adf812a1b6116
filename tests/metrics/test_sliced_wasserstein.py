# SPDX-License-Identifier: Apache-2.0
"""swd is a mean of one-dimensional Wasserstein distances; blur and noise raise it where they act."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.stats import wasserstein_distance

from compressai_sga.errors import SgaError, ShapeError
from compressai_sga.metrics import SET_METRICS, SlicedWasserstein
from compressai_sga.metrics import sliced_wasserstein as module
from compressai_sga.metrics.sliced_wasserstein import (
    expand,
    gaussian_pyramid,
    laplacian_pyramid,
    sliced_wasserstein,
)


def unit(dims, count, seed=0):
    directions = torch.randn(dims, count, generator=torch.Generator().manual_seed(seed))
    return directions / directions.norm(dim=0)


def photo(seed, height=128, width=160):
    """Random structure at all scales, 1/f like a photograph's, (1, 3, H, W) in [0, 1]."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.zeros(1, 3, height, width)
    for side in (4, 8, 16, 32, 64, 128):
        coarse = torch.randn(1, 3, side, side, generator=generator)
        x += F.interpolate(coarse, size=(height, width), mode="bicubic") / side
    return (0.5 + x / 2).clamp(0, 1)


def blurred(x):
    kernel = torch.tensor([1.0, 2, 1]) / 4
    kernel = (kernel[:, None] * kernel).expand(3, 1, 3, 3)
    return F.conv2d(F.pad(x, (1, 1, 1, 1), mode="reflect"), kernel, groups=3)


def noisy(x, std, seed=9):
    return x + std * torch.randn(x.shape, generator=torch.Generator().manual_seed(seed))


def levels(pairs, **settings):
    metric = SlicedWasserstein(**{"patches": 256, "directions": 64} | settings)
    for x, x_hat in pairs:
        metric.update(x, x_hat)
    return metric.levels()


# The distance of two sets of points.


def test_equal_sets_in_any_order():
    a = torch.randn(300, 5, generator=torch.Generator().manual_seed(1))
    assert sliced_wasserstein(a, a.flip(0), unit(5, 40)) == 0


def test_against_scipy_direction_by_direction():
    generator = torch.Generator().manual_seed(2)
    a, b = torch.randn(2, 200, 6, generator=generator)
    b = 2 * b.exp() - 1
    directions = unit(6, 150)  # more than are multiplied at once
    expected = [wasserstein_distance((a @ d).numpy(), (b @ d).numpy()) for d in directions.T]
    assert len(set(np.round(expected, 3))) > 50
    assert float(sliced_wasserstein(a, b, directions)) == pytest.approx(np.mean(expected), rel=1e-5)
    for d, value in zip(directions.T[:5], expected, strict=False):
        assert float(sliced_wasserstein(a, b, d[:, None])) == pytest.approx(value, rel=1e-5)


def test_shifted_gaussian():
    """|m d| in direction d; on average |m| Gamma(D/2) / (sqrt(pi) Gamma((D+1)/2)) for a shift by m."""
    dims, points = 8, torch.randn(500, 8, generator=torch.Generator().manual_seed(3))
    shift, directions = torch.full((dims,), 0.5), unit(dims, 2000)
    found = float(sliced_wasserstein(points, points + shift, directions))
    assert found == pytest.approx(float((shift @ directions).abs().mean()), rel=1e-4)
    mean = math.gamma(dims / 2) / math.sqrt(math.pi) / math.gamma((dims + 1) / 2)
    assert found == pytest.approx(float(shift.norm()) * mean, rel=0.06)  # 3.5 standard errors


def test_scaled_gaussian():
    """W_1(N(0, 1), N(0, s^2)) = |s - 1| sqrt(2 / pi), in every direction."""
    a, b = torch.randn(2, 50_000, 4, generator=torch.Generator().manual_seed(4))
    found = float(sliced_wasserstein(a, 1.5 * b, unit(4, 20)))
    assert found == pytest.approx(0.5 * math.sqrt(2 / math.pi), rel=0.02)


@pytest.mark.parametrize("shapes", [((5, 3), (6, 3), (3, 2)), ((5, 3), (5, 3), (4, 2)), ((5,), (5,), (5, 1))])
def test_sets_that_do_not_fit(shapes):
    with pytest.raises(ShapeError, match=r"must be \(n, D\), \(n, D\) and \(D, m\)"):
        sliced_wasserstein(*(torch.zeros(shape) for shape in shapes))


# The pyramid.


@pytest.mark.parametrize("size", [(64, 96), (65, 97), (50, 33)])
def test_pyramid_gives_the_image_back(size):
    x = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(5))
    *bands, low = laplacian_pyramid(x, 3)
    assert low.shape[2:] == tuple(-(-side // 4) for side in size)
    for band in reversed(bands):
        low = band + expand(low, *band.shape[2:])
    assert torch.allclose(low, x, atol=1e-5)


def test_pyramid_smooths_and_keeps_constants():
    flat = torch.full((1, 3, 33, 48), 0.7)
    for level in gaussian_pyramid(flat, 3):
        assert torch.allclose(level, torch.tensor(0.7), atol=1e-6)
    for band in laplacian_pyramid(flat, 3)[:-1]:
        assert band.abs().max() < 1e-6
    point = torch.zeros(1, 1, 17, 17)
    point[..., 8, 8] = 256
    row = gaussian_pyramid(point, 2)[1][0, 0, 4]  # every second of the outer product's middle row
    assert row.tolist() == [0, 0, 0, 6, 36, 6, 0, 0, 0]


# The metric.


def test_equal_images_are_at_zero():
    pairs = [(photo(i), photo(i)) for i in range(2)]
    assert levels(pairs) == [0, 0, 0, 0]
    assert min(levels(pairs, positions="independent")) > 1  # which is why positions are shared


def test_registered_and_mean_of_the_levels():
    metric = SET_METRICS["swd"]()
    metric.update(photo(0), blurred(photo(0)))
    assert len(metric.levels()) == 4  # 128, 64, 32 and 16 px
    assert metric.compute() == pytest.approx(np.mean(metric.levels())) and metric.compute() > 0


def test_against_the_definition():
    """One image, one level cut by hand at the places of the generator, in numpy."""
    x = photo(0, 40, 56) * torch.tensor([1, 0.5, 0.2]).view(3, 1, 1)  # each colour has its own deviation
    x_hat = blurred(x)
    found = levels([(x, x_hat)], patches=50, directions=8, seed=3)
    generator = torch.Generator().manual_seed(3)
    rows, columns = (torch.randint(end, (50,), generator=generator) for end in (34, 50))
    sets = []
    for image in (x, x_hat):
        band = laplacian_pyramid(image, 2)[0][0].numpy()
        sets.append(np.stack([band[:, r : r + 7, c : c + 7] for r, c in zip(rows, columns, strict=True)]))
    mean, std = sets[0].mean((0, 2, 3), keepdims=True), sets[0].std((0, 2, 3), keepdims=True)
    directions = unit(147, 8, seed=3)
    a, b = (torch.from_numpy((s - mean) / std).flatten(1) for s in sets)
    expected = [wasserstein_distance((a @ d).numpy(), (b @ d).numpy()) for d in directions.T]
    assert found[0] == pytest.approx(1000 * np.mean(expected), rel=2e-3)  # patches are kept in 16 bits


def test_blur_is_seen_in_the_finest_level():
    pairs = [(photo(i), blurred(photo(i))) for i in range(3)]
    found = levels(pairs)
    assert found[0] > 100 and found[0] > 3 * max(found[1:])
    twice = levels([(x, blurred(x_hat)) for x, x_hat in pairs])
    assert twice[0] > 1.2 * found[0] and twice[1] > found[1]


def test_noise_is_seen_in_the_finest_level():
    pairs = [(photo(i), noisy(photo(i), 0.02)) for i in range(3)]
    found, more = levels(pairs), levels([(x, noisy(x, 0.04)) for x, _ in pairs])
    assert found[0] > 2 * max(found[1:]) and more[0] > 1.5 * found[0]


def test_a_colour_cast_is_seen_in_the_coarsest_level():
    found = levels([(photo(i), photo(i) + torch.tensor([0.05, 0, 0]).view(3, 1, 1)) for i in range(3)])
    assert found[-1] > 20 and found[-1] > 50 * max(found[:-1])


def test_normalised_each_a_loss_of_energy_is_hidden():
    """Half the contrast: 0.5 E|p| for projections p of the originals' points, or nothing."""
    pairs = [(photo(i), 0.5 * photo(i) + 0.25) for i in range(3)]
    assert min(levels(pairs)) > 100
    each = levels(pairs, normalise="each")
    assert max(each) < 2
    metric = SlicedWasserstein(patches=256, directions=64)
    for x, x_hat in pairs:
        metric.update(x, x_hat)
    assert metric.levels("each") == each
    with pytest.raises(ValueError, match="normalise is 'both'"):
        metric.levels("both")


def test_places_in_common_lower_the_variance():
    pairs = [(photo(i), blurred(photo(i))) for i in range(2)]
    same, apart = (
        np.std([levels(pairs, patches=64, positions=p, seed=s)[-1] for s in range(8)])
        for p in ("same", "independent")
    )
    assert same < 0.7 * apart


def test_order_of_the_images_and_seeds():
    photos = [photo(i, 64 + 32 * i, 144) for i in range(3)]
    pairs = [(x, noisy(x, 0.03, i)) for i, x in enumerate(photos)]
    found = levels(pairs)
    assert [len(levels([pair])) for pair in pairs] == [3, 3, 4] and len(found) == 3
    assert levels(pairs) == found
    assert levels(pairs[::-1]) == pytest.approx(found, rel=1e-4)
    assert levels(pairs, seed=1) != found
    assert levels(pairs, seed=1) == pytest.approx(found, rel=0.2)


def test_the_coarsest_level_of_the_smallest_image_is_the_low_pass_one_of_all():
    cast = torch.tensor([0.05, 0, 0]).view(3, 1, 1)
    large, small = photo(0), photo(1, 64, 80)
    for pairs in ([(large, large + cast), (small, small)], [(small, small), (large, large + cast)]):
        found = levels(pairs)
        assert len(found) == 3 and found[-1] > 10 and found[-1] > 50 * max(found[:-1])


def test_memory_is_bounded(monkeypatch):
    monkeypatch.setattr(module, "_MOST", 600)
    pairs = [(photo(i), blurred(photo(i))) for i in range(5)]
    metric = SlicedWasserstein(patches=256, directions=64)
    for x, x_hat in pairs:
        metric.update(x, x_hat)
    assert {t.size(1) for image in metric._images for level in image for t in level if t is not None} == {64}
    other = SlicedWasserstein(patches=256, directions=64)
    for x, x_hat in reversed(pairs):
        other.update(x, x_hat)
    assert other.levels() == pytest.approx(metric.levels(), rel=1e-4)
    assert metric.levels() == pytest.approx(levels(pairs), rel=0.2)


# Refusals.


@pytest.mark.parametrize(
    ("x", "x_hat", "word"),
    [
        ((1, 3, 31, 64), (1, 3, 31, 64), "64x31"),
        ((1, 3, 64, 64), (1, 3, 64, 65), r"\(1, 3, 64, 65\)"),
        ((2, 3, 64, 64), (2, 3, 64, 64), r"two of \(1, 3, H, W\)"),
        ((1, 1, 64, 64), (1, 1, 64, 64), r"two of \(1, 3, H, W\)"),
    ],
)
def test_shapes_that_are_refused(x, x_hat, word):
    with pytest.raises(ShapeError, match=word):
        SlicedWasserstein().update(torch.zeros(x), torch.zeros(x_hat))


def test_no_image_and_flat_images():
    with pytest.raises(SgaError, match="no image"):
        SlicedWasserstein().compute()
    with pytest.raises(SgaError, match="level 0 of the originals is flat"):
        levels([(torch.full((1, 3, 32, 32), 0.3), photo(0, 32, 32))])
    assert levels([(photo(0, 32, 32), torch.full((1, 3, 32, 32), 0.3))], normalise="each")[0] > 100


@pytest.mark.parametrize(
    "settings", [{"normalise": "both"}, {"positions": "all"}, {"patches": 0}, {"directions": 0}]
)
def test_settings_that_are_refused(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        SlicedWasserstein(**settings)
