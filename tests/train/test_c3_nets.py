# SPDX-License-Identifier: Apache-2.0
"""Claims of zoo/train/c3_nets.py on a fit of seconds: images share their nets, a run goes on, sets stay;
crops are of photographs that are worth it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from compressai_sga.models.c3.config import PRESETS
from compressai_sga.models.c3.defaults import read_defaults


def options(photos: Path, out: Path, *more: str) -> list[str]:
    small = [
        "--crops",
        "2",
        "--size",
        "32",
        "--steps",
        "20",
        "--more-steps",
        "10",
        "--lmbdas",
        "1e-3",
        "4e-3",
    ]
    return ["--data", str(photos), "--out", str(out), *small, *more]


def test_images_share_their_nets_and_have_latents_of_their_own(photos):
    import c3_nets

    x = c3_nets.load_crops(photos, 2, 32, [])
    fit = c3_nets.SharedFit(x, PRESETS["c3"], 1e-3, steps=20, warm=False)
    with torch.no_grad():
        fit.nets.copy_(fit.nets.mean(0))
    start = fit.nets.detach().clone()
    fit.run()
    fit.take_best()
    assert torch.equal(fit.nets[0], fit.nets[1]) and not torch.equal(fit.nets, start)
    assert not torch.equal(fit.plane[0], fit.plane[1])


def test_crops_are_of_photographs_above_a_size_that_are_not_held_out(photos, tmp_path):
    import c3_nets
    from crops import NO_PHOTOGRAPHS, held_out

    for name in (sorted(held_out())[0], NO_PHOTOGRAPHS[0], "too-small.png"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (300, 200 if "small" in name else 300), (255, 0, 0)).save(path)
    with pytest.raises(SystemExit, match="holds no image with both sides of at least 256 pixels"):
        c3_nets.main(options(tmp_path, tmp_path / "run"))
    for path in photos.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    left_out = c3_nets.parse_args(["--data", "x"]).leave_out
    x = c3_nets.load_crops(tmp_path, 64, 32, left_out)
    assert x.shape == (64, 3, 32, 32)
    assert x.flatten(2).std(2).amin() > 0
    assert c3_nets.load_crops(photos, 64, 32, left_out).equal(x)  # of the same photographs, by the same draws
    assert c3_nets.load_crops(tmp_path, 64, 32, []).flatten(2).std(2).amin() == 0


def test_a_run_goes_on_publishes_and_never_changes_a_set(photos, tmp_path, monkeypatch):
    import c3_nets

    zoo, out = tmp_path / "zoo", tmp_path / "run"
    (zoo / "weights").mkdir(parents=True)
    (zoo / "manifest.json").write_text('{"format": 1, "weights": []}')
    monkeypatch.setattr(c3_nets, "ZOO", zoo)
    c3_nets.main(options(photos, out, "--publish"))
    sets = read_defaults(out / "nets.safetensors")
    assert [d.lmbda for d in sets] == [1e-3, 4e-3]
    assert any((a != b).any() for a, b in zip(sets[0].integers, sets[1].integers))
    record = json.loads((zoo / "manifest.json").read_text())["c3_nets"]
    data = (zoo / record["file"]).read_bytes()
    assert hashlib.sha256(data).hexdigest() == record["sha256"] and len(data) == record["bytes"]

    def never(self):
        raise AssertionError("a finished fit makes no step")

    with monkeypatch.context() as patched:
        patched.setattr(c3_nets.SharedFit, "step", never)
        c3_nets.main(options(photos, out, "--publish"))
    assert (zoo / record["file"]).read_bytes() == data
    with pytest.raises(SystemExit, match="other steps"):
        c3_nets.main(options(photos, out, "--steps", "21"))
    with pytest.raises(SystemExit, match="the new sets must begin with them"):
        c3_nets.main(options(photos, tmp_path / "other", "--steps", "21", "--publish"))
    assert (zoo / record["file"]).read_bytes() == data
