# SPDX-License-Identifier: Apache-2.0
"""zoo/train/critic_model.py: squares on the diagonal, and a file that is the model that was fitted."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
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


def test_squares_lie_on_the_diagonal(recipe, tmp_path):
    picture(tmp_path, "a.png", 300, 400)
    first, middle, last = recipe.squares(tmp_path / "a.png")
    assert first.shape == middle.shape == last.shape == (1, 3, 256, 256)
    assert [int(square[0, 0, 0, 0]) for square in (first, middle, last)] == [
        (3 * top + left) % 256 for top, left in ((0, 0), (22, 72), (44, 144))
    ]
    picture(tmp_path, "b.png", 256, 256)
    assert len(recipe.squares(tmp_path / "b.png")) == 1  # three times the same
    picture(tmp_path, "c.png", 255, 400)
    assert recipe.squares(tmp_path / "c.png") == []


def test_the_file_is_the_model(recipe, tmp_path, capsys):
    picture(tmp_path, "a.png", 256, 256)
    picture(tmp_path, "mies-lossless.png", 300, 300)  # left out: no photograph
    out = tmp_path / "made.py"
    recipe.main(["--data", str(tmp_path), "--out", str(out)])
    assert capsys.readouterr().out.startswith("1 squares: ")
    text = out.read_text().replace("from .pixel_model", "from compressai_sga.metrics.pixel_model")
    out.write_text(text)
    spec = importlib.util.spec_from_file_location("made", out)
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    (square,) = recipe.squares(tmp_path / "a.png")
    bits = [float(model.bits(square)) for model in (made.PHOTOGRAPHS, PixelModel.fit([square]))]
    assert bits[0] == pytest.approx(bits[1], rel=1e-4)  # weights are half precision, written with five digits


def test_the_shipped_file_is_of_this_form(recipe):
    text = Path(photographs.__file__).read_text(encoding="utf-8")
    planes = "\n".join(map(recipe.as_python, photographs.PHOTOGRAPHS.planes))
    assert text.endswith(f"    planes=(\n{planes}\n    ),\n)\n")


def test_no_images_are_named(recipe, tmp_path):
    with pytest.raises(FileNotFoundError, match="no image of 256 px"):
        recipe.main(["--data", str(tmp_path)])
