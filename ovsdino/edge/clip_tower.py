"""Text banks of CLIP's models without torch: the text tower as ONNX, which `ovsdino export text` writes.

One file holds CLIP's text encoder, the model's own projection, the pairs of CLIP's tokenizer, and which weights the
rows belong to. A robot that runs an engine of b14 makes its own banks with it.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ovsdino.edge.bank import TextBank
from ovsdino.edge.clip_tokens import ClipTokens
from ovsdino.edge.onnx_graph import open_session
from ovsdino.edge.words import bank_of_rows
from ovsdino.errors import OVSDinoError
from ovsdino.io.files import read_bytes, reading
from ovsdino.vocabulary import Classes, Vocabulary

__all__ = ["FACTS_KEY", "MERGES_KEY", "ClipTower", "TowerFacts"]

log = logging.getLogger("ovsdino")

FACTS_KEY, MERGES_KEY = "ovsdino_text_tower", "ovsdino_merges"  # of the file's own metadata
KIND, REMEDY = "text tower of `ovsdino export text`", "export it again"
PROMPTS_AT_ONCE = 64


@dataclass(frozen=True, kw_only=True)
class TowerFacts:
    """Facts that the file of a tower holds about itself.

    Attributes:
        model: Name of the model whose words it encodes.
        weights: Digest of the image side that its rows belong to.
        embed_dim: Columns D of the rows.
        templates: Sentences with a {} for the name, whose embeddings are averaged.
        contrast: Whether the model was trained with contrast rows.
        cosine: Least cosine of its rows with PyTorch's at the export.
        format: Of these facts.
    """

    model: str
    weights: str
    embed_dim: int
    templates: tuple[str, ...]
    contrast: bool
    cosine: float
    format: int = 1

    def to_json(self) -> str:
        """Return the facts as text."""
        return json.dumps(asdict(self))

    @classmethod
    def parse(cls, text: str) -> TowerFacts:
        """Return the facts that `to_json` wrote.

        Raises:
            ValueError: A field is missing, unknown, or of another kind.
        """
        found = json.loads(text)
        kinds: dict[str, type | tuple[type, ...]] = {
            **dict.fromkeys(("model", "weights"), str),
            **dict.fromkeys(("embed_dim", "format"), int),
            "templates": list,
            "contrast": bool,
            "cosine": (int, float),
        }
        if not isinstance(found, dict) or set(found) != set(kinds):
            raise ValueError("other facts than expected")
        wrong = [name for name, kind in kinds.items() if not isinstance(found[name], kind)]
        templates = found["templates"]
        if wrong or not templates or not all(isinstance(one, str) and "{}" in one for one in templates):
            raise ValueError(f"{wrong[0] if wrong else 'templates'} is not valid")
        if found["format"] != 1:
            raise ValueError(f"format {found['format']}, this version reads 1")
        return cls(**{**found, "templates": tuple(templates)})


class ClipTower:
    """The text tower of a model of CLIP's words, in ONNX Runtime.

    Args:
        data: Content of the file.
        name: Its name, for errors.
        threads: Threads of an operator; 0 takes all cores.

    Attributes:
        name: See above.
        facts: What the file says of itself.

    Raises:
        OVSDinoError: It is damaged or another graph, or ONNX Runtime is missing.
    """

    def __init__(self, data: bytes, name: str, threads: int = 0) -> None:
        self.name = name
        self._session: Any = open_session(data, name, threads)
        metadata = self._session.get_modelmeta().custom_metadata_map
        if not {FACTS_KEY, MERGES_KEY} <= set(metadata):
            raise OVSDinoError(f"{name}: no {KIND}: its tokenizer is missing")
        with reading(name, KIND, REMEDY):
            self.facts = TowerFacts.parse(metadata[FACTS_KEY])
            self._tokens = ClipTokens(metadata[MERGES_KEY])

    @classmethod
    def load(cls, path: str | os.PathLike[str], threads: int = 0) -> ClipTower:
        """Read a file that `ovsdino export text` wrote.

        Raises:
            OVSDinoError: It is missing; or see the class.
        """
        remedy = "write it with `ovsdino export text --model NAME`, where torch is"
        return cls(read_bytes(path, KIND, remedy), os.fspath(path), threads)

    def encode(self, names: Sequence[str]) -> np.ndarray:
        """Return the rows of words or phrases, (n, D) float32 of length one."""
        templates = self.facts.templates
        step = max(1, PROMPTS_AT_ONCE // len(templates))
        rows = [self._rows(names[start : start + step]) for start in range(0, len(names), step)]
        found = np.concatenate([np.zeros((0, self.facts.embed_dim), np.float32), *rows])
        lengths = np.linalg.norm(found, axis=1, keepdims=True)
        return found / np.maximum(lengths, np.float32(1e-12))

    def bank(self, classes: Classes, partition: bool | None = None) -> TextBank:
        """Return the text bank of a vocabulary, as `ovsdino text` writes it with torch.

        Args:
            classes: The classes and their words, see `Vocabulary.of`.
            partition: Leave out the contrast rows; None: as the model was trained, and not with a class "background".

        Raises:
            OVSDinoError: They are not a class list, or the file gives no rows of its model's width.
        """
        facts, vocabulary = self.facts, Vocabulary.of(classes)
        return bank_of_rows(
            self.encode,
            vocabulary,
            partition,
            model=facts.model,
            weights=facts.weights,
            contrast=facts.contrast,
        )

    def _rows(self, names: Sequence[str]) -> np.ndarray:
        """Return the rows of a few names, (n, D), not of length one."""
        templates = self.facts.templates
        tokens, cut = self._tokens([template.replace("{}", name) for name in names for template in templates])
        for text in cut:
            log.warning("longer than the tokens that CLIP reads, cut: %r", text)
        with reading(self.name, KIND, REMEDY):  # it loads, and fails while it runs
            (rows,) = self._session.run(["rows"], {"tokens": tokens.reshape(len(names), len(templates), -1)})
        if rows.shape != (len(names), self.facts.embed_dim) or not np.isfinite(rows).all():
            raise OVSDinoError(f"{self.name}: gives rows of shape {rows.shape} or not finite; {REMEDY}")
        return np.asarray(rows)
