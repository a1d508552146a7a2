"""Boundary maps against what several people drew: thinning, and F at the best single threshold (ODS)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["TOLERANCE", "BoundaryScore", "OptimalScore", "spread", "thin"]

TOLERANCE = 0.0075  # of the image diagonal, BSDS500's


@dataclass(frozen=True, kw_only=True)
class OptimalScore:
    """F, precision and recall at the threshold that is best for the whole data set."""

    threshold: float
    f: float
    precision: float
    recall: float


class BoundaryScore:
    """ODS F on BSDS500's terms (Martin, Fowlkes, Malik 2004; Arbeláez et al. 2011), with one simplification.

    A thinned boundary pixel is right when it lies within 0.0075 of the diagonal of a pixel that *any* annotator
    marked; an annotator's pixel is found when a boundary pixel above the threshold lies as near. Precision is over all
    boundary pixels, recall over all pixels of *all* annotators, both summed over the data set, as in the benchmark.
    The simplification: the benchmark matches pixels one to one; here several may share a partner. Thinning leaves few
    such, and the scores come out somewhat higher than the benchmark's: compare them with each other only.
    """

    def __init__(self) -> None:
        self._found: list[np.ndarray] = []
        self._right: list[np.ndarray] = []
        self._reached: list[np.ndarray] = []
        self._weight: list[np.ndarray] = []

    def update(self, strength: Tensor, marked: Tensor) -> None:
        """Adds an image.

        Args:
            strength: (H, W) float boundary strength; larger is more of a boundary, on one scale for all images.
            marked: (A, H, W) bool, the annotators' boundaries.
        """
        radius = TOLERANCE * math.hypot(*strength.shape)
        ridge = thin(strength)
        near = spread(marked.any(0).float(), radius) > 0
        kept = ridge > float("-inf")
        votes = marked.sum(0)
        self._found.append(ridge[kept].numpy())
        self._right.append(near[kept].numpy())
        self._reached.append(spread(ridge, radius)[votes > 0].numpy())
        self._weight.append(votes[votes > 0].numpy())

    def best(self) -> OptimalScore:
        """The score over all images so far; zero when there is no boundary on either side."""
        found, right = np.concatenate(self._found), np.concatenate(self._right)
        reached, weight = np.concatenate(self._reached), np.concatenate(self._weight)
        order = np.argsort(-found, kind="stable")
        hits = np.cumsum(right[order])
        # the last of each run of equal values: only there is "all above the threshold" complete
        last = np.flatnonzero(np.append(np.diff(found[order]) != 0, True)) if len(found) else np.empty(0, np.int64)
        precision = hits[last] / (last + 1)
        by_value = np.argsort(-reached, kind="stable")
        sums = np.append(0, np.cumsum(weight[by_value]))
        above = np.searchsorted(-reached[by_value], -found[order][last], side="right")
        recall = sums[above] / max(1, sums[-1])
        both = precision + recall
        f = np.where(both > 0, 2 * precision * recall / np.where(both > 0, both, 1), 0.0)
        if not len(f):
            return OptimalScore(threshold=float("inf"), f=0.0, precision=0.0, recall=0.0)
        top = int(f.argmax())
        return OptimalScore(
            threshold=float(found[order][last[top]]),
            f=float(f[top]),
            precision=float(precision[top]),
            recall=float(recall[top]),
        )

    def resampled(self, threshold: float, draws: np.ndarray) -> np.ndarray:
        """F at a threshold for other choices of the images.

        Args:
            draws: (R, images) indices of the images, with repetition.

        Returns:
            (R,) F.
        """
        counts = np.array(
            [
                (len(f[f >= threshold]), r[f >= threshold].sum(), w[d >= threshold].sum(), w.sum())
                for f, r, d, w in zip(self._found, self._right, self._reached, self._weight, strict=True)
            ],
            dtype=np.float64,
        )
        found, right, reached, weight = counts[draws].sum(1).T
        precision, recall = right / np.maximum(found, 1), reached / np.maximum(weight, 1)
        return 2 * precision * recall / np.maximum(precision + recall, 1e-12)


def thin(strength: Tensor) -> Tensor:
    """Non-maximum suppression: (H, W) -> the same, -inf where a pixel is not a crest.

    A pixel stays when it is at least as strong as the map one pixel to either side, across the crest, and stronger than
    one of the two. Across is the direction in which the smoothed map bends down most.
    """
    smooth = _smooth(strength[None, None])
    wide = F.pad(smooth, [1] * 4, mode="replicate")[0, 0]
    height, width = strength.shape

    def moved(dy: int, dx: int) -> Tensor:
        return wide[1 + dy : height + 1 + dy, 1 + dx : width + 1 + dx]

    xx = moved(0, 1) + moved(0, -1) - 2 * moved(0, 0)
    yy = moved(1, 0) + moved(-1, 0) - 2 * moved(0, 0)
    xy = (moved(1, 1) + moved(-1, -1) - moved(1, -1) - moved(-1, 1)) / 4
    # 0.5 atan2 is the axis of the larger eigenvalue of the Hessian; the crest bends down most at right angles to it.
    angle = 0.5 * torch.atan2(2 * xy, xx - yy) + math.pi / 2
    step = torch.stack([angle.cos() * 2 / max(1, width - 1), angle.sin() * 2 / max(1, height - 1)], -1)
    y, x = (torch.linspace(-1, 1, n) if n > 1 else torch.zeros(1) for n in (height, width))
    here = torch.stack(torch.meshgrid(x, y, indexing="xy"), -1)
    one, other = (
        F.grid_sample(smooth, (here + sign * step)[None], padding_mode="border", align_corners=True)[0, 0]
        for sign in (1, -1)
    )
    # the margin is float32's rounding in grid_sample: a plateau has no crest
    margin = 1e-6 * (smooth.amax() - smooth.amin())
    smooth = smooth[0, 0]
    crest = (
        (smooth >= one - margin) & (smooth >= other - margin) & (torch.maximum(smooth - one, smooth - other) > margin)
    )
    return strength.masked_fill(~crest, float("-inf"))


def spread(values: Tensor, radius: float) -> Tensor:
    """Largest value within a Euclidean distance: (H, W) -> (H, W)."""
    out = values.clone()
    height = values.shape[0]
    for dy in range(int(radius) + 1):
        reach = int(math.sqrt(radius**2 - dy**2))
        wide = F.max_pool2d(values[None, None], (1, 2 * reach + 1), 1, (0, reach))[0, 0]
        if dy == 0:
            out = torch.maximum(out, wide)
        elif dy < height:
            out[dy:] = torch.maximum(out[dy:], wide[:-dy])
            out[:-dy] = torch.maximum(out[:-dy], wide[dy:])
    return out


def _smooth(maps: Tensor) -> Tensor:
    """Gaussian of one pixel, (B, 1, H, W)."""
    kernel = torch.exp(-0.5 * torch.arange(-3.0, 4.0) ** 2)
    kernel = kernel / kernel.sum()
    maps = F.conv2d(F.pad(maps, [3, 3, 0, 0], mode="replicate"), kernel.view(1, 1, 1, 7))
    return F.conv2d(F.pad(maps, [0, 0, 3, 3], mode="replicate"), kernel.view(1, 1, 7, 1))
