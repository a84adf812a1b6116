# SPDX-License-Identifier: Apache-2.0
"""fid takes HiFiC's patches and is the Frechet distance of their features."""

from __future__ import annotations

import pickle
import sys
from urllib.error import URLError

import numpy as np
import pytest
import torch
from torch import nn

from compressai_sga.errors import SgaError
from compressai_sga.metrics import SET_METRICS, PatchFid
from compressai_sga.metrics.frechet import patches


@pytest.mark.parametrize(("height", "width"), [(256, 256), (512, 768), (700, 300), (767, 511)])
def test_patches_of_two_grids(height, width):
    x = torch.arange(height * width).view(1, 1, height, width)
    found = [(int(p[0, 0, 0, 0]) // width, int(p[0, 0, 0, 0]) % width) for p in patches(x)]
    assert all(p.shape == (1, 1, 256, 256) for p in patches(x))
    shifted = [(top, left) for top, left in found if top % 256]
    assert all(top % 256 == left % 256 == 128 for top, left in shifted)
    assert len(set(found)) == len(found)
    assert len(found) - len(shifted) == (height // 256) * (width // 256)
    assert len(shifted) == ((height - 128) // 256) * ((width - 128) // 256)


def test_kodak_gives_192_patches():
    """24 images of 512x768: 6 + 2 patches each."""
    assert 24 * len(list(patches(torch.zeros(1, 1, 512, 768)))) == 192


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchmetrics", None)
    monkeypatch.setitem(sys.modules, "torchmetrics.image.fid", None)
    with pytest.raises(SgaError, match=r"torchmetrics and torch-fidelity .*\[metrics\]"):
        PatchFid()


@pytest.mark.parametrize(
    ("name", "network"), [("fid", "FrechetInceptionDistance"), ("kid", "KernelInceptionDistance")]
)
@pytest.mark.parametrize(
    "error", [URLError("no route"), EOFError("Ran out of input"), pickle.UnpicklingError("<")]
)
def test_absent_and_damaged_weights_are_named(monkeypatch, tmp_path, name, network, error):
    """Whatever torchmetrics' network meets when it loads its weights; torch-fidelity need not be there."""
    module = pytest.importorskip(f"torchmetrics.image.{name}")

    def fails(**options):
        raise error

    monkeypatch.setattr(module, network, fails)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    file = "weights-inception-2015-12-05-6726825d.pth"
    with pytest.raises(SgaError, match=f"metric {name} needs .*{file}.* into {tmp_path}/checkpoints"):
        SET_METRICS[name]()


class Features(nn.Module):
    """Means of the colours and of their squares."""

    num_features = 6

    def forward(self, x):
        x = x.double() / 255
        return torch.cat([x.mean((2, 3)), x.pow(2).mean((2, 3))], 1)


def test_against_the_formula():
    pytest.importorskip("torchmetrics")
    generator = torch.Generator().manual_seed(0)
    sets = []
    fid = PatchFid(Features())
    for _ in range(6):
        tint = torch.rand(1, 3, 1, 1, generator=generator)
        x = (tint * torch.rand(1, 3, 512, 512, generator=generator) * 255).round() / 255
        x_hat = (x * 0.9 * 255).round() / 255
        fid.update(x, x_hat)
        sets.append([torch.cat([Features()((p * 255).round()) for p in patches(i)]) for i in (x, x_hat)])
    a, b = (torch.cat(one).numpy() for one in zip(*sets))
    assert len(a) == 6 * 5
    s, t = np.cov(a.T), np.cov(b.T)
    root = np.sqrt(np.linalg.eigvals(s @ t).astype(complex)).sum().real
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(s) + np.trace(t) - 2 * root
    assert fid.compute() == pytest.approx(expected, rel=1e-3)


def test_too_little_is_refused():
    pytest.importorskip("torchmetrics")
    fid = PatchFid(Features())
    with pytest.raises(SgaError, match="192x300"):
        fid.update(torch.zeros(1, 3, 300, 192), torch.zeros(1, 3, 300, 192))
    fid.update(torch.zeros(1, 3, 300, 300), torch.zeros(1, 3, 300, 300))
    with pytest.raises(SgaError, match="at least 2 patches, the images gave 1"):
        fid.compute()
