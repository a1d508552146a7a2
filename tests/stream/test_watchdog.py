"""The choice of an engine under a deadline."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from ovsdino.errors import OVSDinoError
from ovsdino.stream.watchdog import Watchdog


class Clock:
    """Seconds that pass when told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def watch(watchdog: Watchdog, ages: list[float], clock: Clock, step_s: float = 0.1) -> list[int]:
    levels = []
    for age in ages:
        clock.now += step_s
        levels.append(watchdog.record(age, clock.now))
    return levels


def test_the_watchdog_steps_down_at_the_nth_miss_of_a_window_and_not_for_misses_far_apart():
    clock = Clock()
    watchdog = Watchdog(2, 50.0, window=10, misses=3)
    assert watch(watchdog, [60, 20, 60, 20, 60], clock) == [0, 0, 0, 0, 1]
    watchdog = Watchdog(2, 50.0, window=10, misses=3)
    assert watch(watchdog, ([60] + [20] * 5) * 10, clock) == [0] * 60  # never three in ten
    assert watch(Watchdog(2, 50.0, window=10, misses=3), [50.0] * 50, clock) == [0] * 50  # in time to the last


def test_the_watchdog_stays_at_the_smallest_engine_and_with_one_engine_at_that():
    assert max(watch(Watchdog(3, 50.0, window=4, misses=2), [99.0] * 40, Clock())) == 2
    assert max(watch(Watchdog(1, 50.0, window=4, misses=2), [99.0] * 40, Clock())) == 0


def test_the_watchdog_returns_only_after_a_calm_time_with_headroom():
    clock = Clock()
    watchdog = Watchdog(2, 100.0, window=10, misses=3, headroom=0.6, recover_s=5.0)
    watch(watchdog, [150] * 3, clock)
    assert set(watch(watchdog, [61.0] * 200, clock)) == {1}  # in time, but no room
    levels = watch(watchdog, [59.0] * 70, clock)
    # nine of ten must be calm: the 9th starts the 5 s = 50 results
    assert levels.index(0) in range(57, 61) and watchdog.recoveries == 1
    clock, watchdog = Clock(), Watchdog(2, 100.0, window=10, misses=3, headroom=0.6, recover_s=5.0)
    watch(watchdog, [150] * 3, clock)
    assert set(watch(watchdog, ([50.0] * 8 + [90.0] * 2) * 30, clock)) == {1}  # two in ten are too many


def test_an_engine_that_misses_again_at_once_is_tried_half_as_often_each_time():
    clock = Clock()
    watchdog = Watchdog(2, 100.0, window=10, misses=3, recover_s=1.0)
    switches = []
    level = 0
    for _ in range(3000):
        clock.now += 0.1
        now_level = watchdog.record(150.0 if level == 0 else 20.0, clock.now)
        if now_level < level:
            switches.append(clock.now)
        level = now_level
    waits = np.diff(switches)
    assert all(later >= 1.5 * earlier for earlier, later in itertools.pairwise(waits[:4]))
    assert waits.max() < 16 * 1.0 + 3.0  # and no rarer than sixteen times
    assert watchdog.degradations == len(switches) + 1


@pytest.mark.parametrize(
    "bad", [{"deadline_ms": 0}, {"misses": 0}, {"misses": 31}, {"headroom": 1.0}, {"headroom": 0}, {"recover_s": 0}]
)
def test_watchdog_settings_out_of_range_are_refused(bad):
    with pytest.raises(OVSDinoError, match="expected"):
        Watchdog(2, **{"deadline_ms": 50.0, **bad})
