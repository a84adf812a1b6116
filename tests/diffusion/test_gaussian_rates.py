# SPDX-License-Identifier: Apache-2.0
"""Claims of diffusion/gaussian_rates.py (Theis et al. 2022): the 3 dB of flow over ancestral, the order of
the schemes, the table for lam_k = 1 / k^2, the price of few steps; and that the denoisers' numbers are the
formulas'. The table's numbers were computed by another program than this one."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import stats

from compressai_sga.diffusion import gaussian_rates as rates
from compressai_sga.diffusion.gaussian import DiagonalGaussian
from compressai_sga.diffusion.parametrisations import diffuse
from compressai_sga.diffusion.schedules import LinearLogSnr, grid

LAM = 1 / torch.arange(1, 65, dtype=torch.float64) ** 2
ONE = torch.ones(1, dtype=torch.float64)
TABLE = [  # s2, R, D_A, D_F, D_A*, D_F*, RDP optimum, D(R)
    (0.1, 4.580, 0.90510, 0.58082, 0.74558, 0.59707, 0.53759, 0.37279),
    (0.01, 18.462, 0.27488, 0.16733, 0.22998, 0.17516, 0.15766, 0.11499),
    (1e-4, 134.983, 0.01136, 0.00584, 0.01130, 0.00585, 0.00583, 0.00565),
]


@pytest.mark.parametrize("row", TABLE, ids=lambda row: f"s2={row[0]}")
def test_table_of_a_decaying_spectrum(row):
    s2, bits, *distortions = row
    exact = float(rates.rate_bits(LAM, s2))
    assert exact == pytest.approx(bits, abs=6e-4)
    schemes = (
        rates.ancestral(LAM, s2),
        rates.flow(LAM, s2),
        rates.water_filled_ancestral(LAM, exact),
        rates.water_filled_flow(LAM, exact),
        rates.realism_optimum(LAM, exact),
        rates.rate_distortion(LAM, exact),
    )
    for scheme, distortion in zip(schemes, distortions):
        assert float(scheme.bits) == pytest.approx(exact, rel=1e-10)
        assert float(scheme.distortion) == pytest.approx(distortion, abs=6e-6)


@pytest.mark.parametrize("s2, gain_db", [(0.5, 2.323), (0.1, 2.897), (0.01, 2.999), (0.001, 3.009)])
def test_three_decibels_of_flow_over_ancestral(s2, gain_db):
    a, f = rates.ancestral(ONE, s2), rates.flow(ONE, s2)
    assert 10 * math.log10(float(a.distortion / f.distortion)) == pytest.approx(gain_db, abs=6e-4)
    assert float(a.distortion) == pytest.approx(2 * s2)
    assert float(f.distortion) == pytest.approx(2 * (1 - math.sqrt(1 - s2)))
    assert float(f.bits) == pytest.approx(-math.log2(math.sqrt(s2)))


def test_gain_tends_to_a_factor_of_two():
    a, f = rates.ancestral(LAM, 1e-9), rates.flow(LAM, 1e-9)
    assert float(a.distortion / f.distortion) == pytest.approx(2, rel=1e-4)


@pytest.mark.parametrize("s2", [0.9, 0.3, 0.03, 1e-3])
def test_order_of_the_schemes(s2):
    """D(R) < RDP optimum < flow < ancestral; perfect realism costs at most a factor of 2 in distortion."""
    bits = float(rates.rate_bits(LAM, s2))
    shannon, optimum, f, a = (
        float(scheme.distortion)
        for scheme in (
            rates.rate_distortion(LAM, bits),
            rates.realism_optimum(LAM, bits),
            rates.flow(LAM, s2),
            rates.ancestral(LAM, s2),
        )
    )
    assert shannon < optimum < f < a and optimum <= 2 * shannon
    assert float(rates.water_filled_ancestral(LAM, bits).distortion) == pytest.approx(2 * shannon)


def test_scalar_optimum_is_the_closed_form():
    """R = -1/2 log2(1 - (1 - D/2)^2), which DiffC-F meets for one coordinate."""
    for s2 in (0.5, 0.01):
        f = rates.flow(ONE, s2)
        optimum = rates.realism_optimum(ONE, float(f.bits))
        assert float(optimum.distortion) == pytest.approx(float(f.distortion), rel=1e-9)
        half = 1 - float(f.distortion) / 2
        assert float(f.bits) == pytest.approx(-0.5 * math.log2(1 - half**2), rel=1e-9)


@pytest.mark.parametrize("bits", [0.0, 0.5, 3.0, 40.0, 400.0])
def test_water_level_spends_the_bits(bits):
    level = rates.water_level(LAM, bits)
    spent = 0.5 * torch.log2(LAM / level).clamp_min(0).sum()
    assert float(spent) == pytest.approx(bits, abs=1e-9)


@pytest.mark.parametrize("steps, bits", [(10, 10.33), (100, 4.673), (1000, 4.3625), (10000, 4.3331)])
def test_price_of_few_steps(steps, bits):
    """N(0, 1), log-SNR from -12 to 6 in equal steps; 4.3299 bits would do."""
    levels = grid(LinearLogSnr(-12, 6), steps, clean=False)
    got = float(rates.discretised_rate_bits(ONE, levels))
    assert got == pytest.approx(bits, abs=6e-3 if steps == 10 else 6e-4)
    ideal = float(rates.rate_bits(ONE, torch.sigmoid(torch.tensor(-6.0, dtype=torch.float64))))
    assert ideal == pytest.approx(4.3299, abs=6e-5) and got > ideal


def test_price_falls_to_the_mutual_information_for_several_coordinates():
    levels = grid(LinearLogSnr(-20, 3), 20_000, clean=False)
    ideal = float(rates.rate_bits(LAM, torch.sigmoid(-levels[-1])))
    assert float(rates.discretised_rate_bits(LAM, levels)) == pytest.approx(ideal, rel=2e-3)


@pytest.mark.parametrize("scheme", ["ancestral", "flow"])
def test_distortion_is_that_of_the_denoisers(scheme):
    """20 000 vectors through the channel and back; mean squared error against the formula, z-test, two-sided,
    false alarm 1e-4."""
    lam, s2, n = LAM[:8], 0.1, 20_000
    generator = torch.Generator().manual_seed(4)
    x, eps, drawn = (torch.randn(n, 8, generator=generator, dtype=torch.float64) for _ in "xed")
    source, level = DiagonalGaussian(0.0, lam), math.log((1 - s2) / s2)
    x = source.draw(x)
    z = diffuse(x, eps, level)
    if scheme == "flow":
        x_hat = source.flow(z, level)
    else:
        x_hat = source(z, level) + source.posterior_variance(z, level).sqrt() * drawn
    errors = (x - x_hat).square().sum(-1)
    formula = getattr(rates, scheme)(lam, s2)
    deviation = (errors.mean() - formula.distortion) / (errors.std() / math.sqrt(n))
    assert abs(float(deviation)) < stats.norm.isf(1e-4 / 2)


def test_refusals():
    with pytest.raises(ValueError, match="positive variances"):
        rates.rate_bits(torch.tensor([1.0, 0.0]), 0.1)
    with pytest.raises(ValueError, match="between 0 and 1"):
        rates.flow(LAM, 1.0)
    for call in (rates.water_level, rates.realism_optimum):
        with pytest.raises(ValueError, match="bits is -1"):
            call(LAM, -1.0)
    with pytest.raises(ValueError, match="rise"):
        rates.discretised_rate_bits(LAM, torch.tensor([0.0, math.inf]))
