"""The latency benchmark: its report's form, percentiles by hand."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ovsdino.benchmarks import latency
from ovsdino.benchmarks.lib import latency_measure, latency_roofline
from ovsdino.benchmarks.lib.latency_cases import Case, case_json, case_of
from ovsdino.benchmarks.lib.latency_report import markdown
from ovsdino.parsing import run_script
from tests.support import tiny
from tests.support.blocking import BLOCK

KEYS = ["model", "backend", "precision", "input", "frame", "stage", "p50_ms", "p95_ms", "p99_ms", "runs", "peak_mb"]
KEYS += ["device_mb", "least_ms", "first_fifth_ms", "last_fifth_ms"]
QUICK = ("--warmup", "1", "--warmup-seconds", "0")
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
        *("--classes", "road, sky", "--image", str(picture), "--runs", "2", *QUICK, "--threads", "1"),
        *("--output", str(tmp_path / "latency.json"), "--plot", str(tmp_path / "latency.png"), "--json"),
    ]
    assert run_script(latency.Latency, "latency.py", arguments) == 0
    report = json.loads(capsys.readouterr().out)
    assert report == json.loads((tmp_path / "latency.json").read_text())
    assert all(list(row) == KEYS and row["runs"] == 2 for row in report["results"])
    stages = {row["backend"]: [] for row in report["results"]}
    for row in report["results"]:
        stages[row["backend"]].append(row["stage"])
        assert 0 < row["least_ms"] <= row["p50_ms"] <= row["p95_ms"] and row["p99_ms"] is None  # of two calls
        assert (row["peak_mb"] is not None) == (row["stage"] == "end_to_end")
    assert stages == {
        "onnxruntime": ["preprocess", "encode", "postprocess", "end_to_end", "default"],
        "torch": ["preprocess", "encode", "decode", "postprocess", "end_to_end", "default"],
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
    assert f"{peak['torch']:.0f} |" in text and "by default p50" in text
    bound = {row["backend"]: row for row in report["roofline"]}
    assert set(bound) == {"torch"} and bound["torch"]["encode_over_bound"] > 1  # "tiny" is not in the zoo
    assert bound["torch"]["expected_ms"] is None and "this machine, its measured rates" in text


def test_a_board_without_torch_times_its_engine(tmp_path: Path, picture: Path) -> None:
    graph, bank = tiny.graph(tmp_path / "tiny.onnx"), tmp_path / "bank.safetensors"
    tiny.bank("road", "sky").save(bank)
    script = Path(latency.__file__)
    code = BLOCK.format(blocked=["torch", "timm", "open_clip", "torchvision", "matplotlib"]) + (
        f"import runpy\nsys.path.insert(0, {str(script.parent)!r})\n"
        f"runpy.run_path({str(script)!r}, run_name='__main__')\n"
    )
    arguments = ["--engine", str(graph), "--bank", str(bank), "--image", str(picture), "--runs", "3", *QUICK, "--json"]
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    report = json.loads(done.stdout)
    assert {row["backend"] for row in report["results"]} == {"onnxruntime"} and report["shares"] == []
    assert report["machine"]["threads"] >= 1 and "torch" not in report["machine"]


def test_percentiles_are_interpolated_between_samples() -> None:
    line = latency_measure.row(CASE, "encode", [5.0, 1.0, 3.0, 2.0, 4.0])
    assert (line["p50_ms"], line["p95_ms"], line["least_ms"]) == (3.0, 4.8, 1.0)  # at 2, 3.8 and 0 of 0..4
    assert (line["first_fifth_ms"], line["last_fifth_ms"]) == (5.0, 4.0)
    assert line["runs"] == 5 and line["input"] == "64x80" and list(line) == KEYS


def test_there_is_no_p99_of_fewer_than_a_thousand_calls() -> None:
    calls = [float(value) for value in range(1000)]
    assert latency_measure.row(CASE, "encode", calls)["p99_ms"] == 989.01
    assert latency_measure.row(CASE, "encode", calls[1:])["p99_ms"] is None


IDLE = "RAM 2948/7620MB CPU [50%@1728] GR3D_FREQ 0%@[1020] gpu@50C VDD_IN 4000mW/4000mW"
BUSY = "RAM 2948/7620MB CPU [50%@1728] GR3D_FREQ 90%@[1020] gpu@60C VDD_IN 8000mW/6000mW"


@pytest.fixture
def orin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put the tools of a Jetson on PATH: it draws 4 W, and from the first call on 8 W."""
    started = tmp_path / "started"
    tegrastats = f"while :; do if [ -e {started} ]; then echo '{BUSY}'; else echo '{IDLE}'; fi; sleep 0.05; done"
    for name, script in (("tegrastats", tegrastats), ("nvpmodel", "echo 'NV Power Mode: 15W'; echo 1")):
        path = tmp_path / "tools" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
    monkeypatch.setenv("PATH", str(path.parent), prepend=":")
    warm = latency_measure.warm

    def starting(calls: latency_measure.Prepared, plan: latency_measure.Plan) -> None:
        started.touch()
        time.sleep(0.5)  # until the next line
        warm(calls, plan)

    monkeypatch.setattr(latency_measure, "warm", starting)


@pytest.mark.usefixtures("orin")
def test_a_boards_power_clocks_and_doubts_are_in_the_report(
    tmp_path: Path, picture: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    graph, bank = tiny.graph(tmp_path / "tiny.onnx"), tmp_path / "bank.safetensors"
    tiny.bank("road", "sky").save(bank)
    arguments = [
        *("--engine", str(graph), "--bank", str(bank), "--image", str(picture), "--frames", "32x48", "--seconds", "3"),
        *(*QUICK, "--power-seconds", "2", "--no-memory", "--threads", "1", "--json"),
    ]
    assert run_script(latency.Latency, "latency.py", arguments) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["machine"]["nvpmodel"] == "15W"
    assert any(doubt.startswith("nvpmodel is 15W") for doubt in report["machine"]["doubts"])
    told = report["telemetry"]
    assert told["source"] == "tegrastats" and told["samples"] >= 4 and told["numbers"]["celsius gpu"]["most"] == 60
    assert report["machine"]["power_w"]["source"] == "tegrastats" and report["machine"]["power_w"]["most"] == 8
    assert [row["frame"] for row in report["power"]] == ["rgb", "nv12 32x48"]
    for row in report["power"]:
        assert row["mean"] == 8 and row["idle_w"] == 4
        assert row["joules_per_image"] == pytest.approx(8 / row["images_per_s"], rel=0.01)
        assert row["joules_per_image_above_idle"] == pytest.approx(row["joules_per_image"] / 2, rel=0.01)
    assert {row["runs"] for row in report["results"]} == {report["results"][0]["runs"]}  # in turn, as long as it takes
    text = markdown(report)
    assert "joules an image" in text and "| nv12 32x48 |" in text and "Doubtful: nvpmodel is 15W" in text


def test_a_network_is_compared_with_what_its_device_can_do() -> None:
    cases = [
        dataclasses.replace(CASE, precision=name, size=(352, 464), backend="tensorrt") for name in ("float16", "int8")
    ]
    rows = [latency_measure.row(case, "encode", [8.0]) for case in cases]
    report = {"machine": {"board": "NVIDIA Jetson Orin Nano Developer Kit", "device": "cpu"}, "results": rows}
    found = latency_roofline.roofline_rows(report, cases)
    assert [row["device"] for row in found] == ["Orin Nano Super"] * 2
    for row in found:  # 0.35 is the share of the bound that engines reach
        assert row["expected_ms"] == pytest.approx(row["bound_ms"] / 0.35, abs=2e-3)
        assert row["encode_over_expected"] == round(8 / row["expected_ms"], 2)
    assert found[1]["bound_ms"] < found[0]["bound_ms"]


@pytest.mark.parametrize(
    ("facts", "name"),
    [
        ({"board": "NVIDIA Jetson AGX Orin Developer Kit"}, "AGX Orin 64 GB"),
        ({"board": "NVIDIA Jetson Orin NX Engineering Reference", "nvpmodel": "MAXN_SUPER"}, "Orin NX 16 GB Super"),
        ({"board": "NVIDIA Jetson Orin NX Engineering Reference", "nvpmodel": "25W"}, "Orin NX 16 GB"),
        ({"gpu": "NVIDIA H200"}, "H200"),
        ({"cpu": "AMD EPYC"}, None),
    ],
)
def test_a_machine_is_found_among_the_devices_of_the_roofline(facts: dict[str, str], name: str | None) -> None:
    assert latency_roofline.device_name(facts) == name


def test_a_case_survives_the_way_to_its_child_process() -> None:
    for case in (CASE, dataclasses.replace(CASE, frame=(720, 1280))):
        assert case_of(json.loads(case_json(case))) == case


def test_the_network_sees_what_the_pipeline_would_give_it() -> None:
    assert latency.sizes("nano", (), np.zeros((360, 480, 3), np.uint8)) == [(352, 464)]
    assert latency.sizes("b14", ("448x896", "224X224"), np.zeros((9, 9, 3), np.uint8)) == [(448, 896), (224, 224)]


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["--backends", "tflite"], "unknown backend 'tflite'"),
        (["--precisions", "int4"], "unknown precision 'int4'"),
        (["--size", "448"], "HEIGHTxWIDTH"),
        (["--size", "70x80", "--backends", "torch"], "multiples of 16"),
        (["--runs", "0"], "runs is 0"),
        (["--seconds", "0"], "seconds is 0"),
        (["--warmup-seconds", "-1"], "warmup_seconds is -1"),
        (["--frames", "4k"], "frame is '4k'"),
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
