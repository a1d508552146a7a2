"""A command on a terminal of its own, as a person meets it."""

from __future__ import annotations

import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Seen:
    """The text that a terminal showed, and the exit code."""

    code: int
    text: str

    @property
    def lines(self) -> list[str]:
        """The lines without their ends."""
        return self.text.splitlines()


def on_terminal(*command: object, columns: int = 80, **environment: str) -> Seen:
    """Run a Python command line with a pseudo-terminal as stdin, stdout and stderr.

    Args:
        command: What follows `python`.
        columns: Width of the terminal.
        environment: Variables to set; an empty value takes one away.
    """
    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    merged = {"TERM": "xterm-256color", "COLUMNS": "", "LINES": "", **environment}
    env = {key: value for key, value in {**os.environ, "PYTHONPATH": str(ROOT), **merged}.items() if value}
    process = subprocess.Popen(
        [sys.executable, *map(str, command)], stdin=follower, stdout=follower, stderr=follower, env=env, cwd="/"
    )
    os.close(follower)
    shown = b""
    while True:
        try:
            part = os.read(leader, 65536)
        except OSError:  # EIO: the last process that held the terminal is gone
            break
        if not part:
            break
        shown += part
    os.close(leader)
    return Seen(process.wait(timeout=60), shown.decode("utf-8", "replace").replace("\r\n", "\n"))
