"""Optical flow between neighboring frames, by which labels of one frame are looked up in the frame before."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ovsdino.io.video import import_cv2

__all__ = ["Motion", "motion", "warped"]

STILL = 1.0  # pixels a frame below which a pixel does not move
RETURN = 1.0  # pixels by which a point may miss itself on its way to the other frame and back


@dataclass(frozen=True)
class Motion:
    """Motion of a frame's pixels since the frame before.

    Attributes:
        back: (H, W, 2) float32, x and y in pixels from a pixel to its place in the frame before.
        reliable: (H, W) bool, the place is inside the image, and the flow from there leads back to the pixel.
    """

    back: np.ndarray
    reliable: np.ndarray

    @property
    def still(self) -> np.ndarray:
        """Mask (H, W) bool of what moves by less than a pixel."""
        found: np.ndarray = self.reliable & (np.hypot(self.back[..., 0], self.back[..., 1]) < STILL)
        return found


def motion(before: np.ndarray, now: np.ndarray) -> Motion:
    """Return the motion from one frame to the next by Dense Inverse Search (Kroeger et al., ECCV 2016), OpenCV's.

    A pixel is reliable where forward and backward flow cancel to less than a pixel; occlusions fail that.

    Args:
        before: (H, W, 3) uint8 RGB.
        now: The next frame, of the same size.

    Raises:
        OVSDinoError: OpenCV is not installed.
        ValueError: The sizes differ.
    """
    if before.shape != now.shape:
        raise ValueError(f"frames of {before.shape} and {now.shape}: expected one size")
    cv2 = import_cv2()
    search = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    first, second = (cv2.cvtColor(np.ascontiguousarray(frame), cv2.COLOR_RGB2GRAY) for frame in (before, now))
    back = search.calc(second, first, None)
    forward = search.calc(first, second, None)
    rows, columns, inside = _places(back)
    missed = np.linalg.norm(back + forward[rows, columns], axis=-1)
    return Motion(back=back, reliable=inside & (missed < RETURN))


def warped(labels: np.ndarray, moved: Motion) -> np.ndarray:
    """Return the labels (H, W) of the frame before at the places from which this frame's pixels came, the nearest."""
    rows, columns, _ = _places(moved.back)
    found: np.ndarray = labels[rows, columns]
    return found


def _places(back: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return rows and columns (H, W) that a flow leads to, the nearest pixels, and which of them are in the image."""
    height, width = back.shape[:2]
    rows = np.rint(np.arange(height)[:, None] + back[..., 1]).astype(np.int64)
    columns = np.rint(np.arange(width)[None] + back[..., 0]).astype(np.int64)
    inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    return rows.clip(0, height - 1), columns.clip(0, width - 1), inside
