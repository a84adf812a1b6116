# SPDX-License-Identifier: Apache-2.0
"""comparison/plan.py: everything it writes is of what was coded; it goes on, and names what fails."""

from __future__ import annotations

import json
from pathlib import Path

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

EVAL = Path(__file__).resolve().parents[2] / "eval"
ENTRIES = ["jpeg@10,40,80", "bmshj2018-factorized-small"]


@pytest.fixture
def compare(monkeypatch):
    monkeypatch.syspath_prepend(str(EVAL))
    from compressai_sga.comparison import plan as compare

    return compare


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "images" / "below"
    folder.mkdir(parents=True)
    for index in range(3):
        coarse = torch.rand(1, 3, 12, 12, generator=torch.Generator().manual_seed(index))
        x = nn.functional.interpolate(coarse, size=(176, 176), mode="bicubic").clamp(0, 1)
        save_image(x, folder / f"{index}.png")
    return folder.parent


def run(compare, images: Path, out: Path, *more: str, entries: list[str] = ENTRIES) -> int:
    return compare.main(["--images", str(images), "--out", str(out), "--entries", *entries, *more])


def test_everything_is_written_and_nothing_twice(compare, images, tmp_path, capsys, monkeypatch):
    out = tmp_path / "out"
    published = tmp_path / "points.json"
    points = {"bpp": [0.2, 0.5, 1.0, 3.0], "psnr-rgb": [20.0, 25.0, 30.0, 40.0]}
    published.write_text(json.dumps({"theirs": {"source": "a paper", "results": points}}))
    more = ["--published", str(published), "theirs", "--metrics", "swd", "--pictures", "1"]
    assert run(compare, images, out, *more) == 0
    printed = capsys.readouterr().out
    assert printed == (out / "table.md").read_text() and "Means over 3 images" in printed
    assert "| against jpeg |" in printed and "\n| theirs |" in printed

    written = json.loads((out / "curves" / "jpeg.json").read_text())
    assert (written["name"], written["points"], written["images"]) == ("jpeg", ["10", "40", "80"], 3)
    cells = json.loads((out / "results.json").read_text())["cells"]
    bpp = [cells[f"jpeg 40 below/{i}.png"]["values"]["bpp"] for i in range(3)]
    assert written["results"]["bpp"][1] == pytest.approx(sum(bpp) / 3, rel=1e-5)
    swd = [cells[f"jpeg {point}: set"]["values"]["swd"] for point in written["points"]]
    assert written["results"]["swd"] == pytest.approx(swd) and swd[0] > swd[2]

    plotted = parse_json_file(out / "curves" / "bmshj2018-factorized-small.json", "psnr")
    assert plotted["name"] == "bmshj2018-factorized-small" and len(plotted["xs"]) == 3
    files = [str(path) for path in (out / "curves").glob("*.json")]
    assert len(files) == 2
    plot.__main__.main(["-f", *files, "-o", str(tmp_path / "plot.png")])
    assert (tmp_path / "plot.png").stat().st_size > 1000
    for name in ("rd-psnr-rgb.png", "rd-ms-ssim-rgb.png", "rd-swd.png"):
        with Image.open(out / name) as figure:
            assert figure.width > 600
    html = (out / "report.html").read_text(encoding="utf-8")
    assert all(text in html for text in ("theirs", "bmshj2018-factorized-small", "below/0.png"))

    monkeypatch.setattr(compare.trials, "code", None)  # a second call must not measure
    monkeypatch.setattr(compare.trials, "count_macs", None)
    monkeypatch.setattr(compare.trials, "whole_set", None)
    assert run(compare, images, out, *more) == 0
    assert capsys.readouterr().out == printed


def test_only_what_is_missing_is_measured(compare, images, tmp_path, monkeypatch):
    out, coded = tmp_path / "out", []
    real = compare.trials.code
    monkeypatch.setattr(compare.trials, "code", lambda *a: coded.append(a[:3]) or real(*a))
    run(compare, images, out, "--pictures", "1", entries=["jpeg@10,40,80"])
    assert len(coded) == 9
    coded.clear()
    (out / "pictures" / "jpeg" / "40" / "below" / "0.png").unlink()
    Image.new("RGB", (176, 176)).save(images / "below" / "1.png")
    run(compare, images, out, "--pictures", "1", entries=["jpeg@10,40,80,90"])
    names = sorted((point, Path(image).stem) for _, point, image in coded)
    changed, new = [(p, "1") for p in ("10", "40", "80")], [("90", i) for i in "012"]
    assert names == sorted([("40", "0"), *changed, *new])


def test_what_fails_is_named_and_left_out_of_all_means(compare, images, tmp_path, capsys):
    (images / "broken.png").write_bytes(b"not an image")
    out = tmp_path / "out"
    assert run(compare, images, out, "--pictures", "0") == 1
    said = capsys.readouterr()
    assert "broken.png" in said.err and "Means over 3 images" in said.out
    assert json.loads((out / "curves" / "jpeg.json").read_text())["images"] == 3
    assert (
        "broken.png" in (out / "table.md").read_text() and "broken.png" in (out / "report.html").read_text()
    )


def test_an_entry_that_always_fails_does_not_stop_the_others(compare, images, tmp_path, monkeypatch, capsys):
    real = compare.trials.code

    def code(label: str, *rest: object) -> dict[str, float]:
        if label == "webp":
            raise RuntimeError("no such thing")
        return real(label, *rest)

    monkeypatch.setattr(compare.trials, "code", code)
    assert run(compare, images, tmp_path / "out", entries=["jpeg@10,40,80", "webp@10,50"]) == 1
    text = capsys.readouterr().out
    assert "left out: webp, 10: failed on 3 of 3 images" in text and "| jpeg | 10 |" in text


def test_old_values_are_not_shown_for_what_fails_now(compare, images, tmp_path, capsys):
    """An image and a checkpoint are overwritten by junk after a complete run."""
    checkpoint, out = tmp_path / "a.pth", tmp_path / "out"
    torch.save(FactorizedPrior(8, 12).state_dict(), checkpoint)
    entries = ["jpeg@10,40,80", f"bmshj2018-factorized:checkpoint={checkpoint}"]
    assert run(compare, images, out, entries=entries) == 0
    capsys.readouterr()
    checkpoint.write_bytes(b"junk")
    (images / "below" / "2.png").write_bytes(b"junk")
    assert run(compare, images, out, entries=entries) == 1
    text = capsys.readouterr().out
    assert "Means over 2 images" in text and "left out: below/2.png" in text
    assert f"left out: bmshj2018-factorized:checkpoint={checkpoint}, {checkpoint}" in text
    assert "| bmshj2018-factorized" not in text and "| jpeg | 40 |" in text


def test_another_picture_in_the_place_of_ours_is_noticed(compare, images, tmp_path, monkeypatch):
    out = tmp_path / "out"
    run(compare, images, out, "--pictures", "1", entries=["jpeg@10,40,80"])
    picture = out / "pictures" / "jpeg" / "40" / "below" / "0.png"
    before = picture.read_bytes()
    Image.new("RGB", (176, 176)).save(picture)
    run(compare, images, out, "--pictures", "1", entries=["jpeg@10,40,80"])
    assert picture.read_bytes() == before


def test_odd_images(compare, tmp_path, capsys):
    """Grey, transparent, 16 bits, tiny, flat, two of one stem: coded as RGB, refused, or without MS-SSIM."""
    folder = tmp_path / "odd"
    folder.mkdir()
    Image.new("RGB", (200, 200), (90, 90, 90)).save(folder / "flat.png")  # coded without loss: no PSNR in dB
    gradient = Image.linear_gradient("L")
    gradient.save(folder / "a.png")
    gradient.convert("RGB").save(folder / "a.jpg", quality=95)
    gradient.convert("RGBA").resize((300, 200)).save(folder / "b.png")
    gradient.resize((100, 90)).save(folder / "c.png")
    Image.new("I;16", (200, 200)).save(folder / "d.png")
    out = tmp_path / "out"
    assert run(compare, folder, out, entries=["jpeg@10,50,90"]) == 1
    said = capsys.readouterr()
    assert "mode I;16; convert it to 8 bits" in said.err and "left out: d.png" in said.out
    assert "left out: MS-SSIM: some images have sides of 160 pixels or less" in said.out
    pictures = {path.name for path in (out / "pictures" / "original").iterdir()}
    assert {"a.png", "a.jpg.png"} <= pictures and (out / "report.html").is_file()


def test_bd_rates_of_known_curves(compare):
    from compressai_sga.comparison import report

    values = {"bpp": [0.2, 0.4, 0.8, 1.6], "psnr-rgb": [28.0, 31.0, 34.0, 37.0]}
    half = {"bpp": [b / 2 for b in values["bpp"]], "psnr-rgb": values["psnr-rgb"]}
    apart = {"bpp": values["bpp"], "psnr-rgb": [48.0, 51.0, 54.0, 57.0]}
    found = [
        report.Curve(name, ("1", "2", "3", "4"), v) for name, v in (("a", values), ("b", half), ("c", apart))
    ]
    head, rows, notes = report.bd_table(report.Means(found, 1), "a")
    assert head == ["against a", "BD-rate by PSNR"]
    assert rows[0] == ["b", "-50.0 % (28 to 37 dB, 100 % of both)"] and rows[1] == ["c", "-"]
    assert len(notes) == 1 and "no dB in common" in notes[0]
    with pytest.raises(compare.SgaError, match="no curve 'd'; there are a, b, c"):
        report.bd_table(report.Means(found, 1), "d")


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
def test_wrong_use(compare, arguments, says, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(EVAL.parent)
    monkeypatch.setattr(compare.trials, "code", None)  # all of it before anything is coded
    assert compare.main([*arguments, "--out", str(tmp_path / "out")]) == 2
    assert says in capsys.readouterr().err


def test_workers_give_the_same(compare, images, tmp_path, capsys):
    for name, more in (("one", []), ("two", ["--workers", "2"])):
        assert run(compare, images, tmp_path / name, "--pictures", "1", *more) == 0

    def values(name: str) -> dict[str, dict[str, float]]:
        cells = json.loads((tmp_path / name / "results.json").read_text())["cells"]
        own = ("bpp", "psnr-rgb", "ms-ssim-rgb", "decoder_kmacs_px")
        return {cell: {k: v for k, v in found["values"].items() if k in own} for cell, found in cells.items()}

    assert values("one") == values("two")
    assert list(values("one")) == list(values("two"))
    picture = Path("pictures/jpeg/40/below/0.png")
    assert (tmp_path / "one" / picture).read_bytes() == (tmp_path / "two" / picture).read_bytes()
