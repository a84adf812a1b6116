# SPDX-License-Identifier: Apache-2.0
"""Claims of crops.py: crops come from the images, from all of them, and only from the seed."""

from __future__ import annotations

import pytest
import torch
from PIL import Image


def test_crops_are_pixels_of_the_images_up_to_flips(tmp_path):
    ramp = torch.arange(64 * 64).reshape(64, 64)
    rgb = torch.stack([ramp % 256, ramp // 256, torch.full_like(ramp, 7)], -1).byte()
    Image.fromarray(rgb.numpy()).save(tmp_path / "ramp.png")
    from crops import CropSampler

    sampler = CropSampler(tmp_path, min_size=64)
    assert len(sampler.images) == 1  # the smaller scales are below min_size
    for crop in (sampler.batch(20, 16) * 255).round().long():
        value = crop[0] + 256 * crop[1]
        steps = {int((value[0, 1] - value[0, 0]).abs()), int((value[1, 0] - value[0, 0]).abs())}
        assert steps == {1, 64}
        assert (crop[2] == 7).all()


def test_all_eight_turns_occur(tmp_path):
    picture = torch.zeros(16, 16, 3, dtype=torch.uint8)
    picture[0, 1] = 255  # one of the eight places that turns can bring it to
    Image.fromarray(picture.numpy()).save(tmp_path / "dot.png")
    from crops import CropSampler

    crops = CropSampler(tmp_path, min_size=16, seed=3).batch(200, 16)
    assert len({tuple(crop[0].nonzero()[0].tolist()) for crop in crops}) == 8


def test_same_seed_same_crops(photos):
    from crops import CropSampler

    a, b, c = (CropSampler(photos, seed=seed).batch(4, 64) for seed in (1, 1, 2))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)
    assert a.shape == (4, 3, 64, 64)
    assert a.dtype == torch.float32
    assert 0 <= a.min() <= a.max() <= 1


def test_scales_are_kept_down_to_the_minimum(photos):
    from crops import CropSampler

    sizes = sorted({image.shape[1] for image in CropSampler(photos, min_size=256).images})
    assert sizes == [288, 384]


def test_images_that_are_too_small_are_refused(photos):
    from crops import CropSampler

    with pytest.raises(ValueError, match="both sides of at least 1000 pixels.*--data"):
        CropSampler(photos, min_size=1000)
