# SPDX-License-Identifier: Apache-2.0
"""Claims of defaults.py and start.py: shipped nets are found, exact in any step, and shorten files."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from compressai_sga.errors import BitstreamError
from compressai_sga.models.c3 import defaults as shipped
from compressai_sga.models.c3 import weights
from compressai_sga.models.c3.config import KNOWN, PRESETS, layout
from compressai_sga.models.c3.defaults import SHIFT, defaults, nearest, read_defaults, save_defaults
from compressai_sga.models.c3.fit.loop import Fit
from compressai_sga.models.c3.fit.weight_quantisation import _Search
from compressai_sga.models.c3.network import synthesise
from compressai_sga.models.c3.weights import Nets, decode_nets, encode_nets

ARCHITECTURE = PRESETS["c3"].architecture


def made(seed: int, size: float = 0.0) -> Nets:
    """Nets `size` steps of 2^-8 away from the first default ones."""
    start, draws = defaults()[0], np.random.default_rng(seed)
    integers = [start.at(i, 8) for i in range(len(start.integers))]
    integers = [k + np.rint(size * draws.standard_normal(k.shape)).astype(np.int64) for k in integers]
    return Nets(ARCHITECTURE, (20, 30), 40, tuple(integers), (8,) * len(integers), start)


def test_sets_ship_for_the_presets_of_ours():
    sets = defaults()
    assert [d.number for d in sets] == list(range(1, len(sets) + 1))
    assert len(sets) >= 3 and all(d.architecture == ARCHITECTURE for d in sets)
    for d in sets:
        assert [k.shape for k in d.integers] == [spec.shape for spec in layout(ARCHITECTURE)]
        assert max(np.abs(k).max() for k in d.integers) < 8 << SHIFT


def test_the_nearest_is_so_on_a_logarithmic_scale():
    for lmbda in (1e-5, 3e-4, 1e-3, 2.1e-3, 5e-3, 1.0):
        found = nearest(ARCHITECTURE, lmbda)
        assert all(abs(math.log(found.lmbda / lmbda)) <= abs(math.log(d.lmbda / lmbda)) for d in defaults())
    assert nearest(PRESETS["c3-paper"].architecture, 1e-3) is None


@pytest.mark.parametrize("shift", [0, 3, 11, 12, 14, 20])
def test_steps_are_rounded_half_up(shift):
    start = defaults()[0]
    for i, k in enumerate(start.integers):
        assert (start.at(i, shift) == np.floor(np.ldexp(k.astype(np.float64), shift - SHIFT) + 0.5)).all()


def test_saved_sets_are_read_back(tmp_path):
    arrays = {spec.name: torch.randn(spec.shape) for spec in layout(ARCHITECTURE)}
    save_defaults(tmp_path / "nets.safetensors", ARCHITECTURE, {1e-3: arrays, 2e-3: arrays})
    first, second = read_defaults(tmp_path / "nets.safetensors")
    assert (first.lmbda, second.lmbda, second.number) == (1e-3, 2e-3, 2)
    for spec, k in zip(layout(ARCHITECTURE), second.integers):
        assert np.abs(np.ldexp(k.astype(np.float64), -SHIFT) - arrays[spec.name].numpy()).max() <= 2.0**-13


@pytest.mark.parametrize("size", [0.0, 1.0, 50.0])
def test_nets_coded_as_differences_decode_to_themselves(size):
    nets = made(1, size)
    back = decode_nets(encode_nets(nets))
    assert back.start.number == 1
    assert all((a == b).all() for a, b in zip(back.integers, nets.integers))


def test_differences_are_shorter_where_nets_are_near_and_cost_little_where_not():
    near, plain = made(2, 1.0), replace(made(2, 1.0), start=None)
    assert len(encode_nets(near)) < 0.5 * len(encode_nets(plain))
    draws = np.random.default_rng(3)
    far = replace(made(2), integers=tuple(draws.integers(-9, 10, k.shape) for k in near.integers))
    assert len(encode_nets(far)) <= len(encode_nets(replace(far, start=None))) + 4


def test_another_set_than_the_encoders_is_found_out(monkeypatch):
    data = encode_nets(made(4, 1.0))
    first = defaults()[0]
    changed = tuple(k + (i == 0) for i, k in enumerate(first.integers))
    for others in ((), (replace(first, integers=changed),)):
        monkeypatch.setattr(weights, "defaults", lambda others=others: others)
        with pytest.raises(BitstreamError):
            decode_nets(data)


def test_files_without_default_nets_do_not_need_the_zoos(monkeypatch):
    def absent():
        raise FileNotFoundError

    data = encode_nets(replace(made(5, 1.0), start=None))
    for module in (shipped, weights):
        monkeypatch.setattr(module, "defaults", absent)
    assert decode_nets(data).start is None
    assert nearest(PRESETS["c3-paper"].architecture, 1e-3) is None


def test_explicit_architectures_have_no_default_nets():
    other = replace(ARCHITECTURE, refinements=1)
    assert other not in KNOWN and nearest(other, 1e-3) is None
    integers = tuple(np.zeros(spec.shape, np.int64) for spec in layout(other))
    with pytest.raises(ValueError, match="default nets exist for known architectures only"):
        encode_nets(Nets(other, (8, 8), 1, integers, (8,) * len(integers), defaults()[0]))


@pytest.mark.parametrize("warm", [True, False])
def test_a_fit_starts_at_each_images_mean_colour(warm):
    x = (
        torch.rand(2, 3, 16, 24, generator=torch.Generator().manual_seed(5))
        * torch.tensor([1.0, 0.2])[:, None, None, None]
    )
    fit = Fit(x, PRESETS["c3"], 1e-3, steps=1, warm=warm)
    nothing = torch.zeros(2, ARCHITECTURE.grids, 16, 24)
    colour = synthesise(fit.arrays(), nothing, ARCHITECTURE).mean((2, 3))
    torch.testing.assert_close(colour, x.mean((2, 3)), atol=2e-2 if not warm else 1e-5, rtol=0)
    assert (fit.starts[0] is not None) == warm


@pytest.mark.parametrize("warm", [True, False])
def test_a_dead_zone_draws_weights_to_what_costs_nothing(warm):
    fit = Fit(
        torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(6)), PRESETS["c3"], 1e-3, warm=warm
    )
    search = _Search(fit)
    name, shifts = search.specs[0].name, torch.tensor([8])
    base = torch.from_numpy(fit.starts[0].at(0, 8)) if warm else torch.zeros(search.specs[0].shape)
    for zone, wanted in ((0.0, 1.0), (0.2, 1.0), (0.4, 0.0)):
        for sign in (1, -1):
            search.exact[name] = (base + sign * 0.8)[None].float() / 256
            found = search._round(0, shifts, torch.tensor([zone]))[0] * 256
            torch.testing.assert_close(found, (base + sign * wanted).float())


def test_the_set_of_the_zoo_is_looked_up_once():
    assert shipped.defaults() is shipped.defaults()
