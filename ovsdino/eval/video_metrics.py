"""Scores of a labeled video: how right the labels are, and how steady."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ovsdino.eval.flow import Motion, motion, warped
from ovsdino.eval.metrics import Confusion, SegmentationMetrics

__all__ = ["Flicker", "VideoConsistency", "VideoMetrics", "VideoScores"]

LENGTHS = (8, 16)  # frames of VSPW's windows


class VideoConsistency:
    """VC_n of VSPW (Miao et al., CVPR 2021, "VSPW: A Large-scale Dataset for Video Scene Parsing in the Wild").

    In a window of n consecutive frames let C be the pixels whose true label never changes. VC_n is the share of C at
    which the predicted label never changes either, right or wrong. mVC_n is the mean over all windows of all clips.
    The paper takes all n-frame windows of a clip, the authors' script leaves out the last one; this is the paper's.
    Pixels that are not labeled belong to no C, and a window without C is left out.

    Args:
        frames: n, at least 2.
        ignore_index: Label of pixels without one.
    """

    def __init__(self, frames: int, ignore_index: int = 255) -> None:
        if frames < 2:
            raise ValueError(f"frames is {frames}: expected at least 2")
        self.frames, self.ignore_index = frames, ignore_index
        self.total, self.windows = 0.0, 0
        self._last: tuple[np.ndarray, np.ndarray] | None = None

    def start(self) -> None:
        """Begin a new clip."""
        self._last = None

    def update(self, predicted: np.ndarray, target: np.ndarray) -> None:
        """Add the next frame's labels, both (H, W) integers."""
        labeled = target != self.ignore_index
        if self._last is None:
            self._runs = [np.ones(target.shape, np.int64), labeled.astype(np.int64)]
        else:
            for run, now, before in zip(self._runs, (predicted, target), self._last, strict=True):
                run[:] = np.where(now == before, run + 1, 1)
            self._runs[1] *= labeled
        self._last = predicted.copy(), target.copy()
        same = self._runs[1] >= self.frames
        if same.any():
            self.total += float((self._runs[0][same] >= self.frames).mean())
            self.windows += 1

    def mean(self) -> float | None:
        """Return mVC_n in 0..1, or None without a window."""
        return self.total / self.windows if self.windows else None


@dataclass(frozen=True, kw_only=True)
class Flicker:
    """Shares of pixels whose label differs from the frame before, in 0..1; None where there are no such pixels.

    Attributes:
        outside: At the same pixel, where the true label stays: every change is an error in one of the two frames.
        inside: At the same pixel, where the true label changes: what moves, as far as the labels can tell.
        still: At the same pixel, where the image moves by less than a pixel. No labels are needed.
        moving: At the same pixel, elsewhere.
        along_flow: At the pixel from which the flow comes, where it is reliable: motion of the camera cancels.
    """

    outside: float | None
    inside: float | None
    still: float | None
    moving: float | None
    along_flow: float | None


@dataclass(frozen=True, kw_only=True)
class VideoScores:
    """Scores of all clips in 0..1; None without anything to score.

    Attributes:
        miou: See `ovsdino.eval.metrics.Summary`, over all frames.
        boundary_f1: Likewise.
        iou: Likewise.
        mvc8: mVC_8, see `VideoConsistency`.
        mvc16: mVC_16.
        temporal_consistency: mIoU of the labels of the frame before, moved along the flow, and this frame's, where the
            flow is reliable (Liu et al., ECCV 2020), summed over all frames.
        flicker: See `Flicker`.
        frames: Number of frames.
        pairs: Number of neighboring frames.
    """

    miou: float | None
    boundary_f1: float | None
    iou: dict[str, float | None]
    mvc8: float | None
    mvc16: float | None
    temporal_consistency: float | None
    flicker: Flicker
    frames: int
    pairs: int


class VideoMetrics:
    """Add up the scores of labeled clips, frame by frame.

    Args:
        names: The K class names, in label order; a prediction of K is "none of them".
        ignore_index: Label of pixels without one.
        has_background: Class 0 is background.
    """

    def __init__(self, names: Sequence[str], ignore_index: int = 255, *, has_background: bool = False) -> None:
        self.segmentation = SegmentationMetrics(names, ignore_index, has_background=has_background)
        self.consistency = [VideoConsistency(length, ignore_index) for length in LENGTHS]
        self._agreement = Confusion(len(names) + 1, len(names) + 1)
        self._changes = np.zeros((5, 2), np.int64)  # changed and all pixels, in the order of `Flicker`
        self._frames = self._pairs = 0
        self._last: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None

    def start(self) -> None:
        """Begin a new clip: its first frame has no frame before it."""
        self._last = None
        for one in self.consistency:
            one.start()

    def update(
        self, image: np.ndarray, predicted: np.ndarray, target: np.ndarray, moved: Motion | None = None
    ) -> Motion | None:
        """Add the next frame of a clip, and return the motion since the frame before; None for a first one.

        Args:
            image: (H, W, 3) uint8 RGB.
            predicted: (H, W) integers in 0..K.
            target: (H, W) integers in 0..K-1, or `ignore_index`.
            moved: The motion from the frame before, where it is known already.

        Raises:
            ValueError: A shape or a value does not fit.
        """
        self.segmentation.update(predicted, target)
        for one in self.consistency:
            one.update(predicted, target)
        self._frames += 1
        if self._last is None:
            moved = None
        else:
            image_before, before, target_before = self._last
            moved = moved or motion(image_before, image)
            self._compare(before, target_before, predicted, target, moved)
        self._last = image, predicted.copy(), target
        return moved

    def _compare(
        self,
        before: np.ndarray,
        target_before: np.ndarray,
        predicted: np.ndarray,
        target: np.ndarray,
        moved: Motion,
    ) -> None:
        ignored = self.segmentation.confusion.ignore_index
        labeled = (target != ignored) & (target_before != ignored)
        stays = labeled & (target == target_before)
        changed, along = predicted != before, warped(before, moved)
        places = (stays, labeled & ~stays, moved.still, ~moved.still)
        rows = [(int((changed & place).sum()), int(place.sum())) for place in places]
        rows.append((int(((along != predicted) & moved.reliable).sum()), int(moved.reliable.sum())))
        self._changes += np.array(rows)
        classes = self._agreement.classes
        self._agreement.update(predicted.astype(np.int64), np.where(moved.reliable, along, classes).astype(np.int64))
        self._pairs += 1

    def scores(self) -> VideoScores:
        """Return the scores of all frames so far."""
        summary = self.segmentation.summary()
        shares = [float(changed / count) if count else None for changed, count in self._changes]
        vc8, vc16 = (one.mean() for one in self.consistency)
        outside, inside, still, moving, along = shares
        return VideoScores(
            miou=summary.miou,
            boundary_f1=summary.boundary_f1,
            iou=summary.iou,
            mvc8=vc8,
            mvc16=vc16,
            temporal_consistency=self._agreement.miou() if self._pairs else None,
            flicker=Flicker(outside=outside, inside=inside, still=still, moving=moving, along_flow=along),
            frames=self._frames,
            pairs=self._pairs,
        )
