"""INT8: which products are quantized and how, SmoothQuant's algebra, ranges by hand, and what is refused."""

from __future__ import annotations

import dataclasses
import json
import zipfile
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from ovsdino.deploy.export import graph as passes
from ovsdino.deploy.export.engine import build_engine
from ovsdino.deploy.export.options import BuildOptions
from ovsdino.deploy.export.publish import Exported
from ovsdino.deploy.quantization import calibrate
from ovsdino.deploy.quantization.calibrate import calibration_images, channel_ranges, tensor_ranges
from ovsdino.deploy.quantization.int8 import compared, quantize, sensitivity
from ovsdino.deploy.quantization.job import quantize_file
from ovsdino.deploy.quantization.options import QuantizeOptions, Recipe
from ovsdino.deploy.quantization.qdq import insert_qdq, quantize_weight
from ovsdino.deploy.quantization.smoothquant import find_linears, smooth
from ovsdino.deploy.quantize import Quantize
from ovsdino.edge.onnx_graph import open_session
from ovsdino.edge.sidecar import Sidecar
from ovsdino.errors import OVSDinoError
from ovsdino.models.zoo import get_config
from ovsdino.parsing import run_script

SIDE, WIDTH, TEXT = 8, 32, 24
LINEARS = ["q", "k", "fc1", "fc2", "head"]
NARROW = ("embed", "gate")  # 3 inputs, 4 outputs


def weights() -> dict[str, np.ndarray]:
    """Of `network`. Two channels of the first norm are 60 times as large as the others, as in a trained ViT."""
    random = np.random.default_rng(0)

    def normal(*shape: int) -> np.ndarray:
        return (random.normal(size=shape) / np.sqrt(shape[0])).astype(np.float32)

    gain = np.ones(WIDTH, np.float32)
    gain[[3, 17]] = 60
    found = {
        "embed": normal(3, WIDTH),
        "q": normal(WIDTH, WIDTH),
        "k": normal(WIDTH, WIDTH),
        "fc1": normal(WIDTH, 64),
        "fc2": normal(64, WIDTH),
        "head": normal(WIDTH, TEXT),
        "detail": normal(TEXT, TEXT),
        "gate": normal(WIDTH, 4),
        "gain": gain,
        "bias": random.normal(size=WIDTH).astype(np.float32),
        "flat": np.ones(WIDTH, np.float32),
        "bias_q": random.normal(size=WIDTH).astype(np.float32),
        "scale": np.array(0.02, np.float32),
    }
    for name in ("q", "k"):
        found[name][[3, 17]] *= 0.02  # what training does with such channels
    return found


def network() -> onnx.ModelProto:
    """One transformer block in miniature: two linears on one norm, attention, a residual, a norm with other readers."""
    nodes: list[onnx.NodeProto] = []

    def add(kind: str, inputs: list[str], output: str, name: str | None = None, **attributes: Any) -> str:
        nodes.append(helper.make_node(kind, inputs, [output], name=name or f"{output}/{kind}", **attributes))
        return output

    add("Transpose", ["image"], "hwc", perm=[0, 2, 3, 1])
    add("Reshape", ["hwc", "tokens"], "pixels")
    add("MatMul", ["pixels", "embed"], "x", "embed/MatMul")
    add("LayerNormalization", ["x", "gain", "bias"], "normed", axis=-1)
    add("MatMul", ["normed", "q"], "q_product", "q/MatMul")
    add("Add", ["q_product", "bias_q"], "query")
    add("MatMul", ["normed", "k"], "key", "k/MatMul")
    add("Transpose", ["key"], "key_t", perm=[0, 2, 1])
    add("MatMul", ["query", "key_t"], "scores", "attention/MatMul")
    add("Mul", ["scores", "scale"], "scaled")
    add("Softmax", ["scaled"], "attended", axis=-1)
    add("MatMul", ["attended", "x"], "mixed", "attention/MatMul_2")
    add("Add", ["x", "mixed"], "residual")
    add("LayerNormalization", ["residual", "flat", "bias"], "second", axis=-1)
    add("MatMul", ["second", "gate"], "gates", "gate/MatMul")  # four outputs: left alone, and so a reader of the norm
    add("ReduceMean", ["gates", "last"], "gate_mean", keepdims=1)
    add("MatMul", ["second", "fc1"], "hidden", "fc1/MatMul")
    add("Tanh", ["hidden"], "active")
    add("MatMul", ["active", "fc2"], "mlp", "fc2/MatMul")
    add("Add", ["mlp", "gate_mean"], "gated")
    add("Add", ["residual", "gated"], "y")
    add("MatMul", ["y", "head"], "features", "head/MatMul")
    add("MatMul", ["text", "detail"], "words", "detail/MatMul")
    add("Transpose", ["words"], "words_t", perm=[1, 0])
    add("MatMul", ["features", "words_t"], "similarity", "similarity/MatMul")
    add("Transpose", ["similarity"], "similarity_t", perm=[0, 2, 1])
    add("Reshape", ["similarity_t", "grid"], "logits")
    stored = [numpy_helper.from_array(value, name) for name, value in weights().items()]
    shapes = {"tokens": [1, SIDE * SIDE, 3], "grid": [1, -1, SIDE, SIDE], "last": [-1]}
    stored += [numpy_helper.from_array(np.array(value, np.int64), name) for name, value in shapes.items()]
    graph = helper.make_graph(
        nodes,
        "block",
        [
            helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, SIDE, SIDE]),
            helper.make_tensor_value_info("text", TensorProto.FLOAT, ["K", TEXT]),
        ],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, "K", SIDE, SIDE])],
        stored,
    )
    opset = helper.make_opsetid("", 18)
    return onnx.shape_inference.infer_shapes(helper.make_model(graph, opset_imports=[opset], ir_version=9))


def feeds(count: int = 4) -> list[dict[str, np.ndarray]]:
    random = np.random.default_rng(1)
    text = random.normal(size=(5, TEXT)).astype(np.float32)
    text /= np.linalg.norm(text, axis=1, keepdims=True)
    return [{"image": random.normal(size=(1, 3, SIDE, SIDE)).astype(np.float32), "text": text} for _ in range(count)]


def run(model: onnx.ModelProto, inputs: list[dict[str, np.ndarray]]) -> list[np.ndarray]:
    return calibrate.run(model, inputs, 1)


def saved(folder: Path, model: onnx.ModelProto | None = None, **changes: Any) -> Path:
    """The network as an exported file with its sidecar."""
    path = folder / "block_fp32.onnx"
    path.write_bytes((model or network()).SerializeToString())
    config = get_config("nano")
    sidecar = Sidecar(
        kind="onnx",
        file=path.name,
        sha256="",
        bytes=0,
        model="nano",
        precision="float32",
        backend="onnx",
        version="",
        target="any",
        input=(1, 3, SIDE, SIDE),
        classes=(1, 256),
        embed_dim=TEXT,
        stride=1.0,
        mean=config.mean,
        std=config.std,
        short_side=SIDE,
        patch_size=1,
        weights="0" * 64,
    )
    sidecar.describing(path.read_bytes(), **changes).save(path)
    return path


def pictures(folder: Path, count: int) -> Path:
    folder.mkdir(exist_ok=True)
    random = np.random.default_rng(2)
    for index in range(count):
        pixels = random.integers(0, 256, (10, 12, 3), dtype=np.uint8)
        pixels[0, 0] = index
        Image.fromarray(pixels).save(folder / f"{index:02}.png")
    return folder


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
    passes.to_float16(model)
    model = onnx.shape_inference.infer_shapes(model)
    found = quantize(model, feeds(), Recipe(threads=1))
    assert found.linears == tuple(LINEARS)
    scales = [t for t in found.model.graph.initializer if t.name.endswith("_scale")]
    assert scales and all(tensor.data_type == TensorProto.FLOAT16 for tensor in scales)
    _, error, _ = compared(run(network(), feeds()), run(found.model, feeds()))
    assert error < 0.03


def test_weights_are_rounded_to_the_nearest_level() -> None:
    weight = np.array([[1.27, 0.0], [-0.636, 0.0], [0.004, 0.0]], np.float32)
    value, scale = quantize_weight(weight, 1, np.dtype(np.float32))
    assert value.tolist() == [[127, 0], [-64, 0], [0, 0]]
    assert scale == pytest.approx([0.01, 1.0])  # nothing to represent: any scale does


def test_percentiles_cut_off_what_is_rare() -> None:
    model, inputs = network(), feeds()
    exact = tensor_ranges(model, ["active"], inputs, "minmax", 100.0, 1)["active"]
    cut = tensor_ranges(model, ["active"], inputs, "percentile", 99.0, 1)["active"]
    session = open_session(_watched(model, "active").SerializeToString(), "the graph", 1)
    values = np.concatenate([session.run(["active"], one)[0].ravel() for one in inputs])
    assert cut == pytest.approx(np.percentile(np.abs(values), 99.0), rel=0.02) and cut < exact


def _watched(model: onnx.ModelProto, name: str) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    copy.graph.output.append(onnx.ValueInfoProto(name=name))
    return copy


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


def test_calibration_images_are_spread_over_those_there_are(tmp_path: Path) -> None:
    folder = pictures(tmp_path / "images", 9)
    for source in (folder, tmp_path):
        assert [image[0, 0, 0] for image in calibration_images(source, 3)] == [0, 4, 8]
    archive = tmp_path / "set.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for path in folder.iterdir():
            file.writestr(f"images/{path.name}", path.read_bytes())
        label = BytesIO()
        Image.new("L", (4, 4)).save(label, "PNG")
        file.writestr("labels/00.png", label.getvalue())
    assert [image[0, 0, 0] for image in calibration_images(archive, 3)] == [0, 4, 8]
    assert len(calibration_images(archive, 100)) == 9


def test_the_script_writes_graph_and_sidecar(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], hashed: list[int]
) -> None:
    path, images = saved(tmp_path), pictures(tmp_path / "images", 4)
    hashed.clear()
    arguments = ["--input", str(path), "--calibration", str(images), "--threads", "1", "--sensitivity", "--json"]
    assert run_script(Quantize, "quantize.py", arguments) == 0
    report = json.loads(capsys.readouterr().out)
    assert sorted(hashed) == sorted([path.stat().st_size, report["bytes"]])  # the input and the output, once each
    assert report["output"] == str(tmp_path / "block_int8.onnx") and len(report["sensitivity"]) == len(LINEARS)
    sidecar = Sidecar.load(report["output"])
    sidecar.read(report["output"])
    assert sidecar.precision == "int8" and sidecar.verified == report["verified"]
    assert isinstance(sidecar.quantised, dict)
    assert sidecar.quantised["linears"] == len(LINEARS) and sidecar.quantised["kept"] == list(NARROW)
    assert sidecar.quantised["source"] == Sidecar.load(path).sha256 and sidecar.quantised["base"] == "float32"
    assert sorted(p.name for p in tmp_path.glob("block*")) == [
        "block_fp32.onnx",
        "block_fp32.onnx.json",
        "block_int8.onnx",
        "block_int8.onnx.json",
    ]
    assert run_script(Quantize, "quantize.py", ["--input", report["output"], "--calibration", str(images)]) == 2
    assert "quantized already" in capsys.readouterr().err


@pytest.mark.parametrize(
    "fault", ["no images", "empty folder", "no sidecar", "changed", "not ONNX", "engine", "bad", "itself"]
)
def test_bad_input_is_refused_in_one_line(fault: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, images = saved(tmp_path), pictures(tmp_path / "images", 2)
    arguments = ["--input", str(path)]
    if fault != "no images":
        arguments += ["--calibration", str(images)]
    if fault == "empty folder":
        (tmp_path / "none").mkdir()
        arguments[-1] = str(tmp_path / "none")
    elif fault == "no sidecar":
        path.with_name(f"{path.name}.json").unlink()
    elif fault == "changed":
        data = bytearray(path.read_bytes())
        data[-9] ^= 1
        path.write_bytes(data)
    elif fault == "not ONNX":
        path.write_bytes(b"\xff" * 100)
        Sidecar.load(path).describing(path.read_bytes()).save(path)
    elif fault == "engine":
        built = {"kind": "engine", "backend": "tensorrt", "version": "10.3.0", "target": "sm87"}
        dataclasses.replace(Sidecar.load(path), **built).save(path)
    elif fault == "bad":
        arguments += ["--least-agreement", "1.01"]
    elif fault == "itself":
        arguments += ["--output", str(path)]
    assert run_script(Quantize, "quantize.py", arguments) == 2
    out, err = capsys.readouterr()
    line = err.strip().splitlines()[-1]
    assert line.startswith("error: ") and "Traceback" not in err and not out
    assert not list(tmp_path.glob("*int8*"))
    said = {
        "no images": "real images",
        "empty folder": "no image in it",
        "no sidecar": "sidecar",
        "changed": "SHA-256",
        "not ONNX": "not a readable ONNX graph",
        "engine": "quantize the .onnx",
        "bad": "--keep",
        "itself": "would replace an input",
    }
    assert said[fault] in line


def test_a_graph_without_linears_is_refused() -> None:
    model = network()
    kept = [node for node in model.graph.node if node.op_type == "Transpose"][:1]
    del model.graph.node[:]
    model.graph.node.extend(kept)
    with pytest.raises(OVSDinoError, match="no linears"):
        quantize(model, feeds(1), Recipe())
    with pytest.raises(OVSDinoError, match="real images"):
        quantize(network(), [], Recipe())


def test_tensorrt_rtx_builds_the_quantized_graph(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    path, images = saved(tmp_path), pictures(tmp_path / "images", 4)
    int8 = tmp_path / "int8.onnx"
    quantize_file(QuantizeOptions(input=path, output=int8, calibration=images, threads=1))
    data, sidecar = build_engine(Exported.read(int8), BuildOptions(backend="tensorrt_rtx", target="sm86"))[0]
    assert sidecar.kind == "engine" and sidecar.precision == "int8" and sidecar.quantised
    assert sidecar.bytes == len(data) > 1000


def test_calibration_reads_images_and_nothing_that_starts_a_program(tmp_path: Path) -> None:
    program = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n"
    (tmp_path / "a.png").write_bytes(program)
    large = BytesIO()
    Image.new("1", (20_000, 20_000)).save(large, "PNG")  # 50 KB, 1.2 GB as RGB
    for name, data in (("eps.zip", program), ("large.zip", large.getvalue())):
        with zipfile.ZipFile(tmp_path / name, "w") as archive:
            archive.writestr("images/a.png", data)
    for source, message in (
        ("", "not a JPEG, PNG, WEBP, BMP or TIFF image"),
        ("a.png", "not a JPEG, PNG, WEBP, BMP or TIFF image"),
        ("eps.zip", "not a JPEG, PNG, WEBP, BMP or TIFF image"),
        ("large.zip", "more than 100,000,000 pixels"),
    ):
        with pytest.raises(OVSDinoError, match=message):
            calibration_images(tmp_path / source, 1)


def test_damaged_calibration_zips_are_one_line(tmp_path: Path) -> None:
    folder, path, random = pictures(tmp_path / "images", 2), tmp_path / "m.zip", np.random.default_rng(0)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for image in sorted(folder.iterdir()):
            archive.write(image, f"images/{image.name}")
    whole, refused = path.read_bytes(), 0
    for _ in range(100):
        data = bytearray(whole)
        for _ in range(random.integers(1, 5)):
            data[-random.integers(1, 400)] = random.integers(256)  # the directory, and the end of the last image
        path.write_bytes(data)
        try:
            calibration_images(path, 2)
        except OVSDinoError as error:
            refused += 1
            assert "m.zip" in str(error) and "\n" not in str(error)
    assert refused > 50
