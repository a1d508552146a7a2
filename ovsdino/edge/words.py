"""Text banks without torch: nano's text tower in NumPy.

`WordTower` computes what `ovsdino.models.lexicon.LexiconTextTower` does, in the same order, in float32, from the same
shipped file; the spelling of words is shared (`ovsdino.models.spelling`). So a robot without torch makes its own banks.
"""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from ovsdino.contrast import NEAR, contrast_phrases, rivals
from ovsdino.edge.bank import TextBank
from ovsdino.errors import OVSDinoError
from ovsdino.io.files import reading
from ovsdino.models.catalog import get_config
from ovsdino.models.grounding import SHARPNESS, grounded_phrases
from ovsdino.models.shipped import packaged, read_bytes_of
from ovsdino.models.spelling import READ_AS_BELOW, UNKNOWN_BELOW, Speller, word_pieces
from ovsdino.vocabulary import Classes, Vocabulary, has_background

__all__ = ["WordTower", "bank_of_rows", "image_digest", "make_bank", "read_state"]

log = logging.getLogger("ovsdino")

HEADS = 2
EPSILON = 1e-5  # of the norm
LEVELS = np.array([-1.51, -0.4528, 0.4528, 1.51], np.float32)  # those of `ovsdino.models.lexicon`
PREFIX = "text_tower."

Encode = Callable[[Sequence[str]], np.ndarray]

_erf = np.vectorize(math.erf, otypes=[np.float32])


class WordTower(Speller):
    """Nano's text tower: words in, rows out.

    Args:
        state: The tensors of the tower by name, without a prefix.
        common: See `Speller`.
        grounded: What was in a training, and whether it lends its row (`ovsdino.models.grounding`).
    """

    def __init__(self, state: Mapping[str, np.ndarray], common: int, grounded: Mapping[str, bool]) -> None:
        self._state = {name: _float(value) for name, value in state.items()}
        self.kept_keys, self.keys = self._state["kept_keys"], self._state["keys"]
        self.kept_rows, self.codes = self._state["kept_rows"], self._state["codes"]
        self.scale, self.common = self._state["scale"], common
        places = {phrase: self._kept(phrase) for phrase in grounded}
        self._taught = frozenset(place for place in places.values() if place is not None)
        lent = sorted(place for phrase, place in places.items() if place is not None and grounded[phrase])
        self._lenders = _unit(self.kept_rows[lent].astype(np.float32))

    @property
    def embed_dim(self) -> int:
        """Columns D of the rows."""
        return int(self.kept_rows.shape[1])

    def encode(self, names: Sequence[str]) -> np.ndarray:
        """Return the rows of words or phrases, (n, D) float32 of length one."""
        found = np.zeros((len(names), self.embed_dim), np.float32)
        for row, name in enumerate(names):
            words = self.reading(name).words
            kept = self._kept(" ".join(words))
            if kept is None:
                found[row] = self._composed(self.parts(words))
            else:
                found[row] = _unit(self.kept_rows[kept].astype(np.float32))
            if kept not in self._taught and len(self._lenders):
                found[row] = self._borrowed(found[row])
        return found

    def row(self, part: str) -> np.ndarray:
        """Return the row of a part of a phrase, see `Speller.row`."""
        kept = self._kept(part)
        if kept is not None:
            return _unit(self.kept_rows[kept, : len(self.scale)].astype(np.float32))
        entry = self._entry(part)
        if entry is not None:
            codes = (self.codes[entry][:, None] >> np.array([0, 2, 4, 6], np.uint8)) & 3
            return _unit(LEVELS[codes].reshape(-1) * self.scale)
        state = self._state
        table = state["table.weight"]
        pieces = [piece % len(table) for piece in word_pieces(part)[2:]]
        grams = table[pieces].sum(0) / max(1, len(pieces))
        return _unit(state["lift.weight"] @ grams + state["lift.bias"])

    def _composed(self, parts: Sequence[str]) -> np.ndarray:
        """Return the row of a phrase that is not stored, from the rows of its parts: (D,) of length one."""
        state, rows = self._state, np.stack([self.row(part) for part in parts])
        centered = rows - rows.mean(1, keepdims=True)
        spread = np.sqrt((centered * centered).mean(1, keepdims=True) + EPSILON)
        x = centered / spread * state["norm.weight"] + state["norm.bias"] + state["position"][: len(rows)]
        x = x + self._attended(x)
        weight = _softmax(x @ state["pool.weight"][0] + state["pool.bias"][0])
        hidden = state["hidden.weight"] @ (weight @ x) + state["hidden.bias"]
        hidden = hidden * (1 + _erf(hidden / np.float32(math.sqrt(2)))) / 2
        composed = state["out.weight"] @ hidden + state["out.bias"]
        composed[: rows.shape[1]] += weight @ rows
        return _unit(composed)

    def _attended(self, x: np.ndarray) -> np.ndarray:
        """Return self-attention over the parts, (n, width)."""
        state, width = self._state, x.shape[1]
        q, k, v = np.split(x @ state["attention.in_proj_weight"].T + state["attention.in_proj_bias"], 3, axis=1)
        heads = [slice(start, start + width // HEADS) for start in range(0, width, width // HEADS)]
        scale = 1 / math.sqrt(width // HEADS)
        mixed = [_softmax(q[:, head] @ k[:, head].T * scale) @ v[:, head] for head in heads]
        return np.concatenate(mixed, 1) @ state["attention.out_proj.weight"].T + state["attention.out_proj.bias"]

    def _borrowed(self, row: np.ndarray) -> np.ndarray:
        """Return r' of a row r: the formula of `ovsdino.models.grounding`."""
        cosines = self._lenders @ row
        near = _unit(_softmax(cosines * SHARPNESS) @ self._lenders)
        gate = max(float(cosines.max()), 0.0) ** 2
        return _unit((1 - gate) * row + gate * near)


def read_state(model: str = "nano") -> dict[str, np.ndarray]:
    """Return the shipped weights of a model by name.

    Raises:
        OVSDinoError: None are shipped for it, or they are damaged.
    """
    from safetensors.numpy import load

    if packaged(model) is None:
        raise OVSDinoError(f"{model}: no weights are shipped for it")
    path, data = read_bytes_of(model)
    with reading(path, "safetensors file"):
        return dict(load(data))


def image_digest(state: Mapping[str, np.ndarray]) -> str:
    """Return the digest of the image side of a model: that of `ovsdino.models.weights.weights_digest`.

    Args:
        state: All its tensors; those stored as float16 count as the float32 that the model computes with.
    """
    digest = hashlib.sha256()
    for name in sorted(state):
        if not name.startswith(PREFIX):
            value = _float(state[name])
            digest.update(f"{name} {value.dtype.name} {list(value.shape)}\n".encode())
            digest.update(np.ascontiguousarray(value).tobytes())
    return digest.hexdigest()


def make_bank(vocabulary: Classes, partition: bool | None = None, model: str = "nano") -> TextBank:
    """Return the text bank of a vocabulary, as `ovsdino text` writes it, for the shipped model.

    Args:
        vocabulary: The classes and their words, see `Vocabulary.of`.
        partition: Leave out the contrast rows; None: as the model was trained, and not with a class "background".
        model: A model whose weights are shipped and whose tower is a lexicon.

    Raises:
        OVSDinoError: It is another model, or the shipped weights are damaged.
    """
    vocabulary = Vocabulary.of(vocabulary)
    config = get_config(model)
    state = read_state(model)
    if config.text.kind != "lexicon":
        raise OVSDinoError(f"{model}: its words need torch: pip install 'ovsdino[torch]'")
    tower = WordTower(
        {name.removeprefix(PREFIX): value for name, value in state.items() if name.startswith(PREFIX)},
        config.text.common,
        grounded_phrases(),
    )
    _warn_of_unknown(tower, vocabulary.words)
    weights = image_digest(state)
    return bank_of_rows(tower.encode, vocabulary, partition, model=model, weights=weights, contrast=config.contrast)


def bank_of_rows(
    encode: Encode, vocabulary: Vocabulary, partition: bool | None, *, model: str, weights: str, contrast: bool
) -> TextBank:
    """Return the text bank of a vocabulary by a text tower.

    Args:
        encode: The tower: words in, rows (n, D) float32 of length one out.
        vocabulary: The classes and their words.
        partition: Leave out the contrast rows; None: as the model was trained, and not with a class "background".
        model: Name of the model.
        weights: Digest of its image side.
        contrast: The model was trained with contrast rows.
    """
    if partition is None:
        partition = not contrast or has_background(vocabulary.names)
    words = encode(vocabulary.words)
    counts = [len(texts) for texts in vocabulary.texts]
    text = words
    if vocabulary.single:
        ends = np.cumsum(counts)[:-1]
        text = np.stack([_unit(part.mean(0)) for part in np.split(words, ends)])
        counts = [1] * len(text)
    return TextBank(
        names=vocabulary.names,
        text=text,
        model=model,
        weights=weights,
        words=tuple(counts),
        contrast=None if partition else _contrast(encode, vocabulary, words),
    )


def _contrast(encode: Encode, vocabulary: Vocabulary, words: np.ndarray) -> np.ndarray | None:
    """Return the rows of the contrast phrases that mean none of the words; see `ovsdino.text_banks`."""
    bank = encode(contrast_phrases())
    center = bank.mean(0)
    cosines = _unit(bank - center) @ _unit(words - center).T
    competing = np.zeros(len(bank), bool)
    competing[rivals(vocabulary.words)] = True
    rows = bank[competing & (cosines.max(1) < NEAR)]
    return rows if len(rows) else None


def _warn_of_unknown(tower: WordTower, words: Sequence[str]) -> None:
    for word in dict.fromkeys(words):
        known = tower.reading(word).familiarity
        if known < UNKNOWN_BELOW:
            log.warning("%r is not a word that this model knows; its mask means little", word)
        elif known < READ_AS_BELOW:
            log.warning("%r is not a word that this model knows; it is read as %r", word, tower.read_as(word))


def _float(value: np.ndarray) -> np.ndarray:
    """Return a tensor as the model holds it: floats in float32, whole numbers as they are."""
    return value.astype(np.float32) if value.dtype.kind == "f" else value


def _unit(rows: np.ndarray) -> np.ndarray:
    """Return rows at length one, along the last axis; rows of zeros stay."""
    return rows / np.maximum(np.linalg.norm(rows, axis=-1, keepdims=True), np.float32(1e-12))


def _softmax(scores: np.ndarray) -> np.ndarray:
    """Return the softmax along the last axis."""
    raised = np.exp(scores - scores.max(-1, keepdims=True))
    return raised / raised.sum(-1, keepdims=True)
