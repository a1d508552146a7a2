"""Find the linears of an exported graph, and apply SmoothQuant to them (Xiao et al. 2023, arXiv 2211.10438).

    s_j = max|x_j|^alpha / max|w_j|^(1 - alpha),    x W = (x / s) (s W)

A vision transformer has a few activation channels far larger than the rest, which leave one scale for all channels
too coarse for the others. Dividing channel j by s_j and multiplying the weight's row by it shares the burden; in
floating point the function is the same. The division is folded into the LayerNorm that makes x, so it costs nothing;
where that norm has other readers too, one Mul does it for the linears alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import numpy_helper

from ovsdino.deploy.export.graph import attribute, constants, consumers

__all__ = ["Linear", "find_linears", "smooth"]

LEAST = 1e-5  # of a channel's range; below it the channel is dead and left as it is


@dataclass(frozen=True, kw_only=True)
class Linear:
    """A MatMul or Gemm of a computed activation with a stored weight.

    Attributes:
        name: Path of the module in PyTorch by the node's name, else the weight's name.
        node: Name of the node.
        input: Name of the activation.
        weight: Name of the weight's initializer.
        shape: (in, out) of the weight.
        norm: Name of the LayerNormalization node whose output is the activation; None where another op makes it.
    """

    name: str
    node: str
    input: str
    weight: str
    shape: tuple[int, int]
    norm: str | None


class Graph:
    """The node that makes each tensor of a graph, and the nodes that read it."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.proto = model.graph
        self.initializers = constants(model.graph)
        self.maker = {name: node for node in model.graph.node for name in node.output}
        self.readers = consumers(model.graph)

    def norm_of(self, tensor: str) -> onnx.NodeProto | None:
        """Return the LayerNormalization whose output a tensor is, through casts."""
        node = self.maker.get(tensor)
        while node is not None and node.op_type == "Cast":
            node = self.maker.get(node.input[0])
        return node if node is not None and node.op_type == "LayerNormalization" else None

    def final_readers(self, tensor: str) -> Iterable[onnx.NodeProto | None]:
        """Yield the nodes that read a tensor, through casts; None stands for a graph output."""
        if any(output.name == tensor for output in self.proto.output):
            yield None
        for node in self.readers.get(tensor, []):
            if node.op_type == "Cast":
                yield from self.final_readers(node.output[0])
            else:
                yield node


def find_linears(model: onnx.ModelProto, source: str = "image") -> list[Linear]:
    """Return the linears on the way from an input, in the graph's order.

    Products of two computed tensors (attention, similarity to the text) are left out. So is a linear that only the
    text bank reaches: its range would be that of the words it happened to be calibrated with.

    Args:
        model: The graph; names of nodes are made unique in place.
        source: The input that must reach the linear.
    """
    name_nodes(model)
    graph = Graph(model)
    reached = {source}
    found = []
    for node in model.graph.node:
        if not reached.intersection(node.input):
            continue
        reached.update(node.output)
        if node.op_type not in ("MatMul", "Gemm") or node.input[0] not in reached:
            continue
        weight = graph.initializers.get(node.input[1])
        if weight is None or len(weight.dims) != 2 or attribute(node, "transA"):
            continue
        norm = graph.norm_of(node.input[0])
        rows, columns = weight.dims[::-1] if attribute(node, "transB") else weight.dims
        found.append(
            Linear(
                name=_module(node.name, weight.name),
                node=node.name,
                input=node.input[0],
                weight=weight.name,
                shape=(rows, columns),
                norm=None if norm is None else norm.name,
            )
        )
    return found


def name_nodes(model: onnx.ModelProto) -> None:
    """Give every node a name of its own, by which nodes are told apart."""
    seen: set[str] = set()
    for index, node in enumerate(model.graph.node):
        if not node.name or node.name in seen:
            node.name = f"{node.op_type}_{index}"
        seen.add(node.name)


def smooth(model: onnx.ModelProto, linears: Sequence[Linear], largest: Mapping[str, np.ndarray], alpha: float) -> int:
    """Apply SmoothQuant in place to those linears that read a LayerNorm.

    Args:
        model: The graph.
        linears: The linears that will be quantized.
        largest: (in,) largest absolute value of each channel, by name of the activation.
        alpha: Share (0..1) of the range that moves into the weights.

    Returns:
        Number of linears smoothed.
    """
    graph = Graph(model)
    nodes = {node.name: node for node in model.graph.node}
    groups: dict[str, list[Linear]] = {}
    for linear in linears:
        if linear.norm is not None:
            groups.setdefault(linear.norm, []).append(linear)
    for name, group in groups.items():
        members = [nodes[linear.node] for linear in group]
        weights = [_own_weight(graph, node) for node in members]
        range_w = np.max([np.abs(weight).max(axis=1) for weight in weights], axis=0)
        range_x = np.max([largest[linear.input] for linear in group], axis=0)
        alive = (range_x > LEAST) & (range_w > LEAST)
        factor = np.ones_like(range_x, dtype=np.float64)
        factor[alive] = range_x[alive] ** alpha / range_w[alive] ** (1 - alpha)
        norm = nodes[name]
        ours = all(any(reader is node for node in members) for reader in graph.final_readers(norm.output[0]))
        if ours and all(part in graph.initializers for part in norm.input[1:]):
            for position in range(1, len(norm.input)):
                _scale_initializer(graph, norm, position, 1 / factor)
        else:
            _insert_division(graph, members, factor)
        for node, weight in zip(members, weights, strict=True):
            _set_weight(graph, node, weight * factor[:, None])
    return sum(map(len, groups.values()))


def _insert_division(graph: Graph, members: Sequence[onnx.NodeProto], factor: np.ndarray) -> None:
    """Put a Mul by 1 / factor in front of the members."""
    for source in dict.fromkeys(node.input[0] for node in members):
        kind = onnx.helper.tensor_dtype_to_np_dtype(graph.initializers[members[0].input[1]].data_type)
        scale = numpy_helper.from_array((1 / factor).astype(kind), f"{source}_smoothing")
        divide = onnx.helper.make_node("Mul", [source, scale.name], [f"{source}_smooth"], name=f"{source}_smooth_node")
        graph.proto.initializer.append(scale)
        readers = [node for node in members if node.input[0] == source]
        place = min(index for index, node in enumerate(graph.proto.node) if any(node is one for one in readers))
        for node in readers:
            node.input[0] = divide.output[0]
        graph.proto.node.insert(place, divide)


def _own_weight(graph: Graph, node: onnx.NodeProto) -> np.ndarray:
    """Return the weight (in, out) in float64; a shared one is copied first, so that it changes for this node alone."""
    tensor = _own(graph, node, 1)
    value = numpy_helper.to_array(tensor).astype(np.float64)
    return value.T if attribute(node, "transB") else value


def _set_weight(graph: Graph, node: onnx.NodeProto, value: np.ndarray) -> None:
    tensor = graph.initializers[node.input[1]]
    value = value.T if attribute(node, "transB") else value
    kind = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
    tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(value.astype(kind)), tensor.name))


def _scale_initializer(graph: Graph, node: onnx.NodeProto, position: int, factor: np.ndarray) -> None:
    """Multiply a norm's gain or bias."""
    tensor = _own(graph, node, position)
    value = numpy_helper.to_array(tensor)
    tensor.CopyFrom(numpy_helper.from_array((value * factor).astype(value.dtype), tensor.name))


def _own(graph: Graph, node: onnx.NodeProto, position: int) -> onnx.TensorProto:
    """Return the initializer at an input of a node, copied under a new name if another node reads it too."""
    name = node.input[position]
    if len(graph.readers[name]) > 1:
        copy = onnx.TensorProto()
        copy.CopyFrom(graph.initializers[name])
        copy.name = f"{name}_of_{node.name}"
        graph.proto.initializer.append(copy)
        graph.initializers[copy.name] = graph.proto.initializer[-1]
        graph.readers[name] = [reader for reader in graph.readers[name] if reader is not node]
        graph.readers[copy.name] = [node]
        node.input[position] = name = copy.name
    return graph.initializers[name]


def _module(node: str, weight: str) -> str:
    """Return the path of a linear in the PyTorch model: the exporter names nodes `path.of.module/MatMul`."""
    path, separator, _ = node.rpartition("/")
    return path if path and separator else weight.removesuffix(".weight")
