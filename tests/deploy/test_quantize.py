"""quantize.py: graph and sidecar, bad input in one line, and TensorRT-RTX reads the result."""

from __future__ import annotations

import dataclasses
import io
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ovsdino.data.names import CAMVID
from ovsdino.deploy.export.engine import build_engine
from ovsdino.deploy.export.options import BuildOptions
from ovsdino.deploy.export.publish import Exported
from ovsdino.deploy.quantization.job import quantize_file
from ovsdino.deploy.quantization.options import QuantizeOptions
from ovsdino.deploy.quantize import Quantize
from ovsdino.edge.bank import TextBank
from ovsdino.edge.sidecar import Sidecar
from ovsdino.parsing import run_script
from tests.support.block import LINEARS, NARROW, TEXT, pictures, saved


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


def test_both_graphs_are_scored_on_a_data_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, images, rng = saved(tmp_path), pictures(tmp_path / "images", 4), np.random.default_rng(0)
    with zipfile.ZipFile(tmp_path / "camvid_val.zip", "w") as archive:
        for index in range(3):
            for folder, pixels in (
                ("images", rng.integers(0, 256, (16, 24, 3), dtype=np.uint8)),
                ("labels", rng.integers(0, len(CAMVID), (16, 24), dtype=np.uint8)),
            ):
                content = io.BytesIO()
                Image.fromarray(pixels).save(content, "PNG")
                archive.writestr(f"{folder}/{index}.png", content.getvalue())
    rows = np.random.default_rng(1).normal(size=(len(CAMVID), TEXT)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    bank = TextBank(names=tuple(CAMVID), text=rows, model="nano", weights="0" * 64)
    bank.save(tmp_path / "bank.safetensors")
    arguments = ["--input", str(path), "--calibration", str(images), "--threads", "1", "--least-agreement", "0"]
    arguments += ["--evaluate", str(tmp_path), "--bank", str(tmp_path / "bank.safetensors"), "--limit", "2"]
    assert run_script(Quantize, "quantize.py", [*arguments, "--json"]) == 0
    results = json.loads(capsys.readouterr().out)["results"]
    assert [row["name"] for row in results] == ["float32", "int8 without SmoothQuant", "int8"]
    assert all(row["images"] == 2 and 0 < row["miou"] < 0.5 and row["ms"] > 0 for row in results)
    assert results[0]["label_agreement"] == 1 > results[2]["label_agreement"] > 0.5
    assert results[2]["bytes"] == (tmp_path / "block_int8.onnx").stat().st_size
    dataclasses.replace(bank, names=bank.names[:-1], text=rows[:-1]).save(tmp_path / "bank.safetensors")
    assert run_script(Quantize, "quantize.py", [*arguments, "--output", str(tmp_path / "other.onnx")]) == 2
    assert "10 classes, the data set has 11" in capsys.readouterr().err


def test_tensorrt_rtx_builds_the_quantized_graph(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    path, images = saved(tmp_path), pictures(tmp_path / "images", 4)
    int8 = tmp_path / "int8.onnx"
    quantize_file(QuantizeOptions(input=path, output=int8, calibration=images, threads=1))
    data, sidecar = build_engine(Exported.read(int8), BuildOptions(backend="tensorrt_rtx", target="sm86"))[0]
    assert sidecar.kind == "engine" and sidecar.precision == "int8" and isinstance(sidecar.quantised, dict)
    assert sidecar.quantised["int8_in_engine"] == len(LINEARS) and sidecar.quantised["float_in_engine"] == []
    assert sidecar.bytes == len(data) > 1000
