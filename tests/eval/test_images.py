# SPDX-License-Identifier: Apache-2.0
"""Crops are the middle, classical files the ones that were asked for."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import features
from torch.nn import functional
from torchvision.utils import save_image

from images import centre_crop, coarsest_jpeg, from_levels, jpeg, jpeg2000, levels, psnr_db


def picture(height: int, width: int, seed: int = 0) -> torch.Tensor:
    """Smooth, (1, 3, height, width), in 8 bits."""
    coarse = torch.rand(1, 3, 6, 6, generator=torch.Generator().manual_seed(seed))
    x = functional.interpolate(coarse, size=(height, width), mode="bicubic").clamp(0, 1)
    return (x * 255).round() / 255


def test_the_crop_is_the_middle(tmp_path):
    x = picture(26, 39)
    save_image(x, tmp_path / "a.png")
    assert torch.equal(centre_crop(tmp_path / "a.png"), x)
    assert torch.equal(centre_crop(tmp_path / "a.png", 24), x[:, :, 1:25, 7:31])
    assert torch.equal(centre_crop(tmp_path / "a.png", 30), x[:, :, :, 4:34])  # as much as there is


def test_levels_and_back():
    x = picture(8, 12)
    assert levels(x).shape == (8, 12, 3) and torch.equal(from_levels(levels(x)), x)
    assert levels(x + 2).min() == 255
    assert psnr_db(levels(x), levels(x)) == pytest.approx(120)
    black, white = np.zeros((2, 2, 3), np.uint8), np.full((2, 2, 3), 255, np.uint8)
    assert psnr_db(black, white) == psnr_db(white, black) == pytest.approx(0)


def test_the_jpeg_is_not_smaller():
    pixels = levels(picture(64, 64))
    for size in (900, 1200, 2000):
        file, quality = coarsest_jpeg(pixels, size)
        assert size <= len(file.data) and 1 < quality < 100
        assert len(jpeg(pixels, quality - 1).data) < size
        assert file.pixels.shape == pixels.shape and psnr_db(pixels, file.pixels) > 20
    assert coarsest_jpeg(pixels, 10**6)[1] == 100


@pytest.mark.skipif(not features.check("jpg_2000"), reason="Pillow was built without JPEG 2000")
def test_jpeg_2000_takes_the_bytes_that_it_is_given():
    noise = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    file = jpeg2000(levels(noise), 24 / 2)
    assert 900 < len(file.data) <= 1040  # of 1024
    assert file.data[:2] == b"\xff\x4f"  # a bare codestream
    assert len(jpeg2000(levels(noise), 24 / 4.5).data) > 2 * len(file.data)
