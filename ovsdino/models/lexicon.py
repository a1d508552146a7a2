"""Nano's text tower: a lexicon of stored rows, and a small network for what is not in it.

| a phrase | its row |
|---|---|
| one of the `kept` (the words of training, of the data sets, of robots) | stored, 8 bits a value |
| another | a network over the rows of its longest parts in the lexicon, 2 bits a value |
| a word that is in neither | that of the word that it is a form, a compound or a misspelling of; else its n-grams |

The rows are a sentence encoder's (`ovsdino.train.pretrain.distill_text`); the encoder is not needed here. A name that
no training showed borrows from those that one did (`ovsdino.models.grounding`).
"""

from __future__ import annotations

import string
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ovsdino.models.grounding import borrowed
from ovsdino.models.text import PIECES_MAX, WORDS_MAX, TextTower, fnv1a, word_pieces, words_of

__all__ = ["GRAMS", "LEVELS", "LexiconTextTower", "Reading", "key_bytes", "pack", "text_key", "unpack"]

LEVELS = (-1.51, -0.4528, 0.4528, 1.51)  # of a 2-bit value, in standard deviations (Lloyd 1957, Max 1960: normal)
GRAMS = 64  # width of the table of character n-grams
PARTS_MAX = 4  # words of an entry of the lexicon
PHRASES_AT_ONCE = 1024  # 10 000 at once took 700 MB
COMPOUND_MIN = 4  # letters of either part of a compound, "trafficlight"; three where both are kept, "busstop"
STEM_MIN = 4  # letters of a stem that -ing or -ed may be taken off
SLIP_MIN = 5  # letters of a word that may be misspelt in any way; with four, two letters may have changed places
LONGEST = 30  # letters of a word that is looked into

# How well a word is known by how it was read; a phrase is known as well as its least known word.
KNOWN, FORM, COMPOUND, SLIP, UNKNOWN = 1.0, 0.95, 0.9, 0.75, 0.0


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


def pack(rows: Tensor, scale: Tensor) -> Tensor:
    """Return rows (n, width) at 2 bits a value, (n, width / 4) uint8.

    Args:
        rows: Float values.
        scale: (width,), the standard deviation of each column.
    """
    edges = torch.tensor([(a + b) / 2 for a, b in pairwise(LEVELS)])
    codes = torch.bucketize(rows / scale, edges).view(len(rows), -1, 4)
    return (codes << torch.tensor([0, 2, 4, 6])).sum(-1).to(torch.uint8)


def unpack(codes: Tensor, scale: Tensor) -> Tensor:
    """Return the rows of `pack`, (n, width) float32 of length one."""
    shifts = torch.tensor([0, 2, 4, 6], device=codes.device)
    levels = torch.tensor(LEVELS, device=codes.device)
    rows = levels[(codes.long().unsqueeze(-1) >> shifts) & 3].flatten(1) * scale.float()
    return F.normalize(rows, dim=-1)


class LexiconTextTower(TextTower):
    """Stored rows for words and phrases that were learnt, a network over them for the rest.

    Args:
        embed_dim: Output width D; the rows' columns are principal directions, the largest first.
        width: Columns that the lexicon has, a multiple of 4, at most D.
        buckets: Rows of the table of character n-grams.
        entries: Words and phrases of the lexicon.
        common: How many of the entries, the first, are common words: those that a misspelling may mean.
        kept: Phrases whose rows are stored whole.
    """

    def __init__(self, embed_dim: int, width: int, buckets: int, *, entries: int, common: int, kept: int) -> None:
        super().__init__()
        self.embed_dim, self.buckets, self.common = embed_dim, buckets, common
        self.keys: Tensor
        self.codes: Tensor
        self.scale: Tensor
        self.kept_keys: Tensor
        self.kept_rows: Tensor
        self.register_buffer("keys", torch.zeros(entries, 4, dtype=torch.uint8))
        self.register_buffer("codes", torch.zeros(entries, width // 4, dtype=torch.uint8))
        self.register_buffer("scale", torch.ones(width))
        self.register_buffer("kept_keys", torch.zeros(kept, 4, dtype=torch.uint8))
        self.register_buffer("kept_rows", torch.zeros(kept, embed_dim, dtype=torch.int8))
        self.table = nn.Embedding(buckets, GRAMS)
        nn.init.normal_(self.table.weight, std=0.5)
        self.lift = nn.Linear(GRAMS, width)
        self.position = nn.Parameter(torch.zeros(WORDS_MAX, width))
        self.norm = nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, 2, batch_first=True)
        self.pool = nn.Linear(width, 1)
        self.hidden = nn.Linear(width, 2 * width)
        self.out = nn.Linear(2 * width, embed_dim)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)
        self._places: dict[int, int] | None = None
        self._grounded: dict[str, bool] = {}
        self._lent: tuple[frozenset[int], Tensor] | None = None

    def ground(self, phrases: Mapping[str, bool]) -> None:
        """Let names that were in no training borrow the rows of those that were: `ovsdino.models.grounding`.

        Args:
            phrases: What was in a training, and whether it lends its row; what is not stored whole has no part in it.
        """
        self._grounded, self._lent = dict(phrases), None

    def forward(self, rows: Tensor, mask: Tensor) -> Tensor:
        """Map the rows of a phrase's parts (n, parts, width) and the mask of parts (n, parts) to (n, D)."""
        x = self.norm(rows) + self.position[: rows.shape[1]]
        attended, _ = self.attention(x, x, x, key_padding_mask=~mask, need_weights=False)
        x = x + attended
        weight = self.pool(x).squeeze(-1).masked_fill(~mask, float("-inf")).softmax(1).unsqueeze(-1)
        mean = F.pad((weight * rows).sum(1), (0, self.embed_dim - rows.shape[-1]))
        return mean + self.out(F.gelu(self.hidden((weight * x).sum(1))))

    @torch.no_grad()
    def read(self, names: Sequence[str], templates: Sequence[str] | None = None) -> Tensor:
        """Return (n, D), rows of length one; see `TextTower.read`."""
        found = torch.zeros(len(names), self.embed_dim, device=self.scale.device)
        composed: dict[int, list[str]] = {}
        taught, lenders = self._lenders()
        strange = []
        for row, name in enumerate(names):
            words = self.reading(name).words
            kept = self._kept(" ".join(words))
            if kept not in taught:
                strange.append(row)
            if kept is None:
                composed[row] = self.parts(words)
            else:
                found[row] = F.normalize(self.kept_rows[kept].float(), dim=-1)
        places = list(composed)
        for start in range(0, len(places), PHRASES_AT_ONCE):
            block = places[start : start + PHRASES_AT_ONCE]
            longest = max(len(composed[place]) for place in block)
            rows = torch.zeros(len(block), longest, len(self.scale), device=found.device)
            mask = torch.zeros(len(block), longest, dtype=torch.bool, device=found.device)
            for i, place in enumerate(block):
                parts = composed[place]
                rows[i, : len(parts)] = torch.stack([self.row(part) for part in parts])
                mask[i, : len(parts)] = True
            found[block] = F.normalize(self(rows, mask).to(found.dtype), dim=-1)
        for start in range(0, len(strange) if len(lenders) else 0, PHRASES_AT_ONCE):
            block = strange[start : start + PHRASES_AT_ONCE]
            found[block] = borrowed(found[block], lenders)
        return found

    def familiarity(self, names: Sequence[str]) -> Tensor:
        """Return how well the names are known, (n,); see `TextTower.familiarity`."""
        return torch.tensor([self.reading(name).familiarity for name in names])

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

    def pieces(self, words: Sequence[str]) -> Tensor:
        """Return the buckets of words' character n-grams, (n, pieces), -1 where there is none."""
        ids = torch.full((len(words), PIECES_MAX), -1)
        for row, word in enumerate(words):
            found = [piece % self.buckets for piece in word_pieces(word)[2:]]
            ids[row, : len(found)] = torch.tensor(found, dtype=torch.long)
        return ids

    def gram_rows(self, pieces: Tensor) -> Tensor:
        """Return what the n-grams of words say, (n, width) of length one, from their `pieces`."""
        present = (pieces >= 0).unsqueeze(-1)
        grams = (self.table(pieces.clamp_min(0)) * present).sum(1) / present.sum(1).clamp_min(1)
        return F.normalize(self.lift(grams), dim=-1)

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

    @torch.no_grad()
    def row(self, part: str) -> Tensor:
        """Return the row of a part of a phrase, (width,) of length one: the stored one, else that of its n-grams."""
        kept = self._kept(part)
        if kept is not None:
            return F.normalize(self.kept_rows[kept, : len(self.scale)].float(), dim=-1)
        entry = self._entry(part)
        if entry is not None:
            return unpack(self.codes[entry : entry + 1], self.scale)[0]
        return self.gram_rows(self.pieces([part]).to(self.scale.device))[0].float()

    def _lenders(self) -> tuple[frozenset[int], Tensor]:
        """Return the places of the phrases that keep their rows, and the rows that are lent, (m, D) of length one."""
        if self._lent is None:
            places = {phrase: self._kept(phrase) for phrase in self._grounded}
            taught = frozenset(place for place in places.values() if place is not None)
            lent = [place for phrase, place in places.items() if place is not None and self._grounded[phrase]]
            self._lent = taught, F.normalize(self.kept_rows[sorted(lent)].float(), dim=-1)
        taught, rows = self._lent
        return taught, rows.to(self.scale.device)

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
            keys = torch.cat([self.kept_keys, self.keys]).cpu().long()
            numbers = (keys << torch.tensor([0, 8, 16, 24])).sum(-1).tolist()
            # Zero is an empty place; of two equal keys the first counts.
            self._places = {number: place for place, number in reversed([*enumerate(numbers)]) if number}
        return self._places.get(text_key(text))

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._places = self._lent = None


def key_bytes(texts: Sequence[str]) -> Tensor:
    """Return the keys of texts as bytes, (n, 4) uint8, the lowest first."""
    numbers = torch.tensor([text_key(text) for text in texts], dtype=torch.long).view(-1, 1)
    return ((numbers >> torch.tensor([0, 8, 16, 24])) & 255).to(torch.uint8)


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
