# SPDX-License-Identifier: Apache-2.0
"""`bd-rate` reads what CompressAI prints and tells what `bd_rate` and `bd_psnr` do."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import pytest
from PIL import Image

from compressai_sga import zoo
from compressai_sga.__main__ import main
from compressai_sga.metrics import bd_psnr, bd_rate

pytest.importorskip("bjontegaard", reason='pip install ".[test]"')

ANCHOR = {
    "bpp": [0.1, 0.2, 0.4, 0.8],
    "psnr-rgb": [28.0, 31.0, 34.0, 37.0],
    "ms-ssim-rgb": [0.9, 0.95, 0.98, 0.99],
}
BETTER = {**ANCHOR, "bpp": [0.08, 0.15, 0.33, 0.66]}


@pytest.fixture
def save(tmp_path, monkeypatch):
    """Write results as CompressAI does; the file's name."""
    monkeypatch.chdir(tmp_path)

    def save(name: str, results: dict[str, list[float]]) -> str:
        content = {"name": "model-mse", "description": "Inference (ans)", "results": results}
        Path(name).write_text(json.dumps(content), encoding="utf-8")
        return name

    return save


def test_each_file_against_the_first(save, capsys):
    shifted = {**ANCHOR, "psnr-rgb": [q + 1 for q in ANCHOR["psnr-rgb"]]}
    files = [save("a.json", ANCHOR), save("b.json", BETTER), save("c.json", shifted)]
    assert main(["bd-rate", *files]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "b.json against a.json, by psnr-rgb:",
        f"  BD-rate  {bd_rate(ANCHOR, BETTER)}",
        f"  BD-PSNR  {bd_psnr(ANCHOR, BETTER)}",
        "c.json against a.json, by psnr-rgb:",
        f"  BD-rate  {bd_rate(ANCHOR, shifted)}",
        "  BD-PSNR  +1.00 dB (0.1 to 0.8 bpp, overlap 100 %, pchip)",
    ]


def test_one_file_against_itself_unrefined(save, capsys):
    file = save("r.json", {**BETTER, **{f"{key}-unrefined": values for key, values in ANCHOR.items()}})
    for options in ({}, {"method": "akima", "metric": "ms-ssim-rgb"}):
        arguments = [part for key, value in options.items() for part in (f"--{key}", value)]
        assert main(["bd-rate", file, *arguments]) == 0
        out = capsys.readouterr().out
        assert out.startswith("r.json against itself unrefined, by ")
        assert f"  BD-rate  {bd_rate(ANCHOR, BETTER, **options)}\n" in out
    assert f"  BD-ms-ssim-rgb  {bd_psnr(ANCHOR, BETTER, **options)}\n" in out


def test_what_stock_bench_prints(tmp_path, capsys, monkeypatch):
    (tmp_path / "images").mkdir()
    with Image.open(zoo.sample_images()[0]) as image:
        image.crop((0, 0, 192, 192)).save(tmp_path / "images" / "a.png")
    bench = importlib.import_module("compressai.utils.bench.__main__")
    files = []
    for codec in ("jpeg", "webp"):
        bench.main([codec, str(tmp_path / "images"), "-q", "10,40,70,90"])
        files.append(tmp_path / f"{codec}.json")
        files[-1].write_text(capsys.readouterr().out, encoding="utf-8")
    assert main(["bd-rate", *map(str, files)]) == 0
    rate, psnr = capsys.readouterr().out.splitlines()[1:]
    assert rate.startswith("  BD-rate  -") and psnr.startswith("  BD-PSNR  +")


def test_what_has_one_delta_or_none(save, capsys):
    above = save("above.json", {**ANCHOR, "psnr-rgb": [q + 20 for q in ANCHOR["psnr-rgb"]]})
    anchor = save("a.json", ANCHOR)
    assert main(["bd-rate", anchor, above]) == 0
    captured = capsys.readouterr()
    assert "  BD-PSNR  +20.00 dB" in captured.out and "BD-rate" not in captured.out
    assert captured.err.startswith("above.json: no BD-rate: the curves have no dB in common")
    short = save("short.json", {key: values[:2] for key, values in ANCHOR.items()})
    assert main(["bd-rate", anchor, short, save("b.json", BETTER)]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(
        "short.json: no BD-rate: the test curve has 2 points; pchip needs at least 3"
    )
    assert f"  BD-rate  {bd_rate(ANCHOR, BETTER)}\n" in captured.out  # the others are compared


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read: No such file or directory"),
        ("Using trained model", "cannot be read as JSON"),
        ("[1, 2]", "has no lists of numbers under 'results'"),
        ('{"JPEG": {"results": {"bpp": [1]}}}', "has no lists of numbers under 'results'"),
        ('{"results": {"bpp": 1, "psnr-rgb": ["x"]}}', "has no lists of numbers under 'results'"),
        ('{"results": {"bpp": [1, 2, 3]}}', "holds no unrefined curve to compare with"),
    ],
)
def test_other_files_are_refused(tmp_path, capsys, content, message):
    file = tmp_path / "x.json"
    if content is not None:
        file.write_text(content, encoding="utf-8")
    assert main(["bd-rate", str(file)]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.startswith(f"error: {file} {message}")


def test_a_missing_package_is_named(save, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "bjontegaard", None)
    assert main(["bd-rate", save("a.json", ANCHOR), save("b.json", BETTER)]) == 2
    assert "pip install 'compressai-sga[eval]'" in capsys.readouterr().err
