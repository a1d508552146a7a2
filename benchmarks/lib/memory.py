"""Resident memory of this process, and what a call takes of it. Torch is imported only where tensors are measured."""

from __future__ import annotations

import ctypes
import gc
import resource
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

__all__ = ["device_free_mb", "extra_mb", "forget_peak", "keep_freed", "peak_mb", "resident_mb"]

STATUS = Path("/proc/self/status")


def resident_mb() -> float:
    """Return the resident memory now in 10^6 bytes, or its peak where /proc is missing."""
    return _field("VmRSS") if STATUS.exists() else peak_mb()


def peak_mb() -> float:
    """Return the largest resident memory so far, or since `forget_peak`, in 10^6 bytes."""
    if STATUS.exists():
        return _field("VmHWM")
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most * (1 if sys.platform == "darwin" else 1024) / 1e6


def forget_peak() -> bool:
    """Start the peak anew, freed memory given back to the system before; return whether the system allows it."""
    gc.collect()
    try:
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
    except (OSError, AttributeError):
        return False
    return True


def keep_freed() -> bool:
    """Have glibc keep blocks of up to 32 MiB that are freed, as a pool would; return whether it does.

    Without that some calls find their memory in the heap and others ask the system for it: a result of 12.6 MB then
    costs 3 072 page faults, 3 to 5 ms on a virtual machine, and a median falls to either side by what was freed last.
    """
    trim_threshold, mmap_threshold = -1, -3  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of malloc.h
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    return bool(mallopt(mmap_threshold, 32 << 20) and mallopt(trim_threshold, 1 << 30))


def device_free_mb() -> float | None:
    """Return the free memory of the current CUDA device in 10^6 bytes, by cudaMemGetInfo; None without CUDA.

    On a Jetson it is the memory of the whole board, which CPU and GPU share. The first call makes the context, which is
    therefore in no difference of two calls.
    """
    torch = sys.modules.get("torch")
    if torch is not None:
        return torch.cuda.mem_get_info()[0] / 1e6 if torch.cuda.is_available() else None
    try:
        from cuda.bindings import runtime  # TensorRT's engines need it too
    except (ImportError, OSError):
        return None
    failed, free, _ = runtime.cudaMemGetInfo()
    return None if int(failed) else free / 1e6


def extra_mb(function: Callable[..., object], inputs: tuple[Any, ...], device: str) -> float | None:
    """Return the peak in 10^6 bytes that a call takes beyond its inputs and its result; None where it cannot be told.

    The function has run before, so that threads and tuned kernels are there already. On CUDA it is what torch's
    allocator counts; on Linux the peak of the resident memory: pages of 4 KB, native allocations included.
    """
    if device == "cuda":
        import torch

        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        kept = function(*inputs)
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() - before) / 1e6 - _result_mb(kept)
    if not forget_peak():
        return None
    start = resident_mb()
    kept = function(*inputs)
    return max(peak_mb() - start - _result_mb(kept), 0.0)


def _field(name: str) -> float:
    kilobytes = STATUS.read_text().split(f"{name}:")[1].split()[0]
    return int(kilobytes) * 1024 / 1e6


def _result_mb(result: object) -> float:
    """Return the size of the tensors of a result in 10^6 bytes."""
    if isinstance(result, tuple | list):
        return sum(map(_result_mb, result))
    return getattr(result, "nbytes", 0) / 1e6
