"""Low-resolution logits to labels at image size on the CPU without torch: `upsample_argmax` on NumPy arrays."""

from __future__ import annotations

import numpy as np

from ovsdino.native import native

__all__ = ["label_dtype", "upsample_argmax", "upsample_argmax_numpy"]

BLOCK = 1 << 20  # floats of the interpolated logits that are held at a time: 4 MB, the size of a cache


def upsample_argmax(
    logits: np.ndarray,
    size: tuple[int, int],
    threshold: float | None = None,
    *,
    confidence: bool = False,
    threads: int = 1,
) -> tuple[np.ndarray, np.ndarray | None]:
    """label_yx = argmax_k bilinear(logits_k)(y, x): by the kernel of `ovsdino._C`, or by NumPy where that is missing.

    The smallest index wins a tie; a NaN wins over any number.

    Args:
        logits: (K, h, w) float32, K >= 1.
        size: (H, W) of the result.
        threshold: with it, pixels whose largest softmax probability is below it get the background index K.
        confidence: also return the largest softmax probability of each pixel.
        threads: of the kernel.

    Returns:
        Labels (H, W), uint8 for K <= 255, int16 for K <= 32767, else int32; and (H, W) float32 in (0, 1], or None.
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


def label_dtype(classes: int) -> type[np.uint8 | np.int16 | np.int32]:
    """The smallest dtype that holds the labels 0..K-1 and the background index K."""
    if classes <= 255:
        return np.uint8
    return np.int16 if classes <= 32767 else np.int32


def upsample_argmax_numpy(
    logits: np.ndarray, size: tuple[int, int], threshold: float | None = None, *, confidence: bool = False
) -> tuple[np.ndarray, np.ndarray | None]:
    """The same without native code, a block of rows at a time. Arguments and result as `upsample_argmax`."""
    classes, height, width = logits.shape
    top, bottom, below = _taps(height, size[0])
    left, right, beside = _taps(width, size[1])
    labels = np.empty(size, label_dtype(classes))
    certainty = np.empty(size, np.float32) if confidence or threshold is not None else None
    step = max(1, BLOCK // (classes * size[1]))
    for start in range(0, size[0], step):
        rows = slice(start, start + step)
        # across, then down: the order of torch's arithmetic
        upper, lower = (logits[:, taps[rows]] for taps in (top, bottom))
        upper = upper[..., left] * (1 - beside) + upper[..., right] * beside
        lower = lower[..., left] * (1 - beside) + lower[..., right] * beside
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
    """Lower index, upper index and weight of the upper one, in torch's float32 arithmetic (one rounding: float64)."""
    if source == target:
        index = np.arange(target)
        return index, index, np.zeros(target, np.float32)
    scale = np.float64(np.float32(source) / np.float32(target))
    position = np.maximum((scale * (np.arange(target) + 0.5) - 0.5).astype(np.float32), 0)
    lower = np.minimum(position.astype(np.int64), source - 1)
    weight = np.clip(position - lower.astype(np.float32), 0, 1)
    return lower, np.minimum(lower + 1, source - 1), weight
