"""GStreamer pipelines by GStreamer itself, whose buffers say when a frame was taken.

A buffer's time is its presentation time stamp on the pipeline's clock; with the base time it is that clock's time, and
the age of a frame is what the clock has gone on since. OpenCV gives neither, so that there a queue's delay goes unseen.

Of a camera on the network that time is when its packets came. When the frame was taken says the camera's own clock: its
RTCP sender reports pair RTP's times with NTP's (RFC 3550, section 6.4.1), and GStreamer 1.22 or later hands that on
(`rtspsrc add-reference-timestamp-meta=true`). It holds where the clocks of camera and robot agree, by NTP or PTP.
"""

from __future__ import annotations

import re
import time
from typing import Any

import numpy as np

from ovsdino.errors import one_line
from ovsdino.stream.capture import SourceError

__all__ = ["GStreamerSource", "has_gstreamer"]

FORMATS = ("RGB", "BGR", "NV12", "GRAY8")
PULL_S = 0.5  # wait for a frame before the pipeline's messages are looked at
MAX_AGE_S = 30.0  # a time stamp that says more is of another clock
AHEAD_S = 0.1  # of a camera's clock before ours that passes for none
NTP = "timestamp/x-ntp"
NTP_EPOCH_S = 2_208_988_800  # from 1900, where NTP begins, to 1970
NETWORK = re.compile(r"\b(rtspsrc|udpsrc|tcpclientsrc|srtsrc|rtmp2?src)\b")


def has_gstreamer() -> bool:
    """Tell whether GStreamer's own Python binding is installed (python3-gi, gir1.2-gst-plugins-base-1.0)."""
    try:
        _modules()
    except (ImportError, ValueError):
        return False
    return True


class GStreamerSource:
    """A pipeline that ends in "appsink".

    Args:
        pipeline: As gst-launch-1.0 takes it.
        latency_s: Age of a frame when it arrives: of a pipeline whose buffers have no time, and of a camera on the
            network that does not tell its clock.
    """

    live = True
    period_s = 0.0

    def __init__(self, pipeline: str, latency_s: float = 0.0) -> None:
        self._text, self._latency_s = pipeline, latency_s
        self._arrival_s = latency_s if NETWORK.search(pipeline) else 0.0
        self._pipeline: Any = None
        self._sink: Any = None
        self._sample: Any = None

    def open(self) -> None:
        Gst, _ = _modules()
        try:
            self._pipeline = Gst.parse_launch(self._text)
        except Exception as error:  # GLib.Error
            raise SourceError(f"gstreamer {one_line(self._text)}: {one_line(error, 200)}") from error
        found = self._pipeline.iterate_elements() if hasattr(self._pipeline, "iterate_elements") else None
        while found is not None and self._sink is None:
            state, element = found.next()
            if state != Gst.IteratorResult.OK:
                break
            if element.get_factory() is not None and element.get_factory().get_name() == "appsink":
                self._sink = element
        if self._sink is None:
            raise SourceError(f'gstreamer {one_line(self._text)}: it must end in "! appsink"')
        for name, value in (("max-buffers", 1), ("drop", True), ("sync", False)):
            self._sink.set_property(name, value)
        if self._sink.get_property("caps") is None:
            formats = ", ".join(FORMATS)
            self._sink.set_property("caps", Gst.Caps.from_string(f"video/x-raw, format=(string){{ {formats} }}"))
        self._pipeline.set_state(Gst.State.PLAYING)

    def grab(self) -> float | None:
        Gst, _ = _modules()
        while True:
            self._sample = self._sink.emit("try-pull-sample", int(PULL_S * Gst.SECOND))
            if self._sample is not None:
                return self._taken(self._sample.get_buffer(), time.monotonic())
            self._check(Gst)
            if self._sink.get_property("eos"):
                return None

    def retrieve(self) -> np.ndarray:
        Gst, GstVideo = _modules()
        info = GstVideo.VideoInfo.new_from_caps(self._sample.get_caps())
        buffer = self._sample.get_buffer()
        good, mapped = buffer.map(Gst.MapFlags.READ)
        if not good:
            raise SourceError("a frame could not be read")
        try:
            data = np.frombuffer(mapped.data, np.uint8)
            return _pixels(data, info.finfo.name, info.width, info.height, info.stride, info.offset)
        finally:
            buffer.unmap(mapped)

    def close(self) -> None:
        if self._pipeline is not None:
            Gst, _ = _modules()
            self._pipeline.set_state(Gst.State.NULL)

    def _taken(self, buffer: Any, now: float) -> float:
        """Return when a buffer was taken, in seconds of time.monotonic()."""
        Gst, _ = _modules()
        told = buffer.get_reference_timestamp_meta(Gst.Caps.from_string(NTP))
        if told is not None:
            age = time.time() - (told.timestamp / Gst.SECOND - NTP_EPOCH_S)
            if -AHEAD_S <= age < MAX_AGE_S:
                return now - max(age, 0.0)
        clock, base = self._pipeline.get_clock(), self._pipeline.get_base_time()
        if clock is not None and buffer.pts != Gst.CLOCK_TIME_NONE:
            running = self._sample.get_segment().to_running_time(Gst.Format.TIME, buffer.pts)
            age = (clock.get_time() - base - running) / Gst.SECOND
            if running != Gst.CLOCK_TIME_NONE and 0 <= age < MAX_AGE_S:
                return now - age - self._arrival_s
        return now - self._latency_s

    def _check(self, gst: Any) -> None:
        message = self._pipeline.get_bus().pop_filtered(gst.MessageType.ERROR)
        if message is not None:
            error, _ = message.parse_error()
            raise SourceError(f"gstreamer: {one_line(error, 200)}")


def _pixels(data: np.ndarray, form: str, width: int, height: int, stride: Any, offset: Any) -> np.ndarray:
    """Return RGB (H, W, 3) or NV12 (H * 3 // 2, W) of a mapped buffer, in memory of its own."""

    def plane(index: int, rows: int, used: int) -> np.ndarray:
        step, start = stride[index], offset[index]
        padded = np.zeros(rows * step, np.uint8)  # the last row may end with its pixels
        part = data[start : start + rows * step]
        padded[: len(part)] = part
        return padded.reshape(rows, step)[:, :used]

    if form == "NV12":
        return np.concatenate([plane(0, height, width), plane(1, height // 2, width)])
    if form == "GRAY8":
        return np.repeat(plane(0, height, width)[:, :, None], 3, axis=2)
    if form not in FORMATS:
        raise SourceError(f"frames are {one_line(form, 40)}: put videoconvert ! video/x-raw,format=RGB before appsink")
    pixels = plane(0, height, 3 * width).reshape(height, width, 3)
    return np.ascontiguousarray(pixels[:, :, ::-1] if form == "BGR" else pixels)


def _modules() -> tuple[Any, Any]:
    import gi

    gi.require_version("Gst", "1.0")
    gi.require_version("GstVideo", "1.0")
    from gi.repository import Gst, GstVideo

    if not Gst.is_initialized():
        Gst.init(None)
    return Gst, GstVideo
