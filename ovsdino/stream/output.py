"""Write the overlays of a stream next to the loop: a folder of pictures or a video file."""

from __future__ import annotations

import functools
import os
import queue
import sys
import tempfile
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
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
from ovsdino.stream.window import Window

__all__ = ["OverlayWriter", "VIDEO_CODECS", "output_of", "overlay", "writes_h264"]

VIDEO_CODECS = {".mp4": "mp4v", ".mkv": "mp4v", ".avi": "MJPG"}
H264 = "avc1"  # what browsers play; OpenCV writes it where the system has an encoder, as pip's OpenCV has not
PROBE = (640, 480)  # pixels; encoders in hardware refuse small pictures
RATE_WINDOW = 30  # results
STALE_COLOR = (230, 30, 30)
MAX_FILL_S = 10.0  # longest gap in the frames that a video fills by repeating a picture
LEAST_FREE = 16 << 20  # bytes of the disk at which a video ends while its index still has room


def output_of(path: Path, place: int, count: int) -> Path:
    """Return where the overlays of one of `count` sources go: a folder in the folder, or a video next to the video."""
    if count == 1:
        return path
    is_video = path.suffix.lower() in VIDEO_CODECS and not os.path.isdir(path)
    return path.with_stem(f"{path.stem}-{place}") if is_video else path / str(place)


def overlay(result: StreamResult, names: Sequence[str], rate: float | None = None) -> np.ndarray:
    """Draw a frame with its classes in color and by name; a stale one gets a red border and its age.

    Args:
        result: The labels and their frame.
        names: The classes, where the result has none.
        rate: Results a second: written into a corner with the age of this one, and a legend is added below.

    Returns:
        (H, W, 3) uint8 RGB, higher by the legend.
    """
    pixels = result.frame.pixels
    rgb = nv12_to_rgb(pixels) if pixels.ndim == 2 else pixels
    names = result.names or names  # words may have changed since the start
    background = bool(result.labels.max() == len(names))
    found = Segmentation(labels=result.labels, names=tuple(names), background=background)
    picture = found.overlay(rgb, legend=rate is not None)
    draw, (height, width) = ImageDraw.Draw(picture), rgb.shape[:2]
    if rate is not None:
        font = ImageFont.load_default(max(12, height // 25))
        text = f"{rate:.1f} fps, {result.camera_to_mask_ms:.0f} ms"
        place = (width - 6, height - 6)
        draw.text(place, text, fill="white", font=font, anchor="rd", stroke_width=2, stroke_fill="black")
    if result.stale:
        thickness = max(3, min(width, height) // 60)
        draw.rectangle((0, 0, width - 1, height - 1), outline=STALE_COLOR, width=thickness)
        font = ImageFont.load_default(max(12, height // 20))
        text = f"stale, {result.camera_to_mask_ms:.0f} ms"
        draw.text((2 * thickness, 2 * thickness), text, fill=STALE_COLOR, font=font)
    return np.asarray(picture)


class OverlayWriter:
    """Draw and write overlays in a thread of its own, so that the loop does not wait for a disk.

    Args:
        path: A folder for NNNNNNNN.jpg, named by sequence number, a video file (.mp4, .mkv, .avi), or a window.
        names: The classes, in the order of the labels.
        fps: Frames a second of the video. Pictures are repeated so that it runs as fast as the frames were taken.
        keep_all: Write every result, and let the loop wait; otherwise those that come too fast are left out.
        inputs: Files and folders that are read, and that no picture may replace.
        legend: Add a legend, the rate and the age, see `overlay`.

    Raises:
        OVSDinoError: The suffix is not a video's, the file cannot be written, or it is an input.
    """

    def __init__(
        self,
        path: Path | Window,
        names: Sequence[str],
        *,
        fps: float,
        keep_all: bool,
        inputs: Iterable[Path] = (),
        legend: bool = False,
    ) -> None:
        self.written = self.left_out = 0
        self._names, self._keep_all, self._legend = names, keep_all, legend
        self._times: deque[float] = deque(maxlen=RATE_WINDOW)
        self._error: Exception | None = None
        self._writer: _Writer = path if isinstance(path, Window) else _file_writer(path, fps, keep_all, inputs)
        self._queue: queue.Queue[StreamResult | None] = queue.Queue(maxsize=2)
        self._thread = threading.Thread(target=self._run, name="overlays", daemon=True)
        self._thread.start()

    def __call__(self, result: StreamResult) -> None:
        """Take one result.

        Raises:
            OVSDinoError: An earlier one could not be written.
        """
        self._raise()
        self._times.append(result.finished)
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
        self._raise()  # the first thing that went wrong

    def _raise(self) -> None:
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def _rate(self) -> float | None:
        """Return the results a second of late, also of those that are left out; None without a legend."""
        times = list(self._times)
        if not self._legend:
            return None
        return (len(times) - 1) / (times[-1] - times[0]) if len(times) > 1 and times[-1] > times[0] else 0.0

    def _run(self) -> None:
        while (result := self._queue.get()) is not None:
            if self._error is not None:
                continue  # emptied, so that nobody waits for room
            try:
                self._writer.write(overlay(result, self._names, self._rate()), result)
                self.written += 1
            except Exception as error:  # reported by the loop's thread
                self._error = error
        try:
            self._writer.close()
        except Exception as error:
            self._error = self._error or error


def _file_writer(path: Path, fps: float, keep_all: bool, inputs: Iterable[Path]) -> _Writer:
    suffix, is_folder = path.suffix.lower(), os.path.isdir(path)
    if suffix and suffix not in VIDEO_CODECS and not is_folder:
        raise OVSDinoError(f"{one_line(path)}: expected a folder, or a video file: *{', *'.join(VIDEO_CODECS)}")
    known = {identity for one in inputs if (identity := file_identity(one)) is not None}
    refuse_inputs([path], known)
    is_video = suffix in VIDEO_CODECS and not is_folder
    return _VideoWriter(path, fps, keep_all) if is_video else _FolderWriter(path, known)


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
        self._codecs = [*([H264] if path.suffix.lower() == ".mp4" and writes_h264() else ())]
        self._codecs.append(VIDEO_CODECS[path.suffix.lower()])
        self._file = ExitStack()
        self._temporary = self._file.enter_context(atomic_path(path))

    def write(self, picture: np.ndarray, result: StreamResult) -> None:
        cv2 = import_cv2()
        self._check_room()
        if self._video is None:
            self._size, self._start = (picture.shape[1], picture.shape[0]), result.frame.captured
            for codec in self._codecs:
                code = cv2.VideoWriter_fourcc(*codec)
                video = self._video = cv2.VideoWriter(str(self._temporary), code, self._fps, self._size)
                if video.isOpened():
                    break
            else:
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


@functools.cache
def writes_h264() -> bool:
    """Tell whether OpenCV writes H.264 here, by writing a picture.

    FFmpeg's own lines about encoders that it does not find are kept from stderr meanwhile.
    """
    cv2 = import_cv2()
    with tempfile.TemporaryDirectory() as folder, _silence():
        path = os.path.join(folder, "probe.mp4")
        writer = cv2.VideoWriter(path, cv2.VideoWriter_fourcc(*H264), 10.0, PROBE)
        if not writer.isOpened():
            return False
        for _ in range(10):
            writer.write(np.zeros((PROBE[1], PROBE[0], 3), np.uint8))
        writer.release()
        video = cv2.VideoCapture(path)
        good = bool(video.read()[0])
        video.release()
        return good


@contextmanager
def _silence() -> Iterator[None]:
    """Send the process's stderr nowhere."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


class _NoPictureError(Exception):
    """The video would be empty; it gets no name, which is not an error."""
