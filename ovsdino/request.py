"""The options of a call to a segmenter, checked once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypedDict

from torch import Tensor

from ovsdino.errors import OVSDinoError
from ovsdino.models.ovsdino import OVSDINO
from ovsdino.text_banks import TextBanks
from ovsdino.tracking import Recall
from ovsdino.vocabulary import LEAST_CERTAINTY, LEAST_SHARE, Classes, Vocabulary, background_threshold
from ovsdino.windows import window_stride

__all__ = ["Request", "SegmentOptions", "View", "check_short_side", "make_request", "make_view"]


class SegmentOptions(TypedDict, total=False):
    """The options of `ovsdino.Segmenter.segment`, which describes them."""

    background: float | bool | None
    window: int | None
    stride: int | None
    scores: bool
    confidence: bool
    partition: bool | None
    least_share: float
    least_certainty: float
    short_side: int | None
    bgr: bool
    prior: Tensor | None
    tau: float


@dataclass(frozen=True, kw_only=True)
class View:
    """The way of an image into the network, see `Segmenter.segment`; `stride` is 0 without a window."""

    window: int | None
    stride: int
    short_side: int | None


@dataclass(frozen=True, kw_only=True)
class Request(View):
    """A call's options, see `Segmenter.segment`; `partition` is settled."""

    vocabulary: Vocabulary
    partition: bool
    threshold: float | None
    scores: bool
    least_share: float
    least_certainty: float
    bgr: bool = False
    confidence: bool = False
    prior: Tensor | None = None
    recall: Recall | None = None

    @property
    def offset(self) -> dict[str, Any]:
        """The prior as `OVSDINO.decode` takes it; its strength is in it already."""
        return {} if self.prior is None else {"prior": self.prior, "tau": 1.0}


def check_short_side(model: OVSDINO, short_side: int) -> int:
    """Return the size of an input's short side.

    Raises:
        OVSDinoError: It is out of range.
    """
    if not model.stride_multiple <= short_side <= 8192:
        raise OVSDinoError(f"short_side is {short_side}: expected {model.stride_multiple}..8192 pixels")
    return short_side


def make_view(model: OVSDINO, window: int | None, stride: int | None, short_side: int | None) -> View:
    """Check how an image goes into the network.

    Args:
        model: Takes it.
        window: See `ovsdino.Segmenter.segment`, as the rest.
        stride: See above.
        short_side: See above.

    Raises:
        OVSDinoError: A number is not valid.
    """
    return View(
        window=window,
        stride=window_stride(window, stride, model.stride_multiple, model.config.name),
        short_side=None if short_side is None else check_short_side(model, short_side),
    )


def make_request(
    banks: TextBanks,
    classes: Classes,
    *,
    background: float | bool | None = None,
    window: int | None = None,
    stride: int | None = None,
    scores: bool = True,
    confidence: bool = False,
    partition: bool | None = None,
    least_share: float = LEAST_SHARE,
    least_certainty: float = LEAST_CERTAINTY,
    short_side: int | None = None,
    bgr: bool = False,
    prior: Tensor | None = None,
    tau: float = 0.5,
) -> Request:
    """Check the options of a call.

    Args:
        banks: The words of the model, and the model.
        classes: See `ovsdino.Segmenter.segment`, as the rest.
        background: See above.
        window: See above.
        stride: See above.
        scores: See above.
        confidence: See above.
        partition: See above.
        least_share: See above.
        least_certainty: See above.
        short_side: See above.
        bgr: See above.
        prior: See above.
        tau: See above.

    Raises:
        OVSDinoError: The classes or a number is not valid.
    """
    vocabulary = Vocabulary.of(classes)
    whole = banks.partition(partition, vocabulary)
    if not 0 <= least_share < 1:
        raise OVSDinoError(f"least_share is {least_share}: expected a share of the image from 0 to below 1")
    if not 0 <= least_certainty < 1:
        raise OVSDinoError(f"least_certainty is {least_certainty}: expected a probability from 0 to below 1")
    return Request(
        **vars(make_view(banks.model, window, stride, short_side)),
        vocabulary=vocabulary,
        partition=whole,
        threshold=background_threshold(background, vocabulary.names, whole),
        scores=scores,
        least_share=least_share,
        least_certainty=least_certainty,
        bgr=bgr,
        confidence=confidence,
        prior=None if prior is None else prior.to(banks.device).float() ** tau,
    )
