"""Confidences that can be thresholded: the expected calibration error, and the temperature that makes it small."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ovsdino.io.ahead import read_ahead
from ovsdino.vocabulary import Vocabulary

if TYPE_CHECKING:
    from ovsdino.data.segmentation import SegmentationDataset
    from ovsdino.pipeline import Segmenter

__all__ = ["BINS", "CalibrationError", "fit_temperature", "sampled_error", "sampled_logits"]

BINS = 15
PIXELS = 500  # of an image that the temperature is fitted on
HOTTEST = 5.0  # largest magnitude of the temperature's logarithm: a factor of 148
GOLDEN = (5**0.5 - 1) / 2


class CalibrationError:
    """The expected calibration error over pixels: sum over bins of (n_b / n) |accuracy_b - confidence_b|.

    Naeini et al. (AAAI 2015), Guo et al. (ICML 2017), with bins of equal width.

    Args:
        bins: Number of bins over 0..1.
    """

    def __init__(self, bins: int = BINS) -> None:
        self.bins = bins
        self.table = np.zeros((3, bins))  # pixels, sum of confidences, right ones

    def update(self, confidence: np.ndarray, right: np.ndarray) -> None:
        """Add pixels: their confidences (n,) in 0..1, and whether their labels are right (n,) bool."""
        index = np.minimum((confidence.astype(np.float64) * self.bins).astype(np.int64), self.bins - 1)
        for row, weights in zip(self.table, (None, confidence, right), strict=True):
            row += np.bincount(index, weights=weights, minlength=self.bins)

    def value(self) -> float | None:
        """Return the error, in 0..1; None without pixels."""
        count, confident, right = self.table
        total = count.sum()
        return float(np.abs(confident - right).sum() / total) if total else None


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """Return the temperature T at which softmax(logits / T) gives the labels the largest likelihood.

    The negative log likelihood is convex in 1 / T; the minimum is found by golden section over log T.

    Args:
        logits: (n, K) floating.
        labels: (n,) int64.

    Raises:
        ValueError: There are no pixels.
    """
    if not len(logits):
        raise ValueError("no labelled pixels: there is nothing to fit a temperature on")
    logits = logits.double()

    def loss(log_t: float) -> float:
        return float(F.cross_entropy(logits / np.exp(log_t), labels))

    low, high = -HOTTEST, HOTTEST
    inner = [high - GOLDEN * (high - low), low + GOLDEN * (high - low)]
    values = [loss(point) for point in inner]
    while high - low > 1e-4:
        if values[0] < values[1]:
            high, inner[1], values[1] = inner[1], inner[0], values[0]
            inner[0] = high - GOLDEN * (high - low)
            values[0] = loss(inner[0])
        else:
            low, inner[0], values[0] = inner[0], inner[1], values[1]
            inner[1] = low + GOLDEN * (high - low)
            values[1] = loss(inner[1])
    return float(np.exp((low + high) / 2))


def sampled_error(logits: Tensor, labels: Tensor) -> float | None:
    """Return the expected calibration error of logits (n, K) and labels (n,)."""
    confidence, found = logits.float().softmax(1).max(1)
    error = CalibrationError()
    error.update(confidence.numpy(), (found == labels).numpy())
    return error.value()


def sampled_logits(
    segmenter: Segmenter,
    dataset: SegmentationDataset,
    vocabulary: Vocabulary,
    *,
    limit: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Tensor, Tensor, np.ndarray]:
    """Return logits at random labelled pixels of a data set's images, and the images' mean-pooled features.

    Words compete with the contrast vocabulary where the model was made for that. A pixel of the background class counts
    where the contrast is there to be right about it.

    Args:
        segmenter: Model, device and number format.
        dataset: Images with labels.
        vocabulary: Of `dataset_vocabulary`.
        limit: Take the first so many images only.
        progress: Called with (done, total) after each image.

    Returns:
        (n, K or K + 1) float32 logits, (n,) int64 labels among them, and (images, D) float32.
    """
    random = np.random.default_rng(0)
    total = len(dataset) if limit is None else min(limit, len(dataset))
    rows = segmenter.text_rows(vocabulary)
    classes = len(vocabulary)
    found: list[Tensor] = []
    labels: list[Tensor] = []
    pooled: list[np.ndarray] = []
    for done, sample in enumerate(read_ahead(dataset.__getitem__, range(total))):
        features = segmenter.encode_image(sample.image)
        logits = segmenter.decode(features, rows)[0]
        pooled.append(segmenter.pooled(features)[0])
        label = sample.label.astype(np.int64)
        if dataset.has_background:  # its words are classes 1.., and class 0 is the contrast's channel, the last
            label = np.where(label == 0, classes, np.where(label <= classes, label - 1, -1))
        y, x = np.nonzero((label >= 0) & (label < len(logits)))
        chosen = random.permutation(len(y))[:PIXELS]
        y, x = y[chosen], x[chosen]
        labels.append(torch.from_numpy(label[y, x]))
        place = np.stack([(x + 0.5) / label.shape[1], (y + 0.5) / label.shape[0]], -1) * 2 - 1
        grid = torch.from_numpy(place).to(logits)[None, None]
        sampled = F.grid_sample(logits[None], grid, mode="bilinear", padding_mode="border", align_corners=False)
        found.append(sampled[0, :, 0].T.cpu())
        if progress is not None:
            progress(done + 1, total)
    return torch.cat(found), torch.cat(labels), np.stack(pooled)
