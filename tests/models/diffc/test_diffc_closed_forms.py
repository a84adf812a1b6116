# SPDX-License-Identifier: Apache-2.0
"""Claims of DiffC on Gaussian sources (Theis et al. 2022), simulated through the codec's chain and samplers
with the exact denoiser: bits and squared errors of both reconstructions within 2 % of the closed forms, the 3
dB of flow over ancestral, the table for lam_k = 1 / k^2, the price of few steps.

The 2 % hold a bias of about half a percent (finite steps: more bits, less error of DiffC-A) and a standard
error of at most half a percent: seeds are fixed, a fresh one would fail in about one of a hundred runs.
Where the expected value is known with the steps' bias, the comparison is at 4.5 standard errors (7e-6).
"""

from __future__ import annotations

import math

import pytest
import torch

from compressai_sga.diffusion.gaussian import DiagonalGaussian
from compressai_sga.models.diffc import process as chain
from experiments.diffc import gaussian

BAR = 0.02
# s2 of a standard normal number: bits, D_A, D_F in closed form, gain in dB as published.
SCALAR = {
    s2: (-0.5 * math.log2(s2), 2 * s2, 2 * (1 - math.sqrt(1 - s2)), gain_db)
    for s2, gain_db in ((0.5, 2.323), (0.1, 2.897), (0.01, 2.999), (0.001, 3.009))
}
# s2 of 64 coordinates of variances 1 / k^2: bits, D_A, D_F; computed by another program than ours.
SPECTRUM = {
    0.1: (4.580, 0.90510, 0.58082),
    0.01: (18.462, 0.27488, 0.16733),
    1e-4: (134.983, 0.01136, 0.00584),
}
STEPS = {10: 10.33, 100: 4.673, 1000: 4.3625}
INFORMATION_BITS = 4.3299


@pytest.fixture(scope="module")
def scalar():
    """One run of the chain through all four levels."""
    found = gaussian.simulate("scalar", tuple(SCALAR), draws=80_000, step=0.02, ancestral_steps=800, seed=0)
    return {level["s2"]: level for level in found["levels"]}


@pytest.mark.parametrize("s2", SCALAR)
def test_rate_and_distortion_of_a_number(scalar, s2):
    bits, ancestral, flow, _ = SCALAR[s2]
    for name, expected in (("bits", bits), ("ancestral", ancestral), ("flow", flow)):
        assert scalar[s2][name]["mean"] == pytest.approx(expected, rel=BAR)
        assert scalar[s2][name]["error"] < 0.006 * expected


@pytest.mark.parametrize("s2", SCALAR)
def test_bits_are_those_of_the_steps_taken(scalar, s2):
    measured = scalar[s2]["bits"]
    assert abs(measured["mean"] - scalar[s2]["discretised_bits"]) < 4.5 * measured["error"]


@pytest.mark.parametrize("s2", SCALAR)
def test_flow_gains_three_decibels_at_high_rate(scalar, s2):
    """2.323 dB at half a bit, 2.999 dB at 3.3 bits, on the way to 10 log10 2."""
    assert scalar[s2]["gain_db"] == pytest.approx(SCALAR[s2][-1], abs=0.12)  # the two bars of 2 % allow 0.17
    assert scalar[s2]["formula"]["gain_db"] == pytest.approx(SCALAR[s2][-1], abs=6e-4)


def test_rate_and_distortion_of_a_vector():
    """At three rates flow lies below ancestral, and above the bound without realism."""
    found = gaussian.simulate("spectrum", tuple(SPECTRUM), draws=4000, step=0.03, ancestral_steps=600, seed=1)
    assert [level["s2"] for level in found["levels"]] == list(SPECTRUM)
    for level in found["levels"]:
        for name, expected in zip(("bits", "ancestral", "flow"), SPECTRUM[level["s2"]], strict=True):
            assert level["formula"][name] == pytest.approx(expected, abs=6e-4)
            assert level[name]["mean"] == pytest.approx(expected, rel=BAR)
        beside = level["formula"]
        assert beside["rate_distortion"] < beside["realism_optimum"] < level["flow"]["mean"]
        assert level["flow"]["mean"] < level["ancestral"]["mean"]


@pytest.mark.parametrize("steps", STEPS)
def test_few_steps_cost_bits(steps):
    """10.33, 4.673, 4.3625 bits in 10, 100, 1000 steps for 4.3299 bits of information."""
    values = gaussian.steps_cost(steps, "equal", draws=20_000, seed=2)
    assert values["information_bits"] == pytest.approx(INFORMATION_BITS, abs=6e-5)
    assert values["formula_bits"] == pytest.approx(STEPS[steps], abs=6e-3)
    assert abs(values["bits"]["mean"] - STEPS[steps]) < 4.5 * values["bits"]["error"] + 6e-3
    assert values["bits"]["error"] < 0.01 * STEPS[steps]


@pytest.mark.parametrize("log_snr", [-2.0, 2.0, 8.0])
def test_the_codec_s_flow_is_the_closed_form(log_snr):
    """32 steps of its sampler, the default, lead a number where the probability flow does."""
    source = DiagonalGaussian(0.0, 1.0)
    z = torch.linspace(-3, 3, 7, dtype=torch.float64)[:, None]
    x_hat = chain.reconstruct(source, z, log_snr, steps=32)
    assert torch.allclose(x_hat, source.flow(z, log_snr), rtol=5e-3, atol=1e-3)


def test_the_shared_start_is_free_and_its_loss_is_small():
    """The codec starts with noise that says nothing about x: at log-SNR -8 that costs 2 % of no rate."""
    source = DiagonalGaussian(0.0, 1.0)
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(50_000, 1, generator=generator)
    log_snrs = gaussian.marked_grid([gaussian.log_snr_of(0.01)], -8.0, 0.02)
    run = chain.send_ideal(source, x, log_snrs, generator)
    assert bool((run.kl_bits[0] == 0).all())
    bits, _, flow, _ = SCALAR[0.01]
    assert float(run.kl_bits.sum(0).mean()) == pytest.approx(bits, rel=BAR)
    distortion = float((source.flow(run.z, float(log_snrs[-1])) - x).square().mean())
    assert distortion == pytest.approx(flow, rel=BAR)
