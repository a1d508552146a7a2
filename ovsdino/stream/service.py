"""Tell systemd that a stream runs, and that it still does: sd_notify(3) without a library."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable

__all__ = ["Service", "notify"]


def notify(state: str) -> bool:
    """Send a state such as "READY=1" to the service manager; return False where none has asked for it.

    Args:
        state: See sd_notify(3).
    """
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return False
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        try:
            channel.sendto(state.encode(), "\0" + address[1:] if address[0] == "@" else address)
        except OSError:
            return False
    return True


class Service:
    """A function that tells the service manager of results: READY at the first, then WATCHDOG in time.

    A stream that gives no results does not tell of any, so that the manager starts it again.

    Args:
        clock: Monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        microseconds = os.environ.get("WATCHDOG_USEC", "")
        self._period_s = int(microseconds) / 2e6 if microseconds.isdecimal() else None
        self._clock, self._ready, self._told = clock, False, 0.0

    def __call__(self, result: object) -> None:
        """Take a result, whatever it is."""
        now = self._clock()
        if not self._ready:
            self._ready, self._told = True, now
            notify("READY=1")
        elif self._period_s is not None and now - self._told >= self._period_s:
            self._told = now
            notify("WATCHDOG=1")
