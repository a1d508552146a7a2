"""Other words for a running stream: lines of standard input, or a file that is written anew."""

from __future__ import annotations

import queue
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path

from ovsdino.errors import OVSDinoError, one_line

__all__ = ["WordFeed"]


class WordFeed:
    """Call a function with new words, when it is called itself: once for each turn of the loop.

    Args:
        source: A file that holds one class list, read at the start if it is there, whenever it changes, and at SIGHUP;
            or "-" for the lines of standard input.
        take: Is given the words; the OVSDinoError that it raises is said, and the old words stay.
        say: Receives one line for each change.
    """

    def __init__(self, source: str, take: Callable[[str], None], say: Callable[[str], None]) -> None:
        self._take, self._say = take, say
        self._path = None if source == "-" else Path(source)
        self._seen: tuple[int, int] | None = None
        self._lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        if self._path is None:
            threading.Thread(target=self._listen, name="words", daemon=True).start()
        elif threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGHUP, self._again)

    def __call__(self) -> None:
        """Take the newest words, if there are any."""
        text = self._from_file() if self._path is not None else self._from_lines()
        if text is None or not text.strip():
            return
        try:
            self._take(text.strip())
        except OVSDinoError as error:
            self._say(f"words refused, the old ones stay: {one_line(error, 200)}")
        else:
            self._say(f"words: {one_line(text, 200)}")

    def _again(self, *_: object) -> None:
        self._seen = None

    def _listen(self) -> None:
        for line in sys.stdin:
            self._lines.put(line)

    def _from_lines(self) -> str | None:
        text = None
        while not self._lines.empty():
            text = self._lines.get()
        return text

    def _from_file(self) -> str | None:
        assert self._path is not None
        try:
            facts = self._path.stat()
            version = (facts.st_mtime_ns, facts.st_size)
            if version == self._seen:
                return None
            self._seen = version
            return self._path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return None
        except (OSError, UnicodeDecodeError) as error:
            self._say(f"{one_line(self._path)}: cannot be read: {one_line(error, 100)}")
            return None
