"""The labels of one frame, and the counts and percentiles of many."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ovsdino.stream.capture import Frame
from ovsdino.timing import Histogram

__all__ = ["StreamResult", "Tally", "percentiles_of"]


@dataclass(frozen=True, kw_only=True, eq=False)
class StreamResult:
    """The labels of one frame.

    Attributes:
        frame: The frame, with its sequence number and its time.
        labels: (H, W) integers at the frame's size.
        engine: Name of the engine that made them.
        finished: Monotonic seconds when the labels were there.
        inference_ms: Milliseconds of the segmenter alone; of all frames that it took at once.
        stale: Whether the frame was older than the deadline when the labels were there.
        names: The words of the labels.
        camera: Place of its camera, from 0, where there are several; None where there is one.
    """

    frame: Frame
    labels: np.ndarray = field(repr=False)
    engine: str
    finished: float
    inference_ms: float
    stale: bool
    names: tuple[str, ...] = ()
    camera: int | None = None

    @property
    def camera_to_mask_ms(self) -> float:
        """The age of the frame when its labels were there."""
        return 1e3 * (self.finished - self.frame.captured)

    def age_ms(self, now: float) -> float:
        """Return the age of the frame at a later moment; look at it before acting on an older result."""
        return 1e3 * (now - self.frame.captured)


class Tally:
    """Counts and percentiles of a stretch of time, in bounded memory.

    Args:
        now: Monotonic seconds of its beginning.
    """

    def __init__(self, now: float) -> None:
        self.started = now
        self.frames = self.stale = self.misses = self.failed = 0
        self.camera_to_mask, self.inference = Histogram(), Histogram()

    def add(self, result: StreamResult, deadline_ms: float | None) -> None:
        """Count a result."""
        self.frames += 1
        self.stale += result.stale
        self.misses += deadline_ms is not None and result.inference_ms > deadline_ms
        self.camera_to_mask.add(max(0.0, result.camera_to_mask_ms))
        self.inference.add(result.inference_ms)

    def fps(self, now: float) -> float:
        """Return the results a second until now."""
        return self.frames / (now - self.started) if now > self.started else 0.0

    def summary(self, now: float) -> dict[str, Any]:
        """Return the figures, ready for JSON."""
        return {
            "frames": self.frames,
            "fps": round(self.fps(now), 3),
            "camera_to_mask_ms": self.camera_to_mask.summary(),
            "inference_ms": self.inference.summary(),
            "stale": self.stale,
            "misses": self.misses,
            "failed": self.failed,
        }


def percentiles_of(histogram: Histogram) -> str:
    """Return the percentiles of a report's line."""
    times = histogram.summary()
    return "-" if times is None else f"p50 {times['p50']:.1f} p95 {times['p95']:.1f} p99 {times['p99']:.1f} ms"
