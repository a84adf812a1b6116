# SPDX-License-Identifier: Apache-2.0
"""Claims of latent_width.py: wider is better; held-out photographs are measured, or those that are named."""

from __future__ import annotations

import pytest
import torch
from torchvision.transforms.functional import to_pil_image

from tests.train.synthetic import synthetic_photo


@pytest.fixture
def width(recipe_on_path, monkeypatch):
    import latent_width

    monkeypatch.setattr(latent_width, "CROPS", 8)
    threads = torch.get_num_threads()
    yield latent_width
    torch.set_num_threads(threads)


def psnrs(printed: str) -> list[float]:
    return [float(cell) for cell in printed.splitlines()[-1].strip("| ").split(" | ")[1:]]


def test_wider_latents_hold_more_of_held_out_photographs(width, photos, tmp_path, capsys):
    from crops import held_out

    with pytest.raises(ValueError, match="holds no image to measure; .* --images"):
        width.main(["--data", str(photos)])
    for path in photos.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    path = tmp_path / next(name for name in sorted(held_out()) if name.startswith("cid22"))
    path.parent.mkdir()
    to_pil_image(synthetic_photo(300, 9)).save(path, lossless=True)
    width.main(["--data", str(tmp_path)])
    held = psnrs(capsys.readouterr().out)
    assert len(held) == 5 and held == sorted(held) and held[-1] > held[0] + 1
    width.main(["--data", str(tmp_path), "--images", str(path.parent)])
    assert psnrs(capsys.readouterr().out) == held  # the same photograph
    width.main(["--data", str(photos), "--images", str(photos)])
    assert psnrs(capsys.readouterr().out) != held
