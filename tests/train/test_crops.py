# SPDX-License-Identifier: Apache-2.0
"""Claims of crops.py: crops come from the images that they should, at their scales, in part by detail."""

from __future__ import annotations

import math
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image


def picture(path: Path, width: int, height: int, colour: tuple[int, int, int] = (90, 120, 150)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (width, height), colour).save(path)


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


def sizes(folder: Path, **options) -> list[tuple[int, int]]:
    """(width, height) of what a sampler keeps."""
    from crops import CropSampler

    return [tuple(image.shape[:0:-1]) for image in CropSampler(folder, **options).images]


def test_crops_are_pixels_of_the_images_up_to_flips(tmp_path):
    ramp = torch.arange(64 * 64).reshape(64, 64)
    rgb = torch.stack([ramp % 256, ramp // 256, torch.full_like(ramp, 7)], -1).byte()
    Image.fromarray(rgb.numpy()).save(tmp_path / "ramp.png")
    from crops import CropSampler

    sampler = CropSampler(tmp_path, min_size=64)
    assert len(sampler.images) == 1  # the smaller scale is below min_size
    corners = set()
    for crop in (sampler.batch(400, 16) * 255).round().long():
        value = crop[0] + 256 * crop[1]
        steps = {int((value[0, 1] - value[0, 0]).abs()), int((value[1, 0] - value[0, 0]).abs())}
        assert steps == {1, 64}
        assert (crop[2] == 7).all()
        corners.add(int(value.min()))
    rows, columns = {corner // 64 for corner in corners}, {corner % 64 for corner in corners}
    assert rows == columns == set(range(49))  # every place up to the last; 400 draws miss one with 1e-2


def test_all_eight_turns_occur(tmp_path):
    dot = torch.zeros(16, 16, 3, dtype=torch.uint8)
    dot[0, 1] = 255  # one of the eight places that turns can bring it to
    Image.fromarray(dot.numpy()).save(tmp_path / "dot.png")
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


def test_the_generators_state_is_all_that_a_resumed_run_needs(photos):
    from crops import CropSampler

    first, second = (CropSampler(photos, seed=seed) for seed in (1, 2))
    first.batch(3, 64)
    second.generator.set_state(first.generator.get_state())
    assert torch.equal(first.batch(8, 64), second.batch(8, 64))


@pytest.mark.parametrize(
    ("size", "kept"),
    [
        ((2048, 1400), [(1024, 700), (768, 525), (512, 350)]),
        ((1100, 1000), [(550, 500), (412, 375)]),  # 250 at a quarter is too small
        ((3000, 400), [(1920, 256)]),  # none of its scales fits: as small as may be
        ((1000, 1000), [(1000, 1000), (750, 750)]),  # a megapixel is not above a megapixel
        ((600, 400), [(600, 400), (450, 300)]),
        ((500, 300), [(500, 300)]),
        ((256, 256), [(256, 256)]),
    ],
)
def test_photographs_are_kept_at_the_scales_that_their_size_asks_for(tmp_path, size, kept):
    picture(tmp_path / "photo.png", *size)
    assert sizes(tmp_path, min_size=256) == kept


def test_scales_can_be_others(tmp_path):
    picture(tmp_path / "photo.png", 1600, 1000)
    assert sizes(tmp_path, scales=lambda pixels: (1, 0.5)) == [(1600, 1000), (800, 500)]
    assert sizes(tmp_path, scales=lambda pixels: (pixels / 1.6e6,)) == [(1600, 1000)]


def test_held_out_photographs_are_never_drawn(tmp_path):
    from crops import CropSampler, held_out, photographs

    red = sorted(held_out())[0]
    picture(tmp_path / red, 64, 64, (255, 0, 0))
    picture(tmp_path / "deeper" / red, 64, 64, (255, 0, 0))
    picture(tmp_path / "other" / Path(red).name, 64, 64, (0, 0, 255))  # the same name in another folder
    picture(tmp_path / "other" / "mies-lossless.png", 64, 64, (0, 255, 0))
    crops = CropSampler(tmp_path, 32, leave_out=["mies-lossless.png"]).batch(64, 32)
    assert crops[:, 0].max() < 0.1 and crops[:, 1].max() < 0.1 and crops[:, 2].min() > 0.9
    crops = CropSampler(tmp_path, 32, held=True).batch(64, 32)
    assert crops[:, 2].max() < 0.1 and crops[:, 0].min() > 0.9
    assert len(photographs(tmp_path)) == len(photographs(tmp_path, held=True)) == 2


def test_the_list_of_held_out_photographs_has_both_kinds_and_no_doubles():
    from crops import HELD_OUT, held_out

    lines = [line for line in HELD_OUT.read_text().splitlines() if line and not line.startswith("#")]
    assert len(lines) == len(held_out()) == 16
    assert all(line.count("/") == 1 for line in lines)
    assert {line.split("/")[0] for line in lines} >= {"clic2025", "cid22_training"}


@pytest.mark.parametrize(("share", "probability"), [(0.0, 1 / 2), (0.5, 23 / 32), (1.0, 15 / 16)])
def test_the_share_by_detail_is_the_most_detailed_of_four(tmp_path, share, probability):
    """Two images alike but for their detail: the best of four has it with 1 - 2^-4. Binomial test, two-sided:
    |z| < 4.4 has a false alarm of 1e-5."""
    from crops import CropSampler

    picture(tmp_path / "flat.png", 64, 64)
    noise(64, 64).save(tmp_path / "noise.png")
    crops = CropSampler(tmp_path, min_size=64, seed=5, detailed_share=share).batch(2000, 16)
    found = int((crops.flatten(1).std(1) > 0.1).sum())
    z = (found - 2000 * probability) / math.sqrt(2000 * probability * (1 - probability))
    assert abs(z) < 4.4


def test_detail_goes_where_the_level_is_high(tmp_path):
    """Crops of level 0 are drawn by area, those of 1 are the best of four; a share that is given rules."""
    from crops import CropSampler

    picture(tmp_path / "flat.png", 64, 64)
    noise(64, 64).save(tmp_path / "noise.png")
    level = torch.arange(4000) % 2
    for share, expected in ((None, (1 / 2, 15 / 16)), (0.0, (1 / 2, 1 / 2))):
        crops = CropSampler(tmp_path, min_size=64, seed=5, detailed_share=share).batch(4000, 16, level)
        detailed = crops.flatten(1).std(1) > 0.1
        for value, probability in enumerate(expected):
            found = int(detailed[level == value].sum())
            z = (found - 2000 * probability) / math.sqrt(2000 * probability * (1 - probability))
            assert abs(z) < 4.4  # false alarm 1e-5 each


def test_energy_is_that_of_the_gradients_in_the_crops_cells(tmp_path):
    """Of images of several shapes, against sums over their pixels."""
    from crops import CELL_PX, CropSampler

    for index, size in enumerate(((96, 41), (40, 77), (64, 64))):
        noise(*size, seed=index).save(tmp_path / f"{index}.png")
    sampler = CropSampler(tmp_path, min_size=40, detailed_share=1)
    image, top, left = sampler._places(200, 36)
    energy = sampler._energy(image, top, left, 36)
    for i, y, x, found in zip(image.tolist(), top.tolist(), left.tolist(), energy.tolist()):
        grey = np.pad(sampler.images[i].double().mean(0).numpy(), ((0, 1), (0, 1)), mode="edge")
        squares = np.diff(grey, axis=0)[:, :-1] ** 2 + np.diff(grey, axis=1)[:-1] ** 2
        y, x, side = y // CELL_PX * CELL_PX, x // CELL_PX * CELL_PX, 36 // CELL_PX * CELL_PX
        assert found == pytest.approx(squares[y : y + side, x : x + side].sum(), rel=1e-4)
    assert (sampler._energy(image, top, left, 4) == 0).all()  # no whole cell: drawn as it comes
    assert sampler.batch(8, 4).shape == (8, 3, 4, 4)


def test_images_are_drawn_by_the_root_of_their_area(tmp_path):
    """Four times the area, twice the crops; binomial test, two-sided, |z| < 4.4 (false alarm 1e-5)."""
    from crops import CropSampler

    picture(tmp_path / "small.png", 64, 64, (255, 255, 255))
    picture(tmp_path / "large.png", 128, 128, (0, 0, 0))
    sampler = CropSampler(tmp_path, min_size=64, scales=lambda pixels: (1,), detailed_share=0)
    large = int((sampler.batch(1800, 8)[:, 0, 0, 0] == 0).sum())
    assert abs(large - 1200) / math.sqrt(1800 * 2 / 9) < 4.4


def test_large_crops_come_from_images_that_have_room(tmp_path):
    from crops import CropSampler

    picture(tmp_path / "small.png", 80, 300, (255, 255, 255))
    picture(tmp_path / "large.png", 100, 100, (0, 0, 0))
    sampler = CropSampler(tmp_path, min_size=64)
    assert sampler.batch(20, 100).max() == 0
    with pytest.raises(ValueError, match="a crop of 128 pixels; the largest possible crop has 100"):
        sampler.batch(1, 128)


def test_grey_and_transparent_images_and_palettes_are_read(tmp_path):
    from crops import CropSampler

    for mode in ("L", "1", "P", "RGBA", "CMYK"):
        suffix = "jpg" if mode == "CMYK" else "png"
        noise(48, 48).convert(mode).save(tmp_path / f"{mode}.{suffix}")
    crops = CropSampler(tmp_path, min_size=48).batch(64, 24)
    assert crops.shape == (64, 3, 24, 24)
    assert min(crop.std() for crop in crops) > 0.05


def test_unreadable_files_are_named_with_the_cure(tmp_path):
    from crops import CropSampler

    noise(64, 64).save(tmp_path / "good.png")
    good = (tmp_path / "good.png").read_bytes()
    deep = Image.fromarray(np.arange(64 * 64, dtype=np.uint16).reshape(64, 64))
    for damage in (b"no image", b"", good[: len(good) // 2], good[:60] + b"xxxx" + good[64:]):
        (tmp_path / "bad.png").write_bytes(damage)
        with pytest.raises(ValueError, match=r"bad\.png cannot be read as an image .*; repair or remove it"):
            CropSampler(tmp_path, min_size=64)
    deep.save(tmp_path / "bad.png")
    with pytest.raises(ValueError, match=r"bad\.png .*mode I;16 has more than 8 bits a value"):
        CropSampler(tmp_path, min_size=64)


def test_images_that_are_too_small_are_refused(photos, tmp_path):
    from crops import CropSampler

    with pytest.raises(ValueError, match="both sides of at least 1000 pixels; .*--data"):
        CropSampler(photos, min_size=1000)
    with pytest.raises(ValueError, match=r"at least 256 pixels in held_out\.txt"):
        CropSampler(photos, held=True)
    with pytest.raises(ValueError, match="holds no image"):
        CropSampler(tmp_path)


def test_a_share_is_a_part(photos):
    from crops import CropSampler

    with pytest.raises(ValueError, match="detailed_share is 50; .* give 0 to 1"):
        CropSampler(photos, detailed_share=50)


def test_a_batch_costs_little(photos):
    """A hundredth of a step of training; the least of many, as others may be at work."""
    from crops import CropSampler

    sampler = CropSampler(photos)
    seconds = []
    for _ in range(50):
        tick = time.process_time()
        sampler.batch(8, 128)
        seconds.append(time.process_time() - tick)
    assert min(seconds) < 4e-3
