"""`evaluate` on a small data set whose right answers are known."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ovsdino.data.segmentation import open_dataset
from ovsdino.errors import OVSDinoError
from ovsdino.eval import evaluate, read_class_names
from ovsdino.results import Segmentation
from ovsdino.vocabulary import Vocabulary


class Left:
    """Calls the left half the first class and the right half the second, and remembers what it was asked."""

    def __init__(self) -> None:
        self.vocabularies: list[Vocabulary] = []

    def segment(self, image: np.ndarray, classes: Vocabulary, **_: Any) -> Segmentation:
        self.vocabularies.append(classes)
        labels = np.zeros(image.shape[:2], np.uint8)
        labels[:, image.shape[1] // 2 :] = 1
        return Segmentation(labels=labels, names=classes.names, stages_ms={"encode": 2.0, "decode": 1.0})


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    (tmp_path / "labels").mkdir()
    (tmp_path / "classes.json").write_text(json.dumps(["left", "right", "never"]))
    for number, column in enumerate((20, 20, 10)):
        label = np.zeros((30, 40), np.uint8)
        label[:, column:] = 1
        label[0] = 255
        Image.fromarray(np.zeros((30, 40, 3), np.uint8)).save(tmp_path / "images" / f"{number}.png")
        Image.fromarray(label).save(tmp_path / "labels" / f"{number}.png")
    return tmp_path


def test_scores_are_those_of_the_labels(root: Path) -> None:
    seen: list[tuple[int, int]] = []
    model = Left()
    result = evaluate(model, open_dataset("folder", root), progress=lambda *a: seen.append(a))  # type: ignore[arg-type]
    # two images right; in the third the 10 columns 10..19 are called left but are right (29 labelled rows)
    rows = 29
    left = (20 + 20 + 10) / (20 + 20 + 20)
    right = (20 + 20 + 20) / (20 + 20 + 30)
    report = result.to_dict()
    assert report["iou"] == {"left": round(left, 5), "right": round(right, 5), "never": None}
    assert report["miou"] == round((left + right) / 2, 5)
    assert report["pixel_accuracy"] == round(1 - 10 * rows / (3 * 40 * rows), 5)
    assert report["boundary_f1"] == round(2 / 3, 5)
    assert (report["images"], report["ms_per_image"]) == (3, 3.0)
    assert seen == [(1, 3), (2, 3), (3, 3)]
    assert len(model.vocabularies) == 4  # one warm-up


def test_class_names_replace_texts_and_limit_takes_the_first(root: Path) -> None:
    model = Left()
    names = {"left": "west", "never": ["nowhere", "nothing"]}
    result = evaluate(model, open_dataset("folder", root), class_names=names, limit=2)  # type: ignore[arg-type]
    assert result.images == 2 and result.scores.miou == 1.0
    assert model.vocabularies[0].names == ("left", "right", "never")
    assert model.vocabularies[0].texts == (("west",), ("right",), ("nowhere", "nothing"))


def test_unknown_class_names_and_limits_are_refused(root: Path) -> None:
    dataset = open_dataset("folder", root)
    with pytest.raises(OVSDinoError, match="'up' is not a class"):
        evaluate(Left(), dataset, class_names={"up": "north"})  # type: ignore[arg-type]
    with pytest.raises(OVSDinoError, match="limit"):
        evaluate(Left(), dataset, limit=0)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "text", ["[1]", "{", '{"a": 3}', '{"a": []}', '{"a": [""]}', '{"a": ["x", 2]}', "[" * 100_000, "\udcff"]
)
def test_bad_class_name_files_are_one_line_with_the_file(tmp_path: Path, text: str) -> None:
    path = tmp_path / "names.json"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(OVSDinoError) as caught:
        read_class_names(path)
    assert "names.json" in str(caught.value) and "\n" not in str(caught.value)


def test_class_name_files_hold_texts_or_lists(tmp_path: Path) -> None:
    path = tmp_path / "names.json"
    path.write_text('{"car": "automobile", "tree": ["foliage", "bush"]}')
    assert read_class_names(path) == {"car": "automobile", "tree": ["foliage", "bush"]}
    with pytest.raises(OVSDinoError, match="cannot read"):
        read_class_names(tmp_path / "missing.json")
