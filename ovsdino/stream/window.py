"""Show the overlays of a stream in a window of the desktop, by Tk, which comes with Python."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

from ovsdino.errors import OVSDinoError
from ovsdino.stream.result import StreamResult

__all__ = ["Window"]

SHARE = 0.9  # of the screen's sides that a picture takes at most


class Window:
    """A window with the newest picture. All methods but the constructor are for one and the same thread.

    Args:
        title: Its title.
        closed: Called once when somebody closes the window.

    Raises:
        OVSDinoError: There is no display, or Python has no Tk.
    """

    def __init__(self, title: str, closed: Callable[[], None]) -> None:
        if not os.environ.get("DISPLAY"):
            raise OVSDinoError(
                "--show: there is no display ($DISPLAY is not set); --output writes the pictures instead"
            )
        try:
            import tkinter  # noqa: F401
        except ImportError as error:
            raise OVSDinoError("--show needs Python's Tk: apt install python3-tk") from error
        self._title, self._closed = title, closed
        self._root: Any = None
        self._label: Any = None
        self._open = True

    def write(self, picture: np.ndarray, result: StreamResult) -> None:
        """Show a picture, smaller where the screen is; nothing once the window was closed.

        Args:
            picture: (H, W, 3) uint8 RGB.
            result: What it shows.

        Raises:
            OVSDinoError: The display refuses the window.
        """
        if not self._open:
            return
        import tkinter

        from PIL import ImageTk

        try:
            if self._root is None:
                self._root = tkinter.Tk(className="ovsdino")
                self._root.title(self._title)
                self._root.protocol("WM_DELETE_WINDOW", self._shut)
                self._label = tkinter.Label(self._root, borderwidth=0)
                self._label.pack()
            shown = Image.fromarray(picture)
            screen = (self._root.winfo_screenwidth(), self._root.winfo_screenheight())
            shown.thumbnail((max(1, int(SHARE * screen[0])), max(1, int(SHARE * screen[1]))))
            photo = ImageTk.PhotoImage(shown, master=self._root)
            self._label.configure(image=photo)
            self._label.image = photo  # Tk keeps no reference
            self._root.update()
        except tkinter.TclError as error:
            if self._open:
                raise OVSDinoError(f"--show: the display refuses the window: {error}") from error

    def close(self) -> None:
        """Take the window away."""
        self._open = False
        if self._root is not None:
            self._label = None
            self._root.destroy()
            self._root = None

    def _shut(self) -> None:
        self.close()
        self._closed()
