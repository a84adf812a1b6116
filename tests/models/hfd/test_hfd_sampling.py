# SPDX-License-Identifier: Apache-2.0
"""Claims of models/hfd/sampling.py and network.py: the process of the residual is HFD's shifted one, draws
have the right law, noise belongs to pixels, windows leave no seam and few of them are there at a time."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from compressai_sga.channels import prng
from compressai_sga.diffusion.gaussian import DiagonalGaussian
from compressai_sga.diffusion.samplers import sample
from compressai_sga.diffusion.schedules import Cosine, alpha_sigma, grid
from compressai_sga.diffusion.tiling import window_positions
from compressai_sga.errors import ShapeError
from compressai_sga.models.hfd.sampling import LEVELS, Sampling, draw_residual, pixel_noise, seed_of
from tests.models.hfd.hfd_parts import GaussianNetwork, generator, images, random_network

PLAIN = {"steps": 8, "method": "dpm2m", "window": 64, "overlap": 16, "batch": 4, "precision": "float32"}


def drawn(network, x_first: Tensor, *, seed: int = 7, **knobs) -> Tensor:
    with torch.no_grad():
        return draw_residual(network, x_first, quality=1, seed=seed, sampling=Sampling(**(PLAIN | knobs)))


# --- The process -------------------------------------------------------------------------------


@pytest.mark.parametrize("tau", [0.02, 0.25, 1.0])
def test_the_residuals_cosine_is_the_images_shifted_cosine(tau):
    """log-SNR of x = x_1 + tau r is that of r, less 2 log tau: the shift of Hoogeboom et al. is tau."""
    t = torch.linspace(0.01, 0.99, 99, dtype=torch.float64)
    of_r, of_x = Cosine(limit=40), Cosine(shift=tau, limit=40)
    assert torch.allclose(of_x(t), of_r(t) - 2 * math.log(tau), atol=1e-12)
    assert torch.allclose(alpha_sigma(of_x(0.5))[0] ** 2, torch.tensor(1 / (1 + tau**2)).double())


@pytest.mark.parametrize("method", ["ddim", "dpm2m", "heun"])
def test_sampling_the_residual_is_sampling_the_image(method):
    """The same network in both processes, from the same noise, ends in the same image."""
    tau, x_first = 0.1, images(1, 32, 32).double()
    network = random_network().double()
    eps = torch.randn(x_first.shape, generator=generator(5), dtype=torch.float64)
    levels = grid(Cosine(), 6)

    def of_r(z: Tensor, log_snr: Tensor) -> Tensor:
        alpha, sigma = alpha_sigma(log_snr, z)
        return alpha * z - sigma * network(z, log_snr, x_first, torch.tensor(0))

    def of_x(z: Tensor, log_snr: Tensor) -> Tensor:
        alpha, sigma = alpha_sigma(log_snr, z)
        log_snr_r = log_snr + 2 * math.log(tau)
        z_r = alpha_sigma(log_snr_r)[1] * (z - alpha * x_first) / sigma
        return x_first + tau * of_r(z_r, log_snr_r)

    with torch.no_grad():
        r = sample(of_r, eps, levels, method=method)
        # z_x = alpha_x x_1 + sigma_x eps at the start, where z_r = eps up to sigma_r = 1 - 2e-7.
        shifted = levels - 2 * math.log(tau)
        alpha, sigma = alpha_sigma(shifted[0])
        start = alpha * x_first + sigma / alpha_sigma(levels[0])[1] * eps
        x = sample(of_x, start, shifted, method=method)
    assert torch.allclose(x, x_first + tau * r, atol=1e-10) and float((tau * r).std()) > 0.01


@pytest.mark.parametrize(
    "method, steps, tolerance",
    [("dpm2m", 16, 0.015), ("heun", 16, 0.03), ("ddim", 100, 0.025), ("ancestral", 100, 0.05)],
)
def test_an_exact_denoiser_gives_the_right_variance(method, steps, tolerance):
    tau, variance = 0.02, 0.25
    x_first = torch.full((1, 3, 128, 128), 0.5)
    r = drawn(GaussianNetwork(variance, tau=tau), x_first, method=method, steps=steps) / tau
    # The standard error of the deviation is 0.5 / sqrt(2 * 49152) = 0.0016.
    assert float(r.std()) == pytest.approx(math.sqrt(variance), rel=tolerance)
    assert abs(float(r.mean())) < 0.01


def test_draws_stay_among_the_images():
    tau = 0.3
    x_first = torch.tensor([0.0, 0.02, 0.5, 1.0]).repeat_interleave(16)[None, None, None].expand(1, 3, 64, 64)
    x = x_first + drawn(GaussianNetwork(1.0, tau=tau), x_first)
    assert -1e-6 <= float(x.min()) and float(x.max()) <= 1 + 1e-6
    free = x_first + tau * pixel_noise(7, 0, x_first)
    assert float(free.min()) < -0.5


# --- Noise and seed ----------------------------------------------------------------------------


def test_noise_belongs_to_pixels():
    whole = pixel_noise(11, 2, torch.empty(1, 3, 150, 70))
    assert torch.equal(pixel_noise(11, 2, torch.empty(1, 3, 90, 33)), whole[:, :, :90, :33])
    row, channel = 130, 2
    one = prng.normal(11, lanes=70, step=2, block=row, candidate=channel, dtype=torch.float32)
    assert torch.equal(one, whole[0, channel, row])
    assert abs(float(whole.mean())) < 0.03 and float(whole.std()) == pytest.approx(1, abs=0.02)
    for other in (pixel_noise(12, 2, whole), pixel_noise(11, 3, whole)):
        assert abs(float((other * whole).mean())) < 0.03


def test_windows_share_the_noise():
    """With r = z, exactly, what is drawn is the noise, whatever the windows."""
    x_first = torch.full((1, 3, 96, 120), 0.5)
    whole, cut = (drawn(GaussianNetwork(1.0), x_first, window=window, overlap=8) for window in (128, 32))
    assert torch.allclose(whole, cut, atol=1e-6) and float(whole.std()) > 0.015


def test_every_step_of_ancestral_sampling_has_its_own_noise():
    x_first = torch.full((1, 3, 64, 64), 0.5)
    two, start = (
        drawn(GaussianNetwork(1.0), x_first, method="ancestral", steps=60),
        pixel_noise(7, 0, x_first),
    )
    correlation = float((two * start).mean() / (two.std() * start.std()))
    assert abs(correlation) < 0.1 and float(two.std()) == pytest.approx(0.02, rel=0.08)


def test_seeds_are_a_hash_of_the_strings_and_stay_what_they_are():
    assert seed_of([b"latents", b"hyper"]) == 915090507719664248
    different = [[b"ab", b"c"], [b"a", b"bc"], [b"abc"], [b"abc", b""], [b"", b"abc"], []]
    assert len({seed_of(strings) for strings in different}) == len(different)
    assert all(0 <= seed_of(strings) < 2**64 for strings in different)


# --- Windows -----------------------------------------------------------------------------------


class SmoothNetwork(GaussianNetwork):
    """Says that r is what a random network makes of its window, blurred: no noise hides a seam."""

    def __init__(self) -> None:
        super().__init__(0.0)
        self.inner = random_network()

    def forward(self, z: Tensor, log_snr: Tensor, x_first: Tensor, label: Tensor) -> Tensor:
        said = self.inner(z, log_snr, x_first, label)
        self.source = DiagonalGaussian(F.avg_pool2d(said, 33, 1, 16, count_include_pad=False), 0.0)
        return super().forward(z, log_snr, x_first, label)


@pytest.mark.parametrize("seed", [7, 8])
def test_windows_leave_no_seam(seed):
    """Steps from column to column where a window begins or ends, against all others: with hard edges they
    are larger by far, with an overlap they are as elsewhere."""
    x_first, ratios = images(1, 160, 320), {}
    for overlap in (0, 16):
        made = drawn(SmoothNetwork(), x_first, seed=seed, steps=4, overlap=overlap)
        (_, width), shared = Sampling(**(PLAIN | {"overlap": overlap})).windows_of(160, 320, 4)
        starts = window_positions(320, width, shared)
        borders = [border - 1 for start in starts for border in (start, start + width) if 0 < border < 320]
        steps = made.diff(dim=-1).abs().mean((0, 1, 2))
        inside = torch.ones(len(steps), dtype=torch.bool)
        inside[borders] = False
        ratios[overlap] = float(steps[borders].mean() / steps[inside].mean())
    assert ratios[16] < 1.15 and ratios[0] > 3


@pytest.mark.parametrize("size", [(64, 64), (160, 96), (320, 200)])
def test_few_windows_at_a_time_whatever_the_image(size):
    network, seen = random_network(), []
    network.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape))
    drawn(network, images(1, *size), steps=2, batch=3)
    assert max(shape[0] for shape in seen) <= 3
    assert max(max(shape[2:]) for shape in seen) <= 64


def test_windows_fit_the_image():
    for window, overlap, multiple in ((256, 32, 8), (256, 128, 8), (100, 0, 4), (64, 16, 4)):
        sampling = Sampling(**(PLAIN | {"window": window, "overlap": overlap}))
        for height in range(64, 700, 13):
            for width in (64, 67, 300, 768):
                sides, shared = sampling.windows_of(height, width, multiple)
                for side, size in zip(sides, (height, width)):
                    assert side % multiple == 0 and 0 < side <= min(window, size)
                    # Never more windows than the largest ones would take.
                    largest = min(window, size) // multiple * multiple
                    if size % multiple == 0 and shared == overlap:
                        plain = window_positions(size, largest, overlap)
                        assert len(window_positions(size, side, shared)) <= len(plain)
                assert 0 <= shared <= min(sides) // 2 and shared <= overlap
    assert Sampling(**(PLAIN | {"window": 256, "overlap": 32})).windows_of(512, 768, 8) == ((192, 216), 32)


# --- Precision and errors ----------------------------------------------------------------------


def test_bfloat16_is_near_and_auto_is_one_of_the_two():
    x_first = images(1, 64, 96)
    exact, near, auto = (
        drawn(random_network(), x_first, precision=p) for p in ("float32", "bfloat16", "auto")
    )
    difference = float((exact - near).abs().max())
    assert 0 < difference < 0.2 * float(exact.std())
    assert torch.equal(auto, exact) or torch.equal(auto, near)


def test_small_images_are_refused_with_the_cure():
    for size in ((63, 200), (200, 32)):
        with pytest.raises(ShapeError, match=r"64 px a side: pad .* realism=0"):
            drawn(random_network(), torch.zeros(1, 3, *size))


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"steps": 0}, "steps is 0"),
        ({"batch": 0}, "batch 0"),
        ({"window": 0, "overlap": 0}, "window 0"),
        ({"overlap": 33}, "half the window"),
        ({"overlap": -1}, "half the window"),
        ({"method": "euler"}, "method is 'euler'; choose one of ancestral, ddim"),
        ({"precision": "half"}, "precision is 'half'; choose one of auto"),
        ({"window": 3, "overlap": 0}, "must be at least 4 px for this network"),
    ],
)
def test_knobs_out_of_range_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        drawn(random_network(), images(), **wrong)


def test_levels_leave_little_of_the_signal_at_the_start_and_of_the_noise_at_the_end():
    assert float(alpha_sigma(LEVELS(1.0))[0] ** 2) < 0.003
    assert float(alpha_sigma(LEVELS(0.0))[1] ** 2) < 0.001
