"""What a text tower reads, once a text."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ovsdino.models.text import TextTower


class TextCache:
    """Rows of the tower's frozen part, each text read once."""

    def __init__(self, tower: TextTower) -> None:
        self.tower = tower
        self.known: dict[str, Tensor] = {}

    def rows(self, texts: Sequence[str]) -> Tensor:
        """(n, width of the tower) float32 on the CPU."""
        for text in texts:
            if text not in self.known:  # alone: in company its last bits would depend on who came first
                self.known[text] = self.tower.read([text])[0].float().cpu()
        return torch.stack([self.known[text] for text in texts])
