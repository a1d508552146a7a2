"""The window with a stream's overlays, on a display without a screen.

Xlib ends the process whose display goes away, so what opens a window runs in a process of its own.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import ImageGrab

from ovsdino.errors import OVSDinoError
from ovsdino.stream.output import OverlayWriter
from ovsdino.stream.window import Window
from tests.stream.test_output import result

COLOR = (200, 30, 60)
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def display() -> Iterator[str]:
    """A display of 320 x 240 that Xvfb draws into memory."""
    pytest.importorskip("tkinter", reason="Python has no Tk")
    if shutil.which("Xvfb") is None:
        pytest.skip("Xvfb is not installed")
    read, write = os.pipe()
    command = ["Xvfb", "-displayfd", str(write), "-screen", "0", "320x240x24", "-nolisten", "tcp"]
    with subprocess.Popen(command, pass_fds=[write], stderr=subprocess.DEVNULL) as server:
        os.close(write)
        with os.fdopen(read) as pipe:
            name = f":{pipe.readline().strip()}"
        yield name
        server.terminate()


@pytest.mark.parametrize("case", ["picture", "overlays", "closing"])
def test_a_window_shows_the_newest_picture_until_it_is_closed(case: str, display: str) -> None:
    code = f"from tests.stream import test_window; test_window.{case}()"
    done = subprocess.run(
        [sys.executable, "-c", code],
        check=False,
        cwd=ROOT,
        env={**os.environ, "DISPLAY": display},
        capture_output=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr.decode()


def test_without_a_display_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DISPLAY", raising=False)
    with pytest.raises(OVSDinoError, match="there is no display"):
        Window("street", lambda: None)


def test_a_display_that_is_not_there_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tkinter", reason="Python has no Tk")
    monkeypatch.setenv("DISPLAY", ":9999")
    window = Window("street", lambda: None)
    with pytest.raises(OVSDinoError, match="the display refuses the window"):
        window.write(np.zeros((6, 8, 3), np.uint8), result(0))


def picture() -> None:
    """A picture is on the screen, one that is larger fits, and none is left after the end."""
    window = Window("street", lambda: None)
    window.write(np.full((60, 80, 3), COLOR, np.uint8), result(0))
    assert seen() == 60 * 80
    window.write(np.full((600, 800, 3), COLOR, np.uint8), result(1))
    assert 0.7 * 288 * 216 <= seen() <= 288 * 216
    window.close()
    assert seen() == 0
    window.write(np.full((60, 80, 3), COLOR, np.uint8), result(2))
    assert seen() == 0


def overlays() -> None:
    """The writer of overlays, with a thread of its own, shows each result."""
    with OverlayWriter(Window("street", lambda: None), ("road",), fps=1.0, keep_all=True) as writer:
        for number in range(3):
            writer(result(number))
    assert writer.written == 3


def closing() -> None:
    """Somebody closes the window: that is told once."""
    closed: list[bool] = []
    window = Window("street", lambda: closed.append(True))
    window.write(np.zeros((60, 80, 3), np.uint8), result(0))
    window._root.tk.call("after", "idle", window._root.protocol("WM_DELETE_WINDOW"))
    window.write(np.zeros((60, 80, 3), np.uint8), result(1))
    window.close()
    assert closed == [True]


def seen() -> int:
    """Return the pixels of the screen that have the picture's color, as soon as there are any."""
    for _ in range(30):
        screen = np.asarray(ImageGrab.grab(xdisplay=os.environ["DISPLAY"]).convert("RGB"))
        found = int((screen == COLOR).all(2).sum())
        if found:
            return found
        time.sleep(0.01)
    return 0
