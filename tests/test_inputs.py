# SPDX-License-Identifier: Apache-2.0
"""Images, latents and weights that cannot be coded are refused where they enter, with what to do.

Stock's coder `ans` never ends on the symbol that NaN becomes, deaf to Ctrl-C, and other coders wrote bytes
that meant nothing.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from compressai.models import MeanScaleHyperprior
from torch import Tensor, nn

from compressai_sga import files, refined
from compressai_sga.coding import set_coder
from compressai_sga.errors import InputError, SgaError, ShapeError
from compressai_sga.inputs import LARGEST_SYMBOL, TOLERANCE, check_images, check_latents, check_weights
from compressai_sga.models.c3 import C3Fast
from compressai_sga.models.elic import SpaceChannelContext
from compressai_sga.models.rda import RateDistortionAutoencoder
from compressai_sga.models.universal import UniversalMeanScaleHyperprior
from compressai_sga.refine import refine
from tests.models.diffc.diffc_parts import random_model
from tests.models.hfd.hfd_parts import hfd

FINE = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def image(value: float) -> Tensor:
    """An image with one pixel of that value."""
    x = FINE.clone()
    x[0, 1, 2, 3] = value
    return x


def test_images_pass_with_a_tolerance():
    check_images(FINE)
    check_images(torch.tensor([-0.99 * TOLERANCE, 1 + 0.99 * TOLERANCE]).repeat(1, 3, 1, 1))
    check_images(FINE.half(), dtypes=(torch.float32, torch.float16))
    check_images(FINE[:, :1], channels=1)
    for value in (-0.01, 1.01):
        with pytest.raises(InputError):
            check_images(image(value))


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (image(math.nan), r"1 value that is NaN or infinite, the first at \(0, 1, 2, 3\)"),
        (image(math.inf) - image(math.inf), "1 value that is NaN"),
        (FINE / 0, "12288 values that are NaN or infinite"),
        (image(1e30), r"lies in \[.*, 1e\+30\]; .* give x.clamp\(0, 1\)"),
        (FINE * 255, "give x / 255"),
        (FINE * 2 - 1, r"give \(x \+ 1\) / 2"),
        (FINE * 1.2 - 0.1, r"give x.clamp\(0, 1\)"),
        ((FINE * 255).byte(), r"uint8; give torch.float32 .*: x.to\(torch.float32\) / 255"),
        (FINE.half(), r"float16; give torch.float32 .*: x.to\(torch.float32\)$"),
        (FINE.double(), r"float64; give torch.float32"),
        (FINE.numpy(), r"numpy.ndarray float32 \(1, 3, 64, 64\); give a tensor"),
        (np.zeros((64, 64, 3), np.uint8), r"uint8 \(64, 64, 3\).*torch.from_numpy\(x\).permute\(2, 0, 1\)"),
        ([[0.5]], "x is a list; give a tensor"),
    ],
)
def test_other_values_are_refused_with_the_cure(x, message):
    with pytest.raises(InputError, match=message) as caught:
        check_images(x)
    assert isinstance(caught.value, SgaError) and isinstance(caught.value, ValueError)


@pytest.mark.parametrize(
    ("shape", "cure"),
    [
        ((3, 64, 64), r"x\[None\]"),
        ((2, 64, 64, 3), r"x.permute\(0, 3, 1, 2\)"),
        ((1, 1, 64, 64), r"x.expand\(-1, 3, -1, -1\)"),
        ((1, 4, 64, 64), r"x\[:, :3\]"),
        ((0, 3, 64, 64), r"not \(0, 3, 64, 64\)$"),
        ((1, 3, 0, 64), "H and W above 0"),
        ((64,), r"not \(64,\)$"),
    ],
)
def test_other_shapes_are_refused_with_the_cure(shape, cure):
    with pytest.raises(ShapeError, match=cure):
        check_images(torch.zeros(shape))


def test_latents_without_a_symbol_are_refused():
    v = torch.zeros(1, 2, 3, 3)
    check_latents(v)
    check_latents(v.int())
    check_latents(v[:0])
    check_latents(v + LARGEST_SYMBOL, means=v + LARGEST_SYMBOL)
    for bad in (math.nan, math.inf, -math.inf):
        v[0, 1, 2, 0] = bad
        with pytest.raises(InputError, match=r"1 value that is NaN or infinite, the first at \(0, 1, 2, 0\)"):
            check_latents(v)
        with pytest.raises(InputError, match="infinite"):
            check_latents(torch.zeros_like(v), v)
    with pytest.raises(InputError, match=r"values up to 1e\+30"):
        check_latents(torch.full((3,), -1e30))
    with pytest.raises(InputError, match=r"values up to 1e\+08"):
        check_latents(torch.ones(3), step=torch.tensor(1e-8))


def test_weights_are_named():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 3))
    check_weights(model)
    check_weights(nn.ReLU())
    model[1].bias.data[2] = math.nan
    with pytest.raises(InputError, match=r"weight 1.bias of Sequential has 1 value .* at \(2,\)"):
        check_weights(model)


# --- Every way in ------------------------------------------------------------------------------


@functools.cache
def small() -> nn.Module:
    """A stock model on one of our coders, which end on anything: what is not refused is coded."""
    torch.manual_seed(0)
    model = MeanScaleHyperprior(16, 24).eval()
    model.update()
    return set_coder(model, "constriction-ans")


def compress(model: nn.Module) -> Callable[[Tensor], object]:
    if hasattr(model, "update"):
        model.update()
        set_coder(model, "constriction-ans")

    def run(x: Tensor) -> object:
        with torch.no_grad():
            return model.compress(x)

    return run


def in_context(x: Tensor) -> object:
    with refined(small(), steps=0, lmbda=0.01):
        return small().compress(x)


def write(x: Tensor) -> object:
    pixels = x[0].permute(1, 2, 0) if x.ndim == 4 else x
    return files.compress_picture(files.Picture(pixels.numpy()))


ENTRIES: dict[str, Callable[[], Callable[[Tensor], object]]] = {
    "refine": lambda: lambda x: refine(small(), x, steps=0, lmbda=0.01),
    "refined": lambda: in_context,
    "files": lambda: write,
    "c3": lambda: C3Fast(lmbda=1e-3, steps=1).compress,
    "diffc": lambda: random_model().compress,
    "hfd": lambda: hfd("mbt2018-mean").compress,
    "universal": lambda: compress(UniversalMeanScaleHyperprior(16, 24).eval()),
    "rda": lambda: compress(RateDistortionAutoencoder(16, 24).eval()),
    "elic": lambda: compress(SpaceChannelContext(16, 24, [4, 4, 16]).eval()),
}


@pytest.mark.parametrize("name", ENTRIES)
def test_every_way_in_refuses_what_is_no_image(name):
    entry = ENTRIES[name]()
    no_tensor = () if name == "files" else (FINE.numpy(),)
    for x in (image(math.nan), image(1e30), FINE * 255, FINE.double(), FINE[:, :2], *no_tensor):
        with pytest.raises((InputError, ShapeError)):
            entry(x)


def test_a_model_whose_weights_are_not_numbers_is_not_refined():
    model = MeanScaleHyperprior(16, 24).eval()
    model.update()
    model.h_s[0].weight.data[0] = math.nan
    with pytest.raises(InputError, match=r"weight h_s.0.weight of MeanScaleHyperprior"):
        refine(set_coder(model, "constriction-ans"), FINE, steps=0, lmbda=0.01)


# --- Before symbols are coded ------------------------------------------------------------------

STOCK_MODELS = """
import torch, compressai_sga
from compressai.entropy_models import GaussianMixtureConditional
from compressai.registry import MODELS
from compressai_sga.coding import set_coder
from compressai_sga.errors import InputError

x = torch.rand(1, 3, 64, 64)

def refuses(name, coder, part):
    model = MODELS[name](*((16,) if name.startswith("cheng") else (16, 24))).eval()
    model.update()
    set_coder(model, coder)
    next(model.get_submodule(part).parameters()).data.fill_(float("nan"))
    try:
        with torch.no_grad():
            model.compress(x)
    except InputError as error:
        assert "NaN" in str(error), error
        print(name, coder, "refused", flush=True)

for coder in ("constriction-ans", "ans"):
    for name in ("bmshj2018-factorized", "bmshj2018-hyperprior-vbr", "cheng2020-anchor-checkerboard"):
        refuses(name, coder, "g_a")
    refuses("mbt2018-mean", coder, "h_s")
    for name in ("mbt2018", "mbt2018-vbr"):
        refuses(name, coder, "entropy_parameters")
    mixture = GaussianMixtureConditional(K=3)
    set_coder(mixture, coder)
    y = torch.full((1, 2, 4, 4), float("nan"))
    try:
        mixture.compress(y, *(torch.ones(1, 6, 4, 4) for _ in range(3)))
    except InputError:
        print("mixture", coder, "refused", flush=True)
"""


def test_stock_models_with_broken_weights_are_refused_and_do_not_hang(python):
    done = python("-W", "ignore", "-c", STOCK_MODELS, check=True)
    assert done.stdout.count("refused") == 2 * 7, done.stdout
