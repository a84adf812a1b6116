# SPDX-License-Identifier: Apache-2.0
"""Hybrid coding: the law of the sample, the price, the time saved, and universal quantisation as a case.

Statistical tests: fixed seeds, two-sided, false-alarm rate 1e-4 each.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats

from compressai_sga.channels import density_ratio as ratios
from compressai_sga.channels import hybrid, reverse
from compressai_sga.channels.distributions import Density, DiagonalGaussian, TruncatedGaussian, Uniform
from compressai_sga.errors import BitstreamError, ShapeError

ALARM = 1e-4
LOG2_CELLS = 6.170  # of the paper's example: M = (12, 6)
KL_BITS = 9.646


def f64(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


MARGINAL = DiagonalGaussian(f64(0, 0), f64(1601, 401) ** 0.5)


def example(draws: int, seed: int = 0) -> tuple[torch.Tensor, TruncatedGaussian]:
    """Means from N(0, diag(40^2, 20^2)), targets N(mean, 1) without a ten-thousandth of their mass."""
    generator = torch.Generator().manual_seed(seed)
    mean = torch.randn(draws, 2, generator=generator, dtype=torch.float64) * f64(40, 20)
    return mean, DiagonalGaussian(mean, torch.ones_like(mean)).truncated(1e-4)


def test_the_example_of_the_paper():
    mean, target = example(4000)
    width = (target.high - target.low)[0]
    assert width[0].item() / 2 == pytest.approx(4.056, abs=5e-4)
    cells = hybrid.cell_counts(width, MARGINAL)
    assert cells.tolist() == [12, 6] and math.log2(72) == pytest.approx(LOG2_CELLS, abs=1e-3)
    gaussian = DiagonalGaussian(mean, torch.ones_like(mean))
    assert float(ratios.divergence_bits(gaussian, MARGINAL).mean()) == pytest.approx(KL_BITS, abs=0.1)

    code = reverse.encode(target, MARGINAL, method="hybrid", cells=cells, seed=1, kl_bits=KL_BITS)
    assert code.exact.all()
    z = (code.sample - mean).numpy()
    end = float(width[0]) / 2
    for column in z.T:
        assert stats.kstest(column, stats.truncnorm(-end, end).cdf).pvalue > ALARM
    assert abs(np.corrcoef(z.T)[0, 1]) < stats.norm.isf(ALARM / 2) / math.sqrt(4000)
    # E log2(n + 1) = 3.16 in a simulation of 400 draws; the cells cost log2 72 as they are.
    assert float(torch.log2(code.index + 1.0).mean()) == pytest.approx(3.1, abs=0.15)
    rest = KL_BITS - LOG2_CELLS
    assert float(code.bits.mean()) < LOG2_CELLS + rest + math.log2(rest + 1) + 4
    # An exact search looks at 1 + 1 / w_min candidates on average: 72 times fewer than without cells.
    # Both means over the targets are infinite (x^2 / (2 40^2) is just not integrable), medians are not.
    plain = reverse.encode(DiagonalGaussian(mean[:400], torch.ones(400, 2)), MARGINAL, seed=1)
    medians = [float(c.examined[:400].double().median()) for c in (plain, code)]
    assert 40 < medians[0] / medians[1] < 110
    assert 20 < float(code.examined[:400].double().mean()) < 400  # "about 100"
    assert float(plain.examined.double().mean()) > 2000  # "thousands"


def test_the_search_is_shorter_by_the_number_of_cells():
    mean = f64(20.0, -15.0)
    target = DiagonalGaussian(mean, torch.ones(2)).truncated(1e-4)
    cells = torch.tensor([12, 6])
    code = reverse.encode(target, MARGINAL, method="hybrid", cells=cells, seed=2, block=torch.arange(3000))
    expected = 1 + math.exp(float(ratios.log_ratio_bound(target, MARGINAL))) / 72
    examined = code.examined.double()
    assert abs(float(examined.mean()) - expected) < 4 * float(examined.std()) / math.sqrt(3000)


def test_uniform_targets_are_universal_quantisation():
    # A target as wide as a cell: the first candidate is always taken, only the cell is sent.
    centre = 6 * torch.rand(2000, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 1
    target = Uniform(centre - 0.5, centre + 0.5)
    code = reverse.encode(target, Uniform(f64(0), f64(8)), method="hybrid", cells=torch.tensor([8]), seed=3)
    assert not code.index.any() and (code.examined == 1).all()
    assert stats.kstest((code.sample - centre + 0.5).flatten().numpy(), "uniform").pvalue > ALARM
    assert int(code.cell.min()) >= 0 and int(code.cell.max()) <= 7


def test_at_the_ends_of_the_proposal():
    # The unit box is clipped to [0, M]: targets at both ends still get their law and a cell in [0, M).
    for low, high in ((0.0, 0.11), (0.89, 1.0)):
        target = TruncatedGaussian(f64(low), f64(0.1), f64(low), f64(high))
        code = reverse.encode(
            target, Uniform(f64(0), f64(1)), method="hybrid", cells=torch.tensor([9]), seed=4,
            block=torch.arange(3000),
        )  # fmt: skip
        law = stats.truncnorm(0, (high - low) / 0.1, low, 0.1)
        assert stats.kstest(code.sample.flatten().numpy(), law.cdf).pvalue > ALARM


def test_any_density_of_bounded_support():
    def log_q(points):  # a triangle on [0.3, 0.5]
        return torch.log((1 - (points[..., 0] - 0.4).abs() * 10).clamp_min(0))

    target = Density(log_q, lanes=1, low=f64(0.3), high=f64(0.5))
    code = reverse.encode(
        target, Uniform(f64(0), f64(1)), method="hybrid", cells=torch.tensor([5]), seed=5,
        block=torch.arange(3000), log_bound=0.0,
    )  # fmt: skip
    assert stats.kstest(code.sample.flatten().numpy(), stats.triang(0.5, 0.3, 0.2).cdf).pvalue > ALARM


def test_truncated_hybrid():
    target = DiagonalGaussian(f64(3.0, 1.0), torch.ones(2)).truncated(1e-4)
    arguments = dict(method="hybrid", cells=torch.tensor([12, 6]), seed=6, block=torch.arange(2000))
    code = reverse.encode(target, MARGINAL, candidates=4096, kl_bits=KL_BITS, **arguments)
    assert not code.exact.any() and code.support == 4096
    # 4096 candidates for 3.5 bits: no bias that 2000 draws could show.
    for column, mean in zip(code.sample.T, (3.0, 1.0)):
        assert stats.kstest(column.numpy(), stats.norm(mean, 1).cdf).pvalue > ALARM
    sample = reverse.decode(
        code.index,
        MARGINAL,
        method="hybrid",
        cell=code.cell,
        cells=code.cells,
        seed=6,
        block=torch.arange(2000),
    )
    assert torch.equal(sample, code.sample)


def test_bytes_and_back():
    _, target = example(60)
    known = dict(method="hybrid", cells=torch.tensor([12, 6]))
    code = reverse.encode(target, MARGINAL, seed=7, kl_bits=KL_BITS, **known)
    data = reverse.pack(code, kl_bits=KL_BITS)
    assert abs(8 * len(data) - float(code.bits.sum())) < 40
    index, cell = reverse.unpack(data, 60, kl_bits=KL_BITS, **known)
    assert torch.equal(index, code.index) and torch.equal(cell, code.cell)
    assert torch.equal(reverse.decode(index, MARGINAL, seed=7, cell=cell, **known), code.sample)
    with pytest.raises(BitstreamError):
        reverse.unpack(data[:-4], 60, kl_bits=KL_BITS, **known)


def test_golden_sample():
    proposal = DiagonalGaussian(f64(0.5), f64(2.0))
    index, cell = torch.tensor([0, 3, 77, 2**32 - 1]), torch.tensor([[0], [4], [19], [999]])
    sample = reverse.decode(
        index, proposal, method="hybrid", cell=cell, cells=torch.tensor([1000]), seed=5, block=9
    )
    assert [value.hex() for value in sample[:, 0].tolist()] == GOLDEN


GOLDEN = ["-0x1.7e430c14e7743p+2", "-0x1.3105b63ee6c9bp+2", "-0x1.d0765a3869412p+1", "0x1.be2ac2e5df1b9p+2"]


@pytest.mark.parametrize(
    "words, target, proposal, cells",
    [
        ("bounded support", DiagonalGaussian(f64(0), f64(1)), DiagonalGaussian(f64(0), f64(9)), [2]),
        ("bounded support", Density(lambda z: z[..., 0], lanes=1), DiagonalGaussian(f64(0), f64(9)), [2]),
        ("cells = \\[4\\]", Uniform(f64(0), f64(1)), Uniform(f64(0), f64(4)), [5]),
        ("integer", Uniform(f64(0), f64(1)), Uniform(f64(0), f64(4)), [4.0]),
        ("integer", Uniform(f64(0), f64(1)), Uniform(f64(0), f64(4)), [0]),
        ("integer", Uniform(f64(0), f64(1)), Uniform(f64(0), f64(4)), [2, 2]),
    ],
)
def test_bad_targets_and_cells(words, target, proposal, cells):
    with pytest.raises(ValueError, match=words):
        reverse.encode(target, proposal, method="hybrid", cells=torch.tensor(cells), seed=0)


def test_bad_decoder_arguments():
    proposal, index = Uniform(f64(0), f64(4)), torch.tensor([0])
    with pytest.raises(ValueError, match="all three"):
        reverse.decode(index, proposal, method="hybrid", seed=0, cells=torch.tensor([4]))
    with pytest.raises(ValueError, match="outside"):
        reverse.decode(
            index, proposal, method="hybrid", seed=0, cell=torch.tensor([[4]]), cells=torch.tensor([4])
        )
    with pytest.raises(ShapeError, match="cell has the shape"):
        reverse.decode(index, proposal, method="hybrid", seed=0, cell=index, cells=torch.tensor([4]))
    with pytest.raises(ValueError, match="finite number"):
        hybrid.cell_counts(f64(math.inf), proposal)
    with pytest.raises(ValueError, match="DiagonalGaussian or Uniform"):
        hybrid.cell_counts(f64(1.0), Density(lambda z: z[..., 0], lanes=1))
