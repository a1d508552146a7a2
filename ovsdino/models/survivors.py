"""Decode thousands of classes a few at a time, and keep the maps of those that win somewhere.

A class that is the largest at no pixel among some of the classes is so among all of them. So the maps gather until
they fill `KEPT_BYTES`, and those that win at no pixel of the result and at no cell of the logits' grid go. The labels
are those of all maps, and memory holds one chunk and the winners: of 10 000 words on a photograph some dozens. What
needs all maps, the sum of their exponentials, runs along.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ovsdino.models.config import ModelConfig
from ovsdino.models.score_attention import LARGEST_HEAD
from ovsdino.models.text_rows import TextRows
from ovsdino.ops import upsample_argmax

__all__ = ["Decode", "Survivors", "map_bytes", "surviving"]

CHUNK_BYTES = 4 << 20  # of the maps decoded at once
# Classes decoded at once. With the contrast's they fill a head of the flash kernel; beyond it the attention's logits
# are in memory, 56 MB of a photograph.
CHUNK_CLASSES = LARGEST_HEAD - 1
KEPT_BYTES = 8 << 20  # of the maps that gather between two prunings
COUNTED = 1 << 20  # labels counted at once, which takes 8 bytes each

Decode = Callable[[TextRows, int], Tensor]
"""Of rows, and the number of the first class among all, the logits (1, n, h, w)."""


@dataclass(frozen=True, eq=False)
class Survivors:
    """The maps of an image that are the largest somewhere.

    Attributes:
        logits: (1, n, h, w) float32.
        classes: (n,) int64 ascending, the number of each map among all; the contrast's is always there.
        total: (1, h, w) float32, the log of the sum of the exponentials of all maps; NaN where one was.
        maps: Number of all maps.
        confidence: (1, H, W) float32, the largest softmax probability of each pixel among all maps, if asked for.
    """

    logits: Tensor
    classes: Tensor
    total: Tensor
    maps: int
    confidence: Tensor | None = None


def map_bytes(config: ModelConfig, maps: int, height: int, width: int) -> int:
    """Return the memory of so many float32 maps, at four times the token grid, of an image of the network's size."""
    return 4 * maps * (4 * height // config.patch_size) * (4 * width // config.patch_size)


def surviving(
    decode: Decode, text: Tensor | TextRows, one: int, size: tuple[int, int], *, confidence: bool = False
) -> Survivors:
    """Decode one image by chunks of classes and return the maps that matter.

    Args:
        decode: Gives the logits of some of the classes; the last ones come with the contrast.
        text: (K, D), or rows.
        one: Bytes of one map, see `map_bytes`.
        size: (H, W) of the labels that are wanted.
        confidence: Return the confidence of each pixel as well. Every map is then brought to the size of the labels.
    """
    rows = text if isinstance(text, TextRows) else TextRows(text[:, None])
    step = max(1, min(CHUNK_BYTES // one, CHUNK_CLASSES))
    most = max(KEPT_BYTES, 2 * size[0] * size[1])  # a pruning goes through all pixels: of a large image it is rarer
    kept: list[Tensor] = []
    numbers: list[Tensor] = []
    total = pixels = None
    limit = gathered = 0
    for start in range(0, len(rows), step):
        stop = min(start + step, len(rows))
        last = stop == len(rows)
        maps = decode(TextRows(rows.words[start:stop], rows.contrast if last else None), start).float()
        total = _added(total, maps.logsumexp(1))
        if confidence:
            pixels = _added(pixels, _log_sum(maps, size))
        kept.append(maps)
        numbers.append(torch.arange(start, start + maps.shape[1], device=maps.device))
        gathered += one * maps.shape[1]
        if last or gathered > max(most, limit):
            logits, chosen = torch.cat(kept, 1), torch.cat(numbers)
            kept.clear()
            there = _winners(logits, size)
            there[-1] |= last and rows.contrast is not None
            kept, numbers = [logits[:, there]], [chosen[there]]
            del logits, maps
            gathered = one * len(numbers[0])
            limit = 2 * gathered
    assert total is not None
    certainty = None
    if pixels is not None:
        best, _ = _best(kept[0], size)
        certainty = (best - pixels).exp_().clamp_(max=1)
    return Survivors(kept[0], numbers[0], total, rows.maps, certainty)


def _added(total: Tensor | None, sums: Tensor) -> Tensor:
    return sums if total is None else torch.logaddexp(total, sums, out=total)


def _winners(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """Return which of the maps (1, n, h, w) are the largest at a pixel or at a cell of their grid, (n,) bool."""
    counts = torch.bincount(logits.argmax(1).flatten(), minlength=logits.shape[1])
    for part in upsample_argmax(logits, size).flatten().split(COUNTED):
        counts += torch.bincount(part, minlength=logits.shape[1])
    return counts > 0


def _log_sum(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Return the log of the sum of the exponentials of maps (1, n, h, w) at each pixel, (1, H, W)."""
    best, certainty = _best(maps, size)
    return best.sub_(certainty.log_())


def _best(maps: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Return the largest of maps (1, n, h, w) at each pixel, and its softmax probability: two of (1, H, W) float32."""
    labels, certainty = upsample_argmax(maps, size, confidence=True)
    _, _, h, w = maps.shape
    flat = maps.flatten()
    (top, below, down), (left, right, across) = (
        _neighbors(few, many, maps.device) for few, many in zip((h, w), size, strict=True)
    )
    best = torch.empty_like(certainty)
    rows = max(1, COUNTED // size[1])
    for y in range(0, size[0], rows):
        band = slice(y, y + rows)
        first = labels[0, band].long() * (h * w)
        above, under = ((first + w * line[band, None]) for line in (top, below))
        upper = torch.lerp(flat[above + left], flat[above + right], across)
        lower = torch.lerp(flat[under + left], flat[under + right], across)
        best[0, band] = torch.lerp(upper, lower, down[band, None])
    return best, certainty


def _neighbors(few: int, many: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Return the two cells around each of `many` pixels of a side of `few` cells, and the weight of the second."""
    at = ((torch.arange(many, device=device) + 0.5) * (few / many) - 0.5).clamp_min(0)
    first = at.long().clamp_max(few - 1)
    return first, (first + 1).clamp_max(few - 1), at - first
