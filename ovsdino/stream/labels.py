"""Write the labels of a stream: a PNG for each frame, or a JSON line."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from PIL import Image

from ovsdino.errors import OVSDinoError, one_line
from ovsdino.io.files import atomic_write
from ovsdino.stream.result import StreamResult

__all__ = ["LabelWriter", "label_line"]


def label_line(result: StreamResult) -> dict[str, Any]:
    """Return the facts of one result, ready for JSON.

    Returns:
        "camera" (from 0, where there are several), "frame" (sequence number), "captured" (monotonic seconds), "age_ms",
        "stale", "engine", "inference_ms", and "classes": the share of the frame of each word, and of "background" where
        pixels are none of the words.
    """
    counts = np.bincount(result.labels.ravel(), minlength=len(result.names))
    names = [*result.names, *["background"] * (len(counts) > len(result.names))]
    return {
        **({} if result.camera is None else {"camera": result.camera}),
        "frame": result.frame.sequence,
        "captured": round(result.frame.captured, 6),
        "age_ms": round(result.camera_to_mask_ms, 3),
        "stale": result.stale,
        "engine": result.engine,
        "inference_ms": round(result.inference_ms, 3),
        "classes": {name: round(int(count) / result.labels.size, 6) for name, count in zip(names, counts, strict=True)},
    }


class LabelWriter:
    """Write each result in the loop's thread, so that none is left out.

    Args:
        place: "-" for lines on standard output; else a folder for NNNNNNNN.png, named by sequence number, whose pixel
            values are the labels. Each of several cameras has a folder in it: 0, 1, ...
        cameras: Number of cameras.
        out: In place of standard output.

    Raises:
        OVSDinoError: The folder cannot be made.
    """

    def __init__(self, place: str, out: TextIO | None = None, cameras: int = 1) -> None:
        self.written = 0
        self._out = (out or sys.stdout) if place == "-" else None
        self._folder = Path(place)
        if self._out is None:
            try:
                for folder in [self._folder] if cameras == 1 else [self._folder / str(one) for one in range(cameras)]:
                    folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise OVSDinoError(f"{one_line(place)}: cannot make the folder: {error.strerror}") from error

    def __call__(self, result: StreamResult) -> None:
        """Write one result.

        Raises:
            OVSDinoError: It cannot be written.
        """
        if self._out is not None:
            print(json.dumps(label_line(result), ensure_ascii=False), file=self._out, flush=True)
        else:
            wide = result.labels.dtype != np.uint8
            folder = self._folder if result.camera is None else self._folder / str(result.camera)
            with atomic_write(folder / f"{result.frame.sequence:08d}.png") as file:
                picture = Image.fromarray(result.labels.astype(np.uint16) if wide else result.labels)
                picture.save(file, "PNG", compress_level=1)
        self.written += 1
