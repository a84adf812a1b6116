# SPDX-License-Identifier: Apache-2.0
"""The recipe's scripts import each other as neighbours; here they are put on the path like that."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from torchvision.transforms.functional import to_pil_image

from tests.train.synthetic import synthetic_photo

RECIPE = Path(__file__).resolve().parents[2] / "zoo" / "train"


@pytest.fixture(autouse=True)
def recipe_on_path(monkeypatch):
    """For imports inside of the tests; the modules' plain names do not outlive the test."""
    monkeypatch.syspath_prepend(str(RECIPE))
    yield
    for path in RECIPE.glob("*.py"):
        if path.stem != "queue":  # under that name it is the standard library's
            sys.modules.pop(path.stem, None)


@pytest.fixture(scope="session")
def photos(tmp_path_factory) -> Path:
    """A folder of three pictures."""
    folder = tmp_path_factory.mktemp("photos")
    for seed in range(3):
        to_pil_image(synthetic_photo(384, seed)).save(folder / f"{seed}.png")
    return folder
