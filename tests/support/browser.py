"""A headless Chromium and the page used as by a person; `python -m tests.support.browser FILE.png` photographs it.

The picture is that of docs/serving.md.
"""

from __future__ import annotations

import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any

from PIL import Image

SECONDS = 120  # a machine with other work is slow


def missing() -> str | None:
    """Return why there is no browser to test with, None where there is one."""
    for name, package in (("chromium", "chromium"), ("chromedriver", "chromium-driver")):
        if shutil.which(name) is None:
            return f"no {name}: apt-get install {package}"
    return None


@contextmanager
def chromium(width: int = 1280, height: int = 900) -> Iterator[Any]:
    """Yield selenium's driver of a browser that keeps a log of its console."""
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    profile = tempfile.TemporaryDirectory(prefix="chromium-", ignore_cleanup_errors=True)
    for argument in (
        "--headless=new",
        "--no-sandbox",  # CI runs as root
        "--disable-dev-shm-usage",
        "--disable-gpu",
        "--hide-scrollbars",
        f"--window-size={width},{height}",
        f"--user-data-dir={profile.name}",
    ):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
    try:
        yield driver
    finally:
        driver.quit()
        profile.cleanup()


def until(driver: Any, what: Any) -> Any:
    """Return what a function of the driver gives as soon as it is true."""
    from selenium.webdriver.support.ui import WebDriverWait

    return WebDriverWait(driver, SECONDS, poll_frequency=0.1).until(what)


def one(driver: Any, selector: str) -> Any:
    """Return the first element of a CSS selector, as soon as it is there."""
    return until(driver, lambda found: next(iter(found.find_elements("css selector", selector)), None))


def fill(driver: Any, selector: str, text: str) -> None:
    """Type a text in place of what is in a field."""
    field = one(driver, f"{selector} textarea, {selector} input")
    field.clear()
    field.send_keys(text)


def segmented(driver: Any, address: str, photograph: Path, words: str) -> list[str]:
    """Open the page, choose a photograph, type words, press the button, and return the entries of the list."""
    driver.get(address)
    one(driver, "#ov-image input[type=file]").send_keys(str(photograph))
    one(driver, "#ov-image img")
    fill(driver, "#ov-words", words)
    one(driver, "#ov-go").click()
    one(driver, "#ov-first .ov-chip")
    return entries(driver)


def entries(driver: Any, viewer: str = "#ov-first") -> list[str]:
    """Return the texts of a viewer's list, "NAME SHARE" each."""
    return [chip.text.replace("\n", " ") for chip in driver.find_elements("css selector", f"{viewer} .ov-chip")]


def point(driver: Any, x: float, y: float, viewer: str = "#ov-first") -> str:
    """Move the pointer to a place of the picture (0..1 of its sides), and return the name that is shown there."""
    from selenium.webdriver import ActionChains

    canvas = one(driver, f"{viewer} canvas")
    width, height = canvas.size["width"], canvas.size["height"]
    place = int((x - 0.5) * width), int((y - 0.5) * height)  # selenium's are from the middle
    ActionChains(driver).move_to_element_with_offset(canvas, *place).perform()
    return str(one(driver, f"{viewer} .ov-tip").text)


def main(target: str) -> int:
    """Photograph the page with the shipped model and a photograph of scikit-learn."""
    from ovsdino.pipeline import load
    from ovsdino.serve.limits import Limits
    from ovsdino.serve.server import application
    from ovsdino.serve.worker import Worker
    from tests.support.serving import running

    worker = Worker(load(), Limits())
    worker.warm_up()
    photograph = Path(str(files("sklearn") / "datasets" / "images" / "china.jpg"))
    with running(application(worker, page=True)) as address, chromium() as driver:
        segmented(driver, address, photograph, "sky, temple, tree, lake, person, dog")
        print(entries(driver), point(driver, 0.3, 0.55))
        driver.save_screenshot(target)
        dots = driver.find_elements("css selector", ".ov-swatch")
        colors = [re.findall(r"\d+", dot.value_of_css_property("background-color"))[:3] for dot in dots]
    _reduced(Image.open(target).convert("RGB"), [(255, 255, 255), *(tuple(map(int, color)) for color in colors)]).save(
        target, optimize=True
    )
    worker.close()
    return 0


def _reduced(picture: Image.Image, kept: list[tuple[int, ...]]) -> Image.Image:
    """Return a picture of 256 colors, those of small things among them."""
    count = 256 - len(kept)
    palette = Image.new("P", (1, 1))
    most = picture.quantize(count).getpalette() or []
    palette.putpalette([*most[: 3 * count], *(value for color in kept for value in color)])
    return picture.quantize(palette=palette, dither=Image.Dither.NONE)


if __name__ == "__main__":
    raise SystemExit(main(*sys.argv[1:]))
