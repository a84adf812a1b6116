# SPDX-License-Identifier: Apache-2.0
"""zoo/train/critic_model.py: scaled squares of every photograph, and a file that is the fitted model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from torchvision.transforms.functional import pil_to_tensor, to_pil_image
from torchvision.utils import save_image

from compressai_sga.metrics import photographs
from compressai_sga.metrics.pixel_model import PixelModel


@pytest.fixture
def recipe(recipe_on_path):
    import critic_model

    return critic_model


def picture(folder: Path, name: str, height: int, width: int) -> None:
    rows, columns = torch.arange(height)[:, None], torch.arange(width)[None]
    values = torch.stack([(3 * rows + columns) % 256, (rows * columns) % 251, (rows - columns) % 256])
    save_image(values.float()[None] / 255, folder / name)


def test_squares_take_scales_and_places_on_the_diagonal_in_turn(recipe, tmp_path):
    picture(tmp_path, "a.png", 350, 400)
    image = recipe.read_rgb(tmp_path / "a.png")
    first = [recipe.square(image, index) for index in (0, 2, 4)]  # 350 x 400; index 1, 3, 5: 262 x 300
    assert {tuple(x.shape) for x in first} == {(1, 3, 256, 256)} and first[0].dtype == torch.uint8
    assert [int(x[0, 0, 0, 0]) for x in first] == [
        (3 * top + left) % 256 for top, left in ((0, 0), (47, 72), (94, 144))
    ]
    smaller = pil_to_tensor(image.resize((300, 262), Image.Resampling.LANCZOS))[None]
    assert torch.equal(recipe.square(image, 1), smaller[..., :256, :256])
    assert torch.equal(recipe.square(image, 5), smaller[..., -256:, -256:])
    assert torch.equal(recipe.square(image, 6), first[0])


def test_squares_of_large_photographs_are_reduced(recipe):
    rows, columns = torch.arange(1200)[:, None], torch.arange(1600)[None]
    image = to_pil_image(((rows + columns) % 2 * 255).to(torch.uint8).expand(3, -1, -1).contiguous())
    for index in range(3):
        assert (
            recipe.square(image, index).float().std() < 1
        )  # a grid of single pixels is grey at half its size
    assert recipe.square(image.resize((2000, 255)), 0) is None


def test_the_file_is_the_model(recipe, tmp_path, capsys):
    from crops import held_out

    picture(tmp_path, "a.png", 256, 256)
    picture(tmp_path, "mies-lossless.png", 300, 300)  # left out: no photograph
    picture(tmp_path, "small.png", 300, 255)
    aside = tmp_path / sorted(held_out())[0]
    aside.parent.mkdir()
    picture(aside.parent, aside.name, 300, 300)
    out = tmp_path / "made.json"
    recipe.main(["--data", str(tmp_path), "--out", str(out)])
    assert capsys.readouterr().out.startswith("1 squares: ")
    assert "1 squares of 256 px" in out.read_text() and f"of the folders {tmp_path.name} (" in out.read_text()
    square = recipe.square(recipe.read_rgb(tmp_path / "a.png"), 0)
    bits = [float(model.bits(square)) for model in (photographs.read(out), PixelModel.fit([square]))]
    assert bits[0] == pytest.approx(bits[1], rel=1e-4)  # weights are half precision, written with five digits


def test_squares_in_parts_are_the_same_model(recipe, tmp_path, monkeypatch):
    for index in range(3):
        picture(tmp_path, f"{index}.png", 300 + 16 * index, 280)
    texts = []
    for at_once in (1, 16):
        monkeypatch.setattr(recipe, "AT_ONCE", at_once)
        recipe.main(["--data", str(tmp_path), "--out", str(tmp_path / "made.json")])
        texts.append((tmp_path / "made.json").read_text())
    assert texts[0] == texts[1] and "3 squares of" in texts[0]


def test_the_shipped_file_is_of_this_form(recipe):
    text = recipe.OUT.read_text(encoding="utf-8")
    assert text == recipe.as_json(photographs.PHOTOGRAPHS, json.loads(text)["source"])


def test_no_images_are_named(recipe, tmp_path):
    with pytest.raises(FileNotFoundError, match="no image of 256 px"):
        recipe.main(["--data", str(tmp_path)])
