# SPDX-License-Identifier: Apache-2.0
"""Claims of denoiser.py: an oracle has no loss, runs stop and go on, the weights carry their settings."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from compressai_sga.diffusion.schedules import alpha_sigma
from compressai_sga.diffusion.unet import UNetConfig
from compressai_sga.models.diffc.network import SCALE, PixelDenoiser
from compressai_sga.models.hfd.network import ResidualDenoiser

SMALL = ["--size", "16", "--batch", "4", "--widths", "8", "16", "--device", "cpu"]


@pytest.fixture(autouse=True)
def tiny_pairs(monkeypatch):
    """Seconds instead of minutes."""
    import denoiser

    monkeypatch.setattr(denoiser, "PAIR_SIZE", 64)
    monkeypatch.setattr(denoiser, "CHECK_COUNT", 4)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


class Oracle(nn.Module):
    """Knows the clean signal, a constant, and says v of whatever it sees."""

    def __init__(self, signal: float):
        super().__init__()
        self.signal = nn.Parameter(torch.tensor(signal))

    def forward(self, z: Tensor, log_snr: Tensor, *_: Tensor) -> Tensor:
        alpha, sigma = alpha_sigma(log_snr, z)
        return (alpha * z - self.signal) / sigma


def test_an_oracle_has_no_loss_on_images():
    import denoiser

    task = denoiser.DiffC.__new__(denoiser.DiffC)
    task.net = PixelDenoiser(UNetConfig(widths=(8, 16)), 16)
    task.crops = argparse.Namespace(batch=lambda count, size: torch.full((count, 3, size, size), 0.7))
    generator = torch.Generator().manual_seed(0)
    right = task.loss(Oracle((0.7 - 0.5) / SCALE), 8, 16, generator)
    wrong = task.loss(Oracle(0.7), 8, 16, generator)
    assert right.shape == (8,) and right.max() < 1e-3 and wrong.min() > 1e-5 < wrong.max()
    assert wrong.mean() > 100 * right.mean()


def test_an_oracle_has_no_loss_on_what_the_first_stage_lost():
    import denoiser

    task = denoiser.HFD.__new__(denoiser.HFD)
    config = UNetConfig(in_channels=6, widths=(8, 16), labels=2)
    task.net = ResidualDenoiser(config, (1, 2), (10 / 255, 5 / 255), "mbt2018-mean-small")
    task.x = torch.full((3, 3, 64, 64), 120, dtype=torch.uint8)
    task.first = torch.stack([task.x - 20, task.x - 10])  # both two deviations away
    task.generator = torch.Generator().manual_seed(0)
    task.schedule = denoiser.Cosine()
    generator = torch.Generator().manual_seed(0)
    right = task.loss(Oracle(2.0), 16, 16, generator)
    wrong = task.loss(Oracle(-2.0), 16, 16, generator)
    assert right.shape == (16,) and right.max() < 1e-3 and wrong.mean() > 1


def test_levels_cover_every_part_of_the_range():
    import denoiser

    values = denoiser.even(64, torch.Generator().manual_seed(0))
    assert sorted((values * 64).long().tolist()) == list(range(64))
    assert values.tolist() != sorted(values.tolist())


def train_for(seconds: float, data: Path, out: Path, *more: str) -> list[dict]:
    import denoiser

    minutes = str(seconds / 60)
    denoiser.main([*SMALL, "--data", str(data), "--out", str(out), "--max-minutes", minutes, *more])
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def test_a_run_of_hfd_resumes_and_its_weights_know_their_settings(photos, tmp_path):
    out = tmp_path / "run"
    more = ["--model", "hfd", "--qualities", "1", "3", "--pairs", "4"]
    first = train_for(1, photos, out, *more)
    pairs = (out / "pairs.pt").stat().st_mtime_ns
    second = train_for(2, photos, out, *more)
    assert second[: len(first)] == first and second[-1]["step"] > first[-1]["step"] > 0
    assert (out / "pairs.pt").stat().st_mtime_ns == pairs
    net = ResidualDenoiser.from_state_dict(torch.load(out / "model.pth", weights_only=True))
    assert net.qualities == (1, 3) and net.first_stage == "mbt2018-mean-small"
    assert net.deviations[0] > net.deviations[1] > 0  # the first stage of quality 1 loses more
    facts = json.loads((out / "run.json").read_text())
    assert facts["architecture"] == "hfd" and facts["step"] == second[-1]["step"]
    assert facts["command"].startswith("python zoo/train/denoiser.py --size 16")


def test_diffc_learns_images_of_single_colours(tmp_path):
    import denoiser

    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    images = np.repeat(rng.integers(0, 256, (2, 1, 1, 3), dtype=np.uint8), 16, axis=1).repeat(16, axis=2)
    np.savez(tmp_path / "tiny.npz", train=images)
    options = ["--model", "diffc", "--data", str(tmp_path / "tiny.npz"), "--out", str(tmp_path / "run")]
    options += ["--muon-lr", "1e-2", "--adam-lr", "1e-2"]
    run = denoiser.Run(denoiser.parse_args([*SMALL, *options]), options)
    losses = [run.train_step() for _ in range(120)]
    assert np.mean(losses[-20:]) < 0.8 * np.mean(losses[:20])
    run.save()
    net = PixelDenoiser.from_state_dict(torch.load(tmp_path / "run" / "model.pth", weights_only=True))
    assert net.window == 16


def test_wrong_data_is_refused(tmp_path, capsys):
    import denoiser

    for model, data in (("hfd", tmp_path / "a.npz"), ("diffc", tmp_path / "missing")):
        with pytest.raises(SystemExit):
            denoiser.main(["--model", model, "--data", str(data)])
        assert "--data must name a folder" in capsys.readouterr().err
    np.savez(tmp_path / "tiny.npz", train=np.zeros((2, 16, 16, 3), np.uint8))
    with pytest.raises(ValueError, match=r"the images are \(16, 16\) px; give --size"):
        train_for(1, tmp_path / "tiny.npz", tmp_path / "run", "--model", "diffc", "--size", "32")
