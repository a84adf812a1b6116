# SPDX-License-Identifier: Apache-2.0
"""lpips is the authors' number for images in [0, 1]; what is missing is named."""

from __future__ import annotations

import sys
import urllib.request
from urllib.error import URLError

import pytest
import torch

from compressai_sga.errors import SgaError
from compressai_sga.metrics import METRICS, perceptual


@pytest.fixture(autouse=True)
def no_cached_network():
    perceptual._network.cache_clear()
    yield
    perceptual._network.cache_clear()


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "lpips", None)
    with pytest.raises(SgaError, match=r"package lpips .* pip install 'compressai-sga\[metrics\]'"):
        METRICS["lpips"](torch.zeros(1, 3, 64, 64), torch.zeros(1, 3, 64, 64))


def test_missing_weights_are_named(monkeypatch, tmp_path):
    pytest.importorskip("lpips")

    def offline(*args, **kwargs):
        raise URLError("no route")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "urlopen", offline)
    monkeypatch.setattr(urllib.request, "urlopen", offline)
    with pytest.raises(SgaError, match="alexnet-owt-7be5be79.pth"):
        METRICS["lpips"](torch.zeros(1, 3, 64, 64), torch.zeros(1, 3, 64, 64))


@pytest.mark.parametrize("content", [b"", b"<html>404</html>", b"PK\x03\x04 cut off"])
def test_damaged_weights_are_named(monkeypatch, tmp_path, content):
    pytest.importorskip("lpips")
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "alexnet-owt-7be5be79.pth").write_bytes(content)
    with pytest.raises(SgaError, match=f"alexnet-owt-7be5be79.pth, .* into {tmp_path}/checkpoints"):
        METRICS["lpips"](torch.zeros(1, 3, 64, 64), torch.zeros(1, 3, 64, 64))


def test_images_are_taken_in_0_1(monkeypatch):
    lpips = pytest.importorskip("lpips")
    network = lpips.LPIPS(net="alex", pnet_rand=True, verbose=False).eval()
    monkeypatch.setattr(perceptual, "_network", lambda: network)
    x, x_hat = torch.rand(2, 1, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = network(2 * x - 1, 2 * x_hat - 1).item()
    assert METRICS["lpips"](x, x_hat) == pytest.approx(expected, rel=1e-5)
    assert METRICS["lpips"](x, x) == pytest.approx(0, abs=1e-7) and expected > 1e-4
