"""Scores of a segmenter on labelled data: mIoU, pixel accuracy, boundary F1, Boundary IoU."""

from ovsdino.eval.boundary import BoundaryF1, BoundaryIoU
from ovsdino.eval.evaluate import Evaluation, evaluate, read_class_names
from ovsdino.eval.metrics import SegmentationMetrics, Summary

__all__ = [
    "BoundaryF1",
    "BoundaryIoU",
    "Evaluation",
    "SegmentationMetrics",
    "Summary",
    "evaluate",
    "read_class_names",
]
