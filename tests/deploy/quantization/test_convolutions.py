"""Convolutions in int8: a small network worked by hand, what stays in float, and what ONNX Runtime makes of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from ovsdino.deploy.quantization.convolutions import find_convolutions, quantize_convolutions
from ovsdino.edge.onnx_graph import open_session
from ovsdino.errors import OVSDinoError

COUNT = 4


def network() -> onnx.ModelProto:
    """Return four convolutions in a row, each with ReLU6."""
    random = np.random.default_rng(0)
    nodes, stored, last, channels = [], [], "image", 3
    for index in range(COUNT):
        wide = 8
        weight = random.normal(0, (2 / (9 * channels)) ** 0.5, (wide, channels, 3, 3)).astype(np.float32)
        ends = [numpy_helper.from_array(np.float32(value), f"end{value}") for value in (0, 6)]
        stored += [numpy_helper.from_array(weight, f"w{index}"), *(ends if index == 0 else [])]
        made = "logits" if index == COUNT - 1 else f"x{index}"
        nodes.append(helper.make_node("Conv", [last, f"w{index}"], [f"c{index}"], f"net.{index}/Conv", pads=[1] * 4))
        nodes.append(helper.make_node("Clip", [f"c{index}", "end0", "end6"], [made], f"net.{index}/Clip"))
        last, channels = made, wide
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "small",
        [value("image", TensorProto.FLOAT, (1, 3, 16, 16))],
        [value("logits", TensorProto.FLOAT, (1, 8, 16, 16))],
        stored,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    return onnx.shape_inference.infer_shapes(model)


def feeds() -> list[dict[str, np.ndarray]]:
    random = np.random.default_rng(1)
    return [{"image": random.normal(size=(1, 3, 16, 16)).astype(np.float32)} for _ in range(4)]


def logits(model: onnx.ModelProto) -> np.ndarray:
    session = open_session(model.SerializeToString(), "small", 1)
    return np.stack([session.run(["logits"], feed)[0] for feed in feeds()])


def test_the_result_is_near_and_the_given_graph_stays() -> None:
    model = network()
    before = model.SerializeToString()
    found, names = quantize_convolutions(model, model, feeds(), first=1, threads=1)
    assert model.SerializeToString() == before and names == ("net.1", "net.2", "net.3")
    onnx.checker.check_model(found)
    expected = logits(model)
    assert np.linalg.norm(logits(found) - expected) < 0.05 * np.linalg.norm(expected)


def test_onnx_runtime_runs_them_in_int8_with_the_activation_inside(tmp_path: Path) -> None:
    import onnxruntime

    found, _ = quantize_convolutions(network(), network(), feeds(), first=1, threads=1)
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(found.SerializeToString(), options, providers=["CPUExecutionProvider"])
    kinds = [node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node]
    assert kinds.count("QLinearConv") == COUNT - 1


@pytest.mark.parametrize(("options", "left"), [({"first": 3}, 1), ({"first": 0, "skip": ("net.[12]*",)}, 2)])
def test_first_and_named_ones_stay_in_float(options: dict[str, Any], left: int) -> None:
    _, names = quantize_convolutions(network(), network(), feeds(), threads=1, **options)
    assert len(names) == left and len(find_convolutions(network())) == COUNT


def test_nothing_to_quantize_is_said() -> None:
    with pytest.raises(OVSDinoError, match="no convolution is left"):
        quantize_convolutions(network(), network(), feeds(), first=COUNT, threads=1)
