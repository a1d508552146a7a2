"""Regions of a segmentation: the pixels of a class or one connected part of them, as a mask, a box and polygons."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from ovsdino.errors import OVSDinoError

__all__ = ["Region", "connected_parts"]

EIGHT = np.ones((3, 3), np.uint8)  # pixels that touch at a corner are connected, as OpenCV's contours take them


@dataclass(frozen=True, kw_only=True, eq=False)
class Region:
    """The pixels of a class, or one connected part of them.

    Attributes:
        index: Of the class in `Segmentation.names`.
        name: Of the class.
        score: Mean confidence (0..1) of its pixels where those are known, else of the class; None if neither is.
        box: (left, top, right, bottom) in pixels of the image; right and bottom are the first beyond it.
        inside: (bottom - top, right - left) bool, the region's pixels in its box.
        size: (H, W) of the image.
    """

    index: int
    name: str
    score: float | None
    box: tuple[int, int, int, int]
    inside: np.ndarray = field(repr=False)
    size: tuple[int, int]

    @cached_property
    def area(self) -> int:
        """Number of its pixels."""
        return int(np.count_nonzero(self.inside))

    @property
    def mask(self) -> np.ndarray:
        """Its pixels in the image, (H, W) bool."""
        mask = np.zeros(self.size, dtype=bool)
        left, top, right, bottom = self.box
        mask[top:bottom, left:right] = self.inside
        return mask

    def polygons(self) -> list[np.ndarray]:
        """Return a polygon for each connected part; those that fill it with its border draw its pixels exactly.

        The vertices are the indices of border pixels. A hole is joined to the border by a line that is passed twice,
        so that formats with one polygon for a region hold it; `cv2.fillPoly` and Pillow draw the hole.

        Returns:
            (N, 2) int32 arrays of x and y, at least three rows in each; a part of one or two pixels repeats one.

        Raises:
            OVSDinoError: OpenCV is not installed.
        """
        try:
            import cv2
        except ImportError as error:
            raise OVSDinoError("polygons need OpenCV: pip install opencv-python-headless") from error
        pixels = self.inside.astype(np.uint8)
        contours, tree = cv2.findContours(pixels, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
        if not contours:
            return []
        holes: dict[int, list[np.ndarray]] = {}
        for contour, (_, _, _, parent) in zip(contours, tree[0], strict=True):
            if parent >= 0:
                holes.setdefault(int(parent), []).append(contour[:, 0])
        return [
            _simple(_joined(contour[:, 0], holes.get(row, []))) + np.array(self.box[:2], np.int32)
            for row, (contour, (_, _, _, parent)) in enumerate(zip(contours, tree[0], strict=True))
            if parent < 0
        ]


def connected_parts(mask: np.ndarray, least_pixels: int = 1) -> Iterator[tuple[tuple[int, int, int, int], np.ndarray]]:
    """Yield the box and the pixels of each connected part of a mask, the largest first; corners connect.

    Args:
        mask: (H, W) bool.
        least_pixels: Smaller parts are left out.

    Yields:
        (left, top, right, bottom), right and bottom exclusive; and (bottom - top, right - left) bool.
    """
    from scipy import ndimage

    numbers, _ = ndimage.label(mask, EIGHT)
    areas = np.bincount(numbers.ravel())[1:]
    places = ndimage.find_objects(numbers)
    for part in np.argsort(-areas, kind="stable"):
        if areas[part] < max(1, least_pixels):
            return
        rows, columns = places[part]
        yield (columns.start, rows.start, columns.stop, rows.stop), numbers[rows, columns] == part + 1


def _joined(border: np.ndarray, holes: list[np.ndarray]) -> np.ndarray:
    """Return one closed path along a part's border and those of its holes, (N, 2).

    Each hole is reached from its leftmost pixel by a line to the left, over the part's own pixels, until the first
    pixel of a path that is there already: one that lies further left, so the leftmost hole is joined first.
    """
    path = border
    for hole in sorted(holes, key=lambda points: int(points[:, 0].min())):
        start = int(hole[:, 0].argmin())
        around = np.roll(hole, -start, axis=0)
        x, y = around[0]
        same_row = np.flatnonzero((path[:, 1] == y) & (path[:, 0] <= x))
        at = int(same_row[path[same_row, 0].argmax()])
        path = np.concatenate([path[: at + 1], around, around[:1], path[at:]])
    return path


def _simple(path: np.ndarray) -> np.ndarray:
    """Return a closed path (N, 2) without the points in the middle of its straight lines; three points at least."""
    steps = np.diff(path, axis=0, append=path[:1])
    moved = steps.any(1)
    if moved.any():
        path, steps = path[moved], steps[moved]
        unit = steps // np.maximum(1, np.abs(steps).max(1, keepdims=True))
        turns = (unit != np.roll(unit, 1, axis=0)).any(1)
        path = path[turns]
    else:
        path = path[:1]
    return np.concatenate([path, np.repeat(path[-1:], max(0, 3 - len(path)), axis=0)]).astype(np.int32)
