"""What the op tests share: devices, instruction sets, and the comparison with an error bound (`tests.ops.bounds`)."""

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
    found: list[str] = []
    if dispatch.native is None:
        return found
    before = dispatch.native.build_info()["isa"]
    for name in ("baseline", "avx2", "avx512"):
        try:
            dispatch.native.set_isa(name)
        except (AttributeError, ValueError):
            continue
        found.append(name)
    dispatch.native.set_isa(before)
    return found


@contextmanager
def instruction_set(name: str) -> Iterator[None]:
    """The CPU kernels of one instruction set inside a ``with`` block."""
    before = dispatch.native.build_info()["isa"]
    dispatch.native.set_isa(name)
    try:
        yield
    finally:
        dispatch.native.set_isa(before)


def assert_within(got: Tensor, exact: Tensor, bound: Tensor, name: str = "") -> None:
    """Every element is at most its bound (of `tests.ops.bounds`) from the float64 value, and rounded once to its dtype.

    Args:
        got: a result of any floating dtype.
        exact: the same in float64.
        bound: largest allowed error of each element before that rounding, >= 0; broadcast to `exact`.
        name: what the message calls it.
    """
    assert got.shape == exact.shape, f"{name}: {tuple(got.shape)}, expected {tuple(exact.shape)}"
    if not got.numel():
        return
    info = torch.finfo(got.dtype)
    got, exact, bound = got.detach().cpu().double(), exact.detach().cpu(), bound.detach().cpu()
    allowed = bound + info.eps * exact.abs() + info.smallest_normal
    ratio = (got - exact).abs() / allowed
    worst = int(ratio.nan_to_num(nan=torch.inf).argmax())
    found, true, most = (x.expand_as(exact).flatten()[worst].item() for x in (got, exact, allowed))
    assert abs(found - true) <= most, f"{name} element {worst}: {found:.9g}, exact {true:.9g}, bound {most:.3g}"
