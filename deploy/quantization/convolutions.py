"""Quantize convolutions by ONNX Runtime's own quantizer: uint8 activations, int8 weights, a scale for each channel.

For CPUs, where an int8 convolution and its activation are one operation. ONNX Runtime fuses them only where the range
of the result ends where the activation does (ReLU6: 0 to 6), which takes a zero point of each tensor's own. TensorRT
wants zero points of 0.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence

import numpy as np
import onnx
from onnx import ModelProto, NodeProto
from onnxruntime.quantization import QuantType
from onnxruntime.quantization.calibrate import CalibrationMethod, TensorData, TensorsData
from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

from ovsdino.deploy.export.graph import constants, consumers
from ovsdino.deploy.quantization.calibrate import Feed, activations
from ovsdino.deploy.quantization.smoothquant import name_nodes
from ovsdino.errors import OVSDinoError

__all__ = ["find_convolutions", "quantize_convolutions"]


def find_convolutions(model: ModelProto) -> list[NodeProto]:
    """Return the convolutions with stored weights, in the graph's order; names of nodes are made unique in place."""
    name_nodes(model)
    stored = constants(model.graph)
    return [node for node in model.graph.node if node.op_type == "Conv" and node.input[1] in stored]


def quantize_convolutions(
    model: ModelProto,
    source: ModelProto,
    feeds: Sequence[Feed],
    *,
    first: int = 3,
    skip: Sequence[str] = (),
    threads: int = 0,
) -> tuple[ModelProto, tuple[str, ...]]:
    """Return a graph with its convolutions in int8, and their names; the one given is left as it is.

    A tensor's range is the mean, over the images, of its least and of its largest value in an image.

    Args:
        model: The graph, with type information of inner tensors; its linears may be in int8 already.
        source: The same graph in float32, for the ranges.
        feeds: Inputs made of real images.
        first: Leave so many in float, from the image on.
        skip: Leave convolutions of these names in float; * and ? match.
        threads: Threads of ONNX Runtime; 0: all cores.

    Raises:
        OVSDinoError: Nothing is left to quantize.
    """
    graph = onnx.ModelProto()
    graph.CopyFrom(model)
    chosen = [
        node
        for node in find_convolutions(graph)[first:]
        if not any(fnmatch.fnmatchcase(node.name, pattern) for pattern in skip)
    ]
    if not chosen:
        raise OVSDinoError("no convolution is left to quantize: use a smaller --first-convolutions, or fewer --skip")
    quantizer = QDQQuantizer(
        graph,
        per_channel=True,
        reduce_range=False,
        weight_qType=QuantType.QInt8,
        activation_qType=QuantType.QUInt8,
        tensors_range=_ranges(source, chosen, feeds, threads),
        nodes_to_quantize=[node.name for node in chosen],
        nodes_to_exclude=[],
        op_types_to_quantize=["Conv"],
        extra_options={"WeightSymmetric": True},
    )
    quantizer.quantize_model()
    quantizer.model.topological_sort()
    found: ModelProto = quantizer.model.model
    return found, tuple(node.name.rpartition("/")[0] for node in chosen)


def _ranges(model: ModelProto, chosen: Sequence[NodeProto], feeds: Sequence[Feed], threads: int) -> TensorsData:
    """Return the ranges of what the convolutions read and make, and of the clipped form of what they make."""
    users, inputs = consumers(model.graph), {value.name for value in model.graph.input}
    names = {node.input[0] for node in chosen} | {node.output[0] for node in chosen}
    names |= {user.output[0] for node in chosen for user in users.get(node.output[0], []) if user.op_type == "Clip"}
    least: dict[str, list[float]] = {name: [] for name in names}
    most: dict[str, list[float]] = {name: [] for name in names}
    for feed, values in zip(feeds, activations(model, sorted(names - inputs), feeds, threads), strict=True):
        for name, value in {**values, **{name: feed[name] for name in names & inputs}}.items():
            least[name].append(float(value.min()))
            most[name].append(float(value.max()))
    ends = {name: (min(float(np.mean(least[name])), 0.0), max(float(np.mean(most[name])), 0.0)) for name in names}
    kept = {name: TensorData(lowest=np.float32(low), highest=np.float32(high)) for name, (low, high) in ends.items()}
    return TensorsData(CalibrationMethod.MinMax, kept)
