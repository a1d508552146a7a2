"""An earlier version of the package against this one: a checkout in a process of its own, called in turn with ours."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from ovsdino.benchmarks.lib.timing import interleaved
from ovsdino.errors import OVSDinoError
from ovsdino.io.files import atomic_write

__all__ = ["Older", "time_against"]

# Segments one image at each line of its stdin, and answers with a line when the labels are there.
PROGRAM = """
import sys
import numpy as np
import ovsdino
image, words = np.load(sys.argv[1]), sys.argv[2].split(",")
segmenter = ovsdino.load("nano", "cpu")
for line in sys.stdin:
    segmenter.segment(image, words, scores=False)
    print("done", flush=True)
"""


class Older:
    """The shipped nano of a checkout of an earlier version, built there (`ovsdino/_C*.so`).

    Args:
        checkout: Its folder, for instance of ``git worktree add``.
        image: File of an array (H, W, 3) uint8, as `numpy.save` writes it.
        words: The classes.

    Raises:
        OVSDinoError: There is no package in the folder.
    """

    def __init__(self, checkout: Path, image: Path, words: str) -> None:
        if not (checkout / "ovsdino" / "__init__.py").is_file():
            raise OVSDinoError(f"{checkout}: no checkout of ovsdino; make one with git worktree add PATH COMMIT")
        self.checkout = checkout
        self.process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(image), words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=checkout,
            env={**os.environ, "PYTHONPATH": str(checkout.resolve())},
        )

    def segment(self) -> None:
        """Have it segment the image once.

        Raises:
            OVSDinoError: Its process ended.
        """
        assert self.process.stdin is not None and self.process.stdout is not None
        try:
            self.process.stdin.write("\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass
        if self.process.stdout.readline() != "done\n":
            raise OVSDinoError(f"{self.checkout}: its nano does not run here; see the message above")

    def __enter__(self) -> Older:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        assert self.process.stdin is not None
        with self.process.stdin:
            pass
        self.process.wait()


def time_against(
    ours: Callable[[], object], checkout: Path, image: np.ndarray, words: str, folder: Path, rounds: int = 15
) -> dict[str, Any]:
    """Return the median milliseconds of a call and of the older package's, one after the other in turn.

    Args:
        ours: Segments the image.
        checkout: Of the earlier version.
        image: (H, W, 3) uint8.
        words: The classes.
        folder: Place for the image's file.
        rounds: Calls of each.
    """
    file = folder / "image.npy"
    with atomic_write(file) as stream:
        np.lib.format.write_array(stream, image)
    with Older(checkout, file, words) as older:
        ms, older_ms = interleaved([ours, older.segment], "cpu", rounds=rounds)
    return {"ms": round(ms, 2), "older_ms": round(older_ms, 2), "ratio": round(ms / older_ms, 3)}
