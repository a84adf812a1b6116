# SPDX-License-Identifier: Apache-2.0
"""Claims of train.py and publish.py for rate-distortion autoencoders: their losses, tables and records."""

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
    import train

    monkeypatch.setattr(train, "COARSE", {"size": 64, "count": 2})
    monkeypatch.setattr(train, "MS_SSIM_COARSE", {"size": 176, "count": 1})
    monkeypatch.setattr(train, "FINE", {"size": 192, "count": 1})
    monkeypatch.setattr(train, "CHECK", {"size": 192, "count": 1})
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def run(photos: Path, out: Path, *more: str, seconds: float = 0.5) -> dict:
    import train

    arguments = ["-N", "16", "-M", "24", "--device", "cpu", "--data", str(photos), "--out", str(out)]
    train.main([*arguments, "--max-minutes", str(seconds / 60), *more])
    return json.loads((out / "run.json").read_text())


def outcome() -> tuple[dict, torch.Tensor]:
    """What a model might return, and the images: two of 176 x 176."""
    generator = torch.Generator().manual_seed(0)
    x, noise = (torch.rand(2, 3, 176, 176, generator=generator) for _ in range(2))
    likelihoods = {"y": torch.rand(2, 24, 11, 11, generator=generator).clamp_min(0.1)}
    return {"x_hat": 0.9 * x + 0.1 * noise, "likelihoods": likelihoods}, x


def test_losses_are_the_formulas():
    from train import Objective

    out, x = outcome()
    bpp = -out["likelihoods"]["y"].log2().sum() / (2 * 176 * 176)
    error = out["x_hat"] - x
    distortion = {
        "l2": 255**2 * error.square().mean(),
        "l1": 255 * error.abs().mean(),
        "ms-ssim": 1 - ms_ssim(out["x_hat"], x, data_range=1),
    }
    for kind, value in distortion.items():
        loss = Objective(0.7, kind)(out, x)
        torch.testing.assert_close(loss["loss"], bpp + 0.7 * value)
        torch.testing.assert_close(loss["bpp_loss"], bpp)
        torch.testing.assert_close(loss["mse_loss"], error.square().mean())  # of which the PSNR is made


def test_models_for_mse_have_stocks_own_loss():
    from train import Objective

    out, x = outcome()
    stock = RateDistortionLoss(lmbda=0.013)(out, x)
    ours = Objective(0.013, "l2")(out, x)
    assert ours.keys() == stock.keys()
    assert all(torch.equal(ours[key], stock[key]) for key in stock)


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
    facts = run(photos, tmp_path, "--arch", name, "--quality", "1", seconds=1)
    kind = rda.ARCHITECTURES[name].distortion
    assert facts["step"] > 0 and facts["lmbda"] == rda.LMBDA[kind][0]
    state = torch.load(tmp_path / "model.pth", weights_only=True)
    net = rda.ARCHITECTURES[name].from_state_dict(state).eval()
    x = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert net.decompress(**net.compress(x))["x_hat"].shape == x.shape


def test_training_starts_from_a_weight_of_the_zoo(photos, tmp_path, capsys):
    record = next(r for r in zoo.list_models() if r.name == "bmshj2018-factorized-small" and r.quality == 1)
    weight = zoo._folder() / record.file
    more = ["-N", "64", "-M", "96", "--lmbda", "0.0009", "--init", "default", "--init-from", str(weight)]
    run(photos, tmp_path, "--arch", "rda-l2", *more, seconds=0.05)
    assert "tensors from" in capsys.readouterr().err
    ours = torch.load(tmp_path / "model.pth", weights_only=True)
    theirs = zoo.load(record.name, 1).state_dict()
    for name in ("g_a.6.weight", "g_s.0.weight", "entropy_bottleneck.matrices.0"):
        assert ours[name].dtype == torch.float32
        assert (ours[name] - theirs[name]).norm() < 0.05 * theirs[name].norm(), name


def test_a_published_record_suits_refinement_and_its_card_names_the_loss(photos, tmp_path, monkeypatch):
    import publish

    from compressai_sga.refine import trained_lmbda

    folder = tmp_path / "zoo"
    (folder / "samples").mkdir(parents=True)
    image = zoo.sample_images()[0]
    (folder / "samples" / image.name).write_bytes(image.read_bytes())
    (folder / "manifest.json").write_text('{"format": 1, "weights": [], "denoisers": []}')
    monkeypatch.setattr(publish, "ZOO", folder)
    monkeypatch.setattr(zoo, "_folder", lambda: folder)
    run(photos, tmp_path / "run", "--arch", "rda-l1", "--quality", "2")
    publish.main(["--name", "rda-l1-tiny", "--run", str(tmp_path / "run"), "--quality", "2", "--no-wheel"])
    (record,) = zoo.list_models()
    assert (record.metric, record.lmbda, record.wheel) == ("mse", 0.0018, False)
    assert record.training["distortion"] == "l1"
    assert record.training["lmbda"] == rda.LMBDA["l1"][1]
    net = zoo.load("rda-l1-tiny", 2)
    assert type(net) is rda.L1Autoencoder and trained_lmbda(net) == 0.0018
    card = (folder / "cards" / "rda-l1-tiny.md").read_text()
    assert "bpp + λ·255·MAE" in card and f"| 2 | {rda.LMBDA['l1'][1]} |" in card
    assert publish.trade_off("rda-ms-ssim", 2.4) == {
        "metric": "ms-ssim",
        "lmbda": 2.4,
        "loss": {"distortion": "ms-ssim", "lmbda": 2.4},
    }
    assert publish.trade_off("mbt2018-mean", 0.013) == {"metric": "mse", "lmbda": 0.013, "loss": {}}
