"""A CUDA device and TensorRT played by this process: the device's memory is the host's. None of it ran on a board.

The kernels are the host twins of the device's (`ovsdino._C`), and the engine is the formula of `tests.support.tiny`.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from ovsdino.edge import tensorrt_graph
from ovsdino.edge.bank import TextBank
from ovsdino.edge.segmenter import EdgeSegmenter
from ovsdino.native import native
from tests.support import tiny


class Cuda:
    """The calls of cuda-python that the runtime makes; a copy is done at once."""

    cudaHostAllocMapped = 2
    cudaStreamNonBlocking = 1
    cudaEventDisableTiming = 2
    cudaMemcpyKind = SimpleNamespace(cudaMemcpyHostToDevice="up", cudaMemcpyDeviceToHost="down")
    cudaError_t = SimpleNamespace(cudaSuccess=0)
    cudaDeviceAttr = SimpleNamespace(cudaDevAttrIntegrated="integrated")
    cudaStreamCaptureMode = SimpleNamespace(cudaStreamCaptureModeThreadLocal=1)

    def __init__(self, *, integrated: bool = False) -> None:
        self.integrated = integrated
        self.blocks: dict[int, tuple[str, Any]] = {}
        self.copies: list[str] = []
        self.calls: list[str] = []
        self.streams = 0
        self.recorded: list[Callable[[], None]] | None = None
        self.meanwhile: Callable[[], None] = lambda: None  # while the host waits for a stream

    def _take(self, kind: str, size: int) -> tuple[int, int]:
        memory = ctypes.create_string_buffer(size)
        self.blocks[ctypes.addressof(memory)] = (kind, memory)
        return 0, ctypes.addressof(memory)

    def cudaMalloc(self, size: int) -> tuple[int, int]:
        return self._take("device", size)

    def cudaMallocHost(self, size: int) -> tuple[int, int]:
        return self._take("pinned", size)

    def cudaHostAlloc(self, size: int, flags: int) -> tuple[int, int]:
        return self._take({self.cudaHostAllocMapped: "mapped"}[flags], size)

    def cudaHostGetDevicePointer(self, address: int, flags: int) -> tuple[int, int]:
        assert self.blocks[address][0] == "mapped" and flags == 0
        return 0, address

    def cudaMemcpyAsync(self, to: int, source: int, size: int, kind: str, stream: Any) -> tuple[int]:
        ctypes.memmove(to, source, size)
        self.copies.append(kind)
        self.calls.append(f"{kind} {stream}")
        return (0,)

    def cudaMemcpy(self, to: int, source: int, size: int, kind: str) -> tuple[int]:
        ctypes.memmove(to, source, size)
        self.copies.append(kind)
        return (0,)

    def _drop(self, address: int, *kinds: str) -> tuple[int]:
        assert self.blocks.pop(address)[0] in kinds
        return (0,)

    def cudaFree(self, address: int) -> tuple[int]:
        return self._drop(address, "device")

    def cudaFreeHost(self, address: int) -> tuple[int]:
        return self._drop(address, "pinned", "mapped")

    @property
    def kinds(self) -> list[str]:
        """What is allocated."""
        return sorted(kind for kind, _ in self.blocks.values())

    def cudaDeviceGetAttribute(self, attribute: str, device: int) -> tuple[int, int]:
        return 0, int(self.integrated)

    def cudaStreamCreateWithFlags(self, flags: int) -> tuple[int, int]:
        self.streams += 1
        return 0, self.streams

    def cudaStreamBeginCapture(self, stream: int, mode: int) -> tuple[int]:
        self.recorded = []
        return (0,)

    def cudaStreamEndCapture(self, stream: int) -> tuple[int, Any]:
        recorded, self.recorded = self.recorded, None
        return 0, recorded

    def cudaGraphInstantiate(self, graph: Any, flags: int) -> tuple[int, Any]:
        return 0, graph

    def cudaGraphLaunch(self, graph: Any, stream: int) -> tuple[int]:
        self.calls.append(f"launch {stream}")
        for step in graph:
            step()
        return (0,)

    def cudaStreamSynchronize(self, stream: int) -> tuple[int]:
        self.calls.append(f"synchronize {stream}")
        self.meanwhile()
        return (0,)

    def cudaStreamWaitEvent(self, stream: int, event: Any, flags: int) -> tuple[int]:
        self.calls.append(f"wait {stream}")
        return (0,)

    def cudaEventElapsedTime(self, first: Any, second: Any) -> tuple[int, float]:
        return 0, 1.0

    def cudaEventCreate(self) -> tuple[int, object]:
        return 0, object()

    def cudaEventCreateWithFlags(self, flags: int) -> tuple[int, object]:
        return 0, object()

    def __getattr__(self, name: str) -> Callable[..., tuple[int]]:
        if not name.startswith("cuda"):
            raise AttributeError(name)
        return lambda *arguments: (0,)


class Engine:
    """An engine of the tiny graph, and its execution context.

    With a contrast its words are in groups of one, and the contrast's first row is the last map's.
    """

    def __init__(self, cuda: Cuda, most: int, *, contrast: bool = False, memory: bool = False) -> None:
        self.cuda, self.most, self.contrast, self.memory = cuda, most, contrast, memory
        self.names = ("image", "text", "contrast", "logits") if contrast else ("image", "text", "logits")
        if memory:  # its logits are added up, and its affinity counts the frames
            self.names = ("image", "text", "last_logits", "last_affinity", "logits", "affinity")
        self.num_io_tensors = len(self.names)
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}
        self.batches: list[int] = []

    def get_tensor_name(self, index: int) -> str:
        return self.names[index]

    def get_tensor_mode(self, name: str) -> str:
        return "out" if name in ("logits", "affinity") else "in"

    def get_tensor_dtype(self, name: str) -> str:
        return "float32"

    def get_tensor_profile_shape(self, name: str, profile: int) -> list[tuple[int, ...]]:
        return [(batch, 3, tiny.HEIGHT, tiny.WIDTH) for batch in (1, 1, self.most)]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        if self.shapes and name == "logits":
            cells = tiny.HEIGHT // tiny.PATCH, tiny.WIDTH // tiny.PATCH
            return self.shapes["image"][0], self.shapes["text"][0] + self.contrast, *cells
        text = (-1, -1, tiny.DIM) if self.contrast else (-1, tiny.DIM)
        free = {"image": (-1, 3, tiny.HEIGHT, tiny.WIDTH), "text": text, "contrast": (-1, tiny.DIM)}
        free |= dict.fromkeys(("last_affinity", "affinity"), (1, 1, 6, 8))
        return free.get(name, (-1, -1, 6, 8))

    def create_execution_context(self) -> Engine:
        return self

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.shapes[name] = shape
        return True

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return True

    def execute_async_v3(self, stream: int) -> bool:
        if self.cuda.recorded is None:
            self._compute()
        else:
            self.cuda.recorded.append(self._compute)
        return True

    def _compute(self) -> None:
        if self.memory:
            image, text, last, counted, logits, affinity = (self._array(name) for name in self.names)
            logits[0] = tiny.expected_logits(image[0], text) + last[0]
            affinity[:] = np.where(counted > 100, 0, counted) + 1
            return
        images, *rows, logits = (self._array(name) for name in self.names)
        text = np.concatenate([rows[0][:, 0], rows[1][:1]]) if self.contrast else rows[0]
        self.batches.append(len(images))
        for image, out in zip(images, logits, strict=True):
            out[:] = tiny.expected_logits(image, text)

    def _array(self, name: str) -> np.ndarray:
        shape = self.get_tensor_shape(name) if name in ("logits", "affinity") else self.shapes[name]
        memory = (ctypes.c_float * int(np.prod(shape))).from_address(self.addresses[name])
        return np.ctypeslib.as_array(memory).reshape(shape)


def tensorrt(engine: Engine) -> Any:
    """Return what stands for the module tensorrt, whose runtime gives the engine."""

    class ILogger:
        Severity = SimpleNamespace(INTERNAL_ERROR=0, ERROR=1, WARNING=2)

    return SimpleNamespace(
        __version__="10.3.0",
        ILogger=ILogger,
        Runtime=lambda logger: SimpleNamespace(deserialize_cuda_engine=lambda data: engine),
        TensorIOMode=SimpleNamespace(INPUT="in", OUTPUT="out"),
        float32="float32",
    )


def kernels() -> Any:
    """Return what stands for `ovsdino._C` with CUDA: the device's kernels are their twins on the host."""
    assert native is not None
    return SimpleNamespace(
        preprocess_cuda=lambda *arguments: native.preprocess_host(*arguments[:-1]),
        upsample_argmax_cuda=lambda *arguments: native.upsample_argmax_host(*arguments[:-1]),
    )


def segmenter(
    patch: pytest.MonkeyPatch, folder: Path, cuda: Cuda, bank: TextBank, *, memory: bool = False, **options: Any
) -> EdgeSegmenter:
    """Return an engine of the tiny graph, for up to three images, on a device that this process plays.

    With a memory it takes one image.
    """
    patch.setattr(tensorrt_graph, "cuda_runtime", lambda: cuda)
    patch.setattr(tensorrt_graph, "native", kernels())
    patch.setattr(tensorrt_graph, "device_sm", lambda device: "sm87")
    contrast, most = bank.contrast is not None, 1 if memory else 3
    engine = Engine(cuda, most, contrast=contrast, memory=memory)
    patch.setattr(tensorrt_graph, "tensorrt_module", lambda backend: tensorrt(engine))
    path = folder / "tiny.engine"
    path.write_bytes(b"an engine")
    facts: dict[str, Any] = {"kind": "engine", "backend": "tensorrt", "version": "10.3.0", "target": "sm87"}
    if contrast:
        facts.update(words=(1, 4), contrast=(1, 8))
    facts["memory"] = 1 if memory else None
    tiny.sidecar(path, input=(most, 3, tiny.HEIGHT, tiny.WIDTH), **facts).save(path)
    return EdgeSegmenter(path, bank, **options)
