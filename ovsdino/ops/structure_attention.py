"""Attention whose logits are lowered by structural distance: tokens across a boundary see less of each other."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ovsdino.ops import dispatch
from ovsdino.ops.checks import (
    check_dense,
    check_device,
    check_floating,
    check_memory,
    check_no_tangent,
    check_number,
    no_second_derivative,
)
from ovsdino.ops.compat import attention, exporting
from ovsdino.ops.dispatch import resolve
from ovsdino.ops.schema import LIBRARY, qualified

# Triton's kernels take scale > 0, and e / sqrt(scale) must fit float16: a sign, and what is missing to this, go into q.
SMALLEST_SCALE = 2.0**-10


def structure_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    e: Tensor,
    lam: Tensor,
    gate: Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    """o_i = g_i sum_j softmax_j(scale q_i.k_j - lam_m |e_i - e_j|^2) v_j.

    "sdpa" and "reference" run as plain PyTorch, so autograd, autocast and `torch.compile` see ordinary ops; exporters
    are given `structure_attention_explicit`, whatever the backend.
    "triton" and "cuda" are opaque ops; inside an autocast region q, k, v and gate are cast as for SDPA. The backward of
    "cuda" is that of "triton", or of "sdpa" where there is no Triton; it keeps nothing but the inputs.
    ``torch.ops.ovsdino.structure_attention`` is any backend as one such op.

    Args:
        q: (B, M, N, d) queries, floating.
        k: (B, M, N, d) keys.
        v: (B, M, N, dv) values.
        e: (B, M, N, r) structure embedding; only differences count, any shift common to all tokens is the same op.
        lam: (M,) strength of the structure term, one a head, >= 0.
        gate: (B, M, N) preservation gate, or None for 1.
        scale: factor of q.k, finite; None: 1/sqrt(d).

    Returns:
        (B, M, N, dv), the dtype of `v` (of the autocast region inside one).

    Raises:
        ValueError: a shape does not fit, or the backend asked for by name cannot take it; the message says what.
        NotImplementedError: a second or a forward-mode derivative is asked of an opaque op.
    """
    scale = _check(q, k, v, e, lam, gate, scale)
    if exporting():
        return structure_attention_explicit(q, k, v, e, lam, gate, scale)
    backend = _resolved(q, _wants_gradient(q, k, v, e, lam, gate))
    if backend == "cuda":
        check_no_tangent("structure_attention", q, k, v, e, lam, gate)
        q, k, v, gate = _autocast(q, k, v, gate)
        return torch.ops.ovsdino.structure_attention(q, k, v, e, lam, gate, scale, backend)
    return _differentiable(backend, q, k, v, e, lam, gate, scale)


def structure_attention_reference(
    q: Tensor, k: Tensor, v: Tensor, e: Tensor, lam: Tensor, gate: Tensor | None, scale: float
) -> Tensor:
    """Compute the formula as written, with the (B, M, N, N) bias in memory: the oracle. Shapes as in the public op."""
    # One of the r coordinates at a time: (B, M, N, N, r) would be r times the memory.
    squared = torch.zeros((), dtype=e.dtype, device=e.device)
    for x in e.unbind(-1):
        squared = squared + (x.unsqueeze(3) - x.unsqueeze(2)).square()
    bias = lam.to(e.dtype)[:, None, None] * squared
    logits = scale * (q @ k.transpose(-2, -1)) - bias
    out = logits.softmax(-1).to(v.dtype) @ v
    return out if gate is None else out * gate.unsqueeze(-1).to(out.dtype)


def fold(q: Tensor, k: Tensor, e: Tensor, lam: Tensor, scale: float, width: int = 0) -> tuple[Tensor, Tensor]:
    """Return queries and keys whose plain dot product is scale q.k - lam |e_i - e_j|^2, up to a term constant in j.

    [scale q, 2 lam e, 1] . [k, e, -lam |e|^2]: the row term -lam |e_i|^2 is left out, it cancels in the softmax.
    e is centred over the tokens first: with a mean of 4 the float16 error is 0.06, centred 0.005.

    Args:
        q: (B, M, N, d).
        k: (B, M, N, d).
        e: (B, M, N, r).
        lam: (M,).
        scale: factor of q.k.
        width: least last dimension of the results; zeros fill it.

    Returns:
        Two (B, M, N, max(d + r + 1, width)) tensors in the dtype of `q`, the fold computed in at least float32.
    """
    compute = torch.promote_types(torch.promote_types(q.dtype, e.dtype), torch.float32)
    strength = lam.to(compute)[:, None, None]
    centred = e.to(compute)
    centred = centred - centred.mean(2, keepdim=True)
    column = -strength * centred.square().sum(-1, keepdim=True)
    parts_q = [(q * scale).to(q.dtype), (2.0 * strength * centred).to(q.dtype), torch.ones_like(q[..., :1])]
    parts_k = [k, centred.to(k.dtype), column.to(k.dtype)]
    missing = width - (q.shape[-1] + e.shape[-1] + 1)
    if missing > 0:
        zeros = q.new_zeros((*q.shape[:-1], missing))
        parts_q.append(zeros)
        parts_k.append(zeros)
    return torch.cat(parts_q, -1), torch.cat(parts_k, -1)


def structure_attention_folded(
    q: Tensor, k: Tensor, v: Tensor, e: Tensor, lam: Tensor, gate: Tensor | None, scale: float
) -> Tensor:
    """Compute it by one plain scaled_dot_product_attention of head size d + r + 1: O(N) memory, any flash kernel.

    Shapes as `structure_attention`. Every flash kernel asks for one head size for q, k and v (a multiple of 8 on CUDA);
    where the shapes give none the narrower side is filled with zeros, since the other path would hold N x N.
    """
    dv = v.shape[-1]
    width = max(-(-(q.shape[-1] + e.shape[-1] + 1) // 8) * 8, -(-dv // 8) * 8)
    folded_q, folded_k = fold(q, k, e, lam, scale, width)
    values = v if dv == width else F.pad(v, (0, width - dv))
    out = attention(folded_q, folded_k, values)
    if dv != width:
        out = out[..., :dv]
    return out if gate is None else out * gate.unsqueeze(-1).to(out.dtype)


def structure_attention_explicit(
    q: Tensor, k: Tensor, v: Tensor, e: Tensor, lam: Tensor, gate: Tensor | None, scale: float
) -> Tensor:
    """Compute the folded form as MatMul, Softmax, MatMul, the scale inside q, which TensorRT fuses into one kernel.

    Shapes as `structure_attention`. Exporters' own decompositions of scaled_dot_product_attention scale q and k by
    square roots or leave the scale to the consumer; published exports of that form have gone wrong in float16.
    """
    width = -(-(q.shape[-1] + e.shape[-1] + 1) // 8) * 8
    folded_q, folded_k = fold(q, k, e, lam, scale, width)
    out = (folded_q @ folded_k.transpose(-2, -1)).softmax(-1) @ v
    return out if gate is None else out * gate.unsqueeze(-1).to(out.dtype)


def _check(q: Tensor, k: Tensor, v: Tensor, e: Tensor, lam: Tensor, gate: Tensor | None, scale: float | None) -> float:
    """Return the scale, once all inputs fit."""
    check_dense(q=q, k=k, v=v, e=e, lam=lam, **({} if gate is None else {"gate": gate}))
    check_floating(q=q, k=k, v=v, e=e, lam=lam, gate=gate)
    check_device(q, k=k, v=v, e=e, lam=lam, gate=gate)
    if q.dim() != 4 or k.shape != q.shape:
        raise ValueError(f"q and k must be of one shape (B, M, N, d), got {tuple(q.shape)} and {tuple(k.shape)}")
    for name, x in (("v", v), ("e", e)):
        if x.dim() != 4 or x.shape[:3] != q.shape[:3]:
            raise ValueError(f"{name} must be (B, M, N, *) with q's {tuple(q.shape[:3])}, got {tuple(x.shape)}")
    if lam.shape != q.shape[1:2]:
        raise ValueError(f"lam must be ({q.shape[1]},), one a head of q, got {tuple(lam.shape)}")
    if gate is not None and gate.shape != q.shape[:3]:
        raise ValueError(f"gate must be {tuple(q.shape[:3])}, one a token and head, got {tuple(gate.shape)}")
    if q.shape[-1] == 0:
        raise ValueError(f"q and k must have at least one feature, got {tuple(q.shape)}")
    if scale is None:
        return q.shape[-1] ** -0.5
    check_number("scale", scale)
    return scale


def _resolved(q: Tensor, gradient: bool, name: str = "") -> str:
    kind = q.device.type
    autocast = kind != "meta" and torch.is_autocast_enabled(kind)  # which raises for meta tensors
    dtype = torch.get_autocast_dtype(kind) if autocast else q.dtype
    return resolve("structure_attention", q.device, dtype, name, size=q.shape[2], gradient=gradient)


def _wants_gradient(*inputs: Tensor | None) -> bool:
    return torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in inputs)


def _autocast(q: Tensor, k: Tensor, v: Tensor, gate: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Return q, k, v and gate as `torch.autocast` casts them for SDPA."""
    kind = q.device.type
    if torch.is_autocast_enabled(kind):
        dtype = torch.get_autocast_dtype(kind)
        q, k, v = q.to(dtype), k.to(dtype), v.to(dtype)
        gate = None if gate is None else gate.to(dtype)
    return q, k, v, gate


def _differentiable(
    backend: str,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    e: Tensor,
    lam: Tensor,
    gate: Tensor | None,
    scale: float,
) -> Tensor:
    """Run a backend that has gradients of its own: plain PyTorch, or Triton's op."""
    if backend == "reference":
        return structure_attention_reference(q, k, v, e, lam, gate, scale)
    if backend == "sdpa":
        return structure_attention_folded(q, k, v, e, lam, gate, scale)
    check_no_tangent("structure_attention", q, k, v, e, lam, gate)
    q, k, v, gate = _autocast(q, k, v, gate)
    size = max(abs(scale), SMALLEST_SCALE)
    if scale != size:
        q, scale = q * (scale / size), size
    inputs = (q, k, v, e, lam, gate)
    return torch.ops.ovsdino.structure_attention_triton(*inputs, scale, _wants_gradient(*inputs))[0]


def _cuda(q: Tensor, k: Tensor, v: Tensor, e: Tensor, lam: Tensor, gate: Tensor | None, scale: float) -> Tensor:
    """Launch the native kernel, whose own checks raise ValueError."""
    assert dispatch.native is not None
    q, k, v, gate = _autocast(q, k, v, gate)
    with torch.cuda.device(q.device):
        op, out, _alive = native_arguments(q, k, v, e, lam, gate, scale)
        dispatch.native.structure_attention_cuda(op, torch.cuda.current_stream(q.device).cuda_stream)
    return out[..., : v.shape[-1]]


def native_arguments(
    q: Tensor, k: Tensor, v: Tensor, e: Tensor, lam: Tensor, gate: Tensor | None, scale: float
) -> tuple[Any, Tensor, list[Tensor]]:
    """Return the `_C.StructureAttention` of one call, its output, and the tensors that must live until it ran."""
    if k.dtype != q.dtype or v.dtype != q.dtype:
        raise ValueError(f"backend 'cuda' takes q, k and v of one dtype, got {q.dtype}, {k.dtype} and {v.dtype}")
    assert dispatch.native is not None
    q, k, v = (_aligned(x) for x in (q, k, v))
    if e.dtype != q.dtype:
        e = (e - e.mean(2, keepdim=True)).to(q.dtype)  # before the rounding
    lam = lam.to(torch.float32).contiguous()
    out = v.new_empty(v.shape)
    workspace = q.new_empty(dispatch.native.structure_attention_workspace(*q.shape[:3]), dtype=torch.uint8)
    op = dispatch.native.StructureAttention()
    op.dtype = str(q.dtype)[6:]
    op.batch, op.heads, op.tokens, op.head_dim = q.shape
    op.value_dim, op.rank, op.scale = v.shape[-1], e.shape[-1], scale
    op.q, op.q_strides = q.data_ptr(), q.stride()
    op.k, op.k_strides = k.data_ptr(), k.stride()
    op.v, op.v_strides = v.data_ptr(), v.stride()
    op.e, op.e_strides = e.data_ptr(), e.stride()
    op.lam, op.workspace = lam.data_ptr(), workspace.data_ptr()
    op.out, op.out_strides = out.data_ptr(), out.stride()
    alive = [q, k, v, e, lam, workspace]
    if gate is not None:
        gate = gate.to(q.dtype)
        op.gate, op.gate_strides = gate.data_ptr(), gate.stride()
        alive.append(gate)
    return op, out, alive


def _aligned(x: Tensor) -> Tensor:
    """Return x as the native kernel takes it: a last dimension of a multiple of 8, read in 16-byte pieces."""
    missing = -x.shape[-1] % 8
    if missing:
        return F.pad(x, (0, missing))
    steps = [step for step, size in zip(x.stride()[:-1], x.shape[:-1], strict=True) if size > 1]
    fits = x.stride(-1) == 1 and x.data_ptr() % 16 == 0 and all(step % 8 == 0 for step in steps)
    # contiguous() would return x itself where only its start is odd.
    return x if fits else x.clone(memory_format=torch.contiguous_format)


def _forward(
    q: Tensor, k: Tensor, v: Tensor, e: Tensor, lam: Tensor, gate: Tensor | None, scale: float, backend: str = ""
) -> Tensor:
    _check(q, k, v, e, lam, gate, scale)
    check_memory(q=q, k=k, v=v, e=e, lam=lam, gate=gate)
    backend = _resolved(q, False, backend)
    if backend == "cuda":
        return _cuda(q, k, v, e, lam, gate, scale).contiguous()
    return _differentiable(backend, q, k, v, e, lam, gate, scale).contiguous()


def _fake(
    q: Tensor, k: Tensor, v: Tensor, e: Tensor, lam: Tensor, gate: Tensor | None, scale: float, backend: str = ""
) -> Tensor:
    _check(q, k, v, e, lam, gate, scale)
    return v.new_empty(v.shape)


class _Once(torch.autograd.Function):
    """Gradients as they are, and an error where they are differentiated."""

    @staticmethod
    def forward(ctx: Any, count: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(x.view_as(x) for x in tensors[:count])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        no_second_derivative("structure_attention")


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.scale, ctx.backend = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    """Recompute the forward: two passes over N^2 tiles against an (N, N) tensor kept between them."""
    with torch.enable_grad():
        inputs: list[Any] = [
            None if x is None else x.detach().requires_grad_(needed)
            for x, needed in zip(ctx.saved_tensors, ctx.needs_input_grad[:6], strict=True)
        ]
        q, k, v, e, lam, gate = inputs
        backend = ctx.backend or _resolved(q, True)
        if backend == "cuda":
            backend = "triton" if dispatch.has_triton else "sdpa"
        out = _differentiable(backend, q, k, v, e, lam, gate, ctx.scale)
    wanted = [x for x in inputs if x is not None and x.requires_grad]
    grads = torch.autograd.grad(out, wanted, grad)
    if torch.is_grad_enabled():  # create_graph=True: the graph that made them is not kept
        grads = _Once.apply(len(grads), *grads, *(x for x in ctx.saved_tensors if x is not None), grad)
    found = iter(grads)
    return *(next(found) if x is not None and x.requires_grad else None for x in inputs), None, None


def _check_triton(q: Tensor, k: Tensor, v: Tensor, e: Tensor, lam: Tensor, gate: Tensor | None, scale: float) -> None:
    _check(q, k, v, e, lam, gate, scale)
    check_memory(q=q, k=k, v=v, e=e, lam=lam, gate=gate)
    reason = dispatch.why_not("structure_attention", "triton", q.device.type, q.dtype)
    if reason:
        raise ValueError(f"backend 'triton' of structure_attention cannot run: {reason}")


def _triton(
    q: Tensor, k: Tensor, v: Tensor, e: Tensor, lam: Tensor, gate: Tensor | None, scale: float, keep: bool
) -> tuple[Tensor, Tensor, Tensor]:
    _check_triton(q, k, v, e, lam, gate, scale)
    import ovsdino.kernels.structure_attention as kernels

    return kernels.forward(kernels.Inputs(q, k, v, e, lam, gate, scale), keep)


def _triton_fake(
    q: Tensor, k: Tensor, v: Tensor, e: Tensor, lam: Tensor, gate: Tensor | None, scale: float, keep: bool
) -> tuple[Tensor, Tensor, Tensor]:
    _check(q, k, v, e, lam, gate, scale)
    batch, heads, tokens, dv = v.shape
    out = v.new_empty(batch, tokens, heads, dv).transpose(1, 2)
    plain = torch.empty_like(out, dtype=torch.float32) if keep else v.new_empty(0, dtype=torch.float32)
    return out, plain, q.new_empty(q.shape[:3] if keep else (0,), dtype=torch.float32)


def _triton_setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    *tensors, ctx.scale, keep = inputs
    _, plain, level = output
    ctx.mark_non_differentiable(plain, level)
    ctx.set_materialize_grads(False)
    if keep:
        ctx.save_for_backward(*tensors, plain, level)


def _triton_backward(ctx: Any, grad: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    if grad is None:
        return (None,) * 8
    if not ctx.saved_tensors:
        raise ValueError("structure_attention_triton needs keep=True where a gradient is wanted")
    *inputs, plain, level = ctx.saved_tensors
    grads = torch.ops.ovsdino.structure_attention_triton_backward(grad, *inputs, ctx.scale, plain, level)
    return *(x if needed else None for x, needed in zip(grads, ctx.needs_input_grad, strict=False)), None, None


def _check_kept(grad: Tensor, q: Tensor, v: Tensor, plain: Tensor, level: Tensor) -> None:
    check_dense(grad=grad, plain=plain, level=level)
    check_floating(grad=grad, plain=plain, level=level)
    check_device(q, grad=grad, plain=plain, level=level)
    for name, x, shape in (("grad", grad, v.shape), ("plain", plain, v.shape), ("level", level, q.shape[:3])):
        if x.shape != shape or (x is not grad and x.dtype != torch.float32):
            raise ValueError(f"{name} must be {tuple(shape)} as forward gives it, got {tuple(x.shape)} {x.dtype}")


def _triton_gradients(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    e: Tensor,
    lam: Tensor,
    gate: Tensor | None,
    scale: float,
    plain: Tensor,
    level: Tensor,
) -> tuple[Tensor, ...]:
    _check_triton(q, k, v, e, lam, gate, scale)
    _check_kept(grad, q, v, plain, level)
    check_memory(grad=grad, plain=plain, level=level)
    import ovsdino.kernels.structure_attention as kernels

    # The kernels read these two by the strides that forward gives them.
    plain, level = plain.transpose(1, 2).contiguous().transpose(1, 2), level.contiguous()
    return kernels.backward(grad, kernels.Inputs(q, k, v, e, lam, gate, scale), plain, level)


def _triton_gradients_fake(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    e: Tensor,
    lam: Tensor,
    gate: Tensor | None,
    scale: float,
    plain: Tensor,
    level: Tensor,
) -> tuple[Tensor, ...]:
    _check(q, k, v, e, lam, gate, scale)
    _check_kept(grad, q, v, plain, level)
    given = q.new_empty(0) if gate is None else torch.empty_like(gate)
    return *(torch.empty_like(x) for x in (q, k, v, e)), torch.empty_like(lam), given


def _no_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    """Keep nothing: there is no second derivative."""


def _second(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:
    no_second_derivative("structure_attention")


def _register(name: str, kernel: Any, fake: Any) -> None:
    LIBRARY.impl(name, kernel, "CompositeExplicitAutograd")
    torch.library.register_fake(qualified(name), fake, lib=LIBRARY)


_register("structure_attention", _forward, _fake)
_register("structure_attention_triton", _triton, _triton_fake)
_register("structure_attention_triton_backward", _triton_gradients, _triton_gradients_fake)
torch.library.register_autograd(qualified("structure_attention"), _backward, setup_context=_setup_context, lib=LIBRARY)
torch.library.register_autograd(
    qualified("structure_attention_triton"), _triton_backward, setup_context=_triton_setup_context, lib=LIBRARY
)
torch.library.register_autograd(
    qualified("structure_attention_triton_backward"), _second, setup_context=_no_context, lib=LIBRARY
)
