# SPDX-License-Identifier: Apache-2.0
"""Claims of models/c3/{fit,adam,checkpoint}.py: the loss falls, with more steps further; bright images do not
collapse; budgets hold; a fit that was stopped goes on as if it had not been."""

from __future__ import annotations

import dataclasses
import math
import time

import pytest
import torch

from compressai_sga.models.c3.config import PRESETS
from compressai_sga.models.c3.fit import loop as fit_module
from compressai_sga.models.c3.fit.adam import Adam
from compressai_sga.models.c3.fit.checkpoint import Checkpoint
from compressai_sga.models.c3.fit.loop import Fit
from tests.models.c3.c3_pictures import constant, natural, noise

LMBDA = 1e-3


def loss(fit: Fit) -> float:
    """Of the rounded latents, mean over images."""
    fit.take_best()
    with torch.no_grad():
        return float(fit._loss(fit.plane_hat()).mean())


def fitted(x: torch.Tensor, name: str = "c3-fast", **arguments: object) -> Fit:
    fit = Fit(x, PRESETS[name], LMBDA, **arguments)
    fit.run()
    return fit


def test_more_steps_give_a_lower_loss_and_all_beat_the_mean():
    x = natural(48, 48)
    losses = [loss(fitted(x, steps=steps)) for steps in (20, 60, 180)]
    variance = float((x - x.mean((2, 3), keepdim=True)).square().mean())
    assert losses[0] < variance
    assert losses[1] < 0.95 * losses[0] and losses[2] < 0.95 * losses[1]
    assert losses[2] < variance / 5


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_fits(name):
    x = natural(40, 40)
    variance = float((x - x.mean((2, 3), keepdim=True)).square().mean())
    assert loss(fitted(x, name, steps=60)) < variance / 2


@pytest.mark.parametrize("level", [0.02, 0.9, 0.95, 0.98])
@pytest.mark.parametrize("name", ["c3-fast", "c3-paper"])
def test_bright_and_dark_images_do_not_collapse(name, level):
    """A clamp in the loss has no gradient here, and a constant image comes out (facts: 67 of 270 images)."""
    detail = natural(40, 40) - natural(40, 40).mean((2, 3), keepdim=True)
    x = (level + 0.2 * detail).clamp(0, 1)
    variance = float((x - x.mean((2, 3), keepdim=True)).square().mean())
    fit = Fit(x, PRESETS[name], 1e-6, steps=80)
    fit.run()
    fit.take_best()
    with torch.no_grad():
        fit._loss(fit.plane_hat())
    assert float(fit._last[0].mean()) < 0.7 * variance
    assert int((fit.plane_hat() != 0).sum()) > 20


def test_with_a_clamp_and_no_mean_it_would_collapse(monkeypatch):
    """What the test above looks for is there in the form that others have."""
    clamped = fit_module.synthesise
    monkeypatch.setattr(fit_module, "synthesise", lambda *a: clamped(*a).clamp(0, 1))
    detail = natural(40, 40) - natural(40, 40).mean((2, 3), keepdim=True)
    x = (0.95 + 0.2 * detail).clamp(0, 1)
    fit = Fit(x, PRESETS["c3-paper"], 1e-6, steps=80, backend="torch")
    with torch.no_grad():
        fit.nets[:, -3:] = 0.0  # the last bias
    fit.run()
    assert float(fit._last[0].mean()) > 100 * float((x - x.mean((2, 3), keepdim=True)).square().mean())


def test_noise_and_constants_stay_finite():
    for x in (noise(), constant(1.0), constant(0.0), noise(1, 1), noise(3, 2), noise(1, 40)):
        fit = fitted(x, steps=25)
        assert math.isfinite(loss(fit))
        assert bool(torch.isfinite(fit.plane).all() and torch.isfinite(fit.nets).all())


def test_same_seed_same_fit_and_another_seed_another():
    x = natural(24, 24)
    one, two, other = (fitted(x, steps=15, seed=seed) for seed in (3, 3, 4))
    assert torch.equal(one.plane, two.plane) and torch.equal(one.nets, two.nets)
    assert not torch.equal(one.nets, other.nets)


def test_global_randomness_is_left_alone():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    fitted(natural(16, 16), steps=5)
    assert torch.equal(torch.get_rng_state(), before)


def test_images_of_a_batch_are_fitted_as_alone():
    """To 1 %: batched products round differently, and latents at a threshold then differ."""
    x = natural(32, 32, batch=2)
    both = Fit(x, PRESETS["c3-fast"], torch.tensor([1e-3, 1e-2]), steps=60)
    both.run()
    both.take_best()
    with torch.no_grad():
        together = both._loss(both.plane_hat())
    for i, lmbda in enumerate((1e-3, 1e-2)):
        alone = Fit(x[i : i + 1], PRESETS["c3-fast"], lmbda, steps=60)
        alone.run()
        assert loss(alone) == pytest.approx(float(together[i]), rel=0.01)


def test_larger_lmbda_fewer_bits():
    bpp = []
    for lmbda in (1e-4, 1e-2):
        fit = Fit(natural(32, 32), PRESETS["c3-fast"], lmbda, steps=60)
        fit.run()
        loss(fit)
        bpp.append(float(fit._last[1]))
    assert bpp[0] > 2 * bpp[1]


def test_finish_keeps_the_best():
    fit = Fit(natural(32, 32), PRESETS["c3-fast"], LMBDA, steps=60)
    seen = []
    while not fit.done:
        fit.step()
        if fit._finish is not None:
            seen.append(float((fit._last[0] + LMBDA * fit._last[1]).mean()))
    assert len(seen) == 3
    assert loss(fit) <= min(seen) + 1e-9


def test_paper_finish_decays_until_it_stops():
    settings = dataclasses.replace(PRESETS["c3-paper"].fit, finish_patience=0, finish_share=0.9)
    fit = Fit(natural(16, 16), dataclasses.replace(PRESETS["c3-paper"], fit=settings), LMBDA, steps=1000)
    fit.run()
    # 0.8^n 1e-4 < 1e-8 from n = 42 on; the first tenth is the main part.
    assert fit.step_count == 100 + 42


# --- Budgets -------------------------------------------------------------------------------------


def test_time_ends_a_fit_and_its_annealing():
    start = time.monotonic()
    fit = Fit(natural(24, 24), PRESETS["c3-fast"], LMBDA, steps=10**6, max_seconds=3.0)
    fit.run()
    assert time.monotonic() - start < 4.0
    assert 5 < fit.step_count < 10**5 and fit.share == 1.0
    assert fit._finish is not None  # the last part was reached


def test_fast_steps_leave_time_for_what_follows():
    """The search takes half a second for the smallest image, however fast its steps are."""
    fit = Fit(natural(16, 16), PRESETS["c3-fast"], LMBDA, steps=10**6, max_seconds=10.0)
    fit.step_count, fit.seconds = 4000, 9.6
    assert fit.share == 1.0


def test_steps_end_a_fit_that_has_time():
    fit = Fit(natural(16, 16), PRESETS["c3-fast"], LMBDA, steps=7, max_seconds=1e6)
    fit.run()
    assert fit.step_count == 7


def test_progress_is_reported():
    seen = []
    fit = Fit(natural(16, 16), PRESETS["c3-fast"], LMBDA, steps=25)
    fit.run(seen.append, every=10)
    assert [p.step for p in seen] == [10, 20, 25]
    assert seen[-1].seconds_left == 0 < seen[0].seconds_left
    assert seen[0].loss == pytest.approx(10 ** (-seen[0].psnr_db / 10) + LMBDA * seen[0].bpp, rel=1e-5)


# --- State ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["c3-fast", "c3-paper"])
@pytest.mark.parametrize("stop", [10, 37])
def test_a_fit_goes_on_where_it_was(name, stop):
    x = natural(16, 24)
    whole = fitted(x, name, steps=40)
    first = Fit(x, PRESETS[name], LMBDA, steps=40)
    for _ in range(stop):
        first.step()
    second = Fit(x, PRESETS[name], LMBDA, steps=40)
    second.load_state_dict(first.state_dict())
    second.run()
    whole.take_best()
    second.take_best()
    assert torch.equal(whole.plane, second.plane) and torch.equal(whole.nets, second.nets)


def test_checkpoint_continues_and_refuses_another_fit(tmp_path):
    x, path = natural(16, 16), tmp_path / "fit.pt"
    whole = fitted(x, steps=12)
    killed = Fit(x, PRESETS["c3-fast"], LMBDA, steps=12)
    keeper = Checkpoint(path, killed, 0, every_sec=0.0)
    for _ in range(7):
        killed.step()
        keeper()
    again = Fit(x, PRESETS["c3-fast"], LMBDA, steps=12)
    Checkpoint(path, again, 0)
    assert again.step_count == 7
    again.run()
    assert torch.equal(again.nets, whole.nets)
    with pytest.raises(ValueError, match="another fit"):
        Checkpoint(path, Fit(x, PRESETS["c3-fast"], 2e-3, steps=12), 0)
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        with pytest.raises(ValueError, match=f"OMP_NUM_THREADS={threads} there, .*={threads + 1} here; give"):
            Checkpoint(path, again, 0)
    finally:
        torch.set_num_threads(threads)
    damaged = bytearray(path.read_bytes())
    at = damaged.index(killed.state_dict()["plane"].numpy().tobytes()[:64])
    damaged[at + 9] ^= 1  # in a float, which torch.load takes as it is
    for nonsense in (b"nonsense", b"junk", b"", bytes(damaged)):
        path.write_bytes(nonsense)
        with pytest.raises(ValueError, match="not a checkpoint"):
            Checkpoint(path, again, 0)


@pytest.mark.parametrize("options", [{"steps": 2.5}, {"steps": 0}, {"seed": -1}, {"seed": 2**63}])
def test_steps_and_seeds_are_whole_numbers(options):
    with pytest.raises(ValueError, match=r"(steps|seed) is .*; choose a whole number from"):
        Fit(natural(16, 16), PRESETS["c3-fast"], LMBDA, **options)


def test_an_early_state_goes_into_a_fit_that_has_finished():
    x = natural(16, 16)
    one, other = (Fit(x, PRESETS["c3-fast"], LMBDA, steps=20) for _ in range(2))
    early = one.state_dict()
    one.run()
    one.load_state_dict(early)
    one.run()
    other.run()
    assert torch.equal(one.nets, other.nets) and torch.equal(one.plane, other.plane)


def test_state_of_another_size_is_refused():
    state = Fit(natural(16, 16), PRESETS["c3-fast"], LMBDA).state_dict()
    with pytest.raises(ValueError, match="planes"):
        Fit(natural(16, 32), PRESETS["c3-fast"], LMBDA).load_state_dict(state)


# --- Adam and arguments --------------------------------------------------------------------------


def test_adam_is_torchs():
    generator = torch.Generator().manual_seed(0)
    mine = torch.randn(2, 5, generator=generator).requires_grad_()
    theirs = mine.detach().clone().requires_grad_()
    adam, other = Adam([mine], (0.9, 0.99)), torch.optim.Adam([theirs], lr=0.02, betas=(0.9, 0.99))
    for _ in range(10):
        for p in (mine, theirs):
            p.grad = None
            (p**2).sum().backward()
        adam.step(torch.tensor([0.02, 0.02]))
        other.step()
    torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize(
    ("x", "arguments", "message"),
    [
        (torch.zeros(3, 8, 8), {}, "shape"),
        (torch.zeros(1, 1, 8, 8), {}, "shape"),
        (torch.zeros(1, 3, 8, 8).double(), {}, "float64"),
        (torch.full((1, 3, 8, 8), 1.5), {}, "in \\[0, 1\\]"),
        (torch.full((1, 3, 8, 8), math.nan), {}, "finite"),
        (torch.zeros(1, 3, 8, 8), {"lmbda": 0.0}, "lmbda"),
        (torch.zeros(1, 3, 8, 8), {"lmbda": math.nan}, "lmbda"),
        (torch.zeros(1, 3, 8, 8), {"lmbda": torch.tensor([1.0, 2.0])}, "lmbda"),
        (torch.zeros(1, 3, 8, 8), {"steps": 0}, "steps"),
        (torch.zeros(1, 3, 8, 8), {"max_seconds": 0.0}, "max_seconds"),
    ],
)
def test_wrong_arguments_are_refused(x, arguments, message):
    with pytest.raises(ValueError, match=message):
        Fit(x, PRESETS["c3-fast"], **{"lmbda": LMBDA, **arguments})
