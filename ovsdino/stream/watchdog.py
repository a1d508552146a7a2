"""Watch a loop with a deadline: when to do less, and when there is room for more."""

from __future__ import annotations

from collections import deque

from ovsdino.errors import OVSDinoError

__all__ = ["Watchdog"]


class Watchdog:
    """Choose among engines, the largest first: a smaller one after too many misses, a larger one when there is room.

    Down: `misses` of the last `window` results were older than the deadline. Up: for `recover_s` seconds nine in ten of
    the last `window` results took at most `headroom` of the deadline. When a larger engine misses again shortly after
    the way up, the next attempt waits twice as long, up to `LONGEST` times `recover_s`, so that the loop does not
    swing.

    Args:
        levels: Number of engines.
        deadline_ms: Age that a result may have.
        window: Number of results looked at.
        misses: Number of late results among them at which a smaller engine takes over.
        headroom: Share of the deadline, below 1.
        recover_s: Seconds of calm before a larger engine is tried.
    """

    LONGEST = 16

    def __init__(
        self,
        levels: int,
        deadline_ms: float,
        *,
        window: int = 30,
        misses: int = 5,
        headroom: float = 0.6,
        recover_s: float = 5.0,
    ) -> None:
        if not deadline_ms > 0:
            raise OVSDinoError(f"the deadline is {deadline_ms} ms: expected more than 0")
        if not 1 <= misses <= window:
            raise OVSDinoError(f"{misses} misses in a window of {window}: expected 1..{window}")
        if not 0 < headroom < 1:
            raise OVSDinoError(f"headroom is {headroom}: expected a share of the deadline between 0 and 1")
        if not recover_s > 0:
            raise OVSDinoError(f"recover_s is {recover_s}: expected more than 0 seconds")
        self.deadline_ms = deadline_ms
        self.level = 0
        self.degradations = 0
        self.recoveries = 0
        self._levels, self._misses = levels, misses
        self._headroom_ms, self._recover_s = headroom * deadline_ms, recover_s
        self._recent: deque[float] = deque(maxlen=window)
        self._calm_since: float | None = None
        self._climbed: float | None = None
        self._hold_s = recover_s

    def record(self, age_ms: float, now: float) -> int:
        """Take one result's age at `now` (seconds) and return the engine for the next."""
        self._recent.append(age_ms)
        if self.level + 1 < self._levels and sum(age > self.deadline_ms for age in self._recent) >= self._misses:
            self._descend(now)
        elif self.level and self._has_room():
            if self._calm_since is None:
                self._calm_since = now
            elif now - self._calm_since >= self._hold_s:
                self._climb(now)
        else:
            self._calm_since = None
        return self.level

    def fail(self, now: float) -> int:
        """Take note that the engine in use raised, and return a smaller one if there is one."""
        if self.level + 1 < self._levels:
            self._descend(now)
        return self.level

    def _has_room(self) -> bool:
        tight = sum(age > self._headroom_ms for age in self._recent)
        return len(self._recent) == self._recent.maxlen and tight <= len(self._recent) // 10

    def _descend(self, now: float) -> None:
        soon = self._climbed is not None and now - self._climbed < 2 * self._hold_s
        self._hold_s = min(2 * self._hold_s, self.LONGEST * self._recover_s) if soon else self._recover_s
        self.level += 1
        self.degradations += 1
        self._fresh_start()

    def _climb(self, now: float) -> None:
        self.level -= 1
        self.recoveries += 1
        self._climbed = now
        self._fresh_start()

    def _fresh_start(self) -> None:
        """Forget the times: those of one engine say nothing of another."""
        self._recent.clear()
        self._calm_since = None
