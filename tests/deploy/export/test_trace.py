"""A traced graph: the same numbers as PyTorch, in a form that the runtimes fuse, with a sidecar that describes it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor

from ovsdino.deploy.export import graph
from ovsdino.deploy.export.publish import Exported, publish
from ovsdino.deploy.export.random_weights import randomize
from ovsdino.deploy.export.rounded import Rounded
from ovsdino.deploy.export.trace import default_size, export_graph
from ovsdino.edge.sidecar import Sidecar
from ovsdino.errors import OVSDinoError
from ovsdino.models.config import BackboneConfig
from ovsdino.models.weights import weights_digest
from ovsdino.models.zoo import get_config
from ovsdino.ops.guided_upsample import guided_upsample_reference, guided_upsample_tiled
from ovsdino.ops.structure_attention import structure_attention_explicit, structure_attention_reference
from tests.support.cnn import CNN, JOINED, small_model_on
from tests.support.small import SIZE, small_model


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("onnx") / "small.onnx"
    publish(path, export_graph(small_model(), **SIZE, batch=2, classes=(1, 40)))
    return path


@pytest.fixture(scope="module")
def half(exported: Path) -> Exported:
    """Return the same graph in float16, as `export_graph` makes it, without tracing again."""
    model = onnx.load(exported)
    graph.to_16_bits(model, "float16")
    return Exported.of(model.SerializeToString(), Sidecar.load(exported), precision="float16")


def inputs(classes: int, batch: int = 2) -> tuple[Tensor, Tensor]:
    image = torch.randn(batch, 3, SIZE["height"], SIZE["width"])
    return image, torch.nn.functional.normalize(torch.randn(classes, 32), dim=-1)


def run(path: Path, image: Tensor, text: Tensor) -> np.ndarray:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(["logits"], {"image": image.numpy(), "text": text.numpy()})[0])


@pytest.mark.parametrize("classes", [1, 7, 40])
def test_any_vocabulary_runs_through_one_export(exported: Path, classes: int) -> None:
    image, text = inputs(classes)
    with torch.no_grad():
        expected = small_model()(image, text)
    found = run(exported, image, text)
    assert found.shape == (2, classes, 12, 20)
    assert np.abs(found - expected.numpy()).max() < 1e-4 * float(expected.abs().max())


def test_the_float16_graph_attends_below_the_token_in_float32(half: Exported) -> None:
    model = onnx.shape_inference.infer_shapes(onnx.load_model_from_string(half.data), strict_mode=True)
    types = {v.name: v.type.tensor_type.elem_type for v in model.graph.value_info}
    products = [n for n in model.graph.node if n.name.startswith("decoder.score_attention/MatMul")]
    assert [types[node.output[0]] for node in products] == [TensorProto.FLOAT] * 2


def test_float16_rounds_every_tensor_and_stays_close(exported: Path, half: Exported) -> None:
    image, text = inputs(7)
    exact = run(exported, image, text)
    rounded = Rounded(*half).run(image.numpy(), text.numpy())["logits"]
    error = np.linalg.norm(rounded - exact) / np.linalg.norm(exact)
    assert 2.0**-13 < error < 2.0**-7  # an 11-bit significand, and some thirty roundings one after the other


def test_the_float16_graph_keeps_norms_and_softmax_in_float32(half: Exported) -> None:
    model = onnx.shape_inference.infer_shapes(onnx.load_model_from_string(half.data), strict_mode=True)
    types = {v.name: v.type.tensor_type.elem_type for v in (*model.graph.value_info, *model.graph.output)}
    types |= {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    wide = {"LayerNormalization", "InstanceNormalization", "Softmax", "ReduceMean", "ReduceSum", "ReduceL2"}
    seen = Counter()
    for node in model.graph.node:
        if node.op_type in wide:
            assert {types[name] for name in node.input if name in types} <= {TensorProto.FLOAT, TensorProto.INT64}
            seen[node.op_type] += 1
        if node.op_type in ("MatMul", "Conv") and "score_attention/" not in node.name:
            assert {types[name] for name in (*node.input, *node.output)} == {TensorProto.FLOAT16}, node.name
            seen[node.op_type] += 1
    assert {"LayerNormalization", "Softmax", "ReduceL2", "MatMul", "Conv"} <= set(seen)
    assert [v.type.tensor_type.elem_type for v in (*model.graph.input, *model.graph.output)] == [TensorProto.FLOAT] * 3


def test_the_graph_is_what_tensorrt_fuses(exported: Path) -> None:
    model = onnx.load(exported)
    count = Counter(node.op_type for node in model.graph.node)
    assert model.opset_import[0].version == 18
    assert not {"Shape", "Range", "NonZero", "Loop", "If"} & set(count)  # no shape arithmetic is left
    assert count["LayerNormalization"] >= 6
    assert count["Softmax"] == 2 + 1 + 1  # blocks of the ViT, of the SMD, and the attention below the token
    below = [node for node in model.graph.node if node.name.startswith("decoder.score_attention")]
    assert len(below) < 60
    producers = {name: node for node in model.graph.node for name in node.output}
    users = graph.consumers(model.graph)
    for node in model.graph.node:
        if node.op_type == "Softmax" and ".attn" in node.name:
            assert producers[node.input[0]].op_type == "MatMul"  # the scale is inside q
            assert [user.op_type for user in users[node.output[0]]] == ["MatMul"]
    assert not any(node.metadata_props or node.doc_string for node in model.graph.node)
    assert b"site-packages" not in exported.read_bytes()


def test_nodes_are_named_after_their_modules(exported: Path) -> None:
    names = [node.name for node in onnx.load(exported).graph.node]
    assert len(set(names)) == len(names)
    assert "backbone.vit.blocks.1.mlp.fc1/MatMul" in names
    modules = dict(small_model().named_modules())
    assert {name.rpartition("/")[0] for name in names} <= set(modules)


def test_the_sidecar_describes_the_graph(exported: Path) -> None:
    sidecar = Sidecar.load(exported)
    assert sidecar.read(exported) == exported.read_bytes() and sidecar.file == "small.onnx"
    assert (sidecar.input, sidecar.classes, sidecar.stride) == ((2, 3, 48, 80), (1, 40), 4.0)
    assert (sidecar.kind, sidecar.backend, sidecar.target, sidecar.verified) == ("onnx", "onnx", "any", None)
    assert sidecar.weights == weights_digest(small_model())


def test_exporting_leaves_the_model_as_it_was(tmp_path: Path) -> None:
    model = small_model(decoder=False)
    before = weights_digest(model), [m.fused_attn for m in model.modules() if hasattr(m, "fused_attn")]
    sidecar = publish(tmp_path / "a.onnx", export_graph(model, height=32, width=48, batch=(1, 3), classes=5))
    assert before == (weights_digest(model), [m.fused_attn for m in model.modules() if hasattr(m, "fused_attn")])
    assert model.backbone.vit.dynamic_img_size
    assert (sidecar.input, sidecar.classes, sidecar.stride) == ((3, 3, 32, 48), (5, 5), 16.0)
    for batch in (1, 2, 3):  # a dynamic batch, a fixed vocabulary, no decoder
        image, text = torch.randn(batch, 3, 32, 48), inputs(5)[1]
        with torch.no_grad():
            expected = model(image, text)
        np.testing.assert_allclose(run(tmp_path / "a.onnx", image, text), expected, atol=1e-4)


@pytest.mark.parametrize(
    ("batch", "classes", "channels", "h", "w", "scale"),
    [
        (2, 3, 4, 3, 7, 4),
        (1, 2, 1, 6, 1, 2),
        (1, 4, 5, 5, 6, 1),
        (1, 9, 3, 1, 1, 5),
        (2, 5, 3, 8, 10, 4),
        (1, 1, 2, 2, 2, 3),
    ],
)
def test_tiled_upsampling_is_the_reference(batch: int, classes: int, channels: int, h: int, w: int, scale: int) -> None:
    logits = torch.randn(batch, classes, h, w, dtype=torch.float64)
    low = torch.randn(batch, channels, h, w, dtype=torch.float64)
    high = torch.randn(batch, channels, h * scale, w * scale, dtype=torch.float64)
    expected = guided_upsample_reference(logits, low, high, 0.7)
    torch.testing.assert_close(guided_upsample_tiled(logits, low, high, 0.7), expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize(("d", "r", "dv"), [(48, 15, 64), (8, 7, 16), (5, 2, 3)])
def test_explicit_structure_attention_is_the_reference(d: int, r: int, dv: int) -> None:
    q, k, v, e = (torch.randn(2, 3, 17, size, dtype=torch.float64) for size in (d, d, dv, r))
    lam, gate = torch.rand(3, dtype=torch.float64), torch.rand(2, 3, 17, dtype=torch.float64)
    expected = structure_attention_reference(q, k, v, e, lam, gate, d**-0.5)
    torch.testing.assert_close(structure_attention_explicit(q, k, v, e, lam, gate, d**-0.5), expected)
    few = (q[:, :, :5], k, v, e[:, :, :5], lam, gate[:, :, :5], d**-0.5, e + 0.3)
    torch.testing.assert_close(structure_attention_explicit(*few), structure_attention_reference(*few))


def test_a_weight_beyond_float16_is_refused() -> None:
    weight = numpy_helper.from_array(np.full((2, 2), 70000.0, np.float32), "w")
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, 2]) for name in ("x", "y")]
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"], "a/MatMul")]
    model = helper.make_model(helper.make_graph(nodes, "g", value[:1], value[1:], [weight]))
    with pytest.raises(OVSDinoError, match="w: a weight of 70000 is too large for float16"):
        graph.to_16_bits(model, "float16")


@pytest.mark.parametrize("backbone", [CNN, JOINED], ids=["dilated", "joined"])
def test_a_cnn_exports_like_a_transformer(tmp_path: Path, backbone: BackboneConfig) -> None:
    model = randomize(small_model_on(backbone), 0)
    publish(tmp_path / "cnn.onnx", export_graph(model, **SIZE, batch=2, classes=(1, 40)))
    image, text = inputs(7)
    with torch.no_grad():
        expected = model(image, text)
    assert expected.std() > 0.1
    np.testing.assert_allclose(run(tmp_path / "cnn.onnx", image, text), expected.numpy(), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("name", "size"), [("nano", (352, 464)), ("s14", (448, 448)), ("b16v3", (448, 448))])
def test_default_sizes(name: str, size: tuple[int, int]) -> None:
    # nano: 352 and 352 * 4 / 3 = 469.3 -> 29.3 patches of 16
    assert default_size(get_config(name)) == size


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"height": 50}, "height is 50: small needs a multiple of 16, for instance 48"),
        ({"width": 0}, "width is 0: small needs a multiple of 16, for instance 16"),
        ({"classes": 0}, "classes is 0: expected"),
        ({"classes": (9, 3)}, "classes is 9..3: expected"),
        ({"batch": 0}, "batch is 0: expected"),
        ({"precision": "int8"}, "precision is 'int8': expected float32, float16, bfloat16"),
    ],
)
def test_refuses_bad_sizes(changes: dict[str, object], message: str) -> None:
    with pytest.raises(OVSDinoError, match=message):
        export_graph(small_model(), **{**SIZE, **changes})  # type: ignore[arg-type]
