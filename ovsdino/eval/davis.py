"""J and F of DAVIS 2016: region similarity and contour accuracy of an object's mask (Perazzi et al., CVPR 2016)."""

from __future__ import annotations

import math

import numpy as np
from scipy.ndimage import distance_transform_edt

__all__ = ["contour_f", "region_j"]

TOLERANCE = 0.008  # of the image diagonal, the benchmark's


def region_j(found: np.ndarray, truth: np.ndarray) -> float:
    """Return J, the intersection over union of two masks (H, W) bool; 1 where both are empty."""
    union = int((found | truth).sum())
    return float((found & truth).sum() / union) if union else 1.0


def contour_f(found: np.ndarray, truth: np.ndarray) -> float:
    """Return F, the harmonic mean of the precision and recall of a mask's contour.

    A pixel of one contour is right within ceil(0.008 x diagonal) pixels of the other. As in the benchmark, precision is
    1 where nothing is found of an object that is there, and recall is 1 where something is found of none.

    Args:
        found: (H, W) bool.
        truth: (H, W) bool.
    """
    radius = math.ceil(TOLERANCE * math.hypot(*truth.shape))
    one, other = _contour(found), _contour(truth)
    precision = _within(one, other, radius) if one.any() else 1.0
    recall = _within(other, one, radius) if other.any() else 1.0
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def _contour(mask: np.ndarray) -> np.ndarray:
    """Return pixels that differ from the one to the right, below, or right below, (H, W) bool; borders count not."""
    wide = np.pad(mask, ((0, 1), (0, 1)), mode="edge")
    edge: np.ndarray = (mask ^ wide[:-1, 1:]) | (mask ^ wide[1:, :-1]) | (mask ^ wide[1:, 1:])
    return edge


def _within(edge: np.ndarray, other: np.ndarray, radius: int) -> float:
    """Return the share of a contour's pixels within a Euclidean distance of another contour."""
    if not other.any():
        return 0.0
    return float((distance_transform_edt(~other)[edge] <= radius).mean())
