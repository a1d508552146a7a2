"""Pairs of cells, as pseudo-masks see them: two cells that the same masks hold belong together.

For cells i and j, with w_m the weight of mask m:

    share_ij = sum_m w_m [i in m and j in m] / sum_m w_m [i in m or j in m]
    known_ij = min(1, sum_m w_m [i in m or j in m])

A pair in no mask is unknown and left out; so is one in masks of no weight. Masks may overlap and lie in each other: a
pair that the coarse masks hold together and the fine ones part has a share in between.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = [
    "affinity_loss",
    "far_affinity_loss",
    "grid_affinity_loss",
    "neighbors",
    "pair_loss",
    "squared_distances",
]

LEAST = 0.01  # of what a pair may be sure of, so that equal cells that should differ have a finite loss

Offset = tuple[int, int]


def neighbors(dilations: Sequence[int]) -> list[Offset]:
    """Return the offsets (rows, columns) of the 8 neighbors at each distance, one of each pair of opposite ones."""
    return [(d * y, d * x) for d in dilations for y, x in ((0, 1), (1, -1), (1, 0), (1, 1))]


def affinity_loss(embedding: Tensor, masks: Tensor, weights: Tensor, dilations: Sequence[int]) -> Tensor:
    """Return the balanced cross-entropy of exp(-|a_i - a_j|^2) against the share of neighboring cells, see `pair_loss`.

    Args:
        embedding: a, (B, C, H, W).
        masks: (B, M, H, W) bool.
        weights: (B, M) in [0, 1]; zero leaves a mask out.
        dilations: Distances of the neighbors in cells.

    Returns:
        (B,), zero for an image without masks.
    """
    embedding, inside = embedding.float(), masks.float()
    weighted = inside * weights.float()[:, :, None, None]
    area = weighted.sum(1)
    distance, share, known = [], [], []
    for offset in neighbors(dilations):
        if not all(abs(step) < side for step, side in zip(offset, area.shape[1:], strict=True)):
            continue
        both = (_first(weighted, offset) * _second(inside, offset)).sum(1)
        either = _first(area, offset) + _second(area, offset) - both
        distance.append((_first(embedding, offset) - _second(embedding, offset)).square().sum(1).flatten(1))
        share.append((both / either.clamp_min(1e-6)).flatten(1))
        known.append(either.clamp(0, 1).flatten(1))
    if not distance:
        return embedding.flatten(1).sum(1) * 0
    return pair_loss(torch.cat(distance, 1), torch.cat(share, 1), torch.cat(known, 1))


def far_affinity_loss(embedding: Tensor, masks: Tensor, weights: Tensor, cells: int) -> Tensor:
    """Return the same for all pairs of randomly drawn cells: what the neighbors say nothing of.

    Args:
        embedding: See `affinity_loss`.
        masks: See `affinity_loss`.
        weights: See `affinity_loss`.
        cells: Number of the cells, the same ones in all images; drawn by torch's own generator.

    Returns:
        (B,), zero for an image without masks.
    """
    drawn = torch.randperm(masks.shape[2] * masks.shape[3], device=masks.device)[:cells]
    distance = squared_distances(embedding.float().flatten(2)[:, :, drawn].transpose(1, 2))
    return grid_affinity_loss(distance, masks.flatten(2)[:, :, drawn].float(), weights)


def squared_distances(points: Tensor) -> Tensor:
    """Return |e_i - e_j|^2 of points (..., N, C) float32, (..., N, N)."""
    size = points.square().sum(-1)
    return (size[..., None] + size[..., None, :] - 2 * points @ points.transpose(-2, -1)).clamp_min(0)


def grid_affinity_loss(distance: Tensor, masks: Tensor, weights: Tensor) -> Tensor:
    """Return the same for all pairs of N places, each of which may lie in a mask in part.

    With s_im the share of place i that lies in mask m, [i and j in m] is s_im s_jm, and [i or j in m] is
    s_im + s_jm - s_im s_jm. A place and itself do not count.

    Args:
        distance: (B, N, N) or (B, heads, N, N), >= 0, the loss of heads being their mean.
        masks: (B, M, N) in [0, 1].
        weights: (B, M).

    Returns:
        (B,), zero for an image without masks.
    """
    shares = masks.float()
    weighted = shares * weights.float()[:, :, None]
    area = weighted.sum(1)
    both = weighted.transpose(1, 2) @ shares
    either = area[:, :, None] + area[:, None] - both
    known = either.clamp(0, 1) * (1 - torch.eye(area.shape[1], device=area.device))
    share = both / either.clamp_min(1e-6)
    if distance.ndim == 4:
        share, known = share[:, None], known[:, None]
    losses = pair_loss(distance.float().flatten(-2), share.flatten(-2), known.flatten(-2))
    return losses if distance.ndim == 3 else losses.mean(1)


def pair_loss(distance: Tensor, share: Tensor, known: Tensor) -> Tensor:
    """Return the cross-entropy of p = 0.99 exp(-distance) against shares, each side a mean of its own.

        l = 1/2 sum_ij known share (-log p) / sum_ij known share
          + 1/2 sum_ij known (1 - share) (-log(1 - p)) / sum_ij known (1 - share)

    for few neighbors lie on two sides of an edge. A side without pairs is zero.

    Args:
        distance: (..., P), >= 0.
        share: (..., P) in [0, 1].
        known: (..., P) >= 0, the weight of each pair.

    Returns:
        (...).
    """
    together, apart = known * share, known * (1 - share)
    miss = torch.log1p(-(1 - LEAST) * torch.exp(-distance))
    near = (together * distance).sum(-1) / together.sum(-1).clamp_min(1e-6)
    return 0.5 * near - 0.5 * (apart * miss).sum(-1) / apart.sum(-1).clamp_min(1e-6)


def _first(x: Tensor, offset: Offset) -> Tensor:
    """Return (..., H, W) at the first cell of each pair (i, i + offset) that lies in the grid."""
    rows, columns = offset
    part = x[..., : x.shape[-2] - rows, :]
    return part[..., : x.shape[-1] - columns] if columns >= 0 else part[..., -columns:]


def _second(x: Tensor, offset: Offset) -> Tensor:
    """Return (..., H, W) at the second cell of each pair."""
    rows, columns = offset
    part = x[..., rows:, :]
    return part[..., columns:] if columns >= 0 else part[..., : x.shape[-1] + columns]
