# SPDX-License-Identifier: Apache-2.0
"""Claims about GPUs, on a pretend one: everything runs there, what is coded there decodes on a CPU, a GPU is
seldom waited for, and planted errors of devices are caught."""

from __future__ import annotations

import copy
import importlib
import shutil
from collections.abc import Iterator
from contextlib import nullcontext

import pytest
import torch
from torch import Tensor, nn

import compressai_sga
from compressai_sga import zoo
from compressai_sga.coding.on_cpu import coded_on_cpu
from compressai_sga.files import Picture, compress_picture, decompress_picture
from compressai_sga.files.float64 import make_portable
from compressai_sga.models.c3 import C3
from compressai_sga.models.c3.config import PRESETS
from compressai_sga.models.c3.fit import weight_quantisation
from compressai_sga.models.c3.fit.grid_plane import border_repeated
from compressai_sga.models.c3.fit.loop import Fit
from compressai_sga.precision import fixed_algorithms, full_float32
from compressai_sga.refine import latents, synthesis
from compressai_sga.refine.presets import RefineConfig
from tests.models import test_elic
from tests.models.diffc import diffc_parts
from tests.models.hfd import hfd_parts
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
    """The same bytes, and the image that was measured, with torch's default of TF32."""
    model, x = MODELS[name](), photo(128 if name == "a hyperprior" else 64)
    with pytest.warns(UserWarning, match="decode on a CPU, or with"):
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
        assert waits(30) - waits(10) == 1, gpu.report()
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
        planted.setattr(
            RefineConfig, "relax", lambda self, v, step, _: stock(self, v, step, torch.Generator())
        )
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


def test_an_images_precision_does_not_depend_on_its_company(monkeypatch):
    """bfloat16, where it is fast, for images below 38 dB; a batch with both kinds computes each as alone."""
    monkeypatch.setattr(synthesis, "bfloat16_is_fast", lambda device: True)
    g_s = zoo.load("mbt2018-mean-small", 3).g_s
    y_hat = torch.randn(3, 96, 4, 4, generator=torch.Generator().manual_seed(0)).round()
    with torch.no_grad():
        exact, found = (
            g_s(y_hat),
            synthesis.FastSynthesis(g_s, "auto", torch.tensor([1e-3, 1e-5, 1e-3]))(y_hat),
        )
        for i, mse in enumerate((1e-3, 1e-5, 1e-3)):
            alone = synthesis.FastSynthesis(g_s, "auto", torch.tensor([mse]))
            assert torch.equal(alone(y_hat[i : i + 1])[0], found[i])
            assert torch.allclose(found[i], exact[i], atol=1e-5) == (i == 1)


def test_portable_models_move(gpu):
    """To a GPU and as copies, with gradients on the network's own weights."""
    model = make_portable(zoo.load("mbt2018-mean-small", 3))
    z = torch.randint(-9, 10, (1, 64, 3, 40), generator=torch.Generator().manual_seed(0)).float()
    with torch.no_grad():
        here = model.h_s(z)
    moved = copy.deepcopy(model).cuda()
    with torch.no_grad():
        assert torch.equal(moved.h_s(z.cuda()).cpu(), here) and torch.equal(model.h_s(z), here)
    v = z.cuda().requires_grad_()
    assert torch.autograd.grad(moved.h_s(v).sum(), v)[0].is_cuda


# --- eval_model --------------------------------------------------------------------------------------


def test_eval_model_on_a_gpu(gpu, evaluate, images, tmp_path):
    """What it prints is what a CPU prints; `decompress` has waited for the device when it returns."""
    shutil.copy(images / "a.png", tmp_path)
    arguments = ["pretrained", tmp_path, "-a", "mbt2018-mean-small", "-q", "3"]
    options = ["--refine", "ssl", "--refine-steps", "2"]
    on_gpu = evaluate(*arguments, "--cuda", *options)["results"]
    assert any("evaluation/gpu.py" in line for line in gpu.by_line["waits"])
    on_cpu = evaluate(*arguments, *options)["results"]
    for key, values in on_cpu.items():
        if "time" not in key:  # refinement may run in bfloat16 on one of them
            assert on_gpu[key] == pytest.approx(values, rel=1e-6 if "unrefined" in key else 1e-3), key


# --- Models ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "model, options",
    [
        ("mbt2018-mean-small", {"refine": "ssl", "steps": 10}),
        ("mbt2018-small", {}),
        ("c3-fast", {"steps": 10}),
    ],
)
def test_files_made_on_a_gpu_decode_on_a_cpu(gpu, model, options):
    """`compress --device cuda`: at most one level of 255 apart from what a GPU decodes."""
    image = (photo()[0] * 255).round().byte().permute(1, 2, 0).numpy()
    data, _ = compress_picture(Picture(image), model=model, device="cuda", **options)
    assert gpu.count("kernels") > 30
    here = decompress_picture(data).pixels.astype(int)
    assert abs(here - image).mean() < 50
    if model != "c3-fast":  # C3's files have no decoder for a device
        there = decompress_picture(data, device="cuda").pixels.astype(int)
        assert abs(here - there).max() <= 1


def test_hfd_on_a_gpu(gpu):
    model, x = hfd_parts.hfd("mbt2018-mean"), hfd_parts.images(2, 64, 128)
    cuda = copy.deepcopy(model).cuda()
    with torch.no_grad():
        out = cuda.compress(x.cuda())
        assert out["strings"] == model.compress(x)["strings"]
        assert [part[1:] for part in out["strings"]] == cuda.compress(x[1:].cuda())["strings"]
        gpu.reset()
        x_hat = cuda.decompress(**out)["x_hat"]
        assert x_hat.is_cuda
        assert gpu.count("waits") <= 90, gpu.report()
        first, stock = (m.decompress(**out, realism=0)["x_hat"].cpu() for m in (cuda, model))
        assert torch.allclose(first, stock, atol=1e-5)


def test_diffc_on_a_gpu_whatever_the_user_set(gpu):
    """Once with torch's new names of precision, which used to raise; the setting stays as it was."""
    model, x = diffc_parts.random_model().cuda(), diffc_parts.images(seed=4).cuda()
    products, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before, fixed = products.fp32_precision, cudnn.deterministic
    try:
        products.fp32_precision = "tf32"
        out = model.compress(x)
        gpu.reset()
        x_hat = model.decompress(**out)["x_hat"]
        assert x_hat.is_cuda and gpu.count("tf32") == gpu.count("no fixed order") == 0
        assert products.fp32_precision == "tf32" and cudnn.deterministic == fixed
    finally:
        products.fp32_precision = before


def test_universal_models_on_a_gpu(gpu):
    model, x = zoo.load("mbt2018-mean-uq-small", 3), photo()
    codec = coded_on_cpu(copy.deepcopy(model).cuda())
    with torch.no_grad():
        out = codec.compress(x.cuda())
        assert out == model.compress(x)
        here = codec.decompress(**out)["x_hat"]
        assert torch.allclose(here.cpu(), model.decompress(**out)["x_hat"], atol=1e-5)


# --- C3 ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", ["c3-fast", "c3-paper"])
def test_fits_on_a_gpu_are_reproducible(preset, gpu):
    """No operator without a fixed order, and no wait in a main step but for SOAP's new bases."""
    fit = Fit(photo(48).cuda(), PRESETS[preset], 1e-3, steps=1000)
    with full_float32(), fixed_algorithms():
        fit.step()
        gpu.reset()
        for _ in range(3):
            fit.step()
    assert gpu.count("no fixed order") == gpu.count("tf32") == 0, gpu.report("no fixed order")
    assert gpu.count("waits") == 0, gpu.report()
    assert gpu.count("kernels") <= 3 * 1200


def test_c3_on_a_gpu(gpu, monkeypatch):
    """To the end of a short fit, with a short search for the weights' steps; a CPU decodes the same image."""
    monkeypatch.setattr(weight_quantisation, "_SHARED", (11, 8))
    x = photo(48)
    model = C3(preset="c3-paper", lmbda=1e-3, steps=6, progress=False).cuda()
    out = model.compress(x.cuda())
    assert gpu.count("no fixed order") == gpu.count("tf32") == 0, gpu.report("no fixed order")
    here = model.decompress(**out)["x_hat"]
    assert here.is_cuda and torch.equal(here.cpu(), C3().decompress(**out)["x_hat"])


def test_the_border_has_torchs_gradient(gpu):
    for pad in ((1, 1, 1, 2), (0, 0, 2, 2), (1, 2, 1, 1)):
        x = torch.randn(2, 3, 5, 4, generator=torch.Generator().manual_seed(0))
        found = []
        for place in ("cpu", "cuda"):
            v = x.to(place).requires_grad_()
            padded = border_repeated(v, pad)
            weight = torch.arange(padded.numel()).reshape(padded.shape).float().to(place)
            found.append(
                [t.cpu() for t in (padded.detach(), torch.autograd.grad((padded * weight).sum(), v)[0])]
            )
        assert torch.equal(found[0][0], found[1][0])
        assert torch.allclose(found[0][1], found[1][1], rtol=1e-6)


def test_time_for_the_end_of_a_fit_is_reserved_in_seconds(gpu):
    """And 150 steps' on a CPU or two seconds on a GPU, where steps of 0.1 s do not make the search slow."""
    shares = []
    for place in ("cpu", "cuda"):
        fit = Fit(photo(32).to(place), PRESETS["c3-fast"], 1e-3, steps=10_000, max_seconds=60)
        fit.step_count, fit.seconds = 100, 10.0
        shares.append(fit.share)
    assert shares == pytest.approx([10 / 44.6, 10 / 57.6])
