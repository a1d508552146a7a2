"""`ovsdino doctor --engine`: an engine held against its graph at any time, here with graphs that run on the CPU."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from PIL import Image

from ovsdino.cli import main
from ovsdino.deploy.export.prove import graph_of
from ovsdino.errors import OVSDinoError
from tests.support import tiny


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tiny.graph(tmp_path / "tiny.onnx")
    tiny.bank("road", "car", "sky").save(tmp_path / "bank.safetensors")
    (tmp_path / "images").mkdir()
    for index in range(3):
        pixels = np.random.default_rng(index).integers(0, 256, (48, 64, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / f"{index}.png")
    return tmp_path


def changed(folder: Path, name: str, value: float, **facts: object) -> Path:
    """A copy of the graph with another scale of its logits, or other facts."""
    model = onnx.load(folder / "tiny.onnx")
    for constant in model.graph.initializer:
        if constant.name == "scale":
            constant.CopyFrom(numpy_helper.from_array(np.array(value, np.float32), "scale"))
    path = folder / name
    path.write_bytes(model.SerializeToString())
    tiny.sidecar(path, **facts).save(path)
    return path


def doctor(folder: Path, engine: Path, capsys: pytest.CaptureFixture[str], *more: str) -> tuple[int, dict]:
    options = ["--graph", str(folder / "tiny.onnx"), "--images", str(folder / "images"), *more]
    code = main(["doctor", "--engine", str(engine), *options, "--json"])
    return code, json.loads(capsys.readouterr().out)


def test_an_engine_that_does_as_its_graph_is_proven_with_its_figures(folder, capsys) -> None:
    engine = changed(folder, "same.onnx", tiny.SCALE)
    code, report = doctor(folder, engine, capsys, "--bank", str(folder / "bank.safetensors"))
    assert code == 0 and report["problems"] == []
    verified = report["engine"]["verified"]
    assert verified["images"] == 3 and verified["reference"] == "ONNX Runtime"
    assert verified["cosine"] == pytest.approx(1) and verified["label_agreement"] == 1


def test_an_engine_that_departs_is_a_problem(folder, capsys) -> None:
    engine = changed(folder, "other.onnx", -tiny.SCALE)
    code, report = doctor(folder, engine, capsys, "--bank", str(folder / "bank.safetensors"))
    assert code == 2
    assert report["engine"]["verified"]["cosine"] == pytest.approx(-1)
    assert any("the engine departs from ONNX Runtime: cosine -1.0" in line for line in report["problems"])


def test_an_engine_of_other_weights_is_not_compared(folder, capsys) -> None:
    code, report = doctor(folder, changed(folder, "other.onnx", tiny.SCALE, weights="1" * 64), capsys)
    assert code == 2 and report["engine"]["verified"] is None
    assert any("weights differs from that of" in line for line in report["problems"])


def test_an_engine_that_cannot_run_here_is_a_problem(folder, capsys) -> None:
    engine = folder / "tiny_sm87.engine"
    engine.write_bytes(b"code")
    facts = {"kind": "engine", "backend": "tensorrt", "version": "10.3.0", "target": "sm87"}
    tiny.sidecar(engine, **facts).save(engine)
    code, report = doctor(folder, engine, capsys)
    assert code == 2 and report["engine"]["verified"] is None and len(report["problems"]) == 1


def test_the_graph_of_an_engine_lies_next_to_it(folder) -> None:
    for name in ("tiny_sm87.engine", "tiny_sm80-sm86.engine", "tiny.engine"):
        assert graph_of(folder / name) == folder / "tiny.onnx"
    with pytest.raises(OVSDinoError, match=r"name the graph that other_sm87\.engine was built from"):
        graph_of(folder / "other_sm87.engine")


def test_options_of_the_comparison_ask_for_an_engine(capsys) -> None:
    assert main(["doctor", "--bank", "b.safetensors", "--json"]) == 2
    assert "go with --engine FILE" in capsys.readouterr().out
