# SPDX-License-Identifier: Apache-2.0
"""The denoiser that both ends agree on: windows, rounding, threads, tags."""

import pytest
import torch

from compressai_sga.diffusion.parametrisations import NetworkDenoiser
from compressai_sga.errors import ShapeError
from compressai_sga.models.diffc.exact_denoiser import ExactDenoiser, machine_tag, module_tag
from compressai_sga.models.diffc.pixel_diffusion import pixel_diffusion
from tests.models.diffc.diffc_parts import WINDOW, generator, random_denoiser

CPU = torch.device("cpu")
LEVEL = torch.tensor(1.0, dtype=torch.float64)


def exact() -> ExactDenoiser:
    model = pixel_diffusion(random_denoiser())
    return ExactDenoiser(model.x_hat, window=model.window, multiple=model.multiple, device=CPU)


def noisy(height: int, width: int) -> torch.Tensor:
    return torch.randn(1, 3, height, width, generator=generator(1), dtype=torch.float64)


def test_one_window_is_the_network_rounded():
    z = noisy(WINDOW, WINDOW)
    x_hat = exact()(z, LEVEL)
    assert x_hat.dtype == torch.float64 and torch.equal(x_hat * 1024, (x_hat * 1024).round())
    plain = NetworkDenoiser(random_denoiser(), "v")(z.float(), LEVEL)
    torch.testing.assert_close(x_hat.float(), plain, atol=2.0**-11 + 1e-5, rtol=0)


def test_windows_cover_any_size_and_shrink_into_small_ones():
    for height, width in ((37, 50), (WINDOW, 61), (13, 40), (5, 4)):
        assert exact()(noisy(height, width), LEVEL).shape == (1, 3, height, width)
    assert exact().window_of(13, 40) == 12 and exact().window_of(100, 40) == WINDOW
    with pytest.raises(ShapeError, match="4 px and more"):
        exact().window_of(3, 40)


def test_threads_do_not_matter():
    z, before = noisy(41, 50), torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(exact()(z, LEVEL))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


def test_tags_tell_models_apart_and_know_the_machine():
    assert module_tag(random_denoiser()) == module_tag(random_denoiser()) != module_tag(random_denoiser(3))
    assert machine_tag(CPU) == machine_tag(CPU)
