"""The machine of a benchmark: its facts and measured limits."""

from __future__ import annotations

import platform
from typing import Any

import torch
import torch.nn.functional as F

from ovsdino.benchmarks.lib.board import board_facts, cpu_name, load_average
from ovsdino.benchmarks.lib.timing import Function, interleaved
from ovsdino.ops import dispatch


def machine_facts(device: str = "cpu") -> dict[str, Any]:
    """Return name, software and measured limits of the machine that a benchmark ran on.

    Args:
        device: "cpu" or "cuda".

    Returns:
        JSON-ready facts; ``bandwidth_gbs`` (copying, read plus write), ``gemm_gflops`` (float32, 1024 or 8192
        square) and ``rates_gflops`` (the same for other dtypes; tf32 on CUDA only) are measured here and now, with the
        threads that the benchmarks use; ``load_average`` is that of the minute before. All that
        ``board.board_facts`` can tell is added.
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
    facts |= board_facts()
    facts["load_average"] = load_average()
    facts["bandwidth_gbs"] = round(bandwidth(device) / 1e9, 1)
    rates = {"float32": gemm_rate(device), "bfloat16": gemm_rate(device, torch.bfloat16)}
    if device == "cuda":
        rates |= {"float16": gemm_rate(device, torch.float16), "tf32": gemm_rate(device, tf32=True)}
    facts["rates_gflops"] = {name: round(rate / 1e9, 1) for name, rate in rates.items()}
    facts["gemm_gflops"] = facts["rates_gflops"]["float32"]
    return facts


def bandwidth(device: str) -> float:
    """Return the bytes a second that a copy of 256 MiB reads and writes."""
    source = torch.ones(64 << 20, device=device)
    target = torch.empty_like(source)
    seconds = interleaved([lambda: target.copy_(source)], device, rounds=5)[0] / 1e3
    return 2 * source.numel() * source.element_size() / seconds


def gemm_rate(device: str, dtype: torch.dtype = torch.float32, tf32: bool = False) -> float:
    """Return the operations a second of a square matrix product, float32 without tf32 unless asked for.

    On a CPU it is the best of two libraries: torch's product is MKL's in float32, which on AMD's cores may leave half
    of the arithmetic unused, and its convolution by 1 x 1 is oneDNN's.
    """
    size = 8192 if device == "cuda" else 1024
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    products: list[Function] = [lambda: a @ b]
    if device == "cpu":
        pixels = a.view(1, 32, 32, size).permute(0, 3, 1, 2)  # channels last
        weight = b.view(size, size, 1, 1).contiguous(memory_format=torch.channels_last)
        products.append(lambda: F.conv2d(pixels, weight))
    allowed, torch.backends.cuda.matmul.allow_tf32 = torch.backends.cuda.matmul.allow_tf32, tf32
    try:
        with torch.inference_mode():
            seconds = min(interleaved(products, device, rounds=5)) / 1e3
    finally:
        torch.backends.cuda.matmul.allow_tf32 = allowed
    return 2 * size**3 / seconds
