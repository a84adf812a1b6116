# SPDX-License-Identifier: Apache-2.0
"""The recipe's scripts import each other as neighbours; here they are put on the path like that.

`photos` is a folder of generated pictures whose spectrum falls like that of photographs (amplitude
about 1/frequency), with correlated colours and a few sharp edges.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torchvision.transforms.functional import to_pil_image

RECIPE = Path(__file__).resolve().parents[2] / "zoo" / "train"


@pytest.fixture(autouse=True)
def recipe_on_path(monkeypatch):
    """For imports inside of the tests; the modules' plain names do not outlive the test."""
    monkeypatch.syspath_prepend(str(RECIPE))
    yield
    for path in RECIPE.glob("*.py"):
        if path.stem != "queue":  # under that name it is the standard library's
            sys.modules.pop(path.stem, None)


def synthetic_photo(size: int, seed: int) -> torch.Tensor:
    """A picture of shape (3, size, size) in [0, 1] with an amplitude spectrum of about 1/f."""
    generator = torch.Generator().manual_seed(seed)
    frequency = torch.fft.fftfreq(size)[:, None] ** 2 + torch.fft.rfftfreq(size)[None] ** 2
    spectrum = torch.fft.rfft2(torch.randn(3, size, size, generator=generator))
    noise = torch.fft.irfft2(spectrum / (frequency.sqrt() + 1 / size) ** 1.3, s=(size, size))
    mix = torch.tensor([[1.0, 0.3, 0.1], [1.0, -0.1, -0.2], [1.0, -0.3, 0.2]])
    picture = torch.einsum("ck,khw->chw", mix, noise)
    picture = picture / picture.std() * 0.15 + 0.5
    top, left, side = torch.randint(size // 8, size // 2, (3,), generator=generator).tolist()
    picture[:, top : top + side, left : left + side] *= 0.6
    return picture.clamp(0, 1)


@pytest.fixture(scope="session")
def photos(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for seed in range(3):
        to_pil_image(synthetic_photo(384, seed)).save(folder / f"{seed}.png")
    return folder
