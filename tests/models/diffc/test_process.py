# SPDX-License-Identifier: Apache-2.0
"""The chain of DiffC: its divergences and its laws; the closed forms are in test_diffc_closed_forms."""

import math

import pytest
import torch

from compressai_sga.diffusion.gaussian import DiagonalGaussian
from compressai_sga.diffusion.samplers import ancestral_step, torch_noise
from compressai_sga.models.diffc import process as chain

SOURCE = DiagonalGaussian(0.3, 2.0)
LEVELS = torch.tensor([-3.0, -1.5, 0.0, 1.0], dtype=torch.float64)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def drawn(count: int, seed: int = 0) -> torch.Tensor:
    return SOURCE.draw(torch.randn(count, 2, 3, generator=generator(seed), dtype=torch.float64))


def test_a_shift_is_the_distance_of_the_two_means_in_deviations():
    x, z = drawn(4), drawn(4, 1)
    x_hat = SOURCE(z, -1.0)
    step = ancestral_step(-1.0, 0.5)
    q_mean = step.keep * z + step.pull * x
    p_mean = step.keep * z + step.pull * x_hat
    torch.testing.assert_close(chain.shift(x, x_hat, -1.0, 0.5), (q_mean - p_mean) / step.std)
    # Theis et al. 2022: (SNR_s - SNR_t) / 2 |x - x_hat|^2 nats.
    nats = 0.5 * (math.exp(0.5) - math.exp(-1.0)) * (x - x_hat).square().flatten(1).sum(1)
    torch.testing.assert_close(chain.kl_bits(chain.shift(x, x_hat, -1.0, 0.5)), nats / math.log(2))


def test_z_has_the_law_of_the_diffusion_at_every_level():
    x = drawn(20_000)
    for level in chain.ideal_levels(SOURCE, x, LEVELS, generator(5), start="sent"):
        alpha, sigma = (
            math.sqrt(1 / (1 + math.exp(-level.log_snr))),
            math.sqrt(1 / (1 + math.exp(level.log_snr))),
        )
        rest = (level.z - alpha * x) / sigma
        # 120 000 numbers, four standard errors.
        assert abs(float(rest.mean())) < 4 / math.sqrt(120_000)
        assert float(rest.square().mean()) == pytest.approx(1, abs=4 * math.sqrt(2 / 120_000))


def test_a_shared_start_costs_nothing_and_a_sent_one_its_divergence():
    x = drawn(3)
    free = chain.send_ideal(SOURCE, x, LEVELS, generator())
    paid = chain.send_ideal(SOURCE, x, LEVELS, generator(), start="sent")
    assert free.kl_bits.shape == (4, 3) and float(free.kl_bits[0].abs().max()) == 0
    alpha2 = 1 / (1 + math.exp(3.0))
    nats = 0.5 * (alpha2 * x.square() - alpha2 - math.log(1 - alpha2)).flatten(1).sum(1)
    torch.testing.assert_close(paid.kl_bits[0], nats / math.log(2))


def test_the_loop_is_closed():
    # With z that lags behind, x_hat is worse, and the next step has more divergence.
    x, z = drawn(500), drawn(500, 1)
    good = chain.advance(z, SOURCE(z, -3.0), chain.shift(x, SOURCE(z, -3.0), -3.0, 0.0), -3.0, 0.0)
    bad = chain.advance(z, SOURCE(z, -3.0), torch.zeros_like(x), -3.0, 0.0)
    bits = [chain.kl_bits(chain.shift(x, SOURCE(each, 0.0), 0.0, 1.0)).mean() for each in (good, bad)]
    assert bits[0] < bits[1]


def test_flow_ends_where_the_closed_form_says_and_ancestral_has_the_law_of_the_source():
    z = chain.send_ideal(SOURCE, drawn(5000), LEVELS, generator(7), start="sent").z
    x_hat = chain.reconstruct(SOURCE, z, 1.0, method="flow", steps=60, highest=14.0)
    torch.testing.assert_close(x_hat, SOURCE.flow(z, 1.0), atol=3e-3, rtol=0)
    noise = torch_noise(generator(1))
    x_hat = chain.reconstruct(SOURCE, z, 1.0, method="ancestral", steps=300, highest=14.0, noise=noise)
    # 300 steps lose 3 % of the variance; 30 000 numbers, four standard errors.
    assert float(x_hat.var()) == pytest.approx(2, abs=0.06 + 8 * math.sqrt(2 / 30_000))
    assert float(x_hat.mean()) == pytest.approx(0.3, abs=4 * math.sqrt(2 / 30_000))


def test_beyond_the_highest_level_z_is_only_denoised():
    z = drawn(2)
    torch.testing.assert_close(chain.reconstruct(SOURCE, z, 9.0, steps=7, highest=8.0), SOURCE(z, 9.0))
    torch.testing.assert_close(chain.reconstruct(SOURCE, z, 0.0, steps=1, highest=8.0), SOURCE(z, 0.0))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda z: chain.send_ideal(SOURCE, z, LEVELS.flip(0), generator()), "must rise"),
        (lambda z: chain.send_ideal(SOURCE, z, torch.tensor([0.0, torch.inf]), generator()), "finite"),
        (lambda z: chain.send_ideal(SOURCE, z, LEVELS, generator(), start="free"), "shared, sent"),
        (lambda z: chain.reconstruct(SOURCE, z, 0.0, method="mean"), "ancestral, flow"),
        (lambda z: chain.reconstruct(SOURCE, z, 0.0, sampler="ancestral"), "ddim"),
        (lambda z: chain.reconstruct(SOURCE, z, 0.0, steps=0), "at least 1"),
    ],
)
def test_errors(call, words):
    with pytest.raises(ValueError, match=words):
        call(drawn(2))
