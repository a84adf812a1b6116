# SPDX-License-Identifier: Apache-2.0
"""Claims of train.py and publish.py on runs of seconds: stop and go on, stock reads the result."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from compressai.models import FactorizedPrior
from compressai.utils.eval_model.__main__ import inference, load_checkpoint

RECIPE = Path(__file__).resolve().parents[2] / "zoo" / "train"
SMALL = ["-N", "16", "-M", "24", "--quality", "3", "--device", "cpu"]


@pytest.fixture(autouse=True)
def tiny_batches(monkeypatch):
    """Seconds instead of minutes: the same steps on small crops."""
    import train

    monkeypatch.setattr(train, "COARSE", {"size": 64, "count": 2})
    monkeypatch.setattr(train, "FINE", {"size": 128, "count": 1})
    monkeypatch.setattr(train, "CHECK", {"size": 128, "count": 2})
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def train_for(seconds: float, photos: Path, out: Path, *more: str) -> list[dict]:
    import train

    minutes = str(seconds / 60)
    train.main([*SMALL, "--data", str(photos), "--out", str(out), "--max-minutes", minutes, *more])
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def test_a_run_resumes_and_exports_what_stock_reads(photos, tmp_path):
    out = tmp_path / "run"
    first = train_for(2, photos, out, "--arch", "mbt2018-mean")
    net = load_checkpoint("mbt2018-mean", True, str(out / "model.pth"))
    weights = net.g_a[0].weight.clone()
    torch.manual_seed(0)
    result = inference(net, torch.rand(3, 192, 192))
    assert result["bpp"] > 0

    second = train_for(4, photos, out, "--arch", "mbt2018-mean")
    assert second[: len(first)] == first  # the log goes on
    assert second[-1]["step"] > first[-1]["step"] > 0
    assert second[-1]["minutes"] >= 4 / 60 - 0.01
    after = load_checkpoint("mbt2018-mean", True, str(out / "model.pth")).g_a[0].weight
    assert not torch.equal(after, weights)

    facts = json.loads((out / "run.json").read_text())
    assert facts["architecture"] == "mbt2018-mean"
    assert (facts["N"], facts["M"], facts["lmbda"]) == (16, 24, 0.0067)
    assert facts["step"] == second[-1]["step"]
    assert facts["command"].startswith("python zoo/train/train.py -N 16")


def test_a_finished_run_is_only_exported_again(photos, tmp_path):
    out = tmp_path / "run"
    first = train_for(1, photos, out, "--arch", "bmshj2018-factorized")
    (out / "model.pth").unlink()
    second = train_for(1, photos, out, "--arch", "bmshj2018-factorized")
    assert second[-1]["step"] == first[-1]["step"]
    assert (out / "model.pth").is_file()


def test_training_from_a_neighbour_starts_from_its_transforms(photos, tmp_path, capsys):
    train_for(1, photos, tmp_path / "a", "--arch", "mbt2018-mean")
    neighbour = tmp_path / "a" / "model.pth"
    train_for(0.1, photos, tmp_path / "b", "--arch", "bmshj2018-factorized", "--init-from", str(neighbour))
    assert "tensors from" in capsys.readouterr().err
    a, b = (torch.load(tmp_path / run / "model.pth", weights_only=True) for run in "ab")
    fresh = FactorizedPrior(16, 24).state_dict()
    name = "g_a.2.weight"
    assert (a[name] - b[name]).norm() < 0.1 * (fresh[name] - b[name]).norm()


def test_learning_rate_warms_up_holds_and_falls_to_one_percent():
    from train import learning_rate_factor

    assert learning_rate_factor(0, 0, decay_from=0.4) == pytest.approx(0.01)
    assert learning_rate_factor(0.39, 1000, decay_from=0.4) == 1
    assert learning_rate_factor(0.7, 1000, decay_from=0.4) == pytest.approx(0.505)
    assert learning_rate_factor(1, 1000, decay_from=0.4) == pytest.approx(0.01)
    assert learning_rate_factor(0.5, 1000, decay_from=0) == pytest.approx(0.505)


def test_straight_through_rounds_the_decoders_input_in_training_only():
    from train import StraightThrough

    torch.manual_seed(0)
    model = FactorizedPrior(16, 24)
    model.entropy_bottleneck.quantiles.data[:, 0, 1] = 0.25
    y = torch.randn(1, 24, 4, 4, requires_grad=True)
    switch = StraightThrough(model)
    noisy, _ = model.entropy_bottleneck(y)
    switch.on = True
    rounded, _ = model.entropy_bottleneck(y)
    assert torch.allclose(rounded, (y - 0.25).round() + 0.25)
    assert not torch.allclose(noisy, rounded)
    (gradient,) = torch.autograd.grad(rounded.sum(), y)
    assert torch.equal(gradient, torch.ones_like(y))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--quality", "3"], "--data must name a folder of photographs, not None"),
        (["--data", "{photos}"], "--quality 1..8 or --lmbda"),
        (["--data", "{photos}", "--quality", "3", "--max-minutes", "0"], "must be positive, not 0"),
    ],
)
def test_wrong_arguments_are_refused_with_the_cure(photos, arguments, message, capsys):
    import train

    arguments = [a.format(photos=photos) for a in arguments]
    with pytest.raises(SystemExit):
        train.parse_args(["--arch", "mbt2018-mean", *arguments])
    assert message in capsys.readouterr().err


def test_out_is_named_after_architecture_and_quality(photos):
    import train

    args = train.parse_args(["--arch", "mbt2018", "--quality", "4", "--data", str(photos)])
    assert args.out == Path("runs/mbt2018-4")
    assert args.lmbda == 0.013


def test_publish_writes_weight_record_and_card(photos, tmp_path, monkeypatch):
    import publish

    from compressai_sga import zoo

    folder = tmp_path / "zoo"
    (folder / "samples").mkdir(parents=True)
    for image in zoo.sample_images():
        (folder / "samples" / image.name).write_bytes(image.read_bytes())
    (folder / "manifest.json").write_text('{"format": 1, "weights": [], "denoisers": []}')
    monkeypatch.setattr(publish, "ZOO", folder)
    monkeypatch.setattr(zoo, "_folder", lambda: folder)
    train_for(1, photos, tmp_path / "run", "--arch", "mbt2018-mean")

    arguments = ["--name", "mbt2018-mean-tiny", "--run", str(tmp_path / "run"), "--quality", "3"]
    publish.main(arguments)
    publish.main(arguments)  # again: replaced, not doubled
    (record,) = zoo.list_models()
    assert (record.N, record.M, record.lmbda) == (16, 24, 0.0067)
    assert record.golden.keys() == {"houses.png", "parrot.png", "portrait.png"}
    assert record.bytes == (folder / record.file).stat().st_size
    net = zoo.load("mbt2018-mean-tiny", 3)
    full = torch.load(tmp_path / "run" / "model.pth", weights_only=True)
    state = net.state_dict()
    assert torch.equal(
        state["gaussian_conditional._quantized_cdf"], full["gaussian_conditional._quantized_cdf"]
    )
    assert torch.equal(state["entropy_bottleneck._quantized_cdf"], full["entropy_bottleneck._quantized_cdf"])
    assert torch.equal(state["g_a.0.weight"], full["g_a.0.weight"].half().float())
    publish.main([*arguments, "--before", str(tmp_path / "run")])
    (twice,) = zoo.list_models()
    assert twice.training["steps"] == 2 * record.training["steps"]
    assert twice.command == f"{record.command} && {record.command}"
    card = (folder / "cards" / "mbt2018-mean-tiny.md").read_text()
    assert f"{record.golden['houses.png']['psnr-rgb']:.2f}" in card
    assert record.command in card


def test_recipe_runs_as_a_script():
    done = subprocess.run(
        [sys.executable, RECIPE / "train.py", "--help"], capture_output=True, text=True, check=True
    )
    assert "--max-minutes" in done.stdout
