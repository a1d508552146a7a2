"""Reading frames: the newest only, numbered, through unplugged, hanging and damaged sources."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pytest

from ovsdino.errors import OVSDinoError
from ovsdino.stream.capture import Capture, CaptureLimits, Frame, LatestFrame

SMALL = np.zeros((6, 8, 3), np.uint8)
QUICK = CaptureLimits(open_s=5.0, stall_s=5.0, backoff_s=(0.001, 0.004))


class Script:
    """A source that follows a list of steps; one list for each time it is opened.

    A picture is a frame, "damaged" one that cannot be decoded, "block" hangs until the test ends, an exception is
    raised, and the end of the list is the end of the source. A list that begins with "refuse" cannot be opened.
    """

    period_s = 0.0

    def __init__(self, *scripts: list, live: bool = True, release: threading.Event | None = None) -> None:
        self.scripts = iter(scripts)
        self.live = live
        self.release = release or threading.Event()
        self.opened = self.closed = 0
        self.lines: list = []
        self.line: object = None

    def __call__(self) -> Script:
        return self

    def open(self) -> None:
        self.opened += 1
        self.lines = list(next(self.scripts, []))
        if self.lines and isinstance(self.lines[0], str) and self.lines[0] == "refuse":
            raise OSError("no such device")

    def grab(self) -> float | None:
        if not self.lines:
            return None
        self.line = self.lines.pop(0)
        if isinstance(self.line, Exception):
            raise self.line
        if isinstance(self.line, str) and self.line == "block":
            self.release.wait(20)
        return time.monotonic()

    def retrieve(self) -> np.ndarray:
        if not isinstance(self.line, np.ndarray):
            raise ValueError("bad Huffman code")
        return self.line

    def close(self) -> None:
        self.closed += 1


def until(condition: Callable[[], bool], seconds: float = 5.0) -> None:
    limit = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < limit, "it did not happen"
        time.sleep(0.001)


def pixel(value: int) -> np.ndarray:
    return np.full((6, 8, 3), value, np.uint8)


def test_only_the_newest_frame_is_taken_and_the_others_are_counted():
    slot = LatestFrame()
    for number in (1, 2, 3):
        assert slot.put(Frame(number, float(number), SMALL))
    frame = slot.take(0)
    assert frame is not None and frame.sequence == 3 and frame.captured == 3.0
    assert slot.take(0) is None
    assert slot.dropped == 2


def test_a_frame_older_than_the_newest_is_refused_though_the_slot_is_empty():
    slot = LatestFrame()
    slot.put(Frame(5, 0.0, SMALL))
    slot.take(0)
    assert not slot.put(Frame(4, 0.0, SMALL))
    assert slot.take(0) is None and slot.dropped == 1


def test_with_keep_all_the_writer_waits_until_its_frame_was_taken():
    slot = LatestFrame(keep_all=True)
    taken = []
    writer = threading.Thread(target=lambda: [slot.put(Frame(n, 0.0, SMALL)) for n in range(1, 21)])
    writer.start()
    while len(taken) < 20:
        frame = slot.take(5)
        assert frame is not None
        taken.append(frame.sequence)
    writer.join(5)
    assert taken == list(range(1, 21)) and slot.dropped == 0


def test_closing_frees_a_waiting_writer_and_a_waiting_reader():
    slot = LatestFrame(keep_all=True)
    slot.put(Frame(1, 0.0, SMALL))
    writer = threading.Thread(target=slot.put, args=(Frame(2, 0.0, SMALL),))
    writer.start()
    slot.close()
    writer.join(5)
    assert not writer.is_alive()
    assert slot.take(5) is not None and slot.take(60) is None  # 60 s: it must not wait


def reading(source: Script, limits: CaptureLimits = QUICK, keep_all: bool = True) -> tuple[Capture, LatestFrame, list]:
    slot, said = LatestFrame(keep_all=keep_all), []
    capture = Capture(source, slot, limits=limits, say=said.append)
    capture.start()
    return capture, slot, said


def take_all(capture: Capture, slot: LatestFrame, count: int) -> list[Frame]:
    frames = []
    limit = time.monotonic() + 10
    while len(frames) < count:
        assert time.monotonic() < limit, f"{len(frames)} of {count} frames"
        frame = slot.take(0.01)
        if frame is not None:
            frames.append(frame)
    return frames


def test_an_unplugged_source_is_opened_until_it_is_back_and_numbers_go_on():
    source = Script([pixel(1), OSError("unplugged")], ["refuse"], ["refuse"], [pixel(2), pixel(3)], ["block"])
    capture, slot, said = reading(source)
    frames = take_all(capture, slot, 3)
    assert [frame.sequence for frame in frames] == [1, 2, 3]
    assert [int(frame.pixels[0, 0, 0]) for frame in frames] == [1, 2, 3]
    assert capture.counts.failures >= 3 and capture.counts.reconnects == 1 and source.opened >= 4
    assert said[:2] == ["the source failed (unplugged): opening it again", "frames again"]  # each once, not per attempt
    source.release.set()
    capture.stop()
    assert source.closed == source.opened


def test_a_live_source_that_ends_is_opened_again_and_a_file_that_ends_has_ended():
    capture, slot, _ = reading(Script([pixel(1)], [pixel(2)], live=True))
    assert [frame.sequence for frame in take_all(capture, slot, 2)] == [1, 2]
    capture.stop()
    capture, slot, _ = reading(Script([pixel(1), pixel(2)], live=False))
    take_all(capture, slot, 2)
    until(lambda: capture.finished)
    assert capture.error is None and capture.counts.failures == 0
    capture.stop()


def test_the_pause_before_each_attempt_doubles_up_to_the_longest_and_starts_anew_after_a_frame():
    limits = CaptureLimits(backoff_s=(0.5, 3.0))
    capture = Capture(Script(), LatestFrame(), limits=limits)
    pauses = []
    capture._stop = SimpleNamespace(wait=lambda pause: bool(pauses.append(pause)), is_set=lambda: False)
    capture._wait(0)
    capture._faulty = True
    for _ in range(5):
        capture._wait(0)
    capture._publish(0, 0.0, SMALL)
    capture._faulty = True
    capture._wait(0)
    assert pauses == [0.0, 0.5, 1.0, 2.0, 3.0, 3.0, 0.5]


def test_a_reader_that_hangs_is_left_behind_and_what_it_brings_later_is_ignored():
    release = threading.Event()
    hung = Script([pixel(1), "block", pixel(99)], live=True, release=release)
    well = Script([pixel(2), pixel(3), "block"], live=True, release=release)
    sources = iter([hung, well])
    slot, said = LatestFrame(keep_all=True), []
    capture = Capture(lambda: next(sources), slot, limits=QUICK, say=said.append)
    capture.start()
    take_all(capture, slot, 1)
    until(lambda: isinstance(hung.line, str))
    capture.check(time.monotonic() + 4.9)
    assert capture.counts.stalls == 0
    capture.check(time.monotonic() + 5.1)
    assert capture.counts.stalls == 1 and "hangs" in said[0]
    frames = take_all(capture, slot, 2)
    assert [(f.sequence, int(f.pixels[0, 0, 0])) for f in frames] == [(2, 2), (3, 3)]
    assert capture.counts.reconnects == 1
    release.set()  # the first read returns at last
    until(lambda: hung.closed == 1)
    assert slot.take(0.05) is None
    capture.stop()


def test_threads_left_in_a_driver_are_bounded_and_the_next_starts_when_one_returns():
    release = threading.Event()
    made: list[Script] = []

    def factory() -> Script:
        made.append(Script(["block"] if made else [pixel(1), "block"], release=release))
        return made[-1]

    slot, said = LatestFrame(keep_all=True), []
    capture = Capture(factory, slot, limits=QUICK, say=said.append)
    capture.start()
    take_all(capture, slot, 1)
    for number in range(1, 5):
        until(lambda: len(made) == number and isinstance(made[-1].line, str))  # noqa: B023
        capture.check(time.monotonic() + 60)
    assert capture.counts.stalls == 4
    for _ in range(3):
        capture.check(time.monotonic() + 60)
    assert len(made) == 4 and "waiting" in said[-1]
    release.set()
    until(lambda: all(source.closed for source in made))
    until(lambda: (capture.check(time.monotonic()), len(made) > 4)[1])
    capture.stop()


def test_damaged_frames_are_counted_and_do_not_lose_the_others():
    wrong = [np.zeros((0, 8, 3), np.uint8), np.zeros((6, 8, 3), np.float32), np.zeros((6, 8, 2), np.uint8)]
    capture, slot, _ = reading(Script([pixel(1), "damaged", *wrong, pixel(2)], live=False))
    assert [frame.sequence for frame in take_all(capture, slot, 2)] == [1, 2]
    until(lambda: capture.finished)
    assert capture.counts.corrupt == 4 and capture.error is None
    capture.stop()


def test_a_camera_of_which_nothing_can_be_decoded_any_more_is_opened_again():
    capture, slot, said = reading(Script([pixel(1), *["damaged"] * 30], [pixel(2)]))
    assert len(take_all(capture, slot, 2)) == 2
    assert "30 damaged frames in a row" in said[0]
    capture.stop()


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (Script(["refuse"]), "OSError: no such device"),
        (Script([], live=True), "the source ended"),
        (Script(["damaged", "damaged"], live=False), "no frame could be read (2 damaged)"),
    ],
)
def test_a_source_that_never_gave_a_frame_is_an_error_and_not_tried_again(source, message):
    capture, _, _ = reading(source)
    until(lambda: capture.finished)
    assert message in str(capture.error) and source.opened == 1
    capture.stop()


def test_a_source_that_hangs_before_its_first_frame_is_an_error():
    source = Script(["block"])
    capture, _, _ = reading(source)
    until(lambda: isinstance(source.line, str))
    capture.check(time.monotonic() + 6)
    assert "gave no frame within" in str(capture.error) and capture.finished
    source.release.set()
    capture.stop()


def test_a_source_silent_for_too_long_is_given_up():
    source = Script([pixel(1)], *[["refuse"]] * 10_000)
    capture, slot, _ = reading(source, dataclasses.replace(QUICK, give_up_s=30.0))
    take_all(capture, slot, 1)
    capture.check(time.monotonic() + 29)
    assert not capture.finished
    capture.check(time.monotonic() + 31)
    assert "given up" in str(capture.error)
    capture.stop()


@pytest.mark.parametrize("bad", [{"stall_s": 0}, {"open_s": -1}, {"give_up_s": 0}, {"backoff_s": (2.0, 1.0)}])
def test_limits_out_of_range_are_refused(bad):
    with pytest.raises(OVSDinoError, match="expected"):
        CaptureLimits(**bad)


def test_a_camera_that_is_not_there_yet_is_waited_for_on_request():
    source = Script(["refuse"], ["refuse"], [SMALL])
    slot: LatestFrame[Frame] = LatestFrame()
    capture = Capture(source, slot, limits=dataclasses.replace(QUICK, wait=True))
    capture.start()
    try:
        frame = slot.take(20)
    finally:
        capture.stop()
    assert frame is not None and frame.sequence == 1 and source.opened >= 3 and capture.error is None
