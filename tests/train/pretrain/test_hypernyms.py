"""Names of classes by their definitions: the noun of a definition, the chains, and what a class can be called."""

from __future__ import annotations

import numpy as np
import pytest

from ovsdino.train.pretrain.hypernyms import GENERAL, Hypernyms, imagenet_hypernyms, nouns


@pytest.fixture(scope="module")
def table() -> Hypernyms:
    return imagenet_hypernyms()


@pytest.mark.parametrize(
    ("definition", "noun"),
    [
        ("a cat with a gray or tawny coat mottled with black", "cat"),
        ("a low leather step-in shoe; the top resembles a moccasin", "low leather step-in shoe"),
        ("(usually plural) close-fitting trousers of heavy denim", "close-fitting trousers"),
        ("any of several small breeds of dog bred for hunting", "dog bred"),
    ],
)
def test_a_definition_opens_with_its_noun(definition: str, noun: str) -> None:
    assert next(nouns(definition)) == noun


@pytest.mark.parametrize(
    ("index", "chain"),
    [
        (281, ["tabby", "cat", "mammal"]),
        (285, ["Egyptian cat", "domestic cat", "cat"]),
        (207, ["golden retriever", "retriever", "dog"]),
        (348, ["ram", "sheep"]),
        (404, ["airliner", "airplane", "aircraft", "vehicle"]),
        (423, ["barber chair", "chair", "seat"]),
        (440, ["beer bottle", "bottle", "vessel"]),
        (532, ["dining table", "table", "furniture"]),
        (576, ["gondola", "boat"]),
        (630, ["Loafer", "shoe", "footwear"]),
        (671, ["mountain bike", "bicycle", "wheeled vehicle", "vehicle"]),
        (779, ["school bus", "bus", "vehicle"]),
        (817, ["sports car", "car", "motor vehicle"]),
        (981, ["ballplayer", "athlete"]),
    ],
)
def test_a_class_lies_under_what_its_definition_says(table: Hypernyms, index: int, chain: list[str]) -> None:
    assert [table.names[one][0] for one in table.lineage(table.classes[index])][: len(chain)] == chain


def test_classes_have_the_names_of_what_they_are_kinds_of(table: Hypernyms) -> None:
    tabby, airliner = table.words(table.classes[281]), table.words(table.classes[404])
    assert tabby[0] == "tabby" and {"cat", "true cat", "mammal"} <= set(tabby) and tabby.index("cat") > 1
    assert {"airplane", "aeroplane", "aircraft"} <= set(airliner)
    assert not GENERAL & {*tabby, *airliner}
    assert len(set(tabby)) == len(tabby)


def test_most_classes_lie_under_something(table: Hypernyms) -> None:
    assert sum(synset in table.above for synset in table.classes) > 900


def test_whoever_wears_it_is_in_the_picture_of_a_piece_of_clothing(table: Hypernyms) -> None:
    jersey, sports_car = table.words(table.classes[610]), table.words(table.classes[817])
    assert {"jersey", "person", "people"} <= set(jersey) and "person" not in sports_car


def test_membership_is_the_words_of_each_class(table: Hypernyms) -> None:
    found = table.membership(["cat", "dog", "no such word"])
    assert found.shape == (1000, 3) and found.dtype == bool
    assert set(np.flatnonzero(found[:, 0])) <= set(range(281, 294)) and {281, 283, 285} <= set(
        np.flatnonzero(found[:, 0])
    )
    assert set(np.flatnonzero(found[:, 1])) <= set(range(151, 276)) and found[:, 1].sum() > 70
    assert not found[:, 2].any()


def test_a_word_finds_its_usual_synset(table: Hypernyms) -> None:
    assert table.names[table.of_word("Airplanes") or ""][0] == "airplane"
    assert table.names[table.of_word("automobile") or ""][0] == "car"
    assert table.of_word("no such word") is None
