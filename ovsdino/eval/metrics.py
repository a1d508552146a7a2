"""Scores of a data set, added up image by image: the one mIoU of product, evaluation and training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torchmetrics.functional.classification import multiclass_confusion_matrix

from ovsdino.eval.boundary import BoundaryF1, BoundaryIoU, trimap
from ovsdino.eval.sizes import SizeGroup, SizeRecall

__all__ = ["Confusion", "SegmentationMetrics", "Summary"]


@dataclass(frozen=True, kw_only=True)
class Summary:
    """Scores in 0..1; None without anything to score.

    Attributes:
        miou: Mean of `iou` over the classes that have one.
        iou: Intersection over union of each class, both summed over the data set; None for a class that is neither
            labelled nor predicted anywhere, which is left out of the mean.
        pixel_accuracy: Share of labelled pixels that are right.
        boundary_f1: See `BoundaryF1`.
        boundary_iou: See `BoundaryIoU`.
        trimap_miou: `miou` over the pixels within 8 of a contour of the labels, see `trimap`.
        sizes: Recall by size of the region, see `ovsdino.eval.sizes`.
    """

    miou: float | None
    iou: dict[str, float | None]
    pixel_accuracy: float | None
    boundary_f1: float | None
    boundary_iou: float | None
    trimap_miou: float | None
    sizes: dict[str, SizeGroup]


class Confusion:
    """Count pixels by true and predicted class.

    Args:
        classes: K.
        ignore_index: Target value of pixels that are not scored.

    Attributes:
        counts: (K + 1, K + 1) int64, rows truth, columns prediction. The last row and column are background: it is in
            no target and counts as an error wherever it is predicted.
    """

    def __init__(self, classes: int, ignore_index: int = 255) -> None:
        self.classes, self.ignore_index = classes, ignore_index
        self.counts = np.zeros((classes + 1, classes + 1), dtype=np.int64)

    def update(self, predicted: np.ndarray, target: np.ndarray) -> None:
        """Add an image.

        Args:
            predicted: (H, W) integers in 0..K, K being background.
            target: (H, W) integers in 0..K-1, or `ignore_index`.

        Raises:
            ValueError: The shapes differ or a value is out of range.
        """
        if predicted.shape != target.shape or predicted.ndim != 2:
            raise ValueError(f"predicted is {predicted.shape}, target {target.shape}: expected the same (H, W)")
        scored = target != self.ignore_index
        labelled = target[scored].astype(np.int64)
        if labelled.size and not (labelled.min() >= 0 and labelled.max() < self.classes):
            raise ValueError(f"target holds {labelled.min()}..{labelled.max()}, expected 0..{self.classes - 1}")
        if predicted.size and not (predicted.min() >= 0 and predicted.max() <= self.classes):
            raise ValueError(f"predicted holds {predicted.min()}..{predicted.max()}, expected 0..{self.classes}")
        self.counts += multiclass_confusion_matrix(
            torch.from_numpy(predicted[scored].astype(np.int64)),
            torch.from_numpy(labelled),
            num_classes=self.classes + 1,
            validate_args=False,
        ).numpy()

    def iou(self) -> np.ndarray:
        """Return (K,) intersections over unions, both summed over the images; NaN for a class without a union."""
        hits = np.diag(self.counts)[:-1]
        union = (self.counts.sum(0) + self.counts.sum(1))[:-1] - hits
        return np.where(union > 0, hits / np.maximum(union, 1), np.nan)

    def miou(self) -> float | None:
        """Return the mean of `iou` over the classes that have one, or None where none has."""
        return _mean(self.iou())

    def accuracy(self) -> float | None:
        """Return the share of scored pixels that are right, or None where there are none."""
        pixels = int(self.counts.sum())
        return float(np.trace(self.counts) / pixels) if pixels else None


class SegmentationMetrics:
    """Add up all scores of a data set.

    Args:
        names: The K class names, in label order.
        ignore_index: Target value of pixels that are not scored.
        has_background: Class 0 is background, which `sizes` leaves out.
    """

    def __init__(self, names: Sequence[str], ignore_index: int = 255, *, has_background: bool = False) -> None:
        self.names = tuple(names)
        count = len(self.names)
        self.confusion = Confusion(count, ignore_index)
        self.near = Confusion(count, ignore_index)  # near the contours
        self.boundary_f1 = BoundaryF1(count)
        self.boundary_iou = BoundaryIoU(count)
        self.sizes = SizeRecall(count, skip=(0,) if has_background else ())

    def update(self, predicted: np.ndarray, target: np.ndarray) -> None:
        """Add an image; see `Confusion.update`.

        Raises:
            ValueError: The shapes differ or a value is out of range.
        """
        self.confusion.update(predicted, target)
        predicted, target = predicted.astype(np.int64), target.astype(np.int64)
        ignore = target == self.confusion.ignore_index
        self.near.update(predicted, np.where(trimap(target, ignore), target, self.near.ignore_index))
        self.boundary_f1.update(predicted, target, ignore)
        self.boundary_iou.update(predicted, target, ignore)
        self.sizes.update(predicted, target, ignore)

    def sums(self) -> list[np.ndarray]:
        """Return everything that grows with the images, in place: adding another part's sums adds its images."""
        f1, iou, sizes = self.boundary_f1, self.boundary_iou, self.sizes
        return [
            self.confusion.counts,
            self.near.counts,
            f1.total,
            f1.images,
            iou.intersection,
            iou.union,
            sizes.pixels,
            sizes.hits,
            sizes.regions,
            sizes.found,
        ]

    def summary(self) -> Summary:
        """Return the scores of all images so far."""
        iou = self.confusion.iou()
        return Summary(
            miou=self.confusion.miou(),
            iou={name: None if np.isnan(v) else float(v) for name, v in zip(self.names, iou, strict=True)},
            pixel_accuracy=self.confusion.accuracy(),
            boundary_f1=_mean(self.boundary_f1.per_class()),
            boundary_iou=_mean(self.boundary_iou.per_class()),
            trimap_miou=self.near.miou(),
            sizes=self.sizes.groups(),
        )


def _mean(values: np.ndarray) -> float | None:
    kept = values[~np.isnan(values)]
    return float(kept.mean()) if kept.size else None
