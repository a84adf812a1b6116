# SPDX-License-Identifier: Apache-2.0
"""Claims of train.py on runs of seconds: all rates at once, stop and go on, stock reads the result."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from compressai.models import FactorizedPrior, MeanScaleHyperprior
from compressai.utils.eval_model.__main__ import inference, load_checkpoint
from safetensors import safe_open
from safetensors.torch import load_file, save_file

RECIPE = Path(__file__).resolve().parents[2] / "zoo" / "train"
SMALL = ["-N", "16", "-M", "24", "--device", "cpu"]


@pytest.fixture(autouse=True)
def tiny_batches(monkeypatch):
    """Seconds instead of minutes: the same steps on small crops."""
    import held_out
    import train

    monkeypatch.setattr(train, "COARSE", {"size": 64, "count": 2})
    monkeypatch.setattr(train, "FINE", {"size": 128, "count": 1})
    monkeypatch.setattr(held_out, "CHECK_PX", 128)
    monkeypatch.setattr(held_out, "CHECK_CROPS", 2)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    torch.set_flush_denormal(False)


def command(photos: Path, out: Path, *more: str) -> list[str]:
    return [*SMALL, "--data", str(photos), "--out", str(out), *more]


def train_for(steps: int, photos: Path, out: Path, *more: str) -> list[dict]:
    import train

    train.main(command(photos, out, "--max-steps", str(steps), *more))
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def test_a_run_resumes_and_exports_every_quality_for_stock(photos, tmp_path):
    out = tmp_path / "run"
    first = train_for(6, photos, out, "--arch", "mbt2018-mean")
    weights = load_checkpoint("mbt2018-mean", True, str(out / "model-3.pth")).g_a[0].weight.clone()
    second = train_for(12, photos, out, "--arch", "mbt2018-mean")
    assert second[: len(first)] == first  # the log goes on
    assert (first[-1]["step"], second[-1]["step"]) == (6, 12)
    assert second[-1]["minutes"] > first[-1]["minutes"] > 0

    torch.manual_seed(0)
    x = torch.rand(3, 192, 192)
    bpp = []
    for quality in range(1, 9):
        net = load_checkpoint("mbt2018-mean", True, str(out / f"model-{quality}.pth"))
        assert type(net) is MeanScaleHyperprior
        bpp.append(inference(net, x)["bpp"])
    assert bpp == sorted(bpp) and bpp[-1] > 2 * bpp[0]
    after = load_checkpoint("mbt2018-mean", True, str(out / "model-3.pth")).g_a[0].weight
    assert not torch.equal(after, weights)

    facts = json.loads((out / "run.json").read_text())
    assert facts["architecture"] == "mbt2018-mean"
    assert (facts["N"], facts["M"], facts["lmbdas"][2]) == (16, 24, 0.0067)
    assert facts["step"] == 12 and len(facts["loss"]) == 8
    assert facts["command"].startswith("python zoo/train/train.py -N 16")


def test_one_training_serves_what_its_record_says(photos, tmp_path):
    """The folded model of a quality has the loss that the joint one reached, its latent scaled."""
    import train

    (line,) = train_for(3, photos, tmp_path / "run", "--arch", "mbt2018-mean")
    args = train.parse_args(["--arch", "mbt2018-mean", *command(photos, tmp_path / "other")])
    crops = train.Run(args, []).held_out.crops
    facts = json.loads((tmp_path / "run" / "run.json").read_text())
    for quality in (1, 8):
        net = load_checkpoint("mbt2018-mean", True, str(tmp_path / "run" / f"model-{quality}.pth"))
        with torch.no_grad():
            bpp, distortion, _ = train.costs(crops, net(crops), "l2")
        loss = (bpp + train.LMBDA[quality - 1] * distortion).mean().item()
        assert loss == pytest.approx(facts["loss"][quality - 1], rel=1e-3)
    assert facts["score"] < line["score"] and facts["latent_scale"] != 1


def test_every_batch_has_all_rates(photos, tmp_path, monkeypatch):
    import train

    args = train.parse_args(["--arch", "mbt2018-mean", *command(photos, tmp_path / "run")])
    run = train.Run(args, [])
    assert sorted(run._rates(8).tolist()) == list(range(8))
    assert len(set(run._rates(2).tolist())) == 2
    seen = []
    monkeypatch.setattr(run.gained, "at", lambda gains: seen.append(gains) or torch.no_grad())
    run.coarse = {"size": 64, "count": 8}
    batch = run.sampler.batch
    monkeypatch.setattr(run.sampler, "batch", lambda **size: seen.append(size["level"]) or batch(**size))
    with pytest.raises(RuntimeError):  # no gradient without the gains
        run.train_step()
    levels, gains = seen
    order = levels.argsort()
    assert gains[order].tolist() == pytest.approx([train.gain_of(lmbda) for lmbda in train.LMBDA])
    assert levels[order].tolist() == pytest.approx([k / 7 for k in range(8)])


def test_one_rate_alone(photos, tmp_path):
    (line,) = train_for(3, photos, tmp_path / "run", "--arch", "mbt2018-mean", "--quality", "4")
    assert len(line["loss"]) == 1
    assert [p.name for p in (tmp_path / "run").glob("model-*.pth")] == ["model-4.pth"]


def test_a_warm_state_goes_on_without_the_runs_folder(photos, tmp_path):
    state = tmp_path / "state.safetensors"
    first = train_for(8, photos, tmp_path / "a", "--arch", "mbt2018-mean", "--state", str(state))
    stored = load_file(state)
    assert stored["g_a.0.weight"].dtype == torch.float16
    assert stored["entropy_bottleneck.quantiles"].dtype == torch.float32
    second = train_for(12, photos, tmp_path / "b", "--arch", "mbt2018-mean", "--state", str(state))
    assert second[-1]["step"] == 12 and len(second) == 1
    assert second[-1]["minutes"] > first[-1]["minutes"]
    assert second[-1]["score"] < 1.2 * first[-1]["score"]  # it did not begin again


def test_a_state_of_before_there_were_rates_goes_on(photos, tmp_path):
    state = tmp_path / "state.safetensors"
    first = train_for(8, photos, tmp_path / "a", "--arch", "mbt2018-mean", "--state", str(state))
    with safe_open(state, "pt") as file:
        run = file.metadata()
    stored = load_file(state)
    kept = {name: value for name, value in stored.items() if not name.endswith(".rates")}
    assert len(kept) < len(stored)
    save_file(kept, state, metadata=run)
    second = train_for(12, photos, tmp_path / "b", "--arch", "mbt2018-mean", "--state", str(state))
    assert second[-1]["step"] == 12 and second[-1]["score"] < 1.2 * first[-1]["score"]
    assert load_file(state)["g_a.2.rates"].abs().max() > 0
    del kept["g_a.2.weight"]
    save_file(kept, state, metadata=run)
    with pytest.raises(
        SystemExit, match="state.safetensors has other weights than mbt2018-mean now .*g_a.2.w"
    ):
        train_for(16, photos, tmp_path / "c", "--arch", "mbt2018-mean", "--state", str(state))


def test_a_finished_run_is_only_exported_again(photos, tmp_path):
    out = tmp_path / "run"
    first = train_for(4, photos, out, "--arch", "bmshj2018-factorized")
    (out / "model.pth").unlink()
    second = train_for(4, photos, out, "--arch", "bmshj2018-factorized")
    assert second[-1]["step"] == first[-1]["step"]
    assert (out / "model.pth").is_file()


def test_training_from_a_neighbour_starts_from_its_transforms(photos, tmp_path, capsys):
    train_for(4, photos, tmp_path / "a", "--arch", "mbt2018-mean")
    neighbour = tmp_path / "a" / "model.pth"
    train_for(
        1, photos, tmp_path / "b", "--arch", "bmshj2018-factorized", "--init-from", str(neighbour),
        "--muon-lr", "1e-6",
    )  # fmt: skip
    assert "tensors from" in capsys.readouterr().err
    a, b = (torch.load(tmp_path / run / "model.pth", weights_only=True) for run in "ab")
    fresh = FactorizedPrior(16, 24).state_dict()
    name = "g_a.2.weight"
    assert (a[name] - b[name]).norm() < 0.1 * (fresh[name] - b[name]).norm()


@pytest.mark.parametrize(
    "arch",
    [
        "elic2022-gdn",
        *(pytest.param(a, marks=pytest.mark.slow) for a in ("mbt2018", "bmshj2018-hyperprior-uq", "rda-l1")),
    ],
)
def test_other_architectures_train_at_all_rates(photos, tmp_path, arch):
    more = ["-M", "72"] if arch == "elic2022-gdn" else []
    (line,) = train_for(2, photos, tmp_path / "run", "--arch", arch, *more)
    assert len(line["bpp"]) == 8 and line["bpp"][0] < line["bpp"][-1]
    net = load_checkpoint(arch, True, str(tmp_path / "run" / "model-8.pth"))
    assert inference(net, torch.rand(3, 192, 192))["bpp"] > 0


def test_learning_rate_warms_up_holds_and_falls_to_one_percent():
    from train import learning_rate_factor

    assert learning_rate_factor(0, warmup=0.1, decay_from=0.4) == pytest.approx(0.01)
    assert learning_rate_factor(0.05, warmup=0.1, decay_from=0.4) == pytest.approx(0.505)
    assert learning_rate_factor(0.39, warmup=0.1, decay_from=0.4) == 1
    assert learning_rate_factor(0.7, warmup=0.1, decay_from=0.4) == pytest.approx(0.505)
    assert learning_rate_factor(1, warmup=0.1, decay_from=0.4) == pytest.approx(0.01)
    assert learning_rate_factor(0.5, warmup=0, decay_from=0) == pytest.approx(0.505)


def test_straight_through_rounds_the_decoders_input_in_training_only():
    from train import Gained, StraightThrough

    torch.manual_seed(0)
    model = FactorizedPrior(16, 24)
    model.entropy_bottleneck.quantiles.data[:, 0, 1] = 0.25
    y = torch.randn(2, 24, 4, 4, requires_grad=True)
    gained = Gained(model)
    switch = StraightThrough(model, gained)
    noisy, _ = model.entropy_bottleneck(y)
    switch.on = True
    rounded, _ = model.entropy_bottleneck(y)
    assert torch.allclose(rounded, (y - 0.25).round() + 0.25)
    assert not torch.allclose(noisy, rounded)
    with gained.at(torch.tensor([1.0, 4.0])):  # the second image's medians are four times as far
        scaled, _ = model.entropy_bottleneck(y)
    assert torch.allclose(scaled[1], (y[1] - 1).round() + 1)
    (gradient,) = torch.autograd.grad(rounded.sum(), y)
    assert torch.equal(gradient, torch.ones_like(y))


def test_gradients_that_are_not_finite_are_left_out_and_end_a_run_that_has_no_others(
    photos, tmp_path, monkeypatch
):
    import train

    args = train.parse_args(["--arch", "mbt2018-mean", *command(photos, tmp_path / "run")])
    run = train.Run(args, [])
    run.train_step()
    before = [p.detach().clone() for p in run.model.parameters()]
    batch = run.sampler.batch
    monkeypatch.setattr(run.sampler, "batch", lambda **size: batch(**size) * float("nan"))
    monkeypatch.setattr(train, "MAX_LOST_STEPS", 3)
    for _ in range(3):
        run.train_step()
    assert all(torch.equal(a, b) for a, b in zip(run.model.parameters(), before, strict=True))
    with pytest.raises(train.TrainingError, match="4 gradients in a row were not finite.*lower --muon-lr"):
        run.train_step()
    monkeypatch.undo()
    run.train_step()
    assert run.lost == 0


def refused(capsys, *arguments: str) -> str:
    import train

    with pytest.raises(SystemExit) as stop:
        train.main(list(arguments))
    return f"{stop.value} {capsys.readouterr().err}"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--data must name a folder of photographs, not None"),
        (["--data", "{photos}", "--quality", "3", "--lmbda", "0.01"], "leave one out"),
        (["--data", "{photos}", "--max-minutes", "0"], "--max-minutes must be positive, not 0"),
        (["--data", "{photos}", "--fine-from", "1"], "--fine-from must lie in [0, 1), not 1"),
    ],
)
def test_wrong_arguments_are_refused_with_the_cure(photos, arguments, message, capsys):
    arguments = [a.format(photos=photos) for a in arguments]
    assert message in refused(capsys, "--arch", "mbt2018-mean", *arguments)


def test_files_of_another_run_are_refused_and_left(photos, tmp_path, capsys):
    out, state = tmp_path / "run", tmp_path / "state.safetensors"
    train_for(2, photos, out, "--arch", "mbt2018-mean", "--state", str(state))
    before = (out / "checkpoint.pt").read_bytes()
    other = ["--arch", "bmshj2018-hyperprior", *command(photos, out, "--max-steps", "4")]
    message = refused(capsys, *other)
    assert "checkpoint.pt is of a run with architecture mbt2018-mean, and bmshj2018-hyperprior" in message
    assert (out / "checkpoint.pt").read_bytes() == before
    wider = command(photos, tmp_path / "new", "--state", str(state), "-M", "32")
    assert "run with M 24, and 32 is asked for" in refused(capsys, "--arch", "mbt2018-mean", *wider)
    state.write_bytes(b"no state")
    broken = command(photos, tmp_path / "new", "--state", str(state))
    assert "cannot be read" in refused(capsys, "--arch", "mbt2018-mean", *broken)


def test_a_photograph_that_cannot_be_read_is_named(photos, tmp_path, capsys):
    folder = tmp_path / "photos"
    folder.mkdir()
    (folder / "broken.png").write_bytes((photos / "0.png").read_bytes()[:500])
    message = refused(capsys, "--arch", "mbt2018-mean", *command(folder, tmp_path / "run"))
    assert "broken.png cannot be read as an image" in message


def test_a_full_disk_leaves_the_last_save(photos, tmp_path, monkeypatch, capsys):
    import train

    out = tmp_path / "run"
    train_for(2, photos, out, "--arch", "mbt2018-mean")
    before = (out / "checkpoint.pt").read_bytes()

    def full(value, path):
        Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(train.torch, "save", full)
    more = command(photos, out, "--max-steps", "4")
    message = refused(capsys, "--arch", "mbt2018-mean", *more)
    assert "No space left on device" in message and "make room" in message
    assert (out / "checkpoint.pt").read_bytes() == before
    assert not list(out.glob("*.tmp"))


def test_out_is_named_after_architecture_and_rate(photos):
    import train

    args = train.parse_args(["--arch", "mbt2018", "--data", str(photos)])
    assert args.out == Path("runs/mbt2018") and args.lmbdas == train.LMBDA
    args = train.parse_args(["--arch", "mbt2018", "--quality", "4", "--data", str(photos)])
    assert args.out == Path("runs/mbt2018-lmbda0.013") and args.lmbdas == (0.013,)
