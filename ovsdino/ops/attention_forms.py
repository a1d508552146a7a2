"""Structure attention in plain PyTorch: the formula as written, folded into one plain attention, and for exporters.

Shapes are those of `ovsdino.ops.structure_attention`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ovsdino.ops.compat import attention


def structure_attention_reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    e: Tensor,
    lam: Tensor,
    gate: Tensor | None,
    scale: float,
    key_e: Tensor | None = None,
) -> Tensor:
    """Compute the formula as written, with the (B, M, N, L) bias in memory: the oracle. Shapes as in the public op."""
    # One of the r coordinates at a time: (B, M, N, L, r) would be r times the memory.
    squared = torch.zeros((), dtype=e.dtype, device=e.device)
    for x, y in zip(e.unbind(-1), (e if key_e is None else key_e).unbind(-1), strict=True):
        squared = squared + (x.unsqueeze(3) - y.unsqueeze(2)).square()
    bias = lam.to(e.dtype)[:, None, None] * squared
    logits = scale * (q @ k.transpose(-2, -1)) - bias
    out = logits.softmax(-1).to(v.dtype) @ v
    return out if gate is None else out * gate.unsqueeze(-1).to(out.dtype)


def fold(
    q: Tensor, k: Tensor, e: Tensor, lam: Tensor, scale: float, width: int = 0, key_e: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return queries and keys whose plain dot product is scale q.k - lam |e_i - e'_j|^2, up to a term constant in j.

    [scale q, 2 lam e, 1] . [k, e', -lam |e'|^2]: the row term -lam |e_i|^2 is left out, it cancels in the softmax.
    e and e' are centred over the keys first: with a mean of 4 the float16 error is 0.06, centred 0.005.

    Args:
        q: (B, M, N, d).
        k: (B, M, L, d).
        e: (B, M, N, r).
        lam: (M,).
        scale: factor of q.k.
        width: least last dimension of the results; zeros fill it.
        key_e: e', (B, M, L, r); None: `e`, L = N.

    Returns:
        (B, M, N, s) and (B, M, L, s), s = max(d + r + 1, width), in the dtype of `q`, computed in at least float32.
    """
    compute = torch.promote_types(torch.promote_types(q.dtype, e.dtype), torch.float32)
    strength = lam.to(compute)[:, None, None]
    places = e.to(compute)
    partners = places if key_e is None else key_e.to(compute)
    shift = partners.mean(2, keepdim=True)
    places = places - shift
    partners = places if key_e is None else partners - shift
    column = -strength * partners.square().sum(-1, keepdim=True)
    parts_q = [(q * scale).to(q.dtype), (2.0 * strength * places).to(q.dtype), torch.ones_like(q[..., :1])]
    parts_k = [k, partners.to(k.dtype), column.to(k.dtype)]
    missing = width - (q.shape[-1] + e.shape[-1] + 1)
    if missing > 0:
        zeros = q.new_zeros((*q.shape[:-1], missing))
        parts_q.append(zeros)
        parts_k.append(zeros if key_e is None else k.new_zeros((*k.shape[:-1], missing)))
    return torch.cat(parts_q, -1), torch.cat(parts_k, -1)


def structure_attention_folded(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    e: Tensor,
    lam: Tensor,
    gate: Tensor | None,
    scale: float,
    key_e: Tensor | None = None,
) -> Tensor:
    """Compute it by one plain scaled_dot_product_attention of head size d + r + 1: O(N) memory, any flash kernel.

    Shapes as `structure_attention`. Every flash kernel asks for one head size for q, k and v (a multiple of 8 on CUDA);
    where the shapes give none the narrower side is filled with zeros, since the other path would hold N x L.
    """
    dv = v.shape[-1]
    width = max(-(-(q.shape[-1] + e.shape[-1] + 1) // 8) * 8, -(-dv // 8) * 8)
    folded_q, folded_k = fold(q, k, e, lam, scale, width, key_e)
    values = v if dv == width else F.pad(v, (0, width - dv))
    out = attention(folded_q, folded_k, values)
    if dv != width:
        out = out[..., :dv]
    return out if gate is None else out * gate.unsqueeze(-1).to(out.dtype)


def structure_attention_explicit(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    e: Tensor,
    lam: Tensor,
    gate: Tensor | None,
    scale: float,
    key_e: Tensor | None = None,
) -> Tensor:
    """Compute the folded form as MatMul, Softmax, MatMul, the scale inside q, which TensorRT fuses into one kernel.

    Shapes as `structure_attention`. Exporters' own decompositions of scaled_dot_product_attention scale q and k by
    square roots or leave the scale to the consumer; published exports of that form have gone wrong in float16.
    """
    width = -(-(q.shape[-1] + e.shape[-1] + 1) // 8) * 8
    folded_q, folded_k = fold(q, k, e, lam, scale, width, key_e)
    out = (folded_q @ folded_k.transpose(-2, -1)).softmax(-1) @ v
    return out if gate is None else out * gate.unsqueeze(-1).to(out.dtype)
