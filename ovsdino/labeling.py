"""From the logits of an image to its labels and confidences, as a call to `Segmenter` asks for them."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ovsdino.edge.labels import lead_of, leave_out_unfound
from ovsdino.errors import OVSDinoError
from ovsdino.label_maps import count_labels
from ovsdino.models.survivors import Survivors
from ovsdino.ops import upsample_argmax
from ovsdino.request import Request
from ovsdino.results import Segmentation
from ovsdino.timing import Clock
from ovsdino.vocabulary import label_dtype

__all__ = ["confidence_of", "label_logits", "result_of", "sure_shares"]

# Up to so many pixels each one's confidence counts in a class's mean; of a larger image at most so many of a grid: of
# 12 megapixels every 15th. The confidences of all of 150 words took as long as the rest together.
EXACT, SCORED = 1 << 18, 1 << 16


def result_of(
    maps: Tensor | Survivors,
    pixels: np.ndarray,
    wish: Request,
    clock: Clock,
    *,
    familiarity: tuple[float, ...],
    novelty: float | None,
    source: str | None,
) -> Segmentation:
    """Return the result of one image.

    Args:
        maps: Its logits, see `label_logits`.
        pixels: (H, W, 3) uint8 RGB, which the result keeps.
        wish: The call's options.
        clock: Times the stages; the result has all that it counted.
        familiarity: See `Segmentation`.
        novelty: See `Segmentation`.
        source: See `Segmentation`.

    Raises:
        OVSDinoError: See `label_logits`.
    """
    size = pixels.shape[:2]
    with clock("postprocess"):
        found, means = label_logits(maps, size, wish)
    certainty = None
    if wish.confidence:
        with clock("confidence"):
            certainty = confidence_of(maps, size)
    return Segmentation(
        labels=found,
        names=wish.vocabulary.names,
        scores=means,
        familiarity=familiarity,
        confidence=certainty,
        novelty=novelty,
        background=wish.threshold is not None or not wish.partition,
        image=pixels,
        source=source,
        palette=wish.vocabulary.colors,
        stages_ms=clock.ms,
    )


def label_logits(
    logits: Tensor | Survivors, size: tuple[int, int], wish: Request
) -> tuple[np.ndarray, tuple[float, ...] | None]:
    """Return labels (H, W) of one image's logits (1, K or K + 1, h, w), and the mean confidence of each class.

    Of an image of more than `EXACT` pixels the means are taken over a grid of them.

    Raises:
        OVSDinoError: A logit is NaN or infinite, which would give every pixel one label.
    """
    survivors = logits if isinstance(logits, Survivors) else None
    maps = logits.logits if isinstance(logits, Survivors) else logits
    low, high = torch.aminmax(maps)  # both are NaN where one logit is
    if not (torch.isfinite(low) & torch.isfinite(high) & (survivors is None or torch.isfinite(survivors.total).all())):
        raise OVSDinoError(
            "the network gives NaN or infinite logits: its weights are damaged, or the dtype overflows; use "
            "dtype float32 (--dtype float32) or fetch the weights again"
        )
    classes = len(wish.vocabulary)
    step = _step(size) if wish.threshold is None else 1  # the threshold takes every pixel's confidence anyway
    certainty = None
    if wish.scores and step == 1 and survivors is None:
        labels, certainty = upsample_argmax(maps, size, wish.threshold, confidence=True)
    elif survivors is None:
        labels = upsample_argmax(maps, size, wish.threshold)
    else:
        numbers = survivors.classes.to(getattr(torch, label_dtype(survivors.maps)))
        labels = numbers[upsample_argmax(maps, size).int()]
        if wish.threshold is not None:
            assert survivors.confidence is not None
            labels.masked_fill_(survivors.confidence < wish.threshold, survivors.maps)
    if not wish.partition:  # below the threshold is the label after the contrast's
        labels = labels.clamp(max=classes).to(getattr(torch, label_dtype(classes)))
    found = labels[0].cpu().numpy()
    if wish.partition:
        kept = count_labels(found, classes) > 0
    else:
        sure = sure_shares(logits, wish.least_certainty) if wish.least_certainty > 0 else None
        kept = leave_out_unfound(found, classes, wish.least_share, sure)
    if not wish.scores:
        return found, None
    if survivors is not None:
        certainty = survivors.confidence
        if certainty is None:
            certainty = (maps.amax(1) - survivors.total).exp()
    elif certainty is None:
        certainty = upsample_argmax(maps, tuple(-(-side // step) for side in size), confidence=True)[1]
    return found, _means(labels[0], certainty[0], torch.from_numpy(kept).to(labels.device))


def _step(size: tuple[int, int]) -> int:
    """Return the odd step of the grid on which an image's confidences are taken; 1 for all pixels."""
    if size[0] * size[1] <= EXACT:
        return 1
    step = 3
    while -(-size[0] // step) * -(-size[1] // step) > SCORED:
        step += 2
    return step


def _means(labels: Tensor, certainty: Tensor, kept: Tensor) -> tuple[float, ...]:
    """Return the mean confidence of each class over the pixels of labels (H, W) that a grid (h, w) has confidences of.

    A class that has pixels and none on the grid takes those that are nearest to its own. One that is not kept has 0.

    Args:
        labels: (H, W) integers 0..K.
        certainty: (h, w) float32.
        kept: (K,) bool, of the classes that have pixels.
    """
    classes = len(kept)
    places = [
        ((torch.arange(few, device=labels.device) + 0.5) * (many / few)).long()
        for few, many in zip(certainty.shape, labels.shape, strict=True)
    ]
    seen = labels if certainty.shape == labels.shape else labels[places[0]][:, places[1]]
    counts, sums = _added(seen, certainty, classes)
    missing = (counts == 0) & kept
    if missing.any():
        table = torch.cat([missing, missing.new_zeros(int(labels.max()) + 1)])
        rows, columns = torch.nonzero(table[labels.int()], as_tuple=True)
        near = certainty[rows * certainty.shape[0] // len(labels), columns * certainty.shape[1] // labels.shape[1]]
        more, further = _added(labels[rows, columns], near, classes)
        counts, sums = torch.where(missing, more, counts), torch.where(missing, further, sums)
    return tuple((sums / counts.clamp(min=1)).where(kept, sums.new_zeros(())).tolist())


def _added(labels: Tensor, certainty: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Return each class's pixels, and the sum of their confidences in float64."""
    flat = labels.flatten()
    counts = torch.bincount(flat, minlength=classes)[:classes]
    return counts, torch.bincount(flat, weights=certainty.flatten().double(), minlength=classes)[:classes]


def sure_shares(logits: Tensor | Survivors, certainty: float) -> np.ndarray:
    """Return `ovsdino.edge.labels.sure_shares` of one image's logits (1, K + 1, h, w), computed where they are."""
    maps = logits.logits if isinstance(logits, Survivors) else logits
    best, first = maps[0].max(0)
    sure = first[best - maps[0, -1] >= lead_of(certainty)]
    if isinstance(logits, Survivors):
        sure = logits.classes[sure]
    counts = torch.bincount(sure, minlength=logits.maps if isinstance(logits, Survivors) else maps.shape[1])[:-1]
    shares: np.ndarray = counts.cpu().numpy() / first.numel()
    return shares


def confidence_of(logits: Tensor | Survivors, size: tuple[int, int]) -> np.ndarray:
    """Return the largest softmax probability of each pixel, (H, W) float16."""
    certainty = (
        logits.confidence if isinstance(logits, Survivors) else upsample_argmax(logits, size, confidence=True)[1]
    )
    assert certainty is not None
    found: np.ndarray = certainty[0].half().cpu().numpy()
    return found
