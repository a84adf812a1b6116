# SPDX-License-Identifier: Apache-2.0
"""The critic's claims on finite alphabets, on Gaussians and on pictures (Theis 2024)."""

from __future__ import annotations

import io
import itertools
import math
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from compressai_sga import zoo
from compressai_sga.errors import SgaError, ShapeError
from compressai_sga.metrics import METRICS
from compressai_sga.metrics.critic import Compressor, Mixture, batch_critic, critic, critic_bpp
from compressai_sga.metrics.photographs import PHOTOGRAPHS

P = (0.5, 0.25, 0.15, 0.1)
UNIFORM, ODD = (0.25,) * 4, (0.1, 0.1, 0.1, 0.7)
SYMBOLS = torch.arange(4)


class Table:
    """A law on 0, 1, ...; items of a batch are independent."""

    def __init__(self, probabilities) -> None:
        self._bits = -torch.tensor(probabilities, dtype=torch.float64).log2()

    def bits(self, x: Tensor) -> Tensor:
        return self._bits[x]

    def joint_bits(self, x: Tensor) -> Tensor:
        return self.bits(x).sum()


def random_law(generator) -> list[float]:
    return generator.dirichlet(np.ones(4)).tolist()


def mixture() -> Mixture:
    return Mixture([Table(P), Table(UNIFORM), Table(ODD)], [0.5, 0.25, 0.25])


# Finite alphabets: every sum is over all items, so nothing is estimated.


def test_expectation_of_2_to_the_u_is_1_for_a_mixture():
    u = critic(SYMBOLS, Table(P), mixture())
    assert float((torch.tensor(P) * u.exp2()).sum()) == pytest.approx(1, abs=1e-7)
    generator = np.random.default_rng(0)
    for _ in range(20):
        model, *parts = (Table(random_law(generator)) for _ in range(4))
        u = critic(SYMBOLS, model, Mixture(parts, generator.dirichlet(np.ones(3))))
        assert float((model.bits(SYMBOLS).neg().exp2() * u.exp2()).sum()) == pytest.approx(1, abs=1e-12)


def test_expectation_of_2_to_the_u_is_below_1_for_a_compressor():
    """Lengths 1, 2, 3, 4 of a prefix code that leaves a word unused."""
    code = Table([0.5, 0.25, 0.125, 0.0625])
    u = critic(SYMBOLS, Table(P), code)
    assert float((torch.tensor(P) * u.exp2()).sum()) == pytest.approx(15 / 16)


def test_the_critic_sees_what_any_part_sees():
    """U >= log2 w_i + log2 Q_i / P."""
    u = critic(SYMBOLS, Table(P), mixture())
    for weight, part in zip((0.5, 0.25, 0.25), (P, UNIFORM, ODD)):
        assert (u >= math.log2(weight) + Table(P).bits(SYMBOLS) - Table(part).bits(SYMBOLS)).all()


def test_real_items_seldom_have_large_u():
    """Markov: P(U >= t) <= 2^-t, at every t where the left side steps."""
    generator = np.random.default_rng(1)
    for _ in range(20):
        law = random_law(generator)
        u = critic(SYMBOLS, Table(law), Mixture([Table(random_law(generator)) for _ in range(2)]))
        for t in u.tolist():
            assert sum(p for p, v in zip(law, u.tolist()) if v >= t) <= 2**-t + 1e-12


@pytest.mark.parametrize("size", [1, 2, 4])
def test_batches_have_the_same_law(size):
    """sum over all batches of P(x_1) ... P(x_n) 2^U = 1, and P(U >= t) <= 2^-t."""
    batches = [torch.tensor(b) for b in itertools.product(range(4), repeat=size)]
    u = torch.stack([batch_critic(b, Table(P), mixture()) for b in batches])
    law = torch.stack([(-Table(P).bits(b).sum()).exp2() for b in batches])
    assert float((law * u.exp2()).sum()) == pytest.approx(1, abs=1e-6)
    for t in (0, 1, 2):
        assert float(law[u >= t].sum()) <= 2**-t
    if size == 1:
        assert torch.allclose(u, critic(SYMBOLS, Table(P), mixture()))


def test_a_batch_shows_a_law_that_single_items_hide():
    """Items of ODD: one is hardly odd, forty are."""
    generator = np.random.default_rng(2)
    items = torch.from_numpy(generator.choice(4, 40, p=ODD))
    together = batch_critic(items, Table(P), mixture())
    divergence = sum(q * math.log2(q / p) for p, q in zip(P, ODD))
    assert float(critic(items, Table(P), mixture()).max()) < 1.6
    assert float(together) == pytest.approx(40 * divergence - 2, rel=0.3) and together > 40


# Gaussians: what likelihood gets wrong.


class Gaussian:
    """N(0, sigma^2 I)."""

    def __init__(self, sigma: float) -> None:
        self._sigma = sigma

    def bits(self, x: Tensor) -> Tensor:
        log2 = math.log2(2 * math.pi * self._sigma**2) / 2
        return (log2 + x.square() / (2 * self._sigma**2 * math.log(2))).sum(1)

    def joint_bits(self, x: Tensor) -> Tensor:
        return self.bits(x).sum()


SCALES = Mixture([Gaussian(sigma) for sigma in (1, 0.5, 0.25, 0.1)])


def draws(count: int, sigma: float) -> Tensor:
    return sigma * torch.from_numpy(np.random.default_rng(3).normal(size=(count, 16)))


def test_a_blurry_image_is_likelier_and_less_realistic():
    """16 values of half the standard deviation: 24.1 bits, not 32.7, but U is above 5."""
    real, blurry = draws(20_000, 1), draws(20_000, 0.5)
    model = Gaussian(1)
    assert float(model.bits(real).mean()) == pytest.approx(8 * math.log2(2 * math.pi * math.e), abs=0.1)
    assert float(model.bits(blurry).mean()) == pytest.approx(24.1, abs=0.1)
    assert float(critic(blurry, model, SCALES).mean()) == pytest.approx(5.5, abs=0.25)
    assert float(critic(real, model, SCALES).mean()) < 0


def test_a_grey_image_is_likeliest_and_least_realistic():
    grey = torch.zeros(1, 16, dtype=torch.float64)
    assert float(Gaussian(1).bits(grey)) < 21.3
    assert float(critic(grey, Gaussian(1), SCALES)) == pytest.approx(51, abs=0.5)


class SameMean:
    """x_i ~ N(theta, tau^2), theta ~ N(0, 1) for all of a batch: covariance tau^2 I + 1 1^T."""

    TAU2 = 0.05**2

    def bits(self, x: Tensor) -> Tensor:
        return torch.stack([self.joint_bits(item[None]) for item in x])

    def joint_bits(self, x: Tensor) -> Tensor:
        n, t = len(x), self.TAU2
        square = (x.square().sum() - x.sum() ** 2 / (t + n)) / t
        log = n * math.log(2 * math.pi) + (n - 1) * math.log(t) + math.log(t + n)
        return (log + square) / (2 * math.log(2))


def test_a_collapsed_batch_is_unrealistic_though_each_item_is_not():
    """Eight items around one place: 28.7 bits; of one item 0."""
    model, reference = Gaussian(math.sqrt(1 + SameMean.TAU2)), SameMean()
    generator = np.random.default_rng(4)
    theta, noise = generator.normal(size=(20_000, 1, 1)), generator.normal(size=(20_000, 8, 1))
    collapsed = torch.from_numpy(theta + 0.05 * noise)
    u = torch.stack([batch_critic(batch, model, reference) for batch in collapsed[:4000]])
    assert float(u.mean()) == pytest.approx(28.7, abs=0.25)
    assert critic(collapsed[:10].flatten(0, 1), model, reference).abs().max() < 1e-9
    spread = torch.from_numpy(generator.normal(size=(8, 1)))
    assert batch_critic(spread, model, reference) < 0


# Pictures.


@pytest.fixture(scope="module")
def picture() -> Tensor:
    with Image.open(zoo.sample_images()[0]) as image:
        x = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)[None]
    return x[:, :, :128, :128].contiguous()


@pytest.mark.parametrize("format", ["png", "webp", "jxl"])
def test_compressors_are_lossless_and_prefix_free_files(format, picture, monkeypatch):
    """sum 2^-bits <= 1 needs files that hold the picture exactly and know their end."""
    if format == "jxl":
        pytest.importorskip("pillow_jxl", reason="pip install pillow-jxl-plugin")
    saved = []
    save = Image.Image.save

    def keep(image, file, **options):
        save(image, file, **options)
        saved.append(file.getvalue())

    monkeypatch.setattr(Image.Image, "save", keep)
    batch = torch.cat([picture, 255 - picture])
    bits = Compressor(format).bits(batch)
    assert bits.tolist() == [8 * len(data) for data in saved]
    for x, data in zip(batch, saved):
        with Image.open(io.BytesIO(data)) as image:
            assert np.array_equal(np.array(image), x.permute(1, 2, 0).numpy())


def test_copies_cost_little_in_one_webp_file(picture):
    """A collapsed batch: each picture as good as any, together unrealistic."""
    code, eight = Compressor("webp"), picture.repeat(8, 1, 1, 1)
    once = float(code.bits(picture))
    assert float(code.joint_bits(eight)) < 1.4 * once
    assert batch_critic(eight, PHOTOGRAPHS, code) > 6 * once
    assert abs(float(critic(picture, PHOTOGRAPHS, code))) < 0.1 * once


def test_metric_is_of_the_reconstruction_alone_in_bits_a_pixel(picture):
    x = picture / 255
    grey = torch.full_like(x, 0.5)
    assert METRICS["critic"] is critic_bpp
    value = critic_bpp(grey, x)
    assert value == critic_bpp(x, x)
    assert -0.5 < value < 1.5
    wide = torch.cat([x, x.flip(3)], 3)
    assert critic_bpp(wide, wide) == pytest.approx(value, abs=0.5)


def test_metric_ranks_a_blur_and_an_upscaled_picture_above_the_original(picture):
    x = picture / 255
    blurred = torch.nn.functional.avg_pool2d(x, 5, 1, 2, count_include_pad=False)
    coarse = torch.nn.functional.interpolate(x[:, :, ::4, ::4], scale_factor=4)
    original = critic_bpp(x, x)
    assert critic_bpp(x, blurred) > original + 0.3
    assert critic_bpp(x, coarse) > original + 0.3


def test_bad_arguments():
    with pytest.raises(ValueError, match="'gif'; it must be one of png, webp, jxl"):
        Compressor("gif")
    with pytest.raises(ValueError, match="1 parts and 2 weights"):
        Mixture([Table(P)], [0.5, 0.5])
    with pytest.raises(ValueError, match="sum of at most 1"):
        Mixture([Table(P), Table(P)], [0.5, 0.6])
    with pytest.raises(ValueError, match="0 parts"):
        Mixture([])
    with pytest.raises(ShapeError, match=r"\(x \* 255\).round\(\)"):
        Compressor("png").bits(torch.rand(1, 3, 8, 8))
    with pytest.raises(ShapeError, match="64x20000 px, but its sides have at most 16383"):
        Compressor("webp").joint_bits(torch.zeros(200, 3, 100, 64, dtype=torch.uint8))


def test_a_missing_plug_in_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_jxl", None)
    with pytest.raises(SgaError, match="pip install pillow-jxl-plugin"):
        Compressor("jxl")
    monkeypatch.delitem(Image.SAVE, "WEBP")
    with pytest.raises(SgaError, match="cannot write webp"):
        Compressor("webp")
