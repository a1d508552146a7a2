"""All scores of a data set, image by image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torchmetrics.functional.classification import multiclass_confusion_matrix

from ovsdino.eval.boundary import BoundaryF1, BoundaryIoU
from ovsdino.eval.sizes import SizeGroup, SizeRecall

__all__ = ["SegmentationMetrics", "Summary"]


@dataclass(frozen=True, kw_only=True)
class Summary:
    """Scores in 0..1; None where nothing was there to be scored.

    Attributes:
        miou: mean of `iou` over the classes that have one.
        iou: intersection over union of each class, both summed over the data set; None for a class that is neither
            labelled nor predicted anywhere, which is left out of the mean.
        pixel_accuracy: share of labelled pixels that are right.
        boundary_f1: see `BoundaryF1`.
        boundary_iou: see `BoundaryIoU`.
        sizes: recall by size of the region, see `ovsdino.eval.sizes`.
    """

    miou: float | None
    iou: dict[str, float | None]
    pixel_accuracy: float | None
    boundary_f1: float | None
    boundary_iou: float | None
    sizes: dict[str, SizeGroup]


class SegmentationMetrics:
    """Adds up a data set's scores.

    Args:
        names: the K class names, in label order.
        ignore_index: target value of pixels that are not scored.
        has_background: class 0 is background, which `sizes` leaves out.
    """

    def __init__(self, names: Sequence[str], ignore_index: int = 255, *, has_background: bool = False) -> None:
        self.names = tuple(names)
        self.ignore_index = ignore_index
        count = len(self.names)
        # one more column and row: background, K, counts as an error wherever it is predicted
        self.confusion = np.zeros((count + 1, count + 1), dtype=np.int64)
        self.boundary_f1 = BoundaryF1(count)
        self.boundary_iou = BoundaryIoU(count)
        self.sizes = SizeRecall(count, skip=(0,) if has_background else ())

    def update(self, predicted: np.ndarray, target: np.ndarray) -> None:
        """Adds an image.

        Args:
            predicted: (H, W) integers in 0..K, K being background.
            target: (H, W) integers in 0..K-1, or `ignore_index`.

        Raises:
            ValueError: shapes differ or a value is out of range.
        """
        count = len(self.names)
        if predicted.shape != target.shape or predicted.ndim != 2:
            raise ValueError(f"predicted is {predicted.shape}, target {target.shape}: expected the same (H, W)")
        predicted, target = predicted.astype(np.int64), target.astype(np.int64)
        ignore = target == self.ignore_index
        labelled = target[~ignore]
        if labelled.size and not (labelled.min() >= 0 and labelled.max() < count):
            raise ValueError(f"target holds {labelled.min()}..{labelled.max()}, expected 0..{count - 1}")
        if predicted.size and not (predicted.min() >= 0 and predicted.max() <= count):
            raise ValueError(f"predicted holds {predicted.min()}..{predicted.max()}, expected 0..{count}")
        self.confusion += multiclass_confusion_matrix(
            torch.from_numpy(predicted[~ignore]),
            torch.from_numpy(labelled),
            num_classes=count + 1,
            validate_args=False,
        ).numpy()
        self.boundary_f1.update(predicted, target, ignore)
        self.boundary_iou.update(predicted, target, ignore)
        self.sizes.update(predicted, target, ignore)

    def sums(self) -> list[np.ndarray]:
        """Everything that grows with the images, in place: adding another part's sums adds its images."""
        f1, iou, sizes = self.boundary_f1, self.boundary_iou, self.sizes
        return [
            self.confusion,
            f1.total,
            f1.images,
            iou.intersection,
            iou.union,
            sizes.pixels,
            sizes.hits,
            sizes.regions,
            sizes.found,
        ]

    def iou(self) -> np.ndarray:
        """(K,) intersection over union, NaN for a class without a union."""
        hits = np.diag(self.confusion)[:-1]
        union = (self.confusion.sum(0) + self.confusion.sum(1))[:-1] - hits
        return np.where(union > 0, hits / np.maximum(union, 1), np.nan)

    def summary(self) -> Summary:
        """The scores of all images so far."""
        iou, pixels = self.iou(), int(self.confusion.sum())
        return Summary(
            miou=_mean(iou),
            iou={name: None if np.isnan(v) else float(v) for name, v in zip(self.names, iou, strict=True)},
            pixel_accuracy=float(np.trace(self.confusion) / pixels) if pixels else None,
            boundary_f1=_mean(self.boundary_f1.per_class()),
            boundary_iou=_mean(self.boundary_iou.per_class()),
            sizes=self.sizes.groups(),
        )


def _mean(values: np.ndarray) -> float | None:
    kept = values[~np.isnan(values)]
    return float(kept.mean()) if kept.size else None
