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

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ovsdino.models.grounding import borrowed
from ovsdino.models.spelling import PIECES_MAX, WORDS_MAX, Speller, text_key, word_pieces
from ovsdino.models.text import TextTower

__all__ = ["GRAMS", "LEVELS", "LexiconTextTower", "key_bytes", "pack", "unpack"]

LEVELS = (-1.51, -0.4528, 0.4528, 1.51)  # of a 2-bit value, in standard deviations (Lloyd 1957, Max 1960: normal)
GRAMS = 64  # width of the table of character n-grams
PHRASES_AT_ONCE = 1024  # 10 000 at once took 700 MB


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


class LexiconTextTower(Speller, TextTower):
    """Stored rows for words and phrases that were learnt, a network over them for the rest.

    Args:
        embed_dim: Output width D; the rows' columns are principal directions, the largest first.
        width: Columns that the lexicon has, a multiple of 4, at most D.
        buckets: Rows of the table of character n-grams.
        entries: Words and phrases of the lexicon.
        common: How many of the entries, the first, are common words: those that a misspelling may mean.
        kept: Phrases whose rows are stored whole.
    """

    takes_templates = False

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

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._places = self._lent = None


def key_bytes(texts: Sequence[str]) -> Tensor:
    """Return the keys of texts as bytes, (n, 4) uint8, the lowest first."""
    numbers = torch.tensor([text_key(text) for text in texts], dtype=torch.long).view(-1, 1)
    return ((numbers >> torch.tensor([0, 8, 16, 24])) & 255).to(torch.uint8)
