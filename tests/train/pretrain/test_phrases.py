"""The list of phrases that the text tower learns, from made-up synsets and from timm's."""

import json
import zipfile

import pytest

from ovsdino.errors import OVSDinoError
from ovsdino.train.pretrain.hypernyms import Hypernyms, imagenet_definitions, imagenet_hypernyms
from ovsdino.train.pretrain.phrases import GROUPS, phrase_list, plain, plural, read_extra


def listed(extra=()):
    names = {"n1": ("tabby", "Tabby cat"), "n2": ("cat",), "n3": ("Felis catus",)}
    synsets = Hypernyms(("n1",), names, {"n1": "n2"})
    return phrase_list(["cat", "cats", "small", "running"], synsets, ["a small cat", "any cat"], extra, 0)


def test_each_phrase_is_there_once_in_its_first_group():
    phrases = listed(["Drivable  area", "cat"])
    texts = [phrase.text for phrase in phrases]
    assert len(texts) == len(set(texts))
    assert [phrase.group for phrase in phrases] == sorted((p.group for p in phrases), key=GROUPS.index)
    of = {phrase.text: phrase.group for phrase in phrases}
    assert of["drivable area"] == of["cat"] == of["tabby"] == "core"
    assert of["tabby cat"] == of["felis catus"] == of["small cat"] == "named"
    assert of["small"] == of["running"] == "vocabulary" and of["felis"] == "part" and of["tabbies"] == "plural"


def test_a_plural_is_read_as_what_it_is_of():
    read = {phrase.text: phrase.read for phrase in listed()}
    assert read["cats"] == "cat" and read["running"] == "running"
    assert read["diningtable"] == "dining table" and read["building-other"] == "building"


@pytest.mark.parametrize(
    ("name", "said"),
    [("wall-brick", "brick wall"), ("bed ", "bed"), ("playingfield", "playing field"), ("t-shirt", "t-shirt")],
)
def test_spellings_of_data_sets_become_english(name, said):
    assert plain(name) == said


@pytest.mark.parametrize(
    ("name", "many"),
    [
        ("car", "cars"),
        ("box", "boxes"),
        ("city", "cities"),
        ("old man", "old men"),
        ("toy", "toys"),
        ("leaf", "leaves"),
    ],
)
def test_plurals_by_hand(name, many):
    assert plural(name) == many


def test_extra_phrases_come_from_lines_from_json_and_from_a_zip(tmp_path):
    (tmp_path / "a.txt").write_text("# remark\ncar: vehicle, truck\n\nsky\n")
    (tmp_path / "b.json").write_text(json.dumps({"road": "street", "car": ["sedan", "van"]}))
    with zipfile.ZipFile(tmp_path / "c.zip", "w") as archive:
        archive.writestr("captions.jsonl", '{"image": "a.jpg", "caption": "a cat"}\n')
    assert [*read_extra(tmp_path / "a.txt")] == ["car", "vehicle", "truck", "sky"]
    assert [*read_extra(tmp_path / "b.json")] == ["road", "street", "car", "sedan", "van"]
    assert [*read_extra(tmp_path / "c.zip")] == ["a cat"]


@pytest.mark.parametrize(("name", "content"), [("a.txt", None), ("b.json", "[1]"), ("b.json", "{"), ("c.zip", "no")])
def test_a_file_that_holds_no_phrases_is_refused(tmp_path, name, content):
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(OVSDinoError, match=name):
        [*read_extra(tmp_path / name)]


def test_timms_names_make_a_hundred_thousand_phrases():
    synsets = imagenet_hypernyms()
    phrases = phrase_list(["car", "street", "wooden"], synsets, imagenet_definitions().values(), [], 0)
    assert len(phrases) > 70_000  # the teacher's vocabulary, not asked here, adds some 20 000
    of = {phrase.text: phrase.group for phrase in phrases}
    assert of["tench"] == of["stinkhorn"] == "core" and of["acinonyx jubatus"] == "named"
