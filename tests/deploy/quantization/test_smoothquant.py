"""SmoothQuant: the linears that it finds, and its algebra."""

from __future__ import annotations

import numpy as np
from onnx import numpy_helper

from ovsdino.deploy.quantization.calibrate import channel_ranges
from ovsdino.deploy.quantization.smoothquant import find_linears, smooth
from tests.support.block import WIDTH, feeds, network, run, weights


def test_linears_are_products_of_the_image_with_a_stored_weight() -> None:
    found = find_linears(network())
    assert [linear.name for linear in found] == [
        "embed",
        "q",
        "k",
        "gate",
        "fc1",
        "fc2",
        "head",
    ]  # no attention, no text
    assert {linear.name: linear.norm for linear in found}["k"] == "normed/LayerNormalization"
    assert found[0].norm is None and found[0].shape == (3, WIDTH)


def test_smoothquant_leaves_the_function_and_moves_the_outliers_into_the_weights() -> None:
    model = network()
    before, linears = run(model, feeds()), find_linears(model)
    chosen = [linear for linear in linears if linear.name in ("q", "k", "fc1")]
    largest = channel_ranges(model, [linear.input for linear in chosen], feeds(), 1)
    assert smooth(model, chosen, largest, 0.5) == 3
    for a, b in zip(before, run(model, feeds()), strict=True):
        assert np.abs(a - b).max() < 1e-5 * np.abs(a).max()
    kinds = [node.op_type for node in model.graph.node]
    assert kinds.count("Mul") == 2  # scale of attention, and one where the second norm has another reader
    smoothed = [linear for linear in find_linears(model) if linear.name in ("q", "fc1")]
    after = channel_ranges(model, [linear.input for linear in smoothed], feeds(), 1)
    spread = {linear.name: after[linear.input].max() / np.median(after[linear.input]) for linear in smoothed}
    assert spread["q"] < largest["normed"].max() / np.median(largest["normed"]) / 5
    q = next(tensor for tensor in model.graph.initializer if tensor.name == "q")
    joint = np.maximum(np.abs(weights()["q"]).max(1), np.abs(weights()["k"]).max(1))
    factor = np.sqrt(largest["normed"] / joint)  # alpha = 0.5, the weight's range over both readers
    assert np.allclose(numpy_helper.to_array(q), weights()["q"] * factor[:, None], rtol=1e-5)


def test_a_dead_channel_is_left_as_it_is() -> None:
    model = network()
    linears = [linear for linear in find_linears(model) if linear.name == "q"]
    largest = np.full(WIDTH, 4.0, np.float32)
    largest[5] = 0
    smooth(model, linears, {"normed": largest}, 0.5)
    found = numpy_helper.to_array(next(t for t in model.graph.initializer if t.name == "q"))
    assert np.isfinite(found).all() and np.array_equal(found[5], weights()["q"][5])
