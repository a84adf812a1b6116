# SPDX-License-Identifier: Apache-2.0
"""A folder is refined in batches of one size; a killed run goes on; what is stored decodes."""

from __future__ import annotations

import json
import os
import signal
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image

from compressai_sga.errors import SgaError
from compressai_sga.refine import folder as folder_module
from compressai_sga.refine import refine, refine_folder, set_trained_lmbda, stored, trained_lmbda
from tests.small_models import build, picture

FAST = {"steps": 3, "lr": 0.1}
# Refines a folder, and gets a signal when the first batch is in the journal.
KILLED = """
import os, signal, sys, torch
from compressai_sga.refine import refine_folder, set_trained_lmbda
from tests.small_models import build
torch.set_num_threads(1)
model = build("mbt2018-mean")
set_trained_lmbda(model, 0.05)
for path, _ in refine_folder(model, sys.argv[1], "ssl", batch=1, out=sys.argv[2], steps=3, lr=0.1):
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture(scope="module")
def model():
    net = build("mbt2018-mean")
    set_trained_lmbda(net, 0.05)
    return net


@pytest.fixture
def photos(tmp_path) -> Path:
    """Three images of one size and one of another, below each other, and a file that is no image."""
    folder = tmp_path / "photos"
    (folder / "more").mkdir(parents=True)
    sizes = {"a.png": (64, 64), "b.png": (64, 48), "more/c.png": (64, 64), "more/d.png": (64, 64)}
    for seed, (name, (width, height)) in enumerate(sizes.items()):
        x = (picture(height, width, seed=seed)[0] * 255).round().byte().permute(1, 2, 0).numpy()
        Image.fromarray(x).save(folder / name)
    (folder / "readme.txt").write_text("no image")
    return folder


@pytest.fixture
def batches(monkeypatch) -> Iterator[list[int]]:
    """Sizes of the batches that are refined."""
    made: list[int] = []
    stock = folder_module.refine

    def counted(model, x, **options):
        made.append(len(x))
        return stock(model, x, **options)

    monkeypatch.setattr(folder_module, "refine", counted)
    return made


def test_each_image_has_its_own_result(model, photos, batches):
    results = dict(refine_folder(model, photos, "ssl", batch=2, **FAST))
    assert [path.name for path in results] == ["a.png", "c.png", "b.png", "d.png"]
    assert batches == [2, 1, 1]
    for path, result in results.items():
        x = folder_module._read(path)[None]
        alone = refine(model, x, "ssl", **FAST)
        assert result.strings == alone.strings and result.pad == alone.pad
        assert torch.allclose(result.x_hat, alone.x_hat, atol=1e-5)
        assert torch.allclose(result.after.loss, alone.after.loss)
        assert {name: p.shape for name, p in result.likelihoods.items()} == {
            name: p.shape for name, p in alone.likelihoods.items()
        }


def test_results_come_before_later_images_are_read(model, photos, batches):
    for path, _ in refine_folder(model, photos, "ssl", batch=1, **FAST):
        assert path.name == "a.png"
        break
    assert batches == [1]


def test_a_killed_run_goes_on(model, photos, tmp_path, run_python, batches):
    out = tmp_path / "out"
    killed = run_python("-c", KILLED, photos, out, cwd=tmp_path)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert [path.name for path, _ in stored(out)] == ["a.png"]
    (journal,) = out.iterdir()
    journal.write_bytes(journal.read_bytes() + b'{"image": "torn')
    rest = dict(refine_folder(model, photos, "ssl", batch=1, out=out, **FAST))
    assert [path.name for path in rest] == ["b.png", "c.png", "d.png"] and batches == [1, 1, 1]
    assert not list(refine_folder(model, photos, "ssl", batch=4, out=out, **FAST))
    assert len(list(refine_folder(model, photos, "ssl", batch=4, out=out, steps=2))) == 4
    kept = {path.name: each for path, each in stored(journal)}
    assert set(kept) == {"a.png", "b.png", "c.png", "d.png"}
    for path, result in rest.items():
        own = kept[path.name]
        assert own.strings == result.strings and own.pad == result.pad and own.lmbda == 0.05
        assert own.after["bpp"] == result.after.bpp.item()
        x_hat = model.decompress(own.strings, own.shape)["x_hat"].clamp(0, 1)  # 1.2.9.dev0 does not
        left, right, top, bottom = own.pad
        x_hat = x_hat[..., top : x_hat.shape[2] - bottom, left : x_hat.shape[3] - right]
        assert torch.equal(x_hat, result.x_hat)


def test_an_image_that_has_changed_is_refined_again(model, photos, tmp_path):
    out = tmp_path / "out"
    assert len(list(refine_folder(model, photos, "ssl", out=out, **FAST))) == 4
    os.utime(photos / "a.png", ns=(1, 1))
    assert [p.name for p, _ in refine_folder(model, photos, "ssl", out=out, **FAST)] == ["a.png"]


def test_images_that_cannot_be_read_are_named_and_the_others_refined(model, photos):
    whole = (photos / "a.png").read_bytes()
    (photos / "cut.png").write_bytes(whole[: len(whole) // 2])
    (photos / "text.png").write_text("no image")
    with pytest.warns(UserWarning) as caught:
        results = dict(refine_folder(model, photos, "ssl", **FAST))
    assert sorted(path.name for path in results) == ["a.png", "b.png", "c.png", "d.png"]
    told = " ".join(str(warning.message) for warning in caught)
    assert "cut.png is left out" in told and "text.png is left out" in told


def test_images_too_small_for_ms_ssim_are_named(model, photos):
    with pytest.warns(UserWarning, match=r"a\.png is left out: MS-SSIM needs sides of more than 160"):
        assert not list(refine_folder(model, photos, "ssl", metric="ms-ssim", lmbda=8.0, **FAST))


def test_an_estimated_trade_off_is_that_of_the_first_image(photos, tmp_path, monkeypatch):
    """Whether or not it is in the journal already: a run that goes on has the same."""
    loop = __import__("compressai_sga.refine.loop", fromlist=["loop"])
    monkeypatch.setattr(loop, "estimate_lmbda", lambda adapter, latents, x, *_: 0.02 + float(x.mean()) / 100)
    nets = [build("mbt2018-mean") for _ in range(2)]
    first = refine_folder(nets[0], photos, "ssl", batch=1, out=tmp_path / "out", **FAST)
    next(first)
    first.close()
    assert len(list(refine_folder(nets[1], photos, "ssl", batch=1, out=tmp_path / "out", **FAST))) == 3
    assert trained_lmbda(nets[0]) == trained_lmbda(nets[1]) is not None


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"batch": 0}, ValueError, "batch must be at least 1, not 0"),
        ({"preset": "magic"}, ValueError, "unknown refinement preset"),
    ],
)
def test_wrong_options_are_refused_at_once(model, photos, options, error, message):
    with pytest.raises(error, match=message):
        refine_folder(model, photos, **options)


def test_folders_that_cannot_be_used_are_refused(model, photos, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(SgaError, match="holds no image"):
        refine_folder(model, tmp_path / "empty")
    with pytest.raises(SgaError, match=r"readme\.txt cannot be written"):
        next(refine_folder(model, photos, out=photos / "readme.txt", **FAST))


def test_the_journal_is_json_lines(model, photos, tmp_path):
    list(refine_folder(model, photos, "ssl", out=tmp_path / "out", **FAST))
    (journal,) = (tmp_path / "out").iterdir()
    lines = [json.loads(line) for line in journal.read_text().splitlines()]
    assert set(lines[0]) == {"run"} and len(lines) == 5
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(list(stored(tmp_path / "out"))) == 4
