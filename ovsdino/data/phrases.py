"""Find the things that a caption names."""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path

from ovsdino.errors import OVSDinoError
from ovsdino.io.files import read_text

LONGEST = 5  # words of a phrase


def read_phrases(path: str | Path) -> frozenset[str]:
    """Return the vocabulary of a file, one word or phrase per line, in lower case.

    Raises:
        OVSDinoError: The file cannot be read, or is empty.
    """
    text = read_text(path, "vocabulary, one word or phrase per line")
    found = frozenset(line.strip().lower() for line in text.splitlines())
    if not found - {""}:
        raise OVSDinoError(f"{path}: the vocabulary is empty")
    return found - {""}


def phrases(caption: str, vocabulary: Collection[str] | None = None) -> tuple[str, ...]:
    """Return the things a caption names, in its order, each once.

    With a vocabulary: its words and phrases, the longest at each place, plurals in s and es folded into a singular it
    has. Without: the parts between commas, semicolons and "and", leading articles dropped; for captions that are lists.
    """
    if vocabulary is None:
        parts = re.split(r"[,;.]|\band\b", caption.lower())
        named = (re.sub(r"^(?:an?|the|some)\s+", "", part.strip()) for part in parts)
        return tuple(dict.fromkeys(part for part in named if part))
    words = re.findall(r"[\w'-]+", caption.lower())
    found: dict[str, None] = {}
    start = 0
    while start < len(words):
        for length in range(min(LONGEST, len(words) - start), 0, -1):
            phrase = _known(" ".join(words[start : start + length]), vocabulary)
            if phrase:
                found[phrase] = None
                start += length
                break
        else:
            start += 1
    return tuple(found)


def _known(phrase: str, vocabulary: Collection[str]) -> str | None:
    """Return the phrase as the vocabulary has it."""
    forms = [phrase, phrase[:-1] if phrase.endswith("s") else "", phrase[:-2] if phrase.endswith("es") else ""]
    return next((form for form in forms if form and form in vocabulary), None)
