"""Triton's interpreter (``TRITON_INTERPRET=1``) with what version 3.6 lacks."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import triton
import triton.language as tl
from triton.runtime import interpreter
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle


def interpreting() -> bool:
    """Return whether kernels decorated from now on run in Python, on CPU tensors too."""
    return bool(triton.knobs.runtime.interpret)


def patch() -> None:
    """Let the interpreter run these kernels as a GPU does; a second call does nothing.

    - Loops with run-time bounds: it calls int() on an array of one element, which numpy 2.4 refuses.
    - bfloat16: it multiplies the bit patterns in a dot product, and casts float32 by truncation (a GPU rounds).
    """
    original = interpreter._patch_lang_tensor
    if getattr(original, "patched", False):
        return
    dot, cast = InterpreterBuilder.create_dot, InterpreterBuilder.cast_impl

    def patched(tensor: Any, scope: Any) -> None:
        original(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: self.handle.data.item())

    def dotted(self: Any, a: TensorHandle, b: TensorHandle, *rest: Any) -> TensorHandle:
        return dot(self, _widened(a), _widened(b), *rest)

    def casted(self: Any, source: TensorHandle, target: Any) -> TensorHandle:
        if source.dtype.scalar == tl.bfloat16 and target.scalar == tl.float32:
            return _widened(source)
        if source.dtype.scalar == tl.float32 and target.scalar == tl.bfloat16:
            rounded = torch.from_numpy(np.ascontiguousarray(source.data)).bfloat16().view(torch.uint16)
            return TensorHandle(rounded.numpy(), tl.bfloat16)
        return cast(self, source, target)

    patched.patched = True  # type: ignore[attr-defined]
    interpreter._patch_lang_tensor = patched
    InterpreterBuilder.create_dot, InterpreterBuilder.cast_impl = dotted, casted


def _widened(x: TensorHandle) -> TensorHandle:
    """bfloat16, which the interpreter keeps as uint16, as float32; anything else as it is."""
    if x.dtype.scalar != tl.bfloat16:
        return x
    return TensorHandle((x.data.astype(np.uint32) << 16).view(np.float32), tl.float32)
