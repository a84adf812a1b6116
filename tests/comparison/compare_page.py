# SPDX-License-Identifier: Apache-2.0
"""The report of comparison/page.py as its reader has it before them, for test_viewer.py.

In: a selenium driver and the folder of the reports. Out: what a reader does, and what the screen then shows.
"""

from __future__ import annotations

import io
import time
from pathlib import Path
from urllib.parse import parse_qsl, urlencode

import numpy as np
from PIL import Image
from selenium.webdriver.common.by import By

__all__ = ["Page"]


class Page:
    """What a reader does and sees."""

    def __init__(self, driver, site: Path):
        self.driver, self.site = driver, site

    def open(self, name: str = "all", **view) -> Page:
        self.driver.get("about:blank")  # another hash alone would not load the page again
        self.driver.get(f"{(self.site / name).as_uri()}.html#{urlencode(view)}")
        return self

    def run(self, script: str, *arguments):
        return self.driver.execute_script(script, *arguments)

    def part(self, name: str):
        return self.driver.find_element(By.CSS_SELECTOR, f'[data-part="{name}"]')

    def click(self, selector: str) -> None:
        self.driver.find_element(By.CSS_SELECTOR, selector).click()

    def keys(self, *keys: str) -> None:
        self.part("handle").send_keys(*keys)

    def choose(self, name: str, text: str) -> None:
        options = self.part(name).find_elements(By.TAG_NAME, "option")
        next(option for option in options if option.text.startswith(text)).click()

    def until(self, condition, seconds: float = 5.0):
        end = time.monotonic() + seconds
        while not (result := condition()) and time.monotonic() < end:
            time.sleep(0.02)
        return result

    def shows(self, left: str, right: str) -> bool:
        """Whether these pictures are on the screen (or come to it)."""
        script = "return [...document.querySelectorAll('.layer img')].map((img) => img.alt)"
        return self.until(lambda: self.run(script) == [left, right])

    @property
    def view(self) -> dict[str, str]:
        """The address, once it has followed."""
        time.sleep(0.3)
        return dict(parse_qsl(self.run("return location.hash.slice(1)"), keep_blank_values=True))

    @property
    def slider(self) -> float:
        return float(self.part("handle").get_attribute("aria-valuenow"))

    def screen(self) -> np.ndarray:
        """The pixels of the stage."""
        self.run("document.querySelector('.stage').scrollIntoView({ block: 'center' })")
        png = self.part("stage").screenshot_as_png
        return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))

    def seen(self, shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
        """What the screen shows at the middle of each picture pixel, by the address; nan off the stage.

        Returns:
            colours (height, width, 3), and where each pixel lies across the stage in per cent (width,)
        """
        view, screen = self.view, self.screen()
        zoom, (high, wide) = float(view["zoom"]), screen.shape[:2]
        x = wide / 2 + (np.arange(shape[1]) + 0.5 - float(view["x"])) * zoom
        y = high / 2 + (np.arange(shape[0]) + 0.5 - float(view["y"])) * zoom
        inside = ((y >= 2) & (y < high - 2))[:, None] & ((x >= 2) & (x < wide - 2))[None, :]
        found = screen[np.clip(y, 0, high - 1).astype(int)][:, np.clip(x, 0, wide - 1).astype(int)].astype(
            float
        )
        found[~inside] = np.nan
        return found, 100 * x / wide
