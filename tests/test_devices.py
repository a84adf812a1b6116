# SPDX-License-Identifier: Apache-2.0
"""Claims about GPUs, on a pretend one: everything runs there, what is coded there decodes on a CPU, a GPU is
seldom waited for, and planted errors of devices are caught."""

from __future__ import annotations

import copy
import importlib
from collections.abc import Iterator
from contextlib import nullcontext

import pytest
import torch
from torch import Tensor, nn

import compressai_sga
from compressai_sga import zoo
from compressai_sga.coding.on_cpu import coded_on_cpu
from compressai_sga.precision import full_float32
from compressai_sga.refine import latents
from compressai_sga.refine.presets import RefineConfig
from tests.conftest import picture
from tests.models import test_elic
from tests.pretend_cuda import REASON, DeviceError, PretendCuda
from tests.train.synthetic import synthetic_photo

pytestmark = pytest.mark.skipif(bool(REASON), reason=REASON)


@pytest.fixture
def gpu() -> Iterator[PretendCuda]:
    with PretendCuda() as device:
        yield device


def photo(size: int = 64) -> Tensor:
    return synthetic_photo(size, 0)[None]


def psnr(a: Tensor, b: Tensor) -> float:
    return -10 * (a - b).square().mean().log10().item()


# --- The pretend device ------------------------------------------------------------------------------


def test_the_device_refuses_what_cuda_refuses(gpu):
    x = torch.zeros(3, device="cuda")
    for wrong in (
        lambda: x + torch.zeros(3),
        lambda: nn.Linear(3, 3)(x),
        lambda: torch.rand(3, generator=torch.Generator(), device="cuda"),
        lambda: torch.rand(3, generator=torch.Generator("cuda")),
        lambda: torch.cat([x, torch.zeros(3)]),
    ):
        with pytest.raises(DeviceError):
            wrong()
    with pytest.raises(TypeError, match="numpy"):
        x.numpy()
    assert x.device == (x + torch.tensor(1.0)).device == torch.device("cuda:0")
    assert (x + 1).cpu().tolist() == [1, 1, 1]


def test_the_device_counts_waits_and_rounds_to_tf32(gpu):
    x = torch.full((1, 1, 4, 4), 1 + 2.0**-12, device="cuda")
    one = torch.ones(1, 1, 1, 1, device="cuda")
    gpu.reset()
    assert nn.functional.conv2d(x, one).max().item() == 1  # torch's default
    assert gpu.count("waits") == gpu.count("tf32") == 1
    with full_float32():
        assert nn.functional.conv2d(x, one).max().item() == 1 + 2.0**-12
    assert gpu.count("tf32") == 1


# --- Precision ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("names", ["none", "old", "new"])
def test_settings_are_as_before(names, monkeypatch):
    backends = torch.backends

    def settings() -> tuple[str, ...]:
        return backends.cuda.matmul.fp32_precision, backends.cudnn.conv.fp32_precision

    before = settings()
    try:
        if names == "old":
            backends.cuda.matmul.allow_tf32 = True
        elif names == "new":
            backends.cuda.matmul.fp32_precision = backends.cudnn.conv.fp32_precision = "tf32"
        own = settings()
        with pytest.raises(KeyError), full_float32():
            assert settings() == ("ieee", "ieee")
            raise KeyError
        assert settings() == own
        if names == "old":
            assert backends.cuda.matmul.allow_tf32 and backends.cudnn.allow_tf32
    finally:
        backends.cuda.matmul.fp32_precision, backends.cudnn.conv.fp32_precision = before


# --- Refinement --------------------------------------------------------------------------------------

MODELS = {
    "a hyperprior": lambda: zoo.load("mbt2018-mean-small", 3),
    "a factorised prior": lambda: zoo.load("bmshj2018-factorized-small", 3),
    "a raster scan": lambda: zoo.load("mbt2018-small", 3),
    "a tree of codecs": test_elic.build,
}


@pytest.mark.parametrize("name", MODELS)
def test_strings_of_a_gpu_are_the_cpus(name, gpu):
    """With torch's default, TF32, which chose other tables: 16.7 dB instead of 24.4."""
    model, x = MODELS[name](), photo(128 if name == "a hyperprior" else 64)
    result = compressai_sga.refine(copy.deepcopy(model).cuda(), x.cuda(), steps=3, lmbda=0.01)
    assert result.x_hat.is_cuda and result.after.psnr_db.is_cuda
    with torch.no_grad():
        decoded = model.decompress(result.strings, result.shape)["x_hat"]  # stock's, on the CPU
    assert psnr(decoded, x) == pytest.approx(result.after.psnr_db.item(), abs=1e-4)
    on_cpu = compressai_sga.refine(model, x, steps=3, lmbda=0.01)
    assert result.strings == on_cpu.strings
    assert gpu.count("tf32") == 0


def test_tf32_would_choose_other_tables(gpu):
    """The emulation shows the error that `coded_on_cpu` prevents."""
    model, x = MODELS["a hyperprior"](), photo(128)
    cuda = copy.deepcopy(model).cuda()
    with torch.no_grad():
        for codec, agrees in ((cuda, False), (coded_on_cpu(cuda), True)):
            out = codec.compress(x.cuda())
            decoded = model.decompress(out["strings"], out["shape"])["x_hat"]
            here = codec.decompress(out["strings"], out["shape"])["x_hat"]
            assert here.is_cuda
            assert (psnr(decoded, here.cpu()) > 100) == agrees
    assert coded_on_cpu(model) is model


@pytest.mark.parametrize("method", ["ssl", "sga", "ssl3", "best"])
def test_refinement_waits_once_in_20_steps(method, gpu):
    model, x = zoo.load("mbt2018-mean-small", 3).cuda(), photo().cuda()
    seen: list[tuple[int, float]] = []

    def waits(steps: int) -> int:
        """As often as a loss is read; hard roundings, whose number is fixed, do not wait."""
        seen.clear()
        gpu.reset()
        name = {"preset": method} if method == "best" else {"method": method}
        result = compressai_sga.refine(
            model, x, **name, steps=steps, lmbda=0.01, on_step=lambda step, _, loss: seen.append((step, loss))
        )
        assert seen == [(step, result.trace[step]["loss"]) for step in range(steps)]
        return gpu.count("waits")

    if method == "ssl":
        assert waits(50) - waits(10) == 2, gpu.report()
    else:
        waits(2)


def test_planted_errors_are_caught(gpu, monkeypatch):
    """A tensor made on the CPU, a generator of the CPU, a number read in every step, a table in TF32."""
    model, x = zoo.load("mbt2018-mean-small", 3).cuda(), photo().cuda()
    stock = RefineConfig.relax

    def refined() -> None:
        compressai_sga.refine(model, x, steps=2, lmbda=0.01)

    with monkeypatch.context() as planted, pytest.raises(DeviceError, match="tensors of cuda and cpu"):
        planted.setattr(RefineConfig, "relax", lambda _, v, *args: v + torch.zeros(v.shape))
        refined()
    with monkeypatch.context() as planted, pytest.raises(DeviceError, match="generator of another device"):
        planted.setattr(RefineConfig, "relax", lambda self, v, step, _: stock(self, v, step, torch.Generator()))
        refined()
    with monkeypatch.context() as planted:
        gpu.reset()
        refined()
        before = gpu.count("waits")
        planted.setattr(
            RefineConfig, "relax", lambda self, v, *args: stock(self, v, *args) * float(v.max() > -1e9)
        )
        gpu.reset()
        refined()
        assert gpu.count("waits") == before + 2 * 2  # two latents
    with monkeypatch.context() as planted:
        planted.setattr(latents, "coded_on_cpu", lambda model: model)
        planted.setattr(importlib.import_module("compressai_sga.refine.loop"), "full_float32", nullcontext)
        gpu.reset()
        refined()
        assert gpu.count("tf32") > 0
