"""Q/DQ: which products are quantized, and how their scales are found."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from ovsdino.deploy.quantization.calibrate import channel_ranges, tensor_ranges
from ovsdino.deploy.quantization.qdq import insert_qdq, quantize_weight
from ovsdino.deploy.quantization.smoothquant import find_linears
from tests.support.block import LINEARS, feeds, network, weights


def test_only_linears_are_quantized_with_symmetric_scales() -> None:
    model = network()
    linears = [linear for linear in find_linears(model) if linear.name in LINEARS]
    ranges = tensor_ranges(model, [linear.input for linear in linears], feeds(), "minmax", 100.0, 1)
    largest = channel_ranges(model, ["normed"], feeds(), 1)["normed"].max()
    assert ranges["normed"] == pytest.approx(largest)
    insert_qdq(model, linears, ranges)
    onnx.checker.check_model(model, full_check=True)
    maker = {name: node for node in model.graph.node for name in node.output}
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    for node in model.graph.node:
        quantized = [maker[name].op_type == "DequantizeLinear" for name in node.input if name in maker]
        if node.op_type == "MatMul" and node.name.split("/")[0] in LINEARS:
            assert quantized == [True, True]
            activation, weight = (maker[name] for name in node.input)
            assert maker[activation.input[0]].op_type == "QuantizeLinear"
            assert stored[activation.input[1]].shape == () and stored[activation.input[2]] == 0
            value, scale, zero = (stored[name] for name in weight.input)
            assert value.dtype == np.int8 and not zero.any() and scale.shape == (value.shape[1],)
            exact = weights()[node.name.split("/")[0]]
            assert np.allclose(scale, np.abs(exact).max(0) / 127)
            assert np.abs(value * scale - exact).max() <= scale.max() / 2 * 1.001
        elif node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
            assert not any(quantized), node.name  # attention, residuals, norms, the text, the narrow
    normed = next(node for node in model.graph.node if node.name == "q/MatMul").input[0]
    assert sum(normed in node.input for node in model.graph.node) == 2  # q and k read one pair
    assert not set(LINEARS) & stored.keys()  # the float weights are gone


def test_weights_are_rounded_to_the_nearest_level() -> None:
    weight = np.array([[1.27, 0.0], [-0.636, 0.0], [0.004, 0.0]], np.float32)
    value, scale = quantize_weight(weight, 1, np.dtype(np.float32))
    assert value.tolist() == [[127, 0], [-64, 0], [0, 0]]
    assert scale == pytest.approx([0.01, 1.0])  # nothing to represent: any scale does
