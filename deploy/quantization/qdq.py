"""Put QuantizeLinear and DequantizeLinear around the linears of a graph.

Symmetric int8, zero points 0, as TensorRT wants it: one scale for the activation, one for each output channel of the
weight. The bias, the residual add, the norm and the attention products stay in the graph's own precision. Written here
rather than left to onnxruntime.quantization, whose quantizer silently passes over a tensor without type information.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from onnx import helper, numpy_helper

from ovsdino.deploy.export.graph import attribute, constants, drop_unused, replace
from ovsdino.deploy.quantization.smoothquant import Linear

__all__ = ["insert_qdq", "quantize_weight"]

LEVELS = 127
HALF_OPSET = 19  # the first whose QuantizeLinear takes a float16 scale; it changes no op that opset 18 has otherwise


def insert_qdq(model: onnx.ModelProto, linears: Sequence[Linear], ranges: Mapping[str, float]) -> None:
    """Quantize linears in place.

    Args:
        model: The graph.
        linears: Linears of the graph.
        ranges: Largest absolute value that an activation is to represent, by its name.
    """
    nodes = {node.name: node for node in model.graph.node}
    initializers = constants(model.graph)
    standard = next(entry for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    added: dict[str, str] = {}
    before: dict[str, list[onnx.NodeProto]] = {}
    for linear in linears:
        node = nodes[linear.node]
        weight = initializers[node.input[1]]
        kind = helper.tensor_dtype_to_np_dtype(weight.data_type)
        if kind == np.float16:
            standard.version = max(standard.version, HALF_OPSET)
        for source, make in ((node.input[0], _activation), (weight.name, _weight)):
            if source not in added:
                made, stored = make(source, weight, kind, ranges.get(source, 0.0), node)
                model.graph.initializer.extend(stored)
                before.setdefault(linear.node, []).extend(made)
                added[source] = made[-1].output[0]
        node.input[0], node.input[1] = added[node.input[0]], added[weight.name]
        _widen_bias(model, node, initializers)
    replace(model.graph.node, [one for node in model.graph.node for one in (*before.get(node.name, ()), node)])
    drop_unused(model.graph)


def _widen_bias(model: onnx.ModelProto, node: onnx.NodeProto, initializers: dict[str, onnx.TensorProto]) -> None:
    """Reshape the bias that is added to a product of three dimensions or more from (out,) to (1, 1, out).

    ONNX Runtime merges MatMul and Add of an (out,) bias into Gemm before it looks for Q/DQ, and with a float bias that
    Gemm stays in float32: 95 ms for nano's linears on one core where the int8 kernel takes 23.
    """
    rank = next((len(v.type.tensor_type.shape.dim) for v in model.graph.value_info if v.name == node.output[0]), 0)
    readers = [other for other in model.graph.node if node.output[0] in other.input]
    if rank < 3 or [reader.op_type for reader in readers] != ["Add"]:
        return
    for name in readers[0].input:
        bias = initializers.get(name)
        if bias is not None and len(bias.dims) == 1:
            value = numpy_helper.to_array(bias).reshape(1, 1, -1)
            wide = numpy_helper.from_array(value, f"{name}_of_{node.name}")
            model.graph.initializer.append(wide)
            readers[0].input[list(readers[0].input).index(name)] = wide.name


Made = tuple[list[onnx.NodeProto], list[onnx.TensorProto]]


def _activation(source: str, weight: onnx.TensorProto, kind: np.dtype, largest: float, node: onnx.NodeProto) -> Made:
    """Return QuantizeLinear and DequantizeLinear of a tensor, with one scale."""
    scale = _scale(np.array(largest), kind)
    stored = [_tensor(scale, f"{source}_scale"), _tensor(np.zeros((), np.int8), f"{source}_zero")]
    parameters = [tensor.name for tensor in stored]
    quantize = helper.make_node("QuantizeLinear", [source, *parameters], [f"{source}_int8"], name=f"{source}_q")
    restore = helper.make_node(
        "DequantizeLinear", [f"{source}_int8", *parameters], [f"{source}_dq"], name=f"{source}_dq"
    )
    return [quantize, restore], stored


def _weight(source: str, weight: onnx.TensorProto, kind: np.dtype, largest: float, node: onnx.NodeProto) -> Made:
    """Return a stored int8 weight and its DequantizeLinear, with a scale for each output channel."""
    axis = 0 if attribute(node, "transB") else 1
    value, scale = quantize_weight(numpy_helper.to_array(weight).astype(np.float32), axis, kind)
    stored = [
        _tensor(value, f"{source}_int8"),
        _tensor(scale, f"{source}_scale"),
        _tensor(np.zeros(scale.shape, np.int8), f"{source}_zero"),
    ]
    names = [tensor.name for tensor in stored]
    return [helper.make_node("DequantizeLinear", names, [f"{source}_dq"], name=f"{source}_dq", axis=axis)], stored


def quantize_weight(weight: np.ndarray, axis: int, kind: np.dtype) -> tuple[np.ndarray, np.ndarray]:
    """Return int8 values, and a scale (in dtype `kind`) for each index along `axis`: weight ~ value * scale."""
    scale = _scale(np.abs(weight).max(axis=1 - axis), kind)
    divisor = np.expand_dims(scale.astype(np.float32), 1 - axis)
    return np.clip(np.round(weight / divisor), -LEVELS, LEVELS).astype(np.int8), scale


def _scale(largest: np.ndarray, kind: np.dtype) -> np.ndarray:
    """Return the step between levels: 1 where all values are 0, and never below the least normal of the dtype."""
    step = np.where(largest > 0, largest / LEVELS, 1.0)
    return np.maximum(step, np.finfo(kind).tiny).astype(kind)


def _tensor(value: np.ndarray, name: str) -> onnx.TensorProto:
    return numpy_helper.from_array(np.array(value, order="C"), name)
