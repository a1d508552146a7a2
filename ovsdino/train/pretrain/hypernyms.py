"""The names of ImageNet's classes and of what they are kinds of, read out of timm's `ImageNetInfo`.

A definition says what a thing is a kind of: "a cat with a gray or tawny coat mottled with black". Which of several cats
is meant, the order of the synset ids tells. Among animals they mostly follow the hierarchy, depth first, so that what a
synset lies under is the nearest one of that name before it. Among artifacts and persons they follow the alphabet, and
the first of several senses of a name is the usual one.
"""

from __future__ import annotations

import re
from bisect import bisect
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np

DEPTH = 3  # levels above a class; the further up, the oftener a definition misleads
# First ids of the most general, acts, animals, artifacts, thoughts, food, groups, things of nature, persons, the rest.
PARTS = ("n00000000", "n00030000", "n01300000", "n02661000", "n04620000", "n07555000", "n07940000", "n09180000",
         "n09480000", "n11400000")  # fmt: skip
ALPHABETIC = (4, 9)  # artifacts and persons, counted from one
# Under these is everything: as words they tell no picture from another.
GENERAL = frozenset(
    """appliance artifact chordate commodity control conveyance covering craft device entity equipment
    establishment implement instrument instrumentality machine material matter mechanism member object organism
    part round structure substance support system thing unit vehicle vertebrate vessel whole""".split()  # noqa: SIM905
)
CLOTHING = frozenset(
    """apparel armor attire cap cloak clothing coat dress footwear garment gown hairpiece hat headdress headgear helmet
    hosiery jacket mask necktie neckwear overgarment robe shoe skirt spectacles sweater swimsuit tie trouser underwear
    uniform""".split()  # noqa: SIM905
)
PERSON = ("person", "individual", "someone", "human", "people", "man")
# What comes before the noun of a definition and says nothing of it, and what comes after it.
LEADING = re.compile(
    r"(?:any|several|numerous|various|many|either|two|three|the|a|an|some|one|of|or|and|usually|type|kind|variety|varieties"
    r"|species|strain|form|class|group|piece|set|genus|member|family|order"
    r"|(?:[\w-]+ ){0,4}?(?:breed|breeds|variety|type|kind|species|family|genus|strain|form|piece) of) (?=\w)"
)
TRAILING = re.compile(
    r"[,;:]|(?<![\w-])(?:with|of|that|having|for|in|which|who|to|by|from|on|at|whose|where|when|as|containing|resembling"
    r"|about|into|like|is|are|has|can|no|without|between|including|around|over|through|formerly|carrying|used|worn|made"
    r"|consisting|holding|intended|driven|covered|attached|equipped|designed|shaped|operated|drawn|similar|usually|often"
    r"|covering|tied|under|native|either)(?![\w-])"
)


def nouns(definition: str) -> Iterator[str]:
    """Yield the names that the thing of a definition may go by, the likeliest first, in lower case."""
    text = re.sub(r"\([^)]*\)", "", definition.lower()).strip()
    while found := LEADING.match(text):
        text = text[found.end() :]
    phrase = TRAILING.split(text, maxsplit=1)[0].split()
    for end in range(len(phrase), max(len(phrase) - 3, 0), -1):  # the last word may be no noun: "a vehicle moving"
        yield from (" ".join(phrase[start:end]) for start in range(end) if phrase[start] not in ("or", "and"))


def singular(name: str) -> Iterator[str]:
    """Yield a name, and what it may be the plural of."""
    yield name
    for ending, other in (("ies", "y"), ("es", ""), ("s", "")):
        if name.endswith(ending) and not name.endswith("ss"):
            yield name.removesuffix(ending) + other


@dataclass(frozen=True)
class Hypernyms:
    """Classes, and the synsets that they lie under.

    Attributes:
        classes: Synsets of ImageNet's 1 000 classes in their order.
        names: Names of each synset, the usual one first.
        above: The synset of which each is a kind, where one is known.
    """

    classes: tuple[str, ...]
    names: Mapping[str, tuple[str, ...]]
    above: Mapping[str, str]

    def lineage(self, synset: str) -> list[str]:
        """Return a synset and up to `DEPTH` above it, nearest first."""
        found = [synset]
        while len(found) <= DEPTH and found[-1] in self.above:
            found.append(self.above[found[-1]])
        return list(dict.fromkeys(found))

    def words(self, synset: str) -> list[str]:
        """Return all names that a picture of a synset can be called by, in lower case.

        Whoever wears it is in the picture of a piece of clothing: it has the names of a person too.
        """
        lineage = [[name.lower() for name in self.names[one]] for one in self.lineage(synset)]
        found = [name for names in lineage if names[0] not in GENERAL for name in names]
        found += PERSON if any(names[0] in CLOTHING for names in lineage) else ()
        return list(dict.fromkeys(found))

    def membership(self, words: Sequence[str]) -> np.ndarray:
        """Return which class can be called by which word, (1000, n) bool."""
        place = {word: i for i, word in enumerate(words)}
        table = np.zeros((len(self.classes), len(words)), bool)
        for row, synset in enumerate(self.classes):
            table[row, [place[word] for word in self.words(synset) if word in place]] = True
        return table

    @cached_property
    def below(self) -> Counter[str]:
        """The number of classes below each synset."""
        return Counter(one for synset in self.classes for one in self.lineage(synset))

    @cached_property
    def named(self) -> dict[tuple[str, bool], list[str]]:
        """The synsets of each name in lower case: those of which it is the usual name, and the others."""
        named = defaultdict(list)
        for synset, names in self.names.items():
            for rank, name in enumerate(names):
                named[name.lower(), rank == 0].append(synset)
        return dict(named)

    def of_word(self, word: str) -> str | None:
        """Return the synset that a word names: best one with classes below, then one it is the usual name of."""
        for spelled in singular(word.lower()):
            usual = self.named.get((spelled, True), [])
            if found := [*usual, *self.named.get((spelled, False), [])]:
                return max(found, key=lambda synset: (self.below[synset] > 0, synset in usual, self.below[synset]))
        return None


@cache
def imagenet_hypernyms() -> Hypernyms:
    """Return the names and hypernyms of the synsets that timm knows: ImageNet-22k's and those of the 1 000 classes."""
    from timm.data import ImageNetInfo

    large, classes = ImageNetInfo("imagenet-22k"), ImageNetInfo("imagenet-1k").label_names()
    names = {
        synset: tuple(name.strip() for name in large.label_name_to_description(synset).split(","))
        for synset in sorted({*classes, *large.label_names()})
    }
    table = Hypernyms(tuple(classes), names, {})
    definitions = imagenet_definitions()
    above = {synset: up for synset in names if (up := _above(table, synset, definitions[synset]))}
    return Hypernyms(tuple(classes), names, above)


@cache
def imagenet_definitions() -> dict[str, str]:
    """Return what a dictionary says of each synset of `imagenet_hypernyms`."""
    from timm.data import ImageNetInfo

    large, classes = ImageNetInfo("imagenet-22k"), ImageNetInfo("imagenet-1k").label_names()
    said = {synset: large.label_name_to_description(synset) for synset in sorted({*classes, *large.label_names()})}
    return {
        synset: large.label_name_to_description(synset, detailed=True).removeprefix(f"{names}: ")
        for synset, names in said.items()
    }


def _above(table: Hypernyms, synset: str, definition: str) -> str | None:
    tail = table.names[synset][0].lower().split()[1:]  # a "school bus" is likely to be a bus
    part = bisect(PARTS, synset)
    for phrase in (*nouns(definition), *(" ".join(tail[start:]) for start in range(len(tail)))):
        for key in ((name, usual) for usual in (True, False) for name in singular(phrase)):
            found = [one for one in table.named.get(key, ()) if one != synset and bisect(PARTS, one) == part]
            before = [] if part in ALPHABETIC else [one for one in found if one < synset]
            if found:
                return max(before) if before else min(found)
    return None
