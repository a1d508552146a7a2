"""Videos frame by frame: when a tracker remembers, and when it must not."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ovsdino.errors import OVSDinoError
from ovsdino.models.memory import KeyFrames, MemoryConfig
from ovsdino.pipeline import Segmenter, load
from tests.support.small import small_model

WORDS = ["road", "sky", "tree"]


@pytest.fixture(scope="module")
def nano() -> Segmenter:
    return load("nano", "cpu", short_side=64)


@pytest.fixture(scope="module")
def frames() -> list[np.ndarray]:
    """Five frames of a camera that turns to the right over a fixed scene with some noise."""
    generator = np.random.default_rng(0)
    scene = generator.integers(40, 120, (96, 160, 3))
    scene[:40] = np.linspace(150, 250, 160)[None, :, None]
    scene[50:70, 60:90] = (200, 40, 40)
    noisy = [scene[:, 2 * i : 128 + 2 * i] + generator.normal(0, 6, (96, 128, 3)) for i in range(5)]
    return [frame.clip(0, 255).astype(np.uint8) for frame in noisy]


def test_the_first_frame_is_that_of_segment_and_later_ones_remember(nano: Segmenter, frames: list[np.ndarray]) -> None:
    tracker = nano.tracker(WORDS, partition=True)
    singles = [nano.segment(frame, WORDS, partition=True).labels for frame in frames]
    steady = [tracker.segment(frame) for frame in frames]
    assert np.array_equal(steady[0].labels, singles[0])
    assert tracker.level > tracker.config.cut and "memory" in steady[1].stages_ms  # type: ignore[union-attr]
    assert any(not np.array_equal(one.labels, other) for one, other in zip(steady, singles, strict=True))


def test_without_a_memory_every_frame_is_that_of_segment(nano: Segmenter, frames: list[np.ndarray]) -> None:
    for frame, found in zip(frames[:2], nano.stream(frames[:2], WORDS, memory=False), strict=True):
        assert np.array_equal(found.labels, nano.segment(frame, WORDS).labels)


def test_a_cut_new_words_another_size_and_a_reset_begin_anew(nano: Segmenter, frames: list[np.ndarray]) -> None:
    tracker = nano.tracker(WORDS, partition=True)
    tracker.segment(frames[0])
    other = np.ascontiguousarray(frames[1].transpose(1, 0, 2)[::-1])  # on its side: of another size
    assert np.array_equal(tracker.segment(other).labels, nano.segment(other, WORDS, partition=True).labels)
    scene = np.random.default_rng(3).integers(0, 255, other.shape, dtype=np.uint8)
    assert np.array_equal(tracker.segment(scene).labels, nano.segment(scene, WORDS, partition=True).labels)
    tracker.segment(scene)
    tracker.set_classes("car, sky, tree")
    assert tracker.names == ("car", "sky", "tree")
    expected = nano.segment(scene, "car, sky, tree", partition=True).labels
    assert np.array_equal(tracker.segment(scene).labels, expected)
    tracker.reset()
    assert tracker.level == 0.0 and np.array_equal(tracker.segment(scene).labels, expected)


def test_a_frame_that_cannot_be_read_is_an_error_and_the_next_begins_anew(
    nano: Segmenter, frames: list[np.ndarray]
) -> None:
    tracker = nano.tracker(WORDS)
    tracker.segment(frames[0])
    with pytest.raises(OVSDinoError):
        tracker.segment(np.full((96, 128, 3), np.nan, np.float32))
    assert np.array_equal(tracker.segment(frames[1]).labels, nano.segment(frames[1], WORDS).labels)


def test_between_key_frames_the_labels_move_with_the_image(nano: Segmenter, frames: list[np.ndarray]) -> None:
    tracker = nano.tracker(WORDS, partition=True, key_frames=KeyFrames(every=3, level=0.0))
    found = [(tracker.segment(frame), tracker.encoded) for frame in frames]
    assert [encoded for _, encoded in found] == [True, False, False, True, False]
    assert ["encode" in result.stages_ms for result, _ in found] == [encoded for _, encoded in found]
    steady = [result.labels for result in nano.stream(frames, WORDS, partition=True)]
    assert np.array_equal(found[0][0].labels, steady[0])
    assert np.mean([(one.labels == other).mean() for (one, _), other in zip(found, steady, strict=True)]) > 0.9


def test_a_frame_that_the_memory_does_not_know_becomes_a_key_frame(nano: Segmenter, frames: list[np.ndarray]) -> None:
    tracker = nano.tracker(WORDS, partition=True, key_frames=KeyFrames(every=100))
    for frame in frames[:2]:
        tracker.segment(frame)
    assert not tracker.encoded and tracker.level > 0.85
    cut = np.ascontiguousarray(255 - frames[1][::-1])
    other = np.ascontiguousarray(frames[1].transpose(1, 0, 2))
    for new in (cut, other):
        assert np.array_equal(tracker.segment(new).labels, nano.segment(new, WORDS, partition=True).labels)
        assert tracker.encoded
    tracker.set_classes("car, sky, tree")
    tracker.segment(other)
    assert tracker.encoded
    with pytest.raises(ValueError, match="every is 0"):
        KeyFrames(every=0)


def test_a_memory_follows_the_image_by_opencv_or_stays_where_it_is(
    nano: Segmenter, frames: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(OVSDinoError, match="pip install opencv"):
        nano.tracker(WORDS)
    still = MemoryConfig(flow=False)
    with pytest.raises(OVSDinoError, match="key frames without the flow"):
        nano.tracker(WORDS, memory=still, key_frames=True)
    monkeypatch.undo()
    found = [
        [one.labels for one in nano.stream(frames[:2], WORDS, partition=True, memory=way)] for way in (still, True)
    ]
    assert np.array_equal(found[0][0], found[1][0]) and not np.array_equal(found[0][1], found[1][1])


def test_frames_come_from_lists_generators_folders_and_files(
    nano: Segmenter, frames: list[np.ndarray], tmp_path: Path
) -> None:
    expected = [result.labels for result in nano.stream(frames, WORDS)]

    def generated() -> Iterator[np.ndarray]:
        yield from frames

    for index, frame in enumerate(frames):
        Image.fromarray(frame).save(tmp_path / f"{index}.png")
    for source in (generated(), tmp_path, np.stack(frames)):
        found = [result.labels for result in nano.stream(source, WORDS)]
        assert all(np.array_equal(one, other) for one, other in zip(found, expected, strict=True))


def test_a_video_file_is_read_to_its_end(nano: Segmenter, frames: list[np.ndarray], tmp_path: Path) -> None:
    cv2 = pytest.importorskip("cv2")
    path = tmp_path / "clip.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 10, (128, 96))
    for frame in frames:
        writer.write(cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))
    writer.release()
    results = list(nano.stream(path, WORDS))
    assert len(results) == len(frames) and results[0].labels.shape == (96, 128)


def test_what_is_no_video_is_refused(nano: Segmenter, frames: list[np.ndarray], tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("no video")
    for source in (frames[0], tmp_path / "missing.mp4", tmp_path / "text.mp4", 3.5):
        with pytest.raises(OVSDinoError):
            next(nano.stream(source, WORDS))  # type: ignore[arg-type]
    with pytest.raises(OVSDinoError, match="window"):
        nano.tracker(WORDS, window=64)
    with pytest.raises(OVSDinoError, match="structure"):
        Segmenter(small_model(decoder=False), "cpu").tracker(WORDS)
