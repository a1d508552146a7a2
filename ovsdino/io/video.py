"""Frames of a video: a file, a camera, a folder, or anything that can be gone through."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from ovsdino.errors import OVSDinoError, one_line
from ovsdino.io.images import ImageLike, expand_paths

__all__ = ["Frames", "import_cv2", "opencv_name", "read_frames"]

Frames = Iterable[ImageLike] | str | os.PathLike[str] | int
"""A video file, a folder of images, the number of a camera, or a list or generator of images."""


def read_frames(source: Frames) -> Iterator[ImageLike]:
    """Yield the frames of a video, one at a time.

    Args:
        source: See `Frames`. Frames of files and cameras are (H, W, 3) uint8 RGB, those of a folder its files by name.

    Raises:
        OVSDinoError: There is no such file, folder or camera, OpenCV cannot read it, or it is one image.
    """
    if isinstance(source, int):
        return _captured(source, f"camera {source}")
    if isinstance(source, (str, os.PathLike)):
        path = Path(source)
        if path.is_dir():
            return iter(expand_paths([path]))
        if not path.is_file():
            raise OVSDinoError(f"{one_line(path)}: no such video file or folder of images")
        return _captured(opencv_name(path), one_line(path))
    if getattr(source, "ndim", 4) != 4 or not isinstance(source, Iterable):
        raise OVSDinoError(f"frames is {type(source).__name__}: expected a video, a camera's number, or several images")
    return iter(source)


def _captured(target: str | int, name: str) -> Iterator[ImageLike]:
    cv2 = import_cv2()
    video = cv2.VideoCapture(target)
    try:
        if not video.isOpened():
            raise OVSDinoError(f"{name}: OpenCV cannot read it as a video")
        while True:
            found, frame = video.read()
            if not found:
                return
            yield cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)
    finally:
        video.release()


def opencv_name(name: str | os.PathLike[str]) -> str:
    """Return a name that OpenCV can take: one with bytes that are not UTF-8 ends the process (SIGSEGV in 5.0).

    Raises:
        OVSDinoError: It is not UTF-8.
    """
    text = os.fspath(name)
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise OVSDinoError(f"{one_line(text)}: OpenCV takes names in UTF-8 only: rename it, or its folder") from error
    return text


def import_cv2() -> Any:
    """Import OpenCV.

    Raises:
        OVSDinoError: It is not installed.
    """
    try:
        import cv2
    except ImportError as error:
        raise OVSDinoError(
            "cameras, videos and the memory of a video need OpenCV: pip install opencv-python-headless, or JetPack's "
            "own python3-opencv for GStreamer; folders of images need nothing"
        ) from error
    return cv2
