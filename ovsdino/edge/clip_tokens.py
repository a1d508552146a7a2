"""CLIP's tokenizer without torch: text in, numbers of word pieces out.

Byte pair encoding (Sennrich et al., ACL 2016) over bytes that are written as characters, with an end mark on the last
piece of a word, as CLIP learnt it (Radford et al., ICML 2021). The learnt merges come with an exported tower. Text is
cleaned as open_clip does it but for one thing: text whose encoding was mistaken before is not repaired.
"""

from __future__ import annotations

import functools
import html
import itertools
import math
import unicodedata
from collections.abc import Iterator, Sequence

import numpy as np

from ovsdino.errors import OVSDinoError

__all__ = ["CONTEXT", "ClipTokens"]

CONTEXT = 77  # tokens that CLIP reads, the two marks included
MERGES = 49152 - 256 - 2
END = "</w>"
MARKS = ("<start_of_text>", "<end_of_text>")
SHORT = ("'s", "'t", "'re", "'ve", "'m", "'ll", "'d")  # endings that are pieces of their own
QUOTES = str.maketrans(
    dict.fromkeys("\u02bc\u2018\u2019\u201a\u201b", "'") | dict.fromkeys("\u201c\u201d\u201e\u201f", '"')
)
TYPOGRAPHIC = (
    *(("\u0132", "\u0133"), ("\u0149", "\u0149"), ("\u01c4", "\u01cc"), ("\u01f1", "\u01f3")),
    *(("\u3000", "\u3000"), ("\ufb00", "\ufb06"), ("\uff01", "\uffef")),
)


class ClipTokens:
    """The vocabulary of CLIP.

    Args:
        merges: Pairs of pieces that were merged, one a line, the earliest first.

    Raises:
        OVSDinoError: They are not CLIP's in number or form.
    """

    def __init__(self, merges: str) -> None:
        pairs = [tuple(line.split()) for line in merges.splitlines()]
        if len(pairs) != MERGES or any(len(pair) != 2 for pair in pairs):
            raise OVSDinoError(f"CLIP's tokenizer has {MERGES} pairs of pieces, found {len(pairs)} lines")
        letters = [*_letters().values()]
        pieces = [*letters, *(letter + END for letter in letters), *("".join(pair) for pair in pairs), *MARKS]
        self._ranks = {pair: rank for rank, pair in enumerate(pairs)}
        self._numbers = {piece: number for number, piece in enumerate(pieces)}
        self._start, self._stop = (self._numbers[mark] for mark in MARKS)

    def __call__(self, texts: Sequence[str]) -> tuple[np.ndarray, list[str]]:
        """Return the tokens of texts.

        Args:
            texts: At least one.

        Returns:
            (n, L) int64, L at most 77, each row with its marks and filled up with zeros; and the texts that were cut.
        """
        rows, cut = [], []
        for text in texts:
            tokens = self.encode(text)
            if len(tokens) + 2 > CONTEXT:
                cut.append(text)
            rows.append([self._start, *tokens[: CONTEXT - 2], self._stop])
        found = np.zeros((len(rows), max(map(len, rows))), np.int64)
        for place, row in zip(found, rows, strict=True):
            place[: len(row)] = row
        return found, cut

    def encode(self, text: str) -> list[int]:
        """Return the tokens of one text, without the marks."""
        found: list[int] = []
        for word in _words(_clean(text)):
            if word in MARKS:
                found.append(self._numbers[word])
            else:
                written = "".join(_letters()[byte] for byte in word.encode("utf-8", "replace"))
                found += [self._numbers[piece] for piece in self._merged(written)]
        return found

    def _merged(self, word: str) -> list[str]:
        """Return the pieces of a word: neighbors are merged, the earliest learnt first, until no pair is known."""
        parts = [*word[:-1], word[-1] + END]
        while len(parts) > 1:
            pair = min(itertools.pairwise(parts), key=lambda pair: self._ranks.get(pair, math.inf))
            if pair not in self._ranks:
                break
            joined: list[str] = []
            for part in parts:
                if joined and (joined[-1], part) == pair:
                    joined[-1] += part
                else:
                    joined.append(part)
            parts = joined
        return parts


@functools.cache
def _letters() -> dict[int, str]:
    """Return the character by which each byte is written, in the vocabulary's order: what can be seen stands first."""
    seen = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in seen]
    return {**{byte: chr(byte) for byte in seen}, **{byte: chr(256 + place) for place, byte in enumerate(others)}}


def _clean(text: str) -> str:
    """Return a text in small letters with single spaces, entities and typographic forms resolved."""
    text = html.unescape(html.unescape(text))
    text = "".join(unicodedata.normalize("NFKC", one) if _typographic(one) else one for one in text)
    text = unicodedata.normalize("NFC", text.translate(QUOTES))
    text = "".join(one for one in text if one.isspace() or unicodedata.category(one) != "Cc")
    return " ".join(text.split()).lower()


def _typographic(character: str) -> bool:
    """Tell whether a character is a ligature, a wide letter or a narrow kana, which are taken apart or made usual."""
    return any(first <= character <= last for first, last in TYPOGRAPHIC)


def _words(text: str) -> Iterator[str]:
    """Yield the parts that are encoded alone: runs of letters, single digits, runs of other signs, and endings."""
    start = 0
    while start < len(text):
        kind = _kind(text[start])
        whole = next((part for part in (*MARKS, *SHORT) if text.startswith(part, start)), None)
        stop = start + (1 if whole is None else len(whole))
        if whole is None and kind in "L.":
            while stop < len(text) and _kind(text[stop]) == kind:
                stop += 1
        if kind != " ":
            yield text[start:stop]
        start = stop


def _kind(character: str) -> str:
    """Return L of a letter, N of a number, a space of a space, and a dot of all else."""
    if character.isspace():
        return " "
    first = unicodedata.category(character)[0]
    return first if first in "LN" else "."
