# SPDX-License-Identifier: Apache-2.0
"""Claims of publish.py: a joint run becomes one file with all qualities, and nothing else is published."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from compressai.models import MeanScaleHyperprior

from compressai_sga import zoo
from compressai_sga.models import rda
from compressai_sga.refine import trained_lmbda

RECIPE = Path(__file__).resolve().parents[2] / "zoo" / "train"
COMMAND = (
    "python zoo/train/train.py --data /disk/photos --out /disk/runs/tiny --state /disk/tiny.safetensors "
    "--init-from /disk/main/zoo/weights/other.safetensors --arch mbt2018-mean"
)


@pytest.fixture
def own_zoo(tmp_path, monkeypatch):
    """An empty zoo with one sample image."""
    import publish

    folder = tmp_path / "zoo"
    (folder / "samples").mkdir(parents=True)
    shutil.copy(zoo.sample_images()[0], folder / "samples")
    manifest = {"format": 1, "weights": [], "denoisers": [], "joint": []}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    monkeypatch.setattr(publish, "ZOO", folder)
    monkeypatch.setattr(zoo, "_folder", lambda: folder)
    return folder


def a_run(folder: Path, model: torch.nn.Module, **facts: object) -> Path:
    """What train.py leaves of a run with this model."""
    import train

    folder.mkdir()
    torch.save(model.state_dict(), folder / "model.pth")
    known = {"architecture": "mbt2018-mean", "lmbdas": list(train.LMBDA), "command": COMMAND}
    known |= {"minutes": 1.5, "step": 7, "machine": "a machine"}
    (folder / "run.json").write_text(json.dumps(known | facts))
    return folder


def tiny(architecture: type[torch.nn.Module] = MeanScaleHyperprior) -> torch.nn.Module:
    torch.manual_seed(0)
    return architecture(16, 24)


def publish_run(run: Path, *more: str) -> None:
    import publish

    publish.main(["--name", "tiny", "--run", str(run), *more])


def test_a_run_is_published_with_all_its_qualities(own_zoo, tmp_path, capsys):
    import train

    manifest = json.loads((own_zoo / "manifest.json").read_text())
    manifest["weights"] = [{"name": "tiny", "file": "weights/tiny-3.safetensors"}, {"name": "other"}]
    (own_zoo / "manifest.json").write_text(json.dumps(manifest))
    run = a_run(tmp_path / "run", tiny())
    kodak = tmp_path / "kodak"
    shutil.copytree(own_zoo / "samples", kodak)
    publish_run(run, "--kodak", str(kodak))
    assert "to be deleted: weights/tiny-3.safetensors" in capsys.readouterr().out
    publish_run(run, "--no-wheel", "--machine", "another")  # again: replaced, not doubled
    manifest = json.loads((own_zoo / "manifest.json").read_text())
    assert manifest["weights"] == [{"name": "other"}] and len(manifest["joint"]) == 1
    (own_zoo / "manifest.json").write_text(json.dumps({**manifest, "weights": []}))

    records = zoo.list_models()
    assert [r.quality for r in records] == list(range(1, 9))
    assert [r.lmbda for r in records] == list(train.LMBDA)
    assert len({r.file for r in records}) == len(list((own_zoo / "weights").iterdir())) == 1
    assert {(r.N, r.M, r.wheel, r.kodak) for r in records} == {(16, 24, False, None)}
    assert all(r.lmbda_range == [0.0018, 0.18] for r in records)
    assert records[0].training == {"minutes": 1.5, "steps": 7, "machine": "another"}
    assert records[0].bytes == (own_zoo / records[0].file).stat().st_size
    bits = [r.golden["houses.png"]["bpp"] for r in records]
    assert bits == sorted(bits) and bits[0] < bits[-1]
    assert records[0].command == (
        "python zoo/train/train.py --data PHOTOS --out runs/tiny "
        "--init-from zoo/weights/other.safetensors --arch mbt2018-mean"
    )
    card = (own_zoo / "cards" / "tiny.md").read_text()
    assert records[0].command in card and "204 photographs of CID22's training set (CC BY-SA 4.0)" in card
    for record in records:
        row = f"| {record.quality} | {record.lmbda} | houses.png | {record.golden['houses.png']['bpp']:.4f}"
        assert row in card


def test_means_over_kodak_stand_in_record_and_card(own_zoo, tmp_path):
    run = a_run(tmp_path / "run", tiny(), lmbdas=[0.013])
    shutil.copytree(own_zoo / "samples", tmp_path / "kodak")
    publish_run(run, "--kodak", str(tmp_path / "kodak"))
    (record,) = zoo.list_models()  # one rate: one quality
    assert (record.quality, record.lmbda, record.lmbda_range) == (4, 0.013, [0.013, 0.013])
    golden = record.golden["houses.png"]
    assert record.kodak.items() >= ({"images": 1} | golden).items()
    assert record.kodak["float32"]["bpp"] == pytest.approx(golden["bpp"], rel=0.01)
    assert "| | | mean of 1 Kodak images |" in (own_zoo / "cards" / "tiny.md").read_text()


def test_what_is_shipped_is_the_runs_model_in_fp16(own_zoo, tmp_path):
    model = tiny()
    publish_run(a_run(tmp_path / "run", model, lmbdas=[0.0018]))
    net = zoo.load("tiny", 1)
    half = model.g_a[2].weight.half().float()  # which no gain meets
    assert type(net) is MeanScaleHyperprior and torch.equal(net.g_a[2].weight, half)
    for name, value in model.entropy_bottleneck.named_parameters():
        assert torch.equal(net.entropy_bottleneck.get_parameter(name), value), name


def test_records_of_another_distortion_suit_refinement_and_the_card_names_the_loss(own_zoo, tmp_path):
    import publish

    lmbda = rda.LMBDA["l1"][1]
    run = a_run(tmp_path / "run", tiny(rda.L1Autoencoder), architecture="rda-l1", lmbdas=[lmbda])
    publish_run(run)
    (record,) = zoo.list_models()
    assert (record.quality, record.metric, record.lmbda) == (2, "mse", 0.0018)
    assert record.training.items() >= {"distortion": "l1", "lmbda": lmbda, "steps": 7}.items()
    net = zoo.load("tiny", 2)
    assert type(net) is rda.L1Autoencoder and trained_lmbda(net) == 0.0018
    card = (own_zoo / "cards" / "tiny.md").read_text()
    assert "bpp + λ·255·MAE" in card and f"| 2 | {lmbda} |" in card
    loss = {"distortion": "ms-ssim", "lmbda": 2.4}
    assert publish.trade_off("rda-ms-ssim", 2.4) == {"metric": "ms-ssim", "lmbda": 2.4, "loss": loss}
    assert publish.trade_off("mbt2018-mean", 0.013) == {"metric": "mse", "lmbda": 0.013, "loss": {}}


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"architecture": "bmshj2018-factorized"}, "does not hold weights of bmshj2018-factorized, which"),
        ({"architecture": "mbt2019"}, "no architecture is called 'mbt2019'"),
        ({"lmbdas": [0.01]}, "lmbda 0.01 of the run is no quality's; theirs are 0.0018, 0.0035"),
    ],
)
def test_a_run_of_something_else_is_refused(own_zoo, tmp_path, facts, message):
    before = (own_zoo / "manifest.json").read_bytes()
    with pytest.raises(ValueError, match=message):
        publish_run(a_run(tmp_path / "run", tiny(), **facts))
    assert (own_zoo / "manifest.json").read_bytes() == before and not (own_zoo / "weights").exists()


def test_weights_that_are_not_joint_are_refused(own_zoo, tmp_path):
    folded = tiny()
    folded.update()
    with pytest.raises(ValueError, match="has coding tables: its weights are folded for one rate"):
        publish_run(a_run(tmp_path / "folded", folded))
    run = a_run(tmp_path / "old", tiny())
    (run / "run.json").write_text('{"architecture": "mbt2018-mean", "lmbda": 0.0067}')
    with pytest.raises(ValueError, match="has no lmbdas.*not a joint one; train again"):
        publish_run(run)
    (run / "run.json").unlink()
    with pytest.raises(ValueError, match="run.json is missing"):
        publish_run(run)
    unfinished = a_run(tmp_path / "unfinished", tiny())
    (unfinished / "model.pth").unlink()
    with pytest.raises(ValueError, match="model.pth is missing; give the training's command again"):
        publish_run(unfinished)


def test_a_weight_beyond_fp16_is_refused(own_zoo, tmp_path):
    model = tiny()
    model.g_a[0].weight.data[0, 0, 0, 0] = 1e6
    with pytest.raises(ValueError, match="g_a.0.weight does not fit fp16: its maximum is 1000000"):
        publish_run(a_run(tmp_path / "run", model))


def test_a_real_run_is_publishable(photos, own_zoo, tmp_path, monkeypatch):
    import held_out
    import train

    monkeypatch.setattr(train, "COARSE", {"size": 64, "count": 2})
    monkeypatch.setattr(held_out, "CHECK_PX", 128)
    threads = torch.get_num_threads()
    arguments = ["--arch", "bmshj2018-factorized", "-N", "16", "-M", "24", "--device", "cpu"]
    arguments += ["--data", str(photos), "--out", str(tmp_path / "run"), "--max-steps", "1", "--quality", "3"]
    train.main(arguments)
    torch.set_num_threads(threads)
    torch.set_flush_denormal(False)
    publish_run(tmp_path / "run")
    (record,) = zoo.list_models()
    exported = torch.load(tmp_path / "run" / "model-3.pth", weights_only=True)
    net = zoo.load("tiny", 3)
    assert torch.equal(net.entropy_bottleneck._quantized_cdf, exported["entropy_bottleneck._quantized_cdf"])
    assert record.command.startswith("python zoo/train/train.py --arch bmshj2018-factorized -N 16")


def test_the_photographs_are_those_that_are_there():
    import crops
    import publish

    place = os.environ.get("COMPRESSAI_SGA_DATA", RECIPE.parents[2] / "shared" / "data")
    folder = Path(place) / "train"
    if not folder.is_dir():
        pytest.skip(f"{folder} is not there: no photographs to count")
    there = {path.name: len(crops.list_images(path)) for path in folder.iterdir() if path.is_dir()}
    assert there == {name: count for name, (count, _, _) in publish.PHOTOGRAPHS.items()}
    total = sum(int(line.split()[0]) for line in publish.training_data())
    assert total == sum(there.values()) - len(crops.held_out())
