"""The proof of an export: it sees rounding, damage and foreign weights, and names the layer where they begin."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from ovsdino.deploy.export.compare import Verification, cosine, verify
from ovsdino.deploy.export.inputs import synthetic, text_rows
from ovsdino.deploy.export.layers import per_layer
from ovsdino.deploy.export.options import VerifyOptions
from ovsdino.deploy.export.publish import Exported, publish
from ovsdino.deploy.export.rounded import Rounded
from ovsdino.deploy.export.trace import export_graph
from ovsdino.deploy.export_onnx import ExportOnnx
from ovsdino.edge.sidecar import Sidecar
from ovsdino.errors import OVSDinoError
from ovsdino.models.ovsdino import OVSDINO
from ovsdino.parsing import run_script
from tests.support.small import SIZE, small_model


@pytest.fixture(scope="module")
def half() -> Exported:
    return export_graph(small_model(), **SIZE, batch=2, precision="float16")


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
    departed = [row.module for row in rows if row.cosine < 0.9]
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


@pytest.mark.parametrize(("classes", "rows"), [((1, 256), 2), ((5, 5), 5), ((50, 60), 50), ((1, 1), 1)])
def test_the_text_bank_fits_the_graph(classes: tuple[int, int], rows: int) -> None:
    model = small_model()
    bank = text_rows(model, ["road", "sky"], classes)
    assert bank.shape == (rows, 32)
    np.testing.assert_allclose(np.linalg.norm(bank, axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(bank[0], model.encode_text(["road"])[0], rtol=1e-5)


def test_without_data_noise_is_used_and_said(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("OVSDINO_DATA", raising=False)
    monkeypatch.setattr("ovsdino.deploy.export.inputs.CHECKOUT_DATA", tmp_path)
    images = VerifyOptions().find()
    assert (len(images.pixels), images.names) == (4, ())
    assert "seeded synthetic images" in capsys.readouterr().err
    assert all(np.array_equal(a, b) for a, b in zip(images.pixels, VerifyOptions().find().pixels, strict=True))
    with pytest.raises(OVSDinoError, match="camvid"):
        VerifyOptions(root=tmp_path).find()  # a folder that was named must hold it
    with pytest.raises(OVSDinoError, match="limit is 0"):
        VerifyOptions(limit=0).find()


def test_images_of_a_folder(tmp_path: Path) -> None:
    for index in range(3):
        Image.new("RGB", (30, 20), (index, 0, 0)).save(tmp_path / f"{index}.png")
    images = VerifyOptions(images=tmp_path, limit=2).find()
    assert [image.shape for image in images.pixels] == [(20, 30, 3)] * 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExportSmall(ExportOnnx):
    """The export of a model that the zoo does not know."""

    def load(self) -> OVSDINO:
        return small_model(decoder=False)


def test_an_export_that_departs_leaves_nothing_behind(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], hashed: list[int]
) -> None:
    noise = tmp_path / "images"
    noise.mkdir()
    Image.fromarray(synthetic(1).pixels[0]).save(noise / "a.png")
    arguments = ["--output", str(tmp_path / "out"), "--images", str(noise), "--json"]
    assert run_script(ExportSmall, "export_onnx.py", [*arguments, "--cosine", "1.1"]) == 2
    out, err = capsys.readouterr()
    assert "departs from PyTorch" in json.loads(out)["error"]
    assert err.splitlines()[-1].startswith("error: the graph departs from PyTorch")
    assert not list((tmp_path / "out").iterdir())
    assert run_script(ExportSmall, "export_onnx.py", arguments) == 0
    report = json.loads(capsys.readouterr().out)
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == ["small_fp32.onnx", "small_fp32.onnx.json"]
    assert report["verified"]["cosine"] > 0.99999
    verified = Sidecar.load(report["onnx"]).verified
    assert verified is not None and verified["images"] == 1
    assert hashed.count(report["bytes"]) == 2  # once in each of the two runs; reading the sidecar hashes nothing
