"""SIGTERM and Ctrl-C finish the step of a run, save, and end it."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

__all__ = ["Stopped", "caught_signals"]


class Stopped(Exception):
    """A signal asked for the end; the state is saved.

    Attributes:
        signal: Its number.
    """

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.signal: int = number


@contextmanager
def caught_signals() -> Iterator[list[int]]:
    """Yield the numbers of SIGTERM and SIGINT received meanwhile; a second one acts as usual."""
    received: list[int] = []
    before: dict[int, Any] = {}

    def note(number: int, frame: FrameType | None) -> None:
        received.append(number)
        signal.signal(number, before[number])

    try:
        for number in (signal.SIGTERM, signal.SIGINT):
            before[number] = signal.signal(number, note)
    except ValueError:  # not the main thread: signals are its business
        pass
    try:
        yield received
    finally:
        for name, handler in before.items():
            signal.signal(name, handler)
