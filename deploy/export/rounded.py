"""Run a graph of 16 bits on a CPU as it is written: with every tensor rounded to float16 or bfloat16."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
from onnx import ModelProto, TensorProto, helper, numpy_helper, shape_inference

from ovsdino.deploy.export.graph import NARROW
from ovsdino.edge.onnx_graph import open_session
from ovsdino.edge.sidecar import Sidecar
from ovsdino.edge.tensors import beginning, text_inputs
from ovsdino.io.files import reading

__all__ = ["Rounded", "with_roundings"]


class Rounded:
    """An exported graph in ONNX Runtime as written.

    Without kernels of 16 bits, as on a CPU, ONNX Runtime wraps each op in Casts to float32 and back, and then drops the
    pairs between ops. So nothing is rounded and nothing overflows, which proves nothing. See `with_roundings`.

    Args:
        data: Content of the .onnx file.
        sidecar: Its sidecar; a float32 graph is run as a user would, optimized.
        outputs: Names of tensors to return after the logits, in their order.

    Raises:
        OVSDinoError: It is not a graph that ONNX Runtime reads.
    """

    def __init__(self, data: bytes, sidecar: Sidecar, outputs: Sequence[str] = ()) -> None:
        if sidecar.precision != "float32" or outputs:
            with reading(sidecar.file, "ONNX graph", sidecar.rebuild()):
                model = onnx.load_model_from_string(data)
            if sidecar.precision != "float32":
                with_roundings(model)
            for name in outputs:
                model.graph.output.append(onnx.ValueInfoProto(name=name))
            data = model.SerializeToString()
        self.sidecar = sidecar
        self.session = open_session(data, sidecar.file)
        self.names = [output.name for output in self.session.get_outputs()]

    def run(self, image: np.ndarray, text: np.ndarray, contrast: np.ndarray | None = None) -> dict[str, np.ndarray]:
        """Return the tensors by name; text and contrast as `text_inputs` takes them."""
        inputs = {"image": image, **text_inputs(self.sidecar, text, contrast), **beginning(self.sidecar, len(text))}
        return dict(zip(self.names, self.session.run(None, inputs), strict=True))


def with_roundings(model: ModelProto) -> None:
    """Rewrite a graph of 16 bits in float32, in place, with a Cast there and back after every op that was of 16 bits.

    The tensors keep their names. ONNX Runtime keeps such pairs where the graph itself has them.
    """
    inferred = shape_inference.infer_shapes(model, strict_mode=True).graph
    types = {value.name: value.type.tensor_type.elem_type for value in inferred.value_info}
    narrow = {name: kind for name, kind in types.items() if kind in NARROW.values()}
    graph = model.graph
    for tensor in graph.initializer:
        if tensor.data_type in NARROW.values():
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), tensor.name))
    nodes = []
    for node in graph.node:
        nodes.append(node)
        for index, name in enumerate(node.output):
            if name in narrow:
                node.output[index] = f"{name}_exact"
                if node.op_type == "Cast":  # which rounds by itself
                    node.output[index] = f"{name}_rounded"
                else:
                    nodes.append(helper.make_node("Cast", [node.output[index]], [f"{name}_rounded"], to=narrow[name]))
                nodes.append(helper.make_node("Cast", [f"{name}_rounded"], [name], to=TensorProto.FLOAT))
    del graph.value_info[:]
    del graph.node[:]
    graph.node.extend(nodes)
