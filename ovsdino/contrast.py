"""The contrast vocabulary: phrases that compete with the user's words, so that a pixel can belong to none of them.

The phrases of `contrast.txt` cover what photographs show. Those that mean what a user asks for must not compete with
it. Two rules take them out. The first, here, compares spellings: a phrase has its kin listed, the names and wider
classes that it answers to, so that "car" does not compete with "vehicle". The second compares embeddings (`NEAR`).
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from importlib.resources import files

__all__ = ["NEAR", "contrast_phrases", "rivals"]

# Cosine of two texts, less the mean of the contrast phrases, from which they mean one thing. In the sentence encoder's
# space "vehicle" has car 0.84, truck 0.69, van 0.59, road 0.42; "car" has truck 0.47; "aeroplane" has airplane 0.74.
NEAR = 0.6

Words = tuple[str, ...]


@functools.cache
def contrast_phrases() -> tuple[str, ...]:
    """Return the phrases in the order of the file."""
    return tuple(phrase for phrase, _ in _lines())


def rivals(words: Iterable[str]) -> list[int]:
    """Return the indices of the phrases that no word answers to by its spelling.

    A word answers to a phrase that it is, or whose kin it is, and to one that it ends in ("police car" to "car") or
    that ends in it ("table" to "dining table"). Case, spaces ("diningtable") and plurals do not count.

    Args:
        words: The user's words, all those of a class.
    """
    asked = {_key(word) for word in words}
    return [index for index, names in enumerate(_keys()) if not any(_answers(word, names) for word in asked)]


@functools.cache
def _lines() -> tuple[tuple[str, tuple[str, ...]], ...]:
    """Return (phrase, its kin) of each line."""
    text = files("ovsdino").joinpath("contrast.txt").read_text(encoding="utf-8")
    lines = [line.partition(":") for line in text.splitlines() if line and not line.startswith("#")]
    return tuple((phrase, tuple(kin.split(", ")) if kin else ()) for phrase, _, kin in lines)


@functools.cache
def _keys() -> tuple[tuple[Words, frozenset[Words]], ...]:
    return tuple((_key(phrase), frozenset(_key(name.strip()) for name in kin)) for phrase, kin in _lines())


def _answers(word: Words, names: tuple[Words, frozenset[Words]]) -> bool:
    phrase, kin = names
    tails = {word[start:] for start in range(len(word))}
    if phrase in tails or not tails.isdisjoint(kin) or phrase[-len(word) :] == word:
        return True
    joined = "".join(word)
    return any("".join(name) == joined for name in (phrase, *kin))


def _key(name: str) -> Words:
    """Return the words of a name in lower case, the last one in the singular."""
    parts = name.casefold().replace("_", " ").replace("-", " ").split() or [""]
    return (*parts[:-1], _singular(parts[-1]))


def _singular(word: str) -> str:
    """Return an English noun without a plural ending, by its spelling alone; both sides are treated alike."""
    if len(word) > 3:
        if word.endswith("ies"):
            return word[:-3] + "y"
        if word.endswith(("ches", "shes", "xes", "sses")):
            return word[:-2]
        if word.endswith("s") and not word.endswith(("ss", "us", "is")):
            return word[:-1]
    return word
