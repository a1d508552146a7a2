"""`ovsdino adapt` as a user meets it, and the commands that take its file."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from ovsdino.cli import main
from ovsdino.edge.bank import TextBank
from ovsdino.models.adapted import AdaptedWords
from tests.support import labelled

FAST = ["--short-side", "64", "--device", "cpu"]


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of two words that the shipped model learned."""
    root = tmp_path_factory.mktemp("mugs")
    images, labels = labelled.write(root, 3)
    folders = ["--images", str(images), "--labels", str(labels)]
    assert main(["adapt", *folders, "--output", str(root / "own.safetensors"), *FAST]) == 0
    return root / "own.safetensors"


def test_it_prints_what_it_learned(own: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = ["--images", str(own.parent / "images"), "--labels", str(own.parent / "labels")]
    args = ["adapt", *folders, "--words", "my mug", "--output", str(tmp_path / "one.safetensors"), *FAST]
    assert main([*args, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert {"output", "model", "weights", "images", "steps", "words", "others"} == set(report)
    assert [word["word"] for word in report["words"]] == ["my mug"] and report["images"] == 3
    assert set(report["words"][0]) == {"word", "images", "pixels", "start", "iou_before", "iou_after", "moved"}
    assert main(args) == 0
    out = capsys.readouterr().out
    assert "1 words of nano" in out and "my mug" in out and "IoU before" in out


def test_every_command_takes_the_file(own: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = AdaptedWords.load(own)
    assert words.words == ("my mug", "stripes") and words.model == "nano"
    bank = tmp_path / "bank.safetensors"
    options = ["--classes", "road,my mug", "--adapted", str(own)]
    assert main(["text", *options, "--output", str(bank)]) == 0
    np.testing.assert_allclose(TextBank.load(bank).text.reshape(2, -1)[1], words.rows[0], atol=1e-6)
    image = str(own.parent / "images" / "0.png")
    assert main(["segment", image, *options, "--output", str(tmp_path / "out"), *FAST]) == 0
    stream = [str(own.parent / "images"), "--frames", "1", "--device", "cpu"]
    assert main(["stream", *stream, *options, "--json"]) == 0
    folder = ["--dataset", "folder", "--root", str(own.parent), "--limit", "1", *FAST]
    assert main(["eval", *folder, "--adapted", str(own), "--json"]) == 0
    capsys.readouterr()


def test_words_of_an_earlier_file_go_on(own: Path, tmp_path: Path) -> None:
    images, labels = labelled.write(tmp_path, 3, ("background", "MY MUG", "lamp"))
    folders = ["--images", str(images), "--labels", str(labels), "--adapted", str(own)]
    path = tmp_path / "more.safetensors"
    assert main(["adapt", *folders, "--words", "lamp", "--output", str(path), *FAST]) == 0
    before, after = AdaptedWords.load(own), AdaptedWords.load(path)
    assert after.words == ("my mug", "stripes", "lamp") and torch.equal(after.rows[:2], before.rows)


@pytest.mark.parametrize(
    ("args", "line"),
    [
        ([], "--images and --labels are missing: name both folders, or give --dataset"),
        (["--dataset", "voc21", "--images", "x"], "--dataset takes the place of --images and --labels"),
        (["--images", "nothing", "--labels", "nothing"], "nothing: no such folder"),
    ],
)
def test_a_bad_line_is_refused(args: list[str], line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["adapt", *args]) == 2
    err = capsys.readouterr().err
    assert line in err and err.count("\n") == 1


def test_the_file_is_no_output_and_no_other_models(
    own: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = own.read_bytes()
    folders = ["--images", str(own.parent / "images"), "--labels", str(own.parent / "labels")]
    assert main(["adapt", *folders, "--adapted", str(own), "--output", str(own), *FAST]) == 2
    assert main(["text", "--classes", "my mug", "--adapted", str(own), "--output", str(own)]) == 2
    assert "would replace an input" in capsys.readouterr().err and own.read_bytes() == data
    words = AdaptedWords.load(own)
    foreign = AdaptedWords(
        words=words.words, text=words.text, residual=words.residual, model="nano", weights=words.weights[::-1]
    )
    path = foreign.save(tmp_path / "foreign.safetensors")
    image = str(own.parent / "images" / "0.png")
    assert main(["segment", image, "--classes", "my mug,road", "--adapted", str(path)]) == 2
    assert "adapted words of other weights of nano than these" in capsys.readouterr().err
    assert main(["stream", str(own.parent / "images"), "--engine", "a.onnx", "--bank", "b", "--adapted", str(own)]) == 2
    assert "--adapted without effect" in capsys.readouterr().err
