"""The one-command GPU check on a machine that has no GPU: its steps on CPU tests, behind a stand-in sanitizer."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

from tests.install.sandbox import ROOT, attempt

sys.path.insert(0, str(ROOT / "scripts"))

import gpu_check
from gpu_check import Step

FACTS = {"gpu": "none", "compute_capability": "9.0"}


@pytest.fixture
def staged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make an output folder, with the package of this checkout next to it."""
    monkeypatch.setattr(gpu_check, "STAGE", tmp_path / "stage")
    gpu_check.stage_package()
    for module in (ROOT / "ovsdino").glob("_C*.so"):
        (tmp_path / "stage" / "ovsdino" / module.name).symlink_to(module)
    (tmp_path / "out").mkdir()
    return tmp_path / "out"


@pytest.fixture
def sanitizer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put a compute-sanitizer on PATH that runs the command and prints a summary."""
    tool = tmp_path / "tools" / "compute-sanitizer"
    tool.parent.mkdir()
    tool.write_text(f"""#!/bin/sh
echo "========= COMPUTE-SANITIZER $*" >&2
while [ "$1" != "{sys.executable}" ]; do shift; done
"$@"
code=$?
echo "========= ERROR SUMMARY: 0 errors" >&2
exit $code
""")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tool.parent), prepend=":")


def test_without_a_gpu_it_ends_with_one_clear_line(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    done = attempt(sys.executable, ROOT / "scripts" / "gpu_check.py", "--output", tmp_path / "out")
    assert done.returncode == 2
    assert done.stdout.startswith("error: no CUDA device")
    assert len(done.stdout.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_sanitizer_runs_the_tests_it_is_given_on_the_staged_package(staged: Path, sanitizer: None) -> None:
    # `gpu` tests are skipped here, so a test that runs anywhere stands in for them.
    chosen = ("tests/ops/test_dispatch.py", "-k", "unknown_name", "-m", "")
    step = gpu_check.sanitizer_step("memcheck", staged, "ovsdino", 300, chosen)
    assert step.status == "passed" and "ERROR SUMMARY: 0 errors" in step.note and "2 passed" in step.note
    log = (staged / "sanitizer-memcheck.log").read_text()
    assert "--kernel-name kernel_substring=ovsdino" in log


def test_sanitizer_that_ran_no_test_has_checked_nothing(staged: Path, sanitizer: None) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    step = gpu_check.sanitizer_step("racecheck", staged, "ovsdino", 300)
    assert step.status == "failed" and "no test ran" in step.note and "skipped" in step.note


def test_benchmark_step_reads_the_rows_and_counts_those_below_their_floor(staged: Path) -> None:
    step = gpu_check.benchmark_step("mask_pool", staged, True, 300, "--device", "cpu")
    assert step.status == "passed" and "results" in step.note
    assert {row["op"] for row in step.details["results"]} == {"mask_pool"}


def test_table_step_merges_the_fastest_backends_into_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = tmp_path / "ops" / "measured.json"
    table.parent.mkdir()
    other = {"device": "Other", "op": "structure_attention", "dtype": "float16", "gradient": False, "at_least": 0}
    table.write_text(json.dumps({"format": 1, "rows": [{**other, "below": None, "backend": "cuda"}]}))
    monkeypatch.setattr(gpu_check, "TABLE", table)
    monkeypatch.setattr(gpu_check, "ROOT", tmp_path)
    assert gpu_check.table_step("Mine", tmp_path).status == "skipped"
    result = {"op": "structure_attention", "dtype": "float16", "gradient": False, "size": 64, "backend": "triton"}
    result |= {"rival": "sdpa", "ours_ms": 1.0, "baseline_ms": 2.0}
    results = tmp_path / "ops-structure_attention.json"
    results.write_text(json.dumps({"results": [result]}))
    step = gpu_check.table_step("Mine", tmp_path)
    assert (step.status, step.note) == ("passed", "1 rows for Mine in ops/measured.json")
    rows = json.loads(table.read_text())["rows"]
    assert [(row["device"], row["backend"]) for row in rows] == [("Mine", "triton"), ("Other", "cuda")]
    assert [row["device"] for row in json.loads((tmp_path / "measured.json").read_text())["rows"]] == ["Mine"]

    written = table.read_text()
    results.write_text(json.dumps({"results": [{**result, "backend": "flash"}]}))
    step = gpu_check.table_step("Mine", tmp_path)
    assert step.status == "failed" and "as it was" in step.note and table.read_text() == written


def test_failing_step_says_why_and_a_step_without_time_does_not_start(staged: Path) -> None:
    failed = gpu_check.run("broken", [sys.executable, "-c", "raise SystemExit('no luck')"], staged, 60)
    assert (failed.status, failed.note) == ("failed", "exit code 1") and "no luck" in failed.details["text"]
    late = gpu_check.run("late", [sys.executable, "-c", "1"], staged, 1)
    assert (late.status, late.note) == ("timeout", "no time left")


def test_report_keeps_the_steps_of_earlier_parts(tmp_path: Path) -> None:
    row = {"op": "mask_pool", "ratio": 2.0, "floor": None}
    gpu_check.save(FACTS, [Step("build", "passed"), Step("tests", "failed", note="1 failures")], tmp_path)
    gpu_check.save(FACTS, [Step("tests", "passed", note="9 tests")], tmp_path)
    table = gpu_check.save(FACTS, [Step("benchmark-mask_pool", "passed", details={"results": [row]})], tmp_path)
    document = json.loads((tmp_path / "gpu_check.json").read_text())
    assert [step["name"] for step in document["steps"]] == ["build", "tests", "benchmark-mask_pool"]
    assert document["passed"] and "9 tests" in table and "| mask_pool | 2 |  |" in table
    assert (tmp_path / "gpu_check.md").read_text() == table


def test_parts_choose_the_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("build_step", "tests_step", "benchmark_step", "sanitizer_step"):
        monkeypatch.setattr(gpu_check, name, lambda *arguments, name=name: Step(name, "failed"))
    monkeypatch.setattr(gpu_check, "machine", lambda: FACTS)
    monkeypatch.setattr(gpu_check, "STAGE", tmp_path / "stage")
    command = ["gpu_check.py", "--output", str(tmp_path / "out"), "--parts", "tests", "sanitizer"]
    monkeypatch.setattr(sys, "argv", command)
    assert gpu_check.main() == 1
    document = json.loads((tmp_path / "out" / "gpu_check.json").read_text())
    assert {step["name"] for step in document["steps"]} == {"tests_step", "sanitizer_step"}  # a failure stops none
