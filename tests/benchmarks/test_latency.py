"""The latency benchmark: its report's form, percentiles by hand."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ovsdino.benchmarks import latency
from ovsdino.benchmarks.lib import latency_measure
from ovsdino.benchmarks.lib.latency_cases import Case, case_json, case_of
from ovsdino.benchmarks.lib.latency_report import markdown
from ovsdino.parsing import run_script
from tests.support import tiny
from tests.support.blocking import BLOCK

KEYS = ["model", "backend", "precision", "input", "stage", "p50_ms", "p95_ms", "p99_ms", "runs", "peak_mb"]
CASE = Case(model="nano", backend="torch", precision="float32", size=(64, 80), classes=("road", "sky"), threads=1)


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "picture.png"
    pixels = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def test_the_report_has_a_row_for_each_case_and_stage(
    tmp_path: Path, picture: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    graph, bank = tiny.graph(tmp_path / "tiny.onnx"), tmp_path / "bank.safetensors"
    tiny.bank("road", "sky").save(bank)
    arguments = [
        *("--engine", str(graph), "--bank", str(bank), "--model", "nano", "--backends", "torch", "--size", "64x80"),
        *("--classes", "road, sky", "--image", str(picture), "--runs", "2", "--warmup", "1", "--threads", "1"),
        *("--output", str(tmp_path / "latency.json"), "--plot", str(tmp_path / "latency.png"), "--json"),
    ]
    assert run_script(latency.Latency, "latency.py", arguments) == 0
    report = json.loads(capsys.readouterr().out)
    assert report == json.loads((tmp_path / "latency.json").read_text())
    assert all(list(row) == KEYS and row["runs"] == 2 for row in report["results"])
    stages = {row["backend"]: [] for row in report["results"]}
    for row in report["results"]:
        stages[row["backend"]].append(row["stage"])
        assert 0 < row["p50_ms"] <= row["p95_ms"] <= row["p99_ms"]
        assert (row["peak_mb"] is not None) == (row["stage"] == "end_to_end")
    assert stages == {
        "onnxruntime": ["preprocess", "encode", "postprocess", "end_to_end"],
        "torch": ["preprocess", "encode", "decode", "postprocess", "end_to_end"],
    }
    peak = {row["backend"]: row["peak_mb"] for row in report["results"] if row["stage"] == "end_to_end"}
    assert 20 < peak["onnxruntime"] < peak["torch"]  # no torch in its process
    assert {"cpu", "threads", "torch", "gemm_gflops", "load_average", "date"} <= report["machine"].keys()
    parts = {row["part"]: row for row in report["shares"]}
    assert {"backbone", "SAE", "SMD", "refine", "coarse logits", "preprocess", "postprocess"} < parts.keys()
    assert parts["end_to_end"]["share"] == 1 and 0 < parts["ours"]["share"] < 1
    assert Image.open(tmp_path / "latency.png").size[0] > 500
    text = markdown(report)
    assert "| nano | torch | float32 | 64x80 |" in text and "SAE + SMD + refine + postprocess" in text
    assert f"{peak['torch']:.0f} |" in text


def test_a_board_without_torch_times_its_engine(tmp_path: Path, picture: Path) -> None:
    graph, bank = tiny.graph(tmp_path / "tiny.onnx"), tmp_path / "bank.safetensors"
    tiny.bank("road", "sky").save(bank)
    script = Path(latency.__file__)
    code = BLOCK.format(blocked=["torch", "timm", "open_clip", "torchvision", "matplotlib"]) + (
        f"import runpy\nsys.path.insert(0, {str(script.parent)!r})\n"
        f"runpy.run_path({str(script)!r}, run_name='__main__')\n"
    )
    arguments = ["--engine", str(graph), "--bank", str(bank), "--image", str(picture), "--runs", "3", "--json"]
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    report = json.loads(done.stdout)
    assert {row["backend"] for row in report["results"]} == {"onnxruntime"} and report["shares"] == []
    assert report["machine"]["threads"] >= 1 and "torch" not in report["machine"]


def test_percentiles_are_interpolated_between_samples() -> None:
    line = latency_measure.row(CASE, "encode", [5.0, 1.0, 3.0, 2.0, 4.0])
    assert (line["p50_ms"], line["p95_ms"], line["p99_ms"]) == (3.0, 4.8, 4.96)  # at 2, 3.8 and 3.96 of 0..4
    assert line["runs"] == 5 and line["input"] == "64x80" and list(line) == KEYS


def test_a_case_survives_the_way_to_its_child_process() -> None:
    assert case_of(json.loads(case_json(CASE))) == CASE


def test_the_network_sees_what_the_pipeline_would_give_it() -> None:
    assert latency.sizes("nano", (), np.zeros((360, 480, 3), np.uint8)) == [(352, 464)]
    assert latency.sizes("b14", ("448x896", "224X224"), np.zeros((9, 9, 3), np.uint8)) == [(448, 896), (224, 224)]


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["--backends", "openvino"], "unknown backend 'openvino'"),
        (["--precisions", "int4"], "unknown precision 'int4'"),
        (["--size", "448"], "HEIGHTxWIDTH"),
        (["--size", "70x80", "--backends", "torch"], "multiples of 16"),
        (["--runs", "0"], "runs is 0"),
        (["--backends", "onnxruntime", "--precisions", "int8"], "--calibration"),
        (["--backends", "torch", "--precisions", "int8"], "nothing to time"),
        (["--model", "nan"], "unknown model"),
        (["--engine", "missing.onnx"], "missing.onnx"),
        (["--random-weights", "--precisions", "int8"], "trained model"),
        (["--plot", "times.txt"], "times.txt: plots are"),
    ],
)
def test_bad_usage_is_one_line(
    arguments: list[str], said: str, picture: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_script(latency.Latency, "latency.py", [*arguments, "--image", str(picture), "--threads", "1"]) == 2
    out, err = capsys.readouterr()
    line = err.strip().splitlines()[-1]
    assert line.startswith("error: ") and said in line and not out and "Traceback" not in err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a device here")
@pytest.mark.parametrize("backend", ["tensorrt", "tensorrt_rtx"])
def test_tensorrt_without_a_device_is_one_line(backend: str, picture: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_script(latency.Latency, "latency.py", ["--backends", backend, "--image", str(picture), "--json"]) == 2
    out, err = capsys.readouterr()
    assert list(json.loads(out)) == ["error"] and "Traceback" not in err and "exporting" not in err
