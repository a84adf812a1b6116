# SPDX-License-Identifier: Apache-2.0
"""Claims of files/ for models of latent codecs, whose means and scales come from contexts: what predicts them
gives the same bits with other instructions, and their files come back with every coder, in any process."""

from __future__ import annotations

import copy
import hashlib
import json
import pickle
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from compressai.registry import MODELS
from safetensors.torch import load_file, save_file
from torch import nn

from compressai_sga import coding, zoo
from compressai_sga.coding.container import CODERS, unpack
from compressai_sga.errors import BitstreamError
from compressai_sga.files import Picture, compress_picture, decompress_picture, describe, models, read_picture
from compressai_sga.files.float64 import _predictors, make_portable
from compressai_sga.models.elic import SpaceChannelContext
from tests.small_models import once

SIZES = {
    "elic2022-gdn": (16, 24, [4, 4, 16]),
    "cheng2020-anchor-checkerboard": (16,),
}
NETWORKS = {"elic2022-gdn": 9, "cheng2020-anchor-checkerboard": 3}  # h_s, 2 a group, channels' contexts
NAME = "elic2022-tiny"
SAMPLE = zoo.sample_images()[0]
OTHER_INSTRUCTIONS = {
    "ONEDNN_MAX_CPU_ISA": "SSE41",
    "ATEN_CPU_CAPABILITY": "default",
    "MKL_ENABLE_INSTRUCTIONS": "SSE4_2",
}


@once
def build(name: str = "elic2022-gdn") -> nn.Module:
    """Random weights; wide latents, scales of many sizes."""
    with torch.random.fork_rng():
        torch.manual_seed(5)
        model = MODELS[name](*SIZES[name]).eval()
        model.g_a[-1].weight.data.mul_(30)
        for module, _ in _predictors(model):
            convolutions = [m for m in module.modules() if isinstance(m, nn.Conv2d | nn.ConvTranspose2d)]
            convolutions[-1].weight.data.mul_(6)
        for module in model.modules():
            if hasattr(module, "entropy_parameters") and isinstance(module.entropy_parameters, nn.Sequential):
                module.entropy_parameters[-1].bias.data += 0.7
        model.update(update_quantiles=True)
        if name == "elic2022-gdn":
            with torch.no_grad():
                x_hat = model(torch.rand(1, 3, 64, 64))["x_hat"]
                model.g_s[-1].weight.mul_(0.2 / x_hat.std())
                model.g_s[-1].bias.fill_(0.5)
    return model


def picture(height: int = 96, width: int = 130) -> Picture:
    pixels = read_picture(SAMPLE).pixels
    return Picture(pixels[40 : 40 + height, 100 : 100 + width].copy())


# --- Networks ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NETWORKS)
@torch.no_grad()
def test_blocks_give_the_bits_of_the_whole(name):
    """Of every network that predicts, for a latent beyond one block."""
    stock = build(name)
    portable = make_portable(copy.deepcopy(stock))
    pairs = list(zip(_predictors(stock), _predictors(portable), strict=True))
    assert len(pairs) == NETWORKS[name]
    for (network, block), (ours, _) in pairs:
        channels = next(m for m in network.modules() if isinstance(m, nn.Conv2d | nn.ConvTranspose2d))
        v = torch.randn(1, channels.in_channels, block + 9, 2 * block + 8)
        whole = copy.deepcopy(network).double()(v.double()).float()
        assert torch.equal(ours(v), whole)
        assert torch.allclose(network(v), whole, rtol=1e-3, atol=1e-3)
    assert all(v.dtype == torch.float32 for v in portable.parameters())


def test_gradients_are_those_of_the_stock_networks():
    stock = build()
    portable = make_portable(copy.deepcopy(stock))
    y = torch.randn(1, 24, 4, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    found = []
    for model in (stock, portable):
        p = model.latent_codec["y"](y, torch.ones(1, 32, 4, 4))["likelihoods"]["y"]
        found.append(torch.autograd.grad(p.log().sum(), y)[0])
    torch.testing.assert_close(*found, rtol=1e-3, atol=1e-3)


def test_networks_of_a_raster_scan_stay_as_they_are():
    """`coding.autoregressive` has float64 copies of its own."""
    model = make_portable(MODELS["mbt2018"](8, 12))
    assert "forward" in vars(model.h_s)
    assert not any("forward" in vars(m) for m in (model.context_prediction, *model.entropy_parameters))


PREDICT = """
import pickle, sys, torch, zlib
from compressai.registry import MODELS
import compressai_sga
from compressai_sga.files.float64 import make_portable
torch.set_num_threads(2)
model, y, params = pickle.load(open(sys.argv[1], "rb"))
def see(network, inputs, output):  # the float64 copies of the networks have this hook, too
    if output.dtype == torch.float32:
        seen.append(output.numpy().tobytes())
for codec in model.latent_codec["y"].latent_codec.values():
    codec.entropy_parameters.register_forward_hook(see)
for prepare in (lambda net: net, make_portable):
    net, seen = prepare(model), []
    with torch.no_grad():
        net.latent_codec["y"].compress(y, params)
    print(zlib.crc32(b"".join(seen)))
"""


def test_means_and_scales_are_the_same_bits_with_other_instructions(tmp_path, python):
    """All that six steps predict from one another; in float32 they are not, so that this test can fail."""
    y, params = torch.randn(1, 56, 24, 24, generator=torch.Generator().manual_seed(0)).split([24, 32], 1)
    (tmp_path / "job.pkl").write_bytes(pickle.dumps((build(), 4 * y, params)))
    outputs = [
        python("-W", "ignore", "-c", PREDICT, tmp_path / "job.pkl", check=True, **variables).stdout.split()
        for variables in ({}, OTHER_INSTRUCTIONS)
    ]
    (plain, portable), (other_plain, other_portable) = outputs
    assert portable == other_portable
    if plain == other_plain:
        pytest.skip("this machine has no other instructions to choose from")


# --- Files ---------------------------------------------------------------------------------------


@pytest.fixture
def tiny_zoo(tmp_path, monkeypatch) -> Path:
    """A zoo of one context model beside the samples; its record is one of the zoo's with other facts."""
    folder = tmp_path / "zoo"
    (folder / "weights").mkdir(parents=True)
    net, source = build(), zoo._folder()
    state = {key: value.contiguous() for key, value in net.state_dict().items()}
    for key in state:
        if key.endswith(("_cdf", "_cdf_length", "_offset", "scale_table")) and ".y." in key:
            state[key] = state[key].new_empty(0)  # `update` makes them
    file = folder / "weights" / f"{NAME}-3.safetensors"
    save_file(state, file)
    manifest = json.loads((source / "manifest.json").read_text())
    record = {
        **next(r for r in manifest["weights"] if r["architecture"] == "mbt2018-mean"),
        **{"name": NAME, "quality": 3, "architecture": "elic2022-gdn", "N": 16, "M": 24, "lmbda": 0.0067},
        **{"file": f"weights/{file.name}", "sha256": hashlib.sha256(file.read_bytes()).hexdigest()},
        **{"bytes": file.stat().st_size, "gaussian_tables_crc32": zoo.tables_checksum(net), "golden": {}},
    }
    (folder / "manifest.json").write_text(json.dumps({**manifest, "weights": [record], "denoisers": []}))
    assert SpaceChannelContext.from_state_dict(load_file(file)).groups == [4, 4, 16]
    monkeypatch.setattr(zoo, "_folder", lambda: folder)
    models._load.cache_clear()
    yield folder
    models._load.cache_clear()


@pytest.mark.parametrize("coder", CODERS.values())
def test_a_file_comes_back_as_the_models_own_image(tiny_zoo, coder):
    x = picture()
    data, _ = compress_picture(x, model=NAME, coder=coder)
    container, back = unpack(data), decompress_picture(data)
    assert len(container.strings) == 7
    assert container.shape == {"y": [(4, 4), (4, 4), (16, 4)], "hyper": 6}
    net = coding.set_coder(zoo.load(NAME, 3), coder)
    padded = np.pad(x.pixels, ((16, 16), (31, 31), (0, 0)), mode="edge")
    with torch.no_grad():
        out = net.compress(torch.from_numpy(padded).permute(2, 0, 1)[None].float() / 255)
        x_hat = net.decompress(out["strings"], out["shape"])["x_hat"][0, :, 16:-16, 31:-31]
    wanted = (255 * x_hat.clamp(0, 1)).round().permute(1, 2, 0).numpy()
    assert np.abs(back.pixels - wanted).max() <= 1 and back.pixels.std() > 10
    own = sum(len(s[0]) for s in out["strings"])
    assert abs(own - sum(map(len, container.strings))) <= 4
    assert describe(data).file_bytes - sum(map(len, container.strings)) < 100
    for string in container.strings:  # damage in any of them is found
        at = data.index(string) + len(string) // 2
        damaged = bytearray(data[:-4])
        damaged[at] ^= 16
        damaged += zlib.crc32(damaged).to_bytes(4, "little")
        with pytest.raises(BitstreamError):
            decompress_picture(bytes(damaged))


def test_refinement_is_what_the_file_holds(tiny_zoo):
    for options in ({"refine": "ssl", "steps": 30}, {"refine": "fast", "steps": 20}):
        data, result = compress_picture(picture(64, 64), model=NAME, **options)
        assert result.after.loss < result.before.loss
        assert [s[0] for s in result.strings] == list(unpack(data).strings)
        x_hat = (255 * result.x_hat[0]).round().permute(1, 2, 0).numpy()
        assert np.abs(decompress_picture(data).pixels - x_hat).max() <= 1


DECODE = """
import sys
from pathlib import Path
import torch
from compressai_sga import files, zoo
torch.set_num_threads(2)
zoo._folder = lambda: Path(sys.argv[1])
for path in sys.argv[2:]:
    files.decompress_file(path, Path(path).with_suffix(".png"))
"""


def test_files_decode_with_other_instructions_and_threads(tiny_zoo, tmp_path, python):
    """In a process where CompressAI was to be left alone, which has no name for the model's class then."""
    paths, expected = [], []
    for coder in CODERS.values():
        data, _ = compress_picture(picture(), model=NAME, coder=coder)
        paths.append(tmp_path / f"{coder}.csga")
        paths[-1].write_bytes(data)
        expected.append(decompress_picture(data).pixels.astype(int))
    variables = {**OTHER_INSTRUCTIONS, "COMPRESSAI_SGA_DISABLE": "1"}
    python("-W", "ignore", "-c", DECODE, tiny_zoo, *paths, check=True, **variables)
    for path, wanted in zip(paths, expected):
        assert np.abs(read_picture(path.with_suffix(".png")).pixels - wanted).max() <= 1
