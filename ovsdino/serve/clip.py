"""A short video in, the same with its classes laid over it out, in a form that browsers play."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ovsdino.errors import OVSDinoError
from ovsdino.io.video import import_cv2, opencv_name, read_frames
from ovsdino.results import Segmentation

__all__ = ["Clip", "frames_of"]

LONGEST_SIDE = 1280
CODEC, SUFFIX = "VP80", ".webm"  # free, in every wheel of OpenCV, and played by every browser


def frames_of(path: str, most: int) -> Iterator[np.ndarray]:
    """Yield the first frames of a video, (H, W, 3) uint8 RGB, none larger than `LONGEST_SIDE`.

    Raises:
        OVSDinoError: OpenCV cannot read it, or it has no frame.
    """
    empty = True
    for frame in itertools.islice(read_frames(path), most):
        empty = False
        picture = Image.fromarray(np.asarray(frame))
        picture.thumbnail((LONGEST_SIDE, LONGEST_SIDE), Image.Resampling.BILINEAR)
        yield np.asarray(picture)
    if empty:
        raise OVSDinoError("the video has no frames that OpenCV can read")


def rate_of(path: str) -> float:
    """Return the frames in a second that a video's file states, 15 where it states none that can be."""
    video = import_cv2().VideoCapture(opencv_name(path))
    rate = float(video.get(5))  # CAP_PROP_FPS
    video.release()
    return rate if 1 <= rate <= 120 else 15.0


class Clip:
    """Write the overlays of results as a video.

    Args:
        path: Of the video, which ends in `SUFFIX`.
        rate: Frames in a second.
    """

    def __init__(self, path: Path, rate: float) -> None:
        self.path, self.rate = path, rate
        self._cv2 = import_cv2()
        self._video: Any = None

    def add(self, result: Segmentation) -> np.ndarray:
        """Append one frame, and return its overlay, (H, W, 3) uint8 RGB.

        Raises:
            OVSDinoError: This OpenCV cannot write such a video.
        """
        pixels = result.plot(legend=False)
        if self._video is None:
            size = pixels.shape[1], pixels.shape[0]
            self._video = self._cv2.VideoWriter(str(self.path), self._cv2.VideoWriter.fourcc(*CODEC), self.rate, size)
            if not self._video.isOpened():
                raise OVSDinoError("this OpenCV cannot write WebM: install opencv-python-headless from the extra demo")
        self._video.write(np.ascontiguousarray(pixels[..., ::-1]))
        return pixels

    def close(self) -> None:
        """Complete the file."""
        if self._video is not None:
            self._video.release()
