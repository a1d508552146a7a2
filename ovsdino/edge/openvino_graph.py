"""Run an exported graph on the CPU through OpenVINO, in float32 or partly in bfloat16.

In bfloat16 a graph is run in three parts: the first convolutions in float32, most of the network in bfloat16, and what
the words have a part in, with the upsampling of the scores, in float32 again. On nine images of CamVid val 99.86 % of
nano's labels are then those of float32; with the first convolutions in bfloat16 as well 99.62 %, 2 ms sooner of 36.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from ovsdino.edge.cpu_graph import CpuGraph
from ovsdino.edge.sidecar import GRAPH_KEY, Sidecar
from ovsdino.edge.tensors import check_tensors
from ovsdino.errors import OVSDinoError, one_line

__all__ = ["OpenVinoGraph", "openvino_module"]

Precision = Literal["float32", "bfloat16"]
HINTS = {"float32": "f32", "bfloat16": "bf16"}
# Modules whose roundings to bfloat16 change most labels: nano's stem and first groups, and the scores' own arithmetic.
STEM = ("backbone.cnn.conv_stem", "backbone.cnn.bn1")
FIRST = (*STEM, "backbone.cnn.blocks.0.", "backbone.cnn.blocks.1.", "backbone.cnn.blocks.2.")
LAST = ("decoder.score_attention",)


def openvino_module(name: str) -> Any:
    """Return the module openvino.

    Args:
        name: Name of the file that needs it, for the error.

    Raises:
        OVSDinoError: It is not installed.
    """
    try:
        import openvino
    except ImportError as error:
        raise OVSDinoError(f"{name}: OpenVINO is missing: pip install openvino") from error
    return openvino


class OpenVinoGraph(CpuGraph):
    """A graph in OpenVINO.

    Args:
        data: Content of the .onnx file, already checked.
        sidecar: The file's sidecar.
        threads: Threads of the network and of the label kernel.
        precision: Of the arithmetic; an int8 graph keeps its own in "float32".

    Raises:
        OVSDinoError: OpenVINO is missing or refuses the graph, or its tensors differ from the sidecar.
    """

    def __init__(self, data: bytes, sidecar: Sidecar, threads: int, precision: Precision = "float32") -> None:
        openvino = openvino_module(sidecar.file)
        self._core = openvino.Core()
        self._options = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": 1}
        with _refused(sidecar):
            model = self._core.read_model(data)
            sidecar.check_graph(_metadata(model))
            inputs, outputs = _tensors(model.inputs), _tensors(model.outputs)
            check_tensors(sidecar, inputs, outputs, "f32")
            *early, self._last = _parts(openvino, self._core, data, FIRST if precision == "bfloat16" else ())
            hints = ["f32"] * (len(early) - 1) + [HINTS[precision]] * bool(early)
            self._early = [self._compiled(part, hint) for part, hint in zip(early, hints, strict=True)]
        self._shapes: dict[str, list[int]] = {}
        fixed = isinstance(inputs["image"][0][0], int)
        super().__init__(sidecar, threads, sidecar.input[0] if fixed else 1)

    def set_text(self, text: np.ndarray, contrast: np.ndarray | None = None) -> None:
        """Take another text bank, see `Graph.set_text`; one of another size is compiled for."""
        super().set_text(text, contrast)
        shapes = {name: list(rows.shape) for name, rows in self._text.items()}
        if shapes != self._shapes:  # what has a size of its own runs faster than open shapes
            with _refused(self._sidecar):
                self._last.reshape(shapes)
                self._requests = [*self._early, self._compiled(self._last, "f32")]
            self._shapes = shapes

    def _compiled(self, model: Any, hint: str) -> Any:
        options = {**self._options, "INFERENCE_PRECISION_HINT": hint}
        return self._core.compile_model(model, "CPU", options).create_infer_request()

    def _logits(self, image: np.ndarray) -> np.ndarray:
        known: dict[str, Any] = {"image": image, **self._text}
        for request in self._requests:
            ports = [port.get_any_name() for port in request.model_inputs]
            request.infer({name: known[name] for name in ports}, share_inputs=True)
            for index, port in enumerate(request.model_outputs):
                known[port.get_any_name()] = request.get_output_tensor(index)
        found: np.ndarray = known["logits"].data.copy()  # the next image is written into the same memory
        return found

    def close(self) -> None:
        """Free the compiled graph."""
        del self._early, self._requests, self._last


@contextlib.contextmanager
def _refused(sidecar: Sidecar) -> Iterator[None]:
    """Give OpenVINO's error one line that names the file."""
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, OVSDinoError):
            raise
        raise OVSDinoError(f"{sidecar.file}: OpenVINO refuses it: {one_line(error, 400)}; export it again") from error


def _metadata(model: Any) -> dict[str, str]:
    """Return the entry of ours in the ONNX file's metadata, where OpenVINO keeps it."""
    path = ["framework", GRAPH_KEY]
    return {GRAPH_KEY: model.get_rt_info(path).astype(str)} if model.has_rt_info(path) else {}


def _tensors(ports: Iterable[Any]) -> Mapping[str, tuple[Sequence[Any], Any]]:
    """Return shape and dtype by name; a free side is None."""
    return {
        port.get_any_name(): (
            [side.get_length() if side.is_static else None for side in port.get_partial_shape()],
            port.get_element_type().get_type_name(),
        )
        for port in ports
    }


@dataclass
class _Cut:
    """The stage of each op that an input reaches, by name, and the outputs that a later stage reads."""

    stages: dict[str, int]
    crossing: list[Any]


def _parts(openvino: Any, core: Any, data: bytes, first: tuple[str, ...]) -> list[Any]:
    """Return the models of the stages that there are, to be run one after the other; the last reads the words.

    Each is read anew, as a cut changes a model. A tensor that crosses a cut is named `cut_N`.
    """
    model = core.read_model(data)
    inputs = {parameter.get_friendly_name() for parameter in model.get_parameters()}
    present = sorted({stage for name, stage in _cut(model, first).stages.items() if name not in inputs})
    return [_part(openvino, core.read_model(data), first, stage, stage == present[-1]) for stage in present]


def _cut(model: Any, first: tuple[str, ...]) -> _Cut:
    """Sort the ops into stages 0 (the first convolutions), 1, and 2 (all that the words reach)."""
    stages: dict[str, int] = {}
    reached = []
    for op in model.get_ordered_ops():
        kind, name = op.get_type_name(), op.get_friendly_name()
        if kind == "Parameter":
            stages[name] = 2 if name in ("text", "contrast") else 0
            continue
        sources = [value.get_source_output().get_node().get_friendly_name() for value in op.inputs()]
        before = [stages[source] for source in sources if source in stages]
        if before:  # else a constant, which each stage may have for itself
            # Ops that OpenVINO adds have no path: they go with what they read.
            own = 0 if name.startswith(first) or "/" not in name else 2 if name.startswith(LAST) else 1
            own = 2 if kind == "Result" else own
            stages[name] = max(*before, own)
            reached.append(op)
    crossing = []
    for op in reached:
        for output in op.outputs():
            readers = [target.get_node().get_friendly_name() for target in output.get_target_inputs()]
            if any(stages[reader] > stages[op.get_friendly_name()] for reader in readers):
                crossing.append(output)
    return _Cut(stages, crossing)


def _part(openvino: Any, model: Any, first: tuple[str, ...], stage: int, last: bool) -> Any:
    """Return the model of one stage: what it reads of earlier ones are inputs, what later ones read of it outputs."""
    ops, cut = openvino.opset13, _cut(model, first)

    def readers(output: Any) -> list[Any]:
        targets = output.get_target_inputs()
        return [target for target in targets if cut.stages[target.get_node().get_friendly_name()] == stage]

    used = [parameter for parameter in model.get_parameters() if readers(parameter.output(0))]
    results = list(model.get_results()) if last else []
    for index, output in enumerate(cut.crossing):
        made, name, here = cut.stages[output.get_node().get_friendly_name()], f"cut_{index}", readers(output)
        if made == stage and not last:
            output.set_names({name})
            results.append(ops.result(output))
        elif made < stage and here:
            value = ops.parameter(output.get_partial_shape(), output.get_element_type())
            value.output(0).set_names({name})
            for target in here:
                target.replace_source_output(value.output(0))
            used.append(value)
    return openvino.Model(results, used, f"stage_{stage}")
