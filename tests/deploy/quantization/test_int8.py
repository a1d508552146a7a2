"""A graph in int8: its labels, the linears left in float, and refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto

from ovsdino.deploy.export import graph as passes
from ovsdino.deploy.quantization.calibrate import tensor_ranges
from ovsdino.deploy.quantization.int8 import compared, quantize, sensitivity
from ovsdino.deploy.quantization.options import Recipe
from ovsdino.deploy.quantization.smoothquant import find_linears
from ovsdino.errors import OVSDinoError
from tests.support.block import LINEARS, NARROW, feeds, network, run


def test_onnx_runtime_computes_the_linears_in_int8(tmp_path: Path) -> None:
    import onnxruntime

    found = quantize(network(), feeds(), Recipe(skip=("k",), threads=1))  # readers of one Q/DQ pair stay in float there
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(found.model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    kinds = [node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node]
    assert kinds.count("MatMulIntegerToFloat") == len(LINEARS) - 1


def test_smoothquant_saves_what_plain_quantization_loses() -> None:
    expected = run(network(), feeds())
    errors = {}
    for alpha in (0.0, 0.5):
        found = quantize(network(), feeds(), Recipe(alpha=alpha, skip=("fc?", "head"), threads=1))
        assert found.linears == ("q", "k")
        _, errors[alpha], _ = compared(expected, run(found.model, feeds()))
    assert errors[0.5] < 0.25 * errors[0.0]


def test_labels_survive_int8() -> None:
    found = quantize(network(), feeds(), Recipe(threads=1))
    assert found.linears == tuple(LINEARS) and found.kept == NARROW
    cosine, _, agreement = compared(run(network(), feeds()), run(found.model, feeds()))
    assert cosine > 0.999 and agreement > 0.98


def test_a_float16_graph_keeps_float16_around_int8() -> None:
    model = network()
    passes.to_16_bits(model, "float16")
    model = onnx.shape_inference.infer_shapes(model)
    found = quantize(model, feeds(), Recipe(threads=1))
    assert found.linears == tuple(LINEARS)
    scales = [t for t in found.model.graph.initializer if t.name.endswith("_scale")]
    assert scales and all(tensor.data_type == TensorProto.FLOAT16 for tensor in scales)
    _, error, _ = compared(run(network(), feeds()), run(found.model, feeds()))
    assert error < 0.03


def test_sensitivity_lists_the_worst_first_and_keep_leaves_them_in_float() -> None:
    model, inputs = network(), feeds()
    linears = [linear for linear in find_linears(model) if linear.name in LINEARS]
    ranges = tensor_ranges(model, [linear.input for linear in linears], inputs, "minmax", 100.0, 1)
    ranges["active"] *= 40  # a range far too wide: hardly any levels left
    rows = sensitivity(model, linears, ranges, inputs, 1)
    assert rows[0]["linear"] == "fc2" and [row["error"] for row in rows] == sorted(
        (row["error"] for row in rows), reverse=True
    )
    found = quantize(model, inputs, Recipe(keep=2, threads=1))
    assert found.sensitivity is not None and len(found.linears) == len(LINEARS) - 2
    assert set(found.kept) == {*NARROW, *(row["linear"] for row in found.sensitivity[:2])}


def test_first_last_and_named_layers_can_be_left_in_float() -> None:
    linears = find_linears(network())
    chosen = Recipe(keep_first=1, skip=("fc?",)).chosen(linears)
    assert [linear.name for linear in chosen] == ["q", "k", "head"]
    assert Recipe(keep_first=2, keep_last=1).chosen(linears)[0].name == "k"
    assert Recipe(keep_first=2, keep_last=1).chosen(linears)[-1].name == "fc2"
    with pytest.raises(OVSDinoError, match="no linear is named 'blocks"):
        Recipe(skip=("blocks.*",)).chosen(linears)
    with pytest.raises(OVSDinoError, match="nothing would be left"):
        Recipe(keep=5).chosen(linears)


@pytest.mark.parametrize("field, value", [("alpha", 1.5), ("percentile", 0), ("images", 0), ("keep", -1)])
def test_numbers_out_of_range_are_named(field: str, value: float) -> None:
    changes: dict[str, Any] = {field: value}
    with pytest.raises(OVSDinoError, match=field):
        quantize(network(), feeds(), Recipe(**changes))


def test_a_graph_without_linears_is_refused() -> None:
    model = network()
    kept = [node for node in model.graph.node if node.op_type == "Transpose"][:1]
    del model.graph.node[:]
    model.graph.node.extend(kept)
    with pytest.raises(OVSDinoError, match="no linears"):
        quantize(model, feeds(1), Recipe())
    with pytest.raises(OVSDinoError, match="real images"):
        quantize(network(), [], Recipe())
