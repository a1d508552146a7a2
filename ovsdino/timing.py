"""The clock: milliseconds by stage, on the CPU or with a device, and their percentiles. It needs no torch."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

__all__ = ["Clock", "medians", "percentiles"]


class Clock:
    """Add up the time of named stages.

    Attributes:
        ms: Milliseconds of each stage, in the order in which the stages first ended.

    Args:
        wait: Called at both ends of a stage; it returns when the device has done what it was given. By default there
            is no device.
    """

    def __init__(self, wait: Callable[[], object] | None = None) -> None:
        self.ms: dict[str, float] = {}
        self._wait = wait

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        """Time the body of a ``with`` statement; a body that raises is not counted."""
        if self._wait is not None:
            self._wait()
        start = time.perf_counter()
        yield
        if self._wait is not None:
            self._wait()
        self.add(stage, (time.perf_counter() - start) * 1e3)

    def add(self, stage: str, ms: float) -> None:
        """Add milliseconds that were measured elsewhere, as by a device's own events."""
        self.ms[stage] = self.ms.get(stage, 0.0) + ms

    def add_share(self, other: Clock, share: float) -> None:
        """Add a share (0..1) of each stage of another clock, as of a batch to one of its images."""
        for stage, ms in other.ms.items():
            self.add(stage, ms * share)


def percentiles(samples: Sequence[float], percents: Sequence[int] = (50, 95, 99)) -> dict[str, float]:
    """Return percentiles by name (``p50``), each interpolated between the two nearest samples."""
    ordered, found = sorted(samples), {}
    for percent in percents:
        place = percent / 100 * (len(ordered) - 1)
        low = int(place)
        high = min(low + 1, len(ordered) - 1)
        found[f"p{percent}"] = ordered[low] + (place - low) * (ordered[high] - ordered[low])
    return found


def medians(rounds: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return the median of each stage over rounds that have the same stages."""
    return {stage: statistics.median(ms[stage] for ms in rounds) for stage in rounds[0]}
