"""The rows of class lists, encoded once and kept, and the contrast rows that compete with them."""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ovsdino.contrast import NEAR, contrast_phrases, rivals
from ovsdino.models.adapted import AdaptedWords
from ovsdino.models.backbone import normalize
from ovsdino.models.ovsdino import OVSDINO
from ovsdino.models.spelling import READ_AS_BELOW, UNKNOWN_BELOW
from ovsdino.models.text_rows import TextRows
from ovsdino.vocabulary import Vocabulary, has_background
from ovsdino.windows import autocast

__all__ = ["TextBanks"]

log = logging.getLogger("ovsdino")

BANKS = 64  # kept, least recently used dropped first
KNOWN = 100_000  # words that are remembered, so that each is warned of once

Texts = tuple[tuple[str, ...], ...]


class TextBanks:
    """A model's text side with a memory. Several threads may share one.

    Args:
        model: Encodes the words.
        device: Where the rows go.
        templates: See `TextTower.encode`.
        adapted: Rows in place of some words' own. The contrast phrases keep their rows; one that is near to a word's
            adapted row does not compete with it, nor one that is near to the word's own.
    """

    def __init__(
        self,
        model: OVSDINO,
        device: torch.device,
        templates: Sequence[str] | None = None,
        adapted: AdaptedWords | None = None,
    ) -> None:
        self.model = model
        self.device = device
        self.adapted = adapted
        self.templates: dict[str, Any] = {} if templates is None else {"templates": templates}
        self._banks: OrderedDict[tuple[Texts, bool], Tensor] = OrderedDict()
        self._rows: OrderedDict[tuple[Texts, bool, bool], Tensor | TextRows] = OrderedDict()
        self._known: dict[str, float] = {}
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_lock"}  # a lock has no copy

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=threading.Lock())

    def partition(self, asked: bool | None, vocabulary: Vocabulary) -> bool:
        """Return whether every pixel gets one of the words: as asked, else as the model was made.

        A class called "background" makes it one as well.
        """
        if asked is None:
            return not self.model.config.contrast or has_background(vocabulary.names)
        return asked

    def familiarity(self, vocabulary: Vocabulary) -> tuple[float, ...]:
        """Return how well the model knows each class, 0..1: its best-known word; see `TextTower.familiarity`.

        A word that it does not know is warned of, once.
        """
        known = self._look_up(vocabulary.words)
        return tuple(max(known[word] for word in words) for words in vocabulary.texts)

    def _look_up(self, words: Sequence[str]) -> dict[str, float]:
        """Return how well each word is known; a word is warned of when it is new."""
        tower, adapted = self.model.text_tower, self.adapted or ()
        found = {word: 1.0 if word in adapted else self._known.get(word, -1.0) for word in words}
        new = [word for word, value in found.items() if value < 0]
        for word, known in zip(new, tower.familiarity(new).tolist() if new else (), strict=True):
            found[word] = known
            if known < UNKNOWN_BELOW:
                log.warning("%r is not a word that this model knows; its mask means little", word)
            elif known < READ_AS_BELOW:
                log.warning("%r is not a word that this model knows; it is read as %r", word, tower.read_as(word))
        if len(self._known) + len(new) > KNOWN:  # a server meets ever new words
            self._known = {}
        self._known.update((word, found[word]) for word in new)
        return found

    def averaged(self, texts: Texts, plain: bool = False) -> Tensor:
        """Return one row for each class, the embeddings of several words averaged: (K, D) float32.

        Args:
            texts: The words of each class.
            plain: Leave out the adapted rows.
        """
        adapted = None if plain else self.adapted
        key = texts, adapted is None
        with self._lock:
            bank = self._banks.get(key)
            if bank is None:
                self._look_up([word for words in texts for word in words])
                options = self.templates if adapted is None else {**self.templates, "adapted": adapted}
                with torch.inference_mode(), autocast(self.device, torch.float32):
                    bank = self.model.encode_text(texts, **options)
                    bank = bank.to(self.device, torch.float32)
                self._banks[key] = bank
                if len(self._banks) > BANKS:
                    self._banks.popitem(last=False)
            self._banks.move_to_end(key)
            return bank

    def rows(self, vocabulary: Vocabulary, partition: bool) -> Tensor | TextRows:
        """Return what `OVSDINO.decode` takes: (K, D) where each class has one row and nothing competes.

        They are kept: to find the contrast rows takes 3.8 ms of one core, a thirtieth of nano's time.
        """
        key = vocabulary.texts, vocabulary.single, partition
        with self._lock:
            known = self._rows.get(key)
            if known is not None:
                self._rows.move_to_end(key)
                return known
        made = self._made(vocabulary, partition)
        with self._lock:
            self._rows[key] = made
            if len(self._rows) > BANKS:
                self._rows.popitem(last=False)
        return made

    def _made(self, vocabulary: Vocabulary, partition: bool) -> Tensor | TextRows:
        single = self.averaged(vocabulary.texts) if vocabulary.single else None
        if single is not None and partition:
            return single
        contrast = None if partition else self._contrast(vocabulary)
        if single is not None:
            return TextRows(single[:, None], contrast)
        words = self._each(vocabulary)
        return TextRows.of(words.split([len(texts) for texts in vocabulary.texts]), contrast)

    def _each(self, vocabulary: Vocabulary, plain: bool = False) -> Tensor:
        """Return a row for each word of each class."""
        return self.averaged(tuple((word,) for word in vocabulary.words), plain)

    def _contrast(self, vocabulary: Vocabulary) -> Tensor:
        """Return the rows of the contrast phrases that mean none of the words; a row of zeros where there are none."""
        bank = self.averaged(tuple((phrase,) for phrase in contrast_phrases()), plain=True)
        center = bank.mean(0)  # what all texts share says nothing: CLIP's have a cosine of 0.8 at least
        words = self._each(vocabulary, plain=True)
        if self.adapted is not None:
            words = torch.cat([words, self._each(vocabulary)])
        cosines = normalize(bank - center, dim=-1) @ normalize(words - center, dim=-1).T
        competing = torch.zeros(len(bank), dtype=torch.bool, device=bank.device)
        competing[rivals(vocabulary.words)] = True
        rows = bank[competing & (cosines.amax(1) < NEAR)]
        return rows if len(rows) else torch.zeros_like(bank[:1])
