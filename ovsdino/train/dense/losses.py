"""The formulas of dense training: class weights, soft Dice, cross-entropy of shares, boundary BCE + Dice."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ovsdino.data.segmentation import IGNORE_INDEX


def class_weights(counts: Tensor, power: float, maximum: float) -> Tensor:
    """Return w_c = frequency_c^-power, scaled to a frequency-weighted mean of one, cut at `maximum`; (K,) -> (K,)."""
    frequency = counts.double() / counts.sum().clamp_min(1)
    weight = frequency.clamp_min(1e-6) ** -power
    weight = weight / (weight * frequency).sum()
    return weight.clamp_max(maximum).float()


def dice_loss(probability: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Return 1 - mean over present classes of 2 |p y| / (|p| + |y|), sums over the batch (Milletari et al. 2016).

    Args:
        probability: (B, C, H, W), C >= num_classes.
        labels: (B, H, W) int64 in [0, num_classes) or 255.
        num_classes: Classes that labels can name.
    """
    valid = labels != IGNORE_INDEX
    target = F.one_hot(labels.where(valid, 0), num_classes).permute(0, 3, 1, 2).to(probability.dtype)
    target = target * valid[:, None]
    p = probability[:, :num_classes] * valid[:, None]
    intersection = (p * target).sum((0, 2, 3))
    total = p.sum((0, 2, 3)) + target.sum((0, 2, 3))
    present = target.sum((0, 2, 3)) > 0
    if not present.any():
        return probability.sum() * 0.0
    return (1.0 - 2.0 * intersection / total.clamp_min(1e-6))[present].mean()


def boundary_targets(labels: Tensor, size: tuple[int, int], ignore_index: int = 255) -> tuple[Tensor, Tensor]:
    """Return the boundary map of a label map at a coarser size.

    A full-resolution pixel is boundary when a 4-neighbour carries another valid label; a coarse pixel is boundary when
    any of its pixels is.

    Args:
        labels: (B, H, W) integer labels.
        size: (h, w) of the target.
        ignore_index: Label of pixels without a label.

    Returns:
        target (B, 1, h, w) float in {0, 1} and valid (B, 1, h, w) bool.
    """
    valid = labels != ignore_index
    edge = torch.zeros_like(valid)
    vertical = (labels[:, 1:] != labels[:, :-1]) & valid[:, 1:] & valid[:, :-1]
    horizontal = (labels[:, :, 1:] != labels[:, :, :-1]) & valid[:, :, 1:] & valid[:, :, :-1]
    edge[:, 1:] |= vertical
    edge[:, :-1] |= vertical
    edge[:, :, 1:] |= horizontal
    edge[:, :, :-1] |= horizontal
    target = F.adaptive_max_pool2d(edge[:, None].float(), size)
    return target, F.adaptive_max_pool2d(valid[:, None].float(), size) > 0


def boundary_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Return BCE + Dice of boundary logits (B, 1, h, w) against label boundaries; both sides weigh alike in BCE."""
    target, valid = boundary_targets(labels, (logits.shape[2], logits.shape[3]))
    weight = valid.to(logits.dtype)
    share = ((target * weight).sum() / weight.sum().clamp_min(1)).clamp(0.01, 0.99)
    balance = torch.where(target > 0, 0.5 / share, 0.5 / (1 - share)) * weight
    bce = F.binary_cross_entropy_with_logits(logits, target, balance, reduction="sum") / weight.sum().clamp_min(1)
    p = logits.sigmoid() * weight
    dice = 1.0 - (2.0 * (p * target).sum() + 1.0) / (p.sum() + (target * weight).sum() + 1.0)
    return bce + dice


def coarse_labels(labels: Tensor, size: tuple[int, int], num_classes: int) -> Tensor:
    """Return the share of each class in each cell of a grid: (B, H, W) -> (B, num_classes, h, w), sums one or zero."""
    valid = labels != IGNORE_INDEX
    one_hot = F.one_hot(labels.where(valid, num_classes), num_classes + 1)[..., :num_classes]
    share = F.adaptive_avg_pool2d(one_hot.permute(0, 3, 1, 2).float(), size)
    return share / share.sum(1, keepdim=True).clamp_min(1e-6)


def soft_cross_entropy(logits: Tensor, share: Tensor, weight: Tensor) -> Tensor:
    """Return cross-entropy against class shares; logits (B, C, h, w) with C >= K, share (B, K, h, w), weight (K,)."""
    log_p = F.log_softmax(logits, 1)[:, : share.shape[1]]
    weighted = share * weight[None, :, None, None]
    return -(weighted * log_p).sum() / weighted.sum().clamp_min(1e-6)
