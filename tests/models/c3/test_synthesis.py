# SPDX-License-Identifier: Apache-2.0
"""Claims of models/c3/_synthesis.cpp: torch's image up to the last bits, for any size; wrong arguments are
refused. And of native.py: from a checkout it finds the extension of an installed package."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from compressai_sga.models.c3 import native
from compressai_sga.models.c3.contexts import grid_sizes

if not native.AVAILABLE:
    pytest.skip("the C++ extension was not built (no compiler?)", allow_module_level=True)


def random_layers(seed: int, activation: str, channels: int = 7, width: int = 18, colours: int = 3) -> list:
    rng = np.random.default_rng(seed)

    def layer(outputs: int, inputs: int, k: int, activation: str, residual: bool) -> tuple:
        weight = rng.normal(size=(outputs, inputs, k, k)) / np.sqrt(inputs * k * k)
        bias = rng.normal(size=outputs) / 4
        return weight.astype(np.float32), bias.astype(np.float32), activation, residual

    return [
        layer(width, channels, 1, activation, False),
        layer(width, width, 1, activation, True),
        layer(colours, width, 1, "none", False),
        layer(colours, colours, 3, activation, True),
        layer(colours, colours, 3, "none", True),
    ]


def by_torch(channels: list, layers: list, size: tuple[int, int]) -> np.ndarray:
    """In float64, since torch's own float32 has errors of this size too."""
    x = torch.cat(
        [F.interpolate(torch.tensor(c)[None, None].double(), size, mode="bilinear") for c in channels], dim=1
    )
    for weight, bias, activation, residual in layers:
        border = weight.shape[-1] // 2
        padded = F.pad(x, (border,) * 4, mode="replicate") if border else x
        y = F.conv2d(padded, torch.tensor(weight).double(), torch.tensor(bias).double()) + (
            x if residual else 0
        )
        x = {"none": lambda v: v, "gelu": F.gelu, "relu": F.relu}[activation](y)
    return x[0].numpy()


@pytest.mark.parametrize("activation", ["gelu", "relu"])
@pytest.mark.parametrize("size", [(1, 1), (1, 33), (33, 1), (2, 3), (31, 32), (70, 45), (64, 96)])
def test_same_image_as_torch(size, activation):
    """To 1e-5 where values reach 10 or so; a level of an 8-bit image is 4e-3 of values within 1."""
    rng = np.random.default_rng(0)
    channels = [(2 * rng.laplace(size=s)).astype(np.float32) for s in grid_sizes(*size)]
    layers = random_layers(1, activation)
    image = native.synthesise(channels, layers, size)
    assert image.dtype == np.float32 and image.shape == (3, *size)
    assert np.abs(image - by_torch(channels, layers, size)).max() < 1e-5


def test_other_widths_and_no_layers():
    rng = np.random.default_rng(0)
    channels = [rng.normal(size=s).astype(np.float32) for s in ((5, 9), (3, 5))]
    layers = random_layers(2, "gelu", channels=2, width=5, colours=1)
    image = native.synthesise(channels, layers, (9, 17))
    assert np.abs(image - by_torch(channels, layers, (9, 17))).max() < 1e-5
    assert np.abs(native.synthesise(channels, [], (9, 17)) - by_torch(channels, [], (9, 17))).max() < 1e-6


def test_extreme_values_do_no_harm():
    channels = [np.full((4, 4), value, np.float32) for value in (1e38, -1e38, np.nan, np.inf, 0, 1e-40, 300)]
    layers = random_layers(1, "gelu")
    assert native.synthesise(channels, layers, (4, 4)).shape == (3, 4, 4)
    exact = [(np.eye(7, dtype=np.float32)[:, :, None, None], np.zeros(7, np.float32), "gelu", False)]
    x = np.linspace(-12, 12, 7 * 64, dtype=np.float32).reshape(7, 8, 8)
    difference = native.synthesise(list(x), exact, (8, 8)) - F.gelu(torch.tensor(x).double()).numpy()
    assert np.abs(difference).max() < 1e-6
    x *= 1e3
    assert np.allclose(native.synthesise(list(x), exact, (8, 8)), np.maximum(x, 0), rtol=0, atol=1e-30)


def test_arguments_that_it_refuses():
    channels = [np.zeros((4, 4), np.float32)] * 7
    good = random_layers(0, "relu")
    native.synthesise(channels, good, (8, 8))
    w, b, activation, _ = good[0]
    for chosen, layers, size in (
        ([], good, (8, 8)),
        (channels[:6], good, (8, 8)),
        (channels, good, (0, 8)),
        (channels, good, (8, 1 << 16)),
        ([np.zeros((0, 4), np.float32)] * 7, good, (8, 8)),
        ([np.zeros(4, np.float32)] * 7, good, (8, 8)),
        (channels, good[1:], (8, 8)),
        (channels, [good[3], *good[:3]], (8, 8)),
        (channels, [(w, b[:-1], activation, False)], (8, 8)),
        (channels, [(w, b, activation, True)], (8, 8)),
        (channels, [(w[:, :, 0, 0], b, activation, False)], (8, 8)),
        (channels, [(np.zeros((3, 7, 2, 2)), np.zeros(3), activation, False)], (8, 8)),
        (channels, [(np.zeros((3, 7, 1, 3)), np.zeros(3), activation, False)], (8, 8)),
        (channels, [(np.zeros((200, 7, 1, 1)), np.zeros(200), activation, False)], (8, 8)),
    ):
        with pytest.raises(ValueError, match="synthesis: "):
            native.synthesise(chosen, layers, size)
    with pytest.raises(ValueError):
        native.synthesise(channels, [(w, b, "tanh", False)], (8, 8))


def test_extension_of_an_installed_package(tmp_path):
    """A package without extension, before one with it on the path: that one's extension is taken."""
    package = Path(native.__file__).parents[2]
    extension = Path(native._native.__file__)
    ignore = shutil.ignore_patterns("_native*", "__pycache__", "_zoo")
    shutil.copytree(package, tmp_path / "checkout" / package.name, ignore=ignore)
    shutil.copy(package.parent / "compressai_sga_startup.py", tmp_path / "checkout")
    installed = tmp_path / "site" / Path(*Path(native.__file__).parts[-4:-1])
    installed.mkdir(parents=True)
    shutil.copy(extension, installed / extension.name)
    program = f"""
import os, sys
sys.path.insert(0, {str(tmp_path / "checkout")!r})
from compressai_sga.models.c3 import native
# Nothing is imported any more; the package may lie beside torch, and is not to be found there.
sys.path[:] = [p for p in sys.path if not os.path.isdir(os.path.join(p or ".", "compressai_sga"))]
before = native._load() is not None
sys.path.append({str(tmp_path / "site")!r})
print(before, native._load() is not None, "checkout" in native.__file__)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path)
    assert done.stdout.split() == ["False", "True", "True"], done.stderr
