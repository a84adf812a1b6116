# SPDX-License-Identifier: Apache-2.0
"""Claims of denoiser.py: an oracle has no loss, runs stop and go on, the weights carry their settings, checks
see held-out photographs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
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
    batch = (torch.full((8, 3, 16, 16), 0.7),)
    generator = torch.Generator().manual_seed(0)
    right = task.loss(Oracle((0.7 - 0.5) / SCALE), batch, generator)
    wrong = task.loss(Oracle(0.7), batch, generator)
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
    task.schedule, task.deviations = denoiser.Cosine(), task.net.deviations
    generator = torch.Generator().manual_seed(0)
    batch = task.batch(16, 16)
    right = task.loss(Oracle(2.0), batch, generator)
    wrong = task.loss(Oracle(-2.0), batch, generator)
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
    options += ["--muon-lr", "1e-2", "--adam-lr", "1e-2", "--max-steps", "120"]
    run = denoiser.Run(denoiser.parse_args([*SMALL, *options]), options)
    before = run.check()["score"]
    losses = [run.train_step() for _ in range(120)]
    assert np.mean(losses[-20:]) < 0.8 * np.mean(losses[:20])
    line = run.check()
    assert line["score"] == min(line["averages"].values()) < 0.8 * before
    assert max(line["averages"].values()) < 0.9 * before  # all of them follow
    run.export()
    net = PixelDenoiser.from_state_dict(torch.load(tmp_path / "run" / "model.pth", weights_only=True))
    assert net.window == 16
    with run.averages.swapped(line["average"]):
        assert all(torch.equal(p, q) for p, q in zip(net.parameters(), run.net.parameters()))


def test_wrong_data_is_refused(tmp_path, capsys):
    import denoiser

    for model, data in (("hfd", tmp_path / "a.npz"), ("diffc", tmp_path / "missing")):
        with pytest.raises(SystemExit):
            denoiser.main(["--model", model, "--data", str(data)])
        assert "--data must name a folder" in capsys.readouterr().err
    np.savez(tmp_path / "tiny.npz", train=np.zeros((2, 16, 16, 3), np.uint8))
    with pytest.raises(SystemExit, match=r"the images are \(16, 16\) px; give --size"):
        train_for(1, tmp_path / "tiny.npz", tmp_path / "run", "--model", "diffc", "--size", "32")


@pytest.fixture
def red_held_out(photos, tmp_path) -> Path:
    """The photographs, and one that is held out, which is red."""
    from crops import held_out

    folder = tmp_path / "data"
    folder.mkdir()
    for path in photos.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    red = folder / sorted(held_out())[0]
    red.parent.mkdir()
    Image.new("RGB", (128, 96), (255, 0, 0)).save(red)
    return folder


def reds(x: Tensor) -> int:
    return int(((x[:, 0].amin((1, 2)) > 0.9) & (x[:, 1].amax((1, 2)) < 0.1)).sum())


@pytest.mark.parametrize("model", ["hfd", "diffc"])
def test_checks_see_held_out_photographs_and_training_does_not(red_held_out, tmp_path, model):
    import denoiser

    options = ["--model", model, "--data", str(red_held_out), "--out", str(tmp_path / "run")]
    options += ["--qualities", "1", "--pairs", "8"]
    run = denoiser.Run(denoiser.parse_args([*SMALL, *options]), options)
    assert reds(run.task.held[0]) == len(run.task.held[0]) == 4
    assert reds(run.task.batch(64, 16)[0]) == 0


def test_without_held_out_photographs_checks_see_the_trainings(photos, tmp_path):
    import denoiser

    options = ["--model", "diffc", "--data", str(photos), "--out", str(tmp_path / "run")]
    run = denoiser.Run(denoiser.parse_args([*SMALL, *options]), options)
    state = run.task.generator.get_state()
    assert run.check()["score"] == run.check()["score"] > 0
    assert torch.equal(state, run.task.generator.get_state())
    assert run.task.held[0].shape == (4, 3, 16, 16)


def test_an_npz_with_test_images_is_checked_on_them(tmp_path):
    import denoiser

    path = tmp_path / "tiny.npz"
    np.savez(path, train=np.zeros((2, 16, 16, 3), np.uint8), test=np.full((2, 16, 16, 3), 255, np.uint8))
    options = ["--model", "diffc", "--data", str(path), "--out", str(tmp_path / "run")]
    task = denoiser.Run(denoiser.parse_args([*SMALL, *options]), options).task
    assert task.held[0].min() == 1 and task.batch(4, 16)[0].max() == 0


def test_pairs_are_turned_alike():
    import denoiser

    x = torch.randint(0, 128, (3, 3, 24, 24), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    first = torch.stack([x + 1, x + 2])
    a, b, labels = denoiser.turned_pairs(x, first, 64, 16, torch.Generator().manual_seed(0))
    assert a.shape == b.shape == (64, 3, 16, 16) and set(labels.tolist()) == {0, 1}
    steps = ((b - a) * 255).round().long()
    assert (steps == labels[:, None, None, None] + 1).all()


def test_files_of_another_run_are_refused_with_the_cure(photos, tmp_path):
    options = ["--max-steps", "2", "--qualities", "1"]
    train_for(60, photos, tmp_path / "a", "--model", "diffc", *options)
    with pytest.raises(SystemExit, match=r"checkpoint\.pt is damaged, or of another .*another --out"):
        train_for(60, photos, tmp_path / "a", "--model", "diffc", "--widths", "8", "24", *options)
    train_for(60, photos, tmp_path / "b", "--model", "hfd", "--pairs", "2", *options)
    with pytest.raises(SystemExit, match=r"pairs\.pt is of other qualities"):
        train_for(60, photos, tmp_path / "b", "--model", "hfd", "--qualities", "1", "2")


@pytest.mark.parametrize("model", ["hfd", "diffc"])
def test_a_run_goes_on_where_it_was_saved(photos, tmp_path, model):
    """The same crops, noise, momenta and averages as without the interruption."""
    import denoiser

    options = ["--model", model, "--data", str(photos), "--out", str(tmp_path / "run"), "--max-steps", "20"]
    options += ["--qualities", "1", "--pairs", "4"]
    torch.manual_seed(0)
    run = denoiser.Run(denoiser.parse_args([*SMALL, *options]), options)
    for _ in range(6):
        run.train_step()
    run.save()
    expected = [run.train_step().item() for _ in range(6)]
    again = denoiser.Run(denoiser.parse_args([*SMALL, *options]), options)
    assert (again.step, again.averages.count) == (6, 6)
    assert [again.train_step().item() for _ in range(6)] == pytest.approx(expected, rel=1e-4)
    assert list(again.check()["averages"].values()) == pytest.approx(
        list(run.check()["averages"].values()), rel=1e-4
    )
