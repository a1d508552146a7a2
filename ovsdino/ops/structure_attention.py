"""Attention whose logits are lowered by structural distance: tokens across a boundary see less of each other."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ovsdino.ops import dispatch
from ovsdino.ops.attention_forms import (
    structure_attention_explicit,
    structure_attention_folded,
    structure_attention_reference,
)
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
from ovsdino.ops.dispatch import resolve
from ovsdino.ops.schema import LIBRARY, qualified

# q, k, v, e, lam, gate, scale, key_e
_Inputs = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor | None, float, Tensor | None]

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
    key_e: Tensor | None = None,
) -> Tensor:
    """o_i = g_i sum_j softmax_j(scale q_i.k_j - lam_m |e_i - e'_j|^2) v_j, with e' = `key_e`, or e.

    Without `key_e` queries and keys are the same N tokens. With it, N queries look at L keys of any origin, those of
    earlier frames for example: nothing but the structure term says where they are.

    "sdpa" and "reference" run as plain PyTorch, so autograd, autocast and `torch.compile` see ordinary ops; exporters
    are given `structure_attention_explicit`, whatever the backend.
    "triton" and "cuda" are opaque ops; inside an autocast region q, k, v and gate are cast as for SDPA. The backward of
    "cuda" is that of "triton", or of "sdpa" where there is no Triton; it keeps nothing but the inputs.
    ``torch.ops.ovsdino.structure_attention`` is any backend as one such op.

    Args:
        q: (B, M, N, d) queries, floating.
        k: (B, M, L, d) keys; L = N without `key_e`.
        v: (B, M, L, dv) values.
        e: (B, M, N, r) structure embedding; only differences count, any shift common to all tokens is the same op.
        lam: (M,) strength of the structure term, one a head, >= 0.
        gate: (B, M, N) preservation gate, or None for 1.
        scale: factor of q.k, finite; None: 1/sqrt(d).
        key_e: (B, M, L, r) structure embedding of the keys, in the dtype of `e`; None: `e`.

    Returns:
        (B, M, N, dv), the dtype of `v` (of the autocast region inside one).

    Raises:
        ValueError: a shape does not fit, or the backend asked for by name cannot take it; the message says what.
        NotImplementedError: a second or a forward-mode derivative is asked of an opaque op.
    """
    scale = _check(q, k, v, e, lam, gate, scale, key_e)
    if exporting():
        return structure_attention_explicit(q, k, v, e, lam, gate, scale, key_e)
    backend = _resolved(q, _wants_gradient(q, k, v, e, lam, gate, key_e))
    if backend == "cuda":
        check_no_tangent("structure_attention", q, k, v, e, lam, gate, key_e)
        q, k, v, gate = _autocast(q, k, v, gate)
        return torch.ops.ovsdino.structure_attention(q, k, v, e, lam, gate, scale, backend, key_e)
    return _differentiable(backend, q, k, v, e, lam, gate, scale, key_e)


def _check(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    e: Tensor,
    lam: Tensor,
    gate: Tensor | None,
    scale: float | None,
    key_e: Tensor | None,
) -> float:
    """Return the scale, once all inputs fit."""
    optional = {name: x for name, x in (("gate", gate), ("key_e", key_e)) if x is not None}
    check_dense(q=q, k=k, v=v, e=e, lam=lam, **optional)
    check_floating(q=q, k=k, v=v, e=e, lam=lam, **optional)
    check_device(q, k=k, v=v, e=e, lam=lam, **optional)
    if key_e is None and (q.dim() != 4 or k.shape != q.shape):
        found = f"got {tuple(q.shape)} and {tuple(k.shape)}; keys of other tokens need key_e"
        raise ValueError(f"q and k must be of one shape (B, M, N, d), {found}")
    if q.dim() != 4 or k.dim() != 4 or k.shape[:2] != q.shape[:2] or k.shape[3] != q.shape[3]:
        raise ValueError(f"q and k must be (B, M, N, d) and (B, M, L, d), got {tuple(q.shape)} and {tuple(k.shape)}")
    for name, x, like, letter in (("v", v, k, "k"), ("e", e, q, "q"), ("key_e", key_e, k, "k")):
        if x is not None and (x.dim() != 4 or x.shape[:3] != like.shape[:3]):
            raise ValueError(
                f"{name} must be (B, M, *, *) with {letter}'s {tuple(like.shape[:3])}, got {tuple(x.shape)}"
            )
    if key_e is not None and (key_e.shape[3] != e.shape[3] or key_e.dtype != e.dtype):
        expected = f"{e.shape[3]} coordinates in {e.dtype} as e"
        raise ValueError(f"key_e must have {expected}, got {tuple(key_e.shape)} {key_e.dtype}")
    if k.shape[2] == 0 and q.shape[2] > 0:
        raise ValueError(f"k must hold at least one key for the queries of q, got {tuple(k.shape)}")
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
    key_e: Tensor | None,
) -> Tensor:
    """Run a backend that has gradients of its own: plain PyTorch, or Triton's op."""
    if backend == "reference":
        return structure_attention_reference(q, k, v, e, lam, gate, scale, key_e)
    if backend == "sdpa":
        return structure_attention_folded(q, k, v, e, lam, gate, scale, key_e)
    check_no_tangent("structure_attention", q, k, v, e, lam, gate, key_e)
    q, k, v, gate = _autocast(q, k, v, gate)
    size = max(abs(scale), SMALLEST_SCALE)
    if scale != size:
        q, scale = q * (scale / size), size
    keep = _wants_gradient(q, k, v, e, lam, gate, key_e)
    return torch.ops.ovsdino.structure_attention_triton(q, k, v, e, lam, gate, scale, keep, key_e)[0]


def _cuda(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    e: Tensor,
    lam: Tensor,
    gate: Tensor | None,
    scale: float,
    key_e: Tensor | None,
) -> Tensor:
    """Launch the native kernel, whose own checks raise ValueError."""
    assert dispatch.native is not None
    q, k, v, gate = _autocast(q, k, v, gate)
    with torch.cuda.device(q.device):
        op, out, _alive = native_arguments(q, k, v, e, lam, gate, scale, key_e)
        dispatch.native.structure_attention_cuda(op, torch.cuda.current_stream(q.device).cuda_stream)
    return out[..., : v.shape[-1]]


def native_arguments(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    e: Tensor,
    lam: Tensor,
    gate: Tensor | None,
    scale: float,
    key_e: Tensor | None = None,
) -> tuple[Any, Tensor, list[Tensor]]:
    """Return the `_C.StructureAttention` of one call, its output, and the tensors that must live until it ran."""
    if k.dtype != q.dtype or v.dtype != q.dtype:
        raise ValueError(f"backend 'cuda' takes q, k and v of one dtype, got {q.dtype}, {k.dtype} and {v.dtype}")
    assert dispatch.native is not None
    q, k, v = (_aligned(x) for x in (q, k, v))
    if e.dtype != q.dtype:
        shift = (e if key_e is None else key_e).mean(2, keepdim=True)
        e = (e - shift).to(q.dtype)  # before the rounding
        key_e = None if key_e is None else (key_e - shift).to(q.dtype)
    lam = lam.to(torch.float32).contiguous()
    out = v.new_empty(*q.shape[:3], v.shape[-1])
    op = dispatch.native.StructureAttention()
    op.dtype = str(q.dtype)[6:]
    op.batch, op.heads, op.tokens, op.head_dim = q.shape
    op.keys, op.value_dim, op.rank, op.scale = k.shape[2], v.shape[-1], e.shape[-1], scale
    op.q, op.q_strides = q.data_ptr(), q.stride()
    op.k, op.k_strides = k.data_ptr(), k.stride()
    op.v, op.v_strides = v.data_ptr(), v.stride()
    op.e, op.e_strides = e.data_ptr(), e.stride()
    op.lam, op.out, op.out_strides = lam.data_ptr(), out.data_ptr(), out.stride()
    alive = [q, k, v, e, lam]
    if key_e is not None:
        op.key_e, op.key_e_strides = key_e.data_ptr(), key_e.stride()
        alive.append(key_e)
    if gate is not None:
        gate = gate.to(q.dtype)
        op.gate, op.gate_strides = gate.data_ptr(), gate.stride()
        alive.append(gate)
    workspace = q.new_empty(dispatch.native.structure_attention_workspace(op), dtype=torch.uint8)
    op.workspace = workspace.data_ptr()
    return op, out, [*alive, workspace]


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
    q: Tensor,
    k: Tensor,
    v: Tensor,
    e: Tensor,
    lam: Tensor,
    gate: Tensor | None,
    scale: float,
    backend: str = "",
    key_e: Tensor | None = None,
) -> Tensor:
    _check(q, k, v, e, lam, gate, scale, key_e)
    check_memory(q=q, k=k, v=v, e=e, lam=lam, gate=gate, key_e=key_e)
    backend = _resolved(q, False, backend)
    run = _cuda if backend == "cuda" else partial(_differentiable, backend)
    return run(q, k, v, e, lam, gate, scale, key_e).contiguous()


def _fake(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    e: Tensor,
    lam: Tensor,
    gate: Tensor | None,
    scale: float,
    backend: str = "",
    key_e: Tensor | None = None,
) -> Tensor:
    _check(q, k, v, e, lam, gate, scale, key_e)
    return v.new_empty(*q.shape[:3], v.shape[-1])


class _Once(torch.autograd.Function):
    """Gradients as they are, and an error where they are differentiated."""

    @staticmethod
    def forward(ctx: Any, count: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(x.view_as(x) for x in tensors[:count])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        no_second_derivative("structure_attention")


def _key_e_needed(ctx: Any, key_e: Tensor | None) -> bool:
    """Return whether key_e, the ninth argument of both ops, wants a gradient; torch drops defaults."""
    return key_e is not None and ctx.needs_input_grad[8]


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.scale, ctx.backend, key_e = inputs
    ctx.save_for_backward(*tensors, key_e)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    """Recompute the forward: two passes over N x L tiles against an (N, L) tensor kept between them."""
    with torch.enable_grad():
        needs = (*ctx.needs_input_grad[:6], _key_e_needed(ctx, ctx.saved_tensors[6]))
        inputs: list[Any] = [
            None if x is None else x.detach().requires_grad_(needed)
            for x, needed in zip(ctx.saved_tensors, needs, strict=True)
        ]
        q, k, v, e, lam, gate, key_e = inputs
        backend = ctx.backend or _resolved(q, True)
        if backend == "cuda":
            backend = "triton" if dispatch.has_triton else "sdpa"
        out = _differentiable(backend, q, k, v, e, lam, gate, ctx.scale, key_e)
    wanted = [x for x in inputs if x is not None and x.requires_grad]
    grads = torch.autograd.grad(out, wanted, grad)
    if torch.is_grad_enabled():  # create_graph=True: the graph that made them is not kept
        grads = _Once.apply(len(grads), *grads, *(x for x in ctx.saved_tensors if x is not None), grad)
    found = iter(grads)
    *six, of_key_e = (next(found) if x is not None and x.requires_grad else None for x in inputs)
    return *six, None, None, of_key_e


def _check_triton(inputs: _Inputs) -> None:
    _check(*inputs)
    q, k, v, e, lam, gate, _, key_e = inputs
    check_memory(q=q, k=k, v=v, e=e, lam=lam, gate=gate, key_e=key_e)
    reason = dispatch.why_not("structure_attention", "triton", q.device.type, q.dtype)
    if reason:
        raise ValueError(f"backend 'triton' of structure_attention cannot run: {reason}")


def _triton(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    e: Tensor,
    lam: Tensor,
    gate: Tensor | None,
    scale: float,
    keep: bool,
    key_e: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    _check_triton((q, k, v, e, lam, gate, scale, key_e))
    import ovsdino.kernels.structure_attention as kernels

    return kernels.forward(kernels.Inputs(q, k, v, e, lam, gate, scale, key_e), keep)


def _triton_fake(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    e: Tensor,
    lam: Tensor,
    gate: Tensor | None,
    scale: float,
    keep: bool,
    key_e: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    _check(q, k, v, e, lam, gate, scale, key_e)
    batch, heads, tokens, _ = q.shape
    out = v.new_empty(batch, tokens, heads, v.shape[-1]).transpose(1, 2)
    plain = torch.empty_like(out, dtype=torch.float32) if keep else v.new_empty(0, dtype=torch.float32)
    return out, plain, q.new_empty(q.shape[:3] if keep else (0,), dtype=torch.float32)


def _triton_setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    *tensors, ctx.scale, keep, key_e = inputs
    _, plain, level = output
    ctx.mark_non_differentiable(plain, level)
    ctx.set_materialize_grads(False)
    if keep:
        ctx.save_for_backward(*tensors, plain, level, key_e)


def _triton_backward(ctx: Any, grad: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    if grad is None:
        return (None,) * 9
    if not ctx.saved_tensors:
        raise ValueError("structure_attention_triton needs keep=True where a gradient is wanted")
    *inputs, plain, level, key_e = ctx.saved_tensors
    *six, of_key_e = torch.ops.ovsdino.structure_attention_triton_backward(
        grad, *inputs, ctx.scale, plain, level, key_e
    )
    needs = ctx.needs_input_grad
    found = (x if needed else None for x, needed in zip(six, needs, strict=False))
    return *found, None, None, of_key_e if _key_e_needed(ctx, key_e) else None


def _check_kept(grad: Tensor, q: Tensor, v: Tensor, plain: Tensor, level: Tensor) -> None:
    check_dense(grad=grad, plain=plain, level=level)
    check_floating(grad=grad, plain=plain, level=level)
    check_device(q, grad=grad, plain=plain, level=level)
    wide = (*q.shape[:3], v.shape[-1])
    for name, x, shape in (("grad", grad, wide), ("plain", plain, wide), ("level", level, q.shape[:3])):
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
    key_e: Tensor | None = None,
) -> tuple[Tensor, ...]:
    _check_triton((q, k, v, e, lam, gate, scale, key_e))
    _check_kept(grad, q, v, plain, level)
    check_memory(grad=grad, plain=plain, level=level)
    import ovsdino.kernels.structure_attention as kernels

    # The kernels read these two by the strides that forward gives them.
    plain, level = plain.transpose(1, 2).contiguous().transpose(1, 2), level.contiguous()
    return kernels.backward(grad, kernels.Inputs(q, k, v, e, lam, gate, scale, key_e), plain, level)


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
    key_e: Tensor | None = None,
) -> tuple[Tensor, ...]:
    _check(q, k, v, e, lam, gate, scale, key_e)
    _check_kept(grad, q, v, plain, level)
    return tuple(q.new_empty(0) if x is None else torch.empty_like(x) for x in (q, k, v, e, lam, gate, key_e))


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
