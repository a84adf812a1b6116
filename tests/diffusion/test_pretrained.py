# SPDX-License-Identifier: Apache-2.0
"""Claims of diffusion/pretrained.py, on tiny random models that diffusers itself saves: what is loaded is
what was saved, in this package's units; what is not supported is refused with a cure; nothing is fetched."""

from __future__ import annotations

import json
import math
import os
import sys
from pathlib import Path

import pytest
import torch

from compressai_sga.diffusion import pretrained
from compressai_sga.diffusion.samplers import sample, torch_noise
from compressai_sga.diffusion.schedules import alpha_sigma
from compressai_sga.errors import SgaError, ShapeError, UnsupportedModelError

PREDICTIONS = {"epsilon": "eps", "v_prediction": "v", "sample": "x"}
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}


@pytest.fixture(scope="module")
def diffusers():
    return pytest.importorskip("diffusers", reason='pip install ".[diffusion]"')


def small_unet(diffusers, kind="UNet2DModel", **options):
    torch.manual_seed(1)  # diffusers' own initialisation
    options = {
        "sample_size": 16,
        "in_channels": 3,
        "out_channels": 3,
        "block_out_channels": (8, 16),
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "down_block_types": ("DownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "UpBlock2D"),
        **options,
    }
    return getattr(diffusers, kind)(**options).eval()


def save(folder, unet, scheduler, vae=None):
    """As pipelines are saved; gives the folder."""
    unet.save_pretrained(folder / "unet")
    scheduler.save_pretrained(folder / "scheduler")
    if vae is not None:
        vae.save_pretrained(folder / "vae")
    return folder


def normal(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(6))


# --- Pixel models ------------------------------------------------------------------------------


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("clip", [False, True])
def test_x_hat_is_that_of_the_scheduler(diffusers, tmp_path, prediction, clip):
    """Against DDPMScheduler.step's own pred_original_sample, at its timesteps."""
    scheduler = diffusers.DDPMScheduler(prediction_type=prediction, clip_sample=clip)
    unet = small_unet(diffusers)
    model = pretrained.load(save(tmp_path, unet, scheduler), local_files_only=True)
    assert model.prediction == PREDICTIONS[prediction] and model.multiple == 2 and model.factor == 1
    z = normal(2, 3, 16, 16)
    for timestep in (0, 17, 500, 999):
        share = float(scheduler.alphas_cumprod[timestep])
        log_snr = torch.tensor(share, dtype=torch.float64).logit()
        with torch.no_grad():
            said = unet(z, timestep).sample
        expected = scheduler.step(said, timestep, z, generator=torch.Generator()).pred_original_sample
        assert torch.allclose(model(z, log_snr), expected, rtol=1e-3, atol=1e-4)


def test_timesteps_are_interpolated_in_log_snr(diffusers, tmp_path):
    model = pretrained.load(save(tmp_path, small_unet(diffusers), diffusers.DDPMScheduler()))
    levels = model.log_snrs
    alpha, sigma = alpha_sigma(levels)
    assert torch.allclose(alpha**2, diffusers.DDPMScheduler().alphas_cumprod.double(), atol=1e-9)
    assert torch.allclose(model.timestep(levels), torch.arange(1000, dtype=torch.float64), atol=1e-6)
    between = 0.75 * levels[41] + 0.25 * levels[42]
    assert float(model.timestep(between)) == pytest.approx(41.25)
    assert [float(model.timestep(level)) for level in (math.inf, 40.0, -40.0)] == [0, 0, 999]
    assert model.timestep(levels[[3, 8]]).tolist() == pytest.approx([3, 8])
    z = normal(2, 3, 16, 16)
    rows = torch.cat([model(z[i : i + 1], levels[step]) for i, step in enumerate((3, 800))])
    assert torch.allclose(model(z, levels[[3, 800]]), rows, rtol=1e-3, atol=1e-4)


def test_terminal_snr_of_zero(diffusers, tmp_path):
    scheduler = diffusers.DDIMScheduler(
        rescale_betas_zero_snr=True, prediction_type="v_prediction", clip_sample=False
    )
    model = pretrained.load(save(tmp_path, small_unet(diffusers), scheduler))
    assert float(model.log_snrs[-1]) == -30 and float(model.timestep(-math.inf)) == 999
    assert model(normal(1, 3, 16, 16), torch.tensor(-30.0)).isfinite().all()


def test_table_of_timesteps_gets_the_nearest(diffusers, tmp_path):
    unet = small_unet(diffusers, time_embedding_type="learned", num_train_timesteps=1000)
    model = pretrained.load(save(tmp_path, unet, diffusers.DDPMScheduler()))
    level = 0.7 * model.log_snrs[41] + 0.3 * model.log_snrs[42]
    assert float(model.timestep(level)) == 41
    assert model(normal(2, 3, 16, 16), level).shape == (2, 3, 16, 16)


def test_learned_variance_is_left_out(diffusers, tmp_path):
    unet, scheduler = small_unet(diffusers, out_channels=6), diffusers.DDPMScheduler(clip_sample=False)
    model = pretrained.load(save(tmp_path, unet, scheduler))
    z, level = normal(1, 3, 16, 16), model.log_snrs[300]
    alpha, sigma = (float(part) for part in alpha_sigma(level))
    with torch.no_grad():
        expected = (z - sigma * unet(z, 300).sample[:, :3]) / alpha
    assert torch.allclose(model(z, level), expected, rtol=1e-3, atol=1e-4)


def test_flat_folder_frozen_and_samples(diffusers, tmp_path):
    """A U-Net and its scheduler side by side; the adapter is a denoiser of the samplers, x in [-1, 1]."""
    small_unet(diffusers).save_pretrained(tmp_path)
    diffusers.DDPMScheduler().save_pretrained(tmp_path)
    model = pretrained.load(str(tmp_path))
    model.train()
    assert not model.unet.training and not any(p.requires_grad for p in model.parameters())
    levels = torch.cat([model.log_snrs[[999, 700, 300, 10]], torch.tensor([math.inf])])
    got = sample(model, normal(2, 3, 16, 16), levels, noise=torch_noise(torch.Generator().manual_seed(0)))
    assert got.shape == (2, 3, 16, 16) and float(got.abs().max()) <= 1
    image = model.decode(got)
    assert float(image.min()) >= 0 and float(image.max()) <= 1
    assert torch.allclose(model.encode(image), got, atol=1e-6)


def test_class_labels(diffusers, tmp_path):
    save(tmp_path, small_unet(diffusers, num_class_embeds=4), diffusers.DDPMScheduler())
    with pytest.raises(UnsupportedModelError, match="class-conditional; give class_label"):
        pretrained.load(tmp_path)
    z, level = normal(1, 3, 16, 16), torch.tensor(1.0)
    one, two = (pretrained.load(tmp_path, class_label=label)(z, level) for label in (1, 2))
    assert not torch.allclose(one, two)


# --- Latent models -----------------------------------------------------------------------------


@pytest.fixture
def latent(diffusers, tmp_path):
    torch.manual_seed(2)
    vae = diffusers.AutoencoderKL(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=4,
        scaling_factor=0.3,
        shift_factor=0.1,
    ).eval()
    unet = small_unet(diffusers, in_channels=4, out_channels=4)
    return save(tmp_path, unet, diffusers.DDIMScheduler(clip_sample=False), vae), vae


def test_latents_are_the_scaled_mode(latent):
    folder, vae = latent
    model = pretrained.load(folder)
    assert (model.factor, model.multiple, model.channels, model.limit) == (2, 4, 4, None)
    x = normal(2, 3, 16, 24).sigmoid()
    with torch.no_grad():
        mode = vae.encode(2 * x - 1).latent_dist.mode()
        image = ((vae.decode(mode).sample + 1) / 2).clamp(0, 1)
    encoded = model.encode(x)
    assert encoded.shape == (2, 4, 8, 12) and torch.allclose(encoded, (mode - 0.1) * 0.3, atol=1e-5)
    assert torch.allclose(model.decode(encoded), image, atol=1e-5)
    assert model(encoded, torch.tensor(0.0)).shape == encoded.shape
    with pytest.raises(ShapeError, match="16 x 18 px.*multiples of 4"):
        model.encode(x[..., :18])
    with pytest.raises(ShapeError, match="multiples of 4"):
        model(encoded[..., :9], torch.tensor(0.0))


def test_text_conditional_unet_takes_a_context(diffusers, latent):
    folder, _ = latent
    conditional = small_unet(
        diffusers,
        "UNet2DConditionModel",
        in_channels=4,
        out_channels=4,
        cross_attention_dim=6,
        attention_head_dim=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    )
    conditional.save_pretrained(folder / "unet")
    with pytest.raises(UnsupportedModelError, match=r"\(tokens, 6\).*empty prompt"):
        pretrained.load(folder)
    with pytest.raises(ShapeError, match=r"\(1, tokens, 6\)"):
        pretrained.load(folder, context=torch.zeros(5, 7))
    z, level = normal(2, 4, 8, 8), torch.tensor(1.0)
    one, two = (pretrained.load(folder, context=context)(z, level) for context in normal(2, 5, 6))
    assert one.shape == z.shape and not torch.allclose(one, two)


def test_condition_unet_without_attention_needs_none(diffusers, latent):
    folder, _ = latent
    small_unet(
        diffusers, "UNet2DConditionModel", in_channels=4, out_channels=4, mid_block_type=None
    ).save_pretrained(folder / "unet")
    assert pretrained.load(folder)(normal(1, 4, 8, 8), torch.tensor(0.5)).shape == (1, 4, 8, 8)
    with pytest.raises(UnsupportedModelError, match="takes none"):
        pretrained.load(folder, context=torch.zeros(5, 6))


# --- What is refused ---------------------------------------------------------------------------


def edit(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_other_kinds_are_refused(diffusers, tmp_path, latent):
    def refused(match, **options):
        with pytest.raises(UnsupportedModelError, match=match):
            pretrained.load(folder, **options)

    folder = save(tmp_path / "pixels", small_unet(diffusers), diffusers.FlowMatchEulerDiscreteScheduler())
    refused("FlowMatchEulerDiscreteScheduler, which has no alphas_cumprod.*DDPMScheduler")
    diffusers.DDPMScheduler().save_pretrained(folder / "scheduler")
    refused("class_label is 1.*no classes", class_label=1)
    edit(folder / "scheduler" / "scheduler_config.json", prediction_type="flow_prediction")
    refused("'flow_prediction'; supported are epsilon, v_prediction, sample")
    edit(folder / "unet" / "config.json", _class_name="DiTTransformer2DModel")
    refused("a DiTTransformer2DModel; supported are UNet2DModel")
    (folder / "vqvae").mkdir()
    (folder / "vqvae" / "config.json").write_text("{}")
    refused("has a vqvae; the supported autoencoder is AutoencoderKL")

    folder = latent[0]
    edit(folder / "vae" / "config.json", _class_name="AutoencoderTiny")
    refused("AutoencoderTiny; supported is AutoencoderKL")
    edit(folder / "vae" / "config.json", _class_name="AutoencoderKL", latent_channels=8)
    refused("takes 4 channels and the signal has 8; models with image conditions")
    (folder / "vae" / "config.json").unlink()
    refused("takes 4 channels and the signal has 3; the vae is missing")


def test_missing_and_damaged_files(diffusers, tmp_path):
    folder = save(tmp_path, small_unet(diffusers), diffusers.DDPMScheduler())
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(SgaError, match="weights of UNet2DModel.*safetensors"):
        pretrained.load(folder)
    weights.unlink()
    with pytest.raises(SgaError, match="weights of UNet2DModel.*safetensors"):
        pretrained.load(folder)
    (folder / "scheduler" / "scheduler_config.json").write_text("{")
    with pytest.raises(SgaError, match="scheduler_config.json is not JSON"):
        pretrained.load(folder)
    (folder / "scheduler" / "scheduler_config.json").unlink()
    with pytest.raises(UnsupportedModelError, match="has no scheduler.*it has unet"):
        pretrained.load(folder)


def test_local_files_only_asks_nobody(diffusers, tmp_path, monkeypatch):
    """A hub id outside the cache is an error at once; one in it loads, and no socket is opened."""
    import socket

    def refuse(*_args, **_options):
        raise AssertionError("a connection was tried")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    cache = tmp_path / "hub"
    options = {"local_files_only": True, "cache_dir": cache}
    with pytest.raises(SgaError, match="'someone/tiny' is not a folder.*download it first, or give a folder"):
        pretrained.load("someone/tiny", **options)
    with pytest.raises(SgaError, match="is not a folder"):
        pretrained.load(tmp_path / "absent", **options)

    entry = cache / "models--someone--tiny"
    (entry / "refs").mkdir(parents=True)
    (entry / "refs" / "main").write_text("a" * 40)
    save(entry / "snapshots" / ("a" * 40), small_unet(diffusers), diffusers.DDPMScheduler())
    model = pretrained.load("someone/tiny", **options)
    assert model(normal(1, 3, 16, 16), torch.tensor(0.0)).shape == (1, 3, 16, 16)


def test_without_the_extra_the_error_names_it(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(SgaError, match=r'diffusers.*pip install "\.\[diffusion\]"'):
        pretrained.load(tmp_path)


def test_importing_the_adapter_does_not_import_diffusers(python):
    code = "import sys, compressai_sga.diffusion.pretrained; print('diffusers' in sys.modules)"
    assert python("-c", code, check=True).stdout.split()[-1] == "False"
