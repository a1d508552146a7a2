"""The contrast vocabulary, and which of its phrases compete with given words."""

from __future__ import annotations

import pytest

from ovsdino.contrast import contrast_phrases, rivals
from ovsdino.vocabulary import Vocabulary

CAMVID = ["sky", "building", "pole", "road", "sidewalk", "tree", "sign", "fence", "car", "pedestrian", "bicyclist"]
VOC = [
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "dining table",
    "dog",
    "horse",
    "motorbike",
    "person",
    "potted plant",
    "sheep",
    "sofa",
    "train",
    "tv monitor",
]


def competing(*words: str) -> set[str]:
    phrases = contrast_phrases()
    return {phrases[index] for index in rivals(words)}


def test_phrases_are_valid_words_and_none_comes_twice():
    phrases = contrast_phrases()
    assert 150 <= len(phrases) <= 255
    assert Vocabulary.of(phrases).names == phrases


@pytest.mark.parametrize("name", [*CAMVID, *VOC])
def test_every_class_of_the_training_sets_answers_to_a_phrase(name):
    assert len(competing(name)) < len(contrast_phrases())


@pytest.mark.parametrize(
    ("word", "out", "still_in"),
    [
        ("car", {"car", "wheel"}, {"road", "truck", "person", "parking lot"}),
        ("vehicle", {"car", "truck", "bus", "bicycle", "boat"}, {"road", "person"}),
        ("animal", {"dog", "cat", "zebra", "bird"}, {"grass", "person"}),
        ("police car", {"car"}, {"truck"}),
        ("Cars", {"car"}, {"road"}),
        ("bushes", {"bush"}, {"tree"}),
        ("table", {"table", "dining table", "desk"}, {"chair"}),
        ("woman", {"person", "face", "clothing"}, {"dog", "bag"}),
        ("pedestrian", {"person", "crowd"}, {"bicycle", "sidewalk"}),
        ("bicyclist", {"person", "bicycle"}, {"car", "road"}),
        ("drivable area", {"road"}, {"sidewalk", "grass"}),
        ("ground", {"road", "grass", "soil", "floor", "sand"}, {"wall", "water"}),
        ("greenery", {"tree", "grass", "bush"}, {"soil"}),
        ("sign_symbol", {"traffic sign"}, {"pole"}),
        ("diningtable", {"dining table"}, {"chair"}),
        ("zebra", {"zebra"}, {"horse", "road marking"}),
    ],
)
def test_a_word_takes_out_what_it_means_and_leaves_the_rest(word, out, still_in):
    left = competing(word)
    assert not left & out
    assert still_in <= left


def test_every_word_of_a_class_takes_out_its_own():
    assert competing("road", "sky") == competing("road") & competing("sky")


def test_a_word_that_nothing_is_called_takes_out_nothing():
    assert competing("qwertyuiop") == set(contrast_phrases())
