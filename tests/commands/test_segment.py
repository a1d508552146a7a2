"""`ovsdino segment` where names, folders and disks are not as they should be: a bad one does not stop the others."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ovsdino.cli import main
from ovsdino.pipeline import Segmenter
from ovsdino.results import Segmentation
from ovsdino.vocabulary import Vocabulary

FAST = ["--classes", "road,sky", "--short-side", "64", "--device", "cpu"]


def picture(path: Path) -> Path:
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 80, 3), dtype=np.uint8)).save(path, "PNG")
    return path


def run_json(capsys: pytest.CaptureFixture[str], *args: object) -> tuple[int, dict[str, Any], str]:
    code = main(["segment", *(str(a) for a in args), "--json", *FAST])
    out, err = capsys.readouterr()
    assert out.count("\n") == 1
    return code, json.loads(out), err


def test_one_bad_path_of_each_kind_does_not_stop_the_good_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "loop.png").symlink_to("loop.png")
    (tmp_path / "empty").mkdir()
    os.mkfifo(tmp_path / "pipe.png")
    bad = [tmp_path / name for name in ("empty", "loop.png", "x" * 300 + ".png", "pipe.png", "none.png/under.png")]
    code, data, err = run_json(capsys, *bad, picture(tmp_path / "good.png"), "--output", tmp_path / "out")
    assert code == 2 and err.count("\n") == err.count("error: ") == len(bad)
    assert [entry["path"] for entry in data["images"] if "error" in entry] == [str(path) for path in bad]
    assert sorted(os.listdir(tmp_path / "out")) == ["good_labels.png", "good_overlay.png"]


AS_NOBODY = """
import os, sys
from ovsdino.commands.segment import unique_stems
from ovsdino.errors import OVSDinoError
from ovsdino.io.images import expand_paths, load_image
from ovsdino.io.files import file_identity

os.chdir(sys.argv[1])
load_image("good.png")  # loads the decoders, which this user may not read later
os.setgroups([]), os.setgid(65534), os.setuid(65534)
for name in ("entered/a.png", "entered", "listed", "good.png"):
    try:
        for path in expand_paths([name]):
            unique_stems([path]), file_identity(path)
            print(load_image(path).shape)
    except OVSDinoError as error:
        print(error)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become someone who may not enter a folder")
def test_an_image_in_a_closed_folder_is_one_line(tmp_path: Path) -> None:
    for name, mode in (("entered", 0o444), ("listed", 0o111)):
        (tmp_path / name).mkdir()
        picture(tmp_path / name / "a.png")
        (tmp_path / name).chmod(mode)
    picture(tmp_path / "good.png").chmod(0o644)
    tmp_path.chmod(0o755)
    done = subprocess.run(
        [sys.executable, "-c", AS_NOBODY, tmp_path], capture_output=True, text=True, check=False, timeout=60
    )
    denied = "entered/a.png: permission denied; make the file readable"
    listing = "listed: cannot list the folder: Permission denied"
    assert done.stdout.splitlines() == [denied, denied, listing, "(64, 80, 3)"], done.stderr


@pytest.mark.parametrize("encoding", ["utf-8", "cp1252", "ascii"])
@pytest.mark.parametrize("as_json", [False, True])
def test_names_that_are_not_utf8_and_words_that_the_terminal_lacks_are_done(
    encoding: str, as_json: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "in").mkdir()
    picture(tmp_path / "in" / "a_\udce9.png")
    picture(tmp_path / "in" / "b.png")
    shown = io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="strict")  # as a terminal's
    monkeypatch.setattr(sys, "stdout", shown)
    args = ["segment", str(tmp_path / "in"), "--output", str(tmp_path / "out"), *FAST, "--classes", "空, 🚗, café"]
    assert main([*args, "--json"] if as_json else args) == 0
    text = shown.buffer.getvalue().decode(encoding)  # type: ignore[attr-defined]
    if as_json:
        images = json.loads(text)["images"]
        assert [Path(one["path"]).name for one in images] == ["a_\udce9.png", "b.png"]
        assert [one["name"] for one in images[0]["classes"]] == ["空", "🚗", "café", "background"]
    else:
        assert text.count(" -> ") == 2 and "a_\\udce9.png -> " in text
    notes = [line for line in capsys.readouterr().err.splitlines() if line.startswith("note: ")]
    assert len(notes) == (0 if as_json else 1) and all("a_\\udce9.png: written with escapes" in note for note in notes)
    assert len(os.listdir(tmp_path / "out")) == 4


@pytest.mark.parametrize(("extra", "calls"), [([], 3), (["--warm-up"], 5)])
def test_warm_up_segments_the_first_image_of_each_shape_once_more(
    extra: list[str], calls: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[tuple[int, ...]] = []
    segment = Segmenter.segment

    def counted(self: Segmenter, image: np.ndarray, *args: Any, **options: Any) -> Segmentation:
        seen.append(image.shape)
        return segment(self, image, *args, **options)

    monkeypatch.setattr(Segmenter, "segment", counted)
    for name, turned in (("a", False), ("b", False), ("c", True)):
        path = picture(tmp_path / f"{name}.png")
        if turned:
            Image.open(path).transpose(Image.Transpose.ROTATE_90).save(path)
    code, data, _ = run_json(capsys, tmp_path, *extra, "--output", tmp_path / "out")
    assert code == 0 and len(seen) == calls and len(data["images"]) == 3
    assert all(image["stages_ms"]["load"] > 0 for image in data["images"])


def test_words_that_are_not_there_are_named_and_not_painted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path, out = picture(tmp_path / "a.png"), tmp_path / "out"
    options = ["--no-partition", "--least-share", "0.99", "--output", out]
    code, data, _ = run_json(capsys, path, *options)
    classes = data["images"][0]["classes"]
    assert code == 0 and [entry["found"] for entry in classes] == [False, False, None]
    assert classes[2] == {"name": "background", "fraction": 1.0, "score": None, "found": None, "familiarity": None}
    assert main(["segment", str(path), *map(str, options), *FAST]) == 0
    assert capsys.readouterr().out.endswith("background 100.0%; not found: road, sky\n")
    _, data, _ = run_json(capsys, path, "--partition", "--output", out)
    assert len(data["images"][0]["classes"]) == 2


def test_words_of_a_class_are_a_union_or_averaged_on_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[Vocabulary] = []
    segment = Segmenter.segment

    def noted(self: Segmenter, image: np.ndarray, vocabulary: Vocabulary, **options: Any) -> Segmentation:
        seen.append(vocabulary)
        return segment(self, image, vocabulary, **options)

    monkeypatch.setattr(Segmenter, "segment", noted)
    path = picture(tmp_path / "a.png")
    for extra in ([], ["--average-words"]):
        line = ["segment", path, "--output", tmp_path / "out", *extra, *FAST, "--classes", "static=building|tree,sky"]
        assert main([str(word) for word in line]) == 0
    assert [one.average for one in seen] == [False, True]
    assert seen[0].names == ("static", "sky") and seen[0].texts == (("building", "tree"), ("sky",))
    capsys.readouterr()


def test_files_of_labeling_tools_are_written_with_the_pictures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = [picture(tmp_path / "a.png"), picture(tmp_path / "b.png")]
    (tmp_path / "words.txt").write_text("road\nsky\n")
    args = ["--output", tmp_path / "out", "--partition", "--classes", tmp_path / "words.txt"]
    for kind in ("coco", "yolo", "labelme"):
        code = main(["segment", *map(str, images), *FAST[2:], *map(str, args), "--annotations", kind])
        assert code == 0
    capsys.readouterr()
    written = sorted(os.listdir(tmp_path / "out"))
    assert [name for name in written if not name.endswith("g")] == [
        "a.json",
        "a.txt",
        "annotations.json",
        "b.json",
        "b.txt",
    ]
    coco = json.loads((tmp_path / "out" / "annotations.json").read_text())
    assert [image["file_name"] for image in coco["images"]] == ["a.png", "b.png"]
    for number in (1, 2):
        areas = [one["area"] for one in coco["annotations"] if one["image_id"] == number]
        assert sum(areas) == 64 * 80
    ids = [one["id"] for one in coco["annotations"]]
    assert len(set(ids)) == len(ids)
    labelme = json.loads((tmp_path / "out" / "b.json").read_text())
    assert (tmp_path / "out" / labelme["imagePath"]).resolve() == images[1]
    assert {line.split()[0] for line in (tmp_path / "out" / "a.txt").read_text().splitlines()} <= {"0", "1"}


def test_a_labeling_tools_file_does_not_replace_an_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = picture(tmp_path / "a.json")  # told by content, not by name
    before = image.read_bytes()
    code = main(["segment", str(image), *FAST, "--output", str(tmp_path), "--annotations", "labelme"])
    assert code == 2 and "would replace an input" in capsys.readouterr().err
    assert image.read_bytes() == before
