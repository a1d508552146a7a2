"""Recall by size: small, thin and large regions.

mIoU is ruled by large regions; poles, distant people and clutter hardly move it, and they are where sharper features
should gain. A region is an 8-connected component of the ground truth of one class (semantic labels do not part two
touching cars, so a region may hold several objects). With u = sqrt(H W / 300), which is 32 pixels at 640x480, so that
"small" is COCO's 32x32 and does not depend on the resolution of the labels:

    small   area < u^2
    thin    area >= u^2, mean width < u / 2
    large   all others

The mean width is 4 m + 2 with m the mean distance, over the region, to the nearest pixel on a border between two labels
(or a label and void): in a strip of width w those distances rise to its middle, and their mean is w/4 - 1/2 for even w,
at most 1/(4w) more for odd w. The border of the image does not count: a road cut by it is not thin. Predictions have no
regions, so precision cannot be given by group; recall can. "background" as a class is left out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.ndimage import distance_transform_edt, find_objects, label

from ovsdino.eval.boundary import contour

__all__ = ["GROUPS", "SizeGroup", "SizeRecall", "regions"]

GROUPS = ("small", "thin", "large")
UNIT_SHARE = 300  # u^2 is this part of the image: 32x32 of 640x480
Box = tuple[slice, slice]
EIGHT = np.ones((3, 3), bool)


@dataclass(frozen=True, kw_only=True)
class SizeGroup:
    """Scores of a group in 0..1; None where it has no regions.

    Attributes:
        recall: Mean over classes of the share of the group's pixels that got their class.
        found: Share of the regions with more than half of their pixels right.
        regions: Number of regions.
        pixels: Their pixels.
    """

    recall: float | None
    found: float | None
    regions: int
    pixels: int


class SizeRecall:
    """Add up recall by group over a data set.

    Args:
        classes: K.
        skip: Classes that are left out, such as background.
    """

    def __init__(self, classes: int, skip: tuple[int, ...] = ()) -> None:
        self.skip = skip
        self.pixels = np.zeros((len(GROUPS), classes), np.int64)
        self.hits = np.zeros((len(GROUPS), classes), np.int64)
        self.regions = np.zeros(len(GROUPS), np.int64)
        self.found = np.zeros(len(GROUPS), np.int64)

    def update(self, predicted: np.ndarray, target: np.ndarray, ignore: np.ndarray) -> None:
        """Add an image: labels (H, W) integers, ignored pixels (H, W) bool."""
        right = predicted == target
        for index, (box, numbers), group in regions(target, ignore, self.pixels.shape[1], self.skip):
            area = np.bincount(numbers.ravel(), minlength=len(group) + 1)[1:]
            hits = np.bincount(numbers[right[box]], minlength=len(group) + 1)[1:]
            for position in range(len(GROUPS)):
                chosen = group == position
                self.pixels[position, index] += area[chosen].sum()
                self.hits[position, index] += hits[chosen].sum()
                self.regions[position] += chosen.sum()
                self.found[position] += (2 * hits[chosen] > area[chosen]).sum()

    def groups(self) -> dict[str, SizeGroup]:
        """Return the scores of all images so far, by name of the group."""
        out = {}
        for position, name in enumerate(GROUPS):
            pixels, count = self.pixels[position], int(self.regions[position])
            there = pixels > 0
            out[name] = SizeGroup(
                recall=float((self.hits[position][there] / pixels[there]).mean()) if there.any() else None,
                found=int(self.found[position]) / count if count else None,
                regions=count,
                pixels=int(pixels.sum()),
            )
        return out


def regions(
    target: np.ndarray, ignore: np.ndarray, classes: int, skip: tuple[int, ...] = ()
) -> list[tuple[int, tuple[Box, np.ndarray], np.ndarray]]:
    """Return the regions of each class of a label map.

    Returns:
        For each class present: its index; its box, rows and columns, and the numbers of its regions in that, 1.. and 0
        elsewhere; and the group of each region, an index into `GROUPS`.
    """
    limit = target.size / UNIT_SHARE
    edge = contour(target, ignore)
    # a label next to void has its border there too, though that is not a contour between two classes
    edge[:, 1:] |= ignore[:, :-1]
    edge[:, :-1] |= ignore[:, 1:]
    edge[1:] |= ignore[:-1]
    edge[:-1] |= ignore[1:]
    distance = distance_transform_edt(~edge) if edge.any() else np.full(target.shape, np.inf)
    out = []
    known = np.where(ignore | (target < 0) | (target >= classes), 0, target + 1)
    for index, box in enumerate(find_objects(known, classes)):
        if box is None or index in skip:
            continue
        numbers, count = label(known[box] == index + 1, EIGHT)
        flat = numbers.ravel()
        area = np.bincount(flat, minlength=count + 1)[1:]
        inside = flat > 0
        total = np.bincount(flat[inside], distance[box].ravel()[inside], minlength=count + 1)[1:]
        thin = 4 * total / area + 2 < math.sqrt(limit) / 2
        group = np.where(area < limit, 0, np.where(thin, 1, 2))
        out.append((index, (box, numbers), group))
    return out
