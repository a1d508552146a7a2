"""Structure-guided upsampling: every fine pixel is a convex combination of its 5x5 coarse neighbours."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ovsdino.ops.dispatch import resolve
from ovsdino.ops.schema import LIBRARY, qualified

RADIUS = 2  # 5x5 neighbours


def guided_upsample(logits: Tensor, guide_lo: Tensor, guide_hi: Tensor, beta: Tensor | float) -> Tensor:
    """out_i = sum_j weights_ij logits_j, weights_ij = softmax_j(-beta |G_hi,i - G_lo,j|^2 - |pos_i - pos_j|^2).

    j runs over the 5x5 coarse cells around the one that fine pixel i lies in, those outside the grid left out;
    positions are cell centres in coarse-cell units. Runs as plain PyTorch, so autograd, autocast, `torch.compile` and
    exporters see ordinary ops. ``torch.ops.ovsdino.guided_upsample`` is the same as one opaque op that keeps nothing
    but its inputs for backward.

    Args:
        logits: (B, K, h, w), floating.
        guide_lo: (B, C, h, w) guide at the coarse grid.
        guide_hi: (B, C, s*h, s*w) guide at the fine grid; the integer s is read off the shapes.
        beta: sharpness >= 0, a float or a 0-d tensor.

    Returns:
        (B, K, s*h, s*w) in the dtype of `logits`; differentiable in all inputs.

    Raises:
        ValueError: a shape does not fit; the message names it.
    """
    _check(logits, guide_lo, guide_hi, beta)
    resolve("guided_upsample", logits.device.type)
    return guided_upsample_reference(logits, guide_lo, guide_hi, beta)


def neighbour_bias(h: int, w: int, scale: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """-|pos_i - pos_j|^2 in coarse-cell units, -inf where the neighbour lies outside the grid.

    Returns:
        (h*w, scale*scale, 25): cell, fine pixel within the cell, neighbour.
    """
    fine = (torch.arange(scale, device=device, dtype=dtype) + 0.5) / scale - 0.5
    shift = torch.arange(-RADIUS, RADIUS + 1, device=device, dtype=dtype)
    square = (fine[:, None] - shift[None, :]).square()  # (scale, 5)
    distance = (square[:, None, :, None] + square[None, :, None, :]).reshape(scale * scale, -1)
    rows = torch.arange(h, device=device)[:, None] + torch.arange(-RADIUS, RADIUS + 1, device=device)
    cols = torch.arange(w, device=device)[:, None] + torch.arange(-RADIUS, RADIUS + 1, device=device)
    inside = ((rows >= 0) & (rows < h))[:, None, :, None] & ((cols >= 0) & (cols < w))[None, :, None, :]
    outside = ~inside.reshape(h * w, 1, -1)
    return (-distance)[None].masked_fill(outside, float("-inf"))


def guided_upsample_reference(logits: Tensor, guide_lo: Tensor, guide_hi: Tensor, beta: Tensor | float) -> Tensor:
    """weights_ij = softmax_j(-beta |G_hi,i - G_lo,j|^2 - |pos_i - pos_j|^2), out_i = sum_j weights_ij logits_j.

    |G_hi,i|^2 is the same for every j and cancels in the softmax, so a cell costs two small matrix products:
    (s*s, C) x (C, 25) for the weights and (s*s, 25) x (25, K) for the combination.

    Args:
        logits: (B, K, h, w) coarse logits.
        guide_lo: (B, C, h, w) guide at the coarse grid.
        guide_hi: (B, C, s*h, s*w) guide at the fine grid; s is read off the shapes.
        beta: non-negative sharpness, a float or a 0-d tensor.

    Returns:
        (B, K, s*h, s*w) in the dtype of `logits`.
    """
    batch, classes, h, w = logits.shape
    channels = guide_lo.shape[1]
    scale = guide_hi.shape[2] // h
    cells, fine, near = h * w, scale * scale, (2 * RADIUS + 1) ** 2
    compute = torch.promote_types(logits.dtype, torch.float32)

    def neighbours(x: Tensor) -> Tensor:  # (B, C, h, w) -> (B*h*w, C, 25)
        patches = F.unfold(x, 2 * RADIUS + 1, padding=RADIUS).view(batch, x.shape[1], near, cells)
        return patches.permute(0, 3, 1, 2).reshape(batch * cells, x.shape[1], near)

    blocks = guide_hi.reshape(batch, channels, h, scale, w, scale).permute(0, 2, 4, 3, 5, 1)
    blocks = blocks.reshape(batch * cells, fine, channels)
    low = neighbours(guide_lo)
    similarity = 2.0 * torch.bmm(blocks, low).to(compute) - low.to(compute).square().sum(1, keepdim=True)
    bias = neighbour_bias(h, w, scale, logits.device, compute)
    score = (beta * similarity).view(batch, cells, fine, near) + bias
    weights = score.softmax(-1).view(batch * cells, fine, near).to(logits.dtype)
    out = torch.bmm(weights, neighbours(logits).transpose(1, 2))  # (B*cells, fine, K)
    out = out.view(batch, h, w, scale, scale, classes).permute(0, 5, 1, 3, 2, 4)
    return out.reshape(batch, classes, h * scale, w * scale)


def _check(logits: Tensor, guide_lo: Tensor, guide_hi: Tensor, beta: Tensor | float) -> None:
    if logits.dim() != 4 or not logits.is_floating_point():
        raise ValueError(f"logits must be floating (B, K, h, w), got {tuple(logits.shape)} {logits.dtype}")
    batch, _, h, w = logits.shape
    if guide_lo.dim() != 4 or (guide_lo.shape[0], *guide_lo.shape[2:]) != (batch, h, w):
        raise ValueError(f"guide_lo must be ({batch}, C, {h}, {w}) like logits, got {tuple(guide_lo.shape)}")
    if guide_hi.dim() != 4 or guide_hi.shape[:2] != guide_lo.shape[:2]:
        raise ValueError(
            f"guide_hi must be (B, C, s*h, s*w) with guide_lo's (B, C) {tuple(guide_lo.shape[:2])}, "
            f"got {tuple(guide_hi.shape)}"
        )
    height, width = guide_hi.shape[2:]
    if h == 0 or w == 0 or height < h or height % h or width != height // h * w:
        raise ValueError(
            f"guide_hi must be an integer multiple of ({h}, {w}), one for both sides, got {(height, width)}"
        )
    if isinstance(beta, Tensor) and beta.dim() != 0:
        raise ValueError(f"beta must be a float or a 0-d tensor, got {tuple(beta.shape)}")


def _forward(logits: Tensor, guide_lo: Tensor, guide_hi: Tensor, beta: Tensor) -> Tensor:
    return guided_upsample(logits, guide_lo, guide_hi, beta).contiguous()


def _fake(logits: Tensor, guide_lo: Tensor, guide_hi: Tensor, beta: Tensor) -> Tensor:
    _check(logits, guide_lo, guide_hi, beta)
    return logits.new_empty((*logits.shape[:2], *guide_hi.shape[2:]))


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    """Recomputes the forward: keeping the weights would cost 25 values a fine pixel."""
    with torch.enable_grad():
        inputs = [
            x.detach().requires_grad_(needed) for x, needed in zip(ctx.saved_tensors, ctx.needs_input_grad, strict=True)
        ]
        out = guided_upsample(*inputs)
    wanted = [x for x in inputs if x.requires_grad]
    found = iter(torch.autograd.grad(out, wanted, grad))
    return tuple(next(found) if x.requires_grad else None for x in inputs)


LIBRARY.impl("guided_upsample", _forward, "CompositeExplicitAutograd")
torch.library.register_fake(qualified("guided_upsample"), _fake, lib=LIBRARY)
torch.library.register_autograd(qualified("guided_upsample"), _backward, setup_context=_setup_context, lib=LIBRARY)
