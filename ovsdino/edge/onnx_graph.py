"""Run an exported graph on the CPU through ONNX Runtime."""

from __future__ import annotations

from typing import Any

import numpy as np

from ovsdino.edge.labels import Wish, sure_shares, upsample_argmax
from ovsdino.edge.pixels import preprocess
from ovsdino.edge.sidecar import Sidecar
from ovsdino.edge.tensors import check_tensors, logits_shape, text_inputs
from ovsdino.errors import OVSDinoError, one_line
from ovsdino.io.files import reading
from ovsdino.timing import Clock

__all__ = ["OnnxGraph", "open_session"]


class OnnxGraph:
    """A graph, its input buffer and its text bank.

    Attributes:
        least_batch: The smallest B that the graph takes; the largest is the sidecar's.

    Args:
        data: Content of the .onnx file, already checked.
        sidecar: The file's sidecar.
        threads: Threads of the network and of the label kernel.

    Raises:
        OVSDinoError: ONNX Runtime is missing or refuses the graph, or its tensors differ from the sidecar.
    """

    def __init__(self, data: bytes, sidecar: Sidecar, threads: int) -> None:
        self._session = open_session(data, sidecar.file, threads)
        sidecar.check_graph(self._session.get_modelmeta().custom_metadata_map)
        inputs = {one.name: (list(one.shape), one.type) for one in self._session.get_inputs()}
        outputs = {one.name: (list(one.shape), one.type) for one in self._session.get_outputs()}
        check_tensors(sidecar, inputs, outputs, "tensor(float)")
        fixed = isinstance(inputs["image"][0][0], int)
        self.least_batch = sidecar.input[0] if fixed else 1
        self._sidecar = sidecar
        self._threads = threads
        self._image = np.empty((1, *sidecar.input[1:]), np.float32)
        self._text: dict[str, np.ndarray] = {}
        self._classes = self._maps = 0

    def set_text(self, text: np.ndarray, contrast: np.ndarray | None = None) -> None:
        """Take another text bank, see `Graph.set_text`."""
        self._text = text_inputs(self._sidecar, text, contrast)
        self._classes, self._maps = len(text), len(text) + (contrast is not None)

    def infer(self, image: np.ndarray) -> np.ndarray:
        """Compute logits of normalized images, see `Graph.infer`."""
        with reading(self._sidecar.file, "graph", self._sidecar.rebuild()):  # it loads, and fails while it runs
            logits: np.ndarray = self._session.run(["logits"], {"image": image, **self._text})[0]
        expected = logits_shape(self._sidecar, len(image), self._classes)
        if logits.shape != expected:
            raise OVSDinoError(
                f"{self._sidecar.file}: its logits are {logits.shape}, its sidecar says {expected}; "
                f"{self._sidecar.rebuild()}"
            )
        return logits[:, : self._maps]

    def run(
        self, pixels: np.ndarray, size: tuple[int, int], wish: Wish, clock: Clock
    ) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None]:
        """Turn camera pixels (RGB or NV12) into labels and confidence of `size`, see `Graph.run`."""
        with clock("preprocess"):
            shape = (self._sidecar.input[2], self._sidecar.input[3])
            preprocess(pixels, shape, self._sidecar.mean, self._sidecar.std, out=self._image[0])
        with clock("encode"):
            logits = self.infer(self._image)
        if not np.isfinite(logits).all():
            raise OVSDinoError(f"{self._sidecar.file}: gives NaN or infinite logits; {self._sidecar.rebuild()}")
        with clock("postprocess"):
            labels, certainty = upsample_argmax(
                logits[0], size, wish.threshold, confidence=wish.confidence, threads=self._threads
            )
            sure = None if wish.certainty is None else sure_shares(logits[0], wish.certainty)
        return labels, certainty, sure

    def close(self) -> None:
        """Free the session."""
        del self._session


def open_session(data: bytes, name: str, threads: int = 0) -> Any:
    """Open a graph in ONNX Runtime on the CPU.

    Args:
        data: Content of the .onnx file.
        name: Name of the file, for errors.
        threads: Threads of an operator; 0 takes all cores.

    Raises:
        OVSDinoError: ONNX Runtime is missing or refuses the graph.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise OVSDinoError(f"{name}: ONNX Runtime is missing: pip install onnxruntime") from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # Threads that wait by spinning take the cores that a camera's or another process's thread wants. nano on two
    # cores: 79 ms with and 83 without on an idle machine, 397 with and 247 without next to busy processes.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3  # errors; its warnings are about the graph optimizer's own choices
    try:
        return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's own exception types derive from Exception alone
        raise OVSDinoError(f"{name}: ONNX Runtime refuses it: {one_line(error, 400)}; export it again") from error
