"""Pixel-adaptive mask refinement (Araslanov and Roth, "Single-stage semantic segmentation from image labels", 2020)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["PAMR_CHUNK", "PAMR_DILATIONS", "pamr", "pamr_affinity"]

PAMR_DILATIONS = (1, 2, 4, 8, 12, 24)
PAMR_CHUNK = 30  # classes refined at once
NEIGHBORS = tuple((dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1) if (dy, dx) != (0, 0))


def pamr_affinity(image: Tensor, dilations: Sequence[int] = PAMR_DILATIONS) -> Tensor:
    """Return how much each pixel takes from its neighbors, from the colors alone.

    For neighbor j: -|x_i - x_j| / (1e-8 + 0.1 s), with s one standard deviation (n - 1) per pixel and channel over the
    nine values of every dilation together, the center counted once per dilation; mean over channels, softmax over the
    neighbors of all dilations.

    Args:
        image: (C, H, W) float, 0..255.
        dilations: Distances of the neighbors, in pixels, each at least 1.

    Returns:
        (8 D, H, W), dilation by dilation, rows of the 3x3 stencil from top left; sums to one over the first axis.
    """
    channels, height, width = image.shape
    reach = max(dilations)
    padded = F.pad(image[None], [reach] * 4, mode="replicate")[0]
    offsets = [(dy * d, dx * d) for d in dilations for dy, dx in NEIGHBORS]
    logits = image.new_zeros(len(offsets), height, width)
    centers, count = len(dilations), len(offsets) + len(dilations)
    for channel in range(channels):
        around = torch.stack(
            [_shifted(padded[channel : channel + 1], reach, dy, dx, height, width)[0] for dy, dx in offsets]
        )
        around -= image[channel]  # the centers become 0, so their share of each sum is known
        mean = around.sum(0) / count
        squares = (around - mean).square_().sum(0) + centers * mean.square()
        deviation = (squares / (count - 1)).sqrt_()
        logits -= around.abs_() / (1e-8 + 0.1 * deviation)
    return (logits / channels).softmax(0)


def pamr(
    image: Tensor,
    scores: Tensor,
    iterations: int = 10,
    dilations: Sequence[int] = PAMR_DILATIONS,
    chunk: int = PAMR_CHUNK,
) -> Tensor:
    """Make score maps follow the image's edges: `iterations` times the affinity-weighted mean of the neighbors.

    Replicated borders. The (K, 48, H, W) tensor of all neighbors is never made: each neighbor is a view of the padded
    maps, added with its weight.

    Args:
        image: (C, H, W) float, 0..255.
        scores: (K, H, W) float.
        iterations: How often; 0 returns the scores.
        dilations: See `pamr_affinity`.
        chunk: Classes at a time, which bounds the memory and changes nothing else.

    Returns:
        (K, H, W).

    Raises:
        ValueError: Image and scores differ in size.
    """
    if image.ndim != 3 or scores.ndim != 3 or image.shape[1:] != scores.shape[1:]:
        raise ValueError(
            f"image {tuple(image.shape)} and scores {tuple(scores.shape)}: expected (C, H, W) and (K, H, W)"
        )
    if iterations < 1 or not len(scores):
        return scores
    weights = pamr_affinity(image, dilations)
    height, width = scores.shape[1:]
    reach = max(dilations)
    offsets = [(dy * d, dx * d) for d in dilations for dy, dx in NEIGHBORS]
    parts = []
    for part in scores.split(chunk):
        for _ in range(iterations):
            padded = F.pad(part[None], [reach] * 4, mode="replicate")[0]
            part = torch.zeros_like(part)
            for weight, (dy, dx) in zip(weights, offsets, strict=True):
                part.addcmul_(_shifted(padded, reach, dy, dx, height, width), weight)
        parts.append(part)
    return torch.cat(parts)


def _shifted(padded: Tensor, reach: int, dy: int, dx: int, height: int, width: int) -> Tensor:
    return padded[:, reach + dy : reach + dy + height, reach + dx : reach + dx + width]
