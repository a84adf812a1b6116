# SPDX-License-Identifier: Apache-2.0
"""kid takes fid's patches and is the unbiased squared MMD of their features under a cubic kernel."""

from __future__ import annotations

import sys
from urllib.error import URLError

import pytest
import torch
from torch import nn

from compressai_sga.errors import SgaError
from compressai_sga.metrics import SET_METRICS, PatchKid
from compressai_sga.metrics.frechet import patches


class Moments(nn.Module):
    """Means of the colours and of their squares."""

    num_features = 6

    def forward(self, x):
        x = x.float() / 255
        return torch.cat([x.mean((2, 3)), x.pow(2).mean((2, 3))], 1)


def mmd(a, b):
    """The definition, pair by pair: mean k(a, a') + mean k(b, b') - 2 mean k(a, b), a != a', b != b'."""

    def k(u, v):
        return float(torch.dot(u, v) / len(u) + 1) ** 3

    n = len(a)
    off = [(i, j) for i in range(n) for j in range(n) if i != j]
    same = sum(k(a[i], a[j]) + k(b[i], b[j]) for i, j in off) / len(off)
    return same - 2 * sum(k(u, v) for u in a for v in b) / n**2


def fill(kid, count, gain=0.3):
    """`count` pairs of one patch each; their features (count, 6), of x and of x_hat."""
    generator = torch.Generator().manual_seed(0)
    sets = []
    for _ in range(count):
        x = (torch.rand(1, 3, 1, 1, generator=generator).expand(1, 3, 256, 300) * 255).round() / 255
        x_hat = (x * gain * 255).round() / 255
        kid.update(x, x_hat)
        sets.append([torch.cat([Moments()((p * 255).round()) for p in patches(i)]) for i in (x, x_hat)])
    return [torch.cat(one) for one in zip(*sets)]


def test_against_the_definition():
    pytest.importorskip("torchmetrics")
    kid = PatchKid(Moments())
    a, b = fill(kid, 8)
    assert len(a) == 8
    state = torch.get_rng_state()
    value = kid.compute()
    assert value == pytest.approx(mmd(a, b), rel=1e-4) and value > 1e-3
    assert torch.equal(torch.get_rng_state(), state)


def test_equal_sets_are_unbiased_not_zero():
    pytest.importorskip("torchmetrics")
    kid = PatchKid(Moments())
    a, b = fill(kid, 6, gain=1.0)
    assert kid.compute() == pytest.approx(mmd(a, b), abs=1e-5)
    assert kid.compute() < 0


def test_many_patches_make_seeded_subsets():
    pytest.importorskip("torchmetrics")
    first, again, other = (PatchKid(Moments(), subset_size=8, seed=seed) for seed in (0, 0, 1))
    a, b = fill(first, 12)
    fill(again, 12)
    fill(other, 12)
    torch.rand(3)  # the state of the caller's generator does not matter
    assert first.compute() == again.compute() != other.compute()
    assert first.compute() == pytest.approx(mmd(a, b), rel=0.3)


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchmetrics", None)
    monkeypatch.setitem(sys.modules, "torchmetrics.image.kid", None)
    with pytest.raises(SgaError, match=r"metric kid needs .*torchmetrics and torch-fidelity .*\[metrics\]"):
        SET_METRICS["kid"]()


def test_missing_weights_are_named(monkeypatch, tmp_path):
    pytest.importorskip("torchmetrics")
    pytest.importorskip("torch_fidelity")

    def offline(*args, **kwargs):
        raise URLError("no route")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "urlopen", offline)
    monkeypatch.setattr("urllib.request.urlopen", offline)
    with pytest.raises(SgaError, match=f"weights-inception-2015-12-05-6726825d.pth.* into {tmp_path}"):
        SET_METRICS["kid"]()


@pytest.mark.parametrize("content", [b"", b"<html>404</html>"])
def test_damaged_weights_are_named(monkeypatch, tmp_path, content):
    pytest.importorskip("torchmetrics")
    pytest.importorskip("torch_fidelity")
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "weights-inception-2015-12-05-6726825d.pth").write_bytes(content)
    with pytest.raises(SgaError, match=f"weights-inception-2015-12-05-6726825d.pth.* into {tmp_path}"):
        SET_METRICS["kid"]()


def test_too_little_is_refused():
    pytest.importorskip("torchmetrics")
    with pytest.raises(ValueError, match="subset_size is 1"):
        PatchKid(Moments(), subset_size=1)
    kid = PatchKid(Moments())
    with pytest.raises(SgaError, match="leave kid or that image out"):
        kid.update(torch.zeros(1, 3, 300, 192), torch.zeros(1, 3, 300, 192))
    kid.update(torch.zeros(1, 3, 300, 300), torch.zeros(1, 3, 300, 300))
    with pytest.raises(SgaError, match="kid needs at least 2 patches, the images gave 1"):
        kid.compute()
