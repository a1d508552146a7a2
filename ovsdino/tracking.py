"""A video's frames one after the other, each with a memory of the last: labels that do not flicker."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from ovsdino.errors import OVSDinoError
from ovsdino.io.images import ImageLike
from ovsdino.io.video import Frames, read_frames
from ovsdino.models.memory import Memory, MemoryConfig, remembered
from ovsdino.models.ovsdino import OVSDINO, ImageFeatures
from ovsdino.results import Segmentation
from ovsdino.vocabulary import LEAST_CERTAINTY, LEAST_SHARE, Classes, Vocabulary

__all__ = ["Recall", "Tracker", "video_settings"]

Recall = Callable[[ImageFeatures, Tensor], Tensor]
"""From a frame's features and its own logits to those that are labeled."""


class Tracker:
    """Segment the frames of one video in their order (`ovsdino.models.memory`).

    The memory is forgotten at a cut, when the words change, when the size changes, and when a frame cannot be
    segmented. The labels of the next frame are then those of `Segmenter.segment`. For several videos at once take a
    tracker for each; a tracker is not to be shared between threads.

    Args:
        model: The network, with a decoder.
        segment: Segments an image with words and, where given, a `Recall`.
        classes: See `Vocabulary.of`.
        memory: Settings; True takes the defaults, and False remembers nothing.

    Attributes:
        level: How well the last frame was known, 0..1, see `remembered`; below the settings' `cut` it began a scene.

    Raises:
        OVSDinoError: The model has no structure to remember by, or the class list is not valid.
    """

    def __init__(
        self,
        model: OVSDINO,
        segment: Callable[[ImageLike, Vocabulary, Recall | None], Segmentation],
        classes: Classes,
        memory: MemoryConfig | bool = True,
    ) -> None:
        if memory and (model.decoder is None or not hasattr(model.decoder, "score_attention")):
            raise OVSDinoError(f"{model.config.name}: no structure to remember by: load a trained decoder")
        self.config = MemoryConfig() if memory is True else memory or None
        self.level = 0.0
        self._model, self._segment = model, segment
        self._vocabulary = Vocabulary.of(classes)
        self._memory: Memory | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """The classes in use, in the order of the labels."""
        return tuple(self._vocabulary.names)

    def set_classes(self, classes: Classes) -> None:
        """Look for other words from the next frame on; the memory of the old ones is forgotten.

        Raises:
            OVSDinoError: The class list is not valid.
        """
        self._vocabulary = Vocabulary.of(classes)
        self.reset()

    def reset(self) -> None:
        """Forget the frames so far."""
        self._memory, self.level = None, 0.0

    def segment(self, frame: ImageLike) -> Segmentation:
        """Label the next frame.

        Args:
            frame: See `ovsdino.Segmenter.segment`.

        Raises:
            OVSDinoError: The frame cannot be segmented; the memory is forgotten, and the next one begins anew.
        """
        try:
            return self._segment(frame, self._vocabulary, self._recall if self.config else None)
        except BaseException:
            self.reset()
            raise

    def stream(self, frames: Frames) -> Iterator[Segmentation]:
        """Yield the result of each frame as it comes; nothing is read ahead.

        Args:
            frames: See `ovsdino.io.video.read_frames`.

        Raises:
            OVSDinoError: The frames, or one of them, cannot be read.
        """
        return map(self.segment, read_frames(frames))

    def _recall(self, features: ImageFeatures, logits: Tensor) -> Tensor:
        """Return the steady logits (1, K, 4h, 4w) of a frame's own, and remember them."""
        assert self._model.decoder is not None and features.structure is not None
        if not torch.isfinite(logits).all():
            self.reset()  # who labels them says so
            return logits
        affinity = self._model.decoder.score_attention.embed(features.structure.guide.float())
        last = self._memory
        if last is not None and (last.logits.shape != logits.shape or last.affinity.shape != affinity.shape):
            last = None
        self._memory, level = remembered(logits, affinity, last, self.config)
        self.level = float(level)
        return self._memory.logits


def video_settings(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of `Segmenter.segment` that a video has, the given ones in place of their defaults.

    Raises:
        OVSDinoError: A name is none of them.
    """
    settings: dict[str, Any] = {"background": None, "scores": True, "partition": None, "confidence": False}
    settings |= {"least_share": LEAST_SHARE, "least_certainty": LEAST_CERTAINTY}
    if unknown := sorted(options.keys() - settings.keys()):
        raise OVSDinoError(f"{unknown[0]} is not an option of a video: expected one of {', '.join(settings)}")
    return settings | dict(options)
