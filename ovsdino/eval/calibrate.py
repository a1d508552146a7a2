"""Choose the constant score of a protocol's background by image-level words, for a decoder that changed the scores."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from ovsdino.errors import OVSDinoError
from ovsdino.eval.evaluate import dataset_vocabulary, protocol_text
from ovsdino.eval.protocol import Protocol, score_map
from ovsdino.io.ahead import read_ahead

if TYPE_CHECKING:
    from ovsdino.data.segmentation import SegmentationDataset
    from ovsdino.pipeline import Segmenter

__all__ = ["LEAST", "Calibration", "best_threshold", "calibrate", "shown_below"]

LEAST = 0.05  # share of an image that a word must cover to be shown; docs/decisions.md has what others gave
NEVER = -np.inf


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """The background's score under which label maps show the words of their images, and no others, best.

    Attributes:
        background: That score.
        f1: Of the words that label maps show at it, over all pairs of an image and a word.
        before: The protocol's own score.
        f1_before: F1 at that.
        images: How many were read.
    """

    background: float
    f1: float
    before: float
    f1_before: float
    images: int

    def to_dict(self) -> dict[str, Any]:
        """Return it ready for JSON, rounded to five digits."""
        return {key: round(value, 5) if isinstance(value, float) else value for key, value in asdict(self).items()}


def calibrate(
    segmenter: Segmenter,
    dataset: SegmentationDataset,
    protocol: Protocol,
    *,
    class_names: Mapping[str, str | Sequence[str]] | None = None,
    limit: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Calibration:
    """Find the background's score on images whose words are known.

    A pixel is background where no word's score exceeds the constant. So a word is shown in an image, on `LEAST` of
    its pixels or more, at every constant below a score of its own (`shown_below`). Of all constants the one is taken
    at which the shown words agree best with the image's words. Of the labels only that is read: which classes an
    image has, not where.

    Args:
        segmenter: Model, device and number format.
        dataset: Training images with a background class.
        protocol: The protocol to calibrate, with a background.
        class_names: Text, or texts to average, in place of a class's own name.
        limit: Take the first so many images only.
        progress: Called with (done, total) after each image.

    Raises:
        OVSDinoError: The data set or the protocol has no background, no image has a word, or an image is bad.
    """
    if limit is not None and limit < 1:
        raise OVSDinoError(f"limit is {limit}: expected at least 1")
    if not dataset.has_background or protocol.background is None:
        raise OVSDinoError("this data set has no background class, so there is nothing to calibrate")
    vocabulary = dataset_vocabulary(dataset.names, class_names or {}, has_background=True)
    text = protocol_text(segmenter, vocabulary, protocol)
    without = replace(protocol, background=None)
    total = len(dataset) if limit is None else min(limit, len(dataset))
    shown, there = np.empty((total, len(vocabulary))), np.zeros((total, len(vocabulary)), bool)
    for index, sample in enumerate(read_ahead(dataset.__getitem__, range(total))):
        scores = score_map(
            segmenter.model, sample.image, text, without, batches=segmenter.batches, dtype=segmenter.dtype
        )
        shown[index] = shown_below(scores)
        classes = np.unique(sample.label)
        there[index, classes[(classes > 0) & (classes < len(dataset.names))] - 1] = True
        if progress is not None:
            progress(index + 1, total)
    if not there.any():
        raise OVSDinoError(f"none of the {total} images has a word: there is nothing to calibrate by")
    background = best_threshold(shown, there)
    return Calibration(
        background=background,
        f1=_f1(shown, there, background),
        before=protocol.background,
        f1_before=_f1(shown, there, protocol.background),
        images=total,
    )


def shown_below(scores: Tensor, least: float = LEAST) -> np.ndarray:
    """Return for each word the background's score below which the label map shows it.

    Args:
        scores: (K, h, w).
        least: Share of the pixels that a word must cover to be shown.

    Returns:
        (K,) float64; -inf for a word that is largest on too few pixels.
    """
    best, label = (part.flatten().cpu().numpy() for part in scores.float().max(0))
    needed = max(1, round(least * len(best)))
    found = np.full(len(scores), NEVER)
    for word in np.unique(label):
        own = best[label == word]
        if len(own) >= needed:
            found[word] = np.partition(own, -needed)[-needed]
    return found


def best_threshold(shown: np.ndarray, there: np.ndarray) -> float:
    """Return the threshold at which `shown > threshold` has the best F1 against `there`; both (images, words).

    It lies halfway between two of the values.

    Raises:
        OVSDinoError: Nothing can be shown.
    """
    values = np.unique(shown[np.isfinite(shown)])[::-1]
    if not len(values):
        raise OVSDinoError("no image shows any word, whatever the threshold: these are not scores")
    flat, true = shown.ravel(), there.ravel()
    order = np.argsort(-flat, kind="stable")
    hits = np.concatenate([[0], np.cumsum(true[order])])
    taken = np.searchsorted(-flat[order], -values, side="right")  # how many pairs are shown from each value on
    f1 = 2 * hits[taken] / (taken + true.sum())
    best = int(f1.argmax())
    below = values[best + 1] if best + 1 < len(values) else values[best] - 1e-3
    return float((values[best] + below) / 2)


def _f1(shown: np.ndarray, there: np.ndarray, threshold: float) -> float:
    found = shown > threshold
    return float(2 * (found & there).sum() / max(1, found.sum() + there.sum()))
