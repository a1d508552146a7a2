"""What the op tests share: devices, instruction sets, and FlashAttention's error bound."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

from ovsdino.ops import dispatch

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]

needs_native = pytest.mark.skipif(dispatch.native is None, reason=f"ovsdino._C is missing: {dispatch.native_error}")


def instruction_sets() -> list[str]:
    """The instruction sets that the built module has kernels for and this CPU runs."""
    found = []
    for name in ("baseline", "avx2", "avx512"):
        try:
            dispatch.native.set_isa(name)
        except (AttributeError, ValueError):
            continue
        found.append(name)
    if found:
        dispatch.native.set_isa("best")
    return found


@contextmanager
def instruction_set(name: str) -> Iterator[None]:
    """The CPU kernels of one instruction set inside a ``with`` block."""
    dispatch.native.set_isa(name)
    try:
        yield
    finally:
        dispatch.native.set_isa("best")


def assert_twice_as_good(got: Tensor, naive: Tensor, exact: Tensor, units: float = 1.0, scale: float = 1e-3) -> None:
    """FlashAttention's bound: the error to the float64 result is at most twice the naive one's in the same dtype.

    Some units in the last place of the largest value (or of `scale`, what the values were combined from) are allowed on
    top: the naive result can be exact by luck.
    """
    assert got.dtype == naive.dtype and got.shape == exact.shape
    unit = units * torch.finfo(got.dtype).eps * exact.abs().max().clamp(min=scale)
    error = (got.double() - exact).abs().max()
    naive_error = (naive.double() - exact).abs().max()
    assert error <= 2 * naive_error + unit, f"error {error:.3g}, naive {naive_error:.3g}, unit {unit:.3g}"
