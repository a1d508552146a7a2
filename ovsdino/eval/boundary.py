"""Measure the borders of a segmentation: boundary F1 (Csurka et al. 2013), Boundary IoU (Cheng et al. 2021), trimaps.

F1 asks a k-d tree of the contour pixels for the nearest one, Boundary IoU two running minima and maxima of the label
map, so neither grows with the number of classes: both together take 0.9 s of one busy core for a 2048x1024 image.
"""

from __future__ import annotations

import math

import numpy as np
from scipy.ndimage import distance_transform_edt, maximum_filter1d, minimum_filter1d
from scipy.spatial import cKDTree

__all__ = ["BoundaryF1", "BoundaryIoU", "contour", "trimap"]

TRIMAP_RADIUS = 8  # pixels


class BoundaryF1:
    """Boundary F1 with a distance tolerance (Csurka, Larlus, Perronnin, BMVC 2013).

    The paper is "What is a good evaluation measure for semantic segmentation?".

    For class c in one image let B and B' be the contours of its ground-truth and predicted masks: the pixels of the
    mask with a 4-neighbor inside the image that is labelled (not ignored) and of another class. The border of the
    image is not a contour, and neither is the border of an ignored region. With θ = `tolerance` x the image diagonal,

        precision = share of B' within Euclidean distance < θ (or 0) of a pixel of B
        recall    = share of B within that distance of a pixel of B'
        F1        = 2 precision recall / (precision + recall), 0 if both are 0.

    A class without contour in both maps of an image is left out there; with a contour in one only it scores 0. A
    class's score is the mean over its images, the result the mean over the classes that had any.

    Args:
        classes: K.
        tolerance: Share of the image diagonal, 0.0075 in the paper.
    """

    def __init__(self, classes: int, tolerance: float = 0.0075) -> None:
        self.tolerance = tolerance
        self.total = np.zeros(classes)
        self.images = np.zeros(classes, dtype=np.int64)

    def update(self, predicted: np.ndarray, target: np.ndarray, ignore: np.ndarray) -> None:
        """Add an image: labels (H, W) integers, ignored pixels (H, W) bool."""
        classes = len(self.total)
        radius = self.tolerance * math.hypot(*target.shape)
        truth = _by_class(contour(target, ignore), target, classes)
        found = _by_class(contour(predicted, ignore), predicted, classes)
        for index in sorted(truth.keys() | found.keys()):
            self.images[index] += 1
            if index in truth and index in found:
                precision = _near(found[index], truth[index], radius)
                recall = _near(truth[index], found[index], radius)
                if precision + recall > 0:
                    self.total[index] += 2 * precision * recall / (precision + recall)

    def per_class(self) -> np.ndarray:
        """Return (K,) scores in 0..1, NaN for a class that had no contour anywhere."""
        return np.where(self.images > 0, self.total / np.maximum(self.images, 1), np.nan)


class BoundaryIoU:
    """Boundary IoU (Cheng, Girshick, Dollár, Berg, Kirillov, CVPR 2021) for semantic segmentation.

    G_d are the pixels of a class's mask within d of its contour, d = `ratio` x the image diagonal in pixels, rounded
    and at least 1: as in the authors' code the mask minus its erosion by a (2d+1)x(2d+1) box, all that is outside
    the image counting as outside the mask. |G_d ∩ P_d| and |G_d ∪ P_d| are summed over the data set for each class; the
    result is the mean of their ratios over the classes with a union. Ignored pixels are not counted, and a
    mask's border with them is not a contour.

    Args:
        classes: K.
        ratio: Share of the image diagonal, 0.02 in the paper.
    """

    def __init__(self, classes: int, ratio: float = 0.02) -> None:
        self.ratio = ratio
        self.intersection = np.zeros(classes, dtype=np.int64)
        self.union = np.zeros(classes, dtype=np.int64)

    def update(self, predicted: np.ndarray, target: np.ndarray, ignore: np.ndarray) -> None:
        """Add an image: labels (H, W) integers, ignored pixels (H, W) bool."""
        classes = len(self.union)
        distance = max(1, round(self.ratio * math.hypot(*target.shape)))
        truth = _rim(target, ignore, distance)
        found = _rim(predicted, ignore, distance)
        both = truth & found & (target == predicted)
        shared = _count(target[both], classes)
        self.intersection += shared
        self.union += _count(target[truth], classes) + _count(predicted[found], classes) - shared

    def per_class(self) -> np.ndarray:
        """Return (K,) scores in 0..1, NaN for a class that is in neither map of any image."""
        return np.where(self.union > 0, self.intersection / np.maximum(self.union, 1), np.nan)


def contour(labels: np.ndarray, ignore: np.ndarray) -> np.ndarray:
    """Return the labelled pixels with a labelled 4-neighbor of another class, (H, W) bool."""
    edge = np.zeros(labels.shape, dtype=bool)
    across = (labels[:, 1:] != labels[:, :-1]) & ~ignore[:, 1:] & ~ignore[:, :-1]
    edge[:, 1:] |= across
    edge[:, :-1] |= across
    down = (labels[1:] != labels[:-1]) & ~ignore[1:] & ~ignore[:-1]
    edge[1:] |= down
    edge[:-1] |= down
    return edge


def trimap(target: np.ndarray, ignore: np.ndarray, radius: float = TRIMAP_RADIUS) -> np.ndarray:
    """Return the labelled pixels within `radius` pixels of a contour of the labels, (H, W) bool.

    mIoU over these pixels alone measures how well borders are met (Kohli, Ladický, Torr, IJCV 2009, and, with a fixed
    width, Chen et al., DeepLab, 2015).

    Args:
        target: (H, W) integers.
        ignore: (H, W) bool, pixels without a label; their border is not a contour.
        radius: Euclidean distance in pixels, the contour's own pixels being at 0.
    """
    edge = contour(target, ignore)
    if not edge.any():
        return edge
    near: np.ndarray = distance_transform_edt(~edge) <= radius
    return near & ~ignore


def _by_class(edge: np.ndarray, labels: np.ndarray, classes: int) -> dict[int, np.ndarray]:
    """Return the coordinates (n, 2) of the set pixels of each class that has any."""
    points = np.argwhere(edge)
    owners = labels[edge]
    return {c: points[owners == c] for c in np.unique(owners).tolist() if 0 <= c < classes}


def _near(points: np.ndarray, others: np.ndarray, radius: float) -> float:
    """Return the share of the points at Euclidean distance < radius, or 0, of one of the others."""
    distance, _ = cKDTree(others).query(points, k=1, distance_upper_bound=radius + 1)
    squared = np.where(np.isfinite(distance), distance, math.inf) ** 2
    # squared distances of pixels are whole numbers: rounding takes the square root's error away
    return float(((np.rint(squared) < radius**2) | (distance == 0)).mean())


def _rim(labels: np.ndarray, ignore: np.ndarray, distance: int) -> np.ndarray:
    """Return labelled pixels whose (2d+1)x(2d+1) box leaves the image or holds a labelled pixel of another class."""
    size = 2 * distance + 1
    low = np.where(ignore, np.iinfo(np.int32).max, labels).astype(np.int32)
    high = np.where(ignore, np.iinfo(np.int32).min, labels).astype(np.int32)
    for axis in (0, 1):
        low = minimum_filter1d(low, size, axis, mode="nearest")
        high = maximum_filter1d(high, size, axis, mode="nearest")
    rim = low != high
    rim[:distance] = rim[-distance:] = True
    rim[:, :distance] = rim[:, -distance:] = True
    return rim & ~ignore


def _count(labels: np.ndarray, classes: int) -> np.ndarray:
    return np.bincount(labels[(labels >= 0) & (labels < classes)], minlength=classes)
