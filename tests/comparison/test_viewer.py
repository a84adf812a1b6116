# SPDX-License-Identifier: Apache-2.0
"""The report of comparison/page.py in a real browser: figures, tables, and the picture viewer.

Pictures are compared with what the browser shows, pixel by pixel. Needs Chromium, its driver and selenium.
"""

from __future__ import annotations

import json
import shutil
from urllib.parse import urlencode

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("plotly", reason='pip install ".[eval]"')
webdriver = pytest.importorskip("selenium.webdriver", reason="pip install selenium")
from selenium.webdriver.common.action_chains import ActionChains  # noqa: E402
from selenium.webdriver.common.actions.wheel_input import ScrollOrigin  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402

from compressai_sga.comparison.page import write  # noqa: E402
from compressai_sga.comparison.page_data import Curve, Picture, Report, Table  # noqa: E402
from tests.comparison.compare_page import Page  # noqa: E402

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DRIVER = shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(not CHROMIUM or not DRIVER, reason="no Chromium with chromedriver in PATH")

NASTY = "<script>window.evil = 1</script><img src=x onerror='window.evil=1'>&\""
SIZES = {"one": (80, 120), "two": (140, 90)}  # height, width


@pytest.fixture(scope="module")
def pixels():
    """By image, label and point; the last of image "two" is smaller than the others."""
    rng = np.random.default_rng(1)
    names = {
        "one": [("original", ""), ("JPEG", "10"), ("JPEG", "50"), (NASTY, NASTY)],
        "two": [("original", ""), ("JPEG", "50"), ("small", "")],
    }
    return {
        (image, label, point): rng.integers(0, 256, (*SIZES[image], 3), dtype=np.uint8)[
            : 64 if label == "small" else None
        ]
        for image, entries in names.items()
        for label, point in entries
    }


@pytest.fixture(scope="module")
def site(tmp_path_factory, pixels):
    """The report, one without pictures and one with a single picture."""
    folder = tmp_path_factory.mktemp("site")
    pictures = []
    for i, ((image, label, point), array) in enumerate(pixels.items()):
        Image.fromarray(array).save(folder / f"{i}.png")
        bpp = None if label == "original" else 0.25 * (i + 1)
        values = {} if bpp is None else {"psnr-rgb": 30.0 + i, "ms-ssim-rgb": 0.9}
        pictures.append(Picture(image, label, point, folder / f"{i}.png", bpp, values))
    curves = [
        Curve("JPEG", [0.5, 1.0], {"psnr-rgb": [30, 34], "lpips": [0.3, 0.1]}, points=["10", "50"]),
        Curve(NASTY, [0.25, 0.75], {"psnr-rgb": [28, 33]}, points=["a", NASTY]),
        Curve("BPG", [0.2, 0.6, 9], {"psnr-rgb": [29, 35, 50]}, published=True, source="a paper"),
    ]
    rows = [["b", "10", "x"], [NASTY, "9.5", "" ], ["a", "−1,000", "y"], ["c", "", ""]]  # fmt: skip
    table = Table("Means", ["codec", "bpp", "note"], rows)
    write(Report("Report", [NASTY], curves, [table], pictures, {NASTY: NASTY}), folder / "all.html")
    write(Report("Report", [], curves, [], [], {}), folder / "none.html")
    write(Report("Report", [], [], [], pictures[1:2], {}), folder / "single.html")
    return folder


@pytest.fixture(scope="module")
def driver():
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for argument in (
        "headless=new", "no-sandbox", "disable-dev-shm-usage", "hide-scrollbars", "window-size=1200,1000",
        "force-device-scale-factor=1", "force-color-profile=srgb", "disable-gpu",
    ):  # fmt: skip
        options.add_argument(f"--{argument}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(executable_path=DRIVER))
    yield driver
    driver.quit()


@pytest.fixture
def page(driver, site):
    driver.get_log("browser"), driver.get_log("performance")
    yield Page(driver, site)
    assert driver.get_log("browser") == []
    entries = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
    requests = [e["params"]["request"]["url"] for e in entries if e["method"] == "Network.requestWillBeSent"]
    pages = tuple(path.as_uri() for path in site.glob("*.html"))
    assert [url for url in requests if not url.startswith((*pages, "data:", "blob:", "about:"))] == []
    assert any(url.startswith(pages) for url in requests)  # or the log says nothing
    assert driver.execute_script("return window.evil === undefined")


def check(page: Page, left: np.ndarray, right: np.ndarray) -> None:
    """Left of the border lies the one picture, right of it the other; both exact and in one place."""
    found, across = page.seen(left.shape)
    slider, known = float(page.view["slider"]), ~np.isnan(found[..., 0])
    sides = ((across < slider - 2, left), (across > slider + 2, right))  # the line itself is 2 px wide
    handle = np.abs(across - slider) < 3
    for side, expected in sides:
        where = known & (side & ~handle)[None, :]
        assert where.sum() > 300
        np.testing.assert_array_equal(found[where], expected[where])


ONE = {"image": "one", "left": "original", "left-point": "", "right": "JPEG", "right-point": "50"}
NEAR = {**ONE, "zoom": "16", "x": "61.25", "y": "38.5", "slider": "40", "difference": "0"}


def test_both_sides_are_exact_in_one_place(page, pixels):
    page.open(**NEAR)
    assert page.shows("original", "JPEG, 50")
    original, jpeg = pixels["one", "original", ""], pixels["one", "JPEG", "50"]
    page.keys(Keys.ARROW_RIGHT)  # writes the address
    assert page.view == {**NEAR, "slider": "42"}
    check(page, original, jpeg)
    page.choose("left", NASTY)
    assert page.shows(f"{NASTY}, {NASTY}", "JPEG, 50")
    check(page, pixels["one", NASTY, NASTY], jpeg)
    assert page.part("left-caption").text.startswith(f"{NASTY}, {NASTY}")
    page.click('[data-part="swap"]')
    assert page.shows("JPEG, 50", f"{NASTY}, {NASTY}")
    check(page, jpeg, pixels["one", NASTY, NASTY])
    facts = page.part("left-caption").text.split("\n")
    assert " ".join(facts) == "JPEG, 50 0.7500 bpp PSNR (RGB) 32.00 dB MS-SSIM (RGB) 10.00 dB (0.90000)"


def test_space_flips_while_it_is_held(page, pixels):
    page.open(**NEAR)
    assert page.shows("original", "JPEG, 50")
    original, jpeg = pixels["one", "original", ""], pixels["one", "JPEG", "50"]
    page.keys(Keys.ARROW_LEFT)
    check(page, original, jpeg)
    ActionChains(page.driver).key_down(Keys.SPACE).perform()
    check(page, jpeg, original)
    assert page.part("left-caption").text.startswith("JPEG, 50")
    ActionChains(page.driver).key_up(Keys.SPACE).perform()
    check(page, original, jpeg)


def test_address_restores_the_view(page):
    page.open(**{**NEAR, "difference": "4", "slider": "13.5"})
    assert page.shows("original", "JPEG, 50")
    assert page.slider == pytest.approx(13.5, abs=0.5)
    assert page.part("difference").get_attribute("value") == "4"
    before = page.screen()
    page.keys("d", "d", Keys.ARROW_RIGHT)
    written = page.view
    assert written == {**NEAR, "difference": "8", "slider": "15.5"}
    after = page.screen()
    assert (before != after).any()
    page.open(**written)
    assert page.shows("original", "JPEG, 50")
    np.testing.assert_array_equal(page.screen(), after)
    page.run("location.hash = arguments[0]", urlencode({**NEAR, "right-point": "10"}))
    assert page.shows("original", "JPEG, 10")


def test_nonsense_in_the_address_does_no_harm(page):
    page.open(image="none", left="nothing", right="JPEG", zoom="-3", x="a", slider="900", difference="x")
    assert page.shows("original", "JPEG, 10")
    assert page.slider == 100
    assert "nothing is missing for this image" in page.part("status").text


def test_slider(page):
    page.open(**{**ONE, "zoom": "fit", "slider": "50"})
    assert page.shows("original", "JPEG, 50")
    page.keys(Keys.ARROW_RIGHT, Keys.ARROW_RIGHT, Keys.ARROW_UP)
    assert page.slider == 56
    page.keys(Keys.ARROW_LEFT, Keys.ARROW_DOWN)
    assert page.slider == 52
    page.keys(Keys.HOME)
    assert page.slider == 0
    page.keys(Keys.END)
    assert page.slider == 100
    page.click('[data-zoom="8"]')
    wide = page.part("stage").size["width"]
    drag = ActionChains(page.driver, duration=50).move_to_element(page.part("stage"))
    drag.move_by_offset(wide // 2 - 3, 40).click_and_hold().move_by_offset(-wide // 4, 10).release().perform()
    assert page.slider == pytest.approx(75, abs=1)


def touch(page: Page, kind: str, *points: tuple[float, float]) -> None:
    places = [{"x": x, "y": y, "id": i} for i, (x, y) in enumerate(points)]
    page.driver.execute_cdp_cmd("Input.dispatchTouchEvent", {"type": kind, "touchPoints": places})


def test_touch(page):
    page.open(**NEAR)
    assert page.shows("original", "JPEG, 50")
    page.run("document.querySelector('.stage').scrollIntoView({block: 'center'})")
    box = page.run("return document.querySelector('.stage').getBoundingClientRect().toJSON()")
    at = lambda x, y: (box["left"] + x * box["width"], box["top"] + y * box["height"])  # noqa: E731
    touch(page, "touchStart", at(0.4, 0.3))
    touch(page, "touchMove", at(0.6, 0.3))
    touch(page, "touchMove", at(0.7, 0.3))
    touch(page, "touchEnd")
    assert page.slider == 70
    touch(page, "touchStart", at(0.3, 0.5), at(0.5, 0.5))
    touch(page, "touchMove", at(0.2, 0.5), at(0.6, 0.5))
    touch(page, "touchEnd")
    assert float(page.view["zoom"]) == pytest.approx(32, rel=0.02)  # twice as far apart


def place(page: Page, x: float, y: float) -> tuple[float, float]:
    """The place in the picture under a place of the stage, from its middle."""
    view = page.view
    return float(view["x"]) + x / float(view["zoom"]), float(view["y"]) + y / float(view["zoom"])


def test_zoom(page):
    page.open(**NEAR)
    assert page.shows("original", "JPEG, 50")
    page.keys(Keys.ARROW_RIGHT)
    before = place(page, 150, -80)
    origin = ScrollOrigin.from_element(page.part("stage"), 150, -80)
    ActionChains(page.driver).scroll_from_origin(origin, 0, -200).perform()
    assert float(page.view["zoom"]) > 20
    assert place(page, 150, -80) == pytest.approx(before, abs=0.02)
    for label, zoom in (("1", 1), ("2", 2), ("4", 4), ("8", 8)):
        page.click(f'[data-zoom="{label}"]')
        assert float(page.view["zoom"]) == zoom
        rendering = page.run("return getComputedStyle(document.querySelector('.layer img')).imageRendering")
        assert rendering == ("pixelated" if zoom >= 2 else "auto")
        widths = page.run(
            "return [...document.querySelectorAll('.layer img')].map((i) => i.getBoundingClientRect().width)"
        )
        assert widths == [120 * zoom] * 2
    page.click('[data-zoom="fit"]')
    assert page.view["zoom"] == "fit"
    box, stage = (page.run(f"return document.querySelector('{name}').getBoundingClientRect().toJSON()")
                  for name in (".layer img", ".stage"))  # fmt: skip
    assert box["height"] <= stage["height"] + 1 and box["width"] <= stage["width"] + 1
    assert box["height"] > stage["height"] - 1 or box["width"] > stage["width"] - 1
    page.keys("4")
    assert page.view["zoom"] == "4"
    page.keys("+", "+")
    assert float(page.view["zoom"]) == pytest.approx(8)


def test_drag_and_keys_move_the_picture(page, pixels):
    page.open(**NEAR)
    assert page.shows("original", "JPEG, 50")
    drag = ActionChains(page.driver, duration=50).move_to_element_with_offset(page.part("stage"), 200, 50)
    drag.click_and_hold().move_by_offset(64, -32).release().perform()
    view = page.view
    assert (float(view["x"]), float(view["y"])) == pytest.approx((61.25 - 4, 38.5 + 2))
    check(page, pixels["one", "original", ""], pixels["one", "JPEG", "50"])
    page.driver.switch_to.active_element.send_keys(Keys.SHIFT, Keys.ARROW_LEFT)
    assert float(page.view["x"]) == pytest.approx(61.25 - 4 - 60 / 16)
    for _ in range(30):
        page.keys(Keys.SHIFT, Keys.ARROW_LEFT)
    wide = page.part("stage").size["width"]
    assert float(page.view["x"]) == pytest.approx(wide / 32, abs=0.05)  # its edge at the edge of the stage


def test_difference(page, pixels):
    page.open(**NEAR)
    assert page.shows("original", "JPEG, 50")
    page.choose("difference", "amplified 4×")
    difference = np.abs(pixels["one", "original", ""].astype(int) - pixels["one", "JPEG", "50"])
    found, _ = page.seen(difference.shape)
    known = ~np.isnan(found[..., 0])
    assert known.sum() > 1000
    np.testing.assert_array_equal(found[known], np.minimum(4 * difference, 255)[known])
    expected = f"|left − right| × 4: mean {difference.mean():.2f}, largest {difference.max()} of 255"
    assert page.part("zoom-text").text.startswith(expected)


def test_other_image_other_size_and_missing_pictures(page, pixels):
    page.open(**{**NEAR, "left": "JPEG", "left-point": "10", "right": NASTY, "right-point": NASTY})
    assert page.shows("JPEG, 10", f"{NASTY}, {NASTY}")
    page.choose("image", "two")
    assert page.shows("JPEG, 50", "JPEG, 50")  # the codec's only point; the first coded picture
    assert "JPEG, 10 is missing for this image" in page.part("status").text
    page.choose("left", "original")
    page.choose("right", "small")
    assert page.shows("original", "small")
    page.click('[data-zoom="8"]')
    page.keys(Keys.ARROW_LEFT)
    found, across = page.seen(SIZES["two"])
    known = ~np.isnan(found[..., 0]) & (across > float(page.view["slider"]) + 4)[None, :]
    known[64:] = False  # the small picture ends
    assert known.sum() > 100
    np.testing.assert_array_equal(
        found[known], np.pad(pixels["two", "small", ""], ((0, 76), (0, 0), (0, 0)))[known]
    )
    assert page.part("right-caption").text.endswith("90 × 64")
    page.choose("difference", "1×")
    assert page.run("const c = document.querySelector('canvas'); return [c.width, c.height]") == [90, 64]
    page.keys(Keys.PAGE_DOWN)
    assert page.until(lambda: page.part("image").get_attribute("value") == "0")


def test_figures(page):
    page.open()
    assert page.until(lambda: len(page.driver.find_elements(By.CSS_SELECTOR, ".plot .main-svg .trace")) == 4)
    traces = "return [...document.querySelectorAll('.plot')].map((p) => p.querySelectorAll('.trace').length)"
    assert page.run(traces) == [3, 1]
    page.click('input[data-curve="0"]')
    assert page.run(traces) == [2, 0]
    page.click('input[data-curve="0"]')
    ticks = "return [...document.querySelectorAll('.plot .xtick text')].map((t) => t.textContent)"
    linear = page.run(ticks)
    page.click('input[value="log"]')
    assert set(page.run(ticks)) == {"0.5", "1"} != set(linear)
    # A click on a point shows its picture to the right.
    trace = page.driver.find_elements(By.CSS_SELECTOR, ".plot .trace")[1]
    point = trace.find_elements(By.CSS_SELECTOR, ".point")[1]
    page.run("arguments[0].scrollIntoView({ block: 'center' })", point)
    ActionChains(page.driver).move_to_element(point).pause(0.3).perform()
    hover = page.run("return document.querySelector('.hoverlayer').textContent")
    assert NASTY in hover and "0.7500 bits per pixel" in hover and "PSNR (RGB) 33.00 dB" in hover
    ActionChains(page.driver).click().perform()
    assert page.shows("original", f"{NASTY}, {NASTY}")


def test_tables_are_sorted(page):
    page.open()
    column = "return [...document.querySelectorAll('tbody tr')].map((r) => r.cells[arguments[0]].textContent)"
    page.click("th:nth-child(2) button")
    assert page.run(column, 1) == ["−1,000", "9.5", "10", ""]
    page.click("th:nth-child(2) button")
    assert page.run(column, 1) == ["10", "9.5", "−1,000", ""]
    assert page.run("return document.querySelector('th:nth-child(2)').ariaSort") == "descending"
    page.click("th:nth-child(1) button")
    assert page.run(column, 0) == [NASTY, "a", "b", "c"]


def test_few_pictures_and_a_narrow_dark_screen(page, pixels):
    page.open("none")
    assert page.driver.find_elements(By.CSS_SELECTOR, ".plot .trace")
    assert not page.driver.find_element(By.ID, "viewer").is_displayed()
    page.open("single")
    assert page.shows("JPEG, 10", "JPEG, 10")
    assert not page.part("next").is_enabled()
    metrics = {"width": 390, "height": 844, "deviceScaleFactor": 2, "mobile": True}
    page.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    dark = [{"name": "prefers-color-scheme", "value": "dark"}]
    page.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": dark})
    try:
        page.open(**ONE)
        assert page.shows("original", "JPEG, 50")
        assert page.run("return document.documentElement.scrollWidth") <= 390
        assert page.run("return getComputedStyle(document.body).backgroundColor") == "rgb(21, 24, 28)"
        page.click('[data-zoom="1"]')  # one pixel of the screen for each of the picture
        assert page.run("return document.querySelector('.layer img').getBoundingClientRect().width") == 60
    finally:
        page.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        page.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
