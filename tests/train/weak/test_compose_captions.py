"""Captions of crops say what the crops show, and nothing of where."""

import json
import sys

import numpy as np
import pytest
from PIL import Image

from ovsdino.data.phrases import phrases
from ovsdino.train.weak.compose_captions import ComposeCaptions, compose, main, sentence


@pytest.fixture
def root(tmp_path):
    """One picture, left half class 0, right half class 1, one row without a label."""
    for kind in ("images", "labels"):
        (tmp_path / "train" / kind).mkdir(parents=True)
    label = np.zeros((60, 80), np.uint8)
    label[:, 40:] = 1
    label[0] = 255
    Image.fromarray(np.zeros((60, 80, 3), np.uint8)).save(tmp_path / "train/images/a.png")
    Image.fromarray(label).save(tmp_path / "train/labels/a.png")
    (tmp_path / "classes.json").write_text('["red wall", "blue wall"]')
    return tmp_path


def test_a_caption_names_what_covers_enough_of_the_crop(root, tmp_path):
    config = ComposeCaptions(root=root, output=tmp_path / "c.jsonl", dataset="folder", crops=60, least=0.1)
    rows = compose(config)
    assert len(rows) == 60 and rows == compose(config)
    seen = set()
    for row in rows:
        left, _, width, height = row["box"]
        red = np.clip(40 - left, 0, width) / width
        expected = [name for name, share in (("red wall", red), ("blue wall", 1 - red)) if share >= 0.1]
        assert set(phrases(row["caption"])) == set(expected) and 0 < height <= 60
        seen.add(row["caption"])
    assert {"red wall", "blue wall", "red wall and blue wall", "blue wall and red wall"} == seen


def test_sentences():
    assert [sentence(names) for names in (["a"], ["a", "b"], ["a", "b", "c"])] == ["a", "a and b", "a, b and c"]


def test_the_command_writes_lines_and_names_mistakes(root, tmp_path, capsys, monkeypatch):
    output = tmp_path / "deep" / "c.jsonl"
    command = ["compose", "--root", str(root), "--dataset", "folder", "--crops", "3", "--output", str(output)]
    monkeypatch.setattr(sys, "argv", command)
    assert main() == 0
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert len(rows) == 3 and all(row.keys() == {"image", "caption", "box"} for row in rows)
    monkeypatch.setattr(sys, "argv", [*command, "--split", "test"])
    assert main() == 2
    assert capsys.readouterr().err.startswith("error:")
