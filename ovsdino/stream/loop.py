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
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import numpy as np

from ovsdino.errors import OVSDinoError, one_line
from ovsdino.stream.cameras import Camera, newest_frames
from ovsdino.stream.capture import Capture, Frame, LatestFrame, SourceError
from ovsdino.stream.result import StreamResult, Tally, percentiles_of
from ovsdino.stream.watchdog import Watchdog

__all__ = ["Engine", "Segments", "Stream", "StreamResult", "Streams", "describe", "stop_on_signals"]

MAX_FAILURES = 10  # segmentations in a row that raise: a broken engine, not a broken frame
POLL_S = 0.05  # how often an idle loop looks at the source


class Segments(Protocol):
    """Anything that labels an image, such as an `EdgeSegmenter`."""

    @property
    def segment(self) -> Callable[..., Any]:
        """A function of (H, W, 3) uint8 RGB and an engine's options; its result has `labels` (H, W)."""


@dataclass(frozen=True)
class Engine:
    """A segmenter, its name in reports, and the options of its `segment`.

    A segmenter with `segment_batch` and a `batch` above 1 takes the frames of several cameras at once, and one with
    `stage` is told of each frame as it comes, see `EdgeSegmenter`.
    """

    name: str
    segmenter: Segments
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def batch(self) -> int:
        """The most frames that it takes at once."""
        return int(getattr(self.segmenter, "batch", 1))

    def segment(self, pixels: np.ndarray) -> Any:
        """Label one frame."""
        return self.segmenter.segment(pixels, **self.options)

    def stage(self, pixels: np.ndarray, camera: int) -> None:
        """Begin to bring a frame to the segmenter's device, while it segments another, where it has one."""
        begin = getattr(self.segmenter, "stage", None)
        if begin is not None:
            form = {name: self.options[name] for name in ("nv12", "bgr") if name in self.options}
            begin(pixels, camera=camera, **form)

    def segment_all(self, frames: Sequence[np.ndarray]) -> list[Any]:
        """Label frames of several cameras, at most `batch`."""
        together = getattr(self.segmenter, "segment_batch", None)
        if together is None:
            return [self.segment(pixels) for pixels in frames]
        return list(together(frames, **self.options))


class Streams:
    """Segment the newest frames of cameras again and again, until a limit, the end of all sources, or `stop`.

    A camera that fails or ends does not stop the others. Frames that wait at the same time go through the network
    together, as many as it takes.

    Args:
        cameras: The cameras, each with its deadline; captures are started and stopped by `run`.
        engines: The engine to use and its smaller stand-ins, the largest first; all label the same classes.
        watchdog: Chooses among them, by ages in shares of each camera's deadline; None: the first is used.
        frames: Most results, of all cameras together; None: no limit.
        seconds: Seconds after the first frame; None: no limit.
        report_s: Seconds between two reports; None: no reports.
        say: Receives reports and faults, one line each.
        clock: Monotonic seconds, the captures' clock.
        between: Called before each look for frames, as to take other words.

    Raises:
        OVSDinoError: There is no camera or engine, a watchdog without deadlines, or a limit is out of range.
    """

    def __init__(
        self,
        cameras: Sequence[Camera],
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
        for things, name in ((cameras, "camera"), (engines, "engine")):
            if not things:
                raise OVSDinoError(f"no {name} given: expected at least one")
        for limit, value in (("frames", frames), ("seconds", seconds), ("report_s", report_s)):
            if value is not None and not value > 0:
                raise OVSDinoError(f"{limit} is {value}: expected more than 0")
        if watchdog is not None and any(camera.deadline_ms is None for camera in cameras):
            raise OVSDinoError("a watchdog needs the deadline of each camera, in milliseconds")
        self.stop = threading.Event()
        self._cameras, self._engines, self._watchdog = list(cameras), engines, watchdog
        self._frames, self._seconds, self._report_s = frames, seconds, report_s
        self._say, self._clock, self._between = say, clock, between
        for place, camera in enumerate(self._cameras):
            camera.slot.before = partial(self._stage, place)
        self._several = len(self._cameras) > 1
        self._bell = threading.Event()
        if self._several:
            for camera in self._cameras:
                camera.slot.bell = self._bell
        self._level = 0
        self._failures = 0
        self._warm_up_ms = 0.0
        self._total: Tally | None = None  # of all cameras, from the first frame after warm-up
        self._recent: Tally | None = None
        self._used = dict.fromkeys((engine.name for engine in engines), 0)

    def run(self, on_result: Callable[[StreamResult], None] = lambda result: None) -> dict[str, Any]:
        """Run the loop.

        Args:
            on_result: Receives each `StreamResult`; the time it takes costs frames, not camera-to-mask time.

        Returns:
            The summary; "ended" says why: "frames", "seconds", "source", "stopped", or "error" where no camera is left.
            "error" is there where one was given up.

        Raises:
            OVSDinoError: Not one frame came, or an engine cannot segment any.
        """
        for camera in self._cameras:
            camera.capture.start()
        try:
            ended = self._loop(on_result)
        finally:
            for camera in self._cameras:
                camera.capture.stop()
        if ended == "error" and (self._total is None or not self._total.frames):
            first = self._cameras[0].capture.error
            assert first is not None
            raise SourceError(f"{self._label(0)}: {one_line(first)}") if self._several else first
        return self.summary(ended)

    def _loop(self, on_result: Callable[[StreamResult], None]) -> str:
        while True:
            now = self._clock()
            if self.stop.is_set():
                return "stopped"
            most = self._engines[self._level].batch
            if self._total is not None:
                if self._seconds is not None and now - self._total.started >= self._seconds:
                    return "seconds"
                if self._frames is not None:
                    most = min(most, self._frames - self._total.frames)
                    if most <= 0:
                        return "frames"
            self._report_when_due(now)
            self._between()
            for camera in self._cameras:
                camera.capture.check(now)
            finished = [camera.capture.finished for camera in self._cameras]  # asked first: the last frame is there
            taken = newest_frames(self._cameras, most, POLL_S, self._bell)
            for result in self._segment(taken) if taken else ():
                on_result(result)
            if self._several:
                self._tell_of_errors()
            if not taken and all(finished):
                failed = all(camera.capture.error is not None for camera in self._cameras)
                return "error" if failed else "source"

    def _stage(self, place: int, frame: Frame) -> None:
        """Bring a frame to the device, in the thread that captured it."""
        with suppress(Exception):  # what is wrong with it is told when it is segmented
            self._engines[self._level].stage(frame.pixels, place)

    def _segment(self, taken: list[tuple[Camera, Frame]]) -> list[StreamResult]:
        """Segment frames that wait; nothing comes of one that was used to warm up, or that the engine refused."""
        if self._total is None:
            self._warm_up([frame.pixels for _, frame in taken])
            now = self._clock()
            self._total, self._recent = Tally(now), Tally(now)
            for camera in self._cameras:
                camera.begin(now)
            # what a camera gave grew old while the engines warmed up, and a newer frame will come
            taken = [(one, frame) for one, frame in taken if one.slot.keep_all or one.capture.finished]
            if not taken:
                return []
        for camera, frame in taken:
            camera.see(frame)
        engine = self._engines[self._level]
        begun = self._clock()
        found = self._tried(engine, [frame.pixels for _, frame in taken])
        finished = self._clock()
        results = []
        for (camera, frame), one in zip(taken, found, strict=True):
            if isinstance(one, Exception):
                self._failed(camera, engine, one)
            else:
                results.append(self._counted(camera, frame, engine, one, begun, finished))
        return results

    def _tried(self, engine: Engine, frames: list[np.ndarray]) -> list[Any]:
        """Return what an engine finds in each frame, or what it raised; a bad frame does not cost another camera's."""
        try:
            return engine.segment_all(frames) if self._several else [engine.segment(frames[0])]
        except Exception as error:
            if len(frames) == 1:
                return [error]
            return [one for pixels in frames for one in self._tried(engine, [pixels])]

    def _counted(
        self, camera: Camera, frame: Frame, engine: Engine, found: Any, begun: float, finished: float
    ) -> StreamResult:
        assert self._total is not None and self._recent is not None
        self._failures = 0
        age_ms = 1e3 * (finished - frame.captured)
        result = StreamResult(
            frame=frame,
            labels=found.labels,
            names=tuple(getattr(found, "names", ())),
            engine=engine.name,
            finished=finished,
            inference_ms=1e3 * (finished - begun),
            stale=camera.deadline_ms is not None and age_ms > camera.deadline_ms,
            camera=self._cameras.index(camera) if self._several else None,
        )
        camera.add(result)
        for tally in (self._total, self._recent):
            tally.add(result, camera.deadline_ms)
        self._used[engine.name] += 1
        if self._watchdog is not None and camera.deadline_ms is not None:
            share = self._watchdog.deadline_ms / camera.deadline_ms
            self._switch(self._watchdog.record(age_ms * share, finished), "results are late")
        return result

    def _warm_up(self, frames: list[np.ndarray]) -> None:
        """Run each engine once, so that a switch never meets a cold one."""
        begun = self._clock()
        for engine in self._engines:
            several = frames * len(self._cameras)
            try:
                if self._several:
                    engine.segment_all(several[: min(engine.batch, len(self._cameras))])
                else:
                    engine.segment(frames[0])
            except OVSDinoError:
                raise
            except Exception as error:
                raise OVSDinoError(
                    f"{engine.name}: cannot segment a frame {frames[0].shape}: {one_line(error)}"
                ) from error
        self._warm_up_ms = 1e3 * (self._clock() - begun)

    def _failed(self, camera: Camera, engine: Engine, error: Exception) -> None:
        self._failures += 1
        assert self._total is not None and camera.total is not None
        self._total.failed += 1
        camera.total.failed += 1
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

    def _label(self, place: int) -> str:
        name = self._cameras[place].name
        return f"camera {place} ({one_line(name, 60)})" if name else f"camera {place}"

    def _tell_of_errors(self) -> None:
        for place, camera in enumerate(self._cameras):
            if camera.capture.error is not None and not camera.told:
                camera.told = True
                self._say(f"{self._label(place)}: {one_line(camera.capture.error)}")

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
        for camera in self._cameras:
            camera.recent = Tally(now)

    def _line(self, tally: Tally, now: float) -> str:
        assert self._total is not None
        degraded = self._watchdog.degradations if self._watchdog else 0
        parts = [
            f"{now - self._total.started:.1f} s: {tally.fps(now):.1f} fps, "
            f"camera to mask {percentiles_of(tally.camera_to_mask)}, inference {percentiles_of(tally.inference)}, "
            f"dropped {sum(camera.slot.dropped for camera in self._cameras)}, stale {tally.stale}, "
            f"misses {tally.misses}, degradations {degraded}, {self._engines[self._level].name}"
        ]
        for place, camera in enumerate(self._cameras if self._several else ()):
            own = camera.recent or Tally(now)
            parts.append(f"camera {place}: {own.fps(now):.1f} fps, dropped {camera.slot.dropped}, stale {own.stale}")
        return "; ".join(parts)

    def summary(self, ended: str) -> dict[str, Any]:
        """Return all figures so far, ready for JSON: times in ms, counts of the whole run and of all cameras.

        `captured` is `frames` + `failed` + `dropped`, and at most two more of a camera: one of the warm-up and one not
        yet taken. Of several cameras each has its own figures in "cameras".
        """
        now = self._clock()
        total = self._total or Tally(now)
        counts = [camera.counts() for camera in self._cameras]
        deadlines = {camera.deadline_ms for camera in self._cameras}
        watchdog = self._watchdog
        summary = {
            "ended": ended,
            "seconds": round(now - total.started, 3),
            **total.summary(now),
            "longest_gap_ms": round(max(camera.longest_gap_ms for camera in self._cameras), 3),
            "warm_up_ms": round(self._warm_up_ms, 3),
            "deadline_ms": deadlines.pop() if len(deadlines) == 1 else None,
            "degradations": watchdog.degradations if watchdog else 0,
            "recoveries": watchdog.recoveries if watchdog else 0,
            **{name: sum(own[name] for own in counts) for name in counts[0]},
            "engines": dict(self._used),
        }
        errors = [(place, camera.capture.error) for place, camera in enumerate(self._cameras) if camera.capture.error]
        if self._several:
            summary["cameras"] = [camera.summary(now) for camera in self._cameras]
            if errors:
                summary["error"] = "; ".join(f"camera {place}: {one_line(error)}" for place, error in errors)
        elif ended == "error":
            summary["error"] = one_line(errors[0][1])
        return summary


class Stream(Streams):
    """Segment the newest frame of one camera again and again, until a limit, the source's end, or `stop`.

    Args:
        capture: Reads the source into `slot`; started and stopped by `run`.
        slot: Holds the newest frame.
        engines: The engine to use and its smaller stand-ins, the largest first; all label the same classes.
        watchdog: Chooses among them, and has the deadline; None: no deadline.
        **options: See `Streams`: frames, seconds, report_s, say, clock, between.

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
        **options: Any,
    ) -> None:
        camera = Camera(capture, slot, deadline_ms=watchdog.deadline_ms if watchdog else None)
        super().__init__([camera], engines, watchdog=watchdog, **options)


def describe(summary: dict[str, Any]) -> str:
    """Return the summary in lines for a person."""
    lines = [f"{summary['frames']} frames in {summary['seconds']:.1f} s, {summary['fps']:.1f} fps ({summary['ended']})"]
    for name, key in (("camera to mask", "camera_to_mask_ms"), ("inference", "inference_ms")):
        times = summary[key]
        if times:
            lines.append(f"{name}: " + ", ".join(f"{part} {value:.1f} ms" for part, value in times.items()))
    counted = ("captured", "dropped", "stale", "misses", "degradations", "recoveries", "failed", "corrupt", "stalls")
    lines.append(", ".join(f"{name} {summary[name]}" for name in (*counted, "failures", "reconnects")))
    for place, camera in enumerate(summary.get("cameras", ())):
        own = ("frames", "captured", "dropped", "stale", "failed", "corrupt", "stalls", "failures", "reconnects")
        lines.append(f"camera {place}: " + ", ".join(f"{name} {camera[name]}" for name in own))
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
