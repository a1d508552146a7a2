"""Words that change while a stream runs."""

from __future__ import annotations

import io
import os
import signal
import time
from pathlib import Path

import pytest

from ovsdino.errors import OVSDinoError
from ovsdino.stream.feed import WordFeed


def refuse_empty(taken: list[str]):
    def take(text: str) -> None:
        if ",," in text:
            raise OVSDinoError("empty class name")
        taken.append(text)

    return take


def test_a_file_is_read_when_it_changes_and_at_sighup(tmp_path: Path) -> None:
    path, taken, said = tmp_path / "words.txt", [], []
    before = signal.getsignal(signal.SIGHUP)
    try:
        feed = WordFeed(str(path), refuse_empty(taken), said.append)
        feed()
        assert taken == []  # the file is not there yet
        path.write_text("road, car\n")
        feed()
        feed()
        assert taken == ["road, car"]
        path.write_text("road,,car")
        feed()
        assert taken == ["road, car"] and "refused" in said[-1] and "empty class name" in said[-1]
        path.write_text("grass, wall")
        feed()
        os.kill(os.getpid(), signal.SIGHUP)
        feed()
        assert taken == ["road, car", "grass, wall", "grass, wall"]
    finally:
        signal.signal(signal.SIGHUP, before)


def test_the_last_line_of_standard_input_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("road\ngrass\n"))
    taken: list[str] = []
    feed = WordFeed("-", taken.append, lambda line: None)
    end = time.monotonic() + 20
    while "grass" not in taken and time.monotonic() < end:
        feed()
    assert taken[-1] == "grass"
