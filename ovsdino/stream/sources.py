"""Sources of `ovsdino stream`: cameras, video files, RTSP and GStreamer through OpenCV, and folders of images."""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ovsdino.errors import OVSDinoError, one_line
from ovsdino.io.images import SUFFIXES, expand_paths, load_image
from ovsdino.io.video import import_cv2, opencv_name
from ovsdino.stream.capture import Source, SourceError
from ovsdino.stream.gstreamer import GStreamerSource, has_gstreamer

__all__ = [
    "FolderSource",
    "OpenCVSource",
    "SourceOptions",
    "files_of",
    "make_source",
    "playing_rate",
]

DEFAULT_FPS = 10.0  # of a folder, and of a video file without a rate
CAMERA_FPS = 30.0  # of a video made of a camera's results, unless --fps says otherwise
MIN_FPS, MAX_FPS = 0.01, 1000.0  # a rate beyond these in a file is not believed
MAX_DRIVER_AGE_S = 10.0  # a kernel timestamp older than this is of another clock


@dataclass(frozen=True, kw_only=True)
class SourceOptions:
    """Settings by which a source is read.

    Attributes:
        fps: Frames a second to ask a camera for, or to play files at; None: the camera's or file's own.
        width: Frame width in pixels to ask a camera for; None: its own.
        height: Frame height, likewise.
        keep_all: Files are read as fast as they are taken, and not at `fps`.
        nv12: The pipeline gives NV12, which goes to the network as it is.
        latency_ms: Age of a camera's frame when it arrives, where the camera does not tell its time.
    """

    fps: float | None = None
    width: int | None = None
    height: int | None = None
    keep_all: bool = False
    nv12: bool = False
    latency_ms: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.latency_ms <= 60_000:
            raise OVSDinoError(f"latency_ms is {self.latency_ms}: expected 0..60000 milliseconds")
        for name, value in (("fps", self.fps), ("width", self.width), ("height", self.height)):
            if value is not None and not 0 < value <= 100_000:
                raise OVSDinoError(f"{name} is {value}: expected more than 0")


def make_source(name: str, options: SourceOptions) -> Callable[[], Source]:
    """Return a function that makes the source of a name, closed.

    Args:
        name: A video file or a folder; where there is none of that name: camera number or /dev/videoN, GStreamer
            pipeline with "!", or address with "://".
        options: How it is read.

    Raises:
        OVSDinoError: It is none of these, or OpenCV is missing where it is needed.
    """
    shown = one_line(name)
    live = True
    if os.path.isdir(name):  # whatever it is called: 0001, or with a !
        files = expand_paths([name])
        return lambda: FolderSource(files, options)
    opencv_name(name)
    if os.path.isfile(name):
        if name.lower().endswith(SUFFIXES):
            raise OVSDinoError(f"{shown}: is an image; give its folder, or use `ovsdino segment`")
        kind, target, live = "file", name, False
    elif name.isdecimal() or name.startswith("/dev/video"):
        kind, target = "camera", name.removeprefix("/dev/video")
        if not target.isdecimal():
            raise OVSDinoError(f"{shown}: not a camera: expected /dev/video followed by a number, as /dev/video0")
    elif "!" in name:
        kind, target = "gstreamer", name
    elif "://" in name:
        kind, target = "address", name
    elif os.path.lexists(name):
        raise OVSDinoError(f"{shown}: is a pipe, a device or a link to nothing: expected a video file or a folder")
    else:
        raise OVSDinoError(
            f"{shown}: no such source: expected a camera number, /dev/videoN, a video file, a folder of images, "
            'an address (rtsp://...) or a GStreamer pipeline ("... ! appsink")'
        )
    if options.keep_all and live:
        raise OVSDinoError(f"{shown}: every frame can be kept of a file or a folder only, a camera does not wait")
    if options.nv12 and kind != "gstreamer":
        raise OVSDinoError(f"{shown}: NV12 comes from a GStreamer pipeline only; leave out --nv12")
    if kind == "gstreamer" and has_gstreamer():
        return lambda: GStreamerSource(target, options.latency_ms / 1e3)
    import_cv2()
    return lambda: OpenCVSource(kind, target, options)


def gives_nv12(name: str) -> bool:
    """Tell whether a source is a pipeline whose last named format is NV12."""
    formats = re.findall(r"format\s*=\s*(?:\(string\)\s*)?\"?(\w+)", name) if "!" in name else []
    return bool(formats) and formats[-1] == "NV12" and not os.path.exists(name)


def playing_rate(name: str, options: SourceOptions) -> float:
    """Return the frames a second at which a video of a source's results should be played."""
    if options.fps is not None:
        return options.fps
    if os.path.isdir(name):
        return DEFAULT_FPS
    if os.path.isfile(name):
        cv2 = import_cv2()
        video = cv2.VideoCapture(opencv_name(name))
        fps = float(video.get(cv2.CAP_PROP_FPS))
        video.release()
        return fps if MIN_FPS < fps < MAX_FPS else DEFAULT_FPS
    return CAMERA_FPS


def files_of(name: str) -> list[Path]:
    """Return the files and the folder that a source is read from, as far as its name tells; they must not be replaced.

    Raises:
        OVSDinoError: A folder that cannot be listed, or one without images.
    """
    if os.path.isdir(name):
        return [Path(name), *expand_paths([name])]
    inside = re.findall(r"(?:location\s*=\s*|file://)(\"[^\"]+\"|[^\s!\"]+)", name)  # of a pipeline or an address
    return [Path(name), *(Path(part.strip('"')) for part in inside)]


class Pace:
    """Hold files to a number of frames a second; a reader that was late does not catch up."""

    def __init__(self, period_s: float) -> None:
        self.period_s = period_s
        self._due = time.monotonic()

    def wait(self) -> None:
        now = time.monotonic()
        if now < self._due:
            time.sleep(self._due - now)
        elif now > self._due + self.period_s:
            self._due = now
        self._due += self.period_s


class FolderSource:
    """The images of a folder, sorted by name, as a video."""

    live = False

    def __init__(self, files: Sequence[Path], options: SourceOptions) -> None:
        self.period_s = 0.0 if options.keep_all else 1.0 / (options.fps or DEFAULT_FPS)
        self._files = iter(files)
        self._file: Path | None = None
        self._pace = Pace(self.period_s)

    def open(self) -> None:
        self._pace = Pace(self.period_s)

    def grab(self) -> float | None:
        self._file = next(self._files, None)
        if self._file is None:
            return None
        self._pace.wait()
        return time.monotonic()

    def retrieve(self) -> np.ndarray:
        assert self._file is not None
        return load_image(self._file)

    def close(self) -> None:
        """Do nothing: no file is held."""


class OpenCVSource:
    """A camera, address, GStreamer pipeline or video file through OpenCV.

    Args:
        kind: "camera", "address", "gstreamer" or "file".
        target: Camera number, address, pipeline or path.
        options: How it is read.
    """

    def __init__(self, kind: str, target: str, options: SourceOptions) -> None:
        self.live = kind != "file"
        self.period_s = 0.0
        self._kind, self._target, self._options = kind, target, options
        self._video: Any = None
        self._pace: Pace | None = None
        self._kernel_time = False

    def open(self) -> None:
        cv2, options = import_cv2(), self._options
        if self._kind == "camera":
            backend = cv2.CAP_V4L2 if sys.platform == "linux" else cv2.CAP_ANY
            self._video = cv2.VideoCapture(int(self._target), backend)
        elif self._kind == "gstreamer":
            if cv2.CAP_GSTREAMER not in cv2.videoio_registry.getBackends():
                raise SourceError(
                    "this OpenCV was built without GStreamer (pip's is): use the one of JetPack, "
                    "sudo apt install python3-opencv, in an environment that sees the system's packages"
                )
            self._video = cv2.VideoCapture(self._target, cv2.CAP_GSTREAMER)
        elif self._kind == "address":
            timeouts = [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, 10_000, cv2.CAP_PROP_READ_TIMEOUT_MSEC, 5_000]
            self._video = cv2.VideoCapture(self._target, cv2.CAP_FFMPEG, timeouts)
        else:
            self._video = cv2.VideoCapture(self._target)
        if not self._video.isOpened():
            remedy = {
                "camera": "is it connected, free, and are you in the group video?",
                "gstreamer": 'try the pipeline with gst-launch-1.0; it must end in "appsink"',
                "address": "is it reachable, with the right name and password?",
                "file": "is it a video in a format that this OpenCV decodes?",
            }[self._kind]
            raise SourceError(f"{self._kind} {one_line(self._target)}: cannot be opened: {remedy}")
        if self._kind == "camera":
            wishes = (
                (cv2.CAP_PROP_BUFFERSIZE, 1),  # a driver's queue is latency
                (cv2.CAP_PROP_FRAME_WIDTH, options.width),
                (cv2.CAP_PROP_FRAME_HEIGHT, options.height),
                (cv2.CAP_PROP_FPS, options.fps),
            )
            for setting, value in wishes:
                if value is not None:
                    self._video.set(setting, value)
            self._kernel_time = sys.platform == "linux"
        elif self._kind == "file" and not options.keep_all:
            fps = options.fps or self._video.get(cv2.CAP_PROP_FPS)
            self.period_s = 1.0 / (fps if MIN_FPS < fps < MAX_FPS else DEFAULT_FPS)
            self._pace = Pace(self.period_s)

    def grab(self) -> float | None:
        if self._pace is not None:
            self._pace.wait()
        if not self._video.grab():
            return None
        now = time.monotonic()
        if self._kernel_time:  # V4L2 stamps a buffer when it is filled, on the clock that time.monotonic() reads
            stamp = float(self._video.get(import_cv2().CAP_PROP_POS_MSEC)) / 1e3
            if 0 < stamp <= now < stamp + MAX_DRIVER_AGE_S:
                return stamp
        return now - self._options.latency_ms / 1e3 if self.live else now

    def retrieve(self) -> np.ndarray:
        cv2 = import_cv2()
        good, pixels = self._video.retrieve()
        if not good or pixels is None:
            raise SourceError("a frame could not be decoded")
        if self._options.nv12:
            if pixels.ndim == 3 and pixels.shape[2] == 1:
                pixels = pixels[:, :, 0]
            if pixels.ndim != 2 or pixels.shape[0] % 3:
                raise SourceError(f"a frame of {pixels.shape} is not NV12: end with video/x-raw,format=NV12 ! appsink")
            return np.ascontiguousarray(pixels)
        if pixels.ndim == 2 or pixels.shape[2] == 1:
            return np.asarray(cv2.cvtColor(pixels, cv2.COLOR_GRAY2RGB))
        return np.asarray(cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB))

    def close(self) -> None:
        if self._video is not None:
            self._video.release()
