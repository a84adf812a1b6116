# SPDX-License-Identifier: Apache-2.0
"""Claims of files/portable.py: h_s in float64 is the stock one but for float32 noise, the same bits in
blocks and at once, in little memory, and stock itself where gradients are wanted."""

from __future__ import annotations

import copy

import pytest
import torch
from compressai.zoo.image import model_architectures

from compressai_sga import zoo
from compressai_sga.files.float64 import BLOCK, _reach, make_portable


@pytest.mark.parametrize("name", ["mbt2018-mean-small", "mbt2018-small"])
@pytest.mark.parametrize("size", [(1, 1), (8, 12), (13, 40), (3 * BLOCK, 2 * BLOCK + 1), (1, 100)])
def test_blocks_give_the_bits_of_the_whole(name, size):
    stock = zoo.load(name, 3)
    portable = make_portable(copy.deepcopy(stock))
    z = torch.randint(-9, 10, (1, 64, *size), generator=torch.Generator().manual_seed(0)).float()
    with torch.no_grad():
        whole = copy.deepcopy(stock.h_s).double()(z.double()).float()
        assert torch.equal(portable.h_s(z), whole)
        assert torch.allclose(stock.h_s(z), whole, rtol=1e-4, atol=1e-4)
    assert all(v.dtype == torch.float32 for v in portable.parameters())


@pytest.mark.parametrize(
    ("name", "reach"),
    [("bmshj2018-hyperprior", 2), ("mbt2018-mean", 2), ("mbt2018", 2), ("cheng2020-anchor", 4)],
)
def test_reach_of_the_networks_of_compressai(name, reach):
    N, M = (8, 8) if name.startswith("cheng") else (8, 12)
    arguments = (N,) if name.startswith("cheng") else (N, M)
    h_s = model_architectures[name](*arguments).h_s.double()
    assert _reach(h_s) == reach
    z = torch.zeros(1, N, 21, 21, dtype=torch.float64)
    with torch.no_grad():
        moved = z.clone()
        moved[..., 10, 10] = 100.0
        seen = (h_s(moved) != h_s(z)).any(1)[0].nonzero()
    k = h_s(z).shape[-1] // 21
    assert seen.min() >= k * (10 - reach) and seen.max() < k * (10 + reach + 1)
    assert seen.min() < k * (10 - reach + 1)  # not more than needed


def test_gradients_are_those_of_the_stock_network():
    stock = zoo.load("mbt2018-mean-small", 3)
    portable = make_portable(copy.deepcopy(stock))
    z = torch.randn(1, 64, 4, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    gradients = [torch.autograd.grad(net.h_s(z).square().sum(), z)[0] for net in (stock, portable)]
    assert torch.equal(*gradients)
