# SPDX-License-Identifier: Apache-2.0
"""The architectures of CompressAI 1.2.9.dev0: what it decodes is what was measured, to the bit.

The models have random weights; symbols are moved far from their means, so that residuals and contexts matter.
"""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import Tensor

from compressai_sga.coding import set_coder
from compressai_sga.coding.on_cpu import coded_on_cpu
from compressai_sga.copies import copied
from compressai_sga.refine import refine
from compressai_sga.refine.latents import hard_rounding
from compressai_sga.refine.loop import build_adapter
from tests.development_models import MODELS, REASON, build
from tests.pretend_cuda import REASON as NO_PRETENCE
from tests.pretend_cuda import PretendCuda
from tests.small_models import picture

pytestmark = pytest.mark.skipif(bool(REASON), reason=REASON)

DECODER = """
import importlib, pickle, sys, torch
torch.set_num_threads(1)
images = {}
for name, (module, kind, arguments, state, strings, shape) in pickle.load(open(sys.argv[1], "rb")).items():
    model = getattr(importlib.import_module(f"compressai.models.{module}"), kind)(**arguments).eval()
    model.load_state_dict(state)
    with torch.no_grad():
        images[name] = model.decompress(strings, shape)["x_hat"]
assert not any(m.startswith("compressai_sga.") or m == "compressai_sga" for m in sys.modules)
torch.save(images, sys.argv[2])
"""


@pytest.fixture(scope="module")
def images() -> Tensor:
    return picture(50, 100)


@pytest.fixture(scope="module")
def results(images):
    options = {"steps": 3, "lr": 0.1, "lmbda": 0.05}
    return {name: (model := build(name), refine(model, images, "ssl", **options)) for name in MODELS}


@pytest.fixture(scope="module")
def decoded(results, tmp_path_factory, run_python):
    folder = tmp_path_factory.mktemp("stock")
    jobs = {n: (*MODELS[n], model.state_dict(), r.strings, r.shape) for n, (model, r) in results.items()}
    (folder / "jobs.pkl").write_bytes(pickle.dumps(jobs))
    arguments = "-c", DECODER, folder / "jobs.pkl", folder / "images.pt"
    run_python(*arguments, cwd=folder, check=True, COMPRESSAI_SGA_DISABLE="1")
    return torch.load(folder / "images.pt")


@pytest.mark.parametrize("name", MODELS)
def test_stock_process_decodes_the_measured_image(name, results, decoded):
    model, result = results[name]
    left, right, top, bottom = result.pad
    x_hat = decoded[name][..., top : 64 - bottom, left : 128 - right]
    assert torch.equal(x_hat.clamp(0, 1), result.x_hat)
    assert result.x_hat.shape == (1, 3, 50, 100)
    assert result.after.loss < result.before.loss
    for key, tensor in build(name).state_dict().items():
        assert torch.equal(model.state_dict()[key], tensor), key


@pytest.mark.parametrize("name", MODELS)
def test_chosen_symbols_are_coded_to_the_bit(name):
    """Any symbols: the decoder's y_hat and image are the adapter's, and the strings take the bits it says."""
    model, x = build(name), picture(64, 128)
    adapter = build_adapter(model, {})
    latents, out = adapter.latents_of(x)
    assert adapter.compress(adapter.code(latents, hard_rounding).grid, x)["strings"] == out["strings"]
    generator = torch.Generator().manual_seed(0)
    moved = {name: v + 2 * torch.randn(v.shape, generator=generator) for name, v in latents.items()}
    with torch.no_grad():
        coded = adapter.code(moved, hard_rounding)
        sent = adapter.compress(coded.grid, x)
        assert sent["strings"] != out["strings"]
        y_hat = model.latent_codec.decompress(sent["strings"], sent["shape"])["y_hat"]
        assert torch.equal(coded.y_hat, y_hat)
        assert torch.equal(adapter.synthesise(coded.y_hat), model.decompress(**_sent(sent))["x_hat"])
        assert not torch.equal(coded.grid["y"], coded.y_hat)  # of latent residual prediction
        assert adapter.code(latents, hard_rounding).grid["y"].std() > 1
    bits = 8 * sum(len(string) for part in sent["strings"] for string in part)
    assert 0.7 < bits / coded.bits().item() < 1.4
    if name == "mlicv2":
        left_out = coded.likelihoods["y"] == 1
        assert 0.1 < left_out.float().mean() < 0.9
        _, means = moved["y"], coded.grid["y"]
        assert torch.equal(y_hat[left_out], means[left_out])


def _sent(out):
    return {"strings": out["strings"], "shape": out["shape"]}


@pytest.mark.parametrize("name", MODELS)
def test_coders_of_this_package(name, images):
    model = set_coder(build(name), "constriction-exact")
    result = refine(model, images, steps=0, lmbda=0.05)
    with torch.no_grad():
        x_hat = model.decompress(result.strings, result.shape)["x_hat"].clamp(0, 1)
    assert torch.equal(x_hat[..., 7:57, 14:114], result.x_hat)


@pytest.mark.parametrize("name", ["dcae", "saaf"])
def test_a_copy_has_a_dictionary_of_its_own(name):
    model, x = build(name), picture(64, 64)
    twin, shared = copied(model), copy.deepcopy(model)
    with torch.no_grad():
        before = model(x)["likelihoods"]["y"]
        model.shared_dictionary.dt.zero_()
        assert torch.equal(twin(x)["likelihoods"]["y"], before)
        assert not torch.equal(shared(x)["likelihoods"]["y"], before)  # what `copied` is for
        twin.shared_dictionary.dt.zero_()
        assert torch.equal(twin(x)["likelihoods"]["y"], model(x)["likelihoods"]["y"])


@pytest.mark.skipif(bool(NO_PRETENCE), reason=NO_PRETENCE)
@pytest.mark.parametrize("name", ["dcae", "mlic", "saaf"])
def test_strings_of_a_gpu_are_the_cpus(name):
    """Of models with a part outside of the latent codec, and with a g_a that does not run."""
    model, x = build(name), picture(64, 64)
    with PretendCuda() as gpu, torch.no_grad():
        codec = coded_on_cpu(copied(model).cuda())
        gpu.reset()
        out = codec.compress(x.cuda())
        decoded = codec.decompress(out["strings"], out["shape"])["x_hat"]
        assert decoded.is_cuda and gpu.count("tf32") == 0
        assert out["strings"] == model.compress(x)["strings"]
        assert (decoded.cpu() - model.decompress(**_sent(out))["x_hat"]).abs().max() < 1e-4
