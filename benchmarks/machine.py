"""What the benchmarks share: the machine's facts and measured limits, and interleaved timing."""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from ovsdino.ops import dispatch


def machine_facts(device: str = "cpu") -> dict[str, Any]:
    """Name, software and measured limits of the machine that a benchmark ran on.

    Args:
        device: "cpu" or "cuda".

    Returns:
        JSON-ready facts; ``bandwidth_gbs`` (copying, read plus write) and ``gemm_gflops`` (float32, 1024 or 8192
        square) are measured here and now, with the threads that the benchmarks use.
    """
    facts: dict[str, Any] = {
        "device": device,
        "cpu": cpu_name(),
        "arch": platform.machine(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "native": dispatch.native.build_info() if dispatch.native else None,
    }
    if device == "cuda":
        facts["gpu"] = torch.cuda.get_device_name()
        facts["cuda"] = torch.version.cuda
        facts["sm"] = "".join(map(str, torch.cuda.get_device_capability()))
    facts["bandwidth_gbs"] = round(bandwidth(device) / 1e9, 1)
    facts["gemm_gflops"] = round(gemm_rate(device) / 1e9, 1)
    return facts


def cpu_name() -> str:
    """The processor's name as the system knows it."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def bandwidth(device: str) -> float:
    """Bytes a second that a copy of 256 MiB reads and writes."""
    source = torch.ones(64 << 20, device=device)
    target = torch.empty_like(source)
    seconds = interleaved([lambda: target.copy_(source)], device, rounds=5)[0] / 1e3
    return 2 * source.numel() * source.element_size() / seconds


def gemm_rate(device: str, dtype: torch.dtype = torch.float32) -> float:
    """Floating-point operations a second of a square matrix product."""
    size = 8192 if device == "cuda" else 1024
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    seconds = interleaved([lambda: a @ b], device, rounds=5)[0] / 1e3
    return 2 * size**3 / seconds


def interleaved(
    functions: Sequence[Callable[[], object]], device: str, *, rounds: int = 0, budget_s: float = 2.0
) -> list[float]:
    """Median milliseconds of each function, called in turn so that a drift of the machine meets all alike.

    Args:
        functions: what to time. Each is called once first to warm up; a first call of more than a quarter of the
            budget counts, so that slow baselines are not called more often than they need be.
        device: "cuda" waits for the device around every call.
        rounds: calls of each; 0: as many as fit `budget_s`, at least 3 and at most 200.
        budget_s: seconds for all calls together.
    """

    def once(function: Callable[[], object]) -> float:
        if device == "cuda":
            torch.cuda.synchronize()
        start = time.perf_counter()
        function()
        if device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start

    first = [once(function) for function in functions]
    slow = max(first) > budget_s / 4
    samples = [[taken] if slow else [] for taken in first]
    cost = sum(first) if slow else sum(once(function) for function in functions)
    if rounds == 0:
        rounds = min(max(int(budget_s / max(cost, 1e-6)), 3), 200)
    while len(samples[0]) < rounds:
        for function, taken in zip(functions, samples, strict=True):
            taken.append(once(function))
    return [statistics.median(taken) * 1e3 for taken in samples]
