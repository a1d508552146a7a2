"""The rows of a vocabulary for the decoder: several words a class, and the contrast rows that compete with all classes.

A group of rows gives one map, the maximum of its rows' scores at the token grid. So a class of several words shows
where any of them does, and two hundred contrast rows cost one more map in the upsampling. A row of zeros is absent:
groups of different sizes share one dense tensor, and an exported graph takes any vocabulary in the same two inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["ABSENT", "TextRows"]

ABSENT = -1e4  # added to the logit of a row that is not there: no softmax sees it, and float16 holds it


@dataclass(frozen=True, eq=False)
class TextRows:
    """A vocabulary as rows.

    Attributes:
        words: (K, W, D), rows of length one; a class of fewer words than W is filled up with rows of zeros.
        contrast: (C, D), rows of length one or zeros; None where every pixel belongs to one of the classes.
    """

    words: Tensor
    contrast: Tensor | None = None

    def __post_init__(self) -> None:
        """Check the shapes.

        Raises:
            ValueError: One does not fit.
        """
        words, contrast = self.words, self.contrast
        if words.ndim != 3:
            raise ValueError(f"words must be (K, W, D), got {tuple(words.shape)}")
        if contrast is not None and (contrast.ndim != 2 or contrast.shape[1] != words.shape[2]):
            raise ValueError(f"contrast must be (C, {words.shape[2]}), got {tuple(contrast.shape)}")

    @classmethod
    def of(cls, groups: Sequence[Tensor], contrast: Tensor | None = None) -> TextRows:
        """Return the rows of classes, each given as (W_k, D)."""
        most = max(len(group) for group in groups)
        words = groups[0].new_zeros(len(groups), most, groups[0].shape[1])
        for row, group in zip(words, groups, strict=True):
            row[: len(group)] = group
        return cls(words, contrast)

    def __len__(self) -> int:
        return len(self.words)

    @property
    def maps(self) -> int:
        """The number of maps: K, and one more with contrast rows."""
        return len(self.words) + (self.contrast is not None)

    def to(self, device: torch.device, dtype: torch.dtype | None = None) -> TextRows:
        """Return them on a device."""
        contrast = None if self.contrast is None else self.contrast.to(device, dtype)
        return TextRows(self.words.to(device, dtype), contrast)

    def reduced(self, score: Callable[[Tensor], Tensor]) -> Tensor:
        """Return the maximum of each group's scores, (B, K, h, w), or (B, K + 1, h, w) with the contrast channel last.

        Args:
            score: Maps rows (n, D) to their scores (B, n, h, w).
        """
        classes, width = self.words.shape[:2]
        scores = score(self.words.flatten(0, 1))
        batch, _, height, columns = scores.shape
        scores = scores.view(batch, classes, width, height, columns)
        maps = (scores + _penalty(self.words).to(scores)[:, :, None, None]).amax(2)
        if self.contrast is None:
            return maps
        others = score(self.contrast) + _penalty(self.contrast).to(scores)[:, None, None]
        return torch.cat([maps, others.amax(1, keepdim=True)], 1)

    def means(self) -> Tensor:
        """Return the mean of each class's words, (K, D), with a row of zeros last for the contrast: (K + 1, D)."""
        count = _present(self.words).sum(1).clamp_min(1)
        means = self.words.sum(1) / count[:, None]
        return means if self.contrast is None else F.pad(means, (0, 0, 0, 1))


def _present(rows: Tensor) -> Tensor:
    """Return 1 for a row and 0 for one of zeros, without the last axis."""
    return rows.square().sum(-1).sign()


def _penalty(rows: Tensor) -> Tensor:
    return ABSENT * (1 - _present(rows))
