"""Frames in clips, and videos with a word."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ovsdino.data.clips import clips_of, open_davis
from ovsdino.data.segmentation import SegmentationDataset
from ovsdino.errors import OVSDinoError


def frames(root: Path, names: list[str]) -> SegmentationDataset:
    for kind in ("images", "labels"):
        for name in names:
            path = root / kind / f"{name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.zeros((4, 6) if kind == "labels" else (4, 6, 3), np.uint8)).save(path)
    return SegmentationDataset(root, ("a",))


def test_a_clip_ends_where_the_number_jumps_or_the_name_changes(tmp_path: Path) -> None:
    dataset = frames(tmp_path, ["x_1", "x_3", "x_5", "x_11", "x_13", "y_1", "y_2", "z_7"])
    clips = clips_of(dataset)
    assert [clip.name for clip in clips] == ["x_1", "x_11", "y_1"]
    assert [[dataset.stems[i] for i in clip.indices] for clip in clips] == [
        ["x_1", "x_3", "x_5"],
        ["x_11", "x_13"],
        ["y_1", "y_2"],
    ]
    assert len(clips[0]) == 3 and [sample.stem for sample in clips[0]] == ["x_1", "x_3", "x_5"]


def test_pictures_that_are_no_video_are_refused(tmp_path: Path) -> None:
    with pytest.raises(OVSDinoError, match="follow"):
        clips_of(frames(tmp_path / "one", ["a_1"]))
    with pytest.raises(OVSDinoError, match="number"):
        clips_of(frames(tmp_path / "other", ["first", "second"]))


def test_davis_videos_have_a_word_and_labels_of_two_values(tmp_path: Path) -> None:
    for video in ("dog", "cows"):
        for kind in ("images", "masks"):
            folder = tmp_path / "davis2016_val" / video / kind
            folder.mkdir(parents=True)
            mask = np.zeros((4, 6), np.uint8)
            mask[1:3] = 255
            picture = mask if kind == "masks" else np.zeros((4, 6, 3), np.uint8)
            for index in range(2):
                Image.fromarray(picture).save(folder / f"{index:05}.png")
    cows, dog = open_davis(tmp_path)
    assert (cows.name, cows.word, dog.name, dog.word) == ("cows", "cow", "dog", "dog")
    assert np.unique(next(iter(dog)).label).tolist() == [0, 1] and len(dog) == 2
    (tmp_path / "davis2016_val" / "dog" / "masks" / "00001.png").unlink()
    with pytest.raises(OVSDinoError, match="missing"):
        open_davis(tmp_path)
    with pytest.raises(OVSDinoError, match="neither"):
        open_davis(tmp_path / "dog")
