"""Write the overlays of a stream next to the loop: a folder of pictures or a video file."""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Iterable, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ovsdino.edge.pixels import nv12_to_rgb
from ovsdino.errors import OVSDinoError, one_line
from ovsdino.io.files import atomic_path, atomic_write, file_identity, refuse_inputs
from ovsdino.io.video import import_cv2, opencv_name
from ovsdino.results import Segmentation
from ovsdino.stream.result import StreamResult
from ovsdino.stream.video_file import check_video

__all__ = ["OverlayWriter", "VIDEO_CODECS", "output_of", "overlay"]

VIDEO_CODECS = {".mp4": "mp4v", ".mkv": "mp4v", ".avi": "MJPG"}
STALE_COLOR = (230, 30, 30)
MAX_FILL_S = 10.0  # longest gap in the frames that a video fills by repeating a picture
LEAST_FREE = 16 << 20  # bytes of the disk at which a video ends while its index still has room


def output_of(path: Path, place: int, count: int) -> Path:
    """Return where the overlays of one of `count` sources go: a folder in the folder, or a video next to the video."""
    if count == 1:
        return path
    is_video = path.suffix.lower() in VIDEO_CODECS and not os.path.isdir(path)
    return path.with_stem(f"{path.stem}-{place}") if is_video else path / str(place)


def overlay(result: StreamResult, names: Sequence[str]) -> np.ndarray:
    """Draw a frame with its classes in color; a stale one gets a red border and its age.

    Returns:
        (H, W, 3) uint8 RGB.
    """
    pixels = result.frame.pixels
    rgb = nv12_to_rgb(pixels) if pixels.ndim == 2 else pixels
    names = result.names or names  # words may have changed since the start
    background = bool(result.labels.max() == len(names))
    picture = Segmentation(labels=result.labels, names=tuple(names), background=background).overlay(rgb, legend=False)
    if result.stale:
        draw = ImageDraw.Draw(picture)
        thickness = max(3, min(picture.size) // 60)
        draw.rectangle((0, 0, picture.width - 1, picture.height - 1), outline=STALE_COLOR, width=thickness)
        font = ImageFont.load_default(max(12, picture.height // 20))
        text = f"stale, {result.camera_to_mask_ms:.0f} ms"
        draw.text((2 * thickness, 2 * thickness), text, fill=STALE_COLOR, font=font)
    return np.asarray(picture)


class OverlayWriter:
    """Draw and write overlays in a thread of its own, so that the loop does not wait for a disk.

    Args:
        path: A folder for NNNNNNNN.jpg, named by sequence number, or a video file (.mp4, .mkv, .avi).
        names: The classes, in the order of the labels.
        fps: Frames a second of the video. Pictures are repeated so that it runs as fast as the frames were taken.
        keep_all: Write every result, and let the loop wait; otherwise those that come too fast are left out.
        inputs: Files and folders that are read, and that no picture may replace.

    Raises:
        OVSDinoError: The suffix is not a video's, the file cannot be written, or it is an input.
    """

    def __init__(
        self, path: Path, names: Sequence[str], *, fps: float, keep_all: bool, inputs: Iterable[Path] = ()
    ) -> None:
        self.written = self.left_out = 0
        self._names, self._keep_all = names, keep_all
        self._error: Exception | None = None
        suffix, is_folder = path.suffix.lower(), os.path.isdir(path)
        if suffix and suffix not in VIDEO_CODECS and not is_folder:
            raise OVSDinoError(f"{one_line(path)}: expected a folder, or a video file: *{', *'.join(VIDEO_CODECS)}")
        known = {identity for one in inputs if (identity := file_identity(one)) is not None}
        refuse_inputs([path], known)
        self._writer: _Writer = (
            _VideoWriter(path, fps, keep_all)
            if suffix in VIDEO_CODECS and not is_folder
            else _FolderWriter(path, known)
        )
        self._queue: queue.Queue[StreamResult | None] = queue.Queue(maxsize=2)
        self._thread = threading.Thread(target=self._run, name="overlays", daemon=True)
        self._thread.start()

    def __call__(self, result: StreamResult) -> None:
        """Take one result.

        Raises:
            OVSDinoError: An earlier one could not be written.
        """
        self._raise()
        try:
            self._queue.put(result, block=self._keep_all)
        except queue.Full:
            self.left_out += 1

    def __enter__(self) -> OverlayWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Write what waits and finish the file.

        Raises:
            OVSDinoError: A picture could not be written, or the video is incomplete and did not get its name.
        """
        self._queue.put(None)
        self._thread.join()
        try:
            self._writer.close()
        finally:
            self._raise()  # the first thing that went wrong

    def _raise(self) -> None:
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def _run(self) -> None:
        while (result := self._queue.get()) is not None:
            if self._error is not None:
                continue  # emptied, so that nobody waits for room
            try:
                self._writer.write(overlay(result, self._names), result)
                self.written += 1
            except Exception as error:  # reported by the loop's thread
                self._error = error


class _Writer(Protocol):
    def write(self, picture: np.ndarray, result: StreamResult) -> None: ...

    def close(self) -> None: ...


class _FolderWriter:
    def __init__(self, folder: Path, inputs: set[tuple[int, int]]) -> None:
        self._folder, self._inputs = folder, inputs
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OVSDinoError(
                f"{one_line(folder)}: cannot make the folder: {error.strerror}; choose another --output"
            ) from error

    def write(self, picture: np.ndarray, result: StreamResult) -> None:
        path = self._folder / f"{result.frame.sequence:08d}.jpg"
        if file_identity(path) in self._inputs:  # a frame of a source that links into this folder
            raise OVSDinoError(f"{one_line(path)}: the result would replace an input; choose another --output")
        with atomic_write(path) as file:
            Image.fromarray(picture).save(file, "JPEG", quality=90)

    def close(self) -> None:
        """Do nothing: each picture is whole by itself."""


class _VideoWriter:
    """A video of constant rate and size, under its name only when it is complete.

    One that ends early, because the source or the disk does, is complete as far as it goes, and keeps what it has.
    """

    def __init__(self, path: Path, fps: float, every_once: bool) -> None:
        self._path, self._fps, self._every_once = path, fps, every_once
        self._video: Any = None
        self._size = (0, 0)
        self._start = 0.0
        self._pictures = 0
        import_cv2()
        opencv_name(os.path.realpath(path))  # links are followed
        self._file = ExitStack()
        self._temporary = self._file.enter_context(atomic_path(path))

    def write(self, picture: np.ndarray, result: StreamResult) -> None:
        cv2 = import_cv2()
        self._check_room()
        if self._video is None:
            self._size, self._start = (picture.shape[1], picture.shape[0]), result.frame.captured
            codec = cv2.VideoWriter_fourcc(*VIDEO_CODECS[self._path.suffix.lower()])
            self._video = cv2.VideoWriter(str(self._temporary), codec, self._fps, self._size)
            if not self._video.isOpened():
                raise OVSDinoError(f"{one_line(self._path)}: this OpenCV cannot write it; choose .avi, or a folder")
        if (picture.shape[1], picture.shape[0]) != self._size:  # the source changed its size, a video cannot
            picture = cv2.resize(picture, self._size, interpolation=cv2.INTER_AREA)
        times = 1
        if not self._every_once:
            due = round((result.frame.captured - self._start) * self._fps) + 1
            times = min(max(0, due - self._pictures), max(1, round(MAX_FILL_S * self._fps)))
            self._start += max(0, due - self._pictures - times) / self._fps
        for _ in range(times):
            self._video.write(cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
        self._pictures += times

    def close(self) -> None:
        with suppress(_NoPictureError), self._file:
            if self._video is not None:
                self._video.release()
            if not self._pictures:
                raise _NoPictureError
            try:
                check_video(self._temporary, self._pictures)
            except OVSDinoError as error:
                raise OVSDinoError(
                    f"{one_line(self._path)}: cannot write: {error}; make room, or choose another --output"
                ) from error

    def _check_room(self) -> None:
        disk = os.statvfs(self._temporary.parent)
        if disk.f_blocks and disk.f_bavail * disk.f_frsize < LEAST_FREE:  # some network disks say nothing
            raise OVSDinoError(
                f"{one_line(self._path)}: the disk is full: the video ends after {self._pictures} pictures"
            )


class _NoPictureError(Exception):
    """The video would be empty; it gets no name, which is not an error."""
