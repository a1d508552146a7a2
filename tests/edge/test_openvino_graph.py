"""Graphs in OpenVINO give what they give in ONNX Runtime, in one piece and in three."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from ovsdino.deploy.export.publish import Exported, publish
from ovsdino.deploy.export.trace import export_graph
from ovsdino.edge import runtimes as edge
from ovsdino.edge.runtimes import open_graph, runtime_of
from ovsdino.edge.segmenter import EdgeSegmenter
from ovsdino.edge.sidecar import Sidecar
from ovsdino.errors import OVSDinoError
from tests.support import tiny
from tests.support.cnn import JOINED, small_model_on

SIZE = (96, 128)


@pytest.fixture(scope="module")
def cnn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model on a CNN, with its words in groups."""
    torch.manual_seed(0)
    model = small_model_on(JOINED)
    assert model.decoder is not None
    torch.nn.init.constant_(model.decoder.score_attention.mix, 0.5)
    path = tmp_path_factory.mktemp("cnn") / "small.onnx"
    publish(path, export_graph(model, height=SIZE[0], width=SIZE[1], contrast=True))
    return path


def rows(*shape: int) -> np.ndarray:
    found = np.random.default_rng(shape[0]).normal(size=shape).astype(np.float32)
    return found / np.linalg.norm(found, axis=-1, keepdims=True)


def logits(path: Path, runtime: str, text: np.ndarray, contrast: np.ndarray | None) -> list[np.ndarray]:
    """Of two images, one after the other."""
    data, sidecar = Exported.read(str(path))
    graph = open_graph(data, sidecar, threads=1, device=0, runtime=runtime)
    graph.set_text(text, contrast)
    images = np.random.default_rng(0).normal(size=(2, 1, *sidecar.input[1:])).astype(np.float32)
    found = [graph.infer(image) for image in images]
    graph.close()
    return found


def test_without_openvino_it_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(OVSDinoError, match="pip install openvino"):
        EdgeSegmenter(tiny.graph(tmp_path / "tiny.onnx"), tiny.bank("a", "b"), runtime="openvino")


def test_labels_of_a_plain_graph_are_those_of_onnx_runtime(tmp_path: Path) -> None:
    pytest.importorskip("openvino", reason="needs the openvino extra")
    path, bank = tiny.graph(tmp_path / "tiny.onnx"), tiny.bank("road", "car", "sky")
    image = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    ours, theirs = (EdgeSegmenter(path, bank, threads=1, runtime=name) for name in ("openvino", "onnxruntime"))
    assert (ours.backend, theirs.backend) == ("openvino", "onnxruntime")
    assert (ours.segment(image).labels == theirs.segment(image).labels).mean() > 0.999
    ours.set_bank(tiny.bank("a", "b"))
    assert ours.segment(image).names == ("a", "b")


@pytest.mark.parametrize(("runtime", "near"), [("openvino", 0.99999), ("openvino_bfloat16", 0.998)])
@pytest.mark.parametrize("contrast", [7, 0])
def test_logits_are_those_of_onnx_runtime(cnn: Path, runtime: str, near: float, contrast: int) -> None:
    pytest.importorskip("openvino", reason="needs the openvino extra")
    text, rivals = rows(3, 2, 32), rows(contrast, 32) if contrast else None
    pairs = zip(logits(cnn, runtime, text, rivals), logits(cnn, "onnxruntime", text, rivals), strict=True)
    for found, expected in pairs:
        assert found.shape == expected.shape == (1, 3 + bool(contrast), SIZE[0] // 4, SIZE[1] // 4)
        assert float((found * expected).sum() / np.linalg.norm(found) / np.linalg.norm(expected)) > near


def test_in_bfloat16_the_first_convolutions_and_the_scores_stay_in_float32(cnn: Path) -> None:
    pytest.importorskip("openvino", reason="needs the openvino extra")
    from ovsdino.edge.openvino_graph import OpenVinoGraph

    graph = OpenVinoGraph(*Exported.read(str(cnn)), threads=1, precision="bfloat16")
    graph.set_text(rows(3, 2, 32), rows(7, 32))
    models = [request.get_compiled_model() for request in graph._requests]
    hints = [str(model.get_property("INFERENCE_PRECISION_HINT")) for model in models]
    assert len(hints) == 3 and hints[0] == hints[2] and hints[1] != hints[0]
    names = [{port.get_any_name() for port in model.inputs} for model in models]
    assert names[0] == {"image"} and {"text", "contrast"} <= names[2] and not {"text", "contrast"} & names[1]
    with pytest.raises(OVSDinoError, match="refuses"):
        OpenVinoGraph(b"no graph", Exported.read(str(cnn)).sidecar, threads=1)


def test_auto_takes_what_was_measured_and_what_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sidecar = Exported.read(str(tiny.graph(tmp_path / "tiny.onnx"))).sidecar
    monkeypatch.setattr(edge.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(edge, "multiplies_bfloat16", lambda: True)
    assert runtime_of(_with(sidecar, model="nano", precision="float32")) == "openvino_bfloat16"
    assert runtime_of(_with(sidecar, model="nano", precision="int8")) == "openvino"
    monkeypatch.setattr(edge, "multiplies_bfloat16", lambda: False)
    for model, precision, expected in (
        ("nano", "float32", "openvino"),
        ("nano", "int8", "openvino"),
        ("nano", "float16", "onnxruntime"),
        ("b14", "float32", "onnxruntime"),
    ):
        assert runtime_of(_with(sidecar, model=model, precision=precision)) == expected
    assert runtime_of(sidecar, "openvino") == "openvino"
    with pytest.raises(OVSDinoError, match="float32 graph"):
        runtime_of(_with(sidecar, model="nano", precision="int8"), "openvino_bfloat16")
    monkeypatch.setattr(edge.importlib.util, "find_spec", lambda name: None)
    assert runtime_of(_with(sidecar, model="nano", precision="float32")) == "onnxruntime"


@pytest.mark.parametrize(
    ("flags", "expected"), [("fpu avx2 avx512f", False), ("avx512f avx512_bf16", True), ("amx_bf16", True)]
)
def test_bfloat16_is_told_by_the_flags_of_the_cpu(tmp_path: Path, flags: str, expected: bool) -> None:
    (tmp_path / "cpuinfo").write_text(f"processor\t: 0\nflags\t\t: {flags}\n\nbugs\t\t: amx_bf16x\n")
    assert edge.multiplies_bfloat16(tmp_path / "cpuinfo") == expected
    assert not edge.multiplies_bfloat16(tmp_path / "missing")


def _with(sidecar: Sidecar, **fields: str) -> Sidecar:
    return dataclasses.replace(sidecar, **fields)  # type: ignore[arg-type]


def test_an_unknown_runtime_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OVSDinoError, match="runtime is 'tvm'"):
        EdgeSegmenter(tiny.graph(tmp_path / "tiny.onnx"), tiny.bank("a", "b"), runtime="tvm")  # type: ignore[arg-type]
