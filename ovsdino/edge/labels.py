"""Turn low-resolution logits into labels at image size on the CPU: `upsample_argmax` on NumPy arrays."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ovsdino.label_maps import count_labels, replace_labels
from ovsdino.native import native
from ovsdino.vocabulary import SURE_SHARE, label_dtype

__all__ = [
    "Found",
    "Wish",
    "class_scores",
    "leave_out_unfound",
    "lead_of",
    "sure_shares",
    "upsample_argmax",
    "upsample_argmax_numpy",
]


@dataclass(frozen=True, kw_only=True)
class Wish:
    """A frame's options for a graph.

    Attributes:
        threshold: Probability below which a pixel gets the background index; None for no threshold.
        confidence: Also return each pixel's largest softmax probability.
        certainty: Also return `sure_shares` at it; None where the contrast does not compete, or nobody asks.
    """

    threshold: float | None = None
    confidence: bool = False
    certainty: float | None = None


class Found(NamedTuple):
    """The labels that a graph gives for a frame, and what was asked for with them.

    Attributes:
        labels: (H, W) integers at the frame's size.
        confidence: (H, W) float32 where `Wish.confidence` asks for it.
        sure: `sure_shares` where `Wish.certainty` asks for them.
    """

    labels: np.ndarray
    confidence: np.ndarray | None
    sure: np.ndarray | None


BLOCK = 1 << 20  # floats of the interpolated logits that are held at a time: 4 MB, the size of a cache


def upsample_argmax(
    logits: np.ndarray,
    size: tuple[int, int],
    threshold: float | None = None,
    *,
    confidence: bool = False,
    threads: int = 1,
) -> tuple[np.ndarray, np.ndarray | None]:
    """Compute label_yx = argmax_k bilinear(logits_k)(y, x) by `ovsdino._C`, or by NumPy where that is missing.

    The smallest index wins a tie; a NaN wins over any number.

    Args:
        logits: (K, h, w) float32, K >= 1.
        size: (H, W) of the result.
        threshold: With it, pixels whose largest softmax probability is below it get the background index K.
        confidence: Also return the largest softmax probability of each pixel.
        threads: Threads of the kernel.

    Returns:
        Labels (H, W), of `ovsdino.vocabulary.label_dtype`; and (H, W) float32 in (0, 1], or None.
    """
    if native is None:
        return upsample_argmax_numpy(logits, size, threshold, confidence=confidence)
    logits = np.asarray(logits, np.float32)
    classes, height, width = logits.shape
    labels = np.empty(size, label_dtype(classes))
    certainty = np.empty(size, np.float32) if confidence else None
    native.upsample_argmax_cpu(
        logits.ctypes.data,
        "float32",
        (1, classes, height, width),
        (0, *(stride // logits.itemsize for stride in logits.strides)),
        size,
        labels.ctypes.data,
        labels.dtype.name,
        0 if certainty is None else certainty.ctypes.data,
        threshold,
        threads,
    )
    return labels, certainty


def class_scores(labels: np.ndarray, confidence: np.ndarray, classes: int) -> tuple[float, ...]:
    """Return the mean confidence of each class over its pixels, 0 for a class without pixels.

    Args:
        labels: (H, W) integers 0..K; K is background.
        confidence: (H, W) float32.
        classes: K.
    """
    flat = labels.ravel()
    counts = np.bincount(flat, minlength=classes)[:classes]
    sums = np.bincount(flat, weights=confidence.ravel(), minlength=classes)[:classes]
    return tuple((sums / np.maximum(counts, 1)).tolist())


def lead_of(certainty: float) -> float:
    """Return the difference of two logits at which the softmax over the two gives the first this probability.

    Args:
        certainty: 0..1, 1 excluded; at most one half asks for no lead.
    """
    return 0.0 if certainty <= 0.5 else math.log(certainty / (1 - certainty))


def sure_shares(logits: np.ndarray, certainty: float) -> np.ndarray:
    """Return the share of the logits' grid on which each word is the first of all and this certain.

    The certainty is that of the word against the contrast alone. Other words do not lessen it, so that "car" and
    "vehicle" can both be asked for.

    Args:
        logits: (K + 1, h, w), the contrast's last.
        certainty: 0..1, 1 excluded.

    Returns:
        (K,) float64.
    """
    first = logits.argmax(0)
    sure = first[logits.max(0) - logits[-1] >= lead_of(certainty)]
    counts = np.bincount(sure, minlength=len(logits))[:-1]
    return np.asarray(counts / first.size)


def leave_out_unfound(
    labels: np.ndarray, classes: int, least_share: float, sure: np.ndarray | None = None
) -> np.ndarray:
    """Turn pixels of classes that are not found into background, in place.

    Args:
        labels: (H, W) integers 0..K; K is background.
        classes: K.
        least_share: Share of the image that a class must cover; one pixel at least.
        sure: (K,), see `sure_shares`: a class needs `ovsdino.vocabulary.SURE_SHARE` of it as well.

    Returns:
        (K,) bool, the classes that are left.
    """
    counts = count_labels(labels, classes)
    kept: np.ndarray = counts >= max(1.0, least_share * labels.size)
    if sure is not None:
        kept &= sure >= SURE_SHARE
    rare = np.flatnonzero(~kept & (counts > 0))
    if len(rare):
        table = np.arange(classes + 1).astype(labels.dtype)
        table[rare] = classes
        replace_labels(labels, table)
    return kept


def upsample_argmax_numpy(
    logits: np.ndarray, size: tuple[int, int], threshold: float | None = None, *, confidence: bool = False
) -> tuple[np.ndarray, np.ndarray | None]:
    """Compute the same without native code, one block of rows at a time; see `upsample_argmax`."""
    classes, height, width = logits.shape
    top, bottom, below = _taps(height, size[0])
    left, right, beyond = _taps(width, size[1])
    labels = np.empty(size, label_dtype(classes))
    certainty = np.empty(size, np.float32) if confidence or threshold is not None else None
    step = max(1, BLOCK // (classes * size[1]))
    for start in range(0, size[0], step):
        rows = slice(start, start + step)
        # across, then down: the order of torch's arithmetic
        upper, lower = (logits[:, taps[rows]] for taps in (top, bottom))
        upper = upper[..., left] * (1 - beyond) + upper[..., right] * beyond
        lower = lower[..., left] * (1 - beyond) + lower[..., right] * beyond
        weight = below[rows, None]
        values = upper * (1 - weight) + lower * weight
        best = values.argmax(0)
        if certainty is not None:
            largest = np.take_along_axis(values, best[None], 0)
            probability = 1 / np.exp(values - largest).sum(0)
            certainty[rows] = probability
            if threshold is not None:
                best[probability < threshold] = classes
        labels[rows] = best
    return labels, certainty if confidence else None


def _taps(source: int, target: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return lower index, upper index and the upper one's weight, in torch's float32 arithmetic.

    torch rounds the scaled position once from float64.
    """
    if source == target:
        index = np.arange(target)
        return index, index, np.zeros(target, np.float32)
    scale = np.float64(np.float32(source) / np.float32(target))
    position = np.maximum((scale * (np.arange(target) + 0.5) - 0.5).astype(np.float32), 0)
    lower = np.minimum(position.astype(np.int64), source - 1)
    weight = np.clip(position - lower.astype(np.float32), 0, 1)
    return lower, np.minimum(lower + 1, source - 1), weight
