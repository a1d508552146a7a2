"""Mean feature under each mask, and the mask's area."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ovsdino.ops.checks import FLOATING, check_dense, check_device, check_floating, check_memory, check_no_tangent
from ovsdino.ops.dispatch import native, resolve
from ovsdino.ops.schema import LIBRARY, qualified

# Above this share of set mask elements a matrix product takes over (measured on AVX-512, one thread, 256 masks of 64x64
# tokens, C = 768: the lists take 16 ms at 0.3, the product 21 ms at any).
MAX_DENSITY = 0.25


def mask_pool(features: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
    """mean_mc = sum_n w_mn f_nc / sum_n w_mn and area_m = sum_n w_mn; an empty mask gives zeros and area 0, never NaN.

    Gradients flow to `features` and, for floating masks, to `masks`.

    Args:
        features: (B, N, C) float32, float16, bfloat16 or float64.
        masks: (B, M, N) bool, uint8 (set where not 0) or floating (weights >= 0, soft masks).

    Returns:
        Means (B, M, C) in the dtype of `features` and areas (B, M), float32 (float64 for float64 features).

    The same inputs give the same bits: every kernel adds in an order that the masks alone decide, without atomics and
    whatever the number of threads. A matrix product (dense masks on the CPU, the gradient of soft masks)
    gives the same bits on as many threads.

    A NaN or infinite feature makes the means of the masks that hold its token non-finite; what it does to other masks
    depends on the backend (in a matrix product 0 * NaN is NaN).

    Raises:
        ValueError: a shape or dtype does not fit; the message names it.
    """
    _check(features, masks)
    check_no_tangent("mask_pool", features, masks)
    return torch.ops.ovsdino.mask_pool(features, masks)


def mask_pool_reference(features: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
    """`mask_pool` as one matrix product on converted masks: the oracle, differentiable by itself."""
    compute = torch.promote_types(features.dtype, torch.float32)
    weights = mask_weights(masks, compute)
    areas = weights.sum(-1)
    sums = weights @ features.to(compute)
    empty = areas == 0
    means = sums / areas.masked_fill(empty, 1).unsqueeze(-1)
    return means.masked_fill(empty.unsqueeze(-1), 0).to(features.dtype), areas


def mask_pool_dense(features: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
    """Return `mask_pool` as one matrix product of the features' dtype, on tensor cores where there are any.

    Hard masks are 0 and 1, exact in 16 bits, and the product is float32: no sum overflows or is rounded. Soft masks,
    whose weights 16 bits would round, take `mask_pool_reference`.
    """
    if masks.is_floating_point():
        return mask_pool_reference(features, masks)
    weights = (masks if masks.dtype == torch.bool else masks != 0).to(features.dtype)
    areas = weights.sum(-1, dtype=torch.promote_types(features.dtype, torch.float32))
    sums = _wide_product(weights, features)
    means = torch.div(sums, areas.clamp(min=1).unsqueeze(-1), out=torch.empty_like(sums, dtype=features.dtype))
    return means.masked_fill_((areas == 0).unsqueeze(-1), 0), areas


def _wide_product(a: Tensor, b: Tensor) -> Tensor:
    """Return a @ b of 16-bit tensors in float32: cuBLAS may add parts of a 16-bit result in 16 bits.

    On a CPU, and before torch 2.8, there is no product of 16 bits with a wider result: the factors are converted.
    """
    compute = torch.promote_types(a.dtype, torch.float32)
    if a.is_cuda and a.dtype != compute and hasattr(torch.ops.aten.bmm, "dtype"):
        return torch.bmm(a, b, out_dtype=compute)
    return a.to(compute) @ b.to(compute)


def mask_weights(masks: Tensor, dtype: torch.dtype) -> Tensor:
    """Return masks of any accepted form as (B, M, N) weights."""
    return masks.to(dtype) if masks.is_floating_point() else (masks != 0).to(dtype)


def _check(features: Tensor, masks: Tensor) -> None:
    check_dense(features=features, masks=masks)
    check_floating(features=features)
    if features.dim() != 3:
        raise ValueError(f"features must be (B, N, C), got {tuple(features.shape)}")
    _check_masks(masks, features.shape[0], features.shape[1])
    check_device(features, masks=masks)


def _check_masks(masks: Tensor, batch: int, tokens: int) -> None:
    if masks.dim() != 3 or masks.shape[0] != batch:
        raise ValueError(f"masks must be (B, M, N) with B={batch}, got {tuple(masks.shape)}")
    if masks.dtype not in (torch.bool, torch.uint8, *FLOATING):
        raise ValueError(f"masks must be bool, uint8 or floating, got {masks.dtype}")
    if masks.shape[2] != tokens:
        raise ValueError(f"masks must have N={tokens} tokens, got {tuple(masks.shape)} {masks.dtype}")


def _check_transposed(grad: Tensor, masks: Tensor, tokens: int) -> None:
    check_dense(grad=grad, masks=masks)
    if grad.dim() != 3 or grad.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"grad must be (B, M, C) float32 or float64, got {tuple(grad.shape)} {grad.dtype}")
    if tokens < 0:
        raise ValueError(f"tokens must be at least 0, got {tokens}")
    _check_masks(masks, grad.shape[0], tokens)
    if masks.shape[1] != grad.shape[1]:
        raise ValueError(f"masks must have M={grad.shape[1]} masks like grad, got {tuple(masks.shape)}")
    check_device(grad, masks=masks)


def _arguments(features: Tensor, masks: Tensor, means: Tensor, areas: Tensor) -> tuple[object, ...]:
    """Return the arguments of `ovsdino._C.mask_pool_*`; the caller keeps the tensors alive."""
    return (
        features.data_ptr(),
        str(features.dtype)[6:],
        tuple(features.shape),
        features.stride()[:2],
        masks.data_ptr(),
        str(masks.dtype)[6:],
        masks.shape[1],
        masks.stride(),
        means.data_ptr(),
        areas.data_ptr(),
    )


def _readable(masks: Tensor) -> Tensor:
    """Return masks in a form that the kernels read: soft ones as float32."""
    return masks.to(torch.float32) if masks.is_floating_point() else masks


def _forward(features: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
    _check(features, masks)
    check_memory(features=features, masks=masks)
    backend = resolve("mask_pool", features.device, features.dtype, size=features.shape[1])
    if backend == "dense":
        return mask_pool_dense(features, masks)
    if backend == "reference" or native is None:
        return mask_pool_reference(features, masks)
    batch, _, channels = features.shape
    rows = features if features.stride(2) == 1 else features.contiguous()
    readable = _readable(masks)
    means = features.new_empty((batch, masks.shape[1], channels))
    areas = features.new_empty((batch, masks.shape[1]), dtype=torch.float32)
    arguments = _arguments(rows, readable, means, areas)
    if backend == "cuda":
        with torch.cuda.device(features.device):
            native.mask_pool_cuda(*arguments, torch.cuda.current_stream().cuda_stream)
    elif not native.mask_pool_cpu(*arguments, MAX_DENSITY, torch.get_num_threads()):
        return mask_pool_reference(features, masks)
    return means, areas


def _fake(features: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
    _check(features, masks)
    batch, _, channels = features.shape
    areas = features.new_empty((batch, masks.shape[1]), dtype=torch.promote_types(features.dtype, torch.float32))
    return features.new_empty((batch, masks.shape[1], channels)), areas


def _transposed(grad: Tensor, masks: Tensor, tokens: int) -> Tensor:
    """sum_m w_mn grad_mc: (B, M, C) to (B, N, C), float32 or float64 like `grad`."""
    _check_transposed(grad, masks, tokens)
    check_memory(grad=grad, masks=masks)
    backend = resolve("mask_pool", grad.device.type, grad.dtype)
    if backend not in ("reference", "dense") and native is not None:
        readable = _readable(masks)
        rows = grad.contiguous()
        out = grad.new_empty((grad.shape[0], tokens, grad.shape[2]))
        areas = grad.new_empty(grad.shape[:2])
        arguments = _arguments(out, readable, rows, areas)
        if backend == "cuda":
            with torch.cuda.device(grad.device):
                native.mask_pool_backward_cuda(*arguments, torch.cuda.current_stream().cuda_stream)
            return out
        if native.mask_pool_backward_cpu(*arguments, MAX_DENSITY, torch.get_num_threads()):
            return out
    return mask_weights(masks, grad.dtype).transpose(1, 2) @ grad


def _transposed_fake(grad: Tensor, masks: Tensor, tokens: int) -> Tensor:
    _check_transposed(grad, masks, tokens)
    return grad.new_empty((grad.shape[0], tokens, grad.shape[2]))


def _setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: tuple[Tensor, Tensor]) -> None:
    features, masks = inputs
    means, areas = output
    ctx.save_for_backward(features if ctx.needs_input_grad[1] else None, masks, means, areas)
    ctx.tokens = features.shape[1]


def _backward(ctx: Any, grad_means: Tensor, grad_areas: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """With g = grad_means / area: df_n = sum_m w_mn g_m and dw_mn = g_m . f_n - g_m . mean_m + grad_area_m."""
    features, masks, means, areas = ctx.saved_tensors
    scaled = grad_means / torch.where(areas == 0, math.inf, areas).unsqueeze(-1)  # in the dtype of areas
    grad_features = grad_masks = None
    if ctx.needs_input_grad[0]:
        grad_features = torch.ops.ovsdino.mask_pool_backward(scaled, masks, ctx.tokens).to(means.dtype)
    if ctx.needs_input_grad[1]:
        inner = (scaled * means.to(areas.dtype)).sum(-1, keepdim=True)
        grad_masks = scaled @ features.to(areas.dtype).transpose(1, 2) - inner + grad_areas.unsqueeze(-1)
        grad_masks = grad_masks.to(masks.dtype)
    return grad_features, grad_masks


def _transposed_setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, int], output: Tensor) -> None:
    grad, masks, _ = inputs
    ctx.save_for_backward(grad if ctx.needs_input_grad[1] else None, masks)


def _transposed_backward(ctx: Any, outer: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
    """Differentiate again; the sum is linear in both: dgrad_mc = sum_n w_mn outer_nc and dw_mn = grad_m . outer_n."""
    grad, masks = ctx.saved_tensors
    of_grad = of_masks = None
    if ctx.needs_input_grad[0]:
        of_grad = mask_weights(masks, outer.dtype) @ outer
    if ctx.needs_input_grad[1]:
        of_masks = (grad @ outer.transpose(1, 2)).to(masks.dtype)
    return of_grad, of_masks, None


LIBRARY.impl("mask_pool", _forward, "CompositeExplicitAutograd")
torch.library.register_fake(qualified("mask_pool"), _fake, lib=LIBRARY)
torch.library.register_autograd(qualified("mask_pool"), _backward, setup_context=_setup_context, lib=LIBRARY)
LIBRARY.impl("mask_pool_backward", _transposed, "CompositeExplicitAutograd")
torch.library.register_fake(qualified("mask_pool_backward"), _transposed_fake, lib=LIBRARY)
torch.library.register_autograd(
    qualified("mask_pool_backward"), _transposed_backward, setup_context=_transposed_setup_context, lib=LIBRARY
)
