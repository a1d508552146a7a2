"""Class lists: what is accepted, what is refused and how."""

from __future__ import annotations

import pytest

from ovsdino.errors import OVSDinoError
from ovsdino.vocabulary import MAX_CLASSES, Vocabulary


@pytest.mark.parametrize(
    ("classes", "names", "texts"),
    [
        ("road, car ,sky", ("road", "car", "sky"), (("road",), ("car",), ("sky",))),
        ("car|automobile, sky", ("car", "sky"), (("car", "automobile"), ("sky",))),
        (["road", ["car", "automobile"]], ("road", "car"), (("road",), ("car", "automobile"))),
        ({"bed": "bed ", "cat": ["cat", "kitten"]}, ("bed", "cat"), (("bed ",), ("cat", "kitten"))),
        (["bed "], ("bed",), (("bed ",),)),  # benchmarks hold names with spaces: the model reads them verbatim
        (("天空", "👩‍🌾 farmer"), ("天空", "👩‍🌾 farmer"), (("天空",), ("👩‍🌾 farmer",))),
        ((name for name in ("a", "b")), ("a", "b"), (("a",), ("b",))),
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
        (["car", "Car "], "twice"),
        ("a b, A  b", "twice"),
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
