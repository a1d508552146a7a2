"""Defenses against bad pseudo-masks, each a switch.

Weights by quality and by agreement with the image, a trimmed loss, noise on the masks' extent.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage
from torch import Tensor

EDGE_RADIUS = 4  # pixels, of the windows of `edge_agreement`


def quality_weight(predicted_iou: Tensor, stability: Tensor) -> Tensor:
    """Return predicted_iou * stability_score, both in [0, 1] and of one shape: the generator's trust in its masks."""
    return predicted_iou.float() * stability.float()


def edge_agreement(images: Tensor, masks: Tensor, radius: int = EDGE_RADIUS) -> Tensor:
    """Measure how much more the color changes across a mask's edge than around it: a / (a + b).

    a is the mean color step |I_x - I_y| over the pairs of neighbors of which one is in the mask, b that over all pairs
    in the square windows about them. A random edge has a = b and 1/2. Places side by side are compared, so texture and
    contrast of the scene cancel. A mask moved or grown by a few pixels fails; the union of two masks with true edges
    does not.

    Measured on CamVid train, 30 % of the Felzenszwalb masks corrupted (`ovsdino masks --corrupt`), crops of 160 x 160:
    it tells dilated masks from sound ones with an AUC of 0.99, shifted ones with 0.97, merged ones not (0.53); together
    0.78, where a trained model's mask loss, which `trimmed_weights` goes by, has 0.46. Felzenszwalb's masks follow the
    colors by construction, so this is the best case. On the mask grid of 40 x 40 the edges are too coarse (0.64).

    Args:
        images: (B, 3, H, W), of any scale.
        masks: (B, M, H, W) bool, at the image's own resolution.
        radius: Of the windows in pixels: they are 2 radius + 1 wide.

    Returns:
        (B, M) float32 in [0, 1]; 1/2 for a mask without an edge in the image.
    """
    images = images.float()
    sums = images.new_zeros((*masks.shape[:2], 2))
    for dim in (2, 3):
        step = images.diff(dim=dim).square().sum(1, keepdim=True).sqrt()
        near = F.avg_pool2d(step, 2 * radius + 1, 1, radius, count_include_pad=False)
        low, high = masks.narrow(dim, 0, masks.shape[dim] - 1), masks.narrow(dim, 1, masks.shape[dim] - 1)
        sums = sums + (low ^ high).flatten(2).float() @ torch.cat([step, near], 1).flatten(2).transpose(1, 2)
    total = sums.sum(-1)
    return torch.where(total > 0, sums[..., 0] / total.clamp_min(1e-12), 0.5)


def agreement_weight(agreement: Tensor) -> Tensor:
    """Return a mask's weight: zero at 1/2, the value of a random edge, rising to one at 0.6; (B, M) -> (B, M).

    Of the masks measured above, nine sound ones in ten reach 0.59, nine dilated ones in ten stay below 0.54.
    """
    return ((agreement - 0.5) / 0.1).clamp(0, 1)


def trimmed_weights(losses: Tensor, weights: Tensor, share: float) -> Tensor:
    """Return weights without the masks of the largest loss (least trimmed squares, Rousseeuw 1984).

    A model first learns what most masks agree on, so those it cannot follow are likely wrong (Arpit et al. 2017).

    Args:
        losses: (n,), only compared.
        weights: (n,), zero where there is no mask.
        share: Of the masks with a weight, in [0, 1); the number dropped is rounded down.

    Returns:
        (n,): weights, with zeros for the masks dropped; among equal losses the first goes first.
    """
    valid = weights > 0
    ranked = losses.detach().float().masked_fill(~valid, -torch.inf)
    order = ranked.sort(descending=True, stable=True).indices
    place = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))
    dropped = (share * valid.sum() + 1e-6).floor()  # 0.29 * 100 is 28.999..., meant as 29
    return weights.masked_fill(place < dropped, 0.0)


def weighted_mean(losses: Tensor, weights: Tensor) -> Tensor:
    """Return sum w l / sum w over the entries with a weight, zero where none has one; both of one shape -> ()."""
    total = weights.sum()
    kept = torch.where(weights > 0, losses, 0.0)  # a loss of infinity times zero would be NaN
    return (weights * kept).sum() / torch.where(total > 0, total, 1.0)


def perturb_masks(
    masks: np.ndarray, quality: np.ndarray, merge: float, split: float, generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Vary the extent of the masks of one image, so that no exact extent is learned by heart.

    With probability `merge` a mask becomes its union with one that touches it and adds to it, drawn among them; its
    quality is then the lesser of the two. With probability `split` it is cut along a random line through its centroid,
    and one half kept. Every mask meets the others as they came in. How many numbers are drawn depends on M alone.

    Args:
        masks: (M, h, w) bool; empty ones stay so.
        quality: (M,).
        merge: In [0, 1].
        split: In [0, 1], with `merge` no more than 1.
        generator: Draws the changes.

    Returns:
        (M, h, w) bool and (M,), new arrays.
    """
    count = len(masks)
    event, pick, angle = generator.random((3, count))
    new, new_quality = masks.copy(), quality.copy()
    for index in range(count):
        mask = masks[index]
        if event[index] >= merge + split or not mask.any():
            continue
        if event[index] < merge:
            around = ndimage.binary_dilation(mask)
            others = np.flatnonzero((masks & around).any((1, 2)) & (masks & ~mask).any((1, 2)))
            if len(others):
                other = others[int(pick[index] * len(others))]
                new[index] |= masks[other]
                new_quality[index] = min(quality[index], quality[other])
        else:
            y, x = np.nonzero(mask)
            turn = 2 * np.pi * angle[index]
            side = (y - y.mean()) * np.sin(turn) + (x - x.mean()) * np.cos(turn)
            away = side < -1e-9  # of cells on the line itself, rounding must not take the last one
            new[index, y[away], x[away]] = False
    return new, new_quality
