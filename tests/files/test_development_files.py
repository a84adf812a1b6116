# SPDX-License-Identifier: Apache-2.0
"""`.csga` files of the architectures of CompressAI 1.2.9.dev0: round trip, and the same tables everywhere."""

from __future__ import annotations

import pickle

import pytest
import torch

from compressai_sga.copies import copied
from compressai_sga.errors import BitstreamError
from compressai_sga.files import compress_picture, decompress_picture
from compressai_sga.files import models as file_models
from compressai_sga.files.float64 import make_portable
from tests.development_models import MODELS, REASON, build
from tests.files.test_context_files import OTHER_INSTRUCTIONS, picture

pytestmark = pytest.mark.skipif(bool(REASON), reason=REASON)


@pytest.mark.parametrize("name", MODELS)
def test_networks_in_float64_are_those_of_stock(name):
    stock = build(name)
    portable = make_portable(copied(stock))
    y = 3 * torch.randn(1, *_shape(stock), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected, found = (net.latent_codec(y)["y_hat"] for net in (stock, portable))
        again = portable.latent_codec(y)["y_hat"]
    assert torch.equal(found, again) and not torch.equal(found, expected)
    assert ((found - expected).abs() < 1e-3).float().mean() > 0.95  # but where a tie was broken otherwise
    assert all(v.dtype == torch.float32 for v in portable.parameters())


def _shape(model):
    seen = []
    handle = model.latent_codec.h_a.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape))
    with torch.no_grad():
        model(torch.zeros(1, 3, 64, 64))
    handle.remove()
    return seen[0][1:]


PREDICT = """
import pickle, sys, torch, zlib
torch.set_num_threads(1)
sys.path.insert(0, sys.argv[2])
from compressai_sga.files.float64 import make_portable
from tests.development_models import build
for name, (state, y) in pickle.load(open(sys.argv[1], "rb")).items():
    net = build(name)
    net.load_state_dict(state)
    for prepare in (lambda net: net, make_portable):
        with torch.no_grad():
            y_hat = prepare(net).latent_codec.compress(y)["y_hat"]
        print(zlib.crc32(y_hat.numpy().tobytes()))
"""


def test_y_hat_is_the_same_bits_with_other_instructions(tmp_path, python, request):
    jobs = {}
    for name in ("cca", "dcae", "mlicv2"):
        model = build(name)
        y = 3 * torch.randn(1, *_shape(model), generator=torch.Generator().manual_seed(0))
        jobs[name] = (model.state_dict(), y)
    (tmp_path / "job.pkl").write_bytes(pickle.dumps(jobs))
    command = "-W", "ignore", "-c", PREDICT, tmp_path / "job.pkl", request.config.rootpath
    here, there = (
        python(*command, check=True, **variables).stdout.split() for variables in ({}, OTHER_INSTRUCTIONS)
    )
    assert here[1::2] == there[1::2]
    assert all(a != b for a, b in zip(here[0::2], there[0::2]))  # so that this test can fail


@pytest.mark.parametrize("name", ["mlicv2", "saaf", "stf"])
def test_files_of_a_checkpoint(name, tmp_path, monkeypatch):
    """With symbols left out, with transforms that run piece by piece, without g_a and g_s."""
    net = build(name)
    torch.save(net.state_dict(), tmp_path / "own.pth")
    kind = type(net)
    monkeypatch.setattr(kind, "from_state_dict", classmethod(lambda cls, state: _loaded(name, state)))
    monkeypatch.setattr(file_models, "architecture", lambda _: kind)
    given = picture(70, 90)
    options = {"model": name, "weights": str(tmp_path / "own.pth")}
    data, _ = compress_picture(given, **options)
    smaller, result = compress_picture(given, **options, refine="ssl", steps=2, lmbda=0.05)
    weights = options["weights"]
    for each in (data, smaller):
        assert decompress_picture(each, weights=weights).pixels.shape == given.pixels.shape
    assert all(part[0] in smaller for part in result.strings)
    damaged = bytearray(data)
    damaged[len(data) // 2] ^= 255
    with pytest.raises(BitstreamError):
        decompress_picture(bytes(damaged), weights=weights)


def _loaded(name, state):
    net = build(name)
    net.load_state_dict(state)
    return net
