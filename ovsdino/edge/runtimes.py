"""Open an exported file in the runtime that it is for, or in the fastest of those that can run it."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, Protocol

import numpy as np

from ovsdino.edge.labels import Found, Wish
from ovsdino.edge.sidecar import Sidecar
from ovsdino.errors import OVSDinoError
from ovsdino.timing import Clock

__all__ = [
    "Graph",
    "Runtime",
    "available_threads",
    "check_machine",
    "fastest_runtime",
    "multiplies_bfloat16",
    "open_graph",
    "runtime_of",
]

Runtime = Literal["auto", "onnxruntime", "openvino", "openvino_bfloat16"]


class Graph(Protocol):
    """A graph on its device: `OnnxGraph`, `OpenVinoGraph` or `TensorRTGraph`."""

    least_batch: int

    def set_text(self, text: np.ndarray, contrast: np.ndarray | None = None) -> None:
        """Take another text bank: (K, D) or (K, W, D), and (C, D) or None for no contrast; float32."""

    def infer(self, image: np.ndarray) -> np.ndarray:
        """Compute logits of normalized images (B, 3, H, W): (B, K, h, w) float32, K + 1 maps with a contrast.

        A graph with a memory begins anew.
        """

    def run(
        self, frames: Sequence[np.ndarray], sizes: Sequence[tuple[int, int]], wish: Wish, clock: Clock
    ) -> list[Found]:
        """Turn frames of cameras (RGB or NV12), at most the graph's batch, into labels of their sizes (H, W).

        Fewer than the graph's least batch are filled up.
        """

    def reset(self) -> None:
        """Forget the frames that `run` saw, where the graph has a memory."""

    def close(self) -> None:
        """Free the graph."""


def check_machine(sidecar: Sidecar, device: int) -> None:
    """Refuse a file that this machine cannot run, before the file is read.

    Args:
        sidecar: The file's sidecar.
        device: Index of the CUDA device.

    Raises:
        OVSDinoError: TensorRT is missing, of another version, or the engine is for another device.
    """
    if sidecar.backend == "onnx":
        return
    from ovsdino.edge.tensorrt_graph import device_sm, tensorrt_module

    version = tensorrt_module(sidecar.backend).__version__
    # the version first, with a device that the engine was built for: it can be told where there is no device
    sidecar.check_runtime(sidecar.backend, version, sidecar.target.split(",")[0])
    sidecar.check_runtime(sidecar.backend, version, device_sm(device))


def open_graph(data: bytes, sidecar: Sidecar, threads: int, device: int, runtime: str = "onnxruntime") -> Graph:
    """Deserialize an exported file.

    Args:
        data: Content of the file, checked by `Sidecar.read`.
        sidecar: The file's sidecar.
        threads: Threads on the CPU.
        device: Index of the CUDA device.
        runtime: Of an .onnx file, as `runtime_of` gives it.

    Raises:
        OVSDinoError: The runtime is missing or refuses the file.
    """
    if sidecar.backend == "onnx" and runtime != "onnxruntime":
        from ovsdino.edge.openvino_graph import OpenVinoGraph

        return OpenVinoGraph(data, sidecar, threads, "bfloat16" if runtime == "openvino_bfloat16" else "float32")
    if sidecar.backend == "onnx":
        from ovsdino.edge.onnx_graph import OnnxGraph

        return OnnxGraph(data, sidecar, threads)
    from ovsdino.edge.tensorrt_graph import TensorRTGraph, tensorrt_module

    return TensorRTGraph(tensorrt_module(sidecar.backend), data, sidecar, device)


def runtime_of(sidecar: Sidecar, asked: Runtime = "auto") -> Runtime:
    """Return the CPU runtime of a file: the one asked for, or `fastest_runtime`.

    Args:
        sidecar: The file's sidecar.
        asked: What the caller wants.

    Raises:
        OVSDinoError: bfloat16 is asked of a file that is not float32.
    """
    if asked == "openvino_bfloat16" and sidecar.precision != "float32":
        raise OVSDinoError(f"{sidecar.file}: {sidecar.precision}; bfloat16 arithmetic takes a float32 graph")
    if sidecar.memory is not None:
        if asked.startswith("openvino"):
            raise OVSDinoError(f"{sidecar.file}: a graph with a memory runs in ONNX Runtime; leave out {asked}")
        return "onnxruntime"
    return fastest_runtime(sidecar.model, sidecar.precision) if asked == "auto" else asked


def fastest_runtime(model: str, precision: str) -> Runtime:
    """Return the CPU runtime that was measured to be fastest for a graph (`benchmarks/results/cpu_backends.json`).

    For nano in float32 that is OpenVINO partly in bfloat16 where the CPU multiplies in it, else OpenVINO; for nano in
    int8 OpenVINO. Nothing else was measured; it is ONNX Runtime then, and without OpenVINO.

    Args:
        model: Name of the model.
        precision: Of the file.
    """
    measured = model == "nano" and precision in ("float32", "int8")
    if not measured or importlib.util.find_spec("openvino") is None:
        return "onnxruntime"
    return "openvino_bfloat16" if precision == "float32" and multiplies_bfloat16() else "openvino"


def multiplies_bfloat16(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Return whether the CPU has instructions for products in bfloat16 (AVX512_BF16 or AMX); False off Linux.

    OpenVINO's own list of capabilities has bfloat16 on every CPU with AVX-512, emulated.

    Args:
        cpuinfo: The kernel's description of the CPU.
    """
    try:
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return False
    flags = next((line.split() for line in lines if line.startswith("flags")), [])
    return "avx512_bf16" in flags or "amx_bf16" in flags


def available_threads() -> int:
    """Return how many CPUs this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
