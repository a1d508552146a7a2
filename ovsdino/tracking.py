"""A video's frames one after the other, each with a memory of the last: labels that do not flicker."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from ovsdino.errors import OVSDinoError
from ovsdino.io.images import ImageLike
from ovsdino.io.video import Frames, read_frames
from ovsdino.models.memory import KeyFrames, Memory, MemoryConfig, carried, remembered
from ovsdino.models.ovsdino import OVSDINO, ImageFeatures
from ovsdino.results import Segmentation
from ovsdino.vocabulary import LEAST_CERTAINTY, LEAST_SHARE, Classes, Vocabulary

__all__ = ["Recall", "Tracker", "video_settings"]


class Recall(Protocol):
    """A memory as the network asks it, before and after a frame is encoded."""

    def carried(self, image: Tensor) -> tuple[ImageFeatures, Tensor] | None:
        """Return the last key frame's features and this frame's logits (1, K, 4h, 4w); None: it must be encoded.

        Args:
            image: (1, 3, H, W), normalized.
        """

    def joined(self, features: ImageFeatures, logits: Tensor) -> Tensor:
        """Return the logits (1, K, 4h, 4w) that are labeled, from an encoded frame's features and its own logits."""


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
        key_frames: Which frames are encoded whole; False encodes all, True takes the defaults. Without a memory, all.

    Attributes:
        encoded: Whether the last frame was encoded whole.
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
        key_frames: KeyFrames | bool = False,
    ) -> None:
        if memory and (model.decoder is None or not hasattr(model.decoder, "score_attention")):
            raise OVSDinoError(f"{model.config.name}: no structure to remember by: load a trained decoder")
        self.config = MemoryConfig() if memory is True else memory or None
        self.key_frames = KeyFrames() if key_frames is True else key_frames or KeyFrames(every=1)
        self._model, self._segment = model, segment
        self._vocabulary = Vocabulary.of(classes)
        self.reset()

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
        self.level, self.encoded = 0.0, True
        self._memory: Memory | None = None
        self._key: ImageFeatures | None = None
        self._since = 0  # frames from the key frame on

    def segment(self, frame: ImageLike) -> Segmentation:
        """Label the next frame.

        Args:
            frame: See `ovsdino.Segmenter.segment`.

        Raises:
            OVSDinoError: The frame cannot be segmented; the memory is forgotten, and the next one begins anew.
        """
        try:
            return self._segment(frame, self._vocabulary, self if self.config else None)
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

    def carried(self, image: Tensor) -> tuple[ImageFeatures, Tensor] | None:
        """See `Recall.carried`; None for a key frame."""
        key, memory, decoder = self._key, self._memory, self._model.decoder
        if key is None or memory is None or self._since >= self.key_frames.every - 1:
            return None
        assert decoder is not None and key.structure is not None
        patch = self._model.stride_multiple
        if [side * 4 // patch for side in image.shape[2:]] != [*memory.logits.shape[2:]]:
            return None
        guide = self._model.guide_again(image, key.structure)
        found, level = carried(decoder.score_attention.embed(guide.float()), memory, self.config)
        if not float(level) >= self.key_frames.level or not torch.isfinite(found.logits).all():
            return None
        self._memory, self.level, self.encoded = found, float(level), False
        self._since += 1
        return key, found.logits

    def joined(self, features: ImageFeatures, logits: Tensor) -> Tensor:
        """See `Recall.joined`; the frame is remembered."""
        assert self._model.decoder is not None and features.structure is not None
        if not torch.isfinite(logits).all():
            self.reset()  # who labels them says so
            return logits
        affinity = self._model.decoder.score_attention.embed(features.structure.guide.float())
        last = self._memory
        if last is not None and (last.logits.shape != logits.shape or last.affinity.shape != affinity.shape):
            last = None
        self._memory, level = remembered(logits, affinity, last, self.config)
        self.level, self.encoded = float(level), True
        self._key, self._since = features, 0
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
