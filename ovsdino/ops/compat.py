"""Ways around faults and gaps of torch 2.5 and later, each in one place."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

Function = TypeVar("Function", bound=Callable[..., object])


class _Exporter:
    recording = False


def constant(function: Function) -> Function:
    """Return a function marked for `torch.compile`, which takes its results for constants.

    The mark is all that ``torch.compiler.assume_constant_result`` adds, but calling that imports `torch._dynamo`: 1.7 s
    of processor time at the start of every command.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


def exporting() -> bool:
    """Return whether an exporter or tracer records the calls: `torch.export`, `torch.onnx` or `torch.jit.trace`.

    Inside `torch.compile`, torch 2.11 answers True to ``torch.compiler.is_exporting()`` whatever it compiles for; the
    flag that this function returns elsewhere is True for an export only. torch 2.5 has no such flag: `recording` has.
    """
    return _Exporter.recording or bool(getattr(torch.compiler, "_is_exporting_flag", False)) or torch.jit.is_tracing()


@contextmanager
def recording() -> Iterator[None]:
    """Tell `exporting` that an exporter records the calls meanwhile, for a torch that does not tell it."""
    _Exporter.recording = True
    try:
        yield
    finally:
        _Exporter.recording = False


def inferring() -> bool:
    """Return whether inference mode is on. While torch before 2.8 compiles or exports it cannot be asked: False."""
    if release() < (2, 8) and torch.compiler.is_compiling():
        return False
    return torch.is_inference_mode_enabled()


def release(version: str = torch.__version__) -> tuple[int, int]:
    """Return (major, minor) of a release of torch, this one by default."""
    major, minor = version.split(".")[:2]
    return int(major), int(minor)


def unpickles_safely(version: str = torch.__version__) -> bool:
    """Return whether `torch.load(weights_only=True)` of a torch release runs no code of the file.

    2.6 closed CVE-2025-32434, 2.10 CVE-2026-24747. Boards have older releases, for which no newer one may exist.
    """
    return release(version) >= (2, 10)


def exports_norms(version: str = torch.__version__) -> bool:
    """Return whether a torch release exports batch norms as ONNX; 2.5.1: "'tuple' object has no attribute 'dtype'"."""
    return release(version) >= (2, 6)


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Return scaled_dot_product_attention with a scale of 1.

    Of an empty batch on CUDA, torch 2.11 returns None where cuDNN would take a full one; its plain form is used there.
    """
    if q.is_cuda and q.numel() == 0:
        return (q @ k.transpose(-2, -1)).softmax(-1) @ v
    return F.scaled_dot_product_attention(q, k, v, scale=1.0)


def planar(image: Tensor) -> Tensor:
    """Return (B, H, W, 3) as (B, 3, H, W) with channels innermost in memory, for `torch.nn.functional.interpolate`.

    From planar images torch 2.11 makes wrong antialiased columns (a result one pixel wide), or stops in an assertion
    (uint8, one pixel).
    """
    return image.contiguous().permute(0, 3, 1, 2)
