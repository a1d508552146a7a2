"""The things that a caption names."""

import pytest

from ovsdino.data.phrases import phrases, read_phrases
from ovsdino.errors import OVSDinoError

WORDS = frozenset(["car", "traffic light", "light", "bus", "dog", "hot dog", "glass", "t-shirt", "box"])


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("A car at a Traffic Light.", ("car", "traffic light")),
        ("the light of a traffic light, a light", ("light", "traffic light")),
        ("two cars, two buses and boxes of glass", ("car", "bus", "box", "glass")),
        ("hot dogs for a dog", ("hot dog", "dog")),
        ("a man in a t-shirt", ("t-shirt",)),
        ("carpets and scar tissue", ()),
        ("", ()),
    ],
)
def test_words_of_a_vocabulary_are_found_longest_first(caption, expected):
    assert phrases(caption, WORDS) == expected


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("A red car, the sky and some trees", ("red car", "sky", "trees")),
        ("sand and sand; band", ("sand", "band")),
        (" , and . ", ()),
    ],
)
def test_without_a_vocabulary_a_caption_is_a_list(caption, expected):
    assert phrases(caption) == expected


def test_a_vocabulary_is_a_phrase_a_line(tmp_path):
    path = tmp_path / "words.txt"
    path.write_text("Car\n\n traffic light \ncar\n")
    assert read_phrases(path) == {"car", "traffic light"}
    path.write_text("\n \n")
    with pytest.raises(OVSDinoError, match="the vocabulary is empty"):
        read_phrases(path)
    with pytest.raises(OVSDinoError, match=r"none.txt: no such file"):
        read_phrases(tmp_path / "none.txt")
    path.write_bytes("\ufeffCar\nbus".encode())
    assert read_phrases(path) == {"car", "bus"}  # the byte order mark is not part of a word
    for data in ("é".encode("latin-1"), "car".encode("utf-16"), b"\x00\xff"):
        path.write_bytes(data)
        with pytest.raises(OVSDinoError, match=r"words.txt: not a readable vocabulary"):
            read_phrases(path)
