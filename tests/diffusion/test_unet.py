# SPDX-License-Identifier: Apache-2.0
"""Claims of diffusion/unet.py and diffusion/exact.py: the network takes conditions and labels, learns, is the
same from process to process, and under `exact_cpu` does not depend on threads and batch."""

from __future__ import annotations

import hashlib
import threading

import pytest
import torch

from compressai_sga.diffusion.exact import arithmetic, exact_cpu
from compressai_sga.diffusion.gaussian import DiagonalGaussian
from compressai_sga.diffusion.parametrisations import NetworkDenoiser, diffuse, target
from compressai_sga.diffusion.unet import UNet, UNetConfig
from compressai_sga.errors import ShapeError

SMALL = UNetConfig(widths=(32, 64), blocks=1, labels=3)
LEVEL, LABEL = torch.tensor(1.3, dtype=torch.float64), torch.tensor(2)


def generator(seed: int = 3) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def filled(config: UNetConfig = SMALL, *, seed: int = 3) -> UNet:
    """A network without the zeros that it starts with."""
    network, drawing = UNet(config).eval(), generator(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            drawn = torch.randn(parameter.shape, generator=drawing)
            parameter.copy_(drawn * (0.05 if parameter.dim() > 1 else 0.2))
    return network


def pixels(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=generator(5))


def fingerprint() -> str:
    """Of the exact result for a fixed network and input; what the other process computes, too."""
    with torch.no_grad(), exact_cpu():
        out = filled()(pixels(1, 3, 16, 16), LEVEL, label=LABEL)
    return hashlib.sha256(out.numpy().tobytes()).hexdigest()


@pytest.mark.parametrize("attention", [False, True])
@pytest.mark.parametrize("patch", [1, 2])
def test_starts_at_zero_and_keeps_the_shape(attention, patch):
    network = UNet(UNetConfig(widths=(16, 32), patch=patch, attention=attention))
    out = network(pixels(2, 3, 8, 16), LEVEL)
    assert out.shape == (2, 3, 8, 16) and not out.any()
    assert network.config.multiple == 2 * patch


def test_every_input_matters():
    network = filled(UNetConfig(in_channels=5, widths=(16, 32), labels=3, attention=True))
    z, condition = pixels(2, 3, 16, 16), pixels(2, 2, 16, 16)
    base = network(z, LEVEL, condition, LABEL)
    for other in (
        network(z + 0.1, LEVEL, condition, LABEL),
        network(z, LEVEL + 0.1, condition, LABEL),
        network(z, LEVEL, condition + 0.1, LABEL),
        network(z, LEVEL, condition, LABEL - 1),
    ):
        assert float((other - base).abs().max()) > 1e-4
    # One level and label for all is the same as each row's own.
    rows = network(z, LEVEL.expand(2), condition, LABEL.expand(2))
    assert torch.allclose(rows, base, atol=1e-5)
    mixed = network(z, torch.stack([LEVEL, LEVEL + 0.1]), condition, torch.tensor([2, 1]))
    assert torch.allclose(mixed[:1], base[:1], atol=1e-5) and not torch.allclose(
        mixed[1:], base[1:], atol=1e-4
    )


def test_every_parameter_learns():
    network = filled(UNetConfig(widths=(16, 32), labels=3, attention=True))
    network(pixels(1, 3, 16, 16), LEVEL, label=LABEL).square().sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad.isfinite().all() and parameter.grad.any(), name


def test_learns_to_denoise():
    """60 steps of Adam on images of one colour each: an error below 0.7 of what the best estimate from a
    single pixel leaves, Var[x | z] = sigma^2 here; so it looks at the surroundings."""
    torch_state = torch.random.get_rng_state()
    torch.manual_seed(0)  # the layers' own initialisation
    network = UNet(UNetConfig(widths=(16, 32), blocks=1))
    torch.random.set_rng_state(torch_state)
    optimiser, drawing, errors = torch.optim.Adam(network.parameters(), lr=3e-3), generator(), []
    for _ in range(60):
        x = torch.randn(8, 3, 1, 1, generator=drawing).expand(8, 3, 16, 16)
        eps = torch.randn(8, 3, 16, 16, generator=drawing)
        z = diffuse(x, eps, LEVEL)
        loss = (network(z, LEVEL) - target(x, eps, LEVEL, "v")).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        x_hat = NetworkDenoiser(network, "v")(z, LEVEL)
        errors.append(float((x_hat - x).square().mean()))
    single = float(DiagonalGaussian().posterior_variance(z, LEVEL)[0, 0, 0, 0])
    assert single == pytest.approx(errors[0], rel=0.3) and sum(errors[-10:]) / 10 < 0.7 * single


@pytest.mark.parametrize("size", [16, 32])
def test_exact_whatever_threads_and_batch(size):
    """Bit for bit. 20 images, as NNPACK would start at a batch of 16; 3 threads, as shares then end odd."""
    network, z, before = filled(), pixels(20, 3, size, size), torch.get_num_threads()
    crc = arithmetic()
    with torch.no_grad():
        with exact_cpu():
            alone = torch.cat([network(row[None], LEVEL, label=LABEL) for row in z])
        try:
            for threads in (1, 2, 3, 4):
                torch.set_num_threads(threads)
                assert arithmetic.__wrapped__() == crc
                with exact_cpu():
                    assert torch.equal(network(z, LEVEL, label=LABEL), alone)
                    assert torch.equal(network(z[:3], LEVEL, label=LABEL), alone[:3])
        finally:
            torch.set_num_threads(before)
        assert torch.allclose(network(z, LEVEL, label=LABEL), alone, rtol=1e-3, atol=1e-4)


def test_exact_in_another_process_with_other_threads(python):
    code = "from tests.diffusion.test_unet import fingerprint; print(fingerprint())"
    done = python("-c", code, check=True, OMP_NUM_THREADS="3")
    assert done.stdout.split()[-1] == fingerprint()


def test_exact_puts_everything_back():
    before = torch.get_num_threads(), torch.backends.mkldnn.enabled
    with pytest.raises(KeyError):
        with exact_cpu():
            assert torch.get_num_threads() == 1 and not torch.backends.mkldnn.enabled
            raise KeyError
    assert (torch.get_num_threads(), torch.backends.mkldnn.enabled) == before


def test_refusals():
    network = filled()
    with pytest.raises(ShapeError, match=r"\(1, 3, 18, 16\).*multiples of 4.*tiles"):
        network(pixels(1, 3, 18, 16), LEVEL, label=LABEL)
    with pytest.raises(ShapeError, match="4 channels together.*takes 3"):
        network(pixels(1, 3, 16, 16), LEVEL, pixels(1, 1, 16, 16), LABEL)
    with pytest.raises(ValueError, match="label is missing.*3 labels"):
        network(pixels(1, 3, 16, 16), LEVEL)
    with pytest.raises(ValueError, match=r"widths are \(20,\).*groups = 8"):
        UNet(UNetConfig(widths=(20,)))


def test_threads_that_want_exact_numbers_take_turns():
    """The one that ends first would else put oneDNN back under the other."""
    seen, entered = [], threading.Event()

    def other() -> None:
        entered.set()
        with exact_cpu():
            seen.append(torch._C._get_mkldnn_enabled())

    before, thread = torch._C._get_mkldnn_enabled(), threading.Thread(target=other)
    with exact_cpu():
        thread.start()
        entered.wait()
        thread.join(0.2)
        assert thread.is_alive() and not seen and not torch._C._get_mkldnn_enabled()
    thread.join()
    assert seen == [False] and torch._C._get_mkldnn_enabled() == before
