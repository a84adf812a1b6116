# SPDX-License-Identifier: Apache-2.0
"""Claims of coding/{entropy_models,mixture}.py: stock's tensors, tables that are kept and renewed."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import torch
from compressai.entropy_models import (
    EntropyBottleneck,
    EntropyBottleneckVbr,
    GaussianConditional,
    GaussianMixtureConditional,
)
from compressai.models import FactorizedPrior
from compressai.models.base import get_scale_table

import compressai_sga
from compressai_sga.coding import CODERS, checksum, entropy_models, set_coder
from compressai_sga.errors import BitstreamError, ShapeError


@pytest.fixture(autouse=True)
def enabled():
    compressai_sga.hooks.enable()


@pytest.fixture(params=CODERS)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


def gaussian(name: str) -> GaussianConditional:
    model = GaussianConditional(None, entropy_coder=name).eval()
    model.update_scale_table(get_scale_table())
    return model


def bottleneck(name: str, channels: int = 6) -> EntropyBottleneck:
    torch.manual_seed(0)
    model = EntropyBottleneck(channels, entropy_coder=name).eval()
    with torch.no_grad():
        model.quantiles[:, 0, 1] += torch.linspace(-0.4, 0.4, channels)  # medians that are no integers
    model.update()
    return model


def latent(*shape: int, seed: int = 0, spread: float = 4.0) -> torch.Tensor:
    return spread * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# --- The floats of stock -------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(2, 6, 5, 7), (1, 6, 4), (1, 6, 1, 1), (3, 6)])
def test_bottleneck_gives_stocks_tensor(name, shape):
    y = latent(*shape)
    y[0, 0] = 3e4  # an escape
    stock, ours = bottleneck("ans"), bottleneck(name)
    expected = stock.decompress(stock.compress(y), shape[2:])
    strings = ours.compress(y)
    assert len(strings) == shape[0] and all(isinstance(s, bytes) for s in strings)
    assert torch.equal(ours.decompress(strings, shape[2:]), expected)


@pytest.mark.parametrize("with_means", [False, True])
def test_gaussian_gives_stocks_tensor(name, with_means):
    y, scales = latent(2, 5, 6, 8), torch.exp(latent(2, 5, 6, 8, seed=1, spread=1.5))
    means = latent(2, 5, 6, 8, seed=2) if with_means else None
    stock, ours = gaussian("ans"), gaussian(name)
    indexes = stock.build_indexes(scales)
    expected = stock.decompress(stock.compress(y, indexes, means), indexes, means=means)
    indexes = ours.build_indexes(scales)
    assert indexes.shape == scales.shape and indexes.is_floating_point() == CODERS[name].continuous
    assert torch.equal(ours.decompress(ours.compress(y, indexes, means), indexes, means=means), expected)


def test_broadcast_means(name):
    ours, y, means = gaussian(name), latent(2, 5, 3, 3), latent(2, 5, 1, 1, seed=1)
    indexes = ours.build_indexes(torch.ones_like(y))
    decoded = ours.decompress(ours.compress(y, indexes, means), indexes, means=means)
    assert torch.equal(decoded, torch.round(y - means) + means)


def test_variable_rate_bottleneck(name):
    stock, ours = (EntropyBottleneckVbr(4, entropy_coder=c).eval() for c in ("ans", name))
    ours.load_state_dict(stock.state_dict())
    y, step = latent(2, 4, 3, 5, spread=9.0), torch.tensor(1.7)
    for qs in (None, step):
        for model in (stock, ours):
            model.update(force=True) if qs is None else model.update_variable(force=True, qs=qs)
        expected = stock.decompress(stock.compress(y, qs), (3, 5), qs)
        assert torch.equal(ours.decompress(ours.compress(y, qs), (3, 5), qs), expected)


@pytest.mark.parametrize("pixels", [0, 1, 2, 3])
def test_few_symbols(name, pixels):
    """Where stock `ans` writes beyond its buffer."""
    ours, y = bottleneck(name, 1), latent(1, 1, 1, pixels)
    rounded = ours.quantize(y, "dequantize", ours._get_medians().detach().reshape(1, 1, 1, 1))
    assert torch.equal(ours.decompress(ours.compress(y), (1, pixels)), rounded)
    ours = gaussian(name)
    for far in (0, 2**15, -(2**15), 2**20):
        y = latent(1, 1, pixels, 1) + far
        indexes = ours.build_indexes(torch.ones_like(y))
        assert torch.equal(ours.decompress(ours.compress(y, indexes), indexes), torch.round(y))


def test_an_empty_batch(name):
    ours = bottleneck(name)
    assert ours.compress(torch.zeros(0, 6, 2, 2)) == []
    assert ours.decompress([], (2, 2)).shape == (0, 6, 2, 2)


def test_wide_scales_and_numbers_that_are_none(name):
    ours = gaussian(name)
    scales = torch.tensor([[0.0, 1e-9, 1e9, float("inf"), float("nan"), 300.0]])
    y = torch.tensor([[0.0, 1.0, 1e6, -1e6, 5.0, 700.0]])
    indexes = ours.build_indexes(scales)
    assert torch.equal(ours.decompress(ours.compress(y, indexes), indexes), y)


def test_half_precision(name):
    ours = gaussian(name)
    y, scales = latent(1, 3, 4, 4).half(), torch.full((1, 3, 4, 4), 2.5, dtype=torch.float16)
    indexes = ours.build_indexes(scales)
    assert torch.equal(ours.decompress(ours.compress(y, indexes), indexes), torch.round(y.float()))


def test_strings_do_not_depend_on_batch_or_layout(name):
    ours, y = gaussian(name), latent(4, 3, 6, 6)
    scales = torch.exp(latent(4, 3, 6, 6, seed=1, spread=1.0))
    together = ours.compress(y, ours.build_indexes(scales))
    wide = y.contiguous(memory_format=torch.channels_last)
    assert ours.compress(wide, ours.build_indexes(scales)) == together
    apart = [ours.compress(a[None], ours.build_indexes(b[None]))[0] for a, b in zip(y, scales)]
    assert apart == together


# --- Tables are kept, and renewed --------------------------------------------------------------


def made_tables(model: torch.nn.Module, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Counts how often tables are built, from here on."""
    built = []
    stock = entropy_models.Tables.__init__

    def count(self, *arrays):
        built.append(1)
        stock(self, *arrays)

    monkeypatch.setattr(entropy_models.Tables, "__init__", count)
    return built


def widen(model: EntropyBottleneck) -> None:
    with torch.no_grad():
        model.quantiles[:, 0, 0] -= 3
    model.update(force=True)


def write_in_place(model: EntropyBottleneck) -> None:
    model._offset.sub_(1)


def load_other(model: EntropyBottleneck) -> None:
    state = {k: v.clone() for k, v in model.state_dict().items()}
    state["_offset"] -= 1
    model.load_state_dict(state)


@pytest.mark.parametrize("change", [widen, write_in_place, load_other])
def test_tables_are_made_once_and_again_after_a_change(change, monkeypatch):
    model = bottleneck("constriction-ans")
    built, y = made_tables(model, monkeypatch), latent(1, 6, 4, 4)
    for _ in range(3):
        before = model.compress(y)
        model.decompress(before, (4, 4))
    assert len(built) == 1
    change(model)
    after = model.compress(y)
    assert after != before and len(built) == 2
    fresh = pickle.loads(pickle.dumps(model))
    assert fresh.compress(y) == after
    assert torch.equal(fresh.decompress(after, (4, 4)), model.decompress(after, (4, 4)))


def test_tables_made_in_inference_mode_are_compared(monkeypatch):
    with torch.inference_mode():
        model = bottleneck("constriction-ans")
        built, y = made_tables(model, monkeypatch), latent(1, 6, 4, 4)
        before = model.compress(y)
        model.decompress(before, (4, 4))
        assert len(built) == 1
        model._offset.sub_(1)
        assert model.compress(y) != before and len(built) == 2


def test_copies_keep_the_coder_and_share_nothing(name):
    model = gaussian(name)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert other.entropy_coder.name == name
        y = latent(1, 2, 3, 3)
        strings = other.compress(y, other.build_indexes(torch.ones_like(y)))
        other._offset += 1
        assert model.compress(y, model.build_indexes(torch.ones_like(y))) == strings
    assert not any(
        "coding" in str(type(v).__module__) for k, v in vars(model).items() if k != "entropy_coder"
    )


# --- Setting the coder, and what is refused ------------------------------------------------------


def test_set_coder(name):
    model = FactorizedPrior(8, 8)
    assert model.entropy_bottleneck.entropy_coder.name == "ans"
    assert set_coder(model, name) is model and model.entropy_bottleneck.entropy_coder.name == name
    assert set_coder(model, "ans").entropy_bottleneck.entropy_coder.name == "ans"
    with pytest.raises(ValueError, match="nonsense"):
        set_coder(model, "nonsense")
    with pytest.raises(ValueError, match="no entropy model"):
        set_coder(torch.nn.Conv2d(1, 1, 1), name)


def test_wrong_arguments(name):
    ours, y = gaussian(name), latent(2, 3, 4, 4)
    indexes = ours.build_indexes(torch.ones_like(y))
    strings = ours.compress(y, indexes)
    for call in (
        lambda: ours.compress(y[:1], indexes),
        lambda: ours.compress(y[0, 0, 0], indexes[0, 0, 0]),
        lambda: ours.decompress(strings[:1], indexes),
        lambda: ours.decompress(strings[0], indexes),
        lambda: ours.decompress(strings, indexes, means=y[:, :2]),
        lambda: ours.decompress(strings, indexes, means=y[..., :2]),
        lambda: GaussianConditional(None, entropy_coder=name).compress(y, indexes),
    ):
        with pytest.raises(ValueError):
            call()


def test_a_damaged_string_is_refused(name):
    ours, y = gaussian(name), latent(2, 3, 4, 4)
    indexes = ours.build_indexes(torch.ones_like(y))
    first, second = ours.compress(y, indexes)
    for bad in ([first, b""], [first, second + b"\1"], [first[:-1], second]):
        with pytest.raises(BitstreamError):
            ours.decompress(bad, indexes)


def test_stock_refuses_strings_that_are_not_multiples_of_four(name):
    """Stock would read them beyond their end."""
    stock, ours = bottleneck("ans"), bottleneck(name)
    refused = 0
    for seed in range(12):
        y = latent(1, 6, 2, 2, seed=seed)
        strings = ours.compress(y)
        if len(strings[0]) % 4:
            refused += 1
            with pytest.raises(BitstreamError, match="not of CompressAI's coder"):
                stock.decompress(strings, (2, 2))
    assert refused == 12 if name == "constriction-exact" else refused > 0


def test_symbols_are_summed_up(name):
    ours, y = bottleneck(name), latent(2, 6, 3, 3)
    with checksum.record() as encoded:
        strings = ours.compress(y)
    with checksum.record() as decoded:
        ours.decompress(strings, (3, 3))
    assert (encoded.symbols, encoded.crc32) == (decoded.symbols, decoded.crc32) and encoded.symbols == 108


# --- The mixture model -------------------------------------------------------------------------


def mixture(name: str, height: int = 5, width: int = 4, spread: float = 6.0) -> tuple:
    model = GaussianMixtureConditional(K=3, entropy_coder=name).eval()
    y = latent(1, 4, height, width, spread=spread)
    scales = torch.exp(latent(1, 12, height, width, seed=1, spread=0.5))
    means = latent(1, 12, height, width, seed=2, spread=2.0)
    weights = torch.softmax(latent(1, 3, 4, height, width, seed=3), 1).reshape(1, 12, height, width)
    return model, y, (scales, means, weights)


def test_mixture_gives_stocks_tensor(name):
    model, y, parameters = mixture(name)
    y[:, 2] = 0.3  # a channel of zeros is left out
    stock, *_ = mixture("ans")
    (theirs, abs_max, bitmap), rounded = stock.compress(y, *parameters)
    expected = stock.decompress(theirs, abs_max, bitmap, *parameters)
    assert torch.equal(expected, rounded)
    (ours, our_max, our_bitmap), our_rounded = model.compress(y, *parameters)
    assert (our_max, our_bitmap.tolist()) == (abs_max, bitmap.tolist()) == (abs_max, [1, 1, 0, 1])
    assert torch.equal(our_rounded, rounded)
    assert torch.equal(model.decompress(ours, our_max, our_bitmap, *parameters), expected)
    assert len(ours) <= len(theirs)


def test_mixture_length_is_that_of_its_likelihood(name):
    model, y, parameters = mixture(name, 16, 16)
    (string, *_), rounded = model.compress(y, *parameters)
    bits = float(-torch.log2(model._likelihood(rounded, *parameters).clamp_min(2**-16)).sum())
    assert bits * 0.98 < 8 * len(string) < bits * 1.02 + 48


@pytest.mark.parametrize("height, width", [(1, 1), (1, 2), (1, 3)])
def test_mixture_of_few_symbols(name, height, width):
    model, y, parameters = mixture(name, height, width)
    for latents in (y[:, :1], torch.zeros_like(y[:, :1])):
        some = tuple(part[:, ::4] for part in parameters)
        coded, rounded = model.compress(latents, *some)
        assert torch.equal(model.decompress(*coded, *some), rounded)


def test_mixture_refusals(name):
    model, y, parameters = mixture(name)
    (string, abs_max, bitmap), _ = model.compress(y, *parameters)
    for bad in (string[:-1], b"", string + b"\1", np.random.default_rng(0).bytes(len(string))):
        with pytest.raises(BitstreamError):
            model.decompress(bad, abs_max, bitmap, *parameters)
    for absurd in (0, -5, 2**40):
        with pytest.raises(BitstreamError, match="mixture table"):
            model.decompress(string, absurd, bitmap, *parameters)
    two = tuple(torch.cat([part, part]) for part in parameters)
    with pytest.raises(ShapeError, match="one image"):
        model.compress(torch.cat([y, y]), *two)
