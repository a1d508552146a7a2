"""Read frames from cameras, streams, video files and folders: in a thread of its own, the newest kept, faults survived.

A robot must segment what is in front of it now. So reading never waits for the network, and the network never waits for
a queue: `Capture` reads as fast as the source gives frames, `LatestFrame` holds one frame, and a frame that is replaced
before it is taken counts as dropped. A source that fails is opened again, at growing intervals. One that hangs inside a
driver's read(), which nothing in Python can interrupt, is left behind with its thread.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

import numpy as np

from ovsdino.edge.pixels import check_image
from ovsdino.errors import OVSDinoError, one_line

__all__ = ["Capture", "CaptureCounts", "CaptureLimits", "Frame", "LatestFrame", "Source", "SourceError"]

MAX_CORRUPT = 30  # frames in a row that cannot be decoded: one second of a camera; then it is opened again
MAX_HUNG = 4  # threads left in a driver; each holds a stack and a device


class SourceError(OVSDinoError):
    """A source that cannot be opened or has stopped giving frames."""


class Source(Protocol):
    """A source of frames; used by one thread only, and made again for each attempt to open it.

    Attributes:
        live: Whether it is opened again when it ends: True for a camera or stream, False for files.
        period_s: Seconds between frames where that is known, 0 where not.
    """

    live: bool
    period_s: float

    def open(self) -> None:
        """Open the source; raise anything when it is not there."""

    def grab(self) -> float | None:
        """Wait for the next frame; return when it was taken, in seconds of the capture's clock, or None at the end."""

    def retrieve(self) -> np.ndarray:
        """Return the grabbed frame, (H, W, 3) uint8 RGB or NV12 (H*3//2, W) uint8; raise when it is damaged."""

    def close(self) -> None:
        """Release the source."""


@dataclass(frozen=True, eq=False)
class Frame:
    """One frame.

    Attributes:
        sequence: 1, 2, 3, ... of all frames captured, across reconnections; a gap is a dropped frame.
        captured: Monotonic seconds when it was taken.
        pixels: (H, W, 3) uint8 RGB, or NV12 (H*3//2, W) uint8.
    """

    sequence: int
    captured: float
    pixels: np.ndarray = field(repr=False)


class Numbered(Protocol):
    """Anything with a sequence number, such as a `Frame`."""

    @property
    def sequence(self) -> int:
        """1, 2, 3, ..., in the order in which they were captured."""


N = TypeVar("N", bound=Numbered)


class LatestFrame(Generic[N]):
    """Room for one frame between one writer and one reader.

    Attributes:
        bell: Set when a frame is stored, for a reader of several; None: no bell.
        before: Called with a frame by its writer before it is stored, as to bring it to a device; None: nothing.

    Args:
        keep_all: The writer waits until its frame was taken, so that none is dropped: for files, not for cameras.
    """

    def __init__(self, keep_all: bool = False) -> None:
        self.keep_all = keep_all
        self.bell: threading.Event | None = None
        self.before: Callable[[N], None] | None = None
        self._condition = threading.Condition()
        self._frame: N | None = None
        self._newest = 0
        self._closed = False
        self._dropped = 0

    @property
    def dropped(self) -> int:
        """The number of frames replaced before they were taken."""
        with self._condition:
            return self._dropped

    def put(self, frame: N) -> bool:
        """Store a frame in place of the last; return False for one older than the newest, and after `close`."""
        if self.before is not None:
            with self._condition:
                self._wait_for_room()
            self.before(frame)
        with self._condition:
            self._wait_for_room()
            if self._closed:
                return False
            if frame.sequence <= self._newest:  # from a reader that was given up and came back late
                self._dropped += 1
                return False
            self._dropped += self._frame is not None
            self._frame, self._newest = frame, frame.sequence
            self._condition.notify_all()
        if self.bell is not None:
            self.bell.set()
        return True

    def _wait_for_room(self) -> None:
        self._condition.wait_for(lambda: not self.keep_all or self._frame is None or self._closed)

    def take(self, timeout: float) -> N | None:
        """Return the newest frame, each at most once, or None where none comes within `timeout` seconds."""
        with self._condition:
            self._condition.wait_for(lambda: self._frame is not None or self._closed, timeout)
            frame, self._frame = self._frame, None
            self._condition.notify_all()
            return frame

    def close(self) -> None:
        """Release everyone who waits."""
        with self._condition:
            self._closed = True
            self._condition.notify_all()


@dataclass(frozen=True, kw_only=True)
class CaptureLimits:
    """Limits on the silence of a source.

    Attributes:
        open_s: Seconds to open, and to the first frame.
        stall_s: Seconds without a frame after which it counts as stalled and is opened again.
        backoff_s: First and longest pause before it is opened again; the pause doubles from one to the other.
        give_up_s: Seconds without a frame after which reading ends with an error; None: never.
        wait: Try to open a camera that is not there yet, too; otherwise the first failure is an error.
    """

    open_s: float = 15.0
    stall_s: float = 2.0
    backoff_s: tuple[float, float] = (0.2, 5.0)
    give_up_s: float | None = None
    wait: bool = False

    def __post_init__(self) -> None:
        for name, value in (("open_s", self.open_s), ("stall_s", self.stall_s), ("give_up_s", self.give_up_s)):
            if value is not None and not value > 0:
                raise OVSDinoError(f"{name} is {value}: expected more than 0 seconds")
        if not 0 < self.backoff_s[0] <= self.backoff_s[1]:
            raise OVSDinoError(f"backoff_s is {self.backoff_s}: expected the shorter pause first, above 0")


@dataclass(kw_only=True)
class CaptureCounts:
    """Counts of a capture so far.

    Attributes:
        captured: Frames that could be read.
        corrupt: Frames that could not.
        stalls: Times that the source hung and its thread was left behind.
        failures: Times that it raised or ended.
        reconnects: Times that frames came again after either.
    """

    captured: int = 0
    corrupt: int = 0
    stalls: int = 0
    failures: int = 0
    reconnects: int = 0


class Capture:
    """Read a source in a thread of its own into a `LatestFrame`.

    `check` must be called now and then, from any one thread: it notices a reader that hangs.

    Args:
        factory: Makes a source, closed; called before each attempt to open it.
        slot: Receives the frames.
        limits: See `CaptureLimits`.
        clock: Monotonic seconds, the clock of the source's timestamps.
        say: Is told of faults and of their end, in one line, from any thread.
    """

    def __init__(
        self,
        factory: Callable[[], Source],
        slot: LatestFrame[Frame],
        *,
        limits: CaptureLimits | None = None,
        clock: Callable[[], float] = time.monotonic,
        say: Callable[[str], None] = lambda message: None,
    ) -> None:
        self.limits = limits or CaptureLimits()
        self.counts = CaptureCounts()
        self.ended = False
        self.error: OVSDinoError | None = None
        self._factory, self._slot, self._clock, self._say = factory, slot, clock, say
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._generation = 0  # a reader of an older generation was left behind, and its frames are not wanted
        self._thread: threading.Thread | None = None
        self._hung: list[threading.Thread] = []
        self._due: float | None = None  # when the step in progress counts as hung; None while nothing can hang
        self._progress = clock()
        self._pause = 0.0
        self._faulty = False

    @property
    def finished(self) -> bool:
        """Whether no more frames will come: at the end of a file, or where `error` says why."""
        with self._lock:
            return self.ended or self.error is not None

    @property
    def _begun(self) -> bool:
        """Whether a failure is one to wait for the end of: after the first frame, or from the start with `wait`."""
        return self.limits.wait or bool(self.counts.captured)

    def start(self) -> None:
        """Start to read."""
        with self._lock:
            self._progress = self._clock()
            self._launch()

    def stop(self, timeout: float = 1.0) -> None:
        """End reading; wait for a thread that hangs in a driver for at most `timeout` seconds."""
        self._stop.set()
        self._slot.close()
        with self._lock:
            self._generation += 1
            thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(timeout)

    def check(self, now: float) -> None:
        """Leave a hung reader behind and start another; set `error` when the source is given up."""
        message = ""
        with self._lock:
            if self.ended or self.error is not None or self._stop.is_set():
                return
            silent = now - self._progress
            if self.limits.give_up_s is not None and silent > self.limits.give_up_s and self._begun:
                self.error = SourceError(f"the source gave no frame for {silent:.1f} s and was given up")
                return
            if self._due is not None and now > self._due:
                message = self._leave_behind(silent)
            elif self._thread is None:
                self._hung = [thread for thread in self._hung if thread.is_alive()]
                if len(self._hung) < MAX_HUNG:
                    self._launch()
        if message:
            self._say(message)

    def _leave_behind(self, silent: float) -> str:
        assert self._thread is not None
        self._generation += 1
        self._due = None
        if not self._begun:
            self.error = SourceError(f"the source gave no frame within {silent:.1f} s: check that it is connected")
            return ""
        self._hung = [thread for thread in (*self._hung, self._thread) if thread.is_alive()]
        self._thread = None
        self.counts.stalls += 1
        self._faulty = True
        if len(self._hung) < MAX_HUNG:
            self._launch()
            return f"the source hangs ({silent:.1f} s without a frame): opening it again"
        return f"the source hangs in {len(self._hung)} reads: waiting for one of them to return"

    def _launch(self) -> None:
        self._generation += 1
        self._thread = threading.Thread(
            target=self._run, args=(self._generation,), name=f"capture-{self._generation}", daemon=True
        )
        self._thread.start()

    def _run(self, generation: int) -> None:
        while self._wait(generation):
            source: Source | None = None
            try:
                source = self._factory()
                if not self._begin(generation, self.limits.open_s):
                    return
                source.open()
                self._read(source, generation)
                return
            except Exception as error:  # whatever a driver raises, the source is opened again
                if not self._failed(generation, error, source is None or source.live):
                    return
            finally:
                if source is not None:
                    with suppress(Exception):
                        source.close()

    def _wait(self, generation: int) -> bool:
        """Pause before an attempt; return False when this reader is not wanted any more."""
        with self._lock:
            if generation != self._generation:
                return False
            self._due = None
            shortest, longest = self.limits.backoff_s
            pause = self._pause = min(longest, max(shortest, 2 * self._pause)) if self._faulty else 0.0
        return not self._stop.wait(pause)

    def _begin(self, generation: int, limit_s: float) -> bool:
        """Note that a step begins that may hang; return False when this reader is not wanted any more."""
        with self._lock:
            if generation != self._generation or self._stop.is_set():
                return False
            self._due = self._clock() + limit_s
            return True

    def _read(self, source: Source, generation: int) -> None:
        first, patience = self.limits.open_s, self.limits.stall_s + 2 * source.period_s
        corrupt = 0
        while self._begin(generation, first):
            captured = source.grab()
            if captured is None:
                self._end(source, generation)
                return
            try:
                pixels = source.retrieve()
                check_image(pixels, nv12=pixels.ndim == 2)
            except Exception as error:  # one damaged frame does not cost the next
                corrupt += 1
                with self._lock:
                    self.counts.corrupt += 1
                if corrupt >= MAX_CORRUPT and source.live:
                    raise SourceError(f"{corrupt} damaged frames in a row, the last: {one_line(error)}") from error
                continue
            corrupt, first = 0, patience
            if not self._publish(generation, captured, pixels):
                return

    def _publish(self, generation: int, captured: float, pixels: np.ndarray) -> bool:
        with self._lock:
            if generation != self._generation or self._stop.is_set():
                return False
            self._due = None
            self._pause = 0.0
            self._progress = self._clock()
            back, self._faulty = self._faulty, False
            self.counts.reconnects += back
            self.counts.captured += 1
            frame = Frame(self.counts.captured, captured, pixels)
        if back:
            self._say("frames again")
        self._slot.put(frame)
        return True

    def _end(self, source: Source, generation: int) -> None:
        if source.live:
            raise SourceError("the source ended")
        with self._lock:
            if generation == self._generation:
                self.ended = True
                self._due = None
                if not self.counts.captured:
                    self.error = SourceError(
                        f"no frame could be read ({self.counts.corrupt} damaged): check the file or folder"
                    )

    def _failed(self, generation: int, error: Exception, live: bool) -> bool:
        """Note a fault; return whether to try again."""
        with self._lock:
            if generation != self._generation or self._stop.is_set():
                return False
            self._due = None
            if not live or not self._begun:
                kind = "" if isinstance(error, OVSDinoError) else f"{type(error).__name__}: "
                self.error = SourceError(kind + (one_line(error) or "the source failed"))
                return False
            self.counts.failures += 1
            first, self._faulty = not self._faulty, True
        if first:
            self._say(f"the source failed ({one_line(error, 160) or type(error).__name__}): opening it again")
        return True
