# SPDX-License-Identifier: Apache-2.0
"""Claims of compare_crops.py on runs of two steps: samplers differ as they say, scores are by source, what is
done is kept, and the table of zoo/README.md is the measured one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torchvision.transforms.functional import to_pil_image

from tests.train.conftest import RECIPE
from tests.train.synthetic import synthetic_photo

TINY = ["-N", "16", "-M", "24", "--steps", "2"]


@pytest.fixture
def compare(recipe_on_path, monkeypatch):
    """Seconds instead of minutes: the same steps on small crops."""
    import compare_crops
    import held_out
    import train

    monkeypatch.setattr(train, "COARSE", {"size": 64, "count": 2})
    monkeypatch.setattr(train, "FINE", {"size": 64, "count": 1})
    monkeypatch.setattr(held_out, "CHECK_PX", 64)
    threads = torch.get_num_threads()
    yield compare_crops
    torch.set_num_threads(threads)


@pytest.fixture
def data(tmp_path) -> Path:
    """Photographs to train on and held-out ones, small ones and one above a megapixel each."""
    from crops import held_out

    folder = tmp_path / "data"
    large, small = (next(n for n in sorted(held_out()) if n.startswith(which)) for which in ("clic", "cid"))
    photo = to_pil_image(synthetic_photo(256, 0))
    options = {".png": {"compress_level": 1}, ".webp": {"lossless": True}}
    for name, size in (
        (large, (1200, 900)),
        (small, (160, 128)),
        ("a/1.png", (1200, 900)),
        ("a/2.png", (160, 128)),
    ):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        photo.resize(size).save(path, **options[path.suffix])
    return folder


def test_samplers_are_measured_by_source_and_not_again(compare, data, tmp_path, monkeypatch, capsys):
    command = [
        *TINY,
        "--data",
        str(data),
        "--out",
        str(tmp_path / "runs"),
        "--results",
        str(tmp_path / "r.json"),
    ]
    compare.main([*command, "--samplers", "half"])
    first = json.loads((tmp_path / "r.json").read_text())
    compare.main([*command, "--samplers", "before", "half"])
    results = json.loads((tmp_path / "r.json").read_text())
    assert results["samplers"]["half"] == first["samplers"]["half"]
    assert results["command"].startswith(
        "python zoo/train/compare_crops.py -N 16 -M 24 --steps 2 --data PHOTOS"
    )
    for runs in results["samplers"].values():
        (run,) = runs
        assert {"score", "score_small", "score_large", "score_halved"} <= run.keys()
        assert len(run["loss"]) == len(run["bpp"]) == 8
    assert results["samplers"]["half"] != results["samplers"]["before"]
    printed = capsys.readouterr().out.splitlines()[-4:]
    assert printed[0].startswith(
        "| crops | small | large, whole size | large, halved | all | all, λ = 0.0018 |"
    )
    assert printed[2].startswith("| every photograph at 1, 3/4, 1/2 | ")
    half = results["samplers"]["half"][0]
    cells = [half[f"score{kind}"] for kind in ("_small", "_large", "_halved", "")]
    cells += [half["loss"][index] for index in (0, 3, 7)]
    assert printed[3].endswith("".join(f" {value:.3f} |" for value in cells))

    monkeypatch.setattr(compare.train, "run_until_done", None)
    compare.main([*command, "--samplers", "before", "half"])  # nothing is left to train
    compare.main(["--results", str(tmp_path / "r.json")])
    assert capsys.readouterr().out.splitlines()[-4:] == printed


def test_samplers_differ_as_they_say(compare, data):
    from crops import CropSampler

    kept = {name: CropSampler(data, 64, **options) for name, options in compare.SAMPLERS.items()}
    widths = {name: sorted({image.shape[2] for image in s.images}) for name, s in kept.items()}
    assert widths["before"] == widths["before-half"] == [80, 120, 160, 600, 900, 1200]
    assert widths["scales"] == widths["half"] == widths["all"] == [120, 160, 300, 450, 600]
    assert [sampler.detailed_share for sampler in kept.values()] == [0, 0.5, 0, 0.5, 1, None]


def test_scores_are_of_held_out_photographs_by_source(compare, data):
    held = compare.BySource(data, None)
    assert held.kinds == ["small"] * 2 + ["large"] * 4 + ["halved"] * 3
    assert held.crops.shape == (9, 3, 64, 64) and 0 <= held.crops.min() < held.crops.max() <= 1
    whole, halved = held.crops[2], held.crops[6]  # both at the top left corner
    error = torch.nn.functional.avg_pool2d(whole, 2) - halved[:, :32, :32]
    assert error.abs().max() < 0.02 < (whole - halved).abs().max()
    with pytest.raises(ValueError, match=r"holds no photograph of held_out\.txt; name the folder of"):
        compare.BySource(data / "a", None)


def test_squares_lie_on_the_diagonal(compare):
    ramp = torch.arange(100)[None] + torch.zeros(60, 1)
    image = to_pil_image(torch.stack([ramp, torch.arange(60)[:, None] + 0 * ramp, ramp]).byte())
    x = (compare.squares(image, 3, 40) * 255).round().long()
    assert x[:, 0, 0, 0].tolist() == [0, 30, 60] and x[:, 1, 0, 0].tolist() == [0, 10, 20]
    with pytest.raises(ValueError, match=r"has \(100, 60\) pixels; give ones of at least 64"):
        compare.squares(image, 3, 64)


def test_seeds_are_averaged(compare):
    scores = dict.fromkeys(("score", "score_large", "score_halved"), 2.0)
    runs = [{"score_small": small, "loss": [1.0] * 8, **scores} for small in (1.0, 1.5)]
    lines = compare.table({"samplers": {"half": runs}}).splitlines()
    assert lines[2].startswith(f"| {compare.WORDS['half']} | 1.250 ± 0.250 | 2.000 ± 0.000 |")
    assert set(compare.WORDS) == set(compare.SAMPLERS)


def test_results_that_are_missing_are_named(compare, tmp_path):
    with pytest.raises(ValueError, match=r"r\.json is missing; measure it with --data PHOTOS"):
        compare.main(["--results", str(tmp_path / "r.json")])


def test_the_table_of_the_zoo_is_what_was_measured(compare):
    table = compare.table(json.loads(compare.RESULTS.read_text(encoding="utf-8")))
    assert table in (RECIPE.parent / "README.md").read_text(encoding="utf-8")
