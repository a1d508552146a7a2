"""Class lists: what is accepted, what is refused and how."""

from __future__ import annotations

import pytest

from ovsdino.errors import OVSDinoError
from ovsdino.vocabulary import MAX_CLASSES, Vocabulary, background_threshold


@pytest.mark.parametrize(
    ("classes", "names", "texts"),
    [
        ("road, car ,sky", ("road", "car", "sky"), (("road",), ("car",), ("sky",))),
        ("car|automobile, sky", ("car", "sky"), (("car", "automobile"), ("sky",))),
        ("static = building|tree, sky", ("static", "sky"), (("building", "tree"), ("sky",))),
        ("road=street", ("road",), (("street",),)),
        (["road", ["car", "automobile"]], ("road", "car"), (("road",), ("car", "automobile"))),
        ({"bed": "bed ", "cat": ["cat", "kitten"]}, ("bed", "cat"), (("bed ",), ("cat", "kitten"))),
        (["bed "], ("bed",), (("bed ",),)),  # benchmarks hold names with spaces: the model reads them verbatim
        (("天空", "👩‍🌾 farmer"), ("天空", "👩‍🌾 farmer"), (("天空",), ("👩‍🌾 farmer",))),
        ((name for name in ("a", "b")), ("a", "b"), (("a",), ("b",))),
        ("空，道路、车｜汽车", ("空", "道路", "车"), (("空",), ("道路",), ("车", "汽车"))),
        ("\ufeffroad, sky", ("road", "sky"), (("road",), ("sky",))),  # of a file that an editor began with a mark
        (["cafe\u0301", "A\u030a"], ("caf\u00e9", "\u00c5"), (("caf\u00e9",), ("\u00c5",))),
        (["می\u200cخواهم"], ("می\u200cخواهم",), (("می\u200cخواهم",),)),  # Persian writes a joiner inside words
    ],
)
def test_class_lists_become_names_and_texts(
    classes: object, names: tuple[str, ...], texts: tuple[tuple[str, ...], ...]
) -> None:
    found = Vocabulary.of(classes)  # type: ignore[arg-type]
    assert (found.names, found.texts) == (names, texts)
    assert Vocabulary.of(found) is found


@pytest.mark.parametrize(
    ("classes", "words"),
    [
        ("", "no classes given"),
        ([], "no classes given"),
        ({}, "no classes given"),
        ("road,,car", "empty"),
        (["road", "  "], "empty"),
        ("car|", "empty"),
        ("static=", "empty"),
        ("=building", "empty"),
        (["car", "Car "], "twice"),
        ("a b, A  b", "twice"),
        ("caf\u00e9, cafe\u0301", "twice"),
        ("road，", "empty"),
        (["nul\0"], "control character"),
        (["line\nbreak"], "control character"),
        (["x" * 301], "at most 300"),
        (["car", 3], "3"),
        ([["car", None]], "None"),
        ([[]], "[]"),
        ({"car": []}, "car"),
        (5, "int"),
        ({"car", "sky"}, "set"),
        (b"car", "99"),
        ([f"c{i}" for i in range(MAX_CLASSES + 1)], "at most 32767"),
    ],
)
def test_bad_class_lists_are_refused_in_one_line(classes: object, words: str) -> None:
    with pytest.raises(OVSDinoError) as caught:
        Vocabulary.of(classes)  # type: ignore[arg-type]
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_a_single_word_has_a_probability_where_others_compete() -> None:
    assert background_threshold(0.3, ("car",), partition=False) == 0.3
    with pytest.raises(OVSDinoError, match="needs two classes or more: in a partition"):
        background_threshold(0.3, ("car",))


def test_a_class_called_background_needs_a_partition() -> None:
    with pytest.raises(OVSDinoError, match='a class is called "background", as pixels of none of the words are'):
        background_threshold(None, ("car", "Background"), partition=False)


def test_words_of_a_class_are_averaged_on_request() -> None:
    assert not Vocabulary.of("car|automobile").single
    averaged = Vocabulary.of("car|automobile", average=True)
    assert averaged.single and averaged.words == ("car", "automobile")
    assert Vocabulary.of("car, sky").single


def test_a_class_called_background_and_a_threshold_do_not_go_together() -> None:
    assert background_threshold(0.3, ("road", "sky")) == 0.3 and background_threshold(True, ("road", "sky")) == 0.5
    assert background_threshold(None, ("Background", "sky")) is None
    with pytest.raises(OVSDinoError, match='a class is called "background", as the label below the threshold is'):
        background_threshold(0.3, ("Background", "sky"))
