"""Run an exported graph on the CPU through ONNX Runtime."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ovsdino.edge.cpu_graph import CpuGraph
from ovsdino.edge.sidecar import Sidecar
from ovsdino.edge.tensors import check_tensors
from ovsdino.errors import OVSDinoError, one_line

__all__ = ["OnnxGraph", "open_session"]


class OnnxGraph(CpuGraph):
    """A graph in ONNX Runtime.

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
        super().__init__(sidecar, threads, sidecar.input[0] if fixed else 1)

    def _logits(self, image: np.ndarray) -> np.ndarray:
        names = ["logits", "affinity"] if self._state.inputs else ["logits"]
        found: list[np.ndarray] = self._session.run(names, {"image": image, **self._text, **self._state.inputs})
        self._state.take(dict(zip(names, found, strict=True)))
        return found[0]

    def close(self) -> None:
        """Free the session."""
        del self._session


def open_session(data: bytes, name: str, threads: int = 0, weights: Mapping[str, np.ndarray] | None = None) -> Any:
    """Open a graph in ONNX Runtime on the CPU.

    Args:
        data: Content of the .onnx file.
        name: Name of the file, for errors.
        threads: Threads of an operator; 0 takes all cores.
        weights: The tensors that the graph names and does not hold, by name; others are left out.

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
    if weights is not None:
        values = [onnxruntime.OrtValue.ortvalue_from_numpy(one) for one in weights.values()]
        options.add_external_initializers(list(weights), values)
    try:
        return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's own exception types derive from Exception alone
        raise OVSDinoError(f"{name}: ONNX Runtime refuses it: {one_line(error, 400)}; export it again") from error
