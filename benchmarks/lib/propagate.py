"""Propagation below the token: class scores of a grid, carried to pixels along a guide, that keep their means."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["propagate"]

TINY = 1e-20  # far below any share of a pixel, and its inverse is finite in float32


def propagate(
    scores: Tensor,
    guide: Tensor,
    *,
    steps: Sequence[int] = (10, 5, 3),
    beta: float = 400.0,
    dilations: Sequence[int] = (1, 2, 4),
    power: float = 1.5,
    strength: float = 1.0,
    rounds: int = 3,
) -> Tensor:
    """Upsample class scores along a guide so that their mean over each token stays what the token says.

    With s the scores, G the guide, m(p) the mean of p over the f x f pixels of each token and N(i) the neighbors of
    pixel i (3x3 without the center, at each dilation), p starts as the bilinear upsampling of s, and a step is

        w_ij = softmax_{j in N(i)}(-beta |G_i - G_j|^2)
        p_i  <- (sum_j w_ij p_j)^a                       a rises from 1 at the first step to `power` at the last
        p_i  <- p_i (sum_k s_tk) / (sum_k p_ik)          t the token of i
        p_ik <- p_ik (s_tk / m(p)_tk)^strength           both `rounds` times

    The last two lines are Sinkhorn's: they lead to the scores nearest to p, in relative entropy, where each pixel has
    its token's total and each class its token's mean. Steps run from coarse to fine: all but the last entry of `steps`
    on the guide averaged over 2^n x 2^n pixels, n falling to 1, with bilinear upsampling in between.

    Args:
        scores: (B, K, h, w), floating, >= 0, such as shares or probabilities.
        guide: (B, C, f*h, f*w) in the dtype of `scores`; f is read off the shapes.
        steps: Steps at each level, coarse to fine. f must be a multiple of 2^(len(steps) - 1). All 0 is bilinear
            upsampling.
        beta: Sharpness of the weights, per squared unit of the guide; the default is for CIELAB over 100.
        dilations: Distances of the neighbors in pixels of the level.
        power: Exponent of the last step, >= 1.
        strength: 1 keeps the means of the tokens exactly; between 0 and 1 they are drawn towards s; 0 leaves them free.
        rounds: Times that both constraints are applied after a step, >= 1.

    Returns:
        (B, K, f*h, f*w), differentiable in scores and guide. With a strength of 1 and at least one step on the finest
        level, its mean over each token is `scores` within rounding.

    Raises:
        ValueError: A shape or a value does not fit; the message names it.
    """
    scale = _check(scores, guide, steps, power, strength, rounds)
    if not any(steps):
        return F.interpolate(scores, scale_factor=scale, mode="bilinear", align_corners=False)
    p, total, done = scores, scores.sum(1, keepdim=True), 0
    for level, count in enumerate(steps):
        pooled = 2 ** (len(steps) - 1 - level)
        cell = scale // pooled
        p = F.interpolate(p, scale_factor=cell if level == 0 else 2, mode="bilinear", align_corners=False)
        if count == 0:
            continue
        offsets = [(y * d, x * d) for d in dilations for y in (-1, 0, 1) for x in (-1, 0, 1) if (y, x) != (0, 0)]
        weights = _weights(F.avg_pool2d(guide, pooled) if pooled > 1 else guide, offsets, beta)
        for _ in range(count):
            p = _combination(p, weights, offsets)
            exponent = 1 + (power - 1) * done / max(sum(steps) - 1, 1)
            done += 1
            p = p if exponent == 1 else p**exponent
            for _ in range(rounds):
                p = _constrained(p, scores, total, cell, strength)
    return p


def _check(scores: Tensor, guide: Tensor, steps: Sequence[int], power: float, strength: float, rounds: int) -> int:
    """Return the pixels of the guide along a token's side, or raise ValueError."""
    if scores.ndim != 4 or guide.ndim != 4 or scores.shape[0] != guide.shape[0]:
        raise ValueError(
            f"scores must be (B, K, h, w) and guide (B, C, f*h, f*w), got {tuple(scores.shape)} and "
            f"{tuple(guide.shape)}"
        )
    height, width = scores.shape[2:]
    scale = guide.shape[2] // height
    if scale < 1 or guide.shape[2:] != (scale * height, scale * width):
        raise ValueError(f"guide must be a whole multiple of the grid {height}x{width}, got {tuple(guide.shape)}")
    if not steps or min(steps) < 0 or scale % 2 ** (len(steps) - 1):
        raise ValueError(
            f"steps must be counts >= 0 of so many levels that 2^(levels - 1) divides {scale}, got {tuple(steps)}"
        )
    if power < 1 or not 0 <= strength <= 1 or rounds < 1:
        raise ValueError(f"power must be >= 1, strength in 0..1 and rounds >= 1, got {power}, {strength} and {rounds}")
    return scale


def _shifted(x: Tensor, offsets: Sequence[tuple[int, int]]) -> list[Tensor]:
    """Return x (B, C, H, W) as each neighbor sees it; beyond the border the nearest pixel counts."""
    reach = max(max(abs(y), abs(x)) for y, x in offsets)
    height, width = x.shape[2:]
    padded = F.pad(x, (reach,) * 4, mode="replicate")
    return [padded[:, :, reach + dy : reach + dy + height, reach + dx : reach + dx + width] for dy, dx in offsets]


def _weights(guide: Tensor, offsets: Sequence[tuple[int, int]], beta: float) -> Tensor:
    """Return the share of each neighbor, (B, neighbors, H, W)."""
    distances = [(near - guide).square().sum(1) for near in _shifted(guide, offsets)]
    return (-beta * torch.stack(distances, 1)).softmax(1)


def _combination(p: Tensor, weights: Tensor, offsets: Sequence[tuple[int, int]]) -> Tensor:
    out = torch.zeros_like(p)
    for index, near in enumerate(_shifted(p, offsets)):
        out = out.addcmul_(weights[:, index : index + 1], near)
    return out


def _constrained(p: Tensor, scores: Tensor, total: Tensor, cell: int, strength: float) -> Tensor:
    """Return p with each pixel's total, and then each class's mean over its token, set to those of the scores."""
    batch, classes, h, w = scores.shape
    cells = (h, cell, w, cell)  # a token's pixels as axes of their own, so that its values are not repeated in memory
    p = p.view(batch, classes, *cells) * (
        total[:, :, :, None, :, None] / p.sum(1, True).clamp(min=TINY).view(batch, 1, *cells)
    )
    if strength == 0:
        return p.reshape(batch, classes, h * cell, w * cell)
    mean = p.mean((3, 5), keepdim=True)
    target = scores[:, :, :, None, :, None]
    ratio = target / mean.clamp(min=TINY)
    if strength < 1:
        p = p * ratio.clamp(min=TINY) ** strength
    else:  # a class that has no pixel of a token left is spread evenly over it
        p = p * ratio + torch.where(mean > TINY, 0.0, target)
    return p.reshape(batch, classes, h * cell, w * cell)
