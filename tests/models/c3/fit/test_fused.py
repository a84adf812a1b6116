# SPDX-License-Identifier: Apache-2.0
"""Claims of models/c3/fit/fused.py and of the C++ behind it: PyTorch's loss and gradients for every
architecture and size, the same bits for any number of threads, the same fits; and what is said without it."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from compressai_sga.models.c3 import native
from compressai_sga.models.c3.config import KNOWN, PRESETS, Architecture, Preset, layout
from compressai_sga.models.c3.fit.adam import Adam
from compressai_sga.models.c3.fit.checkpoint import Checkpoint
from compressai_sga.models.c3.fit.fused import FusedLoss, fused_loss
from compressai_sga.models.c3.fit.grid_plane import GridPlane
from compressai_sga.models.c3.fit.loop import Fit
from compressai_sga.models.c3.fit.soap import Soap
from compressai_sga.models.c3.fit.weight_quantisation import _Search
from compressai_sga.models.c3.network import context_of, entropy_net, latent_bits, synthesise, upsample
from compressai_sga.relaxations import soft_round
from tests.models.c3.c3_pictures import natural
from tests.models.c3.c3_random import LEARNED, SMALL

built = pytest.mark.skipif(not native.KERNELS, reason="the extension was not built")

ARCHITECTURES = {
    "paper": KNOWN[0],
    "paper, clic": KNOWN[1],
    "ours": KNOWN[2],
    "small": SMALL,
    "learned, no full size": LEARNED,
    "no refinement, wide": Architecture(
        grids=2,
        context=4,
        entropy_hidden=(3,),
        entropy_activation="none",
        entropy_skip=True,
        synthesis_hidden=(70, 5, 5),
        synthesis_skip=True,
        synthesis_activation="relu",
        refinements=0,
    ),
    "one grid, deep": Architecture(
        grids=1,
        context=1,
        entropy_hidden=(12,) * 7,
        entropy_residual=True,
        refinements=4,
        refinement_activation="relu",
    ),
    "linear refinement": Architecture(
        grids=3, context=3, entropy_activation="relu", refinements=3, refinement_activation="none"
    ),
}
SIZES = ((64, 64), (1, 1), (1, 9), (7, 5), (33, 17), (37, 70), (300, 9))


@dataclasses.dataclass
class Case:
    """Two images, latents and nets, at random; the first image's latents are far beyond the clamp."""

    a: Architecture
    x: Tensor
    plane: Tensor
    nets: Tensor
    lmbda: Tensor

    @classmethod
    def make(cls, a: Architecture, size: tuple[int, int], seed: int = 0) -> Case:
        generator = torch.Generator().manual_seed(seed)

        def randn(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator)

        place = GridPlane(size, a.grids, a.first, a.taps)
        plane = 2 * randn(2, place.height, place.width) * place.spread([1.0] * a.grids)
        plane[0] *= 40
        nets = []
        for spec in layout(a):
            spread = 0.1 if spec.is_bias or spec.part == "refinement" else 0.7 / math.sqrt(spec.fan_in)
            value = randn(2, *spec.shape) * spread
            if spec.part == "upsampling":
                value = value / 5 + torch.tensor([0, 0.25, 0.75, 0])
            nets.append(value.flatten(1))
        x = torch.rand(2, 3, *size, generator=generator)
        return cls(a, x, plane, torch.cat(nets, 1), torch.tensor([1e-3, 1e-2]))

    @property
    def grid_plane(self) -> GridPlane:
        return GridPlane(tuple(self.x.shape[2:]), self.a.grids, self.a.first, self.a.taps)

    def fused(self, kernels: str) -> FusedLoss:
        return fused_loss(self.a, self.grid_plane, self.x, kernels)

    def by_torch(self, dtype: torch.dtype = torch.float64) -> list[Tensor]:
        """Loss, mse, bpp; gradients to latents and nets."""
        a, place = self.a, self.grid_plane
        plane, nets = (t.to(dtype).requires_grad_() for t in (self.plane, self.nets))
        lengths = [math.prod(spec.shape) for spec in layout(a)]
        parts = zip(layout(a), nets.split(lengths, 1))
        arrays = {spec.name: part.unflatten(1, spec.shape) for spec, part in parts}
        size = tuple(self.x.shape[2:])
        outputs = entropy_net(arrays, context_of(plane, place), a)
        bpp = latent_bits(place.latents(plane), outputs) @ place.mask.to(dtype) / math.prod(size)
        image = synthesise(arrays, upsample(arrays, place.grids(plane), size, a), a)
        mse = (image - self.x.to(dtype)).square().mean((1, 2, 3))
        loss = mse + self.lmbda.to(dtype) * bpp
        loss.sum().backward()
        inside = place.spread([1.0] * a.grids)
        return [loss.detach(), mse.detach(), bpp.detach(), plane.grad * inside, nets.grad]

    def by(self, fused: FusedLoss) -> list[Tensor]:
        plane, nets = (t.clone().requires_grad_() for t in (self.plane, self.nets))
        loss, mse, bpp = fused(plane, nets, self.lmbda)
        loss.sum().backward()
        return [loss.detach(), mse, bpp, plane.grad, nets.grad]


def error(found: Tensor, true: Tensor) -> float:
    """Relative, of the norm."""
    return float((found.double() - true).norm() / true.norm().clamp_min(1e-30))


# --- Loss and gradients --------------------------------------------------------------------------


@built
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_loss_and_gradients_are_those_of_autograd_in_float64(name):
    a = ARCHITECTURES[name]
    for size in SIZES:
        case = Case.make(a, size)
        *losses, d_plane, d_nets = case.by_torch()
        for kernels in native.KERNELS:
            *found, plane, nets = case.by(case.fused(kernels))
            where = (size, kernels)
            assert max(map(error, found, losses)) < 2e-6, where
            assert error(plane, d_plane) < 1e-5, where
            lengths = [math.prod(spec.shape) for spec in layout(a)]
            parts = zip(layout(a), nets.split(lengths, 1), d_nets.split(lengths, 1))
            assert {s.name: error(u, v) for s, u, v in parts if not error(u, v) < 1e-4} == {}, where


@built
def test_nets_alone_have_the_same_gradient():
    """In the last part of a fit, where latents do not move."""
    case = Case.make(KNOWN[2], (33, 70))
    fused = case.fused(native.KERNELS[0])
    whole = case.by(fused)
    nets = case.nets.clone().requires_grad_()
    loss, _, _ = fused(case.plane, nets, case.lmbda)
    loss.sum().backward()
    assert torch.equal(nets.grad, whole[4]) and torch.equal(loss.detach(), whole[0])


@built
@pytest.mark.parametrize("value", [0.0, 0.5, -127.0, 126.99, 3e4])
def test_gradients_stay_finite_at_the_edges(value):
    """Equal latents: distances of 0 and 1/2, the ends of the clamp; and the far ends of the scale."""
    case = Case.make(KNOWN[2], (9, 20))
    case.plane = value * case.grid_plane.spread([1.0] * 7).expand(2, -1, -1).clone()
    for bias in (0.0, -40.0, 40.0):
        place = sum(math.prod(s.shape) for s in layout(case.a)[:5])
        case.nets[:, place : place + 2] = torch.tensor([value, bias])
        true = case.by_torch()
        for kernels in native.KERNELS:
            for found, expected in zip(case.by(case.fused(kernels)), true):
                assert bool(torch.isfinite(found).all())
                if value not in (0.5, -127.0):  # where the loss has a kink
                    assert error(found, expected) < 1e-4


@built
def test_threads_change_no_bit():
    """Several bands in the finest grids, at odd ends."""
    threads = torch.get_num_threads()
    try:
        for a, size in ((KNOWN[2], (257, 130)), (KNOWN[1], (119, 75)), (SMALL, (97, 300))):
            case, found = Case.make(a, size), []
            for count in (1, 2, 5):
                torch.set_num_threads(count)
                fused = case.fused(native.KERNELS[0])
                found.append([*case.by(fused), fused.error(case.plane, case.nets)])
            for other in found[1:]:
                assert all(torch.equal(u, v) for u, v in zip(found[0], other))
    finally:
        torch.set_num_threads(threads)


@built
def test_images_of_a_batch_are_as_alone():
    case = Case.make(KNOWN[2], (37, 50))
    both = case.by(case.fused(native.KERNELS[0]))
    for i in range(2):
        one = Case(case.a, *(t[i : i + 1] for t in (case.x, case.plane, case.nets, case.lmbda)))
        assert all(torch.equal(u[0], v[i]) for u, v in zip(one.by(one.fused(native.KERNELS[0])), both))


@built
def test_parts_alone_are_those_of_the_whole():
    """What the search for the weights' steps uses: bits, and the error since a stage, clamped."""
    case = Case.make(KNOWN[2], (21, 70))
    case.plane /= torch.tensor([60.0, 4.0])[:, None, None]
    for kernels in native.KERNELS:
        fused = case.fused(kernels)
        _, mse, bpp, *_ = case.by(fused)
        fused.load(case.plane)
        torch.testing.assert_close(fused.bits(case.nets) / fused.px, bpp)
        whole = fused.error(case.plane, case.nets)
        assert bool((whole < mse).all())  # outside of [0, 1] pixels count less
        for since in ("channels", "refinement"):
            assert torch.equal(fused.error(case.plane, case.nets, since), whole)
        other = case.nets.clone()
        other[:, -84:] *= 2
        assert torch.equal(
            fused.error(case.plane, other, "refinement"), case.fused(kernels).error(case.plane, other)
        )


@built
def test_soft_rounding_around_noise():
    generator = torch.Generator().manual_seed(0)
    plane = 3 * torch.randn(2, 7, 11, generator=generator)
    noise = 0.2 * torch.randn(1, 7, 11, generator=generator)
    gain = torch.full((1, 7, 11), 16.0)
    fused = Case.make(KNOWN[2], (8, 8)).fused("auto")
    for kernels in native.KERNELS:
        fused.backend = kernels
        for temperature in (0.35, 0.08):
            true, mine = plane.double().requires_grad_(), plane.clone().requires_grad_()
            expected = soft_round(soft_round(true * 16, temperature) + noise.double(), temperature)
            found = fused.soften(mine, gain, noise, temperature)
            for value in (expected, found):
                value.sum().backward()
            assert float((found - expected).abs().max()) < 1e-4
            assert error(mine.grad, true.grad) < 1e-4


@built
def test_adam_is_the_one_of_torch():
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(2, 5, 13, generator=generator)
    for kernels in native.KERNELS:
        found = []
        for kind in (None, kernels):
            value = start.clone().requires_grad_()
            adam = Adam([value], (0.9, 0.99), kind)
            for _ in range(10):
                value.grad = 2 * value.detach()
                adam.step(torch.tensor([0.02, 0.01]))
            found.append([value.detach(), *adam.state])
        for mine, theirs in zip(*found):
            torch.testing.assert_close(mine, theirs)


@built
def test_soap_is_the_one_of_torch():
    """Past an update of the bases; from mean squares that are not small, or rounding is all there is."""
    specs = layout(KNOWN[2])
    count = sum(math.prod(spec.shape) for spec in specs)
    for kernels in native.KERNELS:
        found = []
        for kind in (None, kernels):
            generator = torch.Generator().manual_seed(0)
            value = torch.randn(2, count, generator=generator).requires_grad_()
            soap = Soap(value, specs, kernels=kind)
            soap.count = 3
            for square, sides in zip(soap._squares, soap._sides):
                square.copy_(0.5 + torch.rand(square.shape, generator=generator))
                for side in range(2):
                    turned, _ = torch.linalg.qr(torch.randn(sides[side].shape, generator=generator))
                    sizes = 1 + torch.arange(float(turned.shape[1]))
                    sides[side].copy_(turned * sizes @ turned.mT)
                    sides[2 + side].copy_(turned)
            for _ in range(9):
                value.grad = torch.randn(2, count, generator=generator) * torch.tensor([[1.0], [5.0]])
                soap.step(torch.tensor([0.02, 0.01]))
            found.append([value.detach(), *soap.state])
        for mine, theirs in zip(*found):
            assert error(mine, theirs.double()) < 1e-4


# --- Fits ----------------------------------------------------------------------------------------


def final_loss(fit: Fit) -> float:
    """mse + lmbda * bpp; the nets' bits are known up to a constant only."""
    fit.run()
    fit.take_best()
    with torch.no_grad():
        fit._loss(fit.plane_hat())
    mse, bpp = fit._last
    return float((mse + fit.lmbda * bpp).mean())


def with_adam(name: str) -> Preset:
    """The preset with Adam for the nets: SOAP makes differences of rounding larger, to 2 % of J here."""
    preset = PRESETS[name]
    return dataclasses.replace(preset, fit=dataclasses.replace(preset.fit, net_optimiser="adam"))


@built
@pytest.mark.parametrize("name", ["c3", "c3-paper", "c3-paper-clic"])
def test_fits_agree(name):
    x, preset = natural(48, 40), with_adam(name)
    mine, theirs = (final_loss(Fit(x, preset, 1e-3, steps=25, backend=b)) for b in ("auto", "torch"))
    assert mine == pytest.approx(theirs, rel=1e-3)


@built
@pytest.mark.slow
def test_whole_fits_agree_with_soap():
    """Means over images, since PyTorch itself differs by 1 % and more after a change of 1e-7 in an image."""
    x = natural(96, 96, batch=4)
    mine, theirs = (
        final_loss(Fit(x, PRESETS["c3-fast"], 1e-3, steps=300, backend=b)) for b in ("auto", "torch")
    )
    assert mine == pytest.approx(theirs, rel=2e-2)


@built
@pytest.mark.slow
def test_whole_fits_agree():
    x, preset = natural(96, 96, batch=2), with_adam("c3-fast")
    mine, theirs = (final_loss(Fit(x, preset, 1e-3, steps=300, backend=b)) for b in ("auto", "torch"))
    assert mine == pytest.approx(theirs, rel=3e-3)


@built
@pytest.mark.parametrize("stop", [12, 37])
def test_checkpoints_go_from_one_to_the_other(stop, tmp_path):
    x, preset = natural(32, 32), with_adam("c3-fast")
    expected = final_loss(Fit(x, preset, 1e-3, steps=40))
    for first, second in (("auto", "torch"), ("torch", "auto")):
        path = tmp_path / f"{first}.fit"
        begun = Fit(x, preset, 1e-3, steps=40, backend=first)
        for _ in range(stop):
            begun.step()
        Checkpoint(path, begun, 0).save()
        went_on = Fit(x, preset, 1e-3, steps=40, backend=second)
        Checkpoint(path, went_on, 0)
        assert went_on.step_count == stop
        assert final_loss(went_on) == pytest.approx(expected, rel=3e-3)


@built
@torch.no_grad()
def test_costs_of_the_search_are_the_same():
    x = natural(24, 40, batch=2)
    mine, theirs = (
        Fit(x, PRESETS["c3-fast"], torch.tensor([1e-3, 1e-2]), backend=b) for b in ("auto", "torch")
    )
    for fit in (mine, theirs):
        generator = torch.Generator().manual_seed(1)
        fit.plane += 0.1 * torch.randn(fit.plane.shape, generator=generator) * fit._inside
    searches = [_Search(fit) for fit in (mine, theirs)]
    for part in ("entropy", "upsampling", "synthesis", "refinement"):
        costs = [search._part_cost(part) for search in searches]
        moved = [
            {name: 1.1 * v if name.startswith(part) else v for name, v in search.rounded.items()}
            for search in searches
        ]
        torch.testing.assert_close(*(cost(arrays) for cost, arrays in zip(costs, moved)), rtol=1e-5, atol=0)


# --- Choice and arguments ------------------------------------------------------------------------


def test_without_the_extension_torch_does_it_and_says_so(monkeypatch):
    monkeypatch.setattr(native, "KERNELS", ())
    with pytest.warns(UserWarning, match="not built, so a fit takes about five times as long"):
        fit = Fit(natural(16, 16), PRESETS["c3-fast"], 1e-3, steps=2)
    assert fit.fused is None
    fit.run()
    with pytest.raises(ValueError, match="backend is 'avx2'; on this cpu there are auto, torch"):
        Fit(natural(16, 16), PRESETS["c3-fast"], 1e-3, backend="avx2")


def test_backends_have_names():
    with pytest.raises(ValueError, match="backend is 'sse'; choose one of auto, torch, portable"):
        Fit(natural(16, 16), PRESETS["c3-fast"], 1e-3, backend="sse")
    assert Fit(natural(16, 16), PRESETS["c3-fast"], 1e-3, backend="torch").fused is None


@built
def test_steps_refuse_what_does_not_fit():
    """Before anything is read or written."""
    a, size, place = KNOWN[2], (20, 30), GridPlane((20, 30), 7, 0, KNOWN[2].taps)
    plane = (place.height, place.width)

    def step(size=size, plane=plane, places=place.places, kernels="portable", **changes):
        return native.fit_step(dataclasses.replace(a, **changes), size, plane, places, kernels)

    step()
    for arguments in (
        {"size": (21, 30)},
        {"size": (0, 30)},
        {"size": (2**20, 30)},
        {"plane": (plane[0], plane[1] // 2)},
        {"plane": (0, 0)},
        {"places": place.places[:-1]},
        {"places": [(-1, *place.places[0][1:]), *place.places[1:]]},
        {"places": [(2**31 - 1, *place.places[0][1:]), *place.places[1:]]},
        {"kernels": "sse"},
        {"first": 1},
    ):
        with pytest.raises(ValueError, match="fit: "):
            step(**arguments)

    one, parameters = step(), sum(math.prod(spec.shape) for spec in layout(a))
    right = [np.zeros(plane, np.float32), np.zeros(parameters, np.float32), np.zeros((3, *size), np.float32)]
    one.run(*right, 1.0, True, 1)
    for i in range(3):
        for wrong in (right[i][1:], right[i][..., None], np.zeros(0, np.float32)):
            with pytest.raises(ValueError, match="another shape"):
                one.run(*right[:i], wrong, *right[i + 1 :], 1.0, True, 1)
        with pytest.raises(TypeError):
            one.run(*right[:i], right[i].astype(np.float64), *right[i + 1 :], 1.0, True, 1)
    with pytest.raises(ValueError, match="threads"):
        one.run(*right, 1.0, True, 0)
    flat, square = [np.zeros(1, np.float32)] * 3, [np.zeros((1, 1), np.float32)] * 5
    places, rates = np.zeros((1, 1), np.int32), (0.1, 0.1, 0.1, 0.1)
    native.soap(*flat, [(places, *square)], rates, "portable")
    for wrong in ((places, square[0].astype(np.float64), *square[1:]), (places.astype(np.int64), *square)):
        with pytest.raises(TypeError):  # a converted copy would be changed in place of the state
            native.soap(*flat, [wrong], rates, "portable")
    with pytest.raises(ValueError, match="no such stage"):
        one.squares(*right, True, 3, 1)
