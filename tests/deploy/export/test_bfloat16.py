"""A graph in bfloat16: the range of float32 in 16 bits, the residual stream included, and an engine of it."""

from __future__ import annotations

from types import ModuleType

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from ovsdino.deploy.export import graph
from ovsdino.deploy.export.compare import verify
from ovsdino.deploy.export.engine import build_engine, layer_types
from ovsdino.deploy.export.inputs import synthetic
from ovsdino.deploy.export.options import BuildOptions
from ovsdino.deploy.export.publish import Exported
from ovsdino.deploy.export.rounded import with_roundings
from ovsdino.deploy.export.tensorrt_api import Layer
from ovsdino.deploy.export.trace import export_graph
from tests.support.small import SIZE, small_model


@pytest.fixture(scope="module")
def exported() -> Exported:
    return export_graph(small_model(), **SIZE, batch=2, precision="bfloat16")


def inner_types(model: onnx.ModelProto) -> dict[str, int]:
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
    return {value.name: value.type.tensor_type.elem_type for value in inferred.value_info}


def product(weight: float) -> onnx.ModelProto:
    """Return y = x w with one weight, whose name is w, in float32."""
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 1]) for name in ("x", "y")]
    weights = [numpy_helper.from_array(np.full((1, 1), weight, np.float32), "w")]
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"], "a/MatMul")]
    opset = [helper.make_opsetid("", 18)]
    return helper.make_model(helper.make_graph(nodes, "g", values[:1], values[1:], weights), opset_imports=opset)


def test_residual_stream_and_products_are_bfloat16_and_norms_float32(exported: Exported) -> None:
    model = onnx.load_model_from_string(exported.data)
    types = inner_types(model)
    kinds: dict[str, set[int]] = {}
    for node in model.graph.node:
        if node.name.startswith("backbone.vit.blocks.0") and node.output[0] in types:
            kinds.setdefault(node.name.removeprefix("backbone.vit.blocks.0"), set()).add(types[node.output[0]])
    assert kinds["/Add"] == kinds["/Add_2"] == {TensorProto.BFLOAT16}  # the two residual sums
    assert kinds[".mlp.fc1/MatMul"] == {TensorProto.BFLOAT16}
    assert kinds[".norm1/LayerNormalization"] == kinds[".attn/Softmax"] == {TensorProto.FLOAT}
    shown = {value.type.tensor_type.elem_type for value in (*model.graph.input, *model.graph.output)}
    assert shown == {TensorProto.FLOAT} and exported.sidecar.precision == "bfloat16"


def test_it_is_close_to_pytorch_with_every_tensor_rounded(exported: Exported) -> None:
    found = verify(small_model(), exported, synthetic(2))
    assert 0.99 < found.worst_cosine < 0.9999999  # 2^-9 a tensor; without roundings it would be 1


@pytest.mark.parametrize("value", [1 + 2**-9 + 2**-12, 70000.0, 1e30])
def test_roundings_are_those_of_eight_bits_and_nothing_overflows(value: float) -> None:
    # Between 1 and 2 bfloat16 has steps of 2^-7, at 70 000 of 512; float16 ends at 65 504.
    model = product(1.0)
    graph.to_16_bits(model, "bfloat16")
    with_roundings(model)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"x": np.full((1, 1), value, np.float32)})
    assert found.item() == torch.tensor(value).bfloat16().item()


def test_an_op_without_bfloat16_stays_in_float32() -> None:
    assert graph.BFLOAT16_OPSET >= 22  # the first whose Conv has it
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, 2]) for name in ("x", "y")]
    nodes = [helper.make_node("Einsum", ["x", "x"], ["m"], "a/Einsum", equation="ij,jk->ik")]
    nodes += [helper.make_node("MatMul", ["m", "x"], ["y"], "a/MatMul")]
    opset = [helper.make_opsetid("", 18)]
    model = helper.make_model(helper.make_graph(nodes, "g", values[:1], values[1:]), opset_imports=opset)
    graph.to_16_bits(model, "bfloat16")
    onnx.checker.check_model(model, full_check=True)
    types = inner_types(model)
    assert types["m"] == TensorProto.FLOAT and types["y_bfloat16"] == TensorProto.BFLOAT16


def test_layers_count_by_the_narrowest_float_that_they_read() -> None:
    reads = [("BFloat16", "Float"), ("Float",), ("Int32",), ("BFloat16",), ("Int8", "BFloat16"), ()]
    layers = [Layer(name=str(i), kind="gemm", nodes=(), reads=one) for i, one in enumerate(reads)]
    assert layer_types(layers) == {"BFloat16": 2, "Float": 1, "Int8": 1}


def test_the_engine_works_in_bfloat16_and_fuses_the_attention(exported: Exported, rtx: ModuleType) -> None:
    model = onnx.load_model_from_string(exported.data)
    products = sum(node.op_type == "MatMul" for node in model.graph.node)
    lines: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ovsdino.deploy.export.engine.say", lines.append)
        built, _ = build_engine(exported, BuildOptions(backend="tensorrt_rtx", target="sm86", effort=1))
    assert built.sidecar.precision == "bfloat16"
    types = next(line for line in lines if line.startswith("types"))
    counts = {name: int(count) for count, name in (one.split() for one in types.split(": ")[1].split(", "))}
    assert counts["BFloat16"] >= products // 2 and "Half" not in counts
    assert next(line for line in lines if line.startswith("attention")).startswith(("attention: 3", "attention: 2"))
