"""Resize of uint8 images, rounded to whole levels as torch rounds it: an axis's weights, and the native kernel.

torch resizes in two passes of 16-bit fixed point, columns first, each rounded. The same integers come from
`ovsdino.edge.pixels` in NumPy and from the kernel here, so that a model sees the same input by every way.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from ovsdino.native import native

__all__ = ["Taps", "axis_taps", "gain_and_shift", "resize_levels"]


class Taps(NamedTuple):
    """One axis of a resize: out[i] = (sum_k weights[k, i] * in[start[i] + k] + half) >> bits."""

    start: np.ndarray  # (target,) int64
    weights: np.ndarray  # (2, target) int32
    bits: int

    def rows(self, source: int) -> np.ndarray:
        """Return the source indices that are read, ascending."""
        used = np.zeros(source, bool)
        for tap, weights in enumerate(self.weights):
            used[np.minimum(self.start + tap, source - 1)[weights > 0]] = True
        return np.flatnonzero(used)

    def after(self, kept: np.ndarray) -> Taps:
        """Return the same resize of an array of the `kept` source indices alone; taps of weight 0 may fall anywhere."""
        return self._replace(start=np.searchsorted(kept, self.start))


@lru_cache(maxsize=64)
def axis_taps(source: int, target: int) -> Taps:
    """Return torch's weights: from float64, with as many bits behind the point as the largest leaves of 15."""
    position = np.maximum(source / target * (np.arange(target, dtype=np.float64) + 0.5) - 0.5, 0.0)
    start = np.minimum(position.astype(np.int64), source - 1)
    upper = np.where(start < source - 1, np.minimum(position - start, 1.0), 0.0)
    weights = np.stack([1.0 - upper, upper])
    bits = 0
    while bits < 22 and int(0.5 + float(weights.max()) * (1 << (bits + 1))) < 1 << 15:
        bits += 1
    return Taps(start, (0.5 + weights * (1 << bits)).astype(np.int32), bits)


def gain_and_shift(mean: Sequence[float], std: Sequence[float]) -> tuple[list[float], list[float]]:
    """Return gain and shift of each channel, with which (x / 255 - mean) / std is x * gain + shift."""
    return [1.0 / (255.0 * s) for s in std], [-m / s for m, s in zip(mean, std, strict=True)]


def resize_levels(
    image: np.ndarray, size: tuple[int, int], mean: Sequence[float], std: Sequence[float], out: np.ndarray, threads: int
) -> bool:
    """Write (resize(image)_c / 255 - mean_c) / std_c by `ovsdino._C`; return False where that is missing.

    Args:
        image: (H, W, 3) uint8, pixels and colors one behind the other; rows may have a distance.
        size: (h, w) of the result.
        mean: Three values in 0..1.
        std: Three values, > 0.
        out: (3, h, w) float32, contiguous.
        threads: Of the kernel, at most.
    """
    if native is None:
        return False
    axes = [
        None if source == target else axis_taps(source, target)
        for source, target in zip(image.shape, size, strict=False)
    ]
    gain, shift = gain_and_shift(mean, std)
    native.resize_levels_cpu(
        image.ctypes.data,
        image.shape[:2],
        image.strides[0],
        [0 if axis is None else axis.start.ctypes.data for axis in axes],
        [0 if axis is None else axis.weights.ctypes.data for axis in axes],
        [0 if axis is None else axis.bits for axis in axes],
        size,
        out.ctypes.data,
        gain,
        shift,
        threads,
    )
    return True
