"""Engines: really built by TensorRT-RTX, which needs no GPU; TensorRT's own names checked against its bindings."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image

from ovsdino.deploy.export import compare, engine, tensorrt_api
from ovsdino.deploy.export.engine import build_engine
from ovsdino.deploy.export.options import BuildOptions
from ovsdino.deploy.export.publish import Exported, publish
from ovsdino.deploy.export.trace import export_graph
from ovsdino.deploy.export_trt import ExportTrt
from ovsdino.edge.sidecar import Sidecar
from ovsdino.errors import OVSDinoError
from ovsdino.parsing import run_script
from ovsdino.pipeline import load
from tests.support.small import SIZE, small_model

RTX_ONLY = {"ComputeCapability", "num_compute_capabilities", "set_compute_capability"}
no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU to build for")


@pytest.fixture(scope="module")
def rtx() -> ModuleType:
    return pytest.importorskip("tensorrt_rtx", exc_type=ImportError)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("trt") / "small.onnx"
    publish(path, export_graph(small_model(), **SIZE, batch=(1, 2), classes=(1, 40), precision="float16"))
    return path


def used_names() -> set[str]:
    """Attributes that tensorrt_api.py takes of TensorRT's module and objects."""
    roots = {"trt", "builder", "network", "parser", "config", "profile", "runtime", "engine", "inspector"}

    def root(node: ast.AST) -> str:
        while isinstance(node, (ast.Attribute, ast.Call)):
            node = node.value if isinstance(node, ast.Attribute) else node.func
        return node.id if isinstance(node, ast.Name) else ""

    tree = ast.parse(Path(tensorrt_api.__file__).read_text())
    attributes = (node for node in ast.walk(tree) if isinstance(node, ast.Attribute) and root(node) in roots)
    return {node.attr for node in attributes if not node.attr.startswith("__")}


@pytest.mark.parametrize("version", ["10.3.0", "10.16.1", "11.4.0"])
def test_every_name_is_in_the_bindings_of_each_tensorrt(version: str) -> None:
    table = json.loads((Path(__file__).parent / "tensorrt_names.json").read_text())["names"]
    used = used_names()
    assert {"STRONGLY_TYPED", "build_serialized_network", "set_timing_cache", "DLA_core", *RTX_ONLY} <= used
    assert not used - RTX_ONLY - set(table[version])
    assert not RTX_ONLY & set(table[version])  # which is why they stand behind the backend's name
    assert ("FP16" in table[version]) == (version < "11")  # a builder flag that went: types come from the graph


def test_every_name_is_in_the_installed_tensorrt_rtx(rtx: ModuleType) -> None:
    real = set(dir(rtx)) | {name for one in vars(rtx).values() if isinstance(one, type) for name in dir(one)}
    assert not used_names() - real


def test_targets_of_tensorrt_rtx(rtx: ModuleType) -> None:
    assert tensorrt_api.resolve_target("tensorrt_rtx", "sm86") == "sm86"
    assert tensorrt_api.resolve_target("tensorrt_rtx", "sm120,sm75") == "sm75,sm120"
    with pytest.raises(OVSDinoError, match=r"has no target sm87, it builds for sm75.*--backend tensorrt --target curr"):
        tensorrt_api.resolve_target("tensorrt_rtx", "sm87")
    with pytest.raises(OVSDinoError, match="has no target sm90"):
        tensorrt_api.resolve_target("tensorrt_rtx", "sm86,sm90")
    for wrong in ("orin", "sm", "86", "sm86,", ""):
        with pytest.raises(OVSDinoError, match="expected current, or an architecture"):
            tensorrt_api.resolve_target("tensorrt_rtx", wrong)
    with pytest.raises(OVSDinoError, match="unknown backend 'cuda'"):
        tensorrt_api.resolve_target("cuda", "sm86")


@no_gpu
def test_the_current_device_must_be_there(rtx: ModuleType) -> None:
    with pytest.raises(OVSDinoError) as caught:
        tensorrt_api.resolve_target("tensorrt_rtx", "current")
    assert "\n" not in str(caught.value)


def test_an_engine_for_two_gpus_and_its_sidecar(rtx: ModuleType, small: Path, tmp_path: Path) -> None:
    path, layers = tmp_path / "small.engine", tmp_path / "layers.json"
    settings = BuildOptions(backend="tensorrt_rtx", target="sm86,sm89", workspace=256, effort=1, layers=layers)
    built, seconds = build_engine(Exported.read(small), settings)
    assert seconds > 0
    sidecar = publish(path, built)
    assert sidecar.read(path) == built.data
    sidecar.check_runtime("tensorrt_rtx", rtx.__version__, "sm89")
    with pytest.raises(OVSDinoError, match="built for sm86,sm89, this device is sm87"):
        sidecar.check_runtime("tensorrt_rtx", rtx.__version__, "sm87")
    before = Sidecar.load(small)
    assert (sidecar.kind, sidecar.weights, sidecar.classes) == ("engine", before.weights, (1, 40))
    assert Sidecar.load(path) == sidecar and sidecar.file == "small.engine"
    told = json.loads(layers.read_text())
    # A head size of 16 is the smallest that TensorRT fuses, with 16-wide values; the ViT's two and the SMD's one.
    assert set(told["attention"]["fused"] + told["attention"]["apart"]) == {
        "backbone.vit.blocks.0.attn/Softmax",
        "backbone.vit.blocks.1.attn/Softmax",
        "decoder.smd.blocks.0/Softmax",
    }
    assert any("backbone.vit.blocks.0.mlp.fc1/MatMul" in layer["nodes"] for layer in told["layers"])


@pytest.mark.parametrize("batch", [1, 2])
def test_a_dynamic_batch_is_free(small: Path, batch: int) -> None:
    image, text = torch.randn(batch, 3, 48, 80), torch.nn.functional.normalize(torch.randn(5, 32), dim=-1)
    with torch.no_grad():
        expected = small_model()(image, text)
    session = onnxruntime.InferenceSession(small, providers=["CPUExecutionProvider"])
    (found,) = session.run(["logits"], {"image": image.numpy(), "text": text.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), expected, rtol=0.01, atol=0.02 * float(expected.abs().max()))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"timing_cache": Path("cache.bin")}, "tensorrt_rtx times nothing while it builds"),
        ({"dla": 0}, "no DLA core; leave out --dla"),
        ({"workspace": -1}, "workspace is -1: expected 0 to"),
        ({"effort": 9}, "effort is 9: expected 0 to 5"),
        ({"target": "sm87"}, "has no target sm87"),
    ],
)
def test_settings_that_cannot_be(rtx: ModuleType, small: Path, settings: dict[str, Any], message: str) -> None:
    asked = BuildOptions(**{"backend": "tensorrt_rtx", "target": "sm86", **settings})
    with pytest.raises(OVSDinoError, match=message):
        build_engine(Exported.read(small), asked)


def test_a_graph_that_is_none_is_refused(rtx: ModuleType) -> None:
    settings = BuildOptions(backend="tensorrt_rtx", target="sm86")
    with pytest.raises(OVSDinoError, match="cannot parse the graph") as caught:
        tensorrt_api.build(b"not a graph", settings, "sm86", {})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--target", "sm87"], "has no target sm87"),
        (["--model", "giant"], "unknown model 'giant'"),
        (["--backbone-weights", "no.pth"], "no.pth: no such file"),
        (["--height", "7"], "height is 7: nano needs a multiple of 16"),
        (["--classes", "0"], "classes is 0"),
        (["--onnx", "no.onnx"], "no.onnx.json: the sidecar is missing"),
        (["--backend", "cuda"], "cuda"),
    ],
)
def test_bad_usage_is_one_line_and_exit_2(
    rtx: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    start = ["--backend", "tensorrt_rtx", "--target", "sm86", "--output", str(tmp_path / "out")]
    assert run_script(ExportTrt, "export_trt.py", [*start, *arguments, "--json"]) == 2
    out, err = capsys.readouterr()
    assert message in json.loads(out)["error"]
    assert err.count("\n") == 1
    assert not list(tmp_path.glob("**/*.engine*"))


def exported(rtx: ModuleType, output: Path, capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, object]:
    start = ["--backend", "tensorrt_rtx", "--target", "sm86", "--output", str(output), "--json"]
    assert run_script(ExportTrt, "export_trt.py", [*start, *arguments]) == 0
    report: dict[str, object] = json.loads(capsys.readouterr().out)
    assert set(report) == {
        *("engine", "sidecar", "bytes", "build_s", "backend", "version", "target", "precision", "verified")
    }
    sidecar = Sidecar.load(str(report["engine"]))
    sidecar.read(str(report["engine"]))
    assert (report["backend"], report["version"]) == ("tensorrt_rtx", rtx.__version__)
    assert (report["target"], report["precision"], report["bytes"]) == ("sm86", "float16", sidecar.bytes)
    assert f"{report['engine']}.json" == report["sidecar"]
    if not torch.cuda.is_available():  # nobody ran the engine: the graph's figures are not its own
        assert report["verified"] is None and sidecar.verified is None
    return report


def test_nano_from_weights_to_engine(
    rtx: ModuleType, data_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = ["--root", str(data_root), "--limit", "3", "--keep-onnx", "--layers", str(tmp_path / "layers.json")]
    exported(rtx, tmp_path / "out", capsys, *data)
    graph = tmp_path / "out" / "nano_fp16.onnx"
    figures = Sidecar.load(graph).verified
    assert figures is not None and figures["cosine"] >= 0.999 and figures["label_agreement"] >= 0.995
    assert (figures["images"], figures["source"], figures["reference"]) == (3, "images of camvid val", "PyTorch")
    files = ["nano_fp16.onnx", "nano_fp16.onnx.json", "nano_fp16_sm86.engine", "nano_fp16_sm86.engine.json"]
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == files
    told = json.loads((tmp_path / "layers.json").read_text())["attention"]
    assert (len(told["fused"]), told["apart"]) == (6 + 2, [])  # blocks of the ViT and of the structure decoder
    # The vocabulary is free: two banks, one file, the labels of PyTorch.
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    segmenter = load("nano", "cpu")
    image = torch.randn(1, 3, 352, 464)
    for names in (["road", "sky"], ["car", "tree", "person", "building", "fence"]):
        bank = segmenter.encode_text(names)
        with torch.inference_mode():
            expected = segmenter.model(image, bank)
        (found,) = session.run(["logits"], {"image": image.numpy(), "text": bank.numpy()})
        assert found.shape == (1, len(names), 88, 116)
        assert (torch.from_numpy(found).argmax(1) == expected.argmax(1)).double().mean() >= 0.995
    assert onnx.load(graph, load_external_data=False).graph.input[1].type.tensor_type.shape.dim[0].dim_param


class StandIn:
    """What an engine's device would run, by ONNX Runtime: no engine runs on this machine."""

    def __init__(self, graph: Path, sign: float) -> None:
        self.session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
        self.sign = sign

    def set_text(self, text: np.ndarray) -> None:
        self.text = text

    def infer(self, image: np.ndarray) -> np.ndarray:
        return self.sign * self.session.run(["logits"], {"image": image, "text": self.text})[0]


@pytest.mark.parametrize(("sign", "code"), [(1.0, 0), (-1.0, 2)])
def test_an_engine_that_runs_here_has_figures_of_its_own_or_is_refused(
    rtx: ModuleType,
    small: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    sign: float,
    code: int,
) -> None:
    monkeypatch.setattr(engine, "runs_here", lambda sidecar: True)
    monkeypatch.setattr(compare, "open_graph", lambda *_, **__: StandIn(small, sign))
    images = tmp_path / "images"
    images.mkdir()
    for index in range(3):
        pixels = np.random.default_rng(index).integers(0, 256, (48, 80, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(images / f"{index}.png")
    start = ["--backend", "tensorrt_rtx", "--target", "sm86", "--effort", "1", "--onnx", str(small), "--json"]
    arguments = [*start, "--output", str(tmp_path / "out"), "--images", str(images)]
    assert run_script(ExportTrt, "export_trt.py", arguments) == code
    out, err = capsys.readouterr()
    if code:
        assert "the engine departs from ONNX Runtime: cosine -0.99" in json.loads(out)["error"]
        assert not list((tmp_path / "out").iterdir())
        return
    figures = json.loads(out)["verified"]
    assert figures["cosine"] > 0.999 and figures["images"] == 3
    assert (figures["source"], figures["reference"]) == (f"images of {images}", "ONNX Runtime")
    assert Sidecar.load(tmp_path / "out" / "small_sm86.engine").verified["cosine"] == figures["cosine"]  # type: ignore[index]
    assert f"verified on 3 images of {images} against ONNX Runtime" in err


@pytest.mark.slow
@pytest.mark.parametrize(("name", "attentions"), [("s14", 12 + 2), ("b14", 12 + 2)])
def test_large_models_with_random_weights(
    rtx: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, attentions: int
) -> None:
    layers = tmp_path / "layers.json"
    arguments = ["--model", name, "--random-weights", "0", "--limit", "2", "--layers", str(layers)]
    exported(rtx, tmp_path / "out", capsys, *arguments)
    told = json.loads(layers.read_text())["attention"]
    assert (len(told["fused"]), told["apart"]) == (attentions, [])
