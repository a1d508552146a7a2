"""The runtime of exported models: an image in, a label for each pixel out, with no torch in the process.

    segmenter = EdgeSegmenter("nano_fp16_sm87.engine", "bank.safetensors")
    result = segmenter.segment("street.jpg")

The same class runs `.onnx` files with ONNX Runtime on the CPU and engines with TensorRT or TensorRT-RTX on a GPU. An
engine is code, so everything that can be checked is checked before it is deserialised: the text bank, the version of
TensorRT, the device, and the file's SHA-256 (`ovsdino.edge.sidecar`).
"""

from __future__ import annotations

import hashlib
import os
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np

from ovsdino.edge.bank import TextBank
from ovsdino.edge.pixels import check_image
from ovsdino.edge.sidecar import Sidecar
from ovsdino.errors import OVSDinoError
from ovsdino.io.images import ImageLike, load_image
from ovsdino.timing import Clock
from ovsdino.vocabulary import background_threshold

__all__ = ["EdgeResult", "EdgeSegmenter"]


class Graph(Protocol):
    """A graph on its device: `OnnxGraph` or `TensorRTGraph`."""

    least_batch: int

    def set_text(self, text: np.ndarray) -> None: ...

    def infer(self, image: np.ndarray) -> np.ndarray: ...

    def run(
        self, pixels: np.ndarray, size: tuple[int, int], threshold: float | None, confidence: bool, clock: Clock
    ) -> tuple[np.ndarray, np.ndarray | None]: ...

    def close(self) -> None: ...


@dataclass(frozen=True, kw_only=True, eq=False)
class EdgeResult:
    """One segmented image.

    Attributes:
        labels: (H, W) uint8, int16 or int32 at the size of the image: the index into `names`, or K for background.
        confidence: (H, W) float32, the largest softmax probability of each pixel; None if it was not asked for.
        names: the K class names.
        background: whether pixels below the threshold were given the label K.
        stages_ms: milliseconds of "load", "preprocess", "encode" (the graph) and "postprocess".
    """

    labels: np.ndarray
    confidence: np.ndarray | None
    names: tuple[str, ...]
    background: bool = False
    stages_ms: dict[str, float] = field(default_factory=dict)

    @property
    def ms(self) -> float:
        """Milliseconds from the image to its labels."""
        return float(sum(self.stages_ms.values()))


class EdgeSegmenter:
    """An exported model with a vocabulary.

    The graph's image size is fixed at export, so every image is resized to it, whatever its ratio of sides;
    `ovsdino.Segmenter` keeps the ratio instead. For images of the ratio that the model was exported for
    (``export_onnx.py --height --width``) the two see the same pixels.

    Threads may share an instance, which works on one image at a time. It holds device memory until `close`, and is a
    context manager.

    Args:
        engine_or_onnx: an exported file; its sidecar, `<file>.json`, lies beside it.
        text_bank: the vocabulary: a file that `ovsdino text` wrote, or a `TextBank`.
        threads: of the CPU; by default all that this process may use.
        background: pixels whose largest softmax probability is below this (0..1) become background, label K; True
            stands for 0.5. None or False: no background.
        device: index of the CUDA device; not read for an .onnx file.

    Raises:
        OVSDinoError: a file is missing, changed or damaged; it was made for another TensorRT, device or model; the
            runtime it needs is not installed; or a number is out of range.
    """

    def __init__(
        self,
        engine_or_onnx: str | os.PathLike[str],
        text_bank: str | os.PathLike[str] | TextBank,
        *,
        threads: int | None = None,
        background: float | bool | None = None,
        device: int = 0,
    ) -> None:
        path = Path(engine_or_onnx)
        if threads is None:
            threads = available_threads()
        if threads < 1:
            raise OVSDinoError(f"threads is {threads}: expected at least 1")
        if not path.is_file():
            raise OVSDinoError(f"{path}: no such file; make it with export_onnx.py or export_trt.py")
        self.sidecar = Sidecar.load(path)
        self._background = background
        bank, self._threshold = self._checked(text_bank)
        self._lock = threading.Lock()  # the graph has one input buffer and one stream
        graph = open_graph(path, self.sidecar, threads, device)
        graph.set_text(bank.text)
        self._graph: Graph | None = graph
        self.bank = bank

    @property
    def names(self) -> tuple[str, ...]:
        """The class names of the bank in use."""
        return self.bank.names

    @property
    def backend(self) -> str:
        """What runs the graph: "onnxruntime", "tensorrt" or "tensorrt_rtx"."""
        return "onnxruntime" if self.sidecar.backend == "onnx" else self.sidecar.backend

    def set_bank(self, text_bank: str | os.PathLike[str] | TextBank) -> None:
        """Swaps the vocabulary; nothing is exported or built again. A refused bank leaves the old one in use.

        Raises:
            OVSDinoError: the bank is missing or damaged, of another model, or has too few or too many classes; or the
                segmenter was closed.
        """
        bank, threshold = self._checked(text_bank)
        with self._lock:
            self._open().set_text(bank.text)
            self.bank, self._threshold = bank, threshold

    def segment(self, image: ImageLike, *, nv12: bool = False, confidence: bool = True) -> EdgeResult:
        """Labels every pixel of one image.

        Args:
            image: a path, a PIL image or an ndarray (H, W, 3) uint8 RGB (see `ovsdino.io.images.load_image`); with
                `nv12` an ndarray (H * 3 // 2, W) uint8, ITU-R BT.601, limited range.
            nv12: the image is NV12, as cameras and video decoders give it.
            confidence: also return the probability of each pixel's label.

        Raises:
            OVSDinoError: the image cannot be read, the file was exported for batches, or the segmenter was closed.
        """
        least = self._open().least_batch
        if least != 1:
            raise OVSDinoError(
                f"{self.sidecar.file}: exported for batches of {least}; segment takes one image at a time: export it "
                "with --batch 1"
            )
        clock = Clock()
        with clock("load"):
            pixels = np.asarray(image) if nv12 else load_image(image)
            check_image(pixels, nv12)
            height, width = (pixels.shape[0] * 2 // 3 if nv12 else pixels.shape[0]), pixels.shape[1]
        with self._lock:
            names, threshold = self.names, self._threshold
            labels, certainty = self._open().run(pixels, (height, width), threshold, confidence, clock)
        return EdgeResult(
            labels=labels,
            confidence=certainty,
            names=names,
            background=threshold is not None,
            stages_ms=clock.ms,
        )

    def infer(self, image: np.ndarray) -> np.ndarray:
        """The graph alone.

        Args:
            image: (B, 3, H, W) float32, normalised, of the size the model was exported for.

        Returns:
            Logits (B, K, h, w) float32.

        Raises:
            OVSDinoError: another shape or dtype, or the segmenter was closed.
        """
        batch, *rest = self.sidecar.input
        least = self._open().least_batch
        fits = image.ndim == 4 and list(image.shape[1:]) == rest and least <= len(image) <= batch
        if not fits or image.dtype != np.float32:
            raise OVSDinoError(
                f"image is {tuple(image.shape)} {image.dtype}: {self.sidecar.file} takes {self.sidecar.input} float32"
            )
        with self._lock:
            return self._open().infer(np.ascontiguousarray(image))

    def close(self) -> None:
        """Frees the graph and its memory; the instance cannot be used afterwards. A second time does nothing."""
        with self._lock:
            graph, self._graph = self._graph, None
            if graph is not None:
                graph.close()

    def _open(self) -> Graph:
        if self._graph is None:
            raise OVSDinoError(f"{self.sidecar.file}: this EdgeSegmenter was closed; make another one")
        return self._graph

    def __enter__(self) -> EdgeSegmenter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _checked(self, text_bank: str | os.PathLike[str] | TextBank) -> tuple[TextBank, float | None]:
        bank = text_bank if isinstance(text_bank, TextBank) else TextBank.load(text_bank)
        self.sidecar.check_bank(bank.names, bank.text.shape, bank.weights, bank.model)
        return bank, background_threshold(self._background, bank.names)


def open_graph(path: Path, sidecar: Sidecar, threads: int, device: int) -> Graph:
    """Checks the file against this machine, then deserialises it.

    Raises:
        OVSDinoError: see `EdgeSegmenter`.
    """
    if sidecar.backend == "onnx":
        from ovsdino.edge.onnx_graph import OnnxGraph

        return OnnxGraph(read_checked(path, sidecar), sidecar, threads)
    from ovsdino.edge.tensorrt_graph import TensorRTGraph, device_sm, tensorrt_module

    trt = tensorrt_module(sidecar.backend)
    # the version first, with a device it was built for: it can be told where there is no device
    sidecar.check_runtime(sidecar.backend, trt.__version__, sidecar.target.split(",")[0])
    sidecar.check_runtime(sidecar.backend, trt.__version__, device_sm(device))
    return TensorRTGraph(trt, read_checked(path, sidecar), sidecar, device)


def read_checked(path: Path, sidecar: Sidecar) -> bytes:
    """The content of an exported file, if it is the one that the sidecar describes.

    What is returned is what was hashed: a file that changes after the check is not read again.

    Raises:
        OVSDinoError: the file's size or hash is another.
    """
    if path.stat().st_size != sidecar.bytes:  # before a file of any size is read
        sidecar.check_file(path)
    data = path.read_bytes()
    if hashlib.sha256(data).hexdigest() != sidecar.sha256:
        sidecar.check_file(path)
        raise OVSDinoError(f"{path}: changed while it was read; try again once its export has finished")
    return data


def available_threads() -> int:
    """How many CPUs this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
