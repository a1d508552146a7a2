"""The cameras of a stream: what each has given and how late, and the newest frames of them all."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

from ovsdino.errors import OVSDinoError, one_line
from ovsdino.stream.capture import Capture, Frame, LatestFrame
from ovsdino.stream.result import StreamResult, Tally

__all__ = ["Camera", "newest_frames"]


class Camera:
    """A source of frames with its deadline, and the counts of its results.

    Args:
        capture: Reads the source into `slot`; started and stopped by the loop.
        slot: Holds the newest frame.
        name: What reports call it.
        deadline_ms: Age beyond which a result of it is stale; None: no deadline.

    Raises:
        OVSDinoError: The deadline is not above 0.
    """

    def __init__(
        self, capture: Capture, slot: LatestFrame[Frame], name: str = "", deadline_ms: float | None = None
    ) -> None:
        if deadline_ms is not None and not deadline_ms > 0:
            raise OVSDinoError(f"the deadline is {deadline_ms} ms: expected more than 0")
        self.capture, self.slot, self.name, self.deadline_ms = capture, slot, name, deadline_ms
        self.total: Tally | None = None  # from the end of warm-up
        self.recent: Tally | None = None
        self.size: tuple[int, ...] | None = None
        self.size_changes = 0
        self.longest_gap_ms = 0.0
        self.last: float | None = None  # when it gave a result
        self.told = False  # whether its end was told

    def begin(self, now: float) -> None:
        """Count from now on."""
        self.total, self.recent = Tally(now), Tally(now)

    def see(self, frame: Frame) -> None:
        """Take note of a frame that is about to be segmented."""
        if frame.pixels.shape != self.size:
            self.size_changes += self.size is not None
            self.size = frame.pixels.shape

    def add(self, result: StreamResult) -> None:
        """Count a result."""
        assert self.total is not None and self.recent is not None
        if self.last is not None:
            self.longest_gap_ms = max(self.longest_gap_ms, 1e3 * (result.finished - self.last))
        self.last = result.finished
        for tally in (self.total, self.recent):
            tally.add(result, self.deadline_ms)

    def counts(self) -> dict[str, int]:
        """Return the counts of its source."""
        counts = self.capture.counts
        return {
            "captured": counts.captured,
            "dropped": self.slot.dropped,
            "corrupt": counts.corrupt,
            "stalls": counts.stalls,
            "failures": counts.failures,
            "reconnects": counts.reconnects,
            "size_changes": self.size_changes,
        }

    def summary(self, now: float) -> dict[str, Any]:
        """Return all its figures so far, ready for JSON; "error" where it was given up."""
        figures = {
            "source": self.name,
            **(self.total or Tally(now)).summary(now),
            "longest_gap_ms": round(self.longest_gap_ms, 3),
            "deadline_ms": self.deadline_ms,
            **self.counts(),
        }
        if self.capture.error is not None:
            figures["error"] = one_line(self.capture.error)
        return figures


def newest_frames(
    cameras: Sequence[Camera], most: int, timeout: float, bell: threading.Event
) -> list[tuple[Camera, Frame]]:
    """Return the newest frames that wait, those of the cameras first that had no result for longest.

    Nobody waits for a slow camera: while the network runs, frames of all the others come in, and go together.

    Args:
        cameras: The cameras, whose slots ring the bell.
        most: Frames at most.
        timeout: Seconds to wait for the first.
        bell: Set by a slot that was given a frame.
    """
    if len(cameras) == 1:
        frame = cameras[0].slot.take(timeout)
        return [] if frame is None else [(cameras[0], frame)]
    for patience in (timeout, 0.0):
        bell.clear()
        found: list[tuple[Camera, Frame]] = []
        for camera in sorted(cameras, key=lambda one: one.last or 0.0):
            if len(found) < most and (frame := camera.slot.take(0.0)) is not None:
                found.append((camera, frame))
        if found or not patience:
            return found
        bell.wait(patience)
    return []
