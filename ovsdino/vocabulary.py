"""The list of classes a user asks for: checked once, then names for people and texts for the model."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import TypeAlias

from ovsdino.classes_file import Color, is_classes_file, read_classes
from ovsdino.errors import OVSDinoError

__all__ = [
    "DEFAULT_BACKGROUND",
    "LEAST_CERTAINTY",
    "LEAST_SHARE",
    "MAX_CLASSES",
    "MAX_NAME_LENGTH",
    "SURE_SHARE",
    "Classes",
    "Vocabulary",
    "background_threshold",
    "has_background",
    "label_dtype",
    "word_key",
]

DEFAULT_BACKGROUND = 0.5  # max-softmax below this is background when no threshold is given
LEAST_SHARE = 1e-3  # of the image that a word must cover to be found; about one token of nano's (16 x 16 of 352 x 464)
LEAST_CERTAINTY = 0.9  # probability of a word, against none of the words alone, that its surest pixels must reach
SURE_SHARE = 4e-4  # of the image that must be so sure: a quarter of a token
MAX_CLASSES = 32_767  # labels are at most int16
MAX_NAME_LENGTH = 300  # characters; CLIP reads 77 tokens, so a longer text would be cut without a word
COMMAS = re.compile("[,，、､،]")  # also those of Chinese, Japanese and Arabic keyboards
BARS = re.compile("[|｜]")
BACKGROUND = "background"  # the name of the label of pixels that belong to none of the words

Classes: TypeAlias = (
    "str | os.PathLike[str] | Sequence[str | Sequence[str]] | Mapping[str, str | Sequence[str]] | Vocabulary"
)


@dataclass(frozen=True)
class Vocabulary:
    """Classes to segment.

    Attributes:
        names: One name per class, as shown and saved.
        texts: The words the model reads for each class. A class of several shows where any of them does.
        average: The embeddings of a class's words are averaged instead, to one in their middle.
        colors: RGB of each class as its file gives it, None where it does not; None if no class has one.
    """

    names: tuple[str, ...]
    texts: tuple[tuple[str, ...], ...]
    average: bool = False
    colors: tuple[Color | None, ...] | None = None

    def __len__(self) -> int:
        return len(self.names)

    @classmethod
    def of(cls, classes: Classes, average: bool = False) -> Vocabulary:
        """Check class names and return them as a vocabulary.

        Args:
            classes: "road, car|automobile, sky" (commas between classes, | between the words of one class; the
                full-width and the ideographic comma serve as well), "static=building|tree|sky" (a name of its own in
                front of the words); or a sequence with a word, or a sequence of words, for each class (the first is the
                name); or a mapping from name to word or words; or the path of a file of classes (.txt, .yaml, .json;
                `ovsdino.classes_file.read_classes`). Letters with accents are composed (Unicode NFC): a
                keyboard's "é" and a file system's are one word. A vocabulary is returned as it is.
            average: See the class.

        Raises:
            OVSDinoError: There are no classes, a name is empty, given twice, too long or holds a control character, or
                the type is wrong.
        """
        if isinstance(classes, Vocabulary):
            return classes
        colors: tuple[Color | None, ...] = ()
        entries: list[tuple[object, object]]
        if isinstance(classes, (str, os.PathLike)) and is_classes_file(classes):
            listed, colors = read_classes(classes.strip() if isinstance(classes, str) else classes)
            entries = list(listed)
        elif isinstance(classes, str):
            entries = []
            for part in COMMAS.split(classes.removeprefix("\ufeff")):
                name, named, rest = part.partition("=")
                words = tuple(word.strip() for word in BARS.split(rest if named else part))
                entries.append((name.strip() if named else words[0], words))
        elif isinstance(classes, Mapping):
            entries = list(classes.items())
        elif isinstance(classes, Iterable) and not isinstance(classes, Set):  # the order of a set is not the user's
            entries = [(_first(entry), entry) for entry in classes]
        else:
            raise OVSDinoError(f'classes is a {type(classes).__name__}: give a list of words, or "road, car, sky"')
        if not entries or (isinstance(classes, str) and not classes.strip()):
            raise OVSDinoError('no classes given: name at least one, as in --classes "road, car, sky"')
        if len(entries) > MAX_CLASSES:
            raise OVSDinoError(f"{len(entries)} classes given; at most {MAX_CLASSES} are supported")
        names = tuple(_checked(name, "class name").strip() for name, _ in entries)
        seen: dict[str, str] = {}
        for name in names:
            key = word_key(name)
            if key in seen:
                raise OVSDinoError(f"class {name!r} is given twice; remove one (case and spaces do not count)")
            seen[key] = name
        texts = tuple(_texts(name, words) for name, (_, words) in zip(names, entries, strict=True))
        return cls(names, texts, average, colors if any(colors) else None)

    @property
    def words(self) -> tuple[str, ...]:
        """All words of all classes."""
        return tuple(word for words in self.texts for word in words)

    @property
    def single(self) -> bool:
        """Whether each class has one embedding."""
        return self.average or all(len(words) == 1 for words in self.texts)


def has_background(names: Sequence[str]) -> bool:
    """Tell whether a class has the name of the label that `BACKGROUND` is."""
    return any(name.casefold() == BACKGROUND for name in names)


def background_threshold(background: float | bool | None, names: Sequence[str], partition: bool = True) -> float | None:
    """Return the probability below which a pixel is background, or None for no threshold.

    Args:
        background: The user's number; True stands for `DEFAULT_BACKGROUND`, None and False for no threshold.
        names: Names of the classes.
        partition: Every pixel above the threshold gets one of the words; without it they compete with the contrast
            vocabulary, so a single word has a probability too.

    Raises:
        OVSDinoError: The number is not within 0..1, there is a single class in a partition, or a class is called
            "background" and pixels can be.
    """
    if not partition and has_background(names):
        raise OVSDinoError(
            f'a class is called "{BACKGROUND}", as pixels of none of the words are: rename it, or ask for a partition'
        )
    if background is None or background is False:
        return None
    value = DEFAULT_BACKGROUND if background is True else float(background)
    if not 0.0 < value < 1.0:
        raise OVSDinoError(f"background is {value:g}: expected a probability between 0 and 1")
    if partition and len(names) < 2:
        raise OVSDinoError(
            "background needs two classes or more: in a partition the probability of a single one is always 1; let it "
            "compete with the contrast vocabulary (--no-partition, partition=False)"
        )
    if has_background(names):
        raise OVSDinoError(
            f'a class is called "{BACKGROUND}", as the label below the threshold is: rename it, or leave out the '
            "threshold"
        )
    return value


def word_key(word: str) -> str:
    """Return a word as words are compared: letters composed, and neither case nor the number of spaces counts.

    >>> word_key(" Traffic  Light")
    'traffic light'
    """
    return " ".join(unicodedata.normalize("NFC", word).casefold().split())


def label_dtype(classes: int) -> str:
    """Return the name of the smallest dtype that holds the labels 0..K-1 and the background index K."""
    if classes <= 255:
        return "uint8"
    return "int16" if classes <= MAX_CLASSES else "int32"


def _first(entry: object) -> object:
    return entry[0] if isinstance(entry, Sequence) and not isinstance(entry, str) and entry else entry


def _texts(name: str, words: object) -> tuple[str, ...]:
    if isinstance(words, str):
        words = (words,)
    if not isinstance(words, Sequence) or not words:
        raise OVSDinoError(f"class {name!r}: expected a text or a non-empty list of texts, got {words!r}")
    return tuple(_checked(word, f"text of class {name!r}") for word in words)


def _checked(text: object, what: str) -> str:
    if not isinstance(text, str):
        raise OVSDinoError(f"{what} is {text!r}: expected text")
    if not text.strip():
        raise OVSDinoError(f"empty {what}: remove the stray comma or give a word")
    if len(text) > MAX_NAME_LENGTH:
        raise OVSDinoError(f"{what} has {len(text)} characters, at most {MAX_NAME_LENGTH}: {text[:40]!r}...")
    # Other than printable: control characters (NUL), lone surrogates, and the like. The joiners of
    # emoji (ZWJ) and of Persian words (ZWNJ) stay allowed.
    bad = next((c for c in text if not c.isprintable() and c not in "\u200c\u200d\u00a0\u3000"), None)
    if bad is not None:
        raise OVSDinoError(f"{what} {text[:40]!r} holds the control character {bad!r}; remove it")
    return unicodedata.normalize("NFC", text)
