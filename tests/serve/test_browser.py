"""The page in a real Chromium: upload, type words, read the result."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ovsdino.pipeline import Segmenter
from tests.support import browser
from tests.support.serving import picture

pytest.importorskip("selenium", reason="needs selenium")
pytestmark = pytest.mark.skipif(browser.missing() is not None, reason=str(browser.missing()))

WORDS = "sky, grass, violin"


@pytest.fixture(scope="module")
def driver() -> Iterator[Any]:
    with browser.chromium() as found:
        yield found


@pytest.fixture(scope="module")
def photograph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("browser") / "a.png"
    path.write_bytes(picture())
    return path


def test_an_image_and_words_give_names_shares_and_a_picture(
    driver: Any, page: str, photograph: Path, nano: Segmenter
) -> None:
    found = browser.segmented(driver, page, photograph, WORDS)
    expected = nano.segment(picture(), WORDS)
    assert [entry.split()[0] for entry in found] == list(expected.names)
    for entry, there in zip(found, expected.found, strict=True):
        assert entry.endswith("not found") != there
    for x, y in ((0.3, 0.1), (0.6, 0.9)):
        label = expected.all_names[expected.labels[int(y * 48), int(x * 64)]]
        assert browser.point(driver, x, y).startswith("none of the words" if label == "background" else label)
    shot = np.asarray(Image.open(io.BytesIO(driver.get_screenshot_as_png())).convert("RGB"))
    assert len(np.unique(shot.reshape(-1, 3), axis=0)) > 100  # a picture, not a blank page


def test_a_second_list_has_a_picture_of_its_own_and_the_switch_asks_again(driver: Any, page: str) -> None:
    browser.fill(driver, "#ov-more", "water, wall\n")
    browser.one(driver, "#ov-second .ov-chip")
    assert [entry.split()[0] for entry in browser.entries(driver, "#ov-second")] == ["water", "wall"]
    assert "encoded before" in browser.one(driver, "#ov-second .ov-times").text
    before = browser.one(driver, "#ov-first .ov-viewer").get_attribute("data-done")
    driver.execute_script("document.querySelectorAll('#ov-mode input')[1].click()")  # always a word
    viewer = browser.one(driver, "#ov-first .ov-viewer")
    browser.until(driver, lambda _: viewer.get_attribute("data-done") != before)
    assert not driver.find_elements("css selector", "#ov-first .ov-rest")


def test_a_file_that_is_not_an_image_gives_a_sentence(driver: Any, page: str, tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_bytes(b"not an image")
    driver.get(page)
    browser.one(driver, "#ov-image input[type=file]").send_keys(str(tmp_path / "bad.png"))
    browser.one(driver, "#ov-image img")
    browser.fill(driver, "#ov-words", "sky\n")
    text = browser.one(driver, ".toast-message-text").get_attribute("textContent")  # which an animation leaves
    assert "not a JPEG, PNG, WEBP, BMP or TIFF image" in text and "Traceback" not in text


def test_nothing_is_fetched_from_elsewhere_and_no_script_fails(driver: Any, page: str) -> None:
    names = driver.execute_script("return performance.getEntriesByType('resource').map(one => one.name)")
    assert len(names) > 5 and all(name.startswith((page, "data:", "blob:")) for name in names)
    severe = [line["message"] for line in driver.get_log("browser") if line["level"] == "SEVERE"]
    assert [line for line in severe if "bad.png" not in line] == []
