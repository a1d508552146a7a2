"""Spelling of a lexicon's words: keys, forms, compounds and misspellings. It needs no torch.

`Speller` finds the stored words that a name means. `ovsdino.models.lexicon` computes rows for them with torch,
`ovsdino.edge.words` with NumPy.
"""

from __future__ import annotations

import functools
import re
import string
import unicodedata
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

__all__ = [
    "PIECES_MAX",
    "WORDS_MAX",
    "Reading",
    "Speller",
    "fnv1a",
    "slips",
    "stems",
    "text_key",
    "word_pieces",
    "words_of",
]

WORDS_MAX = 8
PIECES_MAX = 32

PARTS_MAX = 4  # words of an entry of the lexicon

COMPOUND_MIN = 4  # letters of either part of a compound, "trafficlight"; three where both are kept, "busstop"
STEM_MIN = 4  # letters of a stem that -ing or -ed may be taken off
SLIP_MIN = 5  # letters of a word that may be misspelt in any way; with four, two letters may have changed places
LONGEST = 30  # letters of a word that is looked into

# How well a word is known by how it was read; a phrase is known as well as its least known word.
KNOWN, FORM, COMPOUND, SLIP, UNKNOWN = 1.0, 0.95, 0.9, 0.75, 0.0
UNKNOWN_BELOW = 0.5  # familiarity below which a word is like none that the model knows
READ_AS_BELOW = 0.8  # below which it is read as another word


class Reading(NamedTuple):
    """The words that a tower reads for a name.

    Attributes:
        words: The words it reads, after correction.
        familiarity: 0..1, see `TextTower.familiarity`.
    """

    words: tuple[str, ...]
    familiarity: float


def text_key(text: str) -> int:
    """Return the 32 bits by which a text is found."""
    return fnv1a(text) >> 32


def fnv1a(text: str) -> int:
    """Return the 64-bit FNV-1a hash of the UTF-8 bytes: the same on every machine and in every process."""
    value = 0xCBF29CE484222325
    for byte in text.encode():
        value = ((value ^ byte) * 0x100000001B3) & 0xFFFFFFFFFFFFFFFF
    return value


@functools.lru_cache(maxsize=65536)
def word_pieces(word: str) -> tuple[int, ...]:
    """Return hashes of a word: twice as a whole (two independent buckets), then its character 3- to 5-grams."""
    marked = f"<{word}>"
    grams = [marked[i : i + n] for n in (3, 4, 5) for i in range(len(marked) - n + 1)]
    return tuple(fnv1a(piece) for piece in (f"0{marked}", f"1{marked}", *grams))[:PIECES_MAX]


def words_of(name: str) -> list[str]:
    """Return the words of a name in lower case; signs and emoji alone are read by their Unicode names.

    Without the latter all emoji had one and the same embedding.
    """
    words = re.findall(r"\w+", unicodedata.normalize("NFC", name).lower().replace("_", " "))
    if words:
        return words
    signs = (unicodedata.name(c, "") for c in name if unicodedata.category(c) not in ("Cf", "Mn"))
    return [word for sign in signs for word in re.findall(r"\w+", sign.lower())]


class Speller:
    """Finds the stored words that a name means. A tower with a lexicon is one.

    Attributes:
        kept_keys: (kept, 4) uint8, the keys of the phrases that are stored whole, the lowest byte first.
        keys: (entries, 4) uint8, those of the other entries.
        common: How many of the entries, the first, are common words: those that a misspelling may mean.
    """

    kept_keys: Any
    keys: Any
    common: int
    _places: dict[int, int] | None = None

    def row(self, part: str) -> Any:
        """Return the row of a part of a phrase, (width,) of length one; misspellings are told apart by it."""
        raise NotImplementedError

    def read_as(self, name: str) -> str:
        """Return the known words that a name is read as; see `TextTower.read_as`."""
        return " ".join(self.reading(name).words)

    def reading(self, name: str) -> Reading:
        """Return the words that are read for a name: forms, compounds and misspellings of known words are resolved."""
        words = words_of(name)[:WORDS_MAX]
        if not words:
            return Reading(("",), UNKNOWN)
        if self.knows(" ".join(words)):
            return Reading(tuple(words), KNOWN)
        if len(words) > 1:  # "traffic lights", "street lamp"
            forms = [" ".join([*words[:-1], stem]) for stem in stems(words[-1])]
            form = next((form for form in (*forms, "".join(words)) if self.knows(form)), None)
            if form is not None:
                return Reading(tuple(form.split()), FORM)
        found = [self._word(word) for word in words]
        read = tuple(word for one in found for word in one.words)[:WORDS_MAX]
        return Reading(read, min(one.familiarity for one in found))

    def stored_whole(self, text: str) -> bool:
        """Return whether a phrase is one of the `kept`."""
        return self._kept(text) is not None

    def knows(self, text: str) -> bool:
        """Return whether a word or phrase is stored as it is."""
        return self._find(text) is not None

    def _word(self, word: str) -> Reading:
        """Return how one word is read."""
        if self.knows(word) or word.isdigit() or (len(word) == 1 and word.isascii()):
            return Reading((word,), KNOWN)
        if len(word) > LONGEST:
            return Reading((word,), UNKNOWN)
        for stem in stems(word):
            if self.knows(stem):
                return Reading((stem,), FORM)
        if (halves := self._halves(word)) is not None:
            return Reading(halves, COMPOUND)
        places = {one: place for one in slips(word) if (place := self._find(one)) is not None}
        meant = [one for one, place in places.items() if place < len(self.kept_keys) + self.common]
        kept = [one for one in meant if places[one] < len(self.kept_keys)] or meant
        if not kept:
            return Reading((word,), UNKNOWN)
        own = self.row(word)
        return Reading((max(kept, key=lambda one: float(own @ self.row(one))),), SLIP)

    def _halves(self, word: str) -> tuple[str, str] | None:
        """Return the two words that a compound is made of, those of the most equal length first."""
        for cut in sorted(range(COMPOUND_MIN - 1, len(word) - COMPOUND_MIN + 2), key=lambda i: abs(2 * i - len(word))):
            start, long = word[:cut], min(cut, len(word) - cut) >= COMPOUND_MIN
            for end in (word[cut:], *stems(word[cut:])):
                if all(self.knows(one) if long else self._kept(one) is not None for one in (start, end)):
                    return start, end
        return None

    def parts(self, words: Sequence[str]) -> list[str]:
        """Return the longest parts of a phrase that are stored, and the words between them."""
        parts, start = [], 0
        while start < len(words):
            for end in range(min(len(words), start + PARTS_MAX), start, -1):
                part = " ".join(words[start:end])
                if end == start + 1 or self.knows(part):
                    parts.append(part)
                    start = end
                    break
        return parts

    def _kept(self, text: str) -> int | None:
        """Return the place of a text among the kept phrases."""
        place = self._find(text)
        return place if place is not None and place < len(self.kept_keys) else None

    def _entry(self, text: str) -> int | None:
        """Return the place of a text among the entries of the lexicon."""
        place = self._find(text)
        return place - len(self.kept_keys) if place is not None and place >= len(self.kept_keys) else None

    def _find(self, text: str) -> int | None:
        """Return the place of a text among the kept phrases and, behind them, the entries of the lexicon."""
        if self._places is None:
            keys = np.concatenate([_bytes_of(self.kept_keys), _bytes_of(self.keys)])
            numbers = keys.view("<u4")[:, 0].tolist()
            # Zero is an empty place; of two equal keys the first counts.
            self._places = {number: place for place, number in reversed([*enumerate(numbers)]) if number}
        return self._places.get(text_key(text))


def _bytes_of(keys: Any) -> np.ndarray:
    """Return keys (n, 4) uint8, an array or a tensor on any device, as a contiguous array."""
    return np.ascontiguousarray(keys.cpu().numpy() if hasattr(keys, "cpu") else keys)


def stems(word: str) -> Iterator[str]:
    """Yield what a word may be a form of: the singular of a plural, the verb of -ing and -ed."""
    for ending, other, least in (
        *(("ies", "y", 3), ("es", "", 3), ("s", "", 3), ("men", "man", 2)),
        *(("ing", "", STEM_MIN), ("ing", "e", STEM_MIN), ("ed", "", STEM_MIN), ("ed", "e", STEM_MIN)),
    ):
        if word.endswith(ending) and not word.endswith("ss") and len(word) - len(ending) >= least:
            yield word.removesuffix(ending) + other


def slips(word: str) -> Iterator[str]:
    """Yield what a slip of the pen may have made a word of.

    Letters swapped, doubled or not, one too many, missing or wrong; f for ph and k for c.
    """
    pairs = [(word[:i], word[i:]) for i in range(len(word) + 1)]
    single = [a + b[1:] for a, b in pairs if len(b) > 1 and b[0] == b[1]]
    if len(word) >= SLIP_MIN - 1:
        yield from (a + b[1] + b[0] + b[2:] for a, b in pairs if len(b) > 1)
        yield from single
    if len(word) >= SLIP_MIN:
        yield from (one[:i] + one[i] + one[i:] for one in single for i in range(len(one)))
        yield from (a + b[2] + b[1] + b[0] + b[3:] for a, b in pairs if len(b) > 2)
        for old, new in (("f", "ph"), ("ph", "f"), ("k", "c"), ("c", "k")):
            yield from (a + new + b.removeprefix(old) for a, b in pairs if b.startswith(old))
        yield from (a + b[1:] for a, b in pairs if b)
        yield from (a + c + b for a, b in pairs for c in string.ascii_lowercase)
        yield from (a + c + b[1:] for a, b in pairs if b for c in string.ascii_lowercase)
