"""Structure-guided upsampling: every fine pixel is a convex combination of its 5x5 coarse neighbours."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ovsdino.ops.checks import (
    check_dense,
    check_device,
    check_floating,
    check_memory,
    check_no_tangent,
    check_number,
    no_second_derivative,
)
from ovsdino.ops.compat import exporting
from ovsdino.ops.dispatch import native, resolve
from ovsdino.ops.schema import LIBRARY, qualified

RADIUS = 2
OUTSIDE = -1e9  # a score whose weight is 0; float32 holds it, and no product with infinity comes of it
TILE = 2  # side of the square of cells that share their neighbours in the exported form
NEAR = (2 * RADIUS + 1) ** 2  # neighbours


def guided_upsample(logits: Tensor, guide_lo: Tensor, guide_hi: Tensor, beta: Tensor | float) -> Tensor:
    """out_i = sum_j weights_ij logits_j, weights_ij = softmax_j(-beta |G_hi,i - G_lo,j|^2 - |pos_i - pos_j|^2).

    j runs over the 5x5 coarse cells around the one that fine pixel i lies in, those outside the grid left out;
    positions are cell centres in coarse-cell units. Exporters and tracers are given `guided_upsample_tiled`.

    A NaN logit reaches the fine pixels within two cells of it, and only its class; a NaN guide all their classes. A
    class that is -inf everywhere stays -inf, but where a neighbour's weight is 0 (in the kernels: its score 87 or more
    below the best) 0 * inf is NaN.

    Args:
        logits: (B, K, h, w), floating.
        guide_lo: (B, C, h, w) guide at the coarse grid.
        guide_hi: (B, C, s*h, s*w) guide at the fine grid; the integer s is read off the shapes.
        beta: sharpness, a finite float >= 0 or a 0-d tensor, whose value is not looked at (NaN gives NaN).

    Returns:
        (B, K, s*h, s*w) in the dtype of `logits`; differentiable in all inputs, twice by the reference only.

    Raises:
        ValueError: a shape does not fit; the message names it.
        NotImplementedError: a second or a forward-mode derivative is asked of a kernel.
    """
    _check(logits, guide_lo, guide_hi, beta)
    if exporting():
        return guided_upsample_tiled(logits, guide_lo, guide_hi, beta)
    if _backend(logits, guide_lo, guide_hi) == "reference":
        return guided_upsample_reference(logits, guide_lo, guide_hi, beta)
    check_no_tangent("guided_upsample", logits, guide_lo, guide_hi, beta)
    if not isinstance(beta, Tensor):
        beta = torch.full((), beta, dtype=torch.float32, device=logits.device)
    return torch.ops.ovsdino.guided_upsample(logits, guide_lo, guide_hi, beta)


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


def neighbours(x: Tensor) -> Tensor:
    """(B, C, h, w) -> (B*h*w, C, 25): the neighbourhood of each cell, zeros outside the grid."""
    batch, channels, h, w = x.shape
    if channels == 0:  # which unfold refuses
        return x.reshape(batch * h * w, 0, NEAR)
    patches = F.unfold(x, 2 * RADIUS + 1, padding=RADIUS).view(batch, channels, NEAR, h * w)
    return patches.permute(0, 3, 1, 2).reshape(batch * h * w, channels, NEAR)


def neighbours_adjoint(x: Tensor, batch: int, h: int, w: int) -> Tensor:
    """(B*h*w, C, 25) -> (B, C, h, w): each cell's sum of its own values in the neighbourhoods that hold it."""
    if x.shape[1] == 0:
        return x.reshape(batch, 0, h, w)
    patches = x.view(batch, h * w, x.shape[1], NEAR).permute(0, 2, 3, 1).reshape(batch, -1, h * w)
    return F.fold(patches, (h, w), 2 * RADIUS + 1, padding=RADIUS)


def to_blocks(x: Tensor, scale: int) -> Tensor:
    """(B, C, s*h, s*w) -> (B*h*w, s*s, C): the fine pixels of each cell."""
    batch, channels, height, width = x.shape
    h, w = height // scale, width // scale
    blocks = x.reshape(batch, channels, h, scale, w, scale).permute(0, 2, 4, 3, 5, 1)
    return blocks.reshape(batch * h * w, scale * scale, channels)


def from_blocks(x: Tensor, batch: int, h: int, w: int, scale: int) -> Tensor:
    """Return the inverse of `to_blocks`."""
    channels = x.shape[2]
    fine = x.view(batch, h, w, scale, scale, channels).permute(0, 5, 1, 3, 2, 4)
    return fine.reshape(batch, channels, h * scale, w * scale)


def _weights(blocks: Tensor, low: Tensor, beta: Tensor | float, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Weights and similarities (B*h*w, s*s, 25) of blocks (B*h*w, s*s, C) and neighbours (B*h*w, C, 25).

    |G_hi,i|^2 is the same for every j and cancels in the softmax, so the similarity is 2 G_hi.G_lo - |G_lo|^2.
    """
    compute = bias.dtype
    similarity = 2.0 * torch.bmm(blocks, low).to(compute) - low.to(compute).square().sum(1, keepdim=True)
    score = (beta * similarity).view(-1, *bias.shape) + bias
    return score.softmax(-1).view_as(similarity), similarity


def guided_upsample_reference(logits: Tensor, guide_lo: Tensor, guide_hi: Tensor, beta: Tensor | float) -> Tensor:
    """`guided_upsample` in plain PyTorch, differentiable by itself: the oracle.

    A cell costs two small matrix products: (s*s, C) x (C, 25) for the weights and (s*s, 25) x (25, K) for the
    combination. Arguments as `guided_upsample`.
    """
    batch, _, h, w = logits.shape
    scale = guide_hi.shape[2] // h
    bias = neighbour_bias(h, w, scale, logits.device, torch.promote_types(logits.dtype, torch.float32))
    weights, _ = _weights(to_blocks(guide_hi, scale), neighbours(guide_lo), beta, bias)
    out = torch.bmm(weights.to(logits.dtype), neighbours(logits).transpose(1, 2))  # (B*cells, fine, K)
    return from_blocks(out, batch, h, w, scale)


def tile_tables(h: int, w: int, scale: int, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Return the positions that `guided_upsample_tiled` needs of a grid: n tiles, m = (TILE + 4)^2 cells around each.

    Returns:
        index (n*m,) int32 of those cells in the grid, the nearest cell's for those outside; inside (n, 1, m) bool; and
        -|pos_i - pos_j|^2 of a tile's fine pixels, (1, (TILE*scale)^2, m), OUTSIDE for cells not among their 5x5.
    """
    near = torch.arange(-RADIUS, TILE + RADIUS, device=device)
    fine = torch.arange(TILE * scale, device=device)
    distance = ((fine.to(dtype) + 0.5) / scale - 0.5)[:, None] - near
    far = (torch.div(fine, scale, rounding_mode="floor")[:, None] - near).abs() > RADIUS
    square = distance.square()[:, None, :, None] + distance.square()[None, :, None, :]
    square = (-square).masked_fill(far[:, None, :, None] | far[None, :, None, :], OUTSIDE)
    rows = torch.arange(0, h, TILE, device=device)[:, None] + near
    cols = torch.arange(0, w, TILE, device=device)[:, None] + near
    inside = ((rows >= 0) & (rows < h))[:, None, :, None] & ((cols >= 0) & (cols < w))[None, :, None, :]
    index = rows.clamp(0, h - 1)[:, None, :, None] * w + cols.clamp(0, w - 1)[None, :, None, :]
    m = len(near) ** 2
    return index.flatten().int(), inside.reshape(-1, 1, m), square.reshape(1, -1, m)


def guided_upsample_tiled(logits: Tensor, guide_lo: Tensor, guide_hi: Tensor, beta: Tensor | float) -> Tensor:
    """`guided_upsample` for exporters: attention of a tile's fine pixels to the cells around the tile.

    Tiles of 2x2 cells (the grid padded to whole ones) make n products (64, C) x (C, 36) and (64, 36) x (36, K) with a
    softmax between them. In ONNX Runtime on one thread, 22x29 cells: 1.6 ms for K = 11 and 10 ms for 150, where the
    reference takes 10 and 51; 25 slices of a padded map take 44, tiles of 1 and 4 cells are slower by a tenth. Most of
    the rest is the way back to the grid: rows of 8 pixels move at once when K is moved before the tiles are.
    Arguments as `guided_upsample`; needs finite logits, as 0 * inf of an unused cell would be NaN.
    """
    batch, classes, h, w = logits.shape
    scale = guide_hi.shape[2] // h
    rows, cols, side = -(-h // TILE), -(-w // TILE), TILE * scale
    compute = torch.promote_types(logits.dtype, torch.float32)
    index, inside, bias = tile_tables(h, w, scale, logits.device, compute)
    m, tiles = inside.shape[2], rows * cols
    if h % TILE or w % TILE:
        guide_hi = F.pad(guide_hi, (0, cols * side - w * scale, 0, rows * side - h * scale))
    blocks = guide_hi.reshape(batch, -1, rows, side, cols, side).permute(0, 2, 4, 1, 3, 5)
    blocks = blocks.reshape(batch, tiles, -1, side * side)
    low = guide_lo.flatten(2).transpose(1, 2)
    column = low.to(compute).square().sum(2, keepdim=True) * -beta
    near = (low * (2.0 * beta)).to(blocks.dtype).index_select(1, index).reshape(batch, tiles, m, -1)
    column = column.index_select(1, index).reshape(batch, tiles, 1, m).masked_fill(~inside, OUTSIDE)
    score = torch.matmul(blocks.transpose(2, 3), near.transpose(2, 3)).to(compute) + column + bias
    values = logits.flatten(2).transpose(1, 2).index_select(1, index).reshape(batch, tiles, m, -1)
    fine = torch.matmul(score.softmax(-1).to(values.dtype), values).transpose(2, 3)
    fine = fine.reshape(batch, rows, cols, classes, side, side).permute(0, 3, 1, 4, 2, 5)
    return fine.reshape(batch, classes, rows * side, cols * side)[:, :, : h * scale, : w * scale]


def guided_upsample_backward_reference(
    grad: Tensor, logits: Tensor, guide_lo: Tensor, guide_hi: Tensor, beta: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of all inputs, of `grad` (B, K, s*h, s*w), in plain PyTorch.

    With dw_ij = grad_i . logits_j and ds_ij = w_ij (dw_ij - sum_j w_ij dw_ij): dlogits_j = sum_i w_ij grad_i,
    dG_hi,i = 2 beta sum_j ds_ij G_lo,j, dG_lo,j = 2 beta sum_i ds_ij (G_hi,i - G_lo,j), dbeta = sum_ij ds_ij sim_ij.
    """
    batch, _, h, w = logits.shape
    scale = guide_hi.shape[2] // h
    compute = torch.promote_types(logits.dtype, torch.float32)
    bias = neighbour_bias(h, w, scale, logits.device, compute)
    blocks, low = to_blocks(guide_hi, scale).to(compute), neighbours(guide_lo).to(compute)
    outer = to_blocks(grad, scale).to(compute)
    weights, similarity = _weights(blocks, low, beta, bias)
    slope = torch.bmm(outer, neighbours(logits).to(compute))
    dscore = weights * (slope - (weights * slope).sum(-1, keepdim=True))
    dlogits = neighbours_adjoint(torch.bmm(outer.transpose(1, 2), weights), batch, h, w)
    dhigh = from_blocks(2.0 * beta * torch.bmm(dscore, low.transpose(1, 2)), batch, h, w, scale)
    moment = torch.bmm(blocks.transpose(1, 2), dscore) - low * dscore.sum(1, keepdim=True)
    dlow = neighbours_adjoint(2.0 * beta * moment, batch, h, w)
    dbeta = (dscore * similarity).sum()
    return dlogits.to(logits.dtype), dlow.to(guide_lo.dtype), dhigh.to(guide_hi.dtype), dbeta.to(beta.dtype)


def _check(logits: Tensor, guide_lo: Tensor, guide_hi: Tensor, beta: Tensor | float) -> None:
    check_dense(logits=logits, guide_lo=guide_lo, guide_hi=guide_hi)
    check_floating(logits=logits, guide_lo=guide_lo, guide_hi=guide_hi)
    check_device(logits, guide_lo=guide_lo, guide_hi=guide_hi)
    if logits.dim() != 4:
        raise ValueError(f"logits must be (B, K, h, w), got {tuple(logits.shape)}")
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
    if not isinstance(beta, Tensor):
        check_number("beta", beta, 0.0)
        return
    check_dense(beta=beta)
    if beta.dim() != 0 or beta.is_complex():
        raise ValueError(f"beta must be a float or a real 0-d tensor, got {tuple(beta.shape)} {beta.dtype}")


def _backend(logits: Tensor, guide_lo: Tensor, guide_hi: Tensor) -> str:
    """Return the backend for these inputs; a kernel needs every dtype to be one of its own."""
    dtype = torch.promote_types(torch.promote_types(guide_lo.dtype, guide_hi.dtype), torch.float32)
    return resolve("guided_upsample", logits.device.type, dtype if dtype == torch.float64 else logits.dtype)


def _described(x: Tensor) -> tuple[int, str, tuple[int, ...]]:
    """Return a tensor as `ovsdino._C.guided_upsample_*` takes it; the caller keeps it alive."""
    return x.data_ptr(), str(x.dtype)[6:], x.stride()


def _prepared(logits: Tensor, guide_lo: Tensor, guide_hi: Tensor, beta: Tensor, kernel: str) -> list[Tensor]:
    """Return inputs as a kernel reads them: "cpu", "cuda", or "host", the bodies of the CUDA kernels on the CPU.

    The guides have one dtype, on CUDA that of the logits too, and there coarse columns are neighbours in memory.
    """
    dtype = torch.promote_types(guide_lo.dtype, guide_hi.dtype)
    strength = beta.to(logits.device, torch.float32)
    if kernel == "cpu":
        return [logits, guide_lo.to(dtype), guide_hi.to(dtype), strength]
    dtype = torch.promote_types(dtype, logits.dtype)
    return [logits.to(dtype).contiguous(), guide_lo.to(dtype).contiguous(), guide_hi.to(dtype), strength]


def _arguments(logits: Tensor, guide_lo: Tensor, guide_hi: Tensor, beta: Tensor) -> tuple[object, ...]:
    batch, classes, h, w = logits.shape
    sizes = (batch, classes, guide_lo.shape[1], h, w, guide_hi.shape[2] // h)
    return _described(logits), _described(guide_lo), _described(guide_hi), sizes, beta.data_ptr()


def _call(name: str, kernel: str, device: torch.device, *arguments: object) -> None:
    function = getattr(native, f"{name}_{kernel}")
    if kernel == "cuda":
        with torch.cuda.device(device):
            function(*arguments, torch.cuda.current_stream().cuda_stream)
    elif kernel == "cpu":
        function(*arguments, torch.get_num_threads())
    else:
        function(*arguments)


def _run(kernel: str, logits: Tensor, guide_lo: Tensor, guide_hi: Tensor, beta: Tensor) -> Tensor:
    inputs = _prepared(logits, guide_lo, guide_hi, beta, kernel)
    out = _fake(*inputs)
    _call("guided_upsample", kernel, logits.device, *_arguments(*inputs), out.data_ptr())
    return out.to(logits.dtype)


def _run_backward(
    kernel: str, grad: Tensor, logits: Tensor, guide_lo: Tensor, guide_hi: Tensor, beta: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    inputs = _prepared(logits, guide_lo, guide_hi, beta, kernel)
    dlogits, dlow, dhigh = (x.new_empty(x.shape) for x in inputs[:3])
    batch, _, height, width = guide_hi.shape
    if kernel == "cpu":
        dbeta, workspace = inputs[3].new_empty(()), inputs[3].new_empty(0)
    else:
        dbeta = inputs[3].new_empty((batch, height, width))
        workspace = inputs[3].new_empty((batch, 2, NEAR, height, width))
    outer = grad.to(inputs[0].dtype)
    pointers = [x.data_ptr() for x in (dlogits, dlow, dhigh, dbeta)]
    arguments = (*_arguments(*inputs), _described(outer), pointers, workspace.data_ptr())
    _call("guided_upsample_backward", kernel, logits.device, *arguments)
    dbeta = dbeta.sum(dtype=torch.float64).to(beta.device, beta.dtype)
    return dlogits.to(logits.dtype), dlow.to(guide_lo.dtype), dhigh.to(guide_hi.dtype), dbeta


def _forward(logits: Tensor, guide_lo: Tensor, guide_hi: Tensor, beta: Tensor) -> Tensor:
    _check(logits, guide_lo, guide_hi, beta)
    check_memory(logits=logits, guide_lo=guide_lo, guide_hi=guide_hi, beta=beta)
    backend = _backend(logits, guide_lo, guide_hi)
    if backend == "reference":
        return guided_upsample_reference(logits, guide_lo, guide_hi, beta).contiguous()
    return _run(backend, logits, guide_lo, guide_hi, beta)


def _fake(logits: Tensor, guide_lo: Tensor, guide_hi: Tensor, beta: Tensor) -> Tensor:
    _check(logits, guide_lo, guide_hi, beta)
    return logits.new_empty((*logits.shape[:2], *guide_hi.shape[2:]))


def _check_backward(grad: Tensor, logits: Tensor, guide_lo: Tensor, guide_hi: Tensor, beta: Tensor) -> None:
    _check(logits, guide_lo, guide_hi, beta)
    check_dense(grad=grad)
    check_floating(grad=grad)
    check_device(logits, grad=grad)
    expected = (*logits.shape[:2], *guide_hi.shape[2:])
    if grad.shape != expected:
        raise ValueError(f"grad must be {expected} like the result, got {tuple(grad.shape)}")


def _backward(
    grad: Tensor, logits: Tensor, guide_lo: Tensor, guide_hi: Tensor, beta: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    _check_backward(grad, logits, guide_lo, guide_hi, beta)
    check_memory(grad=grad, logits=logits, guide_lo=guide_lo, guide_hi=guide_hi, beta=beta)
    backend = _backend(logits, guide_lo, guide_hi)
    if backend == "reference":
        found = guided_upsample_backward_reference(grad, logits, guide_lo, guide_hi, beta)
        return found[0].contiguous(), found[1].contiguous(), found[2].contiguous(), found[3]
    return _run_backward(backend, grad, logits, guide_lo, guide_hi, beta)


def _backward_fake(
    grad: Tensor, logits: Tensor, guide_lo: Tensor, guide_hi: Tensor, beta: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    _check_backward(grad, logits, guide_lo, guide_hi, beta)
    dlogits, dlow, dhigh, dbeta = (x.new_empty(x.shape) for x in (logits, guide_lo, guide_hi, beta))
    return dlogits, dlow, dhigh, dbeta


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _gradients(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
    """Recompute the weights: keeping them would cost 25 values a fine pixel."""
    return torch.ops.ovsdino.guided_upsample_backward(grad, *ctx.saved_tensors)


def _no_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    """Keep nothing: there is no second derivative."""


def _second(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:
    no_second_derivative("guided_upsample")


LIBRARY.impl("guided_upsample", _forward, "CompositeExplicitAutograd")
torch.library.register_fake(qualified("guided_upsample"), _fake, lib=LIBRARY)
torch.library.register_autograd(qualified("guided_upsample"), _gradients, setup_context=_setup_context, lib=LIBRARY)
LIBRARY.impl("guided_upsample_backward", _backward, "CompositeExplicitAutograd")
torch.library.register_fake(qualified("guided_upsample_backward"), _backward_fake, lib=LIBRARY)
torch.library.register_autograd(qualified("guided_upsample_backward"), _second, setup_context=_no_context, lib=LIBRARY)
