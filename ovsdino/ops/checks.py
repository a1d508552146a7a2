"""The conditions on the inputs of every op, however it is called: the public function, `torch.ops`, a gradient."""

from __future__ import annotations

import math
from collections.abc import Sequence
from operator import index
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.autograd import forward_ad

FLOATING = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
MOST = 2**30  # rows, columns: the kernels' indices within an image are 32 bits wide
MOST_PIXELS = 2**32


def check_dense(**tensors: Any) -> None:
    """Raise ValueError, with the name, for an input that is not a dense tensor: sparse, MKL-DNN, nested, quantized."""
    for name, x in tensors.items():
        if not isinstance(x, Tensor):
            raise ValueError(f"{name} must be a tensor, got {type(x).__name__}")
        if x.is_nested or x.layout != torch.strided or x.is_quantized:
            kind = "nested" if x.is_nested else "quantized" if x.is_quantized else str(x.layout)
            raise ValueError(f"{name} must be a dense tensor, got a {kind} one; convert it first")


def check_floating(**tensors: Tensor | None) -> None:
    """Raise ValueError, with the name, unless tensors are float16, bfloat16, float32 or float64."""
    for name, x in tensors.items():
        if x is not None and x.dtype not in FLOATING:
            raise ValueError(f"{name} must be floating (16, 32 or 64 bits), got {tuple(x.shape)} {x.dtype}")


def check_device(like: Tensor, **tensors: Tensor | None) -> None:
    """Raise ValueError, with the name, unless tensors are on the device of `like`."""
    for name, x in tensors.items():
        if x is not None and x.device != like.device:
            raise ValueError(f"{name} must be on {like.device} like the first input, got {x.device}")


def check_memory(**tensors: Tensor | None) -> None:
    """Raise ValueError, with the name, where a tensor's storage ends before its last element: a kernel would read on.

    Storage is freed below a tensor by ``untyped_storage().resize_``, as sharded training does it.
    """
    for name, x in tensors.items():
        if x is None or x.numel() == 0 or x.device.type == "meta":
            continue
        last = x.storage_offset() + sum((n - 1) * step for n, step in zip(x.shape, x.stride(), strict=True))
        needed, there = (last + 1) * x.element_size(), x.untyped_storage().nbytes()
        if there < needed:
            raise ValueError(f"{name} needs {needed} bytes of storage, it has {there}: was its storage resized?")


def check_size(size: Sequence[Any]) -> tuple[int, int]:
    """Return (rows, columns) of a result; raise ValueError unless they are whole numbers from 1 to 2^30."""
    try:
        found: list[Any] = [x if isinstance(x, (int, torch.SymInt)) else index(x) for x in size]
    except TypeError:
        raise ValueError(f"size must be two whole numbers (H, W), got {size!r}") from None
    if len(found) != 2 or found[0] < 1 or found[1] < 1:
        raise ValueError(f"size must be (H, W) of at least (1, 1), got {tuple(found)}")
    if found[0] > MOST or found[1] > MOST or found[0] * found[1] > MOST_PIXELS:
        raise ValueError(f"size must be at most 2^30 a side and 2^32 pixels in all, got {tuple(found)}")
    return found[0], found[1]


def check_number(name: str, x: Any, least: float = -math.inf) -> None:
    """Raise ValueError, with the name, unless x is a finite number of at least `least`."""
    if not isinstance(x, (int, float, torch.SymInt, torch.SymFloat)) and not hasattr(x, "__float__"):
        raise ValueError(f"{name} must be a number, got {x!r}")
    if not (least <= x and -math.inf < x < math.inf):
        bound = "" if least == -math.inf else f" of at least {least:g}"
        raise ValueError(f"{name} must be a finite number{bound}, got {x}")


def check_no_tangent(op: str, *inputs: Any) -> None:
    """Raise NotImplementedError for inputs of forward-mode differentiation, whose tangents an opaque op would drop."""
    if torch.compiler.is_compiling():
        return
    for x in inputs:
        if isinstance(x, Tensor) and forward_ad.unpack_dual(x).tangent is not None:
            raise NotImplementedError(
                f"{op} has no forward-mode derivative here (torch.func.jvp); {op}_reference, in plain PyTorch, has"
            )


def no_second_derivative(op: str) -> NoReturn:
    """Raise NotImplementedError: the kernels of an op's gradient have none of their own."""
    raise NotImplementedError(
        f"{op} has no second derivatives on this backend (a gradient penalty, create_graph=True); "
        f"ovsdino.ops.{op} has them under use_backend('reference')"
    )
