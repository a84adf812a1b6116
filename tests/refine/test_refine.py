# SPDX-License-Identifier: Apache-2.0
"""Refinement of every model: what stock CompressAI decodes is what was measured.

The models are randomly initialised and small: every claim here is about bits and arithmetic. How much
refinement gains is shown on trained models in test_gains.py and in eval/.
"""

from __future__ import annotations

import pickle

import pytest
import torch
from compressai.latent_codecs import CheckerboardLatentCodec
from compressai.registry import MODELS
from torch import nn

from compressai_sga.errors import ShapeError, UnsupportedModelError
from compressai_sga.models.elic import ARCHITECTURES as OWN
from compressai_sga.refine import METHODS, RefineConfig, refine, refined
from compressai_sga.refine.latents import hard_rounding
from compressai_sga.refine.loop import _Run, build_adapter
from tests.small_models import SIZES, build, picture, rate_point

# What stock decompress does, in a process that knows stock CompressAI alone; for `OWN`, our classes too.
STOCK_DECODER = """
import pickle, sys, torch
if sys.argv[3:]:
    import compressai_sga
from compressai.registry import MODELS
torch.set_num_threads(1)
jobs = pickle.load(open(sys.argv[1], "rb"))
images = {}
for name, (size, state, strings, shape, kwargs) in jobs.items():
    model = MODELS[name](*size).eval()
    model.load_state_dict(state)
    with torch.no_grad():
        images[name] = model.decompress(strings, shape, **kwargs)["x_hat"].clamp(0, 1)
ours = any(m.startswith("compressai_sga.") or m == "compressai_sga" for m in sys.modules)
assert ours == bool(sys.argv[3:])
torch.save(images, sys.argv[2])
"""


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    """Two smooth random images of 68x100 pixels: neither side a multiple of 64."""
    return picture(68, 100, batch=2)


@pytest.fixture(scope="module")
def results(images):
    done = {}
    for name in SIZES:
        model = build(name)
        done[name] = (
            model,
            refine(model, images, "ssl", steps=12, lr=0.05, lmbda=0.05, compress_kwargs=rate_point(name)),
        )
    return done


@pytest.fixture(scope="module")
def stock_images(results, tmp_path_factory, run_python):
    folder = tmp_path_factory.mktemp("stock")
    decoded = {}
    for own in (False, True):
        jobs = {
            name: (SIZES[name], model.state_dict(), r.strings, r.shape, rate_point(name))
            for name, (model, r) in results.items()
            if (name in OWN) is own
        }
        (folder / "jobs.pkl").write_bytes(pickle.dumps(jobs))
        arguments = folder / "jobs.pkl", folder / "images.pt", *["ours"] * own
        switch = {} if own else {"COMPRESSAI_SGA_DISABLE": "1"}
        run_python("-c", STOCK_DECODER, *arguments, cwd=folder, check=True, **switch)
        decoded |= torch.load(folder / "images.pt")
    return decoded


@pytest.mark.parametrize("name", SIZES)
def test_stock_process_decodes_the_measured_image(name, results, stock_images):
    _, result = results[name]
    left, right, top, bottom = result.pad
    decoded = stock_images[name]
    decoded = decoded[..., top : decoded.shape[2] - bottom, left : decoded.shape[3] - right]
    assert decoded.shape == result.x_hat.shape == (2, 3, 68, 100)
    assert (decoded - result.x_hat).abs().max() <= 1e-4


@pytest.mark.parametrize("name", SIZES)
def test_reported_numbers_are_those_of_strings_and_image(name, results, images):
    _, result = results[name]
    for index in range(2):
        size = sum(len(part[index]) for part in result.strings)
        assert result.after.bpp[index].item() == pytest.approx(8 * size / (68 * 100))
    mse = (result.x_hat - images).pow(2).flatten(1).mean(1)
    assert torch.allclose(result.after.mse, mse)
    assert torch.allclose(result.after.loss, result.after.bpp + 0.05 * 255**2 * mse)


@pytest.mark.parametrize("name", SIZES)
def test_loss_never_rises_and_falls_here(name, results):
    _, result = results[name]
    assert (result.after.loss <= result.before.loss).all()
    assert result.after.loss.mean() < result.before.loss.mean()
    assert len(result.trace) == 12


@pytest.mark.parametrize("name", SIZES)
def test_model_is_left_as_it_was(name, results):
    model, _ = results[name]
    fresh = build(name)
    for (key, ours), theirs in zip(model.state_dict().items(), fresh.state_dict().values()):
        assert torch.equal(ours, theirs), key
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert "forward" not in vars(model.g_a) and "compress" not in vars(model)


@pytest.mark.parametrize("name", SIZES)
def test_hard_rounding_is_what_the_stock_encoder_codes(name, images):
    """The adapter's symbols and ideal code length are those of the stock strings, before refinement."""
    model = build(name)
    adapter = build_adapter(model, rate_point(name))
    x = nn.functional.pad(images, (14, 14, 30, 30))
    with torch.no_grad():
        latents, out = adapter.latents_of(x)
        coded = adapter.code(latents, hard_rounding)
        again = adapter.compress(coded.grid, x)
    assert again["strings"] == out["strings"]
    assert again["shape"] == out["shape"]


def test_jacobi_sweeps_end_at_the_sequential_rounding(images):
    """Autoregressive models: the parallel solution is the raster scan's, symbol by symbol."""
    model = build("mbt2018")
    torch.manual_seed(3)
    model.context_prediction.weight.data.mul_(6)  # a context that matters, and that can flip symbols
    adapter = build_adapter(model, {})
    x = nn.functional.pad(images, (14, 14, 30, 30))
    with torch.no_grad():
        latents, out = adapter.latents_of(x)
        y_hat = adapter.code(latents, hard_rounding).y_hat
        first_sweep = latents["y"].round()
        decoded = adapter.decompress(out)
        assert (adapter.synthesise(y_hat).clamp(0, 1) - decoded).abs().max() < 1e-4
        naive = adapter.synthesise(first_sweep).clamp(0, 1)
        assert (naive - decoded).abs().max() > 1e-3  # the test would see another rounding


@pytest.mark.parametrize("method", METHODS)
def test_every_method_runs_and_never_worsens(method, images):
    result = refine(build("mbt2018-mean"), images, method, steps=10, lmbda=0.05)
    assert (result.after.loss <= result.before.loss).all()
    assert result.config.method == method


def test_method_brings_its_parameters_into_another_preset():
    config = RefineConfig.make("ssl3", "fast")
    assert (config.method, config.a, config.r, config.n) == ("ssl3", 1.4, 0.98, 1.4)
    assert config.noise is None
    assert config.lr == RefineConfig.make(preset="fast").lr
    assert RefineConfig.make("soft-round", "ssl-paper").noise is not None


def test_same_seed_same_bytes_and_other_seed_other_path(images):
    model = build("mbt2018-mean")
    options = {"steps": 8, "lmbda": 0.05, "lr": 0.05}
    first, again = (refine(model, images, "ssl", seed=3, **options) for _ in range(2))
    other = refine(model, images, "ssl", seed=4, **options)
    assert first.strings == again.strings
    assert first.trace == again.trace
    assert first.trace != other.trace


@pytest.mark.parametrize("preset", ["ssl", "fast", "polish"])
def test_images_of_a_batch_are_refined_apart(preset, images):
    """An image's bytes do not depend on its neighbours in the batch."""
    model = build("mbt2018-mean")
    steps = {"ssl": 20, "fast": 20, "polish": 0}[preset]
    batch = refine(model, images, preset=preset, steps=steps, lmbda=0.05)
    alone = refine(model, images[1:], preset=preset, steps=steps, lmbda=0.05)
    assert [part[1:] for part in batch.strings] == alone.strings
    assert (batch.after.loss < batch.before.loss).all()


def test_padding_carries_no_distortion(images):
    """Whatever is in the border of x, the reported distortion is that of the image alone."""
    model = build("mbt2018-mean")
    pad = (14, 14, 30, 30)
    noise = torch.rand(2, 3, 128, 128, generator=torch.Generator().manual_seed(5))
    noise[..., 30:98, 14:114] = images
    result = refine(model, noise, "ssl", steps=4, lmbda=0.05, lr=0.05, pad=pad)
    assert result.x_hat.shape == images.shape
    assert torch.allclose(result.after.mse, (result.x_hat - images).pow(2).flatten(1).mean(1))
    # The loop's own loss at its first step is that of the image too: the border would add a lot to it.
    whole = refine(model, noise, "ssl", steps=4, lmbda=0.05, lr=0.05)
    assert result.trace[0]["loss"] != pytest.approx(whole.trace[0]["loss"], rel=1e-3)
    inner = (result.before_x_hat - images).clamp(-1, 1).pow(2).mean().item() * 255**2 * 0.05
    assert result.trace[0]["loss"] == pytest.approx(inner + result.before.bpp.mean().item(), rel=0.05)


def test_ms_ssim(images):
    model = build("mbt2018-mean")
    large = nn.functional.interpolate(images, size=(192, 200), mode="bicubic").clamp(0, 1)
    result = refine(model, large, "ssl", steps=6, lmbda=8.0, metric="ms-ssim", lr=0.05)
    assert (result.after.loss < result.before.loss).any()
    assert (result.after.loss <= result.before.loss).all()


def test_worse_by_real_bits_falls_back_image_by_image(images, monkeypatch):
    """When ideal code lengths mislead, every image that got worse is the unrefined one again."""
    model = build("mbt2018-mean")
    calls = iter(range(100, 0, -1))
    monkeypatch.setattr(_Run, "hard_loss", lambda self, latents: torch.full((2,), float(next(calls))))
    options = {"steps": 4, "lmbda": 1e-6}
    x = torch.cat([images[:1], images[:1] * 0])
    result = refine(model, x, "noise", lr=3.0, **options)
    assert (result.after.loss <= result.before.loss).all()
    worse = result.after.loss == result.before.loss
    assert worse.any()
    index = worse.nonzero()[0].item()
    assert torch.equal(result.x_hat[index], result.before_x_hat[index])
    unrefined = refine(model, x, steps=0, lmbda=1e-6)
    for part, original in zip(result.strings, unrefined.strings):
        assert part[index] == original[index]
    for name, p in result.likelihoods.items():
        assert torch.equal(p[index], unrefined.likelihoods[name][index])


def test_zero_steps_give_the_unrefined_strings(images):
    model = build("mbt2018-mean")
    with torch.no_grad():
        stock = model.compress(nn.functional.pad(images, (14, 14, 30, 30)))
    result = refine(model, images, steps=0, lmbda=0.05)
    assert result.strings == stock["strings"]
    assert torch.equal(result.after.loss, result.before.loss)


def test_works_under_no_grad_and_inference_mode(images):
    model = build("mbt2018-mean")
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            result = refine(model, images, steps=4, lmbda=0.05, lr=0.05)
        assert (result.after.loss < result.before.loss).any()


def test_refined_context_serves_a_pipeline(images):
    model = build("mbt2018-mean")
    x = nn.functional.pad(images, (14, 14, 30, 30))
    with torch.no_grad():
        stock = model.compress(x)
        with refined(model, "ssl", steps=6, lmbda=0.05, lr=0.05) as results:
            out = model.compress(x)
        assert model.compress(x)["strings"] == stock["strings"]  # the context is over
        decoded = model.decompress(out["strings"], out["shape"])["x_hat"].clamp(0, 1)
    assert len(results) == 1
    assert out["strings"] == results[0].strings != stock["strings"]
    assert (decoded - results[0].x_hat).abs().max() <= 1e-4


def test_refined_contexts_nest_and_survive_errors(images):
    """The outer context is back after the inner one, and stock is back after an exception."""
    model = build("mbt2018-mean")
    x = nn.functional.pad(images, (14, 14, 30, 30))
    options = {"steps": 2, "lmbda": 0.05}
    with refined(model, "ssl", **options) as outer:
        with refined(model, "ste", **options) as inner:
            model.compress(x)
        model.compress(x)
    assert len(inner) == 1 and len(outer) == 1

    def stop(step, steps, loss):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), refined(model, "ssl", on_step=stop, **options):
        model.compress(x)
    assert "compress" not in vars(model)
    with pytest.raises(ShapeError, match="multiples of 64"), refined(model, "ssl", **options):
        model.compress(images)


def test_refined_takes_positional_arguments_of_compress(images):
    model = build("mbt2018-mean-vbr")
    x = nn.functional.pad(images, (14, 14, 30, 30))
    with refined(model, "ssl", steps=0, lmbda=0.05):
        out = model.compress(x, 2, 3)
    with torch.no_grad():
        assert out["strings"] == model.compress(x, stage=2, s=3)["strings"]


def test_ms_ssim_of_small_images_is_refused(images):
    with pytest.raises(ShapeError, match="160"):
        refine(build("mbt2018-mean"), images, lmbda=8.0, metric="ms-ssim")


def test_progress_is_told(images):
    told = []
    refine(
        build("mbt2018-mean"),
        images,
        steps=3,
        lmbda=0.05,
        on_step=lambda step, steps, loss: told.append((step, steps, loss > 0)),
    )
    assert told == [(0, 3, True), (1, 3, True), (2, 3, True)]


# --- What is refused ---------------------------------------------------------------------------


def test_half_model_is_refused_with_the_cure(images):
    with pytest.raises(UnsupportedModelError, match="model.float()"):
        refine(build("mbt2018-mean").half(), images.half(), lmbda=0.05)


def test_model_without_tables_is_refused_with_the_cure(images):
    with pytest.raises(UnsupportedModelError, match=r"model.update\(\)"):
        refine(MODELS["mbt2018-mean"](16, 24).eval(), images, lmbda=0.05)


def test_a_latent_codec_that_codes_otherwise_is_refused_by_name(images):
    """A subclass codes as its base does where it inherits how; else nobody can know."""

    class Otherwise(CheckerboardLatentCodec):
        def compress(self, y, side_params):
            return super().compress(y, side_params)

    model = build("elic2022-gdn")
    leaves = model.latent_codec.latent_codec["y"].latent_codec
    assert type(leaves["y0"]) is not CheckerboardLatentCodec
    build_adapter(model, {})
    leaves["y0"].__class__ = Otherwise
    with pytest.raises(UnsupportedModelError, match="latent codec Otherwise is not one of Channel"):
        refine(model, images, lmbda=0.05)


def test_foreign_structure_is_refused_by_name(images):
    model = build("mbt2018-mean")
    del model.gaussian_conditional
    with pytest.raises(UnsupportedModelError, match="gaussian_conditional"):
        refine(model, images, lmbda=0.05)
    with pytest.raises(UnsupportedModelError, match="Conv2d has no compress and no decompress, .*ADAPTERS"):
        refine(nn.Conv2d(3, 3, 1), images, lmbda=0.05)


def test_model_that_decodes_otherwise_is_refused(images):
    model = build("mbt2018-mean")
    stock = type(model).decompress

    def brighter(strings, shape):
        return {"x_hat": stock(model, strings, shape)["x_hat"] * 0.5 + 0.5}

    model.decompress = brighter
    with pytest.raises(UnsupportedModelError, match="does not decode as its parts would"):
        refine(model, images, lmbda=0.05)


def test_an_image_that_stock_decodes_otherwise_is_left_alone(images):
    """Its own strings may name other tables to the decoder than to the encoder; the others are refined."""
    model = build("mbt2018-mean")
    stock = type(model).decompress

    def second_brighter(strings, shape):
        x_hat = stock(model, strings, shape)["x_hat"]
        x_hat[1] = x_hat[1] * 0.5 + 0.5
        return {"x_hat": x_hat}

    images = images[..., :64, :64]
    plain = model.compress(images)
    model.decompress = second_brighter
    with pytest.warns(UserWarning, match="image 1 of the batch was not refined, because"):
        result = refine(model, images, steps=10, lmbda=0.05)
    assert [part[1] for part in result.strings] == [part[1] for part in plain["strings"]]
    assert result.after.loss[0] < result.before.loss[0]
    assert result.after.loss[1] == result.before.loss[1]
    assert len(result.notes) == len(result.of(1).notes) == 1
    assert not result.of(0).notes


@pytest.mark.parametrize("shape", [(3, 64, 64), (1, 1, 64, 64), (0, 3, 64, 64)])
def test_other_shapes_are_refused(shape):
    with pytest.raises(ShapeError, match="B, 3, H, W"):
        refine(build("mbt2018-mean"), torch.rand(shape), lmbda=0.05)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "slg"}, "ssl3"),
        ({"preset": "quickest"}, "sga-paper"),
        ({"steps": -1}, "from 0 to"),
        ({"lmbda": 0.0}, "lmbda must be above 0"),
        ({"lr": float("nan")}, "learning rate must be above 0"),
        ({"metric": "vmaf"}, "ms-ssim"),
    ],
)
def test_bad_options_name_the_choices(options, message):
    with pytest.raises(ValueError, match=message):
        RefineConfig.make(**options)
