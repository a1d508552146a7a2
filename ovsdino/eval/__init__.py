"""Scores of a segmenter on labelled data: mIoU, pixel accuracy, boundary F1, Boundary IoU, by size; the probe."""
