# SPDX-License-Identifier: Apache-2.0
"""Claims of models/c3/{_synthesis.cpp,_rows.hpp}: torch's image up to the last bits, for any size, with and
without AVX2; wrong arguments are refused. And of native.py: from a checkout it finds the extension of an
installed package."""

from __future__ import annotations

import platform
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

    def layer(
        outputs: int, inputs: int, k: int, activation: str, residual: bool, skip: bool = False
    ) -> tuple:
        weight = rng.normal(size=(outputs, inputs, k, k)) / np.sqrt(inputs * k * k)
        bias, linear = rng.normal(size=outputs) / 4, rng.normal(size=(outputs, channels)) / 4
        arrays = [array.astype(np.float32) for array in (weight, bias, linear)]
        return arrays[0], arrays[1], activation, residual, arrays[2] if skip else None

    return [
        layer(width, channels, 1, activation, False),
        layer(width, width, 1, activation, True),
        layer(colours, width, 1, "none", False, skip=True),
        layer(colours, colours, 3, activation, True),
        layer(colours, colours, 3, "none", True),
    ]


def random_taps(seed: int, count: int) -> np.ndarray:
    """Around bilinear ones, or the coarsest channels fade or explode."""
    taps = 0.1 * np.random.default_rng(seed).normal(size=(count, 4)) + (0, 0.25, 0.75, 0)
    return taps.astype(np.float32)


def doubled(plane: np.ndarray, taps: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """By the formula: y_2i = sum_j p_j x_(i+j), y_(2i+1) = sum_j p_j x_(i-j), rows and columns."""
    for length in size:
        half = np.arange(length) // 2
        way = 1 - 2 * (np.arange(length) % 2)
        plane = sum(
            taps[j + 2] * plane[np.clip(half + way * j, 0, len(plane) - 1)] for j in range(-2, 2)
        ).T  # and the columns next
    return plane


def by_torch(channels: list, layers: list, size: tuple[int, int], taps=None, first: int = 0) -> np.ndarray:
    """In float64, since torch's own float32 has errors of this size too."""
    planes = []
    for i, channel in enumerate(channels):
        if taps is None:
            plane = F.interpolate(torch.tensor(channel)[None, None].double(), size, mode="bilinear")[0, 0]
        else:
            plane = channel.astype(np.float64)
            for exponent in range(first + i - 1, -1, -1):
                here = tuple(-(-side >> exponent) for side in size)
                plane = doubled(plane, taps[exponent].astype(np.float64), here)
            plane = torch.tensor(plane)
        planes.append(plane)
    x = seen = torch.stack(planes)[None]
    for weight, bias, activation, residual, skip in layers:
        border = weight.shape[-1] // 2
        padded = F.pad(x, (border,) * 4, mode="replicate") if border else x
        y = F.conv2d(padded, torch.tensor(weight).double(), torch.tensor(bias).double())
        y = y + x if residual else y
        if skip is not None:
            y = y + torch.einsum("oc,bchw->bohw", torch.tensor(skip).double(), seen)
        x = {"none": lambda v: v, "gelu": F.gelu, "relu": F.relu}[activation](y)
    return x[0].numpy()


SIZES = [(1, 1), (1, 33), (33, 1), (2, 3), (31, 32), (70, 45), (64, 96), (5, 193)]


@pytest.mark.parametrize("portable", [False, True], ids=["fast", "portable"])
@pytest.mark.parametrize("activation", ["gelu", "relu"])
@pytest.mark.parametrize("size", SIZES)
def test_same_image_as_torch(size, activation, portable):
    """To 1e-5 where values reach 10 or so; a level of an 8-bit image is 4e-3 of values within 1."""
    rng = np.random.default_rng(0)
    channels = [(2 * rng.laplace(size=s)).astype(np.float32) for s in grid_sizes(*size)]
    layers = random_layers(1, activation)
    image = native.synthesise(channels, layers, size, portable=portable)
    assert image.dtype == np.float32 and image.shape == (3, *size)
    assert np.abs(image - by_torch(channels, layers, size)).max() < 1e-5


@pytest.mark.parametrize("portable", [False, True], ids=["fast", "portable"])
@pytest.mark.parametrize(("grids", "first"), [(7, 0), (3, 2), (1, 4), (2, 0), (16, 15)])
@pytest.mark.parametrize("size", SIZES)
def test_learned_upsampling(size, grids, first, portable):
    """By its formula, for grids of which the finest has the image's size or not; with the skip."""
    rng = np.random.default_rng(0)
    sizes = grid_sizes(*size, grids, first)
    channels = [(2 * rng.laplace(size=s)).astype(np.float32) for s in sizes]
    taps, layers = random_taps(2, first + grids - 1), random_layers(1, "gelu", grids)
    for chosen in ([], layers):
        image = native.synthesise(channels, chosen, size, doublings=taps, first=first, portable=portable)
        exact = by_torch(channels, chosen, size, taps, first)
        assert np.abs(image - exact).max() < 1e-5 * max(1.0, np.abs(exact).max())


def test_fast_kernels_are_taken_where_the_processor_runs_them():
    flags = Path("/proc/cpuinfo")
    if platform.machine() != "x86_64" or not flags.is_file():
        pytest.skip("no such kernels here, or no way to know")
    assert native._native.FAST == ({"avx2", "fma"} <= set(flags.read_text().split()))


def test_other_widths_and_no_layers():
    rng = np.random.default_rng(0)
    channels = [rng.normal(size=s).astype(np.float32) for s in ((5, 9), (3, 5))]
    for width, colours in ((5, 1), (2, 4), (128, 5)):
        layers = random_layers(2, "gelu", channels=2, width=width, colours=colours)
        image = native.synthesise(channels, layers, (9, 17))
        assert np.abs(image - by_torch(channels, layers, (9, 17))).max() < 1e-5
        wider = (np.ones((7, colours, 3, 3), np.float32) / 9, np.ones(7, np.float32), "relu", False, None)
        image = native.synthesise(channels, [*layers, wider], (9, 17))
        assert np.abs(image - by_torch(channels, [*layers, wider], (9, 17))).max() < 1e-5
    assert np.abs(native.synthesise(channels, [], (9, 17)) - by_torch(channels, [], (9, 17))).max() < 1e-6


def test_gelu():
    """To 1e-6, and the identity or next to nothing far out."""
    exact = [(np.eye(7, dtype=np.float32)[:, :, None, None], np.zeros(7, np.float32), "gelu", False, None)]
    near = np.linspace(-12, 12, 7 * 64 * 64, dtype=np.float32).reshape(7, 64, 64)
    for portable in (False, True):
        for x in (near, 1000 * near):
            found = native.synthesise(list(x), exact, (64, 64), portable=portable)
            assert np.abs(found - F.gelu(torch.tensor(x).double()).numpy()).max() < 1e-6


def test_extreme_values_do_no_harm():
    channels = [np.full((4, 4), value, np.float32) for value in (1e38, -1e38, np.nan, np.inf, 0, 1e-40, 300)]
    layers = random_layers(1, "gelu")
    taps = np.array([[np.nan, 1e38, -np.inf, 1]] * 6, np.float32)
    for portable in (False, True):
        assert native.synthesise(channels, layers, (4, 4), portable=portable).shape == (3, 4, 4)
        grids = [channel[: -(-4 >> i), : -(-4 >> i)] for i, channel in enumerate(channels)]
        image = native.synthesise(grids, layers, (4, 4), doublings=taps, portable=portable)
        assert image.shape == (3, 4, 4)


def test_arguments_that_it_refuses():
    channels = [np.zeros((4, 4), np.float32)] * 7
    good = random_layers(0, "relu")
    native.synthesise(channels, good, (8, 8))
    w, b, activation, *_ = good[0]
    s = np.zeros((18, 7), np.float32)
    for chosen, layers, size in (
        ([], good, (8, 8)),
        (channels[:6], good, (8, 8)),
        (channels, good, (0, 8)),
        (channels, good, (8, 1 << 16)),
        ([np.zeros((0, 4), np.float32)] * 7, good, (8, 8)),
        ([np.zeros(4, np.float32)] * 7, good, (8, 8)),
        (channels, good[1:], (8, 8)),
        (channels, [good[3], *good[:3]], (8, 8)),
        (channels, [(w, b[:-1], activation, False, None)], (8, 8)),
        (channels, [(w, b, activation, True, None)], (8, 8)),
        (channels, [(w[:, :, 0, 0], b, activation, False, None)], (8, 8)),
        (channels, [(np.zeros((3, 7, 2, 2)), np.zeros(3), activation, False, None)], (8, 8)),
        (channels, [(np.zeros((3, 7, 1, 3)), np.zeros(3), activation, False, None)], (8, 8)),
        (channels, [(np.zeros((200, 7, 1, 1)), np.zeros(200), activation, False, None)], (8, 8)),
        (channels, [(w, b, activation, False, s[:, :6])], (8, 8)),
        (channels, [(w, b, activation, False, s[:17])], (8, 8)),
        (channels, [(w, b, activation, False, s.ravel())], (8, 8)),
        (channels, [(w, b, activation, False, s[:, :0])], (8, 8)),
        (channels, [(np.zeros((3, 7, 3, 3)), np.zeros(3), activation, False, s[:3])], (8, 8)),
    ):
        with pytest.raises(ValueError, match="synthesis: "):
            native.synthesise(chosen, layers, size)
    with pytest.raises(ValueError):
        native.synthesise(channels, [(w, b, "tanh", False, None)], (8, 8))


def test_upsampling_that_it_refuses():
    channels = [np.zeros(size, np.float32) for size in grid_sizes(9, 6, 3, 1)]
    taps = np.zeros((3, 4), np.float32)
    native.synthesise(channels, [], (9, 6), doublings=taps, first=1)
    for chosen, size, given, first in (
        (channels, (9, 6), taps, 0),
        (channels, (9, 6), taps, 2),
        (channels, (9, 6), taps, -1),
        (channels, (9, 6), taps, 2**31 - 1),
        (channels, (9, 6), taps[:2], 1),
        (channels, (9, 6), taps[:0], 1),
        (channels, (9, 6), taps[:, :3], 1),
        (channels, (9, 6), taps.ravel(), 1),
        (channels, (9, 6), np.zeros((31, 4), np.float32), 29),
        (channels, (8, 6), taps, 1),
        (channels, (9, 8), taps, 1),
        (channels[::-1], (9, 6), taps, 1),
        (channels[:2], (9, 6), taps, 1),
        (channels[:1] * 3, (9, 6), taps, 1),
    ):
        with pytest.raises(ValueError, match="synthesis: "):
            native.synthesise(chosen, [], size, doublings=given, first=first)


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
