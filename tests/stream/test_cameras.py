"""Several cameras in one loop: frames go together, each has its deadline and counts, and none stops the others."""

from __future__ import annotations

import time
from types import SimpleNamespace

import numpy as np
import pytest

from ovsdino.errors import OVSDinoError
from ovsdino.stream.cameras import Camera
from ovsdino.stream.capture import Capture, CaptureLimits, LatestFrame, SourceError
from ovsdino.stream.loop import Engine, Streams, describe
from ovsdino.stream.metrics import metrics_text
from ovsdino.stream.watchdog import Watchdog
from tests.stream.test_loop import SMALL, Clock, Feed, zeros_of

LARGE = np.zeros((12, 8, 3), np.uint8)


class Batched:
    """A segmenter of up to `batch` frames, which takes so many milliseconds for each call."""

    def __init__(self, clock: Clock, batch: int, ms: float) -> None:
        self.clock, self.batch, self.ms = clock, batch, ms
        self.calls: list[list[tuple[int, ...]]] = []

    def segment(self, image: np.ndarray) -> SimpleNamespace:
        return self.segment_batch([image])[0]

    def segment_batch(self, images: list[np.ndarray]) -> list[SimpleNamespace]:
        assert 1 <= len(images) <= self.batch
        if any(image.max() for image in images):
            raise RuntimeError("not this one")
        self.calls.append([image.shape for image in images])
        self.clock.now += self.ms / 1e3
        return [zeros_of(image) for image in images]


def loop(feeds: list[Feed], segmenter, deadlines=None, **options):
    results, said = [], []
    cameras = [
        Camera(feed, feed, f"source{place}", None if deadlines is None else deadlines[place])
        for place, feed in enumerate(feeds)
    ]
    watchdog = None if deadlines is None else Watchdog(1, min(deadlines))
    stream = Streams(
        cameras, [Engine("e", segmenter)], watchdog=watchdog, say=said.append, clock=feeds[0].clock, **options
    )
    return stream.run(results.append), results, said


def test_frames_that_wait_go_together_and_each_camera_has_its_deadline():
    clock = Clock()
    feeds = [Feed(clock, [SMALL] * 6), Feed(clock, [LARGE] * 4)]
    segmenter = Batched(clock, 4, 30)
    summary, results, _ = loop(feeds, segmenter, deadlines=[50.0, 20.0])
    assert segmenter.calls[1:] == [[(6, 8, 3), (12, 8, 3)]] * 4 + [[(6, 8, 3)]] * 2  # the first is the warm-up
    assert [(one.camera, one.labels.shape, one.stale) for one in results[2:4]] == [
        (0, (6, 8), False),
        (1, (12, 8), True),
    ]
    first, second = summary["cameras"]
    assert (summary["frames"], first["frames"], second["frames"]) == (10, 6, 4)
    assert (summary["stale"], first["stale"], second["stale"]) == (5, 1, 4)  # the first frame waited for the warm-up
    assert (summary["deadline_ms"], first["deadline_ms"], second["deadline_ms"]) == (None, 50.0, 20.0)
    assert summary["ended"] == "source" and "error" not in summary
    assert "camera 1: frames 4, captured 4" in describe(summary)


def test_an_engine_of_single_frames_serves_the_cameras_in_turn():
    clock = Clock()
    _, results, _ = loop([Feed(clock, [SMALL] * 3) for _ in range(3)], Batched(clock, 1, 10), frames=8)
    assert [one.camera for one in results] == [0, 1, 2, 0, 1, 2, 0, 1]


def test_a_frame_that_the_engine_refuses_does_not_cost_another_camera_s():
    clock = Clock()
    feeds = [Feed(clock, [SMALL] * 3), Feed(clock, [SMALL, SMALL + 1, SMALL])]
    summary, results, said = loop(feeds, Batched(clock, 2, 10))
    assert [one.frame.sequence for one in results if one.camera == 0] == [1, 2, 3]
    assert [one.frame.sequence for one in results if one.camera == 1] == [1, 3]
    assert [one["failed"] for one in summary["cameras"]] == [0, 1] and said == ["e failed: not this one"]


def test_a_camera_that_is_given_up_is_told_once_and_the_others_go_on():
    clock = Clock()
    feeds = [Feed(clock, []), Feed(clock, [SMALL] * 5)]
    feeds[0].error = SourceError("no such device")
    summary, results, said = loop(feeds, Batched(clock, 2, 10))
    assert len(results) == 5 and summary["ended"] == "source"
    assert summary["error"] == "camera 0: no such device" == f"camera 0: {summary['cameras'][0]['error']}"
    assert said == ["camera 0 (source0): no such device"]
    feeds = [Feed(clock, []), Feed(clock, [])]
    for feed in feeds:
        feed.error = SourceError("no such device")
    with pytest.raises(OVSDinoError, match=r"camera 0 \(source0\): no such device"):
        loop(feeds, Batched(clock, 2, 10))


class Ticking:
    """A camera of 100 frames a second, which may be absent, or go silent after so many frames."""

    live, period_s = True, 0.01

    def __init__(self, absent: bool = False, lasts: int | None = None) -> None:
        self.absent, self.lasts, self.given = absent, lasts, 0

    def open(self) -> None:
        if self.absent:
            raise OSError("no such device")

    def grab(self) -> float | None:
        self.given += 1
        time.sleep(3600 if self.lasts is not None and self.given > self.lasts else self.period_s)
        return time.monotonic()

    def retrieve(self) -> np.ndarray:
        return SMALL

    def close(self) -> None:
        """Nothing is held."""


def test_real_threads_an_absent_and_a_hanging_camera_cost_the_third_nothing():
    sources = (Ticking(absent=True), Ticking(lasts=5), Ticking())
    cameras = []
    for source in sources:
        slot = LatestFrame()
        limits = CaptureLimits(stall_s=0.1, give_up_s=0.2)
        cameras.append(Camera(Capture(lambda source=source: source, slot, limits=limits), slot))
    segmenter = SimpleNamespace(segment=zeros_of)
    stream = Streams(cameras, [Engine("e", segmenter)], seconds=1.0, report_s=None)
    summary = stream.run()
    absent, hanging, good = summary["cameras"]
    assert "no such device" in absent["error"] and "given up" in hanging["error"] and "error" not in good
    assert summary["ended"] == "seconds" and good["frames"] > 3 * hanging["frames"] > 0 == absent["frames"]
    assert good["captured"] - good["frames"] - good["dropped"] in (0, 1, 2)


def test_metrics_name_the_camera():
    clock = Clock()
    summary, _, _ = loop([Feed(clock, [SMALL] * 2), Feed(clock, [SMALL] * 3)], Batched(clock, 2, 10))
    lines = metrics_text(summary).splitlines()
    assert [line for line in lines if line.startswith("ovsdino_frames_total")] == [
        'ovsdino_frames_total{camera="0"} 2',
        'ovsdino_frames_total{camera="1"} 3',
    ]
    assert "ovsdino_degradations_total 0" in lines  # of the engines, which they share
    assert any(line.startswith('ovsdino_inference_ms{camera="1",part="p50"} 10') for line in lines)


def test_bad_cameras_are_refused():
    with pytest.raises(OVSDinoError, match="no camera given"):
        Streams([], [Engine("e", SimpleNamespace(segment=zeros_of))])
    feed = Feed(Clock(), [])
    with pytest.raises(OVSDinoError, match="deadline is 0"):
        Camera(feed, feed, deadline_ms=0.0)
    with pytest.raises(OVSDinoError, match="needs the deadline"):
        Streams([Camera(feed, feed)], [Engine("e", SimpleNamespace(segment=zeros_of))], watchdog=Watchdog(1, 50.0))
