"""The figures of README are those of the files that it names."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from tests.docs.commands import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")


def result(name: str) -> Any:
    """Return what a file of benchmarks/results/ holds."""
    return json.loads((ROOT / "benchmarks" / "results" / name).read_text())


@pytest.mark.parametrize("name", ["camvid_nano.json", "camvid_nano_unseen.json", "camvid_plain_equal_steps.json"])
def test_a_row_of_the_results_is_its_file(name: str) -> None:
    (row,) = re.findall(rf"^\|.*`{name}` \|$", README, re.M)
    shown = [float(cell) for cell in row.split("|")[3:7]]
    found = result(name)
    keys = ("miou", "pixel_accuracy", "boundary_f1", "boundary_iou")
    assert shown == pytest.approx([100 * found[key] for key in keys], abs=0.0501)
    assert found["images"] == 101 and found["dataset"] == "camvid" and found["split"] == "val"


def test_the_classes_are_those_of_the_shipped_model() -> None:
    (line,) = re.findall(r"^Classes, IoU in %: (.*?)\.", README, re.M)
    shown = {name: int(value) for name, value in (part.rsplit(" ", 1) for part in line.split(", "))}
    found = {name: 100 * value for name, value in result("camvid_nano.json")["iou"].items()}
    assert shown == pytest.approx(found, abs=0.501)


def test_the_gain_is_the_difference_of_its_rows() -> None:
    (gain,) = re.findall(r"\*\*([\d.]+) points of mIoU at equal steps\*\*", README)
    gained = result("camvid_nano.json")["miou"] - result("camvid_plain_equal_steps.json")["miou"]
    assert float(gain) == pytest.approx(100 * gained, abs=0.0501)
    curves = {
        name: {point["step"]: 100 * point["miou"] for point in curve}
        for name, curve in result("camvid_learning_curves.json")["curves"].items()
    }
    shown = [
        float(value) for value in re.findall(r"stand at ([\d.]+) after|against ([\d.]+) after", README)[0] if value
    ]
    assert shown == pytest.approx([curves["full"][1000]], abs=0.0501)
    (ahead,) = re.findall(r"\*\*([\d.]+) points ahead in less time\*\*", README)
    assert float(ahead) == pytest.approx(curves["full"][1500] - curves["plain_head"][5000], abs=0.1)
    (ratio,) = re.findall(r"takes ([\d.]+)× the plain", README)
    assert float(ratio) == pytest.approx(result("train_step_cpu.json")["ratio"], abs=0.051)


def test_the_ablation_is_its_file() -> None:
    rows = {row["variant"]: row for row in result("ablation_camvid.json")["rows"]}
    shown = re.findall(
        r"(baseline|with SAE|with SAE and SMD) ([\d.]+) ± ([\d.]+)(?: mIoU)? and\s+([\d.]+) ± (\d+\.\d)", README
    )
    assert [name for name, *_ in shown] == ["baseline", "with SAE", "with SAE and SMD"]
    for (_, *values), variant in zip(shown, ("baseline", "SAE", "SAE + SMD"), strict=True):
        row = rows[variant]
        found = [100 * row[key] for key in ("miou", "miou_std", "boundary_f1", "boundary_f1_std")]
        assert [float(value) for value in values] == pytest.approx(found, abs=0.0501)


def test_the_latencies_are_their_files() -> None:
    rows = [row for row in result("latency_cpu.json")["results"] if row["stage"] == "end_to_end"]
    cases = {(row["backend"], row["precision"]): row for row in rows}
    rows = re.findall(r"^\| (PyTorch|ONNX Runtime) (float32|int8).*?\| ([\d.]+) \| (\d+) \| ([\d.]+) \|$", README, re.M)
    assert len(rows) == 3
    for runtime, precision, time, memory, _ in rows:
        case = cases[{"PyTorch": "torch", "ONNX Runtime": "onnxruntime"}[runtime], precision]
        assert float(time) == pytest.approx(case["p50_ms"], abs=0.0501)
        assert float(memory) == pytest.approx(case["peak_mb"], abs=0.51)


def test_every_result_file_that_readme_names_is_there() -> None:
    named = set(re.findall(r"`(\w+\.json)`", README)) - {"config.json", "manifest.json"}
    assert named and {name for name in named if not (ROOT / "benchmarks" / "results" / name).is_file()} == set()


def test_the_model_is_as_large_as_readme_says() -> None:
    manifest = json.loads((ROOT / "ovsdino" / "weights" / "manifest.json").read_text())["nano"]
    assert f"{manifest['parameters'] / 1e6:.2f} M parameters" in README
    assert f"{manifest['bytes'] / 1e6:.1f} MB" in README
