"""Adapted words from labelled pictures, end to end with a model of random weights; and input that is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ovsdino.data.datasets import open_dataset, open_folders
from ovsdino.errors import OVSDinoError
from ovsdino.pipeline import Segmenter
from ovsdino.train.adapt.session import Adaptation, adapt, choose_images, lesson_of
from tests.support import labelled
from tests.support.small import small_model

CLASSES = ["my mug", "stripes", "road"]


@pytest.fixture(scope="module")
def segmenter() -> Segmenter:
    return Segmenter(small_model())


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory, segmenter: Segmenter) -> Adaptation:
    folders = labelled.write(tmp_path_factory.mktemp("mugs"))
    lesson = lesson_of(open_folders(*folders), ["my mug"])
    return adapt(segmenter, lesson, choose_images(lesson))


def test_a_word_is_found_better_than_before_on_images_held_out(learned: Adaptation) -> None:
    (word,) = learned.words
    assert learned.images == 6 and learned.steps > 0 and word["word"] == "my mug"
    assert word["images"] == 6 and word["pixels"] == sum(32 * (32 - 2 * (row == 0)) for row in rows_of_mugs())
    assert word["iou_after"] > (word["iou_before"] or 0) + 0.1
    assert word["moved"] == pytest.approx(float(learned.adapted.residual.norm()), abs=1e-4)
    assert learned.others is not None and learned.others[1] >= learned.others[0] - 0.05
    assert json.loads(json.dumps(learned.to_dict()))["words"][0] == word


def rows_of_mugs() -> list[int]:
    """The first rows of the squares of `labelled.write`, drawn again."""
    rng, rows = np.random.default_rng(0), []
    for _ in range(6):
        rows.append(16 * int(rng.integers(0, 2)))
        rng.integers(0, 2)
        rng.integers(0, 20, (48, 80, 3), dtype=np.uint8)
    return rows


def test_the_other_words_scores_stay_bit_for_bit_with_and_without_contrast(
    learned: Adaptation, segmenter: Segmenter
) -> None:
    own = segmenter.adapted_to(learned.adapted)
    image = np.random.default_rng(1).integers(0, 256, (48, 80, 3), np.uint8)
    features = segmenter.encode_image(image)
    for partition in (True, False):
        before, after = (each.decode(features, each.text_rows(CLASSES, partition)) for each in (segmenter, own))
        assert torch.equal(before[:, 1:3], after[:, 1:3]) and not torch.equal(before[:, 0], after[:, 0])
        assert (after[:, 3:] <= before[:, 3:]).all()  # contrast phrases near to the learned row do not compete


def test_a_learned_word_of_the_contrast_competes_by_its_own_row(segmenter: Segmenter, tmp_path: Path) -> None:
    names = ("background", "tree", "stripes")
    lesson = lesson_of(open_folders(*labelled.write(tmp_path, names=names)), ["tree"])
    own = segmenter.adapted_to(adapt(segmenter, lesson, choose_images(lesson)).adapted)
    features = segmenter.encode_image(np.full((48, 80, 3), 90, np.uint8))
    before, after = (each.decode(features, each.text_rows(["car"], False)) for each in (segmenter, own))
    assert torch.equal(before, after)


def test_images_are_the_first_that_show_each_word(tmp_path: Path) -> None:
    images, labels = labelled.write(tmp_path, 5)
    Image.fromarray(np.zeros((48, 80), np.uint8)).save(labels / "0.png")
    lesson = lesson_of(open_folders(images, labels), ["stripes"])
    assert choose_images(lesson, per_word=2) == [1, 2]
    drawn = [choose_images(lesson, per_word=2, seed=seed) for seed in range(20)]
    assert all(len(one) == 2 and one[0] in (1, 2, 3) and 0 not in one for one in drawn) and [3, 4] in drawn
    assert choose_images(lesson, limit=3) == [0, 1, 2] and choose_images(lesson) == [0, 1, 2, 3, 4]


def test_a_zip_data_set_serves_as_well(data_root: Path) -> None:
    lesson = lesson_of(open_dataset("voc21", data_root, "train"), ["cat", "dog"])
    chosen = choose_images(lesson, per_word=2)
    assert 2 <= len(chosen) <= 4 and lesson.none == (0,) and lesson.words[lesson.learned[0]] == "cat"
    label = lesson.read(chosen[0])[1]
    assert set(np.unique(label)) <= {*range(21), 255} and {*lesson.learned} & {*np.unique(label)}


def refused(images: Path, labels: Path, *words: str) -> None:
    lesson = lesson_of(open_folders(images, labels), words)
    adapt(Segmenter(small_model()), lesson, choose_images(lesson))


def test_bad_input_is_refused_in_a_line(tmp_path: Path) -> None:
    images, labels = labelled.write(tmp_path)
    with pytest.raises(OVSDinoError, match=r"'car' is not a class of .*; it has my mug, stripes"):
        refused(images, labels, "car")
    label = np.array(Image.open(labels / "1.png"))
    Image.fromarray(np.where(label == 1, 7, label).astype(np.uint8)).save(labels / "1.png")
    with pytest.raises(OVSDinoError, match=r"labels/1\.png holds the id 7; the 3 names have the ids 0 to 2, and 255"):
        refused(images, labels)
    Image.fromarray(label[:40]).save(labels / "1.png")
    with pytest.raises(OVSDinoError, match=r"images/1\.png is 80x48, its label 80x40"):
        refused(images, labels)
    (labels / "1.png").unlink()
    with pytest.raises(OVSDinoError, match=r"1 files lack their image or label partner, e\.g\. '1'"):
        refused(images, labels)


def test_a_word_without_a_pixel_is_refused(tmp_path: Path) -> None:
    images, labels = labelled.write(tmp_path, names=(*labelled.NAMES, "spoon"))
    with pytest.raises(OVSDinoError, match="no pixel of 'spoon' in these 6 images"):
        refused(images, labels)
    with pytest.raises(OVSDinoError, match="1 images; adapt takes 2 to 200"):
        lesson = lesson_of(open_folders(images, labels))
        choose_images(lesson, limit=1)
    with pytest.raises(OVSDinoError, match="per_word is 0: expected at least 1"):
        choose_images(lesson, per_word=0)


def test_names_are_needed_and_more_than_background(tmp_path: Path) -> None:
    images, labels = labelled.write(tmp_path, names=("background",))
    with pytest.raises(OVSDinoError, match="no class but background"):
        lesson_of(open_folders(images, labels))
    (tmp_path / "classes.json").unlink()
    with pytest.raises(OVSDinoError, match=r"classes\.json is missing: a JSON list of the class names"):
        open_folders(images, labels)
    with pytest.raises(OVSDinoError, match="no such folder"):
        open_folders(images, tmp_path / "nothing")
