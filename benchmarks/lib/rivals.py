"""The strongest rivals known of the ops: what a good engineer writes in a few lines with a library that is at hand.

Each takes and returns what its op does, and `tests/benchmarks/lib/test_rivals.py` holds it to the op's reference. A
library that is missing raises `ImportError` when its rival is called: `benchmarks/ops.py` leaves the row out and gives
that reason.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

QUERIES = 256  # of a block: its scores, 256 x 4096 x 4 bytes, stay in the level 3 cache


def interpolated_argmax(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """Return labels (B, H, W) by torch's resize and argmax, with the (B, K, H, W) tensor between."""
    return F.interpolate(logits, size, mode="bilinear", align_corners=False).argmax(1)


def opencv_labels(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """Return labels (1, H, W) by OpenCV's resize of one class after the other, with a running maximum.

    Args:
        logits: (1, K, h, w) float32 on the CPU, K at most 256.
        size: (H, W).
    """
    return torch.from_numpy(_opencv_best(logits, size)[0])[None]


def opencv_confidence(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """Return the softmax probability of the best class, (1, H, W), by a second round of resizing."""
    import cv2

    planes, best = logits[0].numpy(), _opencv_best(logits, size)[1]
    resized, total = np.empty_like(best), np.zeros_like(best)
    for plane in planes:
        cv2.resize(plane, size[::-1], dst=resized, interpolation=cv2.INTER_LINEAR)
        cv2.exp(cv2.subtract(resized, best, dst=resized), dst=resized)
        cv2.add(total, resized, dst=total)
    return torch.from_numpy(1 / total)[None]


def _opencv_best(logits: Tensor, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Return each pixel's best class, uint8, and its logit, (H, W) both."""
    import cv2

    planes = logits[0].numpy()
    best = cv2.resize(planes[0], size[::-1], interpolation=cv2.INTER_LINEAR)
    labels, won = np.zeros(size, np.uint8), np.empty(size, np.uint8)
    resized = np.empty_like(best)
    for label, plane in enumerate(planes[1:], 1):
        cv2.resize(plane, size[::-1], dst=resized, interpolation=cv2.INTER_LINEAR)
        cv2.compare(resized, best, cv2.CMP_GT, dst=won)
        cv2.max(resized, best, dst=best)
        labels[won.view(bool)] = label
    return labels, best


def numba_labels(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """Return labels (1, H, W) by a compiled loop over bands of rows: each class widened once a band, then blended.

    Args:
        logits: (1, K, h, w) float32 on the CPU.
        size: (H, W).
    """
    planes = logits[0].numpy()
    labels = np.empty(size, np.int16)
    rows, row_weights = _taps(planes.shape[1], size[0])
    columns, column_weights = _taps(planes.shape[2], size[1])
    bands = np.concatenate([[0], np.flatnonzero(np.diff(rows)) + 1, [size[0]]])
    _numba_bands()(planes, bands, rows, row_weights, columns, column_weights, labels)
    return torch.from_numpy(labels)[None]


def _taps(source: int, target: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the first of the two places that each target place lies between, and the weight of the second."""
    places = (np.arange(target, dtype=np.float32) + np.float32(0.5)) * np.float32(source / target) - np.float32(0.5)
    places = places.clip(0, source - 1)
    first = places.astype(np.int64)
    return first, places - first.astype(np.float32)


@functools.cache
def _numba_bands() -> Callable[..., None]:
    import numba

    @numba.njit(parallel=True, fastmath=True)
    def bands_of_labels(planes, bands, rows, row_weights, columns, column_weights, labels):
        classes, h, w = planes.shape
        width = labels.shape[1]
        for band in numba.prange(len(bands) - 1):
            first, end = bands[band], bands[band + 1]
            above, below = rows[first], min(rows[first] + 1, h - 1)
            top, bottom = np.empty(width, np.float32), np.empty(width, np.float32)
            best = np.full((end - first, width), -np.inf, np.float32)
            winner = np.zeros((end - first, width), np.int32)
            for k in range(classes):
                for x in range(width):
                    left, right = columns[x], min(columns[x] + 1, w - 1)
                    weight = column_weights[x]
                    top[x] = planes[k, above, left] * (1 - weight) + planes[k, above, right] * weight
                    bottom[x] = planes[k, below, left] * (1 - weight) + planes[k, below, right] * weight
                for y in range(end - first):
                    weight = row_weights[first + y]
                    for x in range(width):
                        value = top[x] + (bottom[x] - top[x]) * weight
                        wins = value > best[y, x]
                        best[y, x] = value if wins else best[y, x]
                        winner[y, x] = k if wins else winner[y, x]
            for y in range(end - first):
                for x in range(width):
                    labels[first + y, x] = winner[y, x]

    return bands_of_labels


def bag_of_tokens(features: Tensor, masks: Tensor) -> Tensor:
    """Return the means (1, M, C) under masks by `torch.nn.functional.embedding_bag` of the set tokens.

    Args:
        features: (1, N, C).
        masks: (1, M, N) bool, none of them empty.
    """
    if masks.device.type == "cpu":
        flat = torch.from_numpy(np.flatnonzero(masks.numpy()))  # several times as fast as torch's nonzero
    else:
        flat = masks.flatten().nonzero()[:, 0]
    starts = masks[0].sum(-1).cumsum(0).roll(1)
    starts[0] = 0
    return F.embedding_bag(flat % masks.shape[2], features[0], starts, mode="mean")[None]


def attention_by_blocks(q: Tensor, k: Tensor, v: Tensor, e: Tensor, lam: Tensor, gate: Tensor) -> Tensor:
    """Return structure attention by matrix products, `QUERIES` rows of scores at a time; shapes as the op's.

    A bias of the rows alone changes no softmax, so of -lam |e_i - e_j|^2 the scores take 2 lam e_i.e_j - lam |e_j|^2.
    """
    slope = lam[:, None, None]
    rows = torch.cat([q * q.shape[-1] ** -0.5, 2 * slope * e], -1)
    columns = torch.cat([k, e], -1).transpose(-2, -1)
    bias = -slope * e.square().sum(-1).unsqueeze(-2)
    parts = [torch.softmax(part @ columns + bias, -1) @ v for part in rows.split(QUERIES, -2)]
    return torch.cat(parts, -2) * gate.unsqueeze(-1)


def library_resizes(
    side: int, antialias: bool, mean: Sequence[float], std: Sequence[float]
) -> list[tuple[str, Callable[[Tensor], Tensor]]]:
    """Return `preprocess` by PIL and OpenCV, by name, with torch's normalization behind them.

    Args:
        side: height and width of the result.
        antialias: PIL always does, and is left out where it is not asked for.
        mean: of the three channels, of 0 to 1.
        std: likewise.
    """
    from PIL import Image

    gain = torch.tensor([1 / (255 * x) for x in std]).view(3, 1, 1)
    shift = torch.tensor([-m / x for m, x in zip(mean, std, strict=True)]).view(3, 1, 1)

    def normalized(pixels: np.ndarray) -> Tensor:
        planar = torch.from_numpy(pixels).permute(2, 0, 1).float().contiguous()
        return torch.addcmul(shift, planar, gain)[None]

    def by_pil(image: Tensor) -> Tensor:  # always antialiased
        return normalized(np.array(Image.fromarray(image.numpy()).resize((side, side), Image.Resampling.BILINEAR)))

    found: list[tuple[str, Callable[[Tensor], Tensor]]] = [("PIL", by_pil)] if antialias else []

    def by_opencv(image: Tensor) -> Tensor:
        import cv2

        way = cv2.INTER_AREA if antialias else cv2.INTER_LINEAR
        return normalized(cv2.resize(image.numpy(), (side, side), interpolation=way))

    return [*found, ("OpenCV INTER_AREA" if antialias else "OpenCV INTER_LINEAR", by_opencv)]


@functools.cache
def compiled(function: Callable[..., Any], backend: str = "inductor") -> Callable[..., Any]:
    """Return a function compiled by torch for the shapes that it is called with.

    On a CPU inductor calls a C++ compiler with OpenMP; where that fails, so does the first call.
    """
    return torch.compile(function, dynamic=False, backend=backend)
