"""The stream loop with a clock of its own: late results told, engines changed, faults survived, all of it counted."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest

from ovsdino.errors import OVSDinoError
from ovsdino.stream.capture import CaptureCounts, Frame, SourceError
from ovsdino.stream.loop import Engine, Stream, describe
from ovsdino.stream.watchdog import Watchdog

SMALL = np.zeros((6, 8, 3), np.uint8)


class Clock:
    """Seconds that pass when told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def zeros_of(image: np.ndarray) -> SimpleNamespace:
    return SimpleNamespace(labels=np.zeros(image.shape[:2], np.uint8))


class Feed:
    """A camera without threads: each take is the next frame, and time passes as the test says."""

    def __init__(self, clock: Clock, frames: list[np.ndarray | None], *, wait_s: float = 0.0) -> None:
        self.clock, self.frames, self.wait_s = clock, list(frames), wait_s
        self.keep_all, self.dropped, self.error = True, 0, None
        self.counts = CaptureCounts()

    finished = property(lambda self: not self.frames)

    def start(self) -> None: ...

    def stop(self) -> None: ...

    def check(self, now: float) -> None: ...

    def take(self, timeout: float) -> Frame | None:
        pixels = self.frames.pop(0) if self.frames else None
        if pixels is None:
            self.clock.now += timeout
            return None
        self.counts.captured += 1
        captured = self.clock.now
        self.clock.now += self.wait_s
        return Frame(self.counts.captured, captured, pixels)


class Slow:
    """A segmenter that takes the milliseconds of a list, then those of its last entry."""

    def __init__(self, clock: Clock, *ms: float) -> None:
        self.clock, self.ms = clock, [0.0, *ms]  # the first is the warm-up

    def segment(self, image: np.ndarray) -> SimpleNamespace:
        self.clock.now += (self.ms.pop(0) if len(self.ms) > 1 else self.ms[0]) / 1e3
        return zeros_of(image)


def loop(feed: Feed, *segmenters, watchdog: Watchdog | None = None, **options) -> tuple[dict, list, list]:
    results, said = [], []
    engines = [Engine(f"engine{place}", segmenter) for place, segmenter in enumerate(segmenters)]
    stream = Stream(feed, feed, engines, watchdog=watchdog, say=said.append, clock=feed.clock, **options)
    return stream.run(results.append), results, said


def test_a_result_older_than_the_deadline_is_stale_and_only_a_slow_engine_is_a_miss():
    clock = Clock()
    feed = Feed(clock, [SMALL] * 4, wait_s=0.030)  # 30 ms from the camera to the network
    summary, results, _ = loop(feed, Slow(clock, 10, 19, 21, 60), watchdog=Watchdog(1, 50.0))
    assert [result.stale for result in results] == [False, False, True, True]
    assert [round(result.camera_to_mask_ms) for result in results] == [40, 49, 51, 90]
    assert [round(result.inference_ms) for result in results] == [10, 19, 21, 60]
    assert (summary["stale"], summary["misses"], summary["frames"]) == (2, 1, 4)
    assert summary["ended"] == "source"
    last = results[-1]
    assert last.age_ms(last.frame.captured + 2.0) == pytest.approx(2000)  # a mask ages while the camera is silent


def test_the_loop_falls_back_and_returns_and_says_so():
    clock = Clock()
    watchdog = Watchdog(2, 50.0, window=10, misses=3, recover_s=0.5)
    busy = Slow(clock, *[80] * 3, 20)  # something else needs the GPU for three frames
    summary, results, said = loop(Feed(clock, [SMALL] * 100), busy, Slow(clock, 15), watchdog=watchdog, report_s=None)
    engines = [result.engine for result in results]
    assert engines[:3] == ["engine0"] * 3 and engines[3:30] == ["engine1"] * 27 and engines[-1] == "engine0"
    assert said == ["results are late: engine0 -> engine1", "there is room: engine1 -> engine0"]
    assert (summary["degradations"], summary["recoveries"]) == (1, 1)
    assert sum(summary["engines"].values()) == 100 and summary["engines"]["engine1"] == engines.count("engine1")


def test_every_engine_is_warm_before_the_first_result():
    clock, calls = Clock(), []

    def segmenter(name: str) -> SimpleNamespace:
        return SimpleNamespace(segment=lambda image: (calls.append(name), zeros_of(image))[1])

    loop(Feed(clock, [SMALL] * 2), segmenter("a"), segmenter("b"), watchdog=Watchdog(2, 50.0))
    assert calls == ["a", "b", "a", "a"]


def test_a_camera_s_first_frame_is_left_out_since_warming_up_made_it_old():
    clock = Clock()
    feed = Feed(clock, [SMALL] * 5)
    feed.keep_all = False
    slow_start = Slow(clock, 10)
    slow_start.ms[0] = 3000.0
    summary, results, _ = loop(feed, slow_start, watchdog=Watchdog(1, 50.0))
    assert summary["stale"] == 0 and len(results) == 4 and summary["warm_up_ms"] == pytest.approx(3000)
    assert summary["captured"] == summary["frames"] + summary["failed"] + summary["dropped"] + 1


@pytest.mark.parametrize(
    ("limit", "frames", "ended"), [({"frames": 7}, 7, "frames"), ({"seconds": 0.45}, 5, "seconds")]
)
def test_the_loop_ends_at_its_limit(limit, frames, ended):
    clock = Clock()
    summary, results, _ = loop(Feed(clock, [SMALL] * 1000), Slow(clock, 100), **limit)
    assert (summary["ended"], len(results)) == (ended, frames)
    assert summary["fps"] == pytest.approx(10, rel=1e-6)


def test_reports_come_every_so_many_seconds_and_each_covers_its_own_time():
    clock = Clock()
    _, _, said = loop(Feed(clock, [SMALL] * 60), Slow(clock, *[10] * 20, 100), report_s=1.0)
    lines = [line for line in said if "fps" in line]
    assert len(lines) == 3  # 4.2 s
    assert "p50 10.0" in lines[0]
    assert "p50 99.9" in lines[-1] and "10.0 fps" in lines[-1]


def test_a_silent_camera_shows_as_the_longest_gap():
    clock = Clock()
    summary, _, _ = loop(Feed(clock, [SMALL, SMALL, *[None] * 40, SMALL]), Slow(clock, 10))
    assert summary["longest_gap_ms"] == pytest.approx(40 * 50 + 10) and summary["frames"] == 3


def test_frames_may_change_their_size():
    clock = Clock()
    large = np.zeros((12, 8, 3), np.uint8)
    summary, results, _ = loop(Feed(clock, [SMALL, large, large, SMALL]), Slow(clock, 10))
    assert [result.labels.shape for result in results] == [(6, 8), (12, 8), (12, 8), (6, 8)]
    assert summary["size_changes"] == 2


class Broken:
    def __init__(self, *bad: int) -> None:
        self.calls, self.bad = -1, bad

    def segment(self, image: np.ndarray) -> SimpleNamespace:
        self.calls += 1
        if self.calls in self.bad or (-1 in self.bad and self.calls):
            raise RuntimeError("CUDA error: an illegal memory access")
        return zeros_of(image)


def test_an_engine_that_raises_now_and_then_loses_those_frames_only():
    summary, results, said = loop(Feed(Clock(), [SMALL] * 10), Broken(2, 5, 6))
    assert [result.frame.sequence for result in results] == [1, 3, 4, 7, 8, 9, 10]
    assert summary["failed"] == 3 and len(said) == 2


def test_an_engine_that_raises_ten_times_in_a_row_is_replaced_or_the_error():
    with pytest.raises(OVSDinoError, match="engine0 failed 10 times in a row: CUDA error"):
        loop(Feed(Clock(), [SMALL] * 50), Broken(-1))
    summary, _, said = loop(Feed(Clock(), [SMALL] * 50), Broken(-1), Broken(), watchdog=Watchdog(2, 50.0))
    assert summary["failed"] == 10 and summary["engines"] == {"engine0": 0, "engine1": 40}
    assert "it fails: engine0 -> engine1" in said or "results are late: engine0 -> engine1" in said


def test_an_engine_that_cannot_run_at_all_is_an_error_at_the_first_frame():
    with pytest.raises(OVSDinoError, match="engine0: cannot segment a frame"):
        loop(Feed(Clock(), [SMALL] * 5), Broken(0))


def test_a_source_lost_after_some_frames_still_gives_the_summary_and_one_never_there_raises():
    feed = Feed(Clock(), [SMALL] * 3)
    feed.error = SourceError("given up")
    summary, results, _ = loop(feed, Slow(feed.clock, 10))
    assert summary["ended"] == "error" and summary["error"] == "given up" and len(results) == 3
    feed = Feed(Clock(), [])
    feed.error = SourceError("no such device")
    with pytest.raises(OVSDinoError, match="no such device"):
        loop(feed, Slow(feed.clock, 10))


def test_the_summary_is_json_and_reads_as_lines():
    clock = Clock()
    summary, _, _ = loop(Feed(clock, [SMALL] * 5), Slow(clock, 20), watchdog=Watchdog(1, 50.0))
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary
    assert summary["inference_ms"]["p50"] == pytest.approx(20, rel=0.0051)
    assert "5 frames" in describe(summary) and "dropped 0" in describe(summary)
