# SPDX-License-Identifier: Apache-2.0
"""Claims of train.py for rate-distortion autoencoders: their losses, tables and weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from compressai.losses import RateDistortionLoss
from pytorch_msssim import ms_ssim

from compressai_sga import zoo
from compressai_sga.models import rda


@pytest.fixture(autouse=True)
def tiny_batches(monkeypatch):
    """Seconds instead of minutes: the same steps on small crops."""
    import held_out
    import train

    monkeypatch.setattr(train, "COARSE", {"size": 64, "count": 2})
    monkeypatch.setattr(train, "MS_SSIM_COARSE", {"size": 176, "count": 1})
    monkeypatch.setattr(train, "FINE", {"size": 192, "count": 1})
    monkeypatch.setattr(held_out, "CHECK_PX", 192)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    torch.set_flush_denormal(False)


def run(photos: Path, out: Path, *more: str, steps: int = 2) -> dict:
    import train

    arguments = ["-N", "16", "-M", "24", "--device", "cpu", "--data", str(photos), "--out", str(out)]
    train.main([*arguments, "--max-steps", str(steps), *more])
    return json.loads((out / "run.json").read_text())


def outcome() -> tuple[dict, torch.Tensor]:
    """What a model might return, and the images: two of 176 x 176."""
    generator = torch.Generator().manual_seed(0)
    x, noise = (torch.rand(2, 3, 176, 176, generator=generator) for _ in range(2))
    likelihoods = {"y": torch.rand(2, 24, 11, 11, generator=generator).clamp_min(0.1)}
    return {"x_hat": 0.9 * x + 0.1 * noise, "likelihoods": likelihoods}, x


def test_losses_are_the_formulas():
    from train import costs

    out, x = outcome()
    bpp = -out["likelihoods"]["y"].log2().flatten(1).sum(1) / 176**2
    error = (out["x_hat"] - x).flatten(1)
    distortion = {
        "l2": 255**2 * error.square().mean(1),
        "l1": 255 * error.abs().mean(1),
        "ms-ssim": 1 - ms_ssim(out["x_hat"], x, data_range=1, size_average=False),
    }
    for kind, value in distortion.items():
        for found, expected in zip(costs(x, out, kind), (bpp, value, error.square().mean(1)), strict=True):
            torch.testing.assert_close(found, expected)


def test_models_for_mse_have_stocks_own_loss():
    from train import costs

    out, x = outcome()
    bpp, distortion, _ = costs(x, out, "l2")
    stock = RateDistortionLoss(lmbda=0.013)(out, x)
    torch.testing.assert_close((bpp + 0.013 * distortion).mean(), stock["loss"])


@pytest.mark.parametrize(
    ("name", "lmbda"),
    [
        ("rda-l2", 0.0035),
        ("rda-l1", rda.LMBDA["l1"][2]),
        ("rda-ms-ssim", 4.58),
        ("bmshj2018-factorized", 0.0067),
    ],
)
def test_quality_sets_lmbda_by_the_architectures_table(photos, name, lmbda):
    import train

    args = train.parse_args(["--arch", name, "--quality", "3", "--data", str(photos)])
    assert args.lmbda == lmbda
    assert args.kind == getattr(rda.ARCHITECTURES.get(name), "distortion", "l2")


@pytest.mark.parametrize("name", ["rda-l1", "rda-ms-ssim"])
def test_a_run_trains_and_exports(photos, tmp_path, name):
    facts = run(photos, tmp_path, "--arch", name, "--quality", "1")
    kind = rda.ARCHITECTURES[name].distortion
    assert facts["step"] == 2 and facts["lmbdas"] == [rda.LMBDA[kind][0]]
    state = torch.load(tmp_path / "model-1.pth", weights_only=True)
    net = rda.ARCHITECTURES[name].from_state_dict(state).eval()
    x = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert net.decompress(**net.compress(x))["x_hat"].shape == x.shape


def test_training_starts_from_a_weight_of_the_zoo(photos, tmp_path, capsys):
    record = next(r for r in zoo.list_models() if r.name == "bmshj2018-factorized-small" and r.quality == 1)
    weight = zoo._folder() / record.file
    more = ["-N", "64", "-M", "96", "--lmbda", "0.0009", "--init", "default", "--init-from", str(weight)]
    run(photos, tmp_path, "--arch", "rda-l2", *more, steps=1)
    assert "tensors from" in capsys.readouterr().err
    ours = torch.load(tmp_path / "model.pth", weights_only=True)
    theirs = zoo.load(record.name, 1).state_dict()
    for name in ("g_a.4.weight", "g_s.2.weight", "entropy_bottleneck.matrices.1"):  # no gain is in them
        assert ours[name].dtype == torch.float32
        assert (ours[name] - theirs[name]).norm() < 0.05 * theirs[name].norm(), name
