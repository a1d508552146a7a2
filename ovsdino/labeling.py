"""From the logits of an image to its labels and confidences, as a call to `Segmenter` asks for them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ovsdino.edge.labels import lead_of, leave_out_unfound
from ovsdino.errors import OVSDinoError
from ovsdino.ops import upsample_argmax
from ovsdino.vocabulary import Vocabulary, label_dtype

__all__ = ["Request", "confidence_of", "label_logits", "sure_shares"]


@dataclass(frozen=True, kw_only=True)
class Request:
    """A call's options, see `Segmenter.segment`; `stride` is 0 without a window, and `partition` is settled."""

    vocabulary: Vocabulary
    partition: bool
    threshold: float | None
    window: int | None
    stride: int
    scores: bool
    least_share: float
    least_certainty: float
    confidence: bool = False
    prior: Tensor | None = None


def label_logits(logits: Tensor, size: tuple[int, int], wish: Request) -> tuple[np.ndarray, tuple[float, ...] | None]:
    """Return labels (H, W) of one image's logits (1, K or K + 1, h, w), and the mean confidence of each class.

    Raises:
        OVSDinoError: A logit is NaN or infinite, which would give every pixel one label.
    """
    low, high = torch.aminmax(logits)  # both are NaN where one logit is
    if not (torch.isfinite(low) & torch.isfinite(high)):
        raise OVSDinoError(
            "the network gives NaN or infinite logits: its weights are damaged, or the dtype overflows; use "
            "dtype float32 (--dtype float32) or fetch the weights again"
        )
    classes = len(wish.vocabulary)
    if wish.scores:
        labels, confidence = upsample_argmax(logits, size, wish.threshold, confidence=True)
    else:
        labels = upsample_argmax(logits, size, wish.threshold)
    if not wish.partition:  # below the threshold is the label after the contrast's
        labels = labels.clamp(max=classes).to(getattr(torch, label_dtype(classes)))
    means = None
    if wish.scores:
        flat = labels.flatten().int()
        counts = torch.bincount(flat, minlength=classes)[:classes]
        sums = torch.bincount(flat, weights=confidence.flatten().double(), minlength=classes)[:classes]
        means = tuple((sums / counts.clamp(min=1)).tolist())
    found = labels[0].cpu().numpy()
    if wish.partition:
        return found, means
    sure = sure_shares(logits, wish.least_certainty) if wish.least_certainty > 0 else None
    kept = leave_out_unfound(found, classes, wish.least_share, sure)
    return found, means and tuple(mean if there else 0.0 for mean, there in zip(means, kept, strict=True))


def sure_shares(logits: Tensor, certainty: float) -> np.ndarray:
    """Return `ovsdino.edge.labels.sure_shares` of one image's logits (1, K + 1, h, w), computed where they are."""
    best, first = logits[0].max(0)
    sure = first[best - logits[0, -1] >= lead_of(certainty)]
    counts = torch.bincount(sure, minlength=logits.shape[1])[:-1]
    shares: np.ndarray = counts.cpu().numpy() / first.numel()
    return shares


def confidence_of(logits: Tensor, size: tuple[int, int]) -> np.ndarray:
    """Return the largest softmax probability of each pixel, (H, W) float16."""
    found: np.ndarray = upsample_argmax(logits, size, confidence=True)[1][0].half().cpu().numpy()
    return found
