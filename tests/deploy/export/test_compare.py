"""The proof of an export: it sees rounding, damage and foreign weights, and counts every image."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from ovsdino.deploy.export import tensorrt_api
from ovsdino.deploy.export.compare import Verification, compare, cosine, runner, verify
from ovsdino.deploy.export.inputs import Images, bank_rows, random_rows, synthetic, text_rows
from ovsdino.deploy.export.layers import per_layer
from ovsdino.deploy.export.publish import Exported, publish
from ovsdino.deploy.export.rounded import Rounded
from ovsdino.errors import OVSDinoError
from ovsdino.models.zoo import CONFIGS
from tests.support import tiny
from tests.support.graphs import exported
from tests.support.small import small_model


@pytest.fixture(scope="module")
def half() -> Exported:
    return exported(batch=(1, 2), classes=(1, 40), precision="float16")


def damaged(exported: Exported, part: str) -> Exported:
    """Return a copy whose weight `part` has its sign turned, with a sidecar that vouches for it."""
    model = onnx.load_model_from_string(exported.data)
    found = [tensor for tensor in model.graph.initializer if part in tensor.name]
    assert len(found) == 1, [tensor.name for tensor in found]
    values = numpy_helper.to_array(found[0])
    found[0].CopyFrom(numpy_helper.from_array(-values, found[0].name))
    return Exported.of(model.SerializeToString(), exported.sidecar)


def test_a_good_export_passes_and_counts_every_image(half: Exported) -> None:
    found = verify(small_model(), half, synthetic(3))  # three images in batches of two
    assert found.images == 3
    assert 1 - 1e-4 < found.worst_cosine <= found.cosine < 1.0
    assert found.label_agreement > 0.99
    found.check()


def test_damage_is_refused_and_found(half: Exported) -> None:
    bad = damaged(half, "decoder.smd.blocks.0.out.bias")
    found = verify(small_model(), bad, synthetic(1))
    with pytest.raises(OVSDinoError, match=r"departs from PyTorch: cosine 0\.9") as caught:
        found.check(0.99999)
    assert "\n" not in str(caught.value)
    rows = per_layer(small_model(), bad, synthetic(1))
    departed = [row.module for row in rows if row.cosine < 0.99]
    assert departed[0] == "decoder.smd.blocks.0.out"
    modules = [row.module for row in rows]
    assert "backbone.vit.blocks.1.attn" in modules and "decoder.sae.boundary" not in modules  # which nothing reads
    assert all(row.cosine > 0.9999 for row in rows[: modules.index(departed[0])])


def test_rounding_overflows_where_float16_does(half: Exported) -> None:
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [3]) for name in ("image", "text", "logits")]
    point, two = (numpy_helper.from_array(np.array(x, np.float16), n) for x, n in ((0.5, "half"), (2.0, "two")))
    nodes = [
        helper.make_node("Cast", ["image"], ["a"], to=TensorProto.FLOAT16),
        helper.make_node("Mul", ["a", "two"], ["b"]),
        helper.make_node("Mul", ["b", "half"], ["c"]),
        helper.make_node("Cast", ["c"], ["d"], to=TensorProto.FLOAT),
        helper.make_node("Add", ["d", "text"], ["logits"]),
    ]
    model = helper.make_graph(nodes, "g", value[:2], value[2:], [point, two])
    graph = helper.make_model(model, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    image = np.array([60000, 1 / 3, 1], np.float32)
    found = Rounded(graph.SerializeToString(), half.sidecar).run(image, np.zeros(3, np.float32))["logits"]
    np.testing.assert_array_equal(found, [np.inf, np.float16(1 / 3), 1])


def test_every_tensor_of_a_float16_graph_is_rounded(half: Exported) -> None:
    names = [
        node.output[0]
        for node in onnx.load_model_from_string(half.data).graph.node
        if node.op_type in ("MatMul", "Conv", "Add", "Mul")
    ]
    image = np.random.default_rng(0).standard_normal((2, 3, 48, 80)).astype(np.float32)
    found = Rounded(*half, names).run(image, text_rows(small_model(), (), (1, 3)))
    with np.errstate(over="ignore"):  # the float32 tensors among them
        narrow = [name for name in names if np.array_equal(found[name], found[name].astype(np.float16))]
    # The others stand between a product and its softmax, or scale sums: eight of the upsampling, two of each fold.
    assert len(names) - len(narrow) <= 10
    assert len(narrow) > 100


def test_another_models_file_is_refused(half: Exported) -> None:
    other = small_model()
    with torch.no_grad():
        other.log_scale.add_(1.0)
    with pytest.raises(OVSDinoError, match="exported from other weights"):
        verify(other, half, synthetic(1))


def test_a_changed_file_is_refused(half: Exported, tmp_path: Path) -> None:
    path = tmp_path / "small.onnx"
    publish(path, half)
    assert Exported.read(path).data == half.data
    path.write_bytes(half.data[:-1] + b"x")
    with pytest.raises(OVSDinoError, match="changed since it was exported"):
        Exported.read(path)


def test_cosine() -> None:
    assert cosine(np.array([3.0, 4.0]), np.array([4.0, 3.0])) == pytest.approx(24 / 25)
    assert cosine(np.zeros(2), np.zeros(2)) == 1.0
    assert math.isnan(cosine(np.array([1.0, np.inf]), np.ones(2)))
    with pytest.raises(OVSDinoError, match="departs"):
        Verification(cosine=math.nan, worst_cosine=math.nan, label_agreement=1.0, images=1, source="images").check()


@pytest.fixture
def model(tmp_path: Path) -> Exported:
    return Exported.read(tiny.graph(tmp_path / "tiny.onnx", batch=2))


@pytest.fixture
def images() -> Images:
    random = np.random.default_rng(0)
    return Images(tuple(random.integers(0, 256, (48, 64, 3), dtype=np.uint8) for _ in range(3)), (), "random images")


def test_a_graph_agrees_with_itself_on_the_images_that_are_named(model: Exported, images: Images) -> None:
    sidecar = model.sidecar
    run = runner(model, random_rows(sidecar.embed_dim, sidecar.classes))
    found = compare(run, run, sidecar, images, reference="ONNX Runtime")  # 3 images in batches of 2
    assert (found.cosine, found.label_agreement, found.images) == (pytest.approx(1), 1.0, 3)
    told = found.to_dict()
    assert (told["source"], told["reference"]) == ("random images", "ONNX Runtime")
    assert "verified on 3 random images against ONNX Runtime" in found.tell()
    found.check()


def test_an_engine_that_departs_is_refused(model: Exported, images: Images) -> None:
    sidecar = model.sidecar
    run = runner(model, random_rows(sidecar.embed_dim, sidecar.classes))
    opposite = compare(lambda image: -run(image), run, sidecar, images, reference="ONNX Runtime")
    assert opposite.worst_cosine == pytest.approx(-1) and opposite.label_agreement < 0.2
    with pytest.raises(OVSDinoError, match=r"the engine departs from ONNX Runtime: cosine -1\.0.*on 3 random images"):
        opposite.check()
    empty = compare(lambda image: np.full_like(run(image), np.nan), run, sidecar, images, reference="ONNX Runtime")
    with pytest.raises(OVSDinoError, match="departs"):
        empty.check()
    with pytest.raises(OVSDinoError, match="its logits are"):
        compare(lambda image: run(image)[:, :1], run, sidecar, images, reference="ONNX Runtime")


def test_the_words_are_a_banks_or_seeded(model: Exported, tmp_path: Path) -> None:
    sidecar = model.sidecar
    path = tiny.bank("road", "sky").save(tmp_path / "bank.safetensors")
    assert np.array_equal(bank_rows(sidecar, path), tiny.bank("road", "sky").text)
    rows = random_rows(sidecar.embed_dim, sidecar.classes)
    assert rows.shape[1] == tiny.DIM and np.allclose(np.linalg.norm(rows, axis=1), 1)
    assert np.array_equal(rows, random_rows(sidecar.embed_dim, sidecar.classes))
    other = tiny.bank("road", "sky", weights="1" * 64).save(tmp_path / "other.safetensors")
    with pytest.raises(OVSDinoError, match="other weights"):
        bank_rows(sidecar, other)


@pytest.mark.parametrize("version", ["10.3.0", "10.3.0.30", "10.4.0"])
def test_reported_faults_are_named(version: str) -> None:
    for name, config in CONFIGS.items():
        found = tensorrt_api.known_fault("tensorrt", version, name)
        assert (found is not None) == ("dinov3" in config.backbone.timm_name), name
        assert found is None or all(number in found for number in ("4723", "4558", "4742"))
    assert tensorrt_api.known_fault("tensorrt_rtx", version, "b16v3") is None


@pytest.mark.parametrize("version", ["10.16.2", "10.5.0", "11.4.0"])
def test_other_releases_have_no_report(version: str) -> None:
    assert tensorrt_api.known_fault("tensorrt", version, "b16v3") is None
