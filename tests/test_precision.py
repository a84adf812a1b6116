# SPDX-License-Identifier: Apache-2.0
"""What is coded, refined or fitted does not depend on what the caller has switched on: autocast, another
default dtype, a default device, inference mode. Strings of autocast decoded to another image elsewhere."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from compressai.models import MeanScaleHyperprior
from torch import Tensor, nn

from compressai_sga import files, precision
from compressai_sga.files.codec import compress_described
from compressai_sga.models.c3 import C3Fast
from compressai_sga.models.rda import RateDistortionAutoencoder
from compressai_sga.precision import full_precision
from compressai_sga.refine import refine
from tests.models.diffc.diffc_parts import images, random_model
from tests.models.hfd.hfd_parts import hfd
from tests.models.test_elic import build as elic
from tests.models.test_universal_models import build as universal
from tests.small_models import build

X = images(1, 64, 64)


@contextlib.contextmanager
def switched_on() -> Iterator[None]:
    """All of it at once."""
    torch.set_default_dtype(torch.float64)
    try:
        with torch.inference_mode(), torch.device("meta"), torch.autocast("cpu", dtype=torch.bfloat16):
            yield
    finally:
        torch.set_default_dtype(torch.float32)


def refined(name: str) -> Callable[[], tuple]:
    model = build(name)

    def run() -> tuple:
        result = refine(model, X, "ssl", steps=3, lr=0.05, lmbda=0.05)
        return result.strings, result.x_hat, result.after.psnr_db

    return run


def coded(model: nn.Module, x: Tensor = X) -> Callable[[], tuple]:
    def run() -> tuple:
        out = model.compress(x)
        return out["strings"], model.decompress(out["strings"], out["shape"])["x_hat"]

    return run


def rda() -> nn.Module:
    torch.manual_seed(0)
    model = RateDistortionAutoencoder(16, 24).eval()
    model.g_a[-1].weight.data.mul_(30)
    model.update()
    return model


def filed(compress: Callable[..., tuple]) -> Callable[[], tuple]:
    pixels = np.ascontiguousarray((X[0, :, :20, :30] * 255).byte().permute(1, 2, 0).numpy())

    def run() -> tuple:
        data, *_ = compress(files.Picture(pixels), quality=1)
        return data, torch.from_numpy(files.decompress_picture(data).pixels)

    return run


JOBS: dict[str, Callable[[], Callable[[], tuple]]] = {
    "refine": lambda: refined("mbt2018-mean"),
    "refine with a context": lambda: refined("mbt2018"),
    "c3": lambda: coded(C3Fast(lmbda=1e-3, steps=3), X[..., :24, :24]),
    "diffc": lambda: coded(random_model(), images()),
    "hfd": lambda: coded(hfd("mbt2018-mean")),
    "universal": lambda: coded(universal(MeanScaleHyperprior)),
    "rda": lambda: coded(rda()),
    "elic": lambda: coded(elic()),
    "pictures": lambda: filed(files.compress_picture),
    "files": lambda: filed(compress_described),
}


@pytest.mark.parametrize("name", JOBS)
def test_results_do_not_depend_on_the_caller(name):
    job = JOBS[name]()
    data, *tensors = job()
    with switched_on():
        same, *others = job()
    assert same == data
    assert all(torch.equal(tensor, other) for tensor, other in zip(tensors, others, strict=True))


def test_the_context_gives_back_what_it_found():
    with switched_on():
        with full_precision():
            assert torch.zeros(2).dtype == torch.float32 and torch.zeros(2).device.type == "cpu"
            assert (torch.eye(2) @ torch.eye(2)).dtype == torch.float32
        assert torch.zeros(2).dtype == torch.float64 and torch.zeros(2).is_meta
        made = torch.eye(2, dtype=torch.float32, device="cpu")
        assert (made @ made).dtype == torch.bfloat16
    assert torch.zeros(2).dtype == torch.float32 and torch.zeros(2).device.type == "cpu"


SETTINGS: dict[str, Callable[[], object]] = {
    "full_float32": precision.tf32_is_allowed,
    "fixed_algorithms": lambda: torch.backends.cudnn.deterministic,
    "full_precision": torch.get_default_dtype,
}


@pytest.mark.parametrize("name", SETTINGS)
def test_the_last_thread_restores_settings_of_the_process(name):
    """A thread that ended before another took the setting away from it, which then kept it for ever."""
    context, setting = getattr(precision, name), SETTINGS[name]
    with switched_on():
        own = setting()
        with contextlib.ExitStack() as first, contextlib.ExitStack() as second:
            first.enter_context(context())
            within = setting()
            second.enter_context(context())
            first.close()
            assert setting() == within != own
        assert setting() == own


def test_a_model_that_was_made_in_inference_mode_can_be_refined():
    with torch.inference_mode():
        model = build("mbt2018-mean")
    there = refine(model, X, "ssl", steps=2, lr=0.05, lmbda=0.05)
    assert there.strings == refine(build("mbt2018-mean"), X, "ssl", steps=2, lr=0.05, lmbda=0.05).strings
