"""Words of one's own: rows of the text space that were learned from a few labelled images, in one small file.

A word w of the file has the row normalize(t_w + r_w): the text row that it had when it was learned, and a residual. The
row takes the place of the word's own in every text bank of that model. Rows of other words stay as they are, bit for
bit. `ovsdino adapt` writes such a file, a safetensors file with a SHA-256.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from ovsdino.errors import OVSDinoError, one_line
from ovsdino.io.files import atomic_write, read_bytes, reading
from ovsdino.io.sealed import check_safetensors, seal_safetensors
from ovsdino.models.backbone import normalize
from ovsdino.models.weights import weights_digest
from ovsdino.vocabulary import word_key

__all__ = ["AdaptedWords"]

FORMAT = "1"
KIND = "file of adapted words"
REMAKE = "make it again with `ovsdino adapt`"


@dataclass(frozen=True, kw_only=True, eq=False)
class AdaptedWords:
    """The rows that were learned for some words of one model.

    Attributes:
        words: K words, all different but for case and spaces.
        text: (K, D) float32, the rows of length one that the words had before.
        residual: (K, D) float32, what was learned.
        model: Name of the model.
        weights: Digest of its image side (`ovsdino.models.weights.weights_digest`).
    """

    words: tuple[str, ...]
    text: Tensor = field(repr=False)
    residual: Tensor = field(repr=False)
    model: str
    weights: str

    def __post_init__(self) -> None:
        if self.text.ndim != 2 or len(self.words) != len(self.text) or self.residual.shape != self.text.shape:
            raise OVSDinoError(
                f"adapted words: {len(self.words)} words, text {tuple(self.text.shape)}, residual "
                f"{tuple(self.residual.shape)}: expected (K, D) for K words; {REMAKE}"
            )
        if not len(self.words) or not (torch.isfinite(self.text).all() and torch.isfinite(self.residual).all()):
            raise OVSDinoError(f"adapted words: no word, or a number that is not finite; {REMAKE}")
        if len(self._places) != len(self.words):
            raise OVSDinoError(f"adapted words: a word is there twice; {REMAKE}")

    def __len__(self) -> int:
        return len(self.words)

    def __contains__(self, word: str) -> bool:
        return word_key(word) in self._places

    @property
    def rows(self) -> Tensor:
        """The rows that take the place of the words' own, (K, D) float32 of length one."""
        return normalize(self.text + self.residual, dim=-1)

    @cached_property
    def _places(self) -> dict[str, int]:
        return {word_key(word): index for index, word in enumerate(self.words)}

    def place(self, names: Sequence[str], rows: Tensor) -> Tensor:
        """Return the rows of words with those that were learned in their places.

        Args:
            names: N words; case and spaces do not count.
            rows: (N, D) their text rows; left as they are.

        Returns:
            (N, D) on the rows' device, in their dtype; the rows themselves where no word was learned.
        """
        found = [(at, self._places[key]) for at, name in enumerate(names) if (key := word_key(name)) in self._places]
        if not found:
            return rows
        placed = rows.clone()
        placed[[at for at, _ in found]] = self.rows[[index for _, index in found]].to(rows)
        return placed

    def check(self, model: nn.Module, name: str) -> None:
        """Refuse to serve another model than the one that the words were learned with.

        Args:
            model: The model.
            name: Its name.

        Raises:
            OVSDinoError: It has another name or other weights.
        """
        if name != self.model:
            raise OVSDinoError(f"adapted words of {self.model}, but the model is {name}; {REMAKE} --model {name}")
        if weights_digest(model) != self.weights:
            raise OVSDinoError(f"adapted words of other weights of {name} than these; {REMAKE}")

    def merged(self, newer: AdaptedWords) -> AdaptedWords:
        """Return the words of both; where both have a word, the newer row is taken.

        Args:
            newer: Words of the same model.
        """
        kept = [index for index, word in enumerate(self.words) if word_key(word) not in newer._places]
        return AdaptedWords(
            words=(*(self.words[index] for index in kept), *newer.words),
            text=torch.cat([self.text[kept], newer.text]),
            residual=torch.cat([self.residual[kept], newer.residual]),
            model=self.model,
            weights=self.weights,
        )

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> AdaptedWords:
        """Read a file that `save` wrote.

        Args:
            path: The file.

        Raises:
            OVSDinoError: The file is missing, damaged, or of another kind.
        """
        data = read_bytes(path, KIND, REMAKE)
        check_safetensors(data, path)
        with reading(path, KIND, REMAKE):
            header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
            tensors = load_tensors(data)
            metadata = header.get("__metadata__") or {}
        if metadata.get("format") != FORMAT or set(tensors) != {"text", "residual"}:
            raise OVSDinoError(
                f"{one_line(path)}: not a {KIND} of format {FORMAT}: format {metadata.get('format')!r}, tensors "
                f"{one_line(', '.join(sorted(tensors)), 60) or 'none'}; {REMAKE}"
            )
        with reading(path, KIND, REMAKE):
            words = json.loads(metadata["words"])
            if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
                raise ValueError("words is not a list of text")
            text, residual = tensors["text"].float(), tensors["residual"].float()
            model, weights = str(metadata["model"]), str(metadata["weights"])
        try:
            return cls(words=tuple(words), text=text, residual=residual, model=model, weights=weights)
        except OVSDinoError as error:
            raise OVSDinoError(f"{one_line(path)}: {error}") from error

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the file atomically, with its SHA-256, and return its path.

        Args:
            path: The file.

        Raises:
            OVSDinoError: The file cannot be written.
        """
        metadata = {
            "format": FORMAT,
            "words": json.dumps(list(self.words), ensure_ascii=False),
            "model": self.model,
            "weights": self.weights,
        }
        tensors = {"text": self.text.cpu().contiguous(), "residual": self.residual.cpu().contiguous()}
        data = seal_safetensors(save_tensors(tensors, metadata))
        with atomic_write(path) as file:
            file.write(data)
        return Path(path)
