"""Files of classes: every form gives the same vocabulary, and a wrong one gives one clear line."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

from ovsdino.errors import OVSDinoError
from ovsdino.results import Segmentation
from ovsdino.vocabulary import Vocabulary

SAME = {
    "classes.txt": "\ufeff# a street\nroad\n\ncar|automobile\nstatic=building|tree\n",
    "classes.yaml": "road:\ncar: [car, automobile]\nstatic: {words: [building, tree]}\n",
    "list.yml": "- road\n- car|automobile\n- static: [building, tree]\n",
    "data.yaml": "path: x\nnc: 3\nnames:\n  0: road\n  2: static=building|tree\n  1: car|automobile\n",
    "classes.json": json.dumps({"road": None, "car": ["car", "automobile"], "static": {"words": ["building", "tree"]}}),
    "named.json": json.dumps(["road", {"name": "car", "words": ["car", "automobile"]}, "static=building|tree"]),
}


@pytest.mark.parametrize("name", SAME)
def test_every_form_gives_the_same_vocabulary(name: str, tmp_path: Path) -> None:
    file = tmp_path / name
    file.write_text(SAME[name], encoding="utf-8")
    expected = Vocabulary.of("road, car|automobile, static=building|tree")
    assert Vocabulary.of(file) == Vocabulary.of(str(file)) == expected


def test_colors_of_the_file_are_those_of_the_pictures(tmp_path: Path) -> None:
    file = tmp_path / "classes.yaml"
    file.write_text('road: {color: "#102030"}\nsky:\ncar: {words: automobile, color: [1, 2, 3]}\n')
    vocabulary = Vocabulary.of(file)
    assert vocabulary.colors == ((16, 32, 48), None, (1, 2, 3)) and vocabulary.texts[2] == ("automobile",)
    found = Segmentation(labels=np.zeros((2, 2), np.uint8), names=vocabulary.names, palette=vocabulary.colors)
    usual = Segmentation(labels=np.zeros((2, 2), np.uint8), names=vocabulary.names)
    assert found.colors[[0, 2]].tolist() == [[16, 32, 48], [1, 2, 3]]
    np.testing.assert_array_equal(found.colors[1], usual.colors[1])


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.txt", "road, car\n", "one class on a line"),
        ("a.txt", "# nothing\n", "no classes in this file"),
        ("a.txt", "road\nroad\n", "given twice"),
        ("a.yaml", "road: [", "a.yaml"),
        ("a.yaml", "just text", "expected a list of words"),
        ("a.yaml", "road: {colour: red}", "known: words, color"),
        ("a.yaml", "road: {color: red}", "#rrggbb"),
        ("a.yaml", "road: {color: [1, 2, 300]}", "#rrggbb"),
        ("a.yaml", "yes: [a]", "not text"),
        ("a.yaml", "- [a, b]", "expected a word or a class"),
        ("a.json", "{", "a.json"),
        ("a.json", '{"road": 3}', "expected text"),
    ],
)
def test_a_wrong_file_gives_one_clear_line(name: str, text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(OVSDinoError, match=said) as caught:
        Vocabulary.of(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_a_missing_file_and_another_suffix_are_said(tmp_path: Path) -> None:
    with pytest.raises(OVSDinoError, match="no such file"):
        Vocabulary.of("nowhere.yaml")
    with pytest.raises(OVSDinoError, match="ends in"):
        Vocabulary.of(Path("classes.toml"))
    assert Vocabulary.of("readme.txt, car").names == ("readme.txt", "car")  # words, since a comma is there


def test_without_pyyaml_the_message_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.yaml").write_text("road:\n")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(OVSDinoError, match="pip install pyyaml"):
        Vocabulary.of(tmp_path / "a.yaml")
