"""export_trt.py: from weights or a graph to an engine, with figures of its own where it can run."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image

from ovsdino.deploy.export import compare, engine
from ovsdino.deploy.export_trt import ExportTrt
from ovsdino.edge.sidecar import Sidecar
from ovsdino.edge.tensors import text_inputs
from ovsdino.parsing import run_script
from ovsdino.pipeline import load


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
        *("engine", "sidecar", "bytes", "build_s", "backend", "version", "target", "precision", "verified"),
        *("int8_linears", "float_linears"),
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
    assert len(told["fused"]) == 1  # the block of the structure decoder
    assert len(told["apart"]) == 1 and "score_attention" in told["apart"][0]  # tiles of scores, with K values a key
    # The vocabulary is free: two banks, one file, the labels of PyTorch.
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    segmenter = load("nano", "cpu")
    image = torch.randn(1, 3, 352, 464)
    for names in (["road", "sky"], ["car", "tree", "person", "building", "fence"]):
        bank = segmenter.encode_text(names)
        with torch.inference_mode():
            expected = segmenter.model(image, bank)
        text = text_inputs(Sidecar.load(graph), bank.numpy())  # without a contrast
        (found,) = session.run(["logits"], {"image": image.numpy(), **text})
        found = found[:, : len(names)]
        assert found.shape == (1, len(names), 88, 116)
        assert (torch.from_numpy(found).argmax(1) == expected.argmax(1)).double().mean() >= 0.995
    assert onnx.load(graph, load_external_data=False).graph.input[1].type.tensor_type.shape.dim[0].dim_param


class StandIn:
    """What an engine's device would run, by ONNX Runtime: no engine runs on this machine."""

    def __init__(self, graph: Path, sign: float) -> None:
        self.session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
        self.sidecar = Sidecar.load(graph)
        self.sign = sign

    def set_text(self, text: np.ndarray, contrast: np.ndarray | None = None) -> None:
        self.text = text_inputs(self.sidecar, text, contrast)

    def infer(self, image: np.ndarray) -> np.ndarray:
        return self.sign * self.session.run(["logits"], {"image": image, **self.text})[0]


@pytest.mark.parametrize(("sign", "code"), [(1.0, 0), (-1.0, 2)])
def test_an_engine_that_runs_here_has_figures_of_its_own_or_is_refused(
    rtx: ModuleType,
    small: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    hashed: list[int],
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
    report = json.loads(out)
    assert sorted(hashed) == sorted([small.stat().st_size, report["bytes"]])  # the graph and the engine, once each
    figures = report["verified"]
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
