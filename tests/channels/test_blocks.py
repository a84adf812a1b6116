# SPDX-License-Identifier: Apache-2.0
"""Blocks of a high-dimensional Gaussian: bounded divergence, price, law of the sample, both sides agree.

Statistical tests: fixed seeds, two-sided, false-alarm rate 1e-4 each.
"""

from __future__ import annotations

import math
import random

import pytest
import torch
from scipy import stats

from compressai_sga.channels import blocks
from compressai_sga.errors import BitstreamError, SgaError, ShapeError

ALARM = 1e-4


def shifted(dims: int, kl_bits: float, seed: int = 0) -> torch.Tensor:
    """A mean with KL(N(mean, 1) || N(0, 1)) = kl_bits."""
    mean = torch.randn(dims, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return mean * math.sqrt(2 * math.log(2) * kl_bits) / mean.norm()


def send(mean: torch.Tensor, std: torch.Tensor | None = None, **options) -> blocks.BlockCode:
    one = torch.ones_like(mean)
    return blocks.encode_blocks(
        mean, one if std is None else std, 0 * mean, one, **{"seed": 0, "padding_bits": 2, **options}
    )


@pytest.mark.parametrize(
    "dims, kl_bits, options",
    [
        (1, 3.0, {}),
        (7, 20.0, {}),
        (500, 60.0, {"block_bits": 4.0, "max_block_bits": 6.0}),
        (3072, 400.0, {"method": "pfr"}),
        (3072, 200.0, {"method": "mrc", "block_bits": 5.0}),
    ],
)
def test_divergence_of_the_blocks_and_the_way_back(dims, kl_bits, options):
    mean = shifted(dims, kl_bits)
    code = send(mean, step=4, block=30, **options)
    assert float(code.kl_bits.sum()) == pytest.approx(kl_bits, rel=1e-9)
    assert float(code.kl_bits.max()) <= options.get("max_block_bits", 14.0)
    assert code.plan.blocks >= min(dims, kl_bits / options.get("block_bits", 8.0))
    assert code.sample.shape == mean.shape and torch.isfinite(code.sample).all()
    data = blocks.pack_blocks(code)
    assert 8 * len(data) <= float(code.bits.sum()) * 1.0005 + code.side_bits + 40
    method = options.get("method", "orc")
    plan, index = blocks.unpack_blocks(data, dims, method=method)
    assert plan == code.plan and torch.equal(index, code.index)
    back = blocks.decode_blocks(index, plan, 0 * mean, torch.ones_like(mean), seed=0, step=4, block=30)
    assert torch.equal(back, code.sample)
    for wrong in ({"seed": 1}, {"step": 5}, {"block": 31}):
        key = {"seed": 0, "step": 4, "block": 30, **wrong}
        assert not torch.equal(
            blocks.decode_blocks(index, plan, 0 * mean, torch.ones_like(mean), **key), back
        )


def test_spread_divergence_gives_even_blocks():
    # All of it in one corner of the picture: the permutation spreads it.
    mean = torch.zeros(3, 64, 64, dtype=torch.float64)
    mean[:, :32, :32] = math.sqrt(2 * math.log(2) * 80 / (3 * 32 * 32))
    code = send(mean, block_bits=8.0, padding_bits=0)
    assert code.plan.blocks == 10
    assert 7 < float(code.kl_bits.min()) and float(code.kl_bits.max()) < 9


def test_the_sample_is_standard_normal_around_its_mean_across_the_shift():
    # In the directions without shift nothing is lost: coordinates with mean 0 are N(0, 1) exactly.
    mean = torch.zeros(20_000, dtype=torch.float64)
    mean[::20] = shifted(1000, 300.0)
    code = send(mean, block_bits=4.0, max_block_bits=8.0)
    still = code.sample[mean == 0].numpy()
    assert stats.kstest(still, "norm").pvalue > ALARM
    # Along it the truncated search falls short, by less than a standard deviation of a block.
    along = float((code.sample - mean) @ mean / mean.norm()) / math.sqrt(code.plan.blocks)
    assert -0.7 < along < 0


def test_more_padding_less_bias():
    mean = shifted(1500, 300.0)
    shortfall = []
    for padding in (0, 3, 5):
        errors = []
        for step in range(4):
            code = send(mean, block_bits=4.0, max_block_bits=10.0, padding_bits=padding, step=step)
            errors.append(float((code.sample - mean) @ mean / mean.norm()) / math.sqrt(code.plan.blocks))
        shortfall.append(-sum(errors) / len(errors))
    assert shortfall[0] > shortfall[1] > shortfall[2] > -0.05


def test_smaller_scales():
    # With q_std < p_std the ratio is bounded; with enough candidates the sample follows the target.
    generator = torch.Generator().manual_seed(3)
    q_mean = torch.randn(4000, generator=generator, dtype=torch.float64)
    q_std = 0.5 + 0.4 * torch.rand(4000, generator=generator, dtype=torch.float64)
    p_mean, p_std = torch.full_like(q_mean, 0.1), torch.full_like(q_mean, 1.2)
    code = blocks.encode_blocks(
        q_mean, q_std, p_mean, p_std, seed=5, block_bits=2.0, max_block_bits=10.0, padding_bits=8
    )
    z = ((code.sample - q_mean) / q_std).numpy()
    assert stats.kstest(z, "norm").pvalue > ALARM
    gaussian = torch.distributions.Normal
    kl = torch.distributions.kl_divergence(gaussian(q_mean, q_std), gaussian(p_mean, p_std)).sum() / math.log(
        2
    )
    assert float(code.kl_bits.sum()) == pytest.approx(float(kl), rel=1e-9)


def test_overhead():
    # log2(KL + 1) + 4 bits a block at most; about 1.5 bits with few candidates at 8 bits.
    code = send(shifted(5000, 240.0), padding_bits=2)
    assert code.plan.blocks == 30
    bound = float((code.kl_bits + torch.log2(code.kl_bits + 1) + 4).sum())
    assert 0 < code.overhead_bits < bound - float(code.kl_bits.sum()) + code.side_bits
    assert code.side_bits == 24
    per_block = (code.overhead_bits - code.side_bits) / 30
    assert 0.3 < per_block < 2.5


def test_nothing_to_send():
    code = send(torch.zeros(100, dtype=torch.float64))
    assert code.plan == blocks.BlockPlan(1, 0, 2)
    assert not code.index.any() and float(code.bits.sum()) < 2


def test_candidates_come_from_disjoint_blocks():
    mean = shifted(64, 30.0)
    first = send(mean)
    second = send(mean, block=first.plan.blocks)
    assert not torch.equal(first.sample, second.sample)
    assert abs(float(torch.corrcoef(torch.stack([first.sample - mean, second.sample - mean]))[0, 1])) < 0.5


@pytest.mark.gpu
def test_cuda_gives_the_same_sample():
    mean = shifted(3000, 200.0)
    here = send(mean)
    there = send(mean.cuda())
    assert there.sample.is_cuda
    one = torch.ones_like(mean)
    for code in (here, there):  # each decoded on the other device
        device = "cpu" if code.sample.is_cuda else "cuda"
        back = blocks.decode_blocks(
            code.index.cpu(), code.plan, (0 * mean).to(device), one.to(device), seed=0
        )
        assert torch.equal(back.cpu(), code.sample.cpu())


def test_bad_arguments():
    mean = torch.zeros(8)
    one = torch.ones(8)
    with pytest.raises(ShapeError, match="equal"):
        blocks.encode_blocks(mean, one[:4], mean, one, seed=0)
    with pytest.raises(ValueError, match="positive"):
        blocks.encode_blocks(mean, 0 * one, mean, one, seed=0)
    with pytest.raises(ValueError, match="NaN"):
        blocks.encode_blocks(mean * math.nan, one, mean, one, seed=0)
    with pytest.raises(ValueError, match="'orc'"):
        send(mean, method="hybrid")
    for bad in ({"block_bits": 0.0}, {"block_bits": 15.0}, {"padding_bits": -1}, {"padding_bits": 20}):
        with pytest.raises(ValueError, match="must satisfy 0 < block_bits"):
            send(mean, **bad)
    with pytest.raises(SgaError, match="more steps"):
        send(torch.full((3,), 10.0))
    with pytest.raises(ShapeError, match="no coordinate"):
        send(torch.zeros(0))
    code = send(mean)
    with pytest.raises(ShapeError, match="belong together"):
        blocks.decode_blocks(torch.zeros(9, dtype=torch.int64), code.plan, mean, one, seed=0)


def test_hostile_bytes():
    code = send(shifted(300, 60.0))
    data = blocks.pack_blocks(code)
    source = random.Random(0)
    cases = [data[:end] for end in range(len(data))] + [data + b"\0" * 4]
    cases += [
        bytes([*data[:i], data[i] ^ (1 << bit), *data[i + 1 :]]) for i in range(len(data)) for bit in range(8)
    ]
    cases += [source.randbytes(source.randrange(40)) for _ in range(200)]
    cases += [b"\xff" * 12, b"\x80" * 12, b"\x80\x00" + data[1:], b"\xff\xff\xff\xff\x0f\x00\x00"]
    refused = 0
    for case in cases:
        try:
            plan, index = blocks.unpack_blocks(case, 300)
        except BitstreamError:
            refused += 1
            continue
        assert index.shape == (plan.blocks,) and 1 <= plan.blocks <= 300
    assert refused > 0.5 * len(cases)
    with pytest.raises(BitstreamError, match="dimensions"):
        blocks.unpack_blocks(data, code.plan.blocks - 1)
