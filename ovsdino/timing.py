"""The clock: milliseconds by stage, on the CPU or with a device, and their percentiles. It needs no torch."""

from __future__ import annotations

import math
import statistics
import time
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

__all__ = ["Clock", "Histogram", "medians", "percentiles"]


class Clock:
    """Add up the time of named stages.

    Attributes:
        ms: Milliseconds of each stage, in the order in which the stages first ended.

    Args:
        wait: Called at both ends of a stage; it returns when the device has done what it was given. By default no
            device is waited for.
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


class Histogram:
    """Percentiles of any number of durations in 13 kB: counts in bins that grow by 1 %.

    From 0.01 ms to 100 s a percentile is within 0.5 % of the exact one; below and above, at the end bins.
    """

    LOWEST_MS = 0.01
    GROWTH = math.log(1.01)
    BINS = math.ceil(math.log(1e7) / GROWTH) + 1

    def __init__(self) -> None:
        self._counts = array("q", bytes(8 * self.BINS))
        self.count = 0
        self.maximum = 0.0

    def add(self, ms: float) -> None:
        """Count one duration, 0 or more."""
        place = math.floor(math.log(ms / self.LOWEST_MS) / self.GROWTH) if ms > self.LOWEST_MS else 0
        self._counts[min(place, self.BINS - 1)] += 1
        self.count += 1
        self.maximum = max(self.maximum, ms)

    def quantile(self, share: float) -> float | None:
        """Return the least duration that `share` (0..1) of all do not exceed; None when there are none."""
        if not self.count:
            return None
        rank = max(1, math.ceil(share * self.count))
        seen = 0
        for place, here in enumerate(self._counts):
            seen += here
            if seen >= rank:
                middle = self.LOWEST_MS * math.exp((place + 0.5) * self.GROWTH)
                return min(middle, self.maximum)
        raise AssertionError("the counts are fewer than their sum")

    def summary(self) -> dict[str, float] | None:
        """Return p50, p95, p99 and the longest, in ms to a microsecond; None when there are none."""
        if not self.count:
            return None
        parts = {f"p{round(100 * share)}": self.quantile(share) or 0.0 for share in (0.5, 0.95, 0.99)}
        return {name: round(value, 3) for name, value in (*parts.items(), ("max", self.maximum))}


def percentiles(samples: Sequence[float], percents: Sequence[int] = (50, 95, 99)) -> dict[str, float]:
    """Return percentiles by name (``p50``), each interpolated between the two nearest samples."""
    cuts = statistics.quantiles(samples if len(samples) > 1 else [*samples] * 2, n=100, method="inclusive")
    return {f"p{percent}": cuts[percent - 1] for percent in percents}


def medians(rounds: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return the median of each stage over rounds that have the same stages."""
    return {stage: statistics.median(ms[stage] for ms in rounds) for stage in rounds[0]}
