"""A video's frames one after the other, each with a memory of the last: labels that do not flicker."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from ovsdino.errors import OVSDinoError
from ovsdino.flow import Flow
from ovsdino.io.images import ImageLike
from ovsdino.io.video import Frames, read_frames
from ovsdino.models.memory import KeyFrames, Memory, MemoryConfig, moved, remembered
from ovsdino.models.ovsdino import OVSDINO, ImageFeatures
from ovsdino.results import Segmentation
from ovsdino.vocabulary import LEAST_CERTAINTY, LEAST_SHARE, Classes, Vocabulary

__all__ = ["Recall", "Tracker", "video_settings"]


class Recall(Protocol):
    """A memory as the network asks it, before and after a frame is encoded."""

    def carried(self, frame: np.ndarray, size: tuple[int, int]) -> tuple[ImageFeatures, Tensor] | None:
        """Return the last key frame's features and this frame's logits (1, K, 4h, 4w); None: it must be encoded.

        Args:
            frame: (H, W, 3) uint8 RGB.
            size: (height, width) of the network's input.
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
        key_frames: Which frames are encoded; False encodes all, True takes the defaults. Without a memory, all.

    Attributes:
        encoded: Whether the last frame was encoded.
        level: How well the last frame was known, 0..1, see `remembered`; below the settings' `cut` it began a scene. Of
            one that was not encoded the share that the flow explained.

    Raises:
        OVSDinoError: The model has no structure to remember by, the class list is not valid, OpenCV is not installed,
            or key frames are asked for without the flow.
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
        if self.config and self.key_frames.every > 1 and not self.config.flow:
            raise OVSDinoError("key frames without the flow: what lies between them is moved along it")
        self._flow = Flow() if self.config and self.config.flow else None
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
        if self._flow is not None:
            self._flow.reset()

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

    def carried(self, frame: np.ndarray, size: tuple[int, int]) -> tuple[ImageFeatures, Tensor] | None:
        """See `Recall.carried`; None for a key frame. The memory has then moved along the flow."""
        if self._flow is None:
            return None
        grid = size[0] * 4 // self._model.stride_multiple, size[1] * 4 // self._model.stride_multiple
        found, memory = self._flow.follow(frame, size, grid), self._memory
        if found is None or memory is None or self._key is None:
            return None
        places = torch.from_numpy(found.places)[None].to(memory.logits.device)
        self._memory = moved(memory, places)
        if self._since >= self.key_frames.every - 1 or found.explained < self.key_frames.level:
            return None
        self.level, self.encoded = found.explained, False
        self._since += 1
        return self._key, self._memory.logits

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
