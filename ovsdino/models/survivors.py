"""Decode thousands of classes a few at a time, and keep the maps of those that can be the largest somewhere.

Between four neighboring cells of the logits' grid a bilinear map stays within the values at its four corners. So a
class whose largest corner is below some other class's smallest has no pixel there, at any size of the image. Classes
that win between no four cells are dropped as soon as they are decoded: the labels are those of all maps, and memory
holds the survivors (of 10 000 words on a photograph some thousands) and one chunk.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ovsdino.models.config import ModelConfig
from ovsdino.models.ovsdino import OVSDINO, ImageFeatures
from ovsdino.models.text_rows import TextRows

__all__ = ["Survivors", "map_bytes", "surviving"]

CHUNK_BYTES = 4 << 20  # of the maps decoded at once: at 88x120 cells 99 classes
SLACK = 1e-5  # of the logits' magnitude: the rounding of their interpolation


@dataclass(frozen=True, eq=False)
class Survivors:
    """The maps of an image that can be the largest somewhere.

    Attributes:
        logits: (1, n, h, w) float32.
        classes: (n,) int64 ascending, the number of each map among all; the contrast's is always there.
        total: (1, h, w) float32, the log of the sum of the exponentials of all maps; NaN where one was.
        maps: Number of all maps.
    """

    logits: Tensor
    classes: Tensor
    total: Tensor
    maps: int


def map_bytes(config: ModelConfig, maps: int, height: int, width: int) -> int:
    """Return the memory of so many float32 maps, at four times the token grid, of an image of the network's size."""
    return 4 * maps * (4 * height // config.patch_size) * (4 * width // config.patch_size)


def surviving(model: OVSDINO, features: ImageFeatures, text: Tensor | TextRows, **prior: Any) -> Survivors:
    """Decode one image by chunks of classes, see `OVSDINO.decode`, and return the maps that matter.

    Args:
        model: Decodes.
        features: Of one image.
        text: (K, D), or rows; a chunk takes its classes, the last one the contrast as well.
        **prior: `prior` and `tau` of `OVSDINO.decode`.
    """
    rows = text if isinstance(text, TextRows) else TextRows(text[:, None])
    classes = len(rows)
    side = model.config.patch_size
    one = map_bytes(model.config, 1, *(side * cells for cells in features.tokens.shape[-2:]))
    size = max(1, CHUNK_BYTES // one)
    kept: list[Tensor] = []
    numbers: list[Tensor] = []
    bound = total = None
    for start in range(0, classes, size):
        stop = min(start + size, classes)
        contrast = rows.contrast if stop == classes else None
        part = TextRows(rows.words[start:stop], contrast)
        weighed = {**prior, "prior": prior["prior"][start:stop]} if "prior" in prior else {}
        maps = model.decode(features, part, **weighed).float()
        sums = maps.logsumexp(1)
        total = sums if total is None else torch.logaddexp(total, sums)
        high, low = _corners(maps)
        best = low.amax(1, keepdim=True)
        bound = best if bound is None else torch.maximum(bound, best)
        there = _reaches(high, bound)
        if contrast is not None:
            there[-1] = True
        kept.append(maps[:, there])
        numbers.append(torch.arange(start, start + maps.shape[1], device=maps.device)[there])
    assert bound is not None and total is not None
    logits, chosen = torch.cat(kept, 1), torch.cat(numbers)
    kept.clear()
    there = _reaches(_corners(logits)[0], bound)
    if rows.contrast is not None:
        there[-1] = True
    return Survivors(logits[:, there], chosen[there], total, rows.maps)


def _corners(maps: Tensor) -> tuple[Tensor, Tensor]:
    """Return the largest and the smallest of the four corners between cells, (1, K, h - 1, w - 1)."""
    kernel = tuple(min(2, side) for side in maps.shape[-2:])
    return F.max_pool2d(maps, kernel, 1), -F.max_pool2d(-maps, kernel, 1)


def _reaches(high: Tensor, bound: Tensor) -> Tensor:
    """Return which maps reach the bound somewhere, (K,) bool."""
    return (high >= bound - SLACK * (1 + bound.abs())).flatten(2).any(2)[0]
