"""Segment the newest frame of a camera or video: masks in time, or marked as late.

`ovsdino stream` runs this loop; `Stream` is the loop for programs of your own:

    def on_result(result):
        if not result.stale:
            steer(result.labels)

    summary = stream.run(on_result)

Two times are told apart. *Camera to mask* is the age of the frame when its labels are there: waiting for the network
and decoding are in it; older than the deadline, the result is `stale`. *Inference* is the segmenter alone; longer than
the deadline, it is a `miss`. Many stale results and few misses say that the time is lost before the network.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from ovsdino.errors import OVSDinoError, one_line
from ovsdino.stream.capture import Capture, Frame, LatestFrame
from ovsdino.stream.watchdog import Watchdog
from ovsdino.timing import Histogram

__all__ = ["Engine", "Segments", "Stream", "StreamResult", "stop_on_signals"]

MAX_FAILURES = 10  # segmentations in a row that raise: a broken engine, not a broken frame
POLL_S = 0.05  # how often an idle loop looks at the source


class Segments(Protocol):
    """Anything that labels an image, such as an `EdgeSegmenter`."""

    @property
    def segment(self) -> Callable[..., Any]:
        """A function of (H, W, 3) uint8 RGB and an engine's options; its result has `labels` (H, W)."""


@dataclass(frozen=True)
class Engine:
    """A segmenter, its name in reports, and the options of its `segment`."""

    name: str
    segmenter: Segments
    options: Mapping[str, Any] = field(default_factory=dict)

    def segment(self, pixels: np.ndarray) -> Any:
        """Label one frame."""
        return self.segmenter.segment(pixels, **self.options)


@dataclass(frozen=True, kw_only=True, eq=False)
class StreamResult:
    """The labels of one frame.

    Attributes:
        frame: The frame, with its sequence number and its time.
        labels: (H, W) integers at the frame's size.
        engine: Name of the engine that made them.
        finished: Monotonic seconds when the labels were there.
        inference_ms: Milliseconds of the segmenter alone.
        stale: Whether the frame was older than the deadline when the labels were there.
        names: The words of the labels.
    """

    frame: Frame
    labels: np.ndarray = field(repr=False)
    engine: str
    finished: float
    inference_ms: float
    stale: bool
    names: tuple[str, ...] = ()

    @property
    def camera_to_mask_ms(self) -> float:
        """The age of the frame when its labels were there."""
        return 1e3 * (self.finished - self.frame.captured)

    def age_ms(self, now: float) -> float:
        """Return the age of the frame at a later moment; look at it before acting on an older result."""
        return 1e3 * (now - self.frame.captured)


class Tally:
    """Counts and percentiles of a stretch of time, in bounded memory."""

    def __init__(self, now: float) -> None:
        self.started = now
        self.frames = self.stale = self.misses = self.failed = 0
        self.camera_to_mask, self.inference = Histogram(), Histogram()

    def add(self, result: StreamResult, deadline_ms: float | None) -> None:
        self.frames += 1
        self.stale += result.stale
        self.misses += deadline_ms is not None and result.inference_ms > deadline_ms
        self.camera_to_mask.add(max(0.0, result.camera_to_mask_ms))
        self.inference.add(result.inference_ms)

    def fps(self, now: float) -> float:
        return self.frames / (now - self.started) if now > self.started else 0.0


class Stream:
    """Segment the newest frame again and again, until a limit, the source's end, or `stop`.

    Args:
        capture: Reads the source into `slot`; started and stopped by `run`.
        slot: Holds the newest frame.
        engines: The engine to use and its smaller stand-ins, the largest first; all label the same classes.
        watchdog: Chooses among them; None: no deadline.
        frames: Most results; None: no limit.
        seconds: Seconds after the first frame; None: no limit.
        report_s: Seconds between two reports; None: no reports.
        say: Receives reports and faults, one line each.
        clock: Monotonic seconds, the capture's clock.
        between: Called before each look for a frame, as to take other words.

    Raises:
        OVSDinoError: There is no engine, or a limit is out of range.
    """

    def __init__(
        self,
        capture: Capture,
        slot: LatestFrame[Frame],
        engines: Sequence[Engine],
        *,
        watchdog: Watchdog | None = None,
        frames: int | None = None,
        seconds: float | None = None,
        report_s: float | None = 5.0,
        say: Callable[[str], None] = lambda message: None,
        clock: Callable[[], float] = time.monotonic,
        between: Callable[[], None] = lambda: None,
    ) -> None:
        if not engines:
            raise OVSDinoError("no engine given: expected at least one")
        for name, value in (("frames", frames), ("seconds", seconds), ("report_s", report_s)):
            if value is not None and not value > 0:
                raise OVSDinoError(f"{name} is {value}: expected more than 0")
        self.stop = threading.Event()
        self._capture, self._slot, self._engines, self._watchdog = capture, slot, engines, watchdog
        self._frames, self._seconds, self._report_s = frames, seconds, report_s
        self._say, self._clock, self._between = say, clock, between
        self._deadline_ms = watchdog.deadline_ms if watchdog else None
        self._level = 0
        self._failures = 0
        self._size: tuple[int, ...] | None = None
        self._size_changes = 0
        self._warm_up_ms = 0.0
        self._last: float | None = None
        self._longest_gap_ms = 0.0
        self._total: Tally | None = None  # from the first frame after warm-up
        self._recent: Tally | None = None
        self._used = dict.fromkeys((engine.name for engine in engines), 0)

    def run(self, on_result: Callable[[StreamResult], None] = lambda result: None) -> dict[str, Any]:
        """Run the loop.

        Args:
            on_result: Receives each `StreamResult`; the time it takes costs frames, not camera-to-mask time.

        Returns:
            The summary; "ended" says why: "frames", "seconds", "source", "stopped", or "error" with its "error".

        Raises:
            OVSDinoError: Not one frame came, or an engine cannot segment any.
        """
        self._capture.start()
        try:
            ended = self._loop(on_result)
        finally:
            self._capture.stop()
        summary = self.summary(ended)
        if ended == "error":
            if self._total is None or not self._total.frames:
                assert self._capture.error is not None
                raise self._capture.error
            summary["error"] = one_line(self._capture.error)
        return summary

    def _loop(self, on_result: Callable[[StreamResult], None]) -> str:
        while True:
            now = self._clock()
            if self.stop.is_set():
                return "stopped"
            if self._total is not None:
                if self._seconds is not None and now - self._total.started >= self._seconds:
                    return "seconds"
                if self._frames is not None and self._total.frames >= self._frames:
                    return "frames"
            self._report_when_due(now)
            self._between()
            self._capture.check(now)
            finished = self._capture.finished  # asked first: the last frame is in the slot by then
            frame = self._slot.take(POLL_S)
            if frame is not None:
                result = self._one(frame)
                if result is not None:
                    on_result(result)
            elif finished:
                return "error" if self._capture.error is not None else "source"

    def _one(self, frame: Frame) -> StreamResult | None:
        """Segment a frame; return None where it was used to warm up, or the engine raised."""
        if self._total is None:
            self._warm_up(frame.pixels)
            self._total, self._recent = Tally(self._clock()), Tally(self._clock())
            if not (self._slot.keep_all or self._capture.finished):
                return None  # it grew old while the engines warmed up, and a newer one will come
        assert self._total is not None and self._recent is not None
        if frame.pixels.shape != self._size:
            self._size_changes += self._size is not None
            self._size = frame.pixels.shape
        engine = self._engines[self._level]
        begun = self._clock()
        try:
            found = engine.segment(frame.pixels)
        except Exception as error:
            self._failed(engine, error)
            return None
        finished = self._clock()
        self._failures = 0
        age_ms = 1e3 * (finished - frame.captured)
        stale = self._deadline_ms is not None and age_ms > self._deadline_ms
        result = StreamResult(
            frame=frame,
            labels=found.labels,
            names=tuple(getattr(found, "names", ())),
            engine=engine.name,
            finished=finished,
            inference_ms=1e3 * (finished - begun),
            stale=stale,
        )
        for tally in (self._total, self._recent):
            tally.add(result, self._deadline_ms)
        self._used[engine.name] += 1
        if self._last is not None:
            self._longest_gap_ms = max(self._longest_gap_ms, 1e3 * (finished - self._last))
        self._last = finished
        if self._watchdog is not None:
            self._switch(self._watchdog.record(age_ms, finished), "results are late")
        return result

    def _warm_up(self, pixels: np.ndarray) -> None:
        """Run each engine once, so that a switch never meets a cold one."""
        begun = self._clock()
        for engine in self._engines:
            try:
                engine.segment(pixels)
            except OVSDinoError:
                raise
            except Exception as error:
                raise OVSDinoError(
                    f"{engine.name}: cannot segment a frame {pixels.shape}: {one_line(error)}"
                ) from error
        self._warm_up_ms = 1e3 * (self._clock() - begun)

    def _failed(self, engine: Engine, error: Exception) -> None:
        self._failures += 1
        assert self._total is not None
        self._total.failed += 1
        if self._failures == 1:
            self._say(f"{engine.name} failed: {one_line(error, 200) or type(error).__name__}")
        if self._failures < MAX_FAILURES:
            return
        before = self._level
        if self._watchdog is not None:
            self._switch(self._watchdog.fail(self._clock()), "it fails")
        if self._level == before:
            raise OVSDinoError(f"{engine.name} failed {self._failures} times in a row: {one_line(error)}") from error
        self._failures = 0

    def _switch(self, level: int, why: str) -> None:
        if level != self._level:
            reason = why if level > self._level else "there is room"
            self._say(f"{reason}: {self._engines[self._level].name} -> {self._engines[level].name}")
            self._level = level

    def _report_when_due(self, now: float) -> None:
        if self._report_s is None or self._recent is None or now - self._recent.started < self._report_s:
            return
        assert self._total is not None
        self._say(self._line(self._recent, now))
        self._recent = Tally(now)

    def _line(self, tally: Tally, now: float) -> str:
        assert self._total is not None
        degraded = self._watchdog.degradations if self._watchdog else 0
        return (
            f"{now - self._total.started:.1f} s: {tally.fps(now):.1f} fps, "
            f"camera to mask {_percentiles(tally.camera_to_mask)}, inference {_percentiles(tally.inference)}, "
            f"dropped {self._slot.dropped}, stale {tally.stale}, misses {tally.misses}, degradations {degraded}, "
            f"{self._engines[self._level].name}"
        )

    def summary(self, ended: str) -> dict[str, Any]:
        """Return all figures so far, ready for JSON: times in ms, counts of the whole run.

        `captured` is `frames` + `failed` + `dropped`, and at most two more: one of the warm-up and one not yet taken.
        """
        now = self._clock()
        total, counts = self._total or Tally(now), self._capture.counts
        watchdog = self._watchdog
        return {
            "ended": ended,
            "seconds": round(now - total.started, 3),
            "frames": total.frames,
            "fps": round(total.fps(now), 3),
            "camera_to_mask_ms": total.camera_to_mask.summary(),
            "inference_ms": total.inference.summary(),
            "longest_gap_ms": round(self._longest_gap_ms, 3),
            "warm_up_ms": round(self._warm_up_ms, 3),
            "deadline_ms": self._deadline_ms,
            "captured": counts.captured,
            "dropped": self._slot.dropped,
            "stale": total.stale,
            "misses": total.misses,
            "degradations": watchdog.degradations if watchdog else 0,
            "recoveries": watchdog.recoveries if watchdog else 0,
            "failed": total.failed,
            "corrupt": counts.corrupt,
            "stalls": counts.stalls,
            "failures": counts.failures,
            "reconnects": counts.reconnects,
            "size_changes": self._size_changes,
            "engines": dict(self._used),
        }


def describe(summary: dict[str, Any]) -> str:
    """Return the summary in lines for a person."""
    lines = [f"{summary['frames']} frames in {summary['seconds']:.1f} s, {summary['fps']:.1f} fps ({summary['ended']})"]
    for name, key in (("camera to mask", "camera_to_mask_ms"), ("inference", "inference_ms")):
        times = summary[key]
        if times:
            lines.append(f"{name}: " + ", ".join(f"{part} {value:.1f} ms" for part, value in times.items()))
    counted = ("captured", "dropped", "stale", "misses", "degradations", "recoveries", "failed", "corrupt", "stalls")
    lines.append(", ".join(f"{name} {summary[name]}" for name in (*counted, "failures", "reconnects")))
    lines.append("engines: " + ", ".join(f"{name} {count}" for name, count in summary["engines"].items()))
    return "\n".join(lines)


@contextmanager
def stop_on_signals(stop: threading.Event) -> Iterator[None]:
    """Set `stop` at the first SIGINT or SIGTERM and let the next act as usual; outside the main thread do nothing."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def once(number: int, _frame: object) -> None:
        stop.set()
        signal.signal(number, before[signal.Signals(number)])

    for number in before:
        signal.signal(number, once)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _percentiles(histogram: Histogram) -> str:
    times = histogram.summary()
    return "-" if times is None else f"p50 {times['p50']:.1f} p95 {times['p95']:.1f} p99 {times['p99']:.1f} ms"
