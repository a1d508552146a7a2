"""Names of classes by WordNet's hypernyms: its file format, the committed table, and what a class can be called."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from ovsdino.errors import OVSDinoError
from ovsdino.train.pretrain.hypernyms import Hypernyms, main, read_hypernyms, read_nouns

ROOT = Path(__file__).resolve().parents[3]
# An entry as wndb(5WN) describes it, shortened: two names, one hypernym, one hyponym, the gloss behind the bar.
LINE = "02084071 05 n 02 dog 0 domestic_dog 0 002 @ 02083346 n 0000 ~ 01322604 n 0000 | a member of the genus Canis"


@pytest.fixture(scope="module")
def table() -> Hypernyms:
    return read_hypernyms(ROOT / "configs" / "imagenet_hypernyms.json")


def test_a_line_of_wordnets_noun_file() -> None:
    assert [*read_nouns(["  1 This software", LINE, ""])] == [
        ("n02084071", ("dog", "domestic dog"), ("n02083346",)),
    ]


def test_classes_have_the_names_of_all_that_they_are_kinds_of(table: Hypernyms) -> None:
    tabby, airliner = table.words(table.classes[281]), table.words(table.classes[404])
    assert tabby[0] == "tabby" and {"cat", "feline", "animal"} <= set(tabby) and tabby.index("cat") > 1
    assert {"airplane", "aeroplane", "vehicle"} <= set(airliner)
    assert not {"entity", "object", "whole"} & {*tabby, *airliner}
    assert len(set(tabby)) == len(tabby)


def test_whoever_wears_it_is_in_the_picture_of_a_piece_of_clothing(table: Hypernyms) -> None:
    jersey, sports_car = table.words(table.classes[610]), table.words(table.classes[817])
    assert {"jersey", "clothing", "person", "people"} <= set(jersey) and "person" not in sports_car


def test_membership_is_the_words_of_each_class(table: Hypernyms) -> None:
    found = table.membership(["cat", "dog", "no such word"])
    assert found.shape == (1000, 3) and found.dtype == bool
    assert np.flatnonzero(found[:, 0]).tolist() == [*range(281, 294)]  # cats, the wild ones among them
    assert set(range(151, 269)) <= set(np.flatnonzero(found[:, 1])) and not found[:, 2].any()


def test_a_word_finds_its_usual_synset(table: Hypernyms) -> None:
    assert table.names[table.of_word("Airplanes") or ""][0] == "airplane"
    assert table.names[table.of_word("couch") or ""][0] == "sofa"
    assert table.of_word("no such word") is None


def test_a_damaged_table_is_one_line(table: Hypernyms, tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    tree = {"classes": list(table.classes[:3]), "synsets": {k: {"names": ["a"], "above": []} for k in table.names}}
    for content in (json.dumps(tree), json.dumps({"classes": []}), "{"):
        path.write_text(content)
        with pytest.raises(OVSDinoError, match=r"table\.json") as caught:
            read_hypernyms(path)
        assert "\n" not in str(caught.value)


def test_the_command_copies_what_the_classes_need(table: Hypernyms, tmp_path: Path) -> None:
    lines = []
    for synset, names in table.names.items():
        spelled = " ".join(f"{name.replace(' ', '_')} 0" for name in names)
        above = " ".join(f"@ {up[1:]} n 0000" for up in table.above[synset])
        lines.append(f"{synset[1:]} 03 n {len(names):02x} {spelled} {len(table.above[synset]):03} {above} | gloss")
    (tmp_path / "data.noun").write_text("\n".join(["  1 licence", *lines, "99999999 03 n 01 unused 0 000 | gloss", ""]))
    (tmp_path / "LICENSE").write_text("Free with\n this notice.")
    output = tmp_path / "out.json"
    words = ["--wordnet", str(tmp_path), "--licence", str(tmp_path / "LICENSE"), "--output", str(output)]
    assert main(words) == 0
    assert read_hypernyms(output) == table and json.loads(output.read_text())["licence"] == "Free with this notice."
    (tmp_path / "data.noun").write_text(LINE)
    assert main(words) == 2
