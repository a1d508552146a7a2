"""Text banks: the words that are written are read back, and other files are refused."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from ovsdino import pipeline
from ovsdino.cli import main
from ovsdino.edge.bank import TextBank
from ovsdino.errors import OVSDinoError
from ovsdino.models.weights import weights_digest

ROWS = np.array([[1, 0, 0], [0, 0.6, 0.8]], np.float32)


def metadata(**changes: str) -> dict[str, str]:
    return {"format": "1", "names": '["road", "car"]', "model": "nano", "weights": "ab", **changes}


def write(path: Path, tensors: dict[str, Any] | None = None, **changes: str) -> Path:
    save_file({"text": ROWS} if tensors is None else tensors, path, metadata=metadata(**changes))
    return path


def test_a_saved_bank_reads_back(tmp_path: Path) -> None:
    names = ("Straße", "voiture 🚗", 'quote " and \\')
    text = np.eye(3, 5, dtype=np.float64)
    bank = TextBank(names=names, text=text, model="nano", weights="cd" * 32)
    again = TextBank.load(bank.save(tmp_path / "deep" / "bank.safetensors"))
    assert (again.names, again.model, again.weights) == (names, "nano", "cd" * 32)
    assert again.text.dtype == np.float32 and np.array_equal(again.text, text)
    with pytest.raises(ValueError, match="read-only"):
        again.text[0, 0] = 2


def test_a_bank_is_what_the_contract_says(tmp_path: Path) -> None:
    bank = TextBank.load(write(tmp_path / "bank.safetensors"))
    assert len(bank) == 2 and bank.names == ("road", "car")
    assert np.array_equal(bank.text, ROWS) and (bank.model, bank.weights) == ("nano", "ab")


@pytest.mark.parametrize(
    "name, message",
    [
        ("missing", "cannot read the text bank: No such file"),
        ("folder", "not a text bank"),
        ("pipe", "not a text bank"),
        ("empty", "not a readable text bank"),
        ("text", "not a readable text bank"),
        ("header", "not a readable text bank"),
        ("cut", "not a readable text bank"),
        ("format", "format '3'"),
        ("tensor", "not a text bank of format 1"),
        ("two", "tensors other, text"),
        ("half", "not a text bank of format 1"),
        ("names", "damaged metadata"),
        ("list", "names is not a list"),
        ("no model", "damaged metadata"),
        ("count", "3 names for 2 rows"),
        ("twice", "given twice"),
        ("long", "row 1 ('car') has length 2"),
        ("nan", "row 0 ('road') has length nan"),
        ("flat", "expected (K, D)"),
    ],
)
def test_what_is_no_bank_is_refused_in_one_line(tmp_path: Path, name: str, message: str) -> None:
    path = tmp_path / "bank.safetensors"
    if name == "folder":
        path.mkdir()
    elif name == "pipe":
        os.mkfifo(path)
    elif name != "missing":
        write(path)
    data = path.read_bytes() if path.is_file() else b""
    if name == "empty":
        path.write_bytes(b"")
    elif name == "text":
        path.write_text("road, car\n")
    elif name == "header":
        path.write_bytes((1 << 62).to_bytes(8, "little") + data[8:])
    elif name == "cut":
        path.write_bytes(data[:-4])
    elif name == "format":
        write(path, format="3")
    elif name == "tensor":
        write(path, {"image": ROWS})
    elif name == "two":
        write(path, {"text": ROWS, "other": ROWS})
    elif name == "half":
        write(path, {"text": ROWS.astype(np.float16)})
    elif name == "names":
        write(path, names="road")
    elif name == "list":
        write(path, names='["road", 3]')
    elif name == "no model":
        save_file({"text": ROWS}, path, metadata={"format": "1", "names": '["road", "car"]'})
    elif name == "count":
        write(path, names='["road", "car", "sky"]')
    elif name == "twice":
        write(path, names='["road", "Road"]')
    elif name == "long":
        write(path, {"text": ROWS * np.array([[1], [2]], np.float32)})
    elif name == "nan":
        write(path, {"text": ROWS * np.array([[np.nan], [1]], np.float32)})
    elif name == "flat":
        write(path, {"text": ROWS[0]})
    with pytest.raises(OVSDinoError) as caught:
        TextBank.load(path)
    assert message in str(caught.value) and str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_every_flipped_bit_of_a_bank_is_seen(tmp_path: Path) -> None:
    path = TextBank(names=("road", "car"), text=ROWS, model="nano", weights="cd" * 32).save(tmp_path / "bank")
    whole = path.read_bytes()
    for place in range(len(whole)):
        data = bytearray(whole)
        data[place] ^= 1
        path.write_bytes(data)
        with pytest.raises(OVSDinoError) as caught:
            found = TextBank.load(path)
            raise AssertionError(f"byte {place}, {whole[place - 9 : place + 9]!r}: {found}")
        assert "\n" not in str(caught.value)


def test_a_bank_of_an_earlier_version_has_no_hash_and_loads(tmp_path: Path) -> None:
    path = write(tmp_path / "bank.safetensors")
    assert "sha256" not in metadata() and TextBank.load(path).names == ("road", "car")
    with pytest.raises(OVSDinoError, match="its SHA-256 is another"):
        TextBank.load(write(path, sha256="0" * 64))


def test_the_hash_is_that_of_the_words_and_the_rows(tmp_path: Path) -> None:
    path = TextBank(names=("road", "car"), text=ROWS, model="nano", weights="ab").save(tmp_path / "bank")
    with safe_open(path, framework="numpy") as file:
        found = file.metadata()["sha256"]
    words = b'[["road", "car"], "nano", "ab", [2, 3]]'
    assert found == hashlib.sha256(words + struct.pack("<6f", 1, 0, 0, 0, 0.6, 0.8)).hexdigest()


def test_the_command_writes_the_rows_the_model_uses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "bank.safetensors"
    line = ["text", "--classes", "road, car|automobile", "--output", str(path), "--device", "cpu", "--json"]
    code = main([*line, "--average-words", "--partition"])
    out = capsys.readouterr().out
    assert code == 0 and out.count("\n") == 1
    segmenter = pipeline.load("nano", "cpu")
    bank = TextBank.load(path)
    assert np.array_equal(bank.text, segmenter.encode_text("road, car|automobile").numpy())
    assert bank.names == ("road", "car") and bank.model == "nano"
    assert bank.weights == weights_digest(segmenter.model)
    expected = {"output": str(path), "model": "nano", "weights": bank.weights, "classes": ["road", "car"]}
    assert json.loads(out) == {**expected, "shape": [2, 256], "words": [1, 1], "contrast": 0}
    assert main([*line, "--no-partition"]) == 0
    rows = segmenter.text_rows("road, car|automobile", partition=False)
    bank = TextBank.load(path)
    assert bank.words == (1, 2) and bank.contrast is not None
    assert np.array_equal(bank.padded(), rows.words.numpy())
    assert np.array_equal(bank.contrast, rows.contrast.numpy())
    found = json.loads(capsys.readouterr().out)
    assert (found["words"], found["shape"], found["contrast"]) == ([1, 2], [3, 256], len(bank.contrast))


def test_the_command_refuses_bad_classes_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["text", "--classes", "road,,car", "--output", str(tmp_path / "b")]) == 2
    assert capsys.readouterr().err.count("\n") == 1 and not list(tmp_path.iterdir())


def grouped() -> TextBank:
    """Two classes, of two words and one, and two contrast rows."""
    rows = np.eye(5, dtype=np.float32)
    return TextBank(names=("static", "sky"), text=rows[:3], model="nano", weights="ab", words=(2, 1), contrast=rows[3:])


def test_groups_of_rows_travel_in_the_bank(tmp_path: Path) -> None:
    bank = TextBank.load(grouped().save(tmp_path / "bank"))
    assert bank.names == ("static", "sky") and bank.words == (2, 1) and bank.grouped
    assert bank.contrast is not None and np.array_equal(bank.contrast, np.eye(5)[3:])
    padded = bank.padded()
    assert padded.shape == (2, 2, 5)
    assert np.array_equal(padded[0], np.eye(5)[:2]) and np.array_equal(padded[1, 0], np.eye(5)[2])
    assert not padded[1, 1].any()


def test_a_bank_of_single_rows_is_as_it_was(tmp_path: Path) -> None:
    """Earlier versions read it: format 1, one tensor, and the hash of before."""
    path = TextBank(names=("road", "car"), text=ROWS, model="nano", weights="ab", words=(1, 1)).save(tmp_path / "bank")
    with safe_open(path, framework="numpy") as file:
        assert file.keys() == ["text"]
        assert file.metadata()["format"] == "1" and "words" not in file.metadata()
    assert not TextBank.load(path).grouped


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"words": (2,)}, "2 names for 1 rows"),
        ({"words": (1, 1)}, "2 words, it has 3 rows"),
        ({"words": (3, 0)}, "3 words, it has 3 rows"),
        ({"contrast": np.eye(4, dtype=np.float32)}, r"contrast of shape \(4, 4\), expected \(C, 5\)"),
        ({"contrast": np.zeros((1, 5), np.float32)}, "row 0 .'contrast'. has length 0"),
        ({"contrast": np.zeros((0, 5), np.float32)}, r"contrast of shape \(0, 5\)"),
    ],
)
def test_groups_that_do_not_add_up_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(OVSDinoError, match=message):
        dataclasses.replace(grouped(), **changes)


def test_changed_contrast_rows_are_found(tmp_path: Path) -> None:
    path = grouped().save(tmp_path / "bank")
    with safe_open(path, framework="numpy") as file:
        facts, text, contrast = file.metadata(), file.get_tensor("text"), file.get_tensor("contrast")
    save_file({"text": text, "contrast": np.ascontiguousarray(contrast[::-1])}, path, metadata=facts)
    with pytest.raises(OVSDinoError, match="changed since it was written"):
        TextBank.load(path)
