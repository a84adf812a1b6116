# SPDX-License-Identifier: Apache-2.0
"""comparison/page.py: a page that is whole in itself, escapes what it is given, and keeps pictures exact.

What the page does in a browser is in test_viewer.py.
"""

from __future__ import annotations

import base64
import io
import json
import math
import re
import sys
from html.parser import HTMLParser
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
import setuptools
from PIL import Image, ImageCms

from compressai_sga.comparison import page
from compressai_sga.comparison.page_data import Curve, Picture, Report, Table
from compressai_sga.errors import SgaError

pytest.importorskip("plotly", reason='pip install ".[eval]"')

ROOT = Path(__file__).resolve().parents[2]
NASTY = "<script>window.evil = 1</script><img src=x onerror='window.evil=1'>&amp;\"{{data}}%{x}\u2028é"


class Elements(HTMLParser):
    """Every element's name, attributes, and the text at its beginning."""

    def __init__(self, path: Path):
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None], list[str]]] = []
        self.inside = False
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs), []))
        self.inside = True

    def handle_endtag(self, tag):
        self.inside = False

    def handle_data(self, data):
        if self.inside:
            self.found[-1][2].append(data)

    def named(self, *tags: str) -> list[tuple[dict[str, str | None], str]]:
        return [(attrs, "".join(text)) for tag, attrs, text in self.found if tag in tags]

    def script(self, name: str) -> str:
        return next(text for attrs, text in self.named("script") if attrs.get("id") == name)

    @property
    def data(self):
        return json.loads(self.script("report"))


def photograph(seed: int, height: int = 40, width: int = 60) -> np.ndarray:
    """Smooth colours with a little noise."""
    rng = np.random.default_rng(seed)
    y, x, c = np.mgrid[:height, :width, :3]
    waves = 128 + 90 * np.sin(x / (7 + c + seed) + y / 11 + rng.uniform(0, 6))
    return np.clip(waves + rng.normal(0, 4, waves.shape), 0, 255).astype(np.uint8)


def saved(path: Path, pixels: np.ndarray, **options) -> Path:
    Image.fromarray(pixels).save(path, **options)
    return path


@pytest.fixture
def report(tmp_path):
    """Two codecs, one of them with a name that does harm; a published curve; one failure."""
    picture = [saved(tmp_path / f"{i}.png", photograph(i)) for i in range(3)]
    ours = {"psnr-rgb": [30.0, 33.5], "ms-ssim-rgb": [0.9, 0.99], "lpips": [0.3, math.nan]}
    return Report(
        title=f"Comparison {NASTY}",
        paragraphs=["Means over 2 images.", NASTY],
        curves=[
            Curve("JPEG", [0.25, 0.75], ours, points=["quality 10", "quality 50"]),
            Curve(NASTY, [0.2, 0.6], {"psnr-rgb": [31.0, 35.0]}, points=[NASTY, "b"]),
            Curve("BPG", [0.1, 9.0], {"psnr-rgb": [29.0, 55.0]}, published=True, source="a paper"),
        ],
        tables=[Table(NASTY, ["codec", "bpp"], [[NASTY, "0.5"], ["JPEG", "−1,234.5 %"], ["x", ""]])],
        pictures=[
            Picture("kodim01", "original", "", picture[0], None, {}),
            Picture("kodim01", "JPEG", "quality 10", picture[1], 0.25, {"psnr-rgb": 30.0}),
            Picture("kodim01", NASTY, NASTY, picture[2], 0.5, {"ms-ssim-rgb": 0.99}),
        ],
        failures={f"task {NASTY}": f"OSError: {NASTY}"},
    )


@pytest.fixture
def elements(report, tmp_path):
    page.write(report, tmp_path / "report.html")
    return Elements(tmp_path / "report.html")


def test_nothing_is_loaded_from_elsewhere(elements):
    policy = [attrs["content"] for attrs, _ in elements.named("meta") if "http-equiv" in attrs]
    assert len(policy) == 1 and policy[0].startswith("default-src 'none'; ")
    assert "http" not in policy[0] and "connect-src" not in policy[0] and "*" not in policy[0]
    loading = {"link", "iframe", "object", "embed", "base", "form", "img", "source", "video", "audio"}
    for tag, attrs, _ in elements.found:
        assert tag not in loading
        assert not {"src", "srcset", "action", "poster", "ping", "background", "style"} & set(attrs)
        assert not [name for name in attrs if name.startswith("on")]
        assert (attrs.get("href") or "#").startswith("#")
    own = [text for _, text in elements.named("style")]
    scripts = [text for attrs, text in elements.named("script") if "type" not in attrs]
    bundled = [text for text in scripts if "plotly.js v" in text[:300]]
    assert len(bundled) == 1 and len(bundled[0].encode()) < 5e6
    own += [text for text in scripts if text not in bundled]
    assert len(own) == 3
    for text in own:
        assert not re.search(
            r"https?:|//\w|url\(|@import|fetch\(|XMLHttp|import\(|WebSocket|sendBeacon", text
        )


def test_texts_stay_texts(elements, report):
    assert not [attrs for attrs, _ in elements.named("img")]
    scripts = [attrs.get("id") for attrs, _ in elements.named("script")]
    assert scripts == ["report", None, None, None, "picture-0", "picture-1", "picture-2"]
    assert [text for _, text in elements.named("title", "h1")] == [report.title] * 2
    assert NASTY in [text for _, text in elements.named("p")]
    assert [text for _, text in elements.named("dt", "dd")] == [f"task {NASTY}", f"OSError: {NASTY}"]
    assert NASTY in [text for _, text in elements.named("th")]
    assert elements.data["pictures"][2]["label"] == elements.data["pictures"][2]["point"] == NASTY
    trace = elements.data["figures"][0]["traces"][1]  # plotly.js reads tags
    assert "<" not in trace["name"] and trace["name"].startswith("&lt;script&gt;")
    assert re.findall("<[^>]*>", trace["text"][0]) == ["<b>", "</b>", "<br>", "<br>", "<br>"]
    assert trace["meta"] == trace["customdata"][0] == NASTY


def decoded(elements, index: int) -> tuple[str, np.ndarray]:
    head, data = elements.script(f"picture-{index}").split(",")
    image = Image.open(io.BytesIO(base64.b64decode(data, validate=True)))
    assert not {"icc_profile", "exif"} & set(image.info)
    return head, np.asarray(image.convert("RGB"))


def test_pictures_bit_by_bit(tmp_path):
    pixels = photograph(0)
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    alpha = np.dstack([pixels, np.zeros_like(pixels[..., 0])])
    palette = Image.fromarray(pixels).quantize(17)
    palette.save(tmp_path / "palette.png")
    cases = {
        saved(tmp_path / "rgb.png", pixels, icc_profile=profile): pixels,
        saved(tmp_path / "grey.png", pixels[..., 1]): np.repeat(pixels[..., 1:2], 3, axis=2),
        saved(tmp_path / "alpha.png", alpha): pixels,
        tmp_path / "palette.png": np.asarray(palette.convert("RGB")),
        saved(tmp_path / "long.png", np.zeros((1, 16384, 3), np.uint8) + 7): np.full((1, 16384, 3), 7),
    }
    pictures = [Picture("a", path.name, "", path, 1.0, {}) for path in cases]
    page.write(Report("t", [], [], [], pictures, {}), tmp_path / "out.html")
    elements = Elements(tmp_path / "out.html")
    for i, (path, expected) in enumerate(cases.items()):
        head, found = decoded(elements, i)
        kind = "png" if path.name == "long.png" else "webp"
        assert head == f"data:image/{kind};base64"
        np.testing.assert_array_equal(found, expected)
        entry = elements.data["pictures"][i]
        assert (entry["height"], entry["width"]) == expected.shape[:2]
    assert len(elements.script("picture-0")) < (tmp_path / "rgb.png").stat().st_size * 4 / 3


def test_figures(elements):
    figures = elements.data["figures"]
    assert [figure["metric"] for figure in figures] == ["psnr-rgb", "ms-ssim-rgb", "lpips"]
    jpeg, other, published = figures[0]["traces"]
    assert jpeg["x"] == [0.25, 0.75] and jpeg["y"] == [30.0, 33.5]
    assert jpeg["text"][1] == "<b>JPEG</b><br>quality 50<br>0.7500 bits per pixel<br>PSNR (RGB) 33.50 dB"
    assert jpeg["line"]["dash"] == "solid" and published["line"]["dash"] == "dot"
    red, green, blue = bytes.fromhex(published["line"]["color"][1:])
    assert max(red, green, blue) - min(red, green, blue) < 40  # nearly grey
    (similarity,) = figures[1]["traces"]
    assert similarity["y"] == pytest.approx([10, 20])
    assert similarity["text"][0].endswith("MS-SSIM (RGB) 10.00 dB (0.90000)")
    assert figures[2]["traces"][0]["y"] == [0.3, None]
    # Published points far from ours do not squeeze ours.
    assert figures[0]["rates"] == [0.2, 0.75] and max(figures[0]["range"]) < 40
    colour = {p["label"]: p["colour"] for p in elements.data["pictures"]}
    assert colour["original"] is None and colour["JPEG"] == jpeg["line"]["color"] == jpeg["marker"]["color"]
    assert colour[NASTY] == other["line"]["color"] != jpeg["line"]["color"]


def test_many_curves_differ_in_colour_or_mark(tmp_path):
    curves = [Curve(f"codec {i}", [i + 0.1], {"psnr-rgb": [30.0]}) for i in range(40)]
    page.write(Report("t", [], curves, [], [], {}), tmp_path / "out.html")
    traces = Elements(tmp_path / "out.html").data["figures"][0]["traces"]
    looks = {(trace["marker"]["color"], trace["marker"]["symbol"]) for trace in traces}
    assert len(looks) == 40


def test_lossless_and_unknown_values(tmp_path):
    values = {"psnr-rgb": [math.inf], "ms-ssim-rgb": [1.0], "new <metric>": [0.5]}
    curve = Curve("PNG", [12.0], values)
    path = saved(tmp_path / "a.png", photograph(0))
    picture = Picture("a", "PNG", "", path, 12.0, {key: value[0] for key, value in values.items()})
    page.write(Report("t", [], [curve], [], [picture], {}), tmp_path / "out.html")
    data = Elements(tmp_path / "out.html").data
    assert [figure["traces"][0]["y"] for figure in data["figures"]] == [[None], [None], [0.5]]
    assert data["pictures"][0]["facts"] == [
        "12.0000 bpp", "PSNR (RGB) ∞ dB", "MS-SSIM (RGB) ∞ dB (1.00000)", "new <metric> 0.5",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("cell", "number"),
    [("0.5", 0.5), ("−12.5 %", -12.5), ("1,234", 1234), ("1e-3 s", 1e-3), ("3.1 ± 0.2", 3.1), ("∞", math.inf)]
    + [
        ("52 kMAC/px", 52),
        ("", None),
        ("n/a", None),
        ("quality 3", None),
        ("1:80", None),
        ("2018-mean", None),
    ],
)
def test_numbers_of_tables(tmp_path, cell, number):
    rows = [["a", cell, "1"], ["b", "7" if number else "b", "fails"], ["c", "", "3"]]
    page.write(Report("t", [], [], [Table("c", ["x", "y", "z"], rows)], [], {}), tmp_path / "o.html")
    cells = Elements(tmp_path / "o.html").named("td")
    assert [text for _, text in cells] == [cell, "1", "7" if number else "b", "fails", "", "3"]
    first = cells[0][0]
    assert first.get("data-number") == (
        None if number is None else str(float(number)).replace("inf", "Infinity")
    )
    assert first.get("class") == (None if number is None else "number")
    assert cells[3][0] == {"class": "number"}  # a failure among numbers


def test_what_there_is_none_of_is_not_there(tmp_path):
    page.write(Report("t", ["words"], [], [], [], {}), tmp_path / "new" / "out.html")
    elements = Elements(tmp_path / "new" / "out.html")
    assert (tmp_path / "new" / "out.html").stat().st_size < 40_000  # no plotly.js
    assert elements.data == {"figures": [], "pictures": []}
    assert not elements.named("table", "figure", "dl", "nav")
    assert [attrs for attrs, _ in elements.named("section")] == [{"id": "viewer", "hidden": None}]


def test_refusals(report, tmp_path):
    def refused(match, **changes):
        parts = {"title": "t", "paragraphs": [], "curves": [], "tables": [], "pictures": [], "failures": {}}
        with pytest.raises(SgaError, match=match):
            page.write(Report(**{**parts, **changes}), tmp_path / "refused.html")
        assert not list(tmp_path.glob("refused*"))

    refused("1 entries of psnr-rgb for 2 rates", curves=[Curve("a", [1, 2], {"psnr-rgb": [30]})])
    refused("1 entries of points for 2 rates", curves=[Curve("a", [1, 2], {}, points=["x"])])
    refused("1 cells under 2 heads", tables=[Table("c", ["x", "y"], [["1"]])])
    refused("two pictures of 'kodim01'", pictures=[*report.pictures, report.pictures[0]])
    deep = saved(tmp_path / "deep.png", np.zeros((4, 4), np.uint16))
    refused("mode I;16", pictures=[Picture("a", "b", "", deep, 1.0, {})])


def test_without_plotly(report, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "plotly.offline", None)
    with pytest.raises(SgaError, match=r'pip install "compressai-sga\[eval\]"'):
        page.write(report, tmp_path / "report.html")
    page.write(Report("t", [], [], report.tables, report.pictures, {}), tmp_path / "report.html")


def test_a_broken_write_leaves_the_old_file(report, tmp_path, monkeypatch):
    (tmp_path / "report.html").write_text("old")
    monkeypatch.setattr(page, "_lossless", lambda image: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        page.write(report, tmp_path / "report.html")
    assert (tmp_path / "report.html").read_text() == "old"
    assert [path.name for path in tmp_path.glob("report*")] == ["report.html"]


def test_what_the_page_is_made_of_is_in_the_wheel(monkeypatch):
    """Every file below the package that is neither Python nor C++ is in package_data."""
    monkeypatch.chdir(ROOT)
    build = setuptools.distutils.core.run_setup("setup.py", stop_after="init").get_command_obj("build_py")
    build.ensure_finalized()
    packed = {str(Path(source, name)) for _, source, _, names in build.data_files for name in names}
    files = [p for p in Path("compressai_sga").rglob("*") if p.is_file() and "__pycache__" not in p.parts]
    built = {".py", ".cpp", ".hpp", ".so", ".pyd"}
    assert packed == {str(path) for path in files if path.suffix not in built}
    for name in ("page.html", "viewer.js"):
        assert str(Path("compressai_sga", "comparison", name)) in packed
        assert (resources.files("compressai_sga.comparison") / name).is_file()
