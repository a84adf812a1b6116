# SPDX-License-Identifier: Apache-2.0
"""comparison/plan.py: everything it writes is of what was coded; it goes on, and names what fails."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from compressai.models import FactorizedPrior
from compressai.utils import plot
from compressai.utils.plot.__main__ import parse_json_file
from PIL import Image
from torch import nn
from torchvision.utils import save_image

pytest.importorskip("matplotlib", reason='pip install ".[eval]"')
pytest.importorskip("plotly", reason='pip install ".[eval]"')

from compressai_sga.comparison import plan, report, trials  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
JPEG = ["jpeg@10,40,80"]


@pytest.fixture(scope="module")
def originals(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    (folder / "below").mkdir()
    for index in range(3):
        coarse = torch.rand(1, 3, 12, 12, generator=torch.Generator().manual_seed(index))
        x = nn.functional.interpolate(coarse, size=(176, 176), mode="bicubic").clamp(0, 1)
        save_image(x, folder / "below" / f"{index}.png")
    return folder


@pytest.fixture
def images(originals, tmp_path) -> Path:
    """A copy of them to be changed."""
    return Path(shutil.copytree(originals, tmp_path / "images"))


@pytest.fixture
def no_figures(monkeypatch):
    for name in ("figure", "save_figure"):
        monkeypatch.setattr(report, name, lambda *_: None)


def run(images: Path, out: Path, *more: str, entries: list[str] = JPEG) -> int:
    return plan.main(["--images", str(images), "--out", str(out), "--entries", *entries, *more])


@pytest.fixture(scope="module")
def complete(originals, tmp_path_factory) -> SimpleNamespace:
    """A comparison with all that there is: what it was told, its folder, what it printed."""
    folder = tmp_path_factory.mktemp("complete")
    published = folder / "points.json"
    points = {"bpp": [0.2, 0.5, 1.0, 3.0], "psnr-rgb": [20.0, 25.0, 30.0, 40.0]}
    published.write_text(json.dumps({"theirs": {"source": "a paper", "results": points}}))
    more = ("--published", str(published), "theirs", "--metrics", "swd", "--pictures", "1")
    entries = [*JPEG, "bmshj2018-factorized-small@1"]
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        assert run(originals, folder / "out", *more, entries=entries) == 0
    return SimpleNamespace(out=folder / "out", more=more, entries=entries, printed=printed.getvalue())


def test_everything_is_written(complete, tmp_path):
    out = complete.out
    assert complete.printed == (out / "table.md").read_text() and "Means over 3 images" in complete.printed
    assert "| against jpeg |" in complete.printed and "\n| theirs |" in complete.printed

    written = json.loads((out / "curves" / "jpeg.json").read_text())
    assert (written["name"], written["points"], written["images"]) == ("jpeg", ["10", "40", "80"], 3)
    cells = json.loads((out / "results.json").read_text())["cells"]
    bpp = [cells[f"jpeg 40 below/{i}.png"]["values"]["bpp"] for i in range(3)]
    assert written["results"]["bpp"][1] == pytest.approx(sum(bpp) / 3, rel=1e-5)
    swd = [cells[f"jpeg {point}: set"]["values"]["swd"] for point in written["points"]]
    assert written["results"]["swd"] == pytest.approx(swd) and swd[0] > swd[2]

    plotted = parse_json_file(out / "curves" / "bmshj2018-factorized-small.json", "psnr")
    assert plotted["name"] == "bmshj2018-factorized-small" and len(plotted["xs"]) == 1
    files = [str(path) for path in (out / "curves").glob("*.json")]
    assert len(files) == 2
    plot.__main__.main(["-f", *files, "-o", str(tmp_path / "plot.png")])
    assert (tmp_path / "plot.png").stat().st_size > 1000
    for name in ("rd-psnr-rgb.png", "rd-ms-ssim-rgb.png", "rd-swd.png"):
        with Image.open(out / name) as figure:
            assert figure.width > 600
    html = (out / "report.html").read_text(encoding="utf-8")
    assert all(text in html for text in ("theirs", "bmshj2018-factorized-small", "below/0.png"))


def test_nothing_is_measured_twice(complete, originals, capsys, monkeypatch, no_figures):
    for name in ("code", "count_macs", "whole_set"):
        monkeypatch.setattr(trials, name, None)
    assert run(originals, complete.out, *complete.more, entries=complete.entries) == 0
    assert capsys.readouterr().out == complete.printed


def test_workers_give_the_same(complete, originals, tmp_path, monkeypatch, no_figures):
    """A result and its picture are lost; another process measures them again, and puts them there."""
    out = Path(shutil.copytree(complete.out, tmp_path / "out"))
    content = json.loads((out / "results.json").read_text())
    before, lost = dict(content["cells"]), "bmshj2018-factorized-small 1 below/0.png"
    del content["cells"][lost]
    (out / "results.json").write_text(json.dumps(content))
    picture = out / "pictures" / "bmshj2018-factorized-small" / "1" / "below" / "0.png"
    expected = picture.read_bytes()
    picture.unlink()
    monkeypatch.setattr(trials, "_model", None)  # not in this process
    assert run(originals, out, *complete.more, "--workers", "2", entries=complete.entries) == 0
    after = json.loads((out / "results.json").read_text())["cells"]
    names = [[name for name in cells if name.endswith("png")] for cells in (before, after)]
    assert names[0] == names[1] and picture.read_bytes() == expected
    for key in ("bpp", "psnr-rgb", "ms-ssim-rgb", "picture"):
        assert after[lost]["values"][key] == before[lost]["values"][key]
    del before[lost], after[lost]
    assert after == before


def test_only_what_is_missing_is_measured(images, tmp_path, monkeypatch, no_figures):
    out, coded = tmp_path / "out", []
    real = trials.code
    monkeypatch.setattr(trials, "code", lambda *a: coded.append(a[:3]) or real(*a))
    run(images, out, "--pictures", "1")
    assert len(coded) == 9
    coded.clear()
    (out / "pictures" / "jpeg" / "40" / "below" / "0.png").unlink()
    Image.new("RGB", (176, 176)).save(images / "below" / "1.png")
    run(images, out, "--pictures", "1", entries=["jpeg@10,40,80,90"])
    names = sorted((point, Path(image).stem) for _, point, image in coded)
    changed, new = [(p, "1") for p in ("10", "40", "80")], [("90", i) for i in "012"]
    assert names == sorted([("40", "0"), *changed, *new])


def test_an_entry_that_always_fails_does_not_stop_the_others(
    originals, tmp_path, monkeypatch, capsys, no_figures
):
    real = trials.code

    def code(label: str, *rest: object) -> dict[str, float]:
        if label == "webp":
            raise RuntimeError("no such thing")
        return real(label, *rest)

    monkeypatch.setattr(trials, "code", code)
    assert run(originals, tmp_path / "out", entries=[*JPEG, "webp@10,50"]) == 1
    text = capsys.readouterr().out
    assert "left out: webp, 10: failed on 3 of 3 images" in text and "| jpeg | 10 |" in text


def test_old_values_are_not_shown_for_what_fails_now(images, tmp_path, capsys, no_figures):
    """An image and a checkpoint are overwritten by junk after a complete run."""
    checkpoint, out = tmp_path / "a.pth", tmp_path / "out"
    torch.save(FactorizedPrior(8, 12).state_dict(), checkpoint)
    entries = [*JPEG, f"bmshj2018-factorized:checkpoint={checkpoint}"]
    assert run(images, out, entries=entries) == 0
    capsys.readouterr()
    checkpoint.write_bytes(b"junk")
    (images / "below" / "2.png").write_bytes(b"junk")
    assert run(images, out, entries=entries) == 1
    text = capsys.readouterr().out
    assert "Means over 2 images" in text and "left out: below/2.png" in text
    assert f"left out: bmshj2018-factorized:checkpoint={checkpoint}, {checkpoint}" in text
    assert "| bmshj2018-factorized" not in text and "| jpeg | 40 |" in text


def test_another_picture_in_the_place_of_ours_is_noticed(images, tmp_path, monkeypatch, no_figures):
    out = tmp_path / "out"
    run(images, out, "--pictures", "1")
    picture = out / "pictures" / "jpeg" / "40" / "below" / "0.png"
    before = picture.read_bytes()
    Image.new("RGB", (176, 176)).save(picture)
    run(images, out, "--pictures", "1")
    assert picture.read_bytes() == before


def test_odd_images(tmp_path, capsys, no_figures):
    """Grey, transparent, tiny, flat, two of one stem: coded as RGB. 16 bits a channel, broken: named."""
    folder = tmp_path / "odd"
    folder.mkdir()
    Image.new("RGB", (200, 200), (90, 90, 90)).save(folder / "flat.png")  # coded without loss: no PSNR in dB
    gradient = Image.linear_gradient("L")
    gradient.save(folder / "a.png")
    gradient.convert("RGB").save(folder / "a.jpg", quality=95)
    gradient.convert("RGBA").resize((300, 200)).save(folder / "b.png")
    gradient.resize((100, 90)).save(folder / "c.png")
    Image.new("I;16", (200, 200)).save(folder / "d.png")
    (folder / "broken.png").write_bytes(b"not an image")
    out = tmp_path / "out"
    assert run(folder, out, entries=["jpeg@10,50,90"]) == 1
    said = capsys.readouterr()
    assert "mode I;16; convert it to 8 bits" in said.err and "left out: d.png" in said.out
    assert "broken.png" in said.err and "Means over 5 images" in said.out
    assert json.loads((out / "curves" / "jpeg.json").read_text())["images"] == 5
    assert all("broken.png" in (out / name).read_text("utf-8") for name in ("table.md", "report.html"))
    assert "left out: MS-SSIM: some images have sides of 160 pixels or less" in said.out
    pictures = {path.name for path in (out / "pictures" / "original").iterdir()}
    assert {"a.png", "a.jpg.png"} <= pictures


def test_images_whose_names_differ_by_a_suffix_keep_their_own_pictures(tmp_path, monkeypatch, no_figures):
    """Both in one file would be measured again by every run."""
    folder, out, coded = tmp_path / "in", tmp_path / "out", []
    folder.mkdir()
    for name, grey in (("a.jpg", 10), ("a.jpg.png", 90), ("a.png", 170)):
        Image.new("RGB", (24, 24), (grey,) * 3).save(folder / name)
    real = trials.code
    monkeypatch.setattr(trials, "code", lambda *a: coded.append(a[2]) or real(*a))
    for _ in range(2):
        assert run(folder, out, "--pictures", "3", entries=["jpeg@50"]) == 0
    assert len(coded) == 3
    assert len(list((out / "pictures" / "jpeg" / "50").iterdir())) == 3


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--images", "nowhere"], "there is no folder nowhere"),
        (["--entries", "jpg"], "no model or codec is called 'jpg'"),
        (["--entries", "jpeg@5", "jpeg@6"], "all its points after one @"),
        (["--metrics", "beauty"], "there is no beauty; there are"),
        (["--published", "nothing.json"], "no file nothing.json"),
        (["--entries", "jpeg@10", "--anchor", "x"], "no curve 'x'; there are jpeg"),
        (["--published", "pyproject.toml"], "no JSON file of published points"),
    ],
)
def test_wrong_use(arguments, says, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(trials, "code", None)  # all of it before anything is coded
    assert plan.main([*arguments, "--out", str(tmp_path / "out")]) == 2
    assert says in capsys.readouterr().err
